-- on_demand: nobody fetches the volume's content in the background.

-- +goose Up
ALTER TABLE volumes ADD COLUMN on_demand INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE volumes DROP COLUMN on_demand;
