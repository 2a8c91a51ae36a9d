//! The tables as statements, for applications that run migrations with their own tools.

/// The statements that make this version's tables, the outbox's included where its feature is on: for `"postgres"`,
/// `"mysql"` (MariaDB as well) or `"sqlite"`; `None` for any other name, or where the store's feature is off.
///
/// Have your own tool run them in an empty database, and open the store by a role that may only read and write, with
/// `migrate(false)`. The tables have their default names. A later version's text is that version's whole schema:
/// what it adds to yours are the migrations behind the version that you have, in `backends/migrations`.
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
