-- Steps of operations. A record with steps has their life in steps_life; a step of another life is none of its steps. State 5
-- of a record is new: released, and kept until purge_at for its steps.
ALTER TABLE {table}
    ADD COLUMN steps_life bigint,
    -- Milliseconds that the record is kept once it is released.
    ADD COLUMN steps_retention bigint,
    -- How many steps the record has, or somewhat more.
    ADD COLUMN steps_count integer;

-- Each statement that writes here holds the lock of the record's row. Steps go in the transaction in which their record goes.
CREATE TABLE {steps} (
    key text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    -- The fencing token of the claim that began the record's first step.
    life bigint NOT NULL,
    -- The order in which the steps began first.
    ordinal integer NOT NULL,
    fingerprint bytea,
    attempt bigint NOT NULL,
    -- The last run: the fencing token of its claim, and which of this claim's steps.
    run_token bigint NOT NULL,
    run_number bigint NOT NULL,
    -- Milliseconds since 1970 by the server's clock.
    began_at bigint NOT NULL,
    reruns_until bigint,
    -- 1: begun, 2: completed, 3: failed.
    state smallint NOT NULL,
    -- Only of completed steps.
    outcome bytea,
    PRIMARY KEY (key, name)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02
);
