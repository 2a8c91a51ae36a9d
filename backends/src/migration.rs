//! The versions of a store's tables, and the one runner that migrates them.
//!
//! A schema is a list of numbered migrations. The runner applies each of them once, in order. Each store defines how
//! its database reads the version, locks out other processes during a migration, and executes a text.

use diesel::QueryResult;
use diesel::result::Error;
use tracing::info;

/// One migration of a schema: the version that it leads to, and its statements. Names in braces are placeholders for
/// the tables' names.
pub(crate) type Migration = (i64, &'static str);

/// Why the tables are not up to date.
#[derive(Debug)]
pub(crate) enum NotMigrated {
    /// A newer version of this library created them.
    Newer {
        found: i64,
        known: i64,
    },
    /// They are missing (version 0) or older, and migrations are switched off.
    Older {
        found: i64,
        known: i64,
    },
    Failed(Error),
}

impl From<Error> for NotMigrated {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A schema's texts, with the tables' names filled in.
pub(crate) struct Statements {
    /// Creates the table of versions, unless it exists.
    pub(crate) versions: String,
    /// Each migration's version, its statements, and the statement that records it.
    pub(crate) migrations: Vec<(i64, String, String)>,
}

impl Statements {
    /// Fills the migrations in: `fill` puts the tables' names into a migration, and `record` returns the statement that
    /// records a version.
    pub(crate) fn new(
        versions: String,
        migrations: &[Migration],
        fill: impl Fn(&str) -> String,
        record: impl Fn(i64) -> String,
    ) -> Self {
        let migrations = migrations.iter().map(|(version, text)| (*version, fill(text), record(*version)));
        Self { versions, migrations: migrations.collect() }
    }

    /// Returns the whole schema, for applications that migrate with their own tools.
    pub(crate) fn text(self) -> String {
        let migrations = self.migrations.into_iter().flat_map(|(_, text, record)| [text, record]);
        let statements = [self.versions].into_iter().chain(migrations);
        statements.map(|text| format!("{};\n", text.trim_end().trim_end_matches(';'))).collect()
    }
}

/// The tables of one store, through a connection to its database.
pub(crate) trait Schema: Send {
    fn statements(&self) -> Statements;

    /// Returns the table's name for messages.
    fn table(&self) -> String;

    /// Returns the version of the tables; 0 if there are none.
    fn version(&mut self) -> impl Future<Output = QueryResult<i64>> + Send;

    /// Locks out other processes: of ten that start at once, one creates the tables and nine find them.
    fn lock(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// Releases the lock. Unless all migrations are `done`, it also rolls back those that ran, if the database can.
    fn unlock(&mut self, done: bool) -> impl Future<Output = QueryResult<()>> + Send;

    fn execute(&mut self, text: &str) -> impl Future<Output = QueryResult<()>> + Send;
}

/// Applies the migrations that have not been applied yet.
pub(crate) async fn bring_up_to_date<S: Schema>(schema: &mut S, migrate: bool) -> Result<(), NotMigrated> {
    let statements = schema.statements();
    let known = statements.migrations.last().map_or(0, |(version, ..)| *version);
    let mut found = schema.version().await?;
    // Migrating needs rights that the role may lack, so it starts only when there is something to migrate.
    if found < known && migrate {
        let raised = raise(schema, &statements).await;
        let unlocked = schema.unlock(raised.is_ok()).await;
        raised.and(unlocked)?;
        found = schema.version().await?;
    }
    match found {
        _ if found > known => Err(NotMigrated::Newer { found, known }),
        _ if found < known => Err(NotMigrated::Older { found, known }),
        _ => Ok(()),
    }
}

async fn raise<S: Schema>(schema: &mut S, statements: &Statements) -> QueryResult<()> {
    schema.lock().await?;
    schema.execute(&statements.versions).await?;
    // Another process may have migrated while this one waited for the lock.
    let found = schema.version().await?;
    for (version, text, record) in &statements.migrations {
        if *version > found {
            schema.execute(text).await?;
            schema.execute(record).await?;
            info!(table = schema.table(), version, "the table of records was brought up to date");
        }
    }
    Ok(())
}
