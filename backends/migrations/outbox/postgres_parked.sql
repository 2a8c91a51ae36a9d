-- Messages that can't be published, set apart with the reason.
CREATE TABLE IF NOT EXISTS {table} (
    id bigint PRIMARY KEY,
    message_id text NOT NULL,
    topic text NOT NULL,
    payload bytea NOT NULL,
    headers text NOT NULL,
    reason text NOT NULL,
    -- Milliseconds since 1970 by the server's clock.
    parked_at bigint NOT NULL
)
