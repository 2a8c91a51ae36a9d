//! Real servers for databases and messages, from the installed binaries, on free ports and in temporary folders.
//!
//! When the test's process ends, however it ends, its servers stop and their folders are removed. A shell holds both,
//! and waits for its input to close.

mod mariadb;
mod nats;
mod pgbouncer;
mod port;
mod postgres;
mod rabbitmq;
mod redis;

pub use mariadb::MariaDb;
pub use nats::Nats;
pub use pgbouncer::PgBouncer;
pub use port::free_port;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMqServer;
pub use redis::{LoneSentinel, Redis, RedisCluster, RedisKind, RedisSentinel};

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

use crate::process::PATIENCE;

/// Prints the id of its child and waits for it to end. A killed server therefore does not linger as a zombie, which its
/// own lock file would treat as a running server. When the input closes, the shell kills the child and cleans up; a
/// line on the input dismisses it.
const KEEPER: &str = r#"folder=$1; shift; exec 3<&0
"$@" >"$folder/log" 2>&1 </dev/null 3<&- & server=$!
{ read -r dismissed <&3 || { kill -KILL $server 2>/dev/null; rm -rf "$folder"; }; } & echo $server
exec >/dev/null; wait $server; wait"#;

/// A server's process under its keeper.
#[derive(Debug)]
struct Running {
    /// The keeper. It ends the server when its input closes.
    keeper: Child,
    pid: Pid,
}

impl Running {
    fn start(folder: &Path, command: &[&OsStr]) -> Self {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(folder)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { keeper, pid: Pid::from_raw(line.trim().parse().unwrap()).unwrap() }
    }

    /// Launches the server again after it was killed, once its former processes have released everything.
    fn relaunch(&mut self, launch: impl Fn() -> Result<Self, String>) {
        let deadline = Instant::now() + PATIENCE;
        let relaunched = loop {
            match launch() {
                Ok(running) => break running,
                Err(log) => assert!(Instant::now() < deadline, "the server does not start again: {log}"),
            }
        };
        std::mem::replace(self, relaunched).dismiss();
    }

    /// Dismisses the keeper of a server that has ended, and leaves its folder to the next one.
    fn dismiss(mut self) {
        if let Some(input) = &mut self.keeper.stdin {
            writeln!(input, "dismissed").unwrap();
        }
        self.keeper.wait().unwrap();
    }

    /// Returns the server if it became ready. A server that ended leaves its folder to the next attempt.
    fn unless_it_ended(self, ready: Result<(), String>) -> Result<Self, String> {
        match ready {
            Ok(()) => Ok(self),
            Err(log) => {
                self.dismiss();
                Err(log)
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|error| panic!("{signal:?} could not be sent: {error}"));
    }

    /// Signals the process, and then its children. A stopped process starts no more of them.
    fn signal_all(&self, signal: Signal) {
        self.signal(signal);
        let parent = self.pid.as_raw_nonzero().to_string();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
                continue;
            };
            // After the command's name, which is in parentheses, come the state and the parent.
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let is_child = stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)) == Some(&parent);
            if is_child {
                // A process that has just ended needs no signal.
                let _ = kill_process(pid, signal);
            }
        }
    }

    fn is_alive(&self) -> bool {
        Path::new(&format!("/proc/{}", self.pid.as_raw_nonzero())).exists()
    }

    /// Kills the process with SIGKILL, and waits until it is gone.
    fn kill(&self) {
        self.signal(Signal::KILL);
        let deadline = Instant::now() + PATIENCE;
        while self.is_alive() {
            assert!(Instant::now() < deadline, "the server survived SIGKILL");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Creates a folder that a server's user may use. Its keeper removes it.
fn folder_for(user: &str) -> PathBuf {
    let folder = TempDir::with_prefix("oncekey-").unwrap().keep();
    if getuid().is_root() {
        let (uid, gid) = ids_of(user);
        chown(&folder, Some(uid), Some(gid)).unwrap();
    }
    folder
}

/// Writes a file that only the server's user may read, as servers require of keys.
fn write_for(user: &str, path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    if getuid().is_root() {
        let (uid, gid) = ids_of(user);
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// Returns the words that run a server as `user` if we are root, which servers refuse. Other users run it as
/// themselves.
fn as_user(user: &str) -> Vec<String> {
    if !getuid().is_root() {
        return Vec::new();
    }
    let (uid, gid) = ids_of(user);
    ["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups"].map(str::to_owned).to_vec()
}

fn ids_of(user: &str) -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    };
    find(user).or_else(|| find("nobody")).expect("a user for the server")
}

/// Finds a binary in the given folders or in the path.
fn binary(name: &str, folders: &[PathBuf], package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = folders.iter().cloned().chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{name} is not installed: `apt-get install {package}`, or run the suites by tests/run, which does so")
    })
}

/// How to get the servers of other versions.
const ASK_SERVERS: &str = "set ONCEKEY_SERVERS=$(tests/servers), or run the suites by tests/run, which does so";

/// Returns the folder of servers whose versions differ from Debian's.
fn further_servers() -> Option<PathBuf> {
    std::env::var_os("ONCEKEY_SERVERS").map(PathBuf::from)
}

/// Waits until the port accepts connections and `is_ready` holds. If the server ended instead, the error is its log.
fn wait_until_ready(
    running: &Running,
    folder: &Path,
    port: u16,
    mut is_ready: impl FnMut() -> bool,
) -> Result<(), String> {
    let (address, deadline) = (SocketAddr::from(([127, 0, 0, 1], port)), Instant::now() + 2 * PATIENCE);
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() || !is_ready() {
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        if !running.is_alive() {
            return Err(log());
        }
        assert!(Instant::now() < deadline, "the server is not ready: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn never_started(folder: &Path, log: &str) -> ! {
    let _ = std::fs::remove_dir_all(folder);
    panic!("the server ended: {log}")
}

fn run(command: &[&OsStr]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn os(words: &[String]) -> Vec<&OsStr> {
    words.iter().map(OsStr::new).collect()
}
