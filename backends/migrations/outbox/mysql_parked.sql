-- Messages that can't be published, set apart with the reason.
CREATE TABLE IF NOT EXISTS {table} (
    id BIGINT NOT NULL PRIMARY KEY,
    message_id VARCHAR(520) CHARACTER SET utf8mb4 NOT NULL,
    topic VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    payload LONGBLOB NOT NULL,
    headers LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
    reason LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
    -- Milliseconds since 1970 by the server's clock.
    parked_at BIGINT NOT NULL
) ENGINE = InnoDB
