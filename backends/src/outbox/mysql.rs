//! The outbox in MySQL or MariaDB.

use diesel::QueryResult;
use diesel::prelude::{ExpressionMethods as _, QueryDsl as _};
use diesel::sql_types::Bool;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::turn::takes_turns_by;
use super::{OutboxError, Posted, failed, oncekey_outbox, posted, row};
use crate::mysql::flush;

/// An outbox in MySQL or MariaDB, in the table `oncekey_outbox`. See the [module](super).
#[derive(Clone)]
pub struct MysqlOutbox {
    pool: Pool<AsyncMysqlConnection>,
    shows_too_early: bool,
}

impl MysqlOutbox {
    /// Makes the table if it is missing, and one by which a flush is awaited (`oncekey_outbox_flushes`): a server without a
    /// binary log shows messages whose commit a crash can still take back. The pool is the application's, or
    /// [one of the store's](crate::MysqlBackend::pool_of_its_own); the relay keeps one connection of it.
    ///
    /// # Errors
    /// The server can't be reached, or refuses.
    pub async fn open(pool: Pool<AsyncMysqlConnection>) -> Result<Self, OutboxError> {
        let mut connection = pool.get().await.map_err(failed("connecting"))?;
        let table = include_str!("../../migrations/outbox/mysql.sql");
        let made = connection.batch_execute(table).await;
        made.map_err(failed("making the table"))?;
        let made = connection.batch_execute(&flush::TABLE.replace("{flushes}", FLUSHES)).await;
        made.map_err(failed("making the table of flushes"))?;
        let shows_too_early = flush::shows_too_early(&mut connection).await;
        let shows_too_early = shows_too_early.map_err(failed("asking for the server's settings"))?;
        drop(connection);
        Ok(Self { pool, shows_too_early })
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

    async fn await_flush(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        if self.shows_too_early { flush::await_flush(connection, FLUSHES).await } else { Ok(()) }
    }
}

const FLUSHES: &str = "oncekey_outbox_flushes";

/// Names of locks are the whole server's.
const LOCK: &str = "GET_LOCK(CONCAT('oncekey_outbox_', MD5(DATABASE())), 0) = 1";

takes_turns_by!(LOCK, MysqlOutbox, AsyncMysqlConnection);
