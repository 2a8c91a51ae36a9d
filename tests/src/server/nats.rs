//! A NATS server with JetStream.

use std::path::{Path, PathBuf};

use super::{Running, as_user, binary, folder_for, free_port, os, wait_until_ready};

const USER: &str = "nats";
const PACKAGE: &str = "nats-server";

/// A separate server. It can be killed and restarted.
#[derive(Debug)]
pub struct Nats {
    folder: PathBuf,
    port: u16,
    running: Running,
}

impl Nats {
    /// Starts the server.
    ///
    /// # Panics
    /// If NATS is not installed, or does not start.
    pub fn start() -> Self {
        let (folder, port) = (folder_for(USER), free_port());
        let running = launch(&folder, port).unwrap_or_else(|log| panic!("the server ended: {log}"));
        Self { folder, port, running }
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Starts the server again after [`kill`](Self::kill), on the same port and data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.running.relaunch(|| launch(&self.folder, self.port));
    }
}

fn launch(folder: &Path, port: u16) -> Result<Running, String> {
    let mut command = as_user(USER);
    command.push(binary("nats-server", &[PathBuf::from("/usr/sbin")], PACKAGE).display().to_string());
    let (port_text, data) = (port.to_string(), folder.join("data").display().to_string());
    command.extend(["-a", "127.0.0.1", "-p", &port_text, "-js", "-sd", &data].map(str::to_owned));
    let running = Running::start(folder, &os(&command));
    let log = folder.join("log");
    let ready = wait_until_ready(&running, folder, port, || {
        // The server listens before it has recovered its streams.
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Server is ready"))
    });
    running.unless_it_ended(ready)
}
