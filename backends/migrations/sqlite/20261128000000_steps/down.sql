DROP TRIGGER oncekey_steps_end;
DROP TABLE oncekey_steps;
DELETE FROM oncekey_records WHERE state = 5;
UPDATE oncekey_records SET on_abandoned = 2 WHERE on_abandoned = 3;
ALTER TABLE oncekey_records DROP COLUMN steps_retention;
ALTER TABLE oncekey_records DROP COLUMN steps_life;
