//! MySQL's and MariaDB's statements on blocking connections.

use diesel::connection::AnsiTransactionManager;
use diesel::mysql::Mysql as Backend;
use diesel::sql_types::{BigInt, Binary, Bool};
use diesel::{QueryResult, RunQueryDsl as _};
use oncekey::record::StoreTime;

use super::flush::flushing;
use super::session::as_remembered;
use super::steps::{Put, Puts};
use super::table::{FREE_LOCKS, Mysql, NOW, RELEASE_BEGUN, SET_AND_RELEASE, released};
use crate::sql::{
    Bind, BlockingConnection, BlockingDialect, Completion, Family, Fragment, Row, RowTypes, StepRow, StepTypes,
    Transacting, locked,
};

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

    fn lock_on<C: BlockingConnection<Backend>>(
        &self,
        connection: &mut C,
        key: &str,
    ) -> QueryResult<(StoreTime, Option<Row>)> {
        let (text, binds) = (self.locking(), [Bind::Bytes(key.as_bytes())]);
        Fragment::<(BigInt, RowTypes), _>::new(&text, &binds).load(connection).map(locked)
    }

    fn read_steps_on<C: BlockingConnection<Backend>>(
        &self,
        connection: &mut C,
        key: &str,
    ) -> QueryResult<Vec<StepRow>> {
        let (text, binds) = (self.reading_steps(1), [Bind::Bytes(key.as_bytes())]);
        let steps: Vec<(Vec<u8>, StepRow)> = Fragment::<(Binary, StepTypes), _>::new(&text, &binds).load(connection)?;
        Ok(steps.into_iter().map(|(_, step)| step).collect())
    }

    fn put_family_on<C: BlockingConnection<Backend>>(
        &self,
        connection: &mut C,
        family: &Family<'_>,
    ) -> QueryResult<bool> {
        let mut puts = Puts::of(self.put_statements(family));
        while let Some(Put { text, binds, .. }) = puts.next() {
            let rows = Fragment::<(), _>::new(text, binds).execute(connection)?;
            puts.wrote(rows);
        }
        Ok(puts.are_done())
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
