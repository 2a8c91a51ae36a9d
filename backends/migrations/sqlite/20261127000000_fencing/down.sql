DELETE FROM oncekey_records WHERE state = 4;
ALTER TABLE oncekey_records DROP COLUMN barrier_until;
ALTER TABLE oncekey_records DROP COLUMN barrier_owner;
ALTER TABLE oncekey_records DROP COLUMN fencing_token;
