-- One row for each idempotency key. {table} is the configured name, {name} the same without its schema.
CREATE TABLE {table} (
    -- In the order of its bytes, as lists go.
    key text COLLATE "C" PRIMARY KEY,
    fingerprint bytea NOT NULL,
    attempt bigint NOT NULL,
    owner bytea NOT NULL,
    -- 1: in progress, 2: completed, 3: indeterminate.
    state smallint NOT NULL,
    -- Milliseconds since 1970 by the server's clock; only of claims in progress.
    lease_until bigint,
    -- 1: rerun, 2: hold; only of claims in progress.
    on_abandoned smallint,
    -- Only of completed records.
    outcome bytea,
    -- When the record goes away by itself; of a completed one, when its retention ends.
    purge_at bigint,
    -- Whether somebody waits for the end of the claim: only then is it announced, as announcements take turns.
    watched boolean NOT NULL DEFAULT false
) WITH (
    -- Rows come and go all the time; a tenth of a large table is too long to wait for.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02
);

-- A purge reads from the front of this, never the table.
CREATE INDEX {name}_purge_at ON {table} (purge_at) WHERE purge_at IS NOT NULL;
