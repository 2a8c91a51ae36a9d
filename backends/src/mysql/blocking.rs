//! MySQL's and MariaDB's statements on connections that block.

use diesel::connection::AnsiTransactionManager;
use diesel::mysql::Mysql as Backend;
use diesel::sql_types::{BigInt, Bool};
use diesel::{QueryResult, RunQueryDsl as _};

use super::flush::flushing;
use super::session::as_remembered;
use super::table::{FREE_LOCKS, Mysql, NOW, RELEASE_BEGUN, SET_AND_RELEASE, released};
use crate::sql::{Bind, BlockingConnection, BlockingDialect, Completion, Fragment, Transacting};

impl BlockingDialect for Mysql {
    type Backend = Backend;

    fn begin_on<C: Transacting<Backend>>(&self, connection: &mut C) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction_sql(connection, &self.transaction_text(false))
    }

    fn is_as_begun_on<C: BlockingConnection<Backend>>(&self, connection: &mut C) -> QueryResult<bool> {
        released(connection.batch_execute(RELEASE_BEGUN))
    }

    fn complete_on<C: BlockingConnection<Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool> {
        let (text, binds) = (self.one_completion(), row.binds());
        Ok(Fragment::<(), _>::new(&text, &binds).execute(connection)? > 0)
    }

    fn is_completed_on<C: BlockingConnection<Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool> {
        let text = format!(
            "SELECT COUNT(*) FROM {} WHERE record_key = ? AND owner = ? AND state = 2 AND purge_at > {NOW}",
            self.table
        );
        let binds = [Bind::Text(row.key), Bind::Bytes(row.owner)];
        let found: i64 = Fragment::<BigInt, _>::new(&text, &binds).get_result(connection)?;
        if found > 0 && self.shows_too_early {
            Fragment::<(), Bind<'_>>::new(&flushing(&self.flushes), &[]).execute(connection)?;
        }
        Ok(found > 0)
    }

    fn set_back_on<C: BlockingConnection<Backend>>(&self, connection: &mut C) -> QueryResult<()> {
        connection.batch_execute(&self.set_back_text(false))
    }

    fn clean_on<C: BlockingConnection<Backend>>(&self, connection: &mut C) -> QueryResult<bool> {
        if self.frees_locks {
            connection.batch_execute(FREE_LOCKS)?;
        }
        Fragment::<Bool, Bind<'_>>::new(&as_remembered(&self.left_there), &[]).get_result(connection)
    }

    fn is_in_transaction_on<C: BlockingConnection<Backend>>(&self, connection: &mut C) -> QueryResult<bool> {
        released(connection.batch_execute(SET_AND_RELEASE))
    }
}
