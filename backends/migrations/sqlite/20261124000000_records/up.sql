-- One row for each idempotency key. A rowid table: the rows of the claims in flight lie together at its end, whatever
-- their keys are, so that a completion writes few pages. Its unique index is what look-ups and lists go by; it orders
-- keys by their bytes.
CREATE TABLE oncekey_records (
    id INTEGER PRIMARY KEY NOT NULL,
    key TEXT NOT NULL UNIQUE COLLATE BINARY,
    fingerprint BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    owner BLOB NOT NULL,
    -- 1: in progress, 2: completed, 3: indeterminate.
    state INTEGER NOT NULL,
    -- Milliseconds by the store's clock; only of claims in progress.
    lease_until INTEGER,
    -- 1: rerun, 2: hold; only of claims in progress.
    on_abandoned INTEGER,
    -- Only of completed records.
    outcome BLOB,
    -- When the record goes away by itself; of a completed one, when its retention ends.
    purge_at INTEGER
) STRICT;

-- A purge reads from the front of this, never the table.
CREATE INDEX oncekey_records_purge_at ON oncekey_records (purge_at) WHERE purge_at IS NOT NULL;

-- One row: how the machine's monotonic clock becomes the store's time.
CREATE TABLE oncekey_clock (
    id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    boot_id TEXT NOT NULL,
    offset_ms INTEGER NOT NULL,
    latest_ms INTEGER NOT NULL
) STRICT;
