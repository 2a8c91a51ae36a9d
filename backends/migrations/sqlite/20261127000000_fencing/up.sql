-- A record that was written before has the lowest token: the next claim's follows the store's clock.
ALTER TABLE oncekey_records ADD COLUMN fencing_token INTEGER NOT NULL DEFAULT 0;

-- The claim that was withdrawn last, and until when it is kept from arriving (milliseconds by the store's clock).
ALTER TABLE oncekey_records ADD COLUMN barrier_owner BLOB;
ALTER TABLE oncekey_records ADD COLUMN barrier_until INTEGER;

-- `state` may also be 4, vacant: the key is free, and the row is kept until `purge_at` for its barrier or its token.
