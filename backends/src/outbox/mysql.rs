//! The outbox in MySQL or MariaDB.

use diesel::QueryResult;
use diesel::prelude::{ExpressionMethods as _, QueryDsl as _};
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::{OutboxError, Posted, failed, oncekey_outbox, posted, row};

/// An outbox in MySQL or MariaDB, in the table `oncekey_outbox`. See the [module](super).
#[derive(Clone)]
pub struct MysqlOutbox {
    pool: Pool<AsyncMysqlConnection>,
}

/// The turn: a lock of the connection's session, which the server ends with it.
pub struct Turn {
    // Taken out of the pool for good: given back, the lock would go with it.
    connection: AsyncMysqlConnection,
}

impl MysqlOutbox {
    /// Makes the table if it is missing. The pool is the application's, or
    /// [one of the store's](crate::MysqlBackend::pool_of_its_own); the relay keeps one connection of it.
    ///
    /// # Errors
    /// The server can't be reached, or refuses.
    pub async fn open(pool: Pool<AsyncMysqlConnection>) -> Result<Self, OutboxError> {
        let mut connection = pool.get().await.map_err(failed("connecting"))?;
        let table = include_str!("../../migrations/outbox/mysql.sql");
        let made = connection.batch_execute(table).await;
        made.map_err(failed("making the table"))?;
        drop(connection);
        Ok(Self { pool })
    }

    /// Writes a message by the connection of a transaction: it is published if that commits.
    ///
    /// # Errors
    /// The database's; the table is missing if the outbox was never opened.
    pub async fn write(connection: &mut AsyncMysqlConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let row = row(topic, message)?;
        diesel::insert_into(oncekey_outbox::table).values(row).execute(connection).await.map(drop)
    }

    /// A relay of what is written here.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }
}

/// Names of locks are the whole server's.
const LOCK: &str = "GET_LOCK(CONCAT('oncekey_outbox_', MD5(DATABASE())), 0) = 1";

impl Table for MysqlOutbox {
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

impl std::fmt::Debug for MysqlOutbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MysqlOutbox")
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turn")
    }
}
