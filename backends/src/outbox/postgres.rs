//! The outbox in PostgreSQL.

use diesel::QueryResult;
use diesel::prelude::{ExpressionMethods as _, QueryDsl as _};
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::turn::takes_turns_by;
use super::{OutboxError, Posted, failed, oncekey_outbox, posted, row};

/// An outbox in PostgreSQL, in the table `oncekey_outbox` of the connection's search path. See the [module](super).
#[derive(Clone)]
pub struct PostgresOutbox {
    pool: Pool<AsyncPgConnection>,
}

impl PostgresOutbox {
    /// Makes the table if it is missing. The pool is the application's, or
    /// [one of the store's](crate::PostgresBackend::pool_of_its_own); the relay keeps one connection of it.
    ///
    /// # Errors
    /// The server can't be reached, or refuses.
    pub async fn open(pool: Pool<AsyncPgConnection>) -> Result<Self, OutboxError> {
        let mut connection = pool.get().await.map_err(failed("connecting"))?;
        let table = include_str!("../../migrations/outbox/postgres.sql");
        // Of ten processes that start at once one makes the table, and nine find it.
        let once = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {table}; COMMIT");
        let made = connection.batch_execute(&once).await;
        made.map_err(failed("making the table"))?;
        drop(connection);
        Ok(Self { pool })
    }

    /// Writes a message by the connection of a transaction: it is published if that commits.
    ///
    /// # Errors
    /// The database's; the table is missing if the outbox was never opened.
    pub async fn write(connection: &mut AsyncPgConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let row = row(topic, message)?;
        diesel::insert_into(oncekey_outbox::table).values(row).execute(connection).await.map(drop)
    }

    /// A relay of what is written here.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }

    /// A commit is flushed before it is shown.
    async fn await_flush(&self, _: &mut AsyncPgConnection) -> QueryResult<()> {
        Ok(())
    }
}

/// Of this library, in any version.
const MAKING: i64 = 0x006f_6e63_656b_6579;
const LOCK: &str = "pg_try_advisory_lock(hashtext(current_schema()), hashtext('oncekey_outbox'))";

takes_turns_by!(LOCK, PostgresOutbox, AsyncPgConnection);
