//! TLS to the databases: a remote server is used if its certificate is trusted, and not otherwise.

#![allow(clippy::unwrap_used, reason = "in a test, what fails fails the test")]

use std::path::{Path, PathBuf};

use oncekey_backends::{MysqlBackend, PostgresBackend};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tests::server::{MariaDb, Postgres};

/// A certificate for `localhost` with its key, and the files of the authority that signed it and of another one.
struct Certificates {
    certificate: String,
    key: String,
    trusted: PathBuf,
    stranger: PathBuf,
}

impl Certificates {
    fn new(folder: &Path) -> Self {
        let [trusted, stranger] = ["trusted.pem", "stranger.pem"].map(|name| {
            let mut authority = CertificateParams::new(Vec::new()).unwrap();
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let file = folder.join(name);
            std::fs::write(&file, authority.self_signed(&key).unwrap().pem()).unwrap();
            (Issuer::new(authority, key), file)
        });
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &trusted.0).unwrap().pem();
        Self { certificate, key: key.serialize_pem(), trusted: trusted.1, stranger: stranger.1 }
    }
}

#[actix_rt::test]
async fn postgres_shows_a_certificate_that_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    let server = Postgres::start_with_files(
        &[("server.pem", &certificates.certificate), ("server.key", &certificates.key)],
        &["ssl=on", "ssl_cert_file={folder}/server.pem", "ssl_key_file={folder}/server.key"],
    );
    let open = async |host: &str, mode: &str, roots: &Path| {
        let (port, roots) = (server.port(), roots.display());
        let url = format!("postgres://shop@{host}:{port}/postgres?sslmode={mode}&sslrootcert={roots}");
        PostgresBackend::open(&url).await
    };
    open("localhost", "verify-full", &certificates.trusted).await.unwrap();
    let encrypted = "SELECT count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl";
    let backend = open("localhost", "verify-full", &certificates.trusted).await.unwrap();
    let pool = backend.pool();
    let connection = pool.get().await.unwrap();
    assert_eq!(server.sql(encrypted), "t");
    drop(connection);
    // Another authority, another name, and a missing file.
    for (host, roots) in [
        ("localhost", certificates.stranger.as_path()),
        ("127.0.0.1", certificates.trusted.as_path()),
        ("localhost", Path::new("/no/such/file.pem")),
    ] {
        let refused = open(host, "verify-full", roots).await.unwrap_err().to_string();
        assert!(refused.contains("certificate") || refused.contains("/no/such/file.pem"), "{host}: {refused}");
    }
    // The connection is encrypted, and no certificate is checked.
    let url = format!("postgres://shop@127.0.0.1:{}/postgres?sslmode=require", server.port());
    PostgresBackend::open(&url).await.unwrap();
}

#[actix_rt::test]
async fn mysql_shows_a_certificate_that_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    let server = MariaDb::start_with_files(
        &[("server.pem", &certificates.certificate), ("server.key", &certificates.key)],
        &["--ssl-cert={folder}/server.pem", "--ssl-key={folder}/server.key", "--require-secure-transport=ON"],
    );
    let open = async |host: &str, query: &str| {
        MysqlBackend::open(&format!("mysql://shop@{host}:{}/shop{query}", server.port())).await
    };
    let with = |roots: &Path| format!("?ssl_ca={}", roots.display());
    open("localhost", &with(&certificates.trusted)).await.unwrap();
    for (host, query) in [
        ("localhost", with(&certificates.stranger)),
        ("127.0.0.1", with(&certificates.trusted)),
        ("localhost", with(Path::new("/no/such/file.pem"))),
        // Without TLS the server itself refuses, so the connection above was encrypted.
        ("localhost", String::new()),
    ] {
        open(host, &query).await.unwrap_err();
    }
    open("127.0.0.1", "?require_ssl=true&verify_ca=false").await.unwrap();
}
