-- Steps of operations. A record with steps has their life in steps_life; a step of another life is none of its steps. State 5
-- of a record is new: released, and kept until purge_at for its steps.
-- Each transaction that writes here holds the lock of the record's row. Steps go in the transaction in which their record goes.
CREATE TABLE IF NOT EXISTS {steps} (
    record_key VARBINARY(520) NOT NULL,
    name VARBINARY(200) NOT NULL,
    -- The fencing token of the claim that began the record's first step.
    life BIGINT NOT NULL,
    -- The order in which the steps began first.
    ordinal INT NOT NULL,
    fingerprint VARBINARY(64) NULL,
    attempt BIGINT NOT NULL,
    -- The last run: the fencing token of its claim, and which of this claim's steps.
    run_token BIGINT NOT NULL,
    run_number BIGINT NOT NULL,
    -- Milliseconds since 1970 by the server's clock.
    began_at BIGINT NOT NULL,
    reruns_until BIGINT NULL,
    -- 1: begun, 2: completed, 3: failed.
    state SMALLINT NOT NULL,
    -- Only of completed steps.
    outcome LONGBLOB NULL,
    PRIMARY KEY (record_key, name)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
-- After the table: where this was cut short, the columns that are there say that all is done.
ALTER TABLE {table}
    ADD COLUMN steps_life BIGINT NULL,
    -- Milliseconds that the record is kept once it is released.
    ADD COLUMN steps_retention BIGINT NULL,
    -- How many steps the record has, or somewhat more.
    ADD COLUMN steps_count INT NULL
