-- One row for each idempotency key. {table} is the configured name. Data definition commits by itself here, so that this
-- must be right to repeat after it was cut short.
CREATE TABLE IF NOT EXISTS {table} (
    -- In the order of its bytes, as lists go; no collation takes two keys for one.
    record_key VARBINARY(520) NOT NULL PRIMARY KEY,
    fingerprint VARBINARY(64) NOT NULL,
    attempt BIGINT NOT NULL,
    owner VARBINARY(32) NOT NULL,
    -- 1: in progress, 2: completed, 3: indeterminate.
    state SMALLINT NOT NULL,
    -- Milliseconds since 1970 by the server's clock; only of claims in progress.
    lease_until BIGINT NULL,
    -- 1: rerun, 2: hold; only of claims in progress.
    on_abandoned SMALLINT NULL,
    -- Only of completed records.
    outcome LONGBLOB NULL,
    -- When the record goes away by itself; of a completed one, when its retention ends.
    purge_at BIGINT NULL,
    -- A purge reads from the front of this, never the table.
    KEY purge_at (purge_at),
    -- Counts read this.
    KEY state (state)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC
