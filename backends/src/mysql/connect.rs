//! Opening connections: the URL and TLS.

use std::net::IpAddr;
use std::path::PathBuf;

use diesel::result::{ConnectionError, ConnectionResult};
use diesel_async::AsyncMysqlConnection;
use mysql_async::{Opts, OptsBuilder, SslOpts};
use tracing::warn;

use super::MysqlOpenError;

/// How connections are opened.
#[derive(Clone)]
pub(super) struct Connector {
    options: Opts,
}

impl Connector {
    /// Reads a URL, with the parameters that `mysql_async` takes and `ssl_ca=PATH`. Where nothing is said of TLS a server on this machine
    /// is spoken to without, and any other only by TLS with a verified certificate.
    pub(super) fn new(url: &str) -> Result<Self, MysqlOpenError> {
        let (url, roots) = take_roots(url);
        let options = Opts::from_url(&url).map_err(|_| {
            MysqlOpenError::Url("it has the form mysql://USER:PASSWORD@HOST:PORT/DATABASE?require_ssl=true")
        })?;
        if options.db_name().is_none() {
            return Err(MysqlOpenError::Url("it names no database"));
        }
        let is_local = options.socket().is_some() || is_loopback(options.ip_or_hostname());
        let asked = options.ssl_opts().cloned();
        let tls = match asked {
            Some(asked) => {
                if !is_local && (asked.skip_domain_validation() || asked.accept_invalid_certs()) {
                    warn!("TLS without verification: whoever answers is taken for the MySQL server");
                }
                Some(asked)
            }
            None if is_local => None,
            None if url.contains("require_ssl=false") => {
                warn!("require_ssl=false: the connection to the MySQL server is not encrypted");
                None
            }
            None => Some(SslOpts::default()),
        };
        let tls = match roots {
            Some(roots) => {
                std::fs::metadata(&roots)
                    .map_err(|error| MysqlOpenError::Certificates(format!("{}: {error}", roots.display())))?;
                let tls = tls.unwrap_or_default().with_root_certs(vec![roots.into()]);
                Some(tls.with_disable_built_in_roots(true))
            }
            None => tls,
        };
        let options = OptsBuilder::from_opts(options)
            .ssl_opts(tls)
            .stmt_cache_size(0) // Diesel keeps the statements.
            // An UPDATE counts the rows that it finds: one that changes nothing has succeeded all the same.
            .client_found_rows(true)
            // What follows is on this machine already: a socket of another server is not looked for.
            .prefer_socket(false);
        Ok(Self { options: options.into() })
    }

    pub(super) async fn connect(self) -> ConnectionResult<AsyncMysqlConnection> {
        let connection = mysql_async::Conn::new(self.options).await;
        let connection = connection.map_err(|error| ConnectionError::BadConnection(error.to_string()))?;
        AsyncMysqlConnection::try_from(connection).await
    }
}

/// Takes `ssl_ca=PATH` off a URL, which the driver does not know.
fn take_roots(url: &str) -> (String, Option<PathBuf>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let (roots, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with("ssl_ca="));
    let mut roots = roots.iter().filter_map(|pair| pair.strip_prefix("ssl_ca="));
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    (url, roots.next_back().map(|path| path.replace("%2F", "/").into()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_verified_unless_told_otherwise() {
        let tls = |url: &str| Connector::new(url).unwrap().options.ssl_opts().cloned();
        assert!(tls("mysql://u@127.0.0.1/d").is_none());
        assert!(tls("mysql://u@db.example/d?require_ssl=false").is_none());
        let verified = tls("mysql://u@db.example/d").unwrap();
        assert!(!verified.skip_domain_validation() && !verified.accept_invalid_certs());
        assert!(matches!(Connector::new("mysql://u:secret@h/"), Err(MysqlOpenError::Url(_))));
    }
}
