-- Messages that their transactions have committed, and no relay has published yet.
CREATE TABLE IF NOT EXISTS {table} (
    id bigserial PRIMARY KEY,
    -- The next consumer's key.
    message_id text NOT NULL,
    topic text NOT NULL,
    payload bytea NOT NULL,
    -- A JSON object of texts.
    headers text NOT NULL
)
