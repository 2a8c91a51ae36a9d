//! Redis servers: one, one with a replica under Sentinel, and a cluster. `ONCEKEY_REDIS=valkey` runs Valkey instead,
//! and `ONCEKEY_REDIS_BIN` names the folder of another version's binaries.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;

use super::{ASK_SERVERS, Running, binary, folder_for, free_port, further_servers, os, wait_until_ready};
use crate::process::PATIENCE;

const USER: &str = "redis";
const PACKAGE: &str = "redis-server";
/// The settings with which a server keeps what it confirms.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
/// The sentinels' name for the master.
const MASTER: &str = "main";

/// The server that the suites run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisKind {
    /// Redis itself.
    Redis,
    /// The fork of Redis.
    Valkey,
}

impl RedisKind {
    /// Returns the server that `ONCEKEY_REDIS` chooses: `redis`, which is the default, or `valkey`.
    ///
    /// # Panics
    /// If it is neither.
    pub fn chosen() -> Self {
        match std::env::var("ONCEKEY_REDIS").unwrap_or_default().as_str() {
            "" | "redis" => Self::Redis,
            "valkey" => Self::Valkey,
            other => panic!("ONCEKEY_REDIS is redis or valkey, and not {other}"),
        }
    }
}

/// A separate server that writes every change to the disk before it answers. It can be killed, paused and restarted.
#[derive(Debug)]
pub struct Redis {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    running: Running,
}

impl Redis {
    /// Starts the server with durable settings.
    ///
    /// # Panics
    /// If Redis is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the server with more settings, such as `--maxmemory-policy allkeys-lru`. The last value of each setting
    /// counts.
    ///
    /// # Panics
    /// If Redis is not installed, or does not start.
    pub fn start_with(settings: &[&str]) -> Self {
        let (folder, port) = (folder_for(USER), free_port());
        let settings: Vec<String> = DURABLE.iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
        let running = launch(&folder, port, &settings).unwrap_or_else(|log| panic!("the server ended: {log}"));
        Self { folder, port, settings, running }
    }

    /// Returns the URL of database 0.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Returns the URL of its socket.
    pub fn socket_url(&self) -> String {
        format!("redis+unix://{}?db=0", self.folder.join("socket").display())
    }

    /// Returns the server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command with the server's client, and returns what it prints.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn cli(&self, command: &[&str]) -> String {
        cli(self.port, command)
    }

    /// Runs a command on a server that may be down or paused. Returns whether it answered OK within a few seconds.
    pub fn try_cli(&self, command: &[&str]) -> bool {
        let mut client = Command::new("timeout");
        client.arg("2").arg(find("cli")).args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(command);
        client.output().is_ok_and(|output| output.stdout.trim_ascii() == b"OK")
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Pauses the whole server with SIGSTOP.
    pub fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    /// Resumes the server with SIGCONT.
    pub fn resume(&self) {
        self.running.signal(Signal::CONT);
    }

    /// Starts the server again after [`kill`](Self::kill), on the same port and data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.running.relaunch(|| launch(&self.folder, self.port, &self.settings));
    }

    /// Starts the server again without its data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart_empty(&mut self) {
        for left in ["appendonlydir", "dump.rdb"] {
            let path = self.folder.join(left);
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
        self.restart();
    }
}

/// A master with a replica, and three sentinels that replace the master with the replica.
#[derive(Debug)]
pub struct RedisSentinel {
    /// The two servers. Which one is the master changes.
    pub servers: [Redis; 2],
    sentinels: Vec<(u16, Running)>,
}

impl RedisSentinel {
    /// Starts them, and waits until the sentinels know the replica and each other.
    ///
    /// # Panics
    /// If Redis is not installed, or they do not start.
    pub fn start() -> Self {
        let master = Redis::start();
        let port = master.port.to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"]);
        let sentinels = (0..3).map(|_| sentinel(master.port)).collect();
        let servers = Self { servers: [master, replica], sentinels };
        until("the sentinels' and the replica's readiness", || {
            servers.sentinels.iter().all(|(port, _)| {
                let known = cli(*port, &["sentinel", "master", MASTER]);
                let field = |name: &str| known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                field("num-slaves").as_deref() == Some("1") && field("num-other-sentinels").as_deref() == Some("2")
            }) && servers.servers[1].cli(&["info", "replication"]).contains("master_link_status:up")
        });
        servers
    }

    /// Returns the URL of the sentinels.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{MASTER}/0", hosts.join(","))
    }

    /// Returns the server that the sentinels name as the master.
    pub fn master(&self) -> usize {
        let said = cli(self.sentinels[0].0, &["sentinel", "get-master-addr-by-name", MASTER]);
        usize::from(said.lines().nth(1) != Some(&self.servers[0].port.to_string()))
    }

    /// Waits until the other server has replaced a killed one, and returns its index.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn until_taken_over(&self, old: usize) -> usize {
        until("the failover", || self.servers[1 - old].cli(&["role"]).starts_with("master"));
        1 - old
    }
}

/// A single sentinel. It names a master and never replaces it.
#[derive(Debug)]
pub struct LoneSentinel {
    port: u16,
    _running: Running,
}

