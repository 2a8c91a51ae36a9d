//! A statement as text with parameters. Diesel prepares it once for each connection and text.
//!
//! Diesel would prepare a `diesel::sql_query` again for every execution, and its query language needs table names that
//! are fixed at compile time.

use std::marker::PhantomData;

use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};

/// One parameter.
pub(crate) trait Part<DB: Backend>: Send + Sync {
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, DB>) -> QueryResult<()>;
}

/// A statement. Its text has a `?` for each parameter, and its rows have the SQL types `ST`.
pub(crate) struct Fragment<'a, ST, P> {
    text: &'a str,
    parts: &'a [P],
    rows: PhantomData<fn() -> ST>,
}

impl<'a, ST, P> Fragment<'a, ST, P> {
    pub(crate) fn new(text: &'a str, parts: &'a [P]) -> Self {
        Self { text, parts, rows: PhantomData }
    }
}

/// Diesel identifies the statement by its text.
impl<ST, P> QueryId for Fragment<'_, ST, P> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<ST, P> Query for Fragment<'_, ST, P> {
    type SqlType = ST;
}

impl<DB: Backend, ST, P: Part<DB>> QueryFragment<DB> for Fragment<'_, ST, P> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        let mut parts = self.parts.iter();
        for (number, text) in self.text.split('?').enumerate() {
            if number > 0 {
                match parts.next() {
                    Some(part) => part.push(&mut out)?,
                    None => out.push_sql("NULL"),
                }
            }
            out.push_sql(text);
        }
        Ok(())
    }
}
