//! PostgreSQL's statements on blocking connections.

use diesel::connection::AnsiTransactionManager;
use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel::{QueryResult, RunQueryDsl as _};
use oncekey::record::StoreTime;

use super::session::as_remembered;
use super::table::{IS_BEGUN, IS_HERE, Param, Postgres, SET_HERE, begin};
use crate::sql::{
    Bind, BlockingConnection, BlockingDialect, Completion, Family, Fragment, Row, RowTypes, StepRow, StepTypes,
    Transacting, locked,
};

fn ask(connection: &mut impl BlockingConnection<Pg>, text: &str) -> QueryResult<bool> {
    Fragment::<Bool, Bind<'_>>::new(text, &[]).get_result(connection)
}

impl BlockingDialect for Postgres {
    type Backend = Pg;

    fn begin_on<C: Transacting<Pg>>(&self, connection: &mut C) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction_sql(connection, &begin(false))
    }

    fn is_as_begun_on<C: BlockingConnection<Pg>>(&self, connection: &mut C) -> QueryResult<bool> {
        ask(connection, IS_BEGUN)
    }

    fn complete_on<C: BlockingConnection<Pg>>(&self, connection: &mut C, row: &Completion<'_>) -> QueryResult<bool> {
        let binds = row.binds();
        let statement = Fragment::<(Binary, Nullable<Text>), _>::new(&self.texts.complete_one, &binds);
        let written: Vec<(Vec<u8>, Option<String>)> = statement.load(connection)?;
        Ok(!written.is_empty())
    }

    fn is_completed_on<C: BlockingConnection<Pg>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool> {
        let binds = [Bind::Text(row.key), Bind::Bytes(row.owner)];
        let found: i64 = Fragment::<BigInt, _>::new(&self.texts.completed_by, &binds).get_result(connection)?;
        Ok(found > 0)
    }

    fn lock_on<C: BlockingConnection<Pg>>(
        &self,
        connection: &mut C,
        key: &str,
    ) -> QueryResult<(StoreTime, Option<Row>)> {
        let binds = [Bind::Text(key)];
        Fragment::<(BigInt, RowTypes), _>::new(&self.texts.lock, &binds).load(connection).map(locked)
    }

    fn read_steps_on<C: BlockingConnection<Pg>>(&self, connection: &mut C, key: &str) -> QueryResult<Vec<StepRow>> {
        let binds = [Param::Texts(vec![key])];
        let read = Fragment::<(Binary, StepTypes), _>::new(&self.texts.of_steps.read, &binds);
        let steps: Vec<(Vec<u8>, StepRow)> = read.load(connection)?;
        Ok(steps.into_iter().map(|(_, step)| step).collect())
    }

    fn put_family_on<C: BlockingConnection<Pg>>(&self, connection: &mut C, family: &Family<'_>) -> QueryResult<bool> {
        let (text, binds) = self.put_statement(family);
        let put = Fragment::<(Binary, Nullable<Text>), _>::new(text, &binds);
        let written: Vec<(Vec<u8>, Option<String>)> = put.load(connection)?;
        Ok(!written.is_empty())
    }

    fn clean_on<C: BlockingConnection<Pg>>(&self, connection: &mut C) -> QueryResult<bool> {
        ask(connection, &as_remembered())
    }

    fn is_in_transaction_on<C: BlockingConnection<Pg>>(&self, connection: &mut C) -> QueryResult<bool> {
        let _: String = Fragment::<Text, Bind<'_>>::new(SET_HERE, &[]).get_result(connection)?;
        ask(connection, IS_HERE)
    }
}
