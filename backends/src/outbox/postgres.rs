//! The outbox in PostgreSQL.

use diesel::QueryResult;
use diesel::prelude::{ExpressionMethods as _, QueryDsl as _};
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::{OutboxError, Posted, failed, oncekey_outbox, posted, row};

/// An outbox in PostgreSQL, in the table `oncekey_outbox` of the connection's search path. See the [module](super).
#[derive(Clone)]
pub struct PostgresOutbox {
    pool: Pool<AsyncPgConnection>,
}

/// The turn: a lock of the connection's session, which the server ends with it.
pub struct Turn {
    // Taken out of the pool for good: given back, the lock would go with it.
    connection: AsyncPgConnection,
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
}

/// Of this library, in any version.
const MAKING: i64 = 0x006f_6e63_656b_6579;
const LOCK: &str = "pg_try_advisory_lock(hashtext(current_schema()), hashtext('oncekey_outbox'))";

impl Table for PostgresOutbox {
    type Turn = Turn;

    async fn take_turn(&self) -> Result<Option<Turn>, OutboxError> {
        let connection = self.pool.get().await.map_err(failed("connecting"))?;
        let mut connection = Object::take(connection);
        let asked = diesel::select(diesel::dsl::sql::<Bool>(LOCK)).get_result(&mut connection);
        let is_locked: bool = asked.await.map_err(failed("locking out other relays"))?;
        Ok(is_locked.then_some(Turn { connection }))
    }

    async fn first(&self, turn: &mut Turn, limit: i64) -> Result<Vec<Posted>, OutboxError> {
        let first = oncekey_outbox::table.order(oncekey_outbox::id).limit(limit).load(&mut turn.connection);
        first.await.map_err(failed("reading"))?.into_iter().map(posted).collect()
    }

    async fn remove(&self, turn: &mut Turn, numbers: Vec<i64>) -> Result<(), OutboxError> {
        let rows = oncekey_outbox::table.filter(oncekey_outbox::id.eq_any(numbers));
        diesel::delete(rows).execute(&mut turn.connection).await.map_err(failed("removing what is published")).map(drop)
    }
}

impl std::fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresOutbox")
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turn")
    }
}
