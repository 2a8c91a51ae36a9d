-- Fencing tokens and withdrawn claims. State 4 is new: a vacant key, whose row is kept until purge_at for its barrier or its
-- token. Rows from before have the lowest token; the next claim of their key gets the clock's, which is higher.
-- One statement, which the server does whole or not at all.
ALTER TABLE {table}
    ADD COLUMN fencing_token BIGINT NOT NULL DEFAULT 0,
    -- The claim that was withdrawn last, and until when it is kept from arriving late.
    ADD COLUMN barrier_owner VARBINARY(32) NULL,
    ADD COLUMN barrier_until BIGINT NULL
