//! The sequence over an SQLite file, like GoPotency's SQL storage: a table of records as JSON, a table of locks, and
//! one commit per statement.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;

use super::{LOCK_TIMEOUT, RETENTION, Record, Response, Status, hash};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS idempotency_records
        (key TEXT PRIMARY KEY NOT NULL, data BLOB NOT NULL, expires_at BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS idempotency_records_locks (key TEXT PRIMARY KEY NOT NULL, expires_at BIGINT NOT NULL);
";

/// One of the connections that the flows share.
pub struct Sqlite(SqliteConnection);

/// Why a step failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

fn millis_from_now(after: Duration) -> Result<i64, Failure> {
    Ok(i64::try_from((SystemTime::now() + after).duration_since(UNIX_EPOCH)?.as_millis())?)
}

impl Sqlite {
    /// Opens the file with the settings that Oncekey's backend uses.
    ///
    /// # Errors
    /// SQLite's own errors.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.to_str().ok_or("the path is not UTF-8")?;
        let mut connection = SqliteConnection::establish(path)?;
        connection.batch_execute("PRAGMA busy_timeout = 10000")?;
        connection.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
        connection.batch_execute("PRAGMA journal_size_limit = 67108864")?;
        connection.batch_execute(TABLES)?;
        Ok(Self(connection))
    }

    fn get(&mut self, wanted: &str) -> Result<Option<Record>, Failure> {
        use super::tables::idempotency_records::dsl::{data, expires_at, idempotency_records, key};
        let row = idempotency_records.filter(key.eq(wanted)).select((data, expires_at));
        let found: Option<(Vec<u8>, i64)> = row.first(&mut self.0).optional()?;
        match found {
            Some((json, until)) if until >= millis_from_now(Duration::ZERO)? => {
                Ok(Some(serde_json::from_slice(&json)?))
            }
            _ => Ok(None),
        }
    }

    fn set(&mut self, record: &Record) -> Result<(), Failure> {
        use super::tables::idempotency_records::dsl::{data, expires_at, idempotency_records, key};
        let (json, until) = (serde_json::to_vec(record)?, millis_from_now(RETENTION)?);
        diesel::insert_into(idempotency_records)
            .values((key.eq(&record.key), data.eq(&json), expires_at.eq(until)))
            .on_conflict(key)
            .do_update()
            .set((data.eq(&json), expires_at.eq(until)))
            .execute(&mut self.0)?;
        Ok(())
    }

    fn try_lock(&mut self, wanted: &str) -> Result<bool, Failure> {
        use super::tables::idempotency_records_locks::dsl::{expires_at, idempotency_records_locks, key};
        use diesel::query_dsl::methods::FilterDsl as _;
        let (now, until) = (millis_from_now(Duration::ZERO)?, millis_from_now(LOCK_TIMEOUT)?);
        let locked = diesel::insert_into(idempotency_records_locks)
            .values((key.eq(wanted), expires_at.eq(until)))
            .on_conflict(key)
            .do_update()
            .set(expires_at.eq(until))
            .filter(expires_at.lt(now))
            .execute(&mut self.0)?;
        Ok(locked > 0)
    }

    fn unlock(&mut self, wanted: &str) -> Result<(), Failure> {
        use super::tables::idempotency_records_locks::dsl::{idempotency_records_locks, key};
        diesel::delete(QueryDsl::filter(idempotency_records_locks, key.eq(wanted))).execute(&mut self.0)?;
        Ok(())
    }

    /// Runs the whole sequence for a fresh key. Returns the operation's response, or `None` if the key is not fresh.
    ///
    /// # Errors
    /// SQLite's own errors.
    pub fn first_use(
        &mut self,
        key: &str,
        body: &[u8],
        operation: impl FnOnce() -> Response,
    ) -> Result<Option<Response>, Failure> {
        if self.get(key)?.is_some() {
            return Ok(None);
        }
        let request_hash = hash(body);
        if !self.try_lock(key)? {
            return Ok(None);
        }
        self.set(&Record::pending(key, request_hash))?;
        let response = operation();
        let mut record = self.get(key)?.ok_or("the pending record is gone")?;
        record.complete(response.clone());
        self.set(&record)?;
        self.unlock(key)?;
        Ok(Some(response))
    }

    /// Runs the whole sequence for a completed key.
    ///
    /// # Errors
    /// SQLite's own errors.
    pub fn replay(&mut self, key: &str, body: &[u8]) -> Result<Option<Response>, Failure> {
        let Some(record) = self.get(key)? else { return Ok(None) };
        if record.request_hash != hash(body) || record.status != Status::Completed {
            return Ok(None);
        }
        Ok(record.response)
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sqlite")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yardstick::response;

    #[test]
    fn runs_once_and_replays() {
        let folder = tempfile::tempdir().unwrap();
        let mut sqlite = Sqlite::open(&folder.path().join("seed.db")).unwrap();
        assert_eq!(sqlite.first_use("k", b"body", response).unwrap(), Some(response()));
        assert_eq!(sqlite.first_use("k", b"body", response).unwrap(), None);
        assert_eq!(sqlite.replay("k", b"body").unwrap(), Some(response()));
        assert_eq!(sqlite.replay("k", b"other").unwrap(), None);
    }
}
