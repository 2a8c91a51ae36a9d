//! A RabbitMQ node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::{Running, as_user, binary, folder_for, free_port, os, wait_until_ready};
use crate::process::PATIENCE;

const USER: &str = "rabbitmq";
const PACKAGE: &str = "rabbitmq-server";

/// A separate node with its own port mapper, because Erlang's would outlive it. It can be killed and restarted.
#[derive(Debug)]
pub struct RabbitMqServer {
    folder: PathBuf,
    ports: Ports,
    running: Running,
    _mapper: Running,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    node: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitMqServer {
    /// Starts the node.
    ///
    /// # Panics
    /// If RabbitMQ is not installed, or does not start.
    pub fn start() -> Self {
        let folder = folder_for(USER);
        let ports = Ports { node: free_port(), distribution: free_port(), mapper: free_port() };
        let mut command = as_user(USER);
        command.push(binary("epmd", &[], "erlang-base").display().to_string());
        command.extend(["-port".to_owned(), ports.mapper.to_string()]);
        let mapper_folder = folder_for(USER);
        let mapper = Running::start(&mapper_folder, &os(&command));
        wait_until_ready(&mapper, &mapper_folder, ports.mapper, || true).unwrap();
        let running = launch(&folder, ports).unwrap_or_else(|log| panic!("the server ended: {log}"));
        Self { folder, ports, running, _mapper: mapper }
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.node)
    }

    /// Runs a command of `rabbitmqctl`, and returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = words(&self.folder, self.ports);
        command.push(script("rabbitmqctl").display().to_string());
        command.extend(arguments.iter().map(ToString::to_string));
        let told = Command::new(&command[0]).args(&command[1..]).output().unwrap();
        assert!(told.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8_lossy(&told.stdout).into_owned()
    }

    /// Kills the node with SIGKILL.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Starts the node again after [`kill`](Self::kill), on the same port and data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.running.relaunch(|| launch(&self.folder, self.ports));
        let (folder, ports) = (self.folder.clone(), self.ports);
        // This runs on a separate thread, because the test's faults continue in the meantime.
        std::thread::spawn(move || elect_leaders(&folder, ports));
    }
}

/// Returns the beginning of a command for the node.
fn words(folder: &Path, ports: Ports) -> Vec<String> {
    let mut command = as_user(USER);
    command.push("env".to_owned());
    let path = |name: &str| folder.join(name).display().to_string();
    let own = [
        ("HOME", folder.display().to_string()),
        ("LANG", "C.UTF-8".to_owned()),
        ("ERL_EPMD_PORT", ports.mapper.to_string()),
        ("RABBITMQ_NODENAME", format!("oncekey-{}@localhost", ports.node)),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
        ("RABBITMQ_NODE_PORT", ports.node.to_string()),
        ("RABBITMQ_DIST_PORT", ports.distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("logs")),
        ("RABBITMQ_LOGS", "-".to_owned()),
        ("RABBITMQ_CONF_ENV_FILE", path("env.conf")),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
        ("RABBITMQ_PID_FILE", path("pid")),
        // With this setting the script becomes the node instead of starting it, so a kill hits the node.
        ("RABBITMQ_ALLOW_INPUT", "true".to_owned()),
        // If a queue forwards a message and the confirmation is lost, it forwards the message again after this time.
        // The default is three minutes, which is longer than a test waits.
        ("RABBITMQ_SERVER_START_ARGS", "-noinput -rabbit dead_letter_worker_publisher_confirm_timeout 5000".to_owned()),
    ];
    command.extend(own.map(|(name, value)| format!("{name}={value}")));
    command
}

/// Elects the leaders of quorum queues that have none: after a kill, RabbitMQ 3.10 sometimes leaves a queue without one
/// forever. <https://github.com/rabbitmq/rabbitmq-server/issues/10070>
fn elect_leaders(folder: &Path, ports: Ports) {
    const WITHOUT_LEADER: &str = "[begin ra:trigger_election(Server), Name end || Queue <- rabbit_amqqueue:list(), \
        amqqueue:get_type(Queue) =:= rabbit_quorum_queue, {Name, _} = Server <- [amqqueue:get_pid(Queue)], \
        ra_leaderboard:lookup_leader(Name) =:= undefined].";

    let mut command = words(folder, ports);
    command.extend([script("rabbitmqctl").display().to_string(), "eval".to_owned(), WITHOUT_LEADER.to_owned()]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = Command::new(&command[0]).args(&command[1..]).output().unwrap();
        let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
        if told.trim() == "[]" {
            return;
        }
        assert!(Instant::now() < deadline, "queues without a leader: {told}");
    }
}

fn launch(folder: &Path, ports: Ports) -> Result<Running, String> {
    let mut command = words(folder, ports);
    command.push(script("rabbitmq-server").display().to_string());
    let running = Running::start(folder, &os(&command));
    let log = folder.join("log");
    let ready = wait_until_ready(&running, folder, ports.node, || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Server startup complete"))
    });
    running.unless_it_ended(ready)
}

/// Returns the server's own script. Debian's scripts in the path insist on their own user and folders.
fn script(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let folders: Vec<_> = versions.map(|entry| entry.path().join("sbin")).collect();
    binary(name, &folders, PACKAGE)
}
