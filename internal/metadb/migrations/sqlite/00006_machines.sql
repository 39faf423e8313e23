-- A machine is the row of its system disk: it has the machine's id, and what the
-- machine is made of. instance_id is the machine that has a volume, device where.
-- Images are snapshots whose zone begins with image/.

-- +goose Up
ALTER TABLE volumes ADD COLUMN instance_id TEXT NOT NULL DEFAULT '';
ALTER TABLE volumes ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE volumes ADD COLUMN cpus INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN memory INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN image TEXT NOT NULL DEFAULT '';
CREATE INDEX volumes_instance ON volumes (instance_id) WHERE instance_id <> '';
CREATE UNIQUE INDEX volumes_device ON volumes (instance_id, device) WHERE instance_id <> '' AND status <> 'ceased';

DROP TRIGGER volumes_update_journal;
-- Not among the columns: transition, on_demand, search_key.
-- +goose StatementBegin
CREATE TRIGGER volumes_update_journal AFTER UPDATE ON volumes WHEN NEW.status <> 'pending' AND (
  OLD.id IS NOT NEW.id OR OLD.zone IS NOT NEW.zone OR OLD.name IS NOT NEW.name OR OLD.description IS NOT NEW.description
  OR OLD.type IS NOT NEW.type OR OLD.driver IS NOT NEW.driver OR OLD.path IS NOT NEW.path OR OLD.identity IS NOT NEW.identity
  OR OLD.size_bytes IS NOT NEW.size_bytes OR OLD.status IS NOT NEW.status OR OLD.create_time IS NOT NEW.create_time
  OR OLD.status_time IS NOT NEW.status_time OR OLD.mixed_job IS NOT NEW.mixed_job
  OR OLD.instance_id IS NOT NEW.instance_id OR OLD.device IS NOT NEW.device OR OLD.cpus IS NOT NEW.cpus
  OR OLD.memory IS NOT NEW.memory OR OLD.image IS NOT NEW.image
) BEGIN
  DELETE FROM journal_outbox WHERE kind = 2 AND id = NEW.id;
  INSERT INTO journal_outbox (kind, id) VALUES (2, NEW.id);
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER volumes_update_journal;
-- +goose StatementBegin
CREATE TRIGGER volumes_update_journal AFTER UPDATE ON volumes WHEN NEW.status <> 'pending' AND (
  OLD.id IS NOT NEW.id OR OLD.zone IS NOT NEW.zone OR OLD.name IS NOT NEW.name OR OLD.description IS NOT NEW.description
  OR OLD.type IS NOT NEW.type OR OLD.driver IS NOT NEW.driver OR OLD.path IS NOT NEW.path OR OLD.identity IS NOT NEW.identity
  OR OLD.size_bytes IS NOT NEW.size_bytes OR OLD.status IS NOT NEW.status OR OLD.create_time IS NOT NEW.create_time
  OR OLD.status_time IS NOT NEW.status_time OR OLD.mixed_job IS NOT NEW.mixed_job
) BEGIN
  DELETE FROM journal_outbox WHERE kind = 2 AND id = NEW.id;
  INSERT INTO journal_outbox (kind, id) VALUES (2, NEW.id);
END;
-- +goose StatementEnd
DROP INDEX volumes_device;
DROP INDEX volumes_instance;
ALTER TABLE volumes DROP COLUMN image;
ALTER TABLE volumes DROP COLUMN memory;
ALTER TABLE volumes DROP COLUMN cpus;
ALTER TABLE volumes DROP COLUMN device;
ALTER TABLE volumes DROP COLUMN instance_id;
