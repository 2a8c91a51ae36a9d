//! The shop's tables, and access to them.

mod server;
mod sqlite;

pub(crate) use sqlite::SqliteFile;

use diesel_async::pooled_connection::deadpool::{Pool, PoolError};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};

use crate::store::Home;

diesel::table! {
    orders (id) {
        id -> BigInt,
        item -> Text,
        quantity -> BigInt,
        created_at -> Text,
    }
}

diesel::table! {
    /// One line per charge that happened.
    charges (id) {
        id -> BigInt,
        reference -> Text,
        amount -> BigInt,
        currency -> Text,
        card -> Text,
        created_at -> Text,
        provider_key -> Nullable<Text>,
    }
}

diesel::table! {
    /// One line per mail that was sent.
    mails (id) {
        id -> BigInt,
        order_id -> BigInt,
        created_at -> Text,
    }
}

diesel::table! {
    /// The references of payments that the provider has already limited once.
    limited (reference) {
        reference -> Text,
    }
}

diesel::table! {
    /// One line per executed step of a checkout.
    checkout_steps (id) {
        id -> BigInt,
        reference -> Text,
        step -> Text,
        provider_key -> Text,
        created_at -> Text,
    }
}

diesel::table! {
    /// The references of checkouts that have already crashed once.
    crashed (reference) {
        reference -> Text,
    }
}

/// Why the shop cannot use its database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("{0}")]
    Sql(#[from] diesel::result::Error),
    #[error("{0}")]
    Open(String),
    #[error("{0}")]
    Pool(#[from] PoolError),
    #[error("{0}")]
    Outbox(#[from] oncekey_backends::outbox::OutboxError),
    #[error("{0}")]
    Thread(#[from] actix_web::error::BlockingError),
}

/// Answers 500, without the database's own text.
impl actix_web::ResponseError for DatabaseError {
    fn error_response(&self) -> actix_web::HttpResponse {
        tracing::error!(error = %self, "the shop's database failed");
        let status = actix_web::http::StatusCode::INTERNAL_SERVER_ERROR;
        crate::server::problem(status, "The shop's database failed", &"see the shop's log")
    }
}

/// The database of the shop's rows: the store's own database if that is SQL, or an SQLite file.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(SqliteFile),
    Postgres(Pool<AsyncPgConnection>),
    Mysql(Pool<AsyncMysqlConnection>),
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
            Self::Mysql(_) => "MySQL",
        })
    }
}

impl Database {
    pub(super) async fn open(home: &Home) -> Result<Self, DatabaseError> {
        Ok(match home {
            Home::File(path) => Self::Sqlite(SqliteFile::open(path)?),
            Home::Postgres(pool) => {
                server::make_tables(&mut *pool.get().await?, server::POSTGRES_TABLES).await?;
                Self::Postgres(pool.clone())
            }
            Home::Mysql(pool) => {
                let mut connection = pool.get().await?;
                server::make_tables(&mut *connection, server::MYSQL_TABLES).await?;
                server::add_provider_key(&mut connection).await?;
                drop(connection);
                Self::Mysql(pool.clone())
            }
        })
    }
}

/// Runs a query on whichever database is in use. The query is built anew for each dialect.
macro_rules! on_database {
    ($database:expr, $run:ident($query:expr)) => {
        async {
            Ok::<_, $crate::shop::database::DatabaseError>(match $database {
                $crate::shop::database::Database::Sqlite(file) => {
                    file.run(move |connection| diesel::RunQueryDsl::$run($query, connection)).await?
                }
                $crate::shop::database::Database::Postgres(pool) => {
                    diesel_async::RunQueryDsl::$run($query, &mut *pool.get().await?).await?
                }
                $crate::shop::database::Database::Mysql(pool) => {
                    diesel_async::RunQueryDsl::$run($query, &mut *pool.get().await?).await?
                }
            })
        }
        .await
    };
}
pub(super) use on_database;

/// Inserts a row unless its key exists, and returns whether it was inserted. The database keeps the row, so two shops
/// agree.
macro_rules! inserts_first {
    ($database:expr, $table:ident, $row:expr) => {
        async {
            let row = $row;
            let inserted = match $database {
                $crate::shop::database::Database::Sqlite(file) => {
                    let inserted = diesel::insert_or_ignore_into($table::table).values(row);
                    file.run(move |connection| diesel::RunQueryDsl::execute(inserted, connection)).await?
                }
                $crate::shop::database::Database::Postgres(pool) => {
                    let inserted = diesel::insert_into($table::table).values(row).on_conflict_do_nothing();
                    diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?
                }
                $crate::shop::database::Database::Mysql(pool) => {
                    let inserted = diesel::insert_or_ignore_into($table::table).values(row);
                    diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?
                }
            };
            Ok::<_, $crate::shop::database::DatabaseError>(inserted == 1)
        }
        .await
    };
}
pub(super) use inserts_first;

/// Returns the number that MySQL gave the last row.
pub(super) fn last_insert_id() -> diesel::expression::SqlLiteral<diesel::sql_types::BigInt> {
    diesel::dsl::sql("CAST(LAST_INSERT_ID() AS SIGNED)")
}

/// Returns the current time, as the shop shows it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}
