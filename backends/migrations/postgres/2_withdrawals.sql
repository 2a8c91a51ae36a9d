-- Fencing tokens and withdrawn claims. State 4 is new: a vacant key, whose row is kept until purge_at for its barrier or its
-- token. Rows from before have the lowest token; the next claim of their key gets the clock's, which is higher.
ALTER TABLE {table}
    ADD COLUMN fencing_token bigint NOT NULL DEFAULT 0,
    -- The claim that was withdrawn last, and until when it is kept from arriving late.
    ADD COLUMN barrier_owner bytea,
    ADD COLUMN barrier_until bigint;
