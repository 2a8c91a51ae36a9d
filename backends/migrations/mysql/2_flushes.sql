-- Where a commit is shown to others before it is on the disk, one who tells of it commits a change here first, and has waited
-- with it for the log. A connection writes the row of its number: there are never many.
CREATE TABLE IF NOT EXISTS {flushes} (
    slot BIGINT NOT NULL PRIMARY KEY,
    flushes BIGINT NOT NULL
) ENGINE = InnoDB
