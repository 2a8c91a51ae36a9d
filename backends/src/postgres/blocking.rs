//! PostgreSQL's statements on connections that block.

use diesel::connection::AnsiTransactionManager;
use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel::{QueryResult, RunQueryDsl as _};

use super::session::as_remembered;
use super::table::{IS_BEGUN, IS_HERE, Postgres, SET_HERE, begin};
use crate::sql::{Bind, BlockingConnection, BlockingDialect, Completion, Fragment, Transacting};

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

    fn clean_on<C: BlockingConnection<Pg>>(&self, connection: &mut C) -> QueryResult<bool> {
        ask(connection, &as_remembered())
    }

    fn is_in_transaction_on<C: BlockingConnection<Pg>>(&self, connection: &mut C) -> QueryResult<bool> {
        let _: String = Fragment::<Text, Bind<'_>>::new(SET_HERE, &[]).get_result(connection)?;
        ask(connection, IS_HERE)
    }
}
