//! The tables as DDL statements, for applications that migrate with their own tools.

/// Returns the statements that create this version's tables, including the outbox's if its feature is on. `database` is
/// `"postgres"`, `"mysql"` (also for MariaDB) or `"sqlite"`. Returns `None` for any other name, or if the store's
/// feature is off.
///
/// Run them in an empty database with your own tool. Then open the store with `migrate(false)`, as a role that may only
/// read and write. The tables have their default names. A later version returns its whole schema again. To upgrade,
/// apply the migrations that follow your version, from `backends/migrations`.
///
/// ```
/// let text = oncekey_backends::schema("sqlite").ok_or("no such database")?;
/// assert!(text.contains("CREATE TABLE"));
/// assert_eq!(oncekey_backends::schema("oracle"), None);
/// # Ok::<(), &str>(())
/// ```
pub fn schema(database: &str) -> Option<String> {
    match database {
        #[cfg(feature = "postgres")]
        "postgres" => Some(crate::postgres::migration::schema_text() + &outbox(database)),
        #[cfg(feature = "mysql")]
        "mysql" => Some(crate::mysql::migration::schema_text() + &outbox(database)),
        #[cfg(feature = "sqlite")]
        "sqlite" => Some(crate::sqlite::migration::schema_text() + &outbox(database)),
        _ => None,
    }
}

#[cfg(feature = "outbox")]
fn outbox(database: &str) -> String {
    match database {
        #[cfg(feature = "postgres")]
        "postgres" => crate::outbox::postgres::schema_text(),
        #[cfg(feature = "mysql")]
        "mysql" => crate::outbox::mysql::schema_text(),
        #[cfg(feature = "sqlite")]
        "sqlite" => crate::outbox::sqlite::schema_text(),
        _ => String::new(),
    }
}

#[cfg(not(feature = "outbox"))]
fn outbox(_: &str) -> String {
    String::new()
}
