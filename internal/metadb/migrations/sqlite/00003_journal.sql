-- Rows whose present state the repository's journal lacks. Triggers keep it,
-- not the code that writes rows: a change that is forgotten here is lost with
-- the database, and nothing else would ever show it. number grows for ever.

-- +goose Up
CREATE TABLE journal_outbox (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  kind   INTEGER NOT NULL, -- 1 snapshot, 2 volume
  id     TEXT    NOT NULL
);
CREATE UNIQUE INDEX journal_outbox_row ON journal_outbox (kind, id);

-- A row that changes again gets a new number, so that a flush of its earlier
-- state does not pass for one of the later.

-- +goose StatementBegin
CREATE TRIGGER snapshots_insert_journal AFTER INSERT ON snapshots WHEN NEW.status <> 'pending' BEGIN
  DELETE FROM journal_outbox WHERE kind = 1 AND id = NEW.id;
  INSERT INTO journal_outbox (kind, id) VALUES (1, NEW.id);
END;
-- +goose StatementEnd

-- Not among the columns: transition, which ends with a job; head_chain, totals
-- and unique bytes, which are derived; search_key.
-- +goose StatementBegin
CREATE TRIGGER snapshots_update_journal AFTER UPDATE ON snapshots WHEN NEW.status <> 'pending' AND (
  OLD.id IS NOT NEW.id OR OLD.resource_id IS NOT NEW.resource_id OR OLD.parent_id IS NOT NEW.parent_id
  OR OLD.root_id IS NOT NEW.root_id OR OLD.is_full IS NOT NEW.is_full OR OLD.status IS NOT NEW.status
  OR OLD.damaged IS NOT NEW.damaged OR OLD.is_head IS NOT NEW.is_head OR OLD.virtual_size IS NOT NEW.virtual_size
  OR OLD.size_bytes IS NOT NEW.size_bytes OR OLD.snapshot_time IS NOT NEW.snapshot_time OR OLD.zone IS NOT NEW.zone
  OR OLD.name IS NOT NEW.name OR OLD.description IS NOT NEW.description OR OLD.create_time IS NOT NEW.create_time
  OR OLD.status_time IS NOT NEW.status_time OR OLD.is_taken IS NOT NEW.is_taken OR OLD.resource_type IS NOT NEW.resource_type
  OR OLD.resource_name IS NOT NEW.resource_name OR OLD.volume_type IS NOT NEW.volume_type OR OLD.group_id IS NOT NEW.group_id
  OR OLD.job_id IS NOT NEW.job_id OR OLD.consistency IS NOT NEW.consistency OR OLD.cbt IS NOT NEW.cbt
  OR OLD.reason IS NOT NEW.reason OR OLD.manifest_pack IS NOT NEW.manifest_pack OR OLD.manifest_hash IS NOT NEW.manifest_hash
) BEGIN
  DELETE FROM journal_outbox WHERE kind = 1 AND id = NEW.id;
  INSERT INTO journal_outbox (kind, id) VALUES (1, NEW.id);
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER snapshots_delete_journal AFTER DELETE ON snapshots WHEN OLD.status <> 'pending' BEGIN
  DELETE FROM journal_outbox WHERE kind = 1 AND id = OLD.id;
  INSERT INTO journal_outbox (kind, id) VALUES (1, OLD.id);
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER volumes_insert_journal AFTER INSERT ON volumes WHEN NEW.status <> 'pending' BEGIN
  DELETE FROM journal_outbox WHERE kind = 2 AND id = NEW.id;
  INSERT INTO journal_outbox (kind, id) VALUES (2, NEW.id);
END;
-- +goose StatementEnd

-- Not among the columns: transition, search_key.
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

-- +goose StatementBegin
CREATE TRIGGER volumes_delete_journal AFTER DELETE ON volumes WHEN OLD.status <> 'pending' BEGIN
  DELETE FROM journal_outbox WHERE kind = 2 AND id = OLD.id;
  INSERT INTO journal_outbox (kind, id) VALUES (2, OLD.id);
END;
-- +goose StatementEnd

-- +goose Down
DROP TRIGGER volumes_delete_journal;
DROP TRIGGER volumes_update_journal;
DROP TRIGGER volumes_insert_journal;
DROP TRIGGER snapshots_delete_journal;
DROP TRIGGER snapshots_update_journal;
DROP TRIGGER snapshots_insert_journal;
DROP TABLE journal_outbox;
