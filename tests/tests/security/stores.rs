//! Every store, with a way to look into each without the engine.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::at_rest::{AtRest, Encryption, KeyHashing};
use oncekey_backends::mysql::MysqlBackend;
use oncekey_backends::postgres::PostgresBackend;
use oncekey_backends::{MemoryBackend, SqliteBackend};
use tests::server::{MariaDb, Postgres};

pub(super) static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
pub(super) static MARIADB: LazyLock<MariaDb> = LazyLock::new(MariaDb::start);

/// Returns a new table name for each test.
pub(super) fn fresh_table() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("records_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

pub(super) async fn postgres(table: &str) -> PostgresBackend {
    PostgresBackend::builder(POSTGRES.url()).table(table).unwrap().open().await.unwrap()
}

pub(super) async fn mariadb(table: &str) -> MysqlBackend {
    MysqlBackend::builder(MARIADB.url()).table(table).unwrap().open().await.unwrap()
}

pub(super) async fn fresh_memory() -> MemoryBackend {
    MemoryBackend::new()
}

pub(super) async fn fresh_sqlite() -> SqliteBackend {
    SqliteBackend::open(tempfile::tempdir().unwrap().keep().join("keys.db")).unwrap()
}

pub(super) async fn fresh_postgres() -> PostgresBackend {
    postgres(&fresh_table()).await
}

pub(super) async fn fresh_mariadb() -> MysqlBackend {
    mariadb(&fresh_table()).await
}

/// Generates a test of each function on each store.
macro_rules! on_every_store {
    ($($test:ident)*) => {
        $crate::stores::on_every_store!(@ $($test)* ; memory fresh_memory);
        $crate::stores::on_every_store!(@ $($test)* ; sqlite fresh_sqlite);
        $crate::stores::on_every_store!(@ $($test)* ; postgres fresh_postgres);
        $crate::stores::on_every_store!(@ $($test)* ; mariadb fresh_mariadb);
    };
    (@ $($test:ident)* ; $store:ident $open:ident) => {
        mod $store {
            $(#[actix_rt::test] async fn $test() { super::$test($crate::stores::$open().await).await; })*
        }
    };
}
pub(super) use on_every_store;

pub(super) fn hashing() -> KeyHashing {
    KeyHashing::hmac([7; 32]).unwrap()
}

pub(super) fn encryption() -> Encryption {
    Encryption::new(1, &[1; 32])
}

pub(super) fn both() -> AtRest {
    AtRest::default().key_hashing(hashing()).encryption(encryption())
}

/// Reads and writes the records of an SQLite file without the engine.
pub(super) struct Thief(SqliteConnection);

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = diesel::sql_types::Text)]
    key: String,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Binary>)]
    outcome: Option<Vec<u8>>,
}

impl Thief {
    pub(super) fn of(backend: &SqliteBackend) -> Self {
        let mut connection = SqliteConnection::establish(backend.path().to_str().unwrap()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        Self(connection)
    }

    /// Returns stored keys and outcomes, in order of insertion.
    pub(super) fn steal(&mut self) -> Vec<(String, Vec<u8>)> {
        let query = diesel::sql_query("SELECT key, outcome FROM oncekey_records ORDER BY id");
        let rows: Vec<Stored> = query.load(&mut self.0).unwrap();
        rows.into_iter().map(|row| (row.key, row.outcome.unwrap_or_default())).collect()
    }

    pub(super) fn plant(&mut self, key: &str, outcome: &[u8]) {
        let query = diesel::sql_query("UPDATE oncekey_records SET outcome = ? WHERE key = ?");
        let query = query.bind::<diesel::sql_types::Binary, _>(outcome).bind::<diesel::sql_types::Text, _>(key);
        assert_eq!(query.execute(&mut self.0).unwrap(), 1, "no record {key}");
    }
}

/// Returns all bytes of an SQLite store, including its log.
pub(super) fn bytes_of(backend: &SqliteBackend) -> Vec<u8> {
    let folder = backend.path().parent().unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.flatten().collect()
}

pub(super) fn holds(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}
