//! A Redis server for messages: everything that it has answered is on the disk.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{Running, as_user, binary, folder_for, free_port, os, relaunch, wait_until_ready};

const USER: &str = "redis";
const PACKAGE: &str = "redis-server";

/// A server of its own. It can be killed, paused and started again.
#[derive(Debug)]
pub struct BrokerRedis {
    folder: PathBuf,
    port: u16,
    running: Running,
}

impl BrokerRedis {
    /// Starts it.
    ///
    /// # Panics
    /// If Redis is not installed, or does not start.
    pub fn start() -> Self {
        let (folder, port) = (folder_for(USER), free_port());
        let running = launch(&folder, port).unwrap_or_else(|log| panic!("the server ended: {log}"));
        Self { folder, port, running }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command by `redis-cli`, and gives what it prints.
    ///
    /// # Panics
    /// If the server can't be reached.
    pub fn cli(&self, command: &[&str]) -> String {
        let mut client = Command::new(binary("redis-cli", &[], "redis-tools"));
        let output = client.args(["-p", &self.port.to_string()]).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    pub fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.running.signal(Signal::CONT);
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        // The old keeper would remove the folder; it ends with this process, after the new one.
        let old = std::mem::replace(&mut self.running, relaunch(|| launch(&self.folder, self.port)));
        std::mem::forget(old);
    }
}

fn launch(folder: &Path, port: u16) -> Result<Running, String> {
    let mut command = as_user(USER);
    command.push(binary("redis-server", &[], PACKAGE).display().to_string());
    let port_text = port.to_string();
    let folder_text = folder.display().to_string();
    let settings = ["--port", &port_text, "--bind", "127.0.0.1", "--dir", &folder_text, "--save", ""];
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    command.extend(settings.iter().chain(&durable).map(|word| (*word).to_owned()));
    let running = Running::start(folder, &os(&command));
    wait_until_ready(&running, folder, port, || is_loaded(port).unwrap_or(false))?;
    Ok(running)
}

/// While it loads its data it answers that it does.
fn is_loaded(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}
