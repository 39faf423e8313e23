-- condemned is the epoch in which a collection found that nothing needs the
-- pack; damaged packs are not referred to by new points. bin_clock is the
-- server's uptime, in seconds, when a snapshot went into the recycle bin.

-- +goose Up
ALTER TABLE packs ADD COLUMN condemned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE packs ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0;
CREATE INDEX packs_leaving ON packs (state, id) WHERE state <> 'LIVE';
ALTER TABLE snapshots ADD COLUMN bin_clock INTEGER NOT NULL DEFAULT 0;
CREATE INDEX snapshots_bin ON snapshots (bin_clock, id) WHERE status = 'deleted';
CREATE INDEX sessions_active ON sessions (id) WHERE state = 'ACTIVE';

-- +goose Down
DROP INDEX sessions_active;
DROP INDEX snapshots_bin;
ALTER TABLE snapshots DROP COLUMN bin_clock;
DROP INDEX packs_leaving;
ALTER TABLE packs DROP COLUMN damaged;
ALTER TABLE packs DROP COLUMN condemned;
