//! The store that a URL names, and an engine on it.

use std::time::Duration;

use oncekey::Engine;
use oncekey::backend::Backend;
use oncekey_backends::mysql::MysqlBackend;
use oncekey_backends::postgres::PostgresBackend;
use oncekey_backends::redis::RedisBackend;
use oncekey_backends::{SqliteBackend, schema};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
    Mysql,
    Redis,
}

/// A store that is not open yet.
#[derive(Debug)]
pub(crate) struct Store {
    kind: Kind,
    /// For SQLite, the path.
    url: String,
}

impl Store {
    pub(crate) fn of(url: &str, password: Option<&str>) -> Result<Self, Failure> {
        let (scheme, rest) = url.split_once(':').ok_or(Failure::UnknownScheme)?;
        let kind = match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest).to_owned();
                return if path.is_empty() {
                    Err(Failure::UnknownScheme)
                } else {
                    Ok(Self { kind: Kind::Sqlite, url: path })
                };
            }
            "postgres" | "postgresql" => Kind::Postgres,
            "mysql" => Kind::Mysql,
            "redis" | "rediss" | "redis+unix" | "unix" | "redis+cluster" | "rediss+cluster" | "redis+sentinel"
            | "rediss+sentinel" => Kind::Redis,
            _ => return Err(Failure::UnknownScheme),
        };
        let url = match password {
            Some(password) => with_password(scheme, rest, password, kind)?,
            None => url.to_owned(),
        };
        Ok(Self { kind, url })
    }

    /// Opens the store. It changes the tables only if `migrate` is true.
    pub(crate) async fn open(&self, migrate: bool) -> Result<Engine, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::Open(error.to_string());
        match self.kind {
            Kind::Sqlite => {
                // A misspelled path must not create an empty store.
                if !migrate && !std::path::Path::new(&self.url).exists() {
                    return Err(Failure::Open(format!("there is no file {}", self.url)));
                }
                start(SqliteBackend::builder(&self.url).migrate(migrate).open().map_err(|error| failed(&error))?)
            }
            Kind::Postgres => {
                let backend = PostgresBackend::builder(&self.url).migrate(migrate).open().await;
                start(backend.map_err(|error| failed(&error))?)
            }
            Kind::Mysql => {
                let backend = MysqlBackend::builder(&self.url).migrate(migrate).open().await;
                start(backend.map_err(|error| failed(&error))?)
            }
            Kind::Redis => start(RedisBackend::open(&self.url).await.map_err(|error| failed(&error))?),
        }
    }

    pub(crate) fn schema(&self) -> Result<String, Failure> {
        let name = match self.kind {
            Kind::Sqlite => "sqlite",
            Kind::Postgres => "postgres",
            Kind::Mysql => "mysql",
            Kind::Redis => return Err(Failure::NoSchema),
        };
        schema(name).ok_or(Failure::NoSchema)
    }
}

/// Puts a password from the environment into the URL, so that it need not be on the command line.
fn with_password(scheme: &str, rest: &str, password: &str, kind: Kind) -> Result<String, Failure> {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
    match authority.rsplit_once('@') {
        Some((user, host)) if !user.contains(':') => Ok(format!("{scheme}://{user}:{password}@{host}{path}")),
        // The URL has its own password.
        Some(_) => Ok(format!("{scheme}://{rest}")),
        None if kind == Kind::Redis => Ok(format!("{scheme}://:{password}@{authority}{path}")),
        None => Err(Failure::NoUser),
    }
}

fn start<B: Backend>(backend: B) -> Result<Engine, Failure> {
    // An operator's query may take long: on Redis, some read every key.
    let engine = Engine::builder(backend).lease(Duration::from_secs(240)).store_deadline(Duration::from_secs(120));
    // Only the `purge` command purges.
    engine.purge_every(None).start().map_err(|error| Failure::Open(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_the_environment() {
        for (url, wanted) in [
            ("postgres://shop@db/shop?sslmode=require", "postgres://shop:p%40%3A%2F@db/shop?sslmode=require"),
            ("mysql://shop@db:3307/shop", "mysql://shop:p%40%3A%2F@db:3307/shop"),
            ("postgres://shop:own@db/shop", "postgres://shop:own@db/shop"),
            ("redis://db:6379/1", "redis://:p%40%3A%2F@db:6379/1"),
            ("redis+cluster://a:1,b:2", "redis+cluster://:p%40%3A%2F@a:1,b:2"),
        ] {
            assert_eq!(Store::of(url, Some("p@:/")).unwrap().url, wanted);
        }
        assert!(matches!(Store::of("postgres://db/shop", Some("p")), Err(Failure::NoUser)));
        for bad in ["", "memory:", "keys.db", "sqlite:", "ftp://u:secret@h/"] {
            let told = Store::of(bad, None).unwrap_err().to_string();
            assert!(!told.contains("secret"), "{told}");
        }
    }
}
