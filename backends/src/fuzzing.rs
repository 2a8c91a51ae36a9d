//! Entry points for the fuzz targets. Only builds with `--cfg fuzzing` have them.

use oncekey::Key;
use oncekey::backend::StoreError;
use oncekey::record::Record;

use crate::sql::row::Row;

/// A row's columns, in order.
pub type Columns = (
    Vec<u8>,
    i64,
    Vec<u8>,
    i16,
    Option<i64>,
    Option<i16>,
    Option<Vec<u8>>,
    Option<i64>,
    i64,
    Option<Vec<u8>>,
    Option<i64>,
);

/// Decodes a row as a record.
pub fn record_of_row(columns: Columns) -> Result<Record, StoreError> {
    let (
        fingerprint,
        attempt,
        owner,
        state,
        lease_until,
        on_abandoned,
        outcome,
        purge_at,
        fencing_token,
        withdrawn,
        until,
    ) = columns;
    Row {
        fingerprint,
        attempt,
        owner,
        state,
        lease_until,
        on_abandoned,
        outcome,
        purge_at,
        fencing_token,
        barrier_owner: withdrawn,
        barrier_until: until,
        steps_life: None,
        steps_retention: None,
    }
    .decode()
}

/// Decodes the value of a Redis key.
pub fn redis_value(key: &Key, bytes: Vec<u8>) {
    crate::redis::read_value(key, bytes);
}

/// Parses the URL of a PostgreSQL server, and returns the text of a refusal.
pub fn postgres_url(url: &str) -> Result<(), String> {
    crate::postgres::read_url(url).map_err(|error| format!("{error} {error:?}"))
}

/// Does the same for a MySQL URL.
pub fn mysql_url(url: &str) -> Result<(), String> {
    crate::mysql::read_url(url).map_err(|error| format!("{error} {error:?}"))
}
