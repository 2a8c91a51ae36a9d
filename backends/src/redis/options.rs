//! The builder of the Redis backend: where the records are, and what the backend accepts of the server's settings.

use std::fmt;
use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{Client, TlsCertificates};

use super::address::Address;
use super::link::Limits;
use super::{RedisBackend, RedisOpenError};

/// Options for [`RedisBackend::builder`]. The defaults suit most applications.
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

/// How the backend reaches the store.
pub(super) enum Source {
    Url(String),
    Client(Box<Client>),
    Manager(ConnectionManager),
}

/// Which unsafe or unknown server settings the application accepts.
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

    /// Sets the prefix of all Redis keys of this store. Every key that starts with it belongs to the store. Default:
    /// `oncekey:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Sets the CA certificate that verifies the server, and this client's certificate for mutual TLS, both in PEM.
    /// They replace `?sslrootcert=` and apply to every kind of `rediss` URL.
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

    /// Limits how long it takes to open a connection, including the handshake. Default: 2 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.limits.connect = limit;
        self
    }

    /// Limits how long the server may take to answer. After that the answer is unknown, and the backend drops the
    /// connection, because a peer that has gone silent may never answer on it again. Default: 2 s, which is below the
    /// engine's own [deadline](oncekey::EngineBuilder::store_deadline).
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.limits.response = limit;
        self
    }

    /// Accepts a server whose `maxmemory-policy` evicts keys. **The operation of an evicted record runs again.** Use
    /// this in tests, or where running twice does no harm.
    pub fn accept_eviction(mut self) -> Self {
        self.accepts.eviction = true;
        self
    }

    /// Accepts, without a warning, a server that loses confirmed writes when its process is killed (`appendonly no`) or
    /// its machine fails (`appendfsync everysec` or `no`).
    pub fn accept_weak_persistence(mut self) -> Self {
        self.accepts.weak_persistence = true;
        self
    }

    /// Accepts a server that does not show its settings. You vouch for `maxmemory-policy noeviction` and for the
    /// persistence that you need.
    pub fn accept_unread_settings(mut self) -> Self {
        self.accepts.unread_settings = true;
        self
    }

    /// Connects, and checks the settings of every server that holds records.
    ///
    /// # Errors
    /// [`RedisOpenError`] says why the store could not be opened.
    ///
    /// # Cancel safety
    /// Opening writes nothing, so you can drop the future at any time.
    pub async fn open(self) -> Result<RedisBackend, RedisOpenError> {
        RedisBackend::open_with(self).await
    }

    /// Returns the store's address. Options in the URL fill in what the builder left unset.
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

/// Hides the URL, which may contain a password.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("limits", &self.limits)
            .field("accepts", &self.accepts)
            .finish_non_exhaustive()
    }
}
