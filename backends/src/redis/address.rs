//! Where the records are: URLs, and the clients that are made from them.

use std::time::Duration;

use redis::cluster::ClusterClient;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates, TlsMode,
};

use super::RedisOpenError;
use crate::query::Query;

/// How a store is laid out.
#[derive(Clone)]
pub(super) enum Topology {
    Single,
    Sentinel { master: String, sentinel_user: Option<String>, sentinel_password: Option<String> },
    Cluster,
}

/// A URL, taken apart.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) topology: Topology,
    /// The server, the sentinels, or some nodes of the cluster, each with the credentials for Redis.
    pub(super) nodes: Vec<ConnectionInfo>,
    pub(super) options: Vec<(String, String)>,
    certificates: Option<Vec<u8>>,
}

const FORM: RedisOpenError = RedisOpenError::Url(
    "it has the form redis://USER:PASSWORD@HOST:PORT/DATABASE, redis+unix:///PATH?db=N, redis+cluster://HOST:PORT,HOST:PORT or \
     redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE; rediss, rediss+cluster and rediss+sentinel are the same by TLS",
);

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, RedisOpenError> {
        let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
        let (rest, options) = take_options(rest)?;
        let (base, layout) = scheme.split_once('+').unwrap_or((scheme, ""));
        let node = |text: &str| -> Result<ConnectionInfo, RedisOpenError> {
            let info = text.into_connection_info().map_err(|_| FORM)?;
            // Without it a small command waits for the answer to the one before.
            Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
        };
        let (topology, nodes) = match (base, layout) {
            ("redis" | "rediss" | "valkey" | "valkeys", "") => (Topology::Single, vec![node(&join(base, &rest, ""))?]),
            ("redis" | "valkey", "unix") | ("unix", "") => {
                (Topology::Single, vec![node(&join("redis+unix", &rest, ""))?])
            }
            ("redis" | "rediss" | "valkey" | "valkeys", "cluster") => {
                let (hosts, path) = rest.place.split_once('/').unwrap_or((&rest.place, ""));
                if !matches!(path, "" | "0") {
                    return Err(RedisOpenError::Url("a cluster has no databases but 0"));
                }
                (Topology::Cluster, every(base, &rest, hosts, "", node)?)
            }
            ("redis" | "rediss" | "valkey" | "valkeys", "sentinel") => {
                let (hosts, path) = rest.place.split_once('/').ok_or(FORM)?;
                let (master, database) = path.split_once('/').unwrap_or((path, "0"));
                if master.is_empty() {
                    return Err(RedisOpenError::Url("the name of the sentinels' master is missing"));
                }
                let topology = Topology::Sentinel {
                    master: master.to_owned(),
                    sentinel_user: options.value("sentinel_user"),
                    sentinel_password: options.value("sentinel_password"),
                };
                (topology, every(base, &rest, hosts, &format!("/{database}"), node)?)
            }
            _ => return Err(FORM),
        };
        let certificates = options
            .value("sslrootcert")
            .map(|path| std::fs::read(&path).map_err(|error| RedisOpenError::Certificates(format!("{path}: {error}"))));
        Ok(Self { topology, nodes, options: options.0, certificates: certificates.transpose()? })
    }

    /// What a log may show.
    pub(super) fn name(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        match &self.topology {
            Topology::Single => hosts.join(","),
            Topology::Sentinel { master, .. } => format!("{master} by the sentinels at {}", hosts.join(",")),
            Topology::Cluster => format!("the cluster at {}", hosts.join(",")),
        }
    }

    /// Messages are heard in every database: the channel has the number in its name.
    pub(super) fn database(&self) -> i64 {
        self.nodes.first().map_or(0, |node| node.redis_settings().db())
    }

    /// A client of one server.
    pub(super) fn client(&self, node: &ConnectionInfo) -> redis::RedisResult<Client> {
        match (node.addr(), self.tls()) {
            (ConnectionAddr::TcpTls { .. }, certificates @ TlsCertificates { root_cert: Some(_), .. }) => {
                Client::build_with_tls(node.clone(), certificates)
            }
            _ => Client::open(node.clone()),
        }
    }

    /// A client of a cluster's node, `HOST:PORT`, by the credentials and the TLS of the URL.
    pub(super) fn node(&self, name: &str) -> redis::RedisResult<Client> {
        let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
        let (host, port) = (host.to_owned(), port.parse().unwrap_or(0));
        let Some(known) = self.nodes.first() else {
            return Err(std::io::Error::other("the URL names no host").into());
        };
        let addr = match known.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.client(&known.clone().set_addr(addr))
    }

    fn tls(&self) -> TlsCertificates {
        TlsCertificates { client_tls: None, root_cert: self.certificates.clone() }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }))
    }

    pub(super) fn sentinels(
        &self,
        master: &str,
        user: Option<&String>,
        password: Option<&String>,
    ) -> redis::RedisResult<SentinelClient> {
        let redis = self.nodes.first().map(|node| node.redis_settings().clone());
        let mut builder = SentinelClientBuilder::new(
            self.nodes.iter().map(|node| node.addr().clone()),
            master,
            SentinelServerType::Master,
        )?;
        if let Some(settings) = &redis {
            builder = builder.set_client_to_redis_db(settings.db());
            if let Some(name) = settings.username() {
                builder = builder.set_client_to_redis_username(name);
            }
            if let Some(password) = settings.password() {
                builder = builder.set_client_to_redis_password(password);
            }
        }
        builder = builder.set_client_to_redis_tcp_settings(TcpSettings::default().set_nodelay(true));
        if self.is_tls() {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            if self.certificates.is_some() {
                builder = builder.set_client_to_redis_certificates(self.tls());
                builder = builder.set_client_to_sentinel_certificates(self.tls());
            }
        }
        if let Some(user) = user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        builder.build()
    }

    /// A cluster's client. Its own retries are off: it would not say whether a step that failed in the end had been sent
    /// before. An answer's time is counted by the caller, over all that is done for it.
    pub(super) fn cluster(&self, connect: Duration, response: Duration) -> redis::RedisResult<ClusterClient> {
        // Unacknowledged for so long, a peer is gone: its connection is dropped, and made anew.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(response);
        let mut builder = ClusterClient::builder(self.nodes.clone())
            .retries(0)
            // One silent node is not to take the time of all the others.
            .connection_timeout(connect / 4)
            .response_timeout(2 * response)
            .tcp_settings(tcp);
        if self.certificates.is_some() {
            builder = builder.certs(self.tls());
        }
        builder.build()
    }
}

