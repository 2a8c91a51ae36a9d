//! The idempotency store that `--store` names, and its engine.

use std::path::PathBuf;

use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use oncekey::backend::Backend;
use oncekey::{Engine, EngineBuilder, OnInProgress, StartError};
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use oncekey_backends::redis::{RedisBackend, RedisOpenError};
use oncekey_backends::{MemoryBackend, SqliteBackend, SqliteOpenError};

use crate::options::Options;

/// An engine with its store, and the database for the shop's own rows.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) engine: Engine,
    pub(crate) name: String,
    /// The database of the shop's rows.
    pub(crate) home: Home,
    /// Whether this is the store's own database, so that a row and the completion can commit together.
    pub(crate) is_shared: bool,
}

/// The database of the shop's own rows.
#[derive(Clone)]
pub(crate) enum Home {
    File(PathBuf),
    Postgres(Pool<AsyncPgConnection>),
    Mysql(Pool<AsyncMysqlConnection>),
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Postgres(_) => f.write_str("Postgres"),
            Self::Mysql(_) => f.write_str("Mysql"),
        }
    }
}

/// Why there is no store. A URL may contain a password and is never shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "--store takes a URL such as memory:, sqlite:PATH, postgres://…, mysql://… or redis://…; this is none of the \
         schemes that it knows"
    )]
    UnknownScheme,
    #[error("--store sqlite: needs a path, as in sqlite:oncekey.db")]
    NoPath,
    #[error("--store sqlite: takes a path alone; what follows the ? would be a part of the file's name, not a setting")]
    SqliteWithQuery,
    #[error("--store memory: takes nothing behind the colon")]
    MemoryWithPath,
    #[error("--store can't be opened: {0}")]
    Sqlite(#[from] SqliteOpenError),
    #[error("--store can't be opened: {0}")]
    Postgres(#[from] PostgresOpenError),
    #[error("--store can't be opened: {0}")]
    Mysql(#[from] MysqlOpenError),
    #[error("--store can't be opened: {0}")]
    Redis(#[from] RedisOpenError),
    #[error("the settings can't work: {0}")]
    Settings(#[from] StartError),
}

/// What a URL names.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Memory,
    Sqlite(PathBuf),
    Postgres,
    Mysql,
    Redis,
}

fn parse(url: &str) -> Result<Named, StoreError> {
    let (scheme, rest) = url.split_once(':').ok_or(StoreError::UnknownScheme)?;
    match scheme {
        "memory" if rest.is_empty() => Ok(Named::Memory),
        "memory" => Err(StoreError::MemoryWithPath),
        "sqlite" if rest.is_empty() || rest == "//" => Err(StoreError::NoPath),
        "sqlite" if rest.contains('?') => Err(StoreError::SqliteWithQuery),
        // Both `sqlite:keys.db` and `sqlite:///var/lib/keys.db` are in common use.
        "sqlite" => Ok(Named::Sqlite(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest)))),
        "postgres" | "postgresql" => Ok(Named::Postgres),
        "mysql" => Ok(Named::Mysql),
        "redis" | "rediss" | "redis+unix" | "unix" => Ok(Named::Redis),
        "redis+cluster" | "rediss+cluster" | "redis+sentinel" | "rediss+sentinel" => Ok(Named::Redis),
        _ => Err(StoreError::UnknownScheme),
    }
}

impl Store {
    pub(crate) async fn open(options: &Options) -> Result<Self, StoreError> {
        match parse(&options.store)? {
            Named::Memory => Ok(Self {
                engine: start(Engine::builder(MemoryBackend::new()), options)?,
                name: "memory".to_owned(),
                home: Home::File(options.shop_db.clone()),
                is_shared: false,
            }),
            Named::Sqlite(path) => Ok(Self {
                engine: start(Engine::builder(SqliteBackend::open(&path)?), options)?,
                name: format!("SQLite in {}", path.display()),
                home: Home::File(path),
                is_shared: true,
            }),
            Named::Postgres => {
                let backend = PostgresBackend::open(&options.store).await?;
                let home = Home::Postgres(backend.pool());
                Ok(Self {
                    engine: start(Engine::builder(backend), options)?,
                    name: "PostgreSQL".to_owned(),
                    home,
                    is_shared: true,
                })
            }
            Named::Mysql => {
                let backend = MysqlBackend::open(&options.store).await?;
                let home = Home::Mysql(backend.pool());
                Ok(Self {
                    engine: start(Engine::builder(backend), options)?,
                    name: "MySQL".to_owned(),
                    home,
                    is_shared: true,
                })
            }
            Named::Redis => Ok(Self {
                engine: start(Engine::builder(RedisBackend::open(&options.store).await?), options)?,
                name: "Redis".to_owned(),
                home: Home::File(options.shop_db.clone()),
                is_shared: false,
            }),
        }
    }
}

fn start<B: Backend>(mut builder: EngineBuilder<B>, options: &Options) -> Result<Engine, StartError> {
    builder = builder.lease(options.lease).retention(options.retention);
    if let Some(limit) = options.wait {
        builder = builder.on_in_progress(OnInProgress::Wait(limit));
    }
    if let Some(abandoned) = options.on_abandoned {
        builder = builder.on_abandoned(abandoned.into());
    }
    builder.start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_stores() {
        assert_eq!(parse("memory:").unwrap(), Named::Memory);
        for (url, path) in
            [("sqlite:keys.db", "keys.db"), ("sqlite:/var/keys.db", "/var/keys.db"), ("sqlite:///var/k", "/var/k")]
        {
            assert_eq!(parse(url).unwrap(), Named::Sqlite(path.into()), "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_told_without_its_password() {
        for bad in [
            "",
            "memory",
            "memory:x",
            "sqlite:",
            "sqlite://",
            "sqlite:keys.db?mode=ro",
            "sqlite:///var/keys.db?mode=ro",
            "keys.db",
            "ftp://u:secret@h/",
        ] {
            let told = parse(bad).unwrap_err().to_string();
            assert!(told.starts_with("--store") && !told.contains("secret") && !told.contains('\n'), "{bad}: {told}");
        }
    }
}
