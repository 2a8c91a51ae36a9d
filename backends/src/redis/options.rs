//! How the records are reached.

use std::fmt;
use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{Client, TlsCertificates};

use super::address::Address;
use super::link::Limits;
use super::{RedisBackend, RedisOpenError};

/// Options for [`RedisBackend::builder`]. Each has a default that is right for most.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey_backends::redis::RedisBackend;
///
/// let backend = RedisBackend::builder("rediss://shop:secret@redis.example/0")
///     .prefix("shop:")
///     .accept_weak_persistence()
///     .open()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct RedisBuilder {
    source: Source,
    tls: Option<TlsCertificates>,
    pub(super) prefix: Option<String>,
    pub(super) limits: Limits,
    pub(super) accepts: Accepts,
}

/// What the store is reached by.
pub(super) enum Source {
    Url(String),
    Client(Box<Client>),
    Manager(ConnectionManager),
}

/// What of the server's settings is taken as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Accepts {
    pub(super) eviction: bool,
    pub(super) weak_persistence: bool,
    pub(super) unread_settings: bool,
}

impl RedisBuilder {
    pub(super) fn new(source: Source) -> Self {
        let limits = Limits { connect: Duration::from_secs(2), response: Duration::from_secs(2) };
        Self { source, tls: None, prefix: None, limits, accepts: Accepts::default() }
    }

    /// What the records' keys begin with. Everything that begins so belongs to the store. Default: `oncekey:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// The certificates by which the server is verified, and those by which this client shows who it is (mutual TLS), in
    /// PEM. They are for `rediss` URLs of every kind, in `?sslrootcert=`'s place.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::redis::RedisBackend;
    /// use redis::{ClientTlsConfig, TlsCertificates};
    ///
    /// let client_tls = Some(ClientTlsConfig {
    ///     client_cert: std::fs::read("shop.crt")?,
    ///     client_key: std::fs::read("shop.key")?,
    /// });
    /// let backend = RedisBackend::builder("rediss://redis.example/0")
    ///     .tls(TlsCertificates { client_tls, root_cert: Some(std::fs::read("ca.crt")?) })
    ///     .open()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn tls(mut self, certificates: TlsCertificates) -> Self {
        self.tls = Some(certificates);
        self
    }

    /// How long a connection may take to be made, its greeting included. Default: 2 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.limits.connect = limit;
        self
    }

    /// How long the server may take to answer. Past it the answer is unknown, and the connection is dropped, since a
    /// peer that has fallen silent is never heard of again on it. Default: 2 s; less than the engine's own
    /// [deadline](oncekey::EngineBuilder::store_deadline).
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.limits.response = limit;
        self
    }

    /// Takes a server whose `maxmemory-policy` evicts keys. **What is evicted runs again**: for tests, or where that is
    /// no harm.
    pub fn accept_eviction(mut self) -> Self {
        self.accepts.eviction = true;
        self
    }

    /// Takes a server that forgets what it confirmed when it is killed (`appendonly no`) or its machine is
    /// (`appendfsync everysec` or `no`), without a warning.
    pub fn accept_weak_persistence(mut self) -> Self {
        self.accepts.weak_persistence = true;
        self
    }

    /// Takes a server that does not show its settings: you vouch for `maxmemory-policy noeviction`, and for the
    /// persistence that you want.
    pub fn accept_unread_settings(mut self) -> Self {
        self.accepts.unread_settings = true;
        self
    }

    /// Connects, and checks the settings of every server that holds records.
    ///
    /// # Errors
    /// [`RedisOpenError`] says what is in the way.
    ///
    /// # Cancel safety
    /// Nothing is written.
    pub async fn open(self) -> Result<RedisBackend, RedisOpenError> {
        RedisBackend::open_with(self).await
    }

    /// Where the store is. A URL's options fill in what was not said here.
    pub(super) async fn address(&mut self) -> Result<Address, RedisOpenError> {
        let mut address = match &self.source {
            Source::Url(url) => Address::parse(url)?,
            Source::Client(client) => Address::of_client(client),
            Source::Manager(manager) => Address::of_manager(manager.clone(), self.limits.connect).await?,
        };
        if let Some(tls) = self.tls.take() {
            address.set_tls(tls)?;
        }
        for (name, value) in &address.options {
            match name.as_str() {
                "prefix" if self.prefix.is_none() => self.prefix = Some(value.clone()),
                "accept" => {
                    for word in value.split(',') {
                        match word {
                            "eviction" => self.accepts.eviction = true,
                            "weak-persistence" => self.accepts.weak_persistence = true,
                            "unread-settings" => self.accepts.unread_settings = true,
                            _ => {
                                return Err(RedisOpenError::Url(
                                    "accept is none of eviction, weak-persistence and unread-settings",
                                ));
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(address)
    }
}

/// The URL may hold a password: it is not shown.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .field("accepts", &self.accepts)
            .finish_non_exhaustive()
    }
}