impl LoneSentinel {
    /// Starts a sentinel for the master at a port on 127.0.0.1, which may be a proxy's port.
    ///
    /// # Panics
    /// If Redis is not installed, or it does not start.
    pub fn before(master: u16) -> Self {
        let (port, running) = sentinel(master);
        Self { port, _running: running }
    }

    /// Returns the sentinel's URL.
    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/{MASTER}/0", self.port)
    }
}

/// Three primaries, each with a replica.
#[derive(Debug)]
pub struct RedisCluster {
    /// The six nodes.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes and joins them.
    ///
    /// # Panics
    /// If Redis is not installed, or they do not start.
    pub fn start() -> Self {
        let nodes: Vec<Redis> = (0..6)
            .map(|_| {
                let bus = free_port().to_string();
                Redis::start_with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    "1500",
                    "--repl-diskless-sync-delay",
                    "0",
                ])
            })
            .collect();
        let mut create = Command::new(find("cli"));
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        let output = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        let cluster = Self { nodes };
        until("the cluster's readiness", || {
            let is_up = |node: &Redis| node.cli(&["cluster", "info"]).contains("cluster_state:ok");
            cluster.nodes.iter().all(is_up)
                && cluster.nodes.iter().filter(|node| is_replica(node)).count() == 3
                && cluster
                    .nodes
                    .iter()
                    .filter(|node| is_replica(node))
                    .all(|node| node.cli(&["info", "replication"]).contains("master_link_status:up"))
        });
        cluster
    }

    /// Returns one node that has all slots and directs every client to `port`, the port of a proxy.
    ///
    /// # Panics
    /// If Redis is not installed, or it does not start.
    pub fn node_behind(proxy: impl FnOnce(u16) -> u16) -> Redis {
        let bus = free_port().to_string();
        let node = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
        let port = proxy(node.port).to_string();
        for (name, value) in [("cluster-announce-ip", "127.0.0.1"), ("cluster-announce-port", &port)] {
            assert_eq!(node.cli(&["config", "set", name, value]), "OK");
        }
        assert_eq!(node.cli(&["cluster", "addslotsrange", "0", "16383"]), "OK");
        until("the node's readiness", || node.cli(&["cluster", "info"]).contains("cluster_state:ok"));
        node
    }

    /// Returns the URL with three of the nodes.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes[..3].iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Waits until every slot is served again.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn until_served(&self) {
        until("the cluster's recovery", || {
            let alive = self.nodes.iter().filter(|node| node.running.is_alive());
            alive.into_iter().all(|node| node.cli(&["cluster", "info"]).contains("cluster_state:ok"))
        });
    }

    /// Returns whether a node is a replica.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn is_replica(&self, node: usize) -> bool {
        is_replica(&self.nodes[node])
    }
}

fn is_replica(node: &Redis) -> bool {
    node.cli(&["role"]).starts_with("slave")
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come to pass");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn sentinel(master: u16) -> (u16, Running) {
    let (folder, port) = (folder_for(USER), free_port());
    // The sentinel writes what it learns into this file.
    let file = folder.join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 5000\n",
        folder.display()
    );
    std::fs::write(&file, text).unwrap();
    let command = [find("server").display().to_string(), file.display().to_string(), "--sentinel".to_owned()];
    let running = Running::start(&folder, &os(&command));
    wait_until_ready(&running, &folder, port, || cli(port, &["ping"]) == "PONG")
        .unwrap_or_else(|log| panic!("the sentinel ended: {log}"));
    (port, running)
}

fn launch(folder: &Path, port: u16, settings: &[String]) -> Result<Running, String> {
    let mut command = vec![find("server").display().to_string()];
    let (socket, port_text) = (folder.join("socket").display().to_string(), port.to_string());
    let base = ["--port", &port_text, "--bind", "127.0.0.1", "--unixsocket", &socket, "--save", "", "--dir"];
    command.extend(base.map(str::to_owned));
    command.push(folder.display().to_string());
    command.extend(settings.iter().cloned());
    let running = Running::start(folder, &os(&command));
    // A server that requires a password says so, and is ready too.
    let ready = wait_until_ready(&running, folder, port, || {
        let said = cli(port, &["ping"]);
        said == "PONG" || said.contains("NOAUTH")
    });
    running.unless_it_ended(ready)
}

fn cli(port: u16, command: &[&str]) -> String {
    let mut client = Command::new(find("cli"));
    client.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(command.iter().map(OsStr::new));
    let output = client.output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Finds `redis-server`, or Valkey's equivalent.
fn find(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("ONCEKEY_REDIS_BIN").map(PathBuf::from) {
        let valkey = folder.join(format!("valkey-{name}"));
        return if valkey.is_file() { valkey } else { binary(&format!("redis-{name}"), &[folder], PACKAGE) };
    }
    match RedisKind::chosen() {
        RedisKind::Redis => binary(&format!("redis-{name}"), &[], PACKAGE),
        RedisKind::Valkey => {
            let folders: Vec<_> = further_servers().into_iter().map(|root| root.join("valkey/bin")).collect();
            let found = folders.iter().map(|folder| folder.join(format!("valkey-{name}"))).find(|path| path.is_file());
            found.unwrap_or_else(|| panic!("Valkey is not installed: {ASK_SERVERS}"))
        }
    }
}
