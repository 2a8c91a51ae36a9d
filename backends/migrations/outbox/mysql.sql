-- Messages that their transactions have committed, and no relay has published yet.
CREATE TABLE IF NOT EXISTS {table} (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    -- The next consumer's key.
    message_id VARCHAR(520) CHARACTER SET utf8mb4 NOT NULL,
    topic VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    payload LONGBLOB NOT NULL,
    -- A JSON object of texts.
    headers LONGTEXT CHARACTER SET utf8mb4 NOT NULL
) ENGINE = InnoDB
