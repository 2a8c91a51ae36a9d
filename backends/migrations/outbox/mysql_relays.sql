-- The relay that publishes, in one row, and until when: milliseconds since 1970 by the server's clock.
CREATE TABLE IF NOT EXISTS {table} (
    id SMALLINT NOT NULL PRIMARY KEY,
    owner VARBINARY(64) NOT NULL,
    lease_until BIGINT NOT NULL
) ENGINE = InnoDB
