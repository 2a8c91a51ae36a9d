//! Opens connections: parses the URL, sets up TLS, and configures each connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use diesel::result::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::NoTls;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use super::PostgresOpenError;
use super::error::chain;
use crate::query::Query;
use crate::sql::{CONNECT_TIMEOUT, is_loopback};

/// Settings of every connection, whatever the defaults of the server, the database or the role are.
///
/// Each statement is planned for its own parameters and for the table's current size. A plan that was cached while the
/// table was empty would read the whole table until the server next updates its statistics.
///
/// At any isolation level but READ COMMITTED, an operation that runs longer than a heartbeat interval could never lock
/// its record, because the record has changed since the operation's snapshot. With `synchronous_commit = off`, a crash
/// loses outcomes that were already returned.
pub(super) const SET_UP: &str = "SET plan_cache_mode = force_custom_plan; \
                      SET default_transaction_isolation = 'read committed'; \
                      SELECT set_config('synchronous_commit', 'on', false) \
                      WHERE current_setting('synchronous_commit') = 'off'";

/// A row that another session has locked must not delay the other rows of a batch past the store deadline.
pub(super) const SET_UP_FOR_STEPS: &str = "SET lock_timeout = '1s'";

/// Lets the server detect that this process is gone, so that it frees what the process's statements wait for and hold.
/// Servers before 14, and some systems, lack the first setting.
pub(super) const NOTICE_THE_END: &str = "SELECT set_config('client_connection_check_interval', '2s', false) FROM pg_settings \
                              WHERE name = 'client_connection_check_interval'; \
                              SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3";

/// The driver's default, which takes too long to notice that the server's machine is gone.
const DRIVERS_KEEPALIVES_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// How connections are opened.
#[derive(Clone)]
pub(super) struct Config {
    config: tokio_postgres::Config,
    /// `None`: without TLS.
    tls: Option<MakeRustlsConnect>,
}

impl Config {
    /// Returns how long the server may take to answer a new connection.
    pub(super) fn timeout(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }
}

/// Parses a URL. In addition to the parameters of `tokio_postgres`, it accepts `sslmode=verify-full`,
/// `sslmode=verify-ca` and `sslrootcert=PATH`.
///
/// If the URL does not mention TLS, a server on this machine is used without TLS, and any other server only with TLS
/// and a verified certificate. `prefer` and `require` do not verify, as in other clients.
pub(super) fn read_url(url: &str) -> Result<Config, PostgresOpenError> {
    // The driver does not know all values of these parameters.
    let mut query = Query::of(url);
    let unreadable = PostgresOpenError::Url("a percent sign in its query stands for no text");
    let (mode, roots) = match (query.take("sslmode"), query.take("sslrootcert")) {
        (Some(None), _) | (_, Some(None)) => return Err(unreadable),
        (mode, roots) => (mode.flatten(), roots.flatten()),
    };
    let mut config: tokio_postgres::Config = query.rest().parse().map_err(|_| {
        PostgresOpenError::Url("it has the form postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full")
    })?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("oncekey");
    }
    if config.get_keepalives_idle() == DRIVERS_KEEPALIVES_IDLE {
        config
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3);
    }
    // If there is an address, the host name serves only to verify the certificate.
    let is_here = match config.get_hostaddrs() {
        [] => config.get_hosts().iter().all(is_local),
        addresses => addresses.iter().all(IpAddr::is_loopback),
    };
    let tls = match mode.as_deref() {
        Some("disable") => {
            if !is_here {
                warn!("sslmode=disable: the connection to PostgreSQL is not encrypted");
            }
            None
        }
        None if is_here => None,
        Some("verify-full" | "verify-ca") | None => Some(verifying(roots.as_deref())?),
        Some("prefer" | "allow" | "require") if roots.is_some() => Some(verifying(roots.as_deref())?),
        Some("prefer" | "allow" | "require") => {
            if !is_here {
                warn!("sslmode without verification: whoever answers is taken for PostgreSQL; use verify-full");
            }
            Some(trusting()?)
        }
        Some(_) => return Err(PostgresOpenError::Url("sslmode is none of disable, prefer, require, verify-full")),
    };
    let optional = matches!(mode.as_deref(), Some("prefer" | "allow"));
    config.ssl_mode(match tls {
        None => SslMode::Disable,
        Some(_) if optional => SslMode::Prefer,
        Some(_) => SslMode::Require,
    });
    Ok(Config { config, tls })
}

