-- Times are microseconds since 1970 UTC, 0 = unset. Booleans are 0 and 1.
-- search_key columns hold what search compares: id and name, case folded by
-- the writer (SQLite folds ASCII only).

-- +goose Up
CREATE TABLE volumes (
  id          TEXT    NOT NULL PRIMARY KEY,
  zone        TEXT    NOT NULL,
  name        TEXT    NOT NULL,
  description TEXT    NOT NULL,
  type        INTEGER NOT NULL,
  driver      TEXT    NOT NULL,
  path        TEXT    NOT NULL,
  identity    TEXT    NOT NULL,
  size_bytes  INTEGER NOT NULL,
  status      TEXT    NOT NULL,
  transition  TEXT    NOT NULL,
  create_time INTEGER NOT NULL,
  status_time INTEGER NOT NULL,
  mixed_job   TEXT    NOT NULL,
  search_key  TEXT    NOT NULL
);
CREATE INDEX volumes_list ON volumes (zone, create_time DESC, id, status);
CREATE UNIQUE INDEX volumes_identity ON volumes (identity) WHERE identity <> '' AND status <> 'ceased';
CREATE UNIQUE INDEX volumes_path ON volumes (path) WHERE path <> '' AND status <> 'ceased';

CREATE TABLE snapshots (
  id            TEXT    NOT NULL PRIMARY KEY,
  resource_id   TEXT    NOT NULL,
  parent_id     TEXT    NOT NULL,
  root_id       TEXT    NOT NULL,
  is_full       INTEGER NOT NULL,
  status        TEXT    NOT NULL,
  damaged       INTEGER NOT NULL,
  is_head       INTEGER NOT NULL,
  virtual_size  INTEGER NOT NULL,
  size_bytes    INTEGER NOT NULL,
  snapshot_time INTEGER NOT NULL,
  zone          TEXT    NOT NULL,
  name          TEXT    NOT NULL,
  description   TEXT    NOT NULL,
  transition    TEXT    NOT NULL,
  create_time   INTEGER NOT NULL,
  status_time   INTEGER NOT NULL,
  is_taken      INTEGER NOT NULL,
  head_chain    INTEGER NOT NULL,
  resource_type TEXT    NOT NULL,
  resource_name TEXT    NOT NULL,
  volume_type   INTEGER NOT NULL,
  group_id      TEXT    NOT NULL,
  job_id        TEXT    NOT NULL,
  consistency   TEXT    NOT NULL,
  cbt           TEXT    NOT NULL,
  reason        TEXT    NOT NULL,
  manifest_pack TEXT    NOT NULL,
  manifest_hash TEXT    NOT NULL,
  total_bytes   INTEGER NOT NULL,
  total_count   INTEGER NOT NULL,
  latest_time   INTEGER NOT NULL,
  unique_bytes  INTEGER NOT NULL,
  unique_known  INTEGER NOT NULL,
  search_key    TEXT    NOT NULL
);
CREATE UNIQUE INDEX snapshots_head ON snapshots (resource_id) WHERE is_head = 1;
-- Every list runs in the order (create_time DESC, id). Those of a resource or
-- a root find their ids in one of these alone; rebuild runs through a zone.
CREATE INDEX snapshots_zone            ON snapshots (zone, create_time DESC, id);
CREATE INDEX snapshots_resource        ON snapshots (resource_id, create_time DESC, id, status, is_full, zone);
CREATE INDEX snapshots_resource_status ON snapshots (resource_id, status, create_time DESC, id, is_full, zone);
CREATE INDEX snapshots_root            ON snapshots (root_id, create_time DESC, id, status, is_full, zone, resource_id);

-- How many snapshots a list has, so that no page counts rows. scope is 'zone'
-- (key ''), 'resource' or 'root'. Derived from snapshots; see rebuild.
CREATE TABLE snapshot_counts (
  scope   TEXT    NOT NULL,
  key     TEXT    NOT NULL,
  zone    TEXT    NOT NULL,
  status  TEXT    NOT NULL,
  is_full INTEGER NOT NULL,
  n       INTEGER NOT NULL,
  PRIMARY KEY (scope, key, zone, status, is_full)
) WITHOUT ROWID;

-- What a zone's lists and every search read instead of a million rows: blocks
-- of neighbours in list order, each ended by (last_time, last_id). Derived from
-- snapshots; see rebuild. A changed block gets a new id; ids never come again.
CREATE TABLE snapshot_search (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  zone      TEXT    NOT NULL,
  last_time INTEGER NOT NULL,
  last_id   TEXT    NOT NULL,
  flags     BLOB    NOT NULL,
  keys      BLOB    NOT NULL,
  refs      BLOB    NOT NULL
);
CREATE UNIQUE INDEX snapshot_search_order ON snapshot_search (zone, last_time DESC, last_id);

CREATE TABLE jobs (
  id               TEXT    NOT NULL PRIMARY KEY,
  action           TEXT    NOT NULL,
  zone             TEXT    NOT NULL,
  request_id       TEXT    NOT NULL,
  status           TEXT    NOT NULL,
  create_time      INTEGER NOT NULL,
  begin_time       INTEGER NOT NULL,
  finished_time    INTEGER NOT NULL,
  info             TEXT    NOT NULL,
  extra            TEXT    NOT NULL,
  resource_ids     TEXT    NOT NULL,
  done_bytes       INTEGER NOT NULL,
  total_bytes      INTEGER NOT NULL,
  error_code       INTEGER NOT NULL,
  error_message    TEXT    NOT NULL,
  params           TEXT    NOT NULL,
  state            TEXT    NOT NULL,
  cancel_requested INTEGER NOT NULL,
  no_cancel        INTEGER NOT NULL,
  owner            TEXT    NOT NULL,
  term             INTEGER NOT NULL
);
CREATE INDEX jobs_list ON jobs (create_time DESC, id, zone, status);
CREATE INDEX jobs_unfinished ON jobs (create_time, id, zone, status, owner) WHERE status IN ('pending', 'working');
CREATE TABLE job_resources (
  resource_id TEXT NOT NULL,
  job_id      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  PRIMARY KEY (resource_id, job_id)
) WITHOUT ROWID;

CREATE TABLE locks (
  resource_id TEXT NOT NULL PRIMARY KEY,
  holder      TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX locks_holder ON locks (holder);

CREATE TABLE pins (
  snapshot_id TEXT NOT NULL,
  holder      TEXT NOT NULL,
  PRIMARY KEY (snapshot_id, holder)
) WITHOUT ROWID;
CREATE INDEX pins_holder ON pins (holder);

CREATE TABLE sessions (
  id    TEXT    NOT NULL PRIMARY KEY,
  term  INTEGER NOT NULL,
  state TEXT    NOT NULL
);

CREATE TABLE packs (
  id         TEXT    NOT NULL PRIMARY KEY,
  kind       TEXT    NOT NULL,
  name       TEXT    NOT NULL,
  session_id TEXT    NOT NULL REFERENCES sessions (id),
  term       INTEGER NOT NULL,
  state      TEXT    NOT NULL,
  born       INTEGER NOT NULL,
  stamped    INTEGER NOT NULL,
  bytes      INTEGER NOT NULL
);
CREATE INDEX packs_session ON packs (session_id, id);

CREATE TABLE settings (
  key   TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- +goose Down
DROP TABLE settings;
DROP TABLE packs;
DROP TABLE sessions;
DROP TABLE pins;
DROP TABLE locks;
DROP TABLE job_resources;
DROP TABLE jobs;
DROP TABLE snapshot_search;
DROP TABLE snapshot_counts;
DROP TABLE snapshots;
DROP TABLE volumes;
