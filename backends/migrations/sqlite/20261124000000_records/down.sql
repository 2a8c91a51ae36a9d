DROP TABLE oncekey_clock;
DROP TABLE oncekey_records;
