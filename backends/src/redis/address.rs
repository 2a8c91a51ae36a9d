//! Store addresses: parses URLs, and creates clients from them.

use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::cluster::ClusterClient;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, TlsCertificates, TlsMode,
};
use tokio::time::timeout;

use super::RedisOpenError;
use crate::query::Query;

/// How the store is deployed.
#[derive(Clone)]
pub(super) enum Topology {
    Single,
    Sentinel {
        master: String,
        sentinel_user: Option<String>,
        sentinel_password: Option<String>,
    },
    Cluster,
    /// One server, reached through the application's own connection.
    Managed(ConnectionManager),
}

/// A parsed URL, or the client or connection that the application supplied instead.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) topology: Topology,
    /// The server, the sentinels, or some nodes of the cluster, each with the credentials for Redis.
    pub(super) nodes: Vec<ConnectionInfo>,
    pub(super) options: Vec<(String, String)>,
    /// The database number of the application's own connection, for which there is no [`ConnectionInfo`].
    managed_database: i64,
    tls: Option<TlsCertificates>,
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
            // With Nagle's algorithm, a small command would wait for the answer to the previous command.
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
        let certificates: Option<Vec<u8>> = certificates.transpose()?;
        let tls = certificates.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) });
        Ok(Self { topology, nodes, options: options.0, managed_database: 0, tls })
    }

    /// Returns the address of the one server that the application's client reaches.
    pub(super) fn of_client(client: &Client) -> Self {
        let info = client.get_connection_info().clone();
        // `parse` explains why.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Self::handed(Topology::Single, vec![info.set_tcp_settings(tcp)], 0)
    }

    /// Returns the address of the server that the application's connection reaches.
    pub(super) async fn of_manager(mut manager: ConnectionManager, limit: Duration) -> Result<Self, RedisOpenError> {
        let asked = redis::cmd("CLIENT").arg("INFO").take();
        let unreachable = RedisOpenError::Unreachable;
        let answer = timeout(limit, manager.send_packed_command(&asked)).await;
        let answer = answer.map_err(|_| unreachable(format!("no answer within {limit:?}")))?;
        let answer = answer.and_then(|text| Ok(redis::from_redis_value::<String>(text)?)).map_err(|error| {
            unreachable(format!("CLIENT INFO, which tells the connection's database, is answered by {error}"))
        })?;
        let database = answer.split_ascii_whitespace().find_map(|field| field.strip_prefix("db=")?.parse().ok());
        let database = database.ok_or_else(|| unreachable("CLIENT INFO names no database".to_owned()))?;
        Ok(Self::handed(Topology::Managed(manager), Vec::new(), database))
    }

    fn handed(topology: Topology, nodes: Vec<ConnectionInfo>, managed_database: i64) -> Self {
        Self { topology, nodes, options: Vec::new(), managed_database, tls: None }
    }

    /// Replaces the URL's TLS settings with the application's.
    pub(super) fn set_tls(&mut self, tls: TlsCertificates) -> Result<(), RedisOpenError> {
        if !self.is_tls() {
            return Err(RedisOpenError::Url(
                "it has settings for TLS, but its scheme does not ask for TLS: use rediss",
            ));
        }
        self.tls = Some(tls);
        Ok(())
    }

    /// Returns a name that may appear in a log.
    pub(super) fn name(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        match &self.topology {
            Topology::Single => hosts.join(","),
            Topology::Sentinel { master, .. } => format!("{master} by the sentinels at {}", hosts.join(",")),
            Topology::Cluster => format!("the cluster at {}", hosts.join(",")),
            Topology::Managed(_) => "the server of the caller's ConnectionManager".to_owned(),
        }
    }

    /// Returns the database number. The channel's name contains it, because Redis delivers a published message in every
    /// database.
    pub(super) fn database(&self) -> i64 {
        self.nodes.first().map_or(self.managed_database, |node| node.redis_settings().db())
    }

    /// Creates a client of one server.
    pub(super) fn client(&self, node: &ConnectionInfo) -> redis::RedisResult<Client> {
        match (node.addr(), &self.tls) {
            (ConnectionAddr::TcpTls { .. }, Some(tls)) => Client::build_with_tls(node.clone(), tls.clone()),
            _ => Client::open(node.clone()),
        }
    }

    /// Creates a client of the cluster node `HOST:PORT`, with the credentials and TLS settings of the URL.
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
            if let Some(tls) = &self.tls {
                builder = builder.set_client_to_redis_certificates(tls.clone());
                builder = builder.set_client_to_sentinel_certificates(tls.clone());
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

    /// Creates a cluster client. The driver's own retries are off: after a failed retry, the driver would not report
    /// whether it had sent the step before. The caller enforces the deadline for an answer, over all attempts.
    pub(super) fn cluster(&self, connect: Duration, response: Duration) -> redis::RedisResult<ClusterClient> {
        // If a peer does not acknowledge data for this long, it is gone: the driver drops the connection and opens a
        // new one.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(response);
        let mut builder = ClusterClient::builder(self.nodes.clone())
            .retries(0)
            // One silent node must not use up the time for all others.
            .connection_timeout(connect / 4)
            .response_timeout(2 * response)
            .tcp_settings(tcp);
        if let Some(tls) = &self.tls {
            builder = builder.certs(tls.clone());
        }
        builder.build()
    }
}

/// The backend enforces its own timeouts instead of the driver's.
pub(super) fn without_timeouts() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None)
}

struct Options(Vec<(String, String)>);

impl Options {
    fn value(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }
}

/// A URL without its scheme and without Oncekey's own options.
struct Rest {
    /// `USER:PASSWORD@`, or empty.
    credentials: String,
    place: String,
    /// The options for the driver, with the leading question mark.
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

/// Removes Oncekey's own options from the query.
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
