-- The relay that publishes, in one row, and until when: milliseconds since 1970 by the server's clock.
CREATE TABLE IF NOT EXISTS {table} (
    id smallint PRIMARY KEY,
    owner text NOT NULL,
    lease_until bigint NOT NULL
)
