-- verified is when a scrub last found every bit of the pack right.

-- +goose Up
ALTER TABLE packs ADD COLUMN verified INTEGER NOT NULL DEFAULT 0;
CREATE INDEX packs_verified ON packs (verified, id);

-- +goose Down
DROP INDEX packs_verified;
ALTER TABLE packs DROP COLUMN verified;
