-- Messages that can't be published, set apart with the reason.
CREATE TABLE IF NOT EXISTS oncekey_outbox_parked (
    id INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    headers TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- Milliseconds since 1970.
    parked_at INTEGER NOT NULL
) STRICT
