-- Of an operation with steps: the life that its steps carry, and for how long a release keeps them, in milliseconds. NULL:
-- it has none.
ALTER TABLE oncekey_records ADD COLUMN steps_life INTEGER;
ALTER TABLE oncekey_records ADD COLUMN steps_retention INTEGER;

-- One row for each step. The rows of one record lie together, in the order in which its steps began first. The outcome
-- comes last, so that the other columns are read without it.
CREATE TABLE oncekey_steps (
    record_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    life INTEGER NOT NULL,
    name TEXT NOT NULL COLLATE BINARY,
    fingerprint BLOB,
    attempt INTEGER NOT NULL,
    run_token INTEGER NOT NULL,
    run_number INTEGER NOT NULL,
    -- Milliseconds by the store's clock.
    began_at INTEGER NOT NULL,
    -- NULL: never.
    reruns_until INTEGER,
    -- 1: begun, 2: completed, 3: failed.
    progress INTEGER NOT NULL,
    -- Only of completed steps.
    outcome BLOB,
    PRIMARY KEY (record_id, position)
) STRICT, WITHOUT ROWID;

-- SQLite enforces foreign keys only on connections that ask for it. This holds on each, an operator's shell included.
CREATE TRIGGER oncekey_steps_end AFTER DELETE ON oncekey_records WHEN OLD.steps_life IS NOT NULL
BEGIN
    DELETE FROM oncekey_steps WHERE record_id = OLD.id;
END;

-- `state` may also be 5, released: the key is free, and its steps are kept until `purge_at`. `on_abandoned` may also be
-- 3, resume.