/// Connects and sets the connection up.
pub(super) async fn connect(config: Config, is_for_steps: bool) -> ConnectionResult<AsyncPgConnection> {
    let refused = |error: tokio_postgres::Error| ConnectionError::BadConnection(chain(&error));
    let mut connection = match config.tls {
        None => {
            let (client, connection) = config.config.connect(NoTls).await.map_err(refused)?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await?
        }
        Some(tls) => {
            let (client, connection) = config.config.connect(tls).await.map_err(refused)?;
            AsyncPgConnection::try_from_client_and_connection(client, connection).await?
        }
    };
    connection.batch_execute(SET_UP).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    if is_for_steps {
        let limited = connection.batch_execute(SET_UP_FOR_STEPS).await;
        limited.map_err(ConnectionError::CouldntSetupConfiguration)?;
    }
    if let Err(error) = connection.batch_execute(NOTICE_THE_END).await {
        debug!(%error, "PostgreSQL can't be told to notice the end of this process's connections");
    }
    Ok(connection)
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => is_loopback(name),
        Host::Unix(_) => true,
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, PostgresOpenError> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PostgresOpenError::Certificates(error.to_string()))
}

/// Returns a TLS connector that verifies with the given file, or else with the operating system's trusted certificates.
fn verifying(roots: Option<&str>) -> Result<MakeRustlsConnect, PostgresOpenError> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(path) => {
            let unreadable =
                |error: &dyn std::fmt::Display| PostgresOpenError::Certificates(format!("{path}: {error}"));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                store.add(certificate).map_err(|error| unreadable(&error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(native.certs);
            if added == 0 {
                return Err(PostgresOpenError::Certificates(
                    "the system trusts no certificates; name a file by sslrootcert=PATH, or install ca-certificates"
                        .to_owned(),
                ));
            }
        }
    }
    Ok(MakeRustlsConnect::new(builder()?.with_root_certificates(store).with_no_client_auth()))
}

fn trusting() -> Result<MakeRustlsConnect, PostgresOpenError> {
    let verifier = Arc::new(Trusting(rustls::crypto::ring::default_provider()));
    Ok(MakeRustlsConnect::new(builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// Accepts any certificate: `sslmode=require` encrypts without verifying the server.
#[derive(Debug)]
struct Trusting(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_verified_unless_told_otherwise() {
        let mode = |url: &str| read_url(url).map(|config| config.config.get_ssl_mode());
        assert_eq!(mode("postgres://u@127.0.0.1/d").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@localhost/d?sslmode=prefer").unwrap(), SslMode::Prefer);
        assert_eq!(mode("postgres://u@db.example/d?sslmode=disable").unwrap(), SslMode::Disable);
        assert_eq!(mode("postgres://u@db.example/d?sslmode=require").unwrap(), SslMode::Require);
        // An error on a machine that trusts no certificates.
        assert!(mode("postgres://u@db.example/d").map_or(true, |mode| mode == SslMode::Require));
        assert!(matches!(mode("postgres://u@h/d?sslmode=maybe"), Err(PostgresOpenError::Url(_))));
        assert!(matches!(mode("postgres://u@h/d?sslmode=%zz"), Err(PostgresOpenError::Url(_))));
        // The parser must not read parameters from the password. `hostaddr` takes precedence over the host name.
        let refused = |url: &str| mode(url).map_or(true, |mode| mode == SslMode::Require);
        assert!(refused("postgres://u:a?sslmode=disable@db.example/d"));
        assert!(refused("postgres:///d?user=u&hostaddr=192.0.2.1"));
        assert!(refused("postgres://u@localhost/d?hostaddr=192.0.2.1"));
        assert_eq!(mode("postgres://u@db.example/d?hostaddr=127.0.0.1").unwrap(), SslMode::Disable);
    }

    #[test]
    fn the_certificates_path_may_be_any() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b+c%.pem");
        std::fs::write(&path, "").unwrap();
        let encoded = path.to_str().unwrap().replace('%', "%25").replace(' ', "%20");
        assert!(read_url(&format!("postgres://u@h/d?sslrootcert={encoded}")).is_ok());
        let missing = read_url("postgres://u@h/d?sslrootcert=/no%20such.pem");
        assert!(matches!(missing, Err(PostgresOpenError::Certificates(text)) if text.contains("/no such.pem")));
    }
}
