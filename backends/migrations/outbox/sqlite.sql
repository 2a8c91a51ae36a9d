-- Messages that their transactions have committed, and no relay has published yet. An id is never used again.
CREATE TABLE IF NOT EXISTS oncekey_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The next consumer's key.
    message_id TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    -- A JSON object of texts.
    headers TEXT NOT NULL
) STRICT