/// Time-outs are counted here, not by the driver.
pub(super) fn without_timeouts() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None)
}

struct Options(Vec<(String, String)>);

impl Options {
    fn value(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }
}

/// A URL without its scheme and our own options.
struct Rest {
    /// `USER:PASSWORD@`, or nothing.
    credentials: String,
    place: String,
    /// What the driver reads, with its question mark.
    query: String,
}

fn join(scheme: &str, rest: &Rest, path: &str) -> String {
    format!("{scheme}://{}{}{path}{}", rest.credentials, rest.place, rest.query)
}

fn every(
    scheme: &str,
    rest: &Rest,
    hosts: &str,
    path: &str,
    node: impl Fn(&str) -> Result<ConnectionInfo, RedisOpenError>,
) -> Result<Vec<ConnectionInfo>, RedisOpenError> {
    hosts.split(',').map(|host| node(&format!("{scheme}://{}{host}{path}{}", rest.credentials, rest.query))).collect()
}

/// Takes our own options off the query.
fn take_options(rest: &str) -> Result<(Rest, Options), RedisOpenError> {
    const OURS: [&str; 5] = ["accept", "prefix", "sentinel_password", "sentinel_user", "sslrootcert"];

    let mut query = Query::of(rest);
    let ours = query.take_all(&OURS).into_iter().map(|(name, value)| Some((name, value?)));
    let ours = ours.collect::<Option<Vec<_>>>().ok_or(FORM)?;
    let (place, query) = query.parts();
    let (credentials, place) = match place.rsplit_once('@') {
        Some((credentials, place)) => (format!("{credentials}@"), place),
        None => (String::new(), place),
    };
    Ok((Rest { credentials, place: place.to_owned(), query }, Options(ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_topologies() {
        let address = Address::parse("redis://shop:a%40b@db.example:7000/3?prefix=shop%3A&accept=eviction").unwrap();
        let redis = address.nodes[0].redis_settings();
        assert_eq!((redis.username(), redis.password(), redis.db()), (Some("shop"), Some("a@b"), 3));
        assert_eq!(address.options, [("prefix", "shop:"), ("accept", "eviction")].map(|(a, b)| (a.into(), b.into())));
        assert_eq!(address.name(), "db.example:7000");

        let address = Address::parse("redis+sentinel://:p@a:1,b:2/main/4?sentinel_password=s").unwrap();
        assert!(matches!(&address.topology, Topology::Sentinel { master, sentinel_password: Some(word), .. }
            if master == "main" && word == "s"));
        assert_eq!((address.nodes.len(), address.database()), (2, 4));

        let address = Address::parse("rediss+cluster://a:1,b:2,c:3").unwrap();
        assert!(matches!(address.topology, Topology::Cluster) && address.nodes.len() == 3 && address.is_tls());

        let address = Address::parse("redis+unix:///run/redis.sock?db=2").unwrap();
        assert!(matches!(address.nodes[0].addr(), ConnectionAddr::Unix(_)) && address.database() == 2);
    }

    #[test]
    fn bad_urls_are_refused_without_their_passwords() {
        for bad in [
            "redis:",
            "redis://:secret@[/",
            "redis://:secret@h/x",
            "redis+cluster://:secret@h:1/3",
            "redis+sentinel://:secret@h:1",
            "redis+sentinel://:secret@h:1/",
            "redis+sentinel://:secret@h:1/main/x",
            "redis+other://:secret@h",
            "redis://:secret@h?prefix=%zz",
            "http://:secret@h",
        ] {
            let Err(refused) = Address::parse(bad) else { panic!("{bad} was taken") };
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }
}
