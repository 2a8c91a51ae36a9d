//! A MariaDB server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Running, as_user, binary, folder_for, free_port, never_started, os, run, wait_until_ready, write_for};

const USER: &str = "mysql";
const PACKAGE: &str = "mariadb-server";

/// A server of its own, with durable settings. It can be killed, paused and started again.
#[derive(Debug)]
pub struct MariaDb {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    running: Running,
}

impl MariaDb {
    /// Makes the system tables and starts it.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings, such as `--innodb-flush-log-at-trx-commit=2`.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_with_files(&[], settings)
    }

    /// The same with files of its own, by name and text; `{folder}` in the settings is where they are.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start_with_files(files: &[(&str, &str)], settings: &[&str]) -> Self {
        let folder = folder_for(USER);
        for (name, text) in files {
            write_for(USER, &folder.join(name), text);
        }
        let path = folder.display().to_string();
        let settings: Vec<_> = settings.iter().map(|setting| setting.replace("{folder}", &path)).collect();
        let mut init = as_user(USER);
        init.push(binary("mariadb-install-db", &sbin(), PACKAGE).display().to_string());
        init.extend([
            "--no-defaults".to_owned(),
            format!("--datadir={}", folder.join("data").display()),
            tmpdir(&folder),
            "--auth-root-authentication-method=normal".to_owned(),
            "--skip-test-db".to_owned(),
            "--skip-name-resolve".to_owned(),
        ]);
        run(&os(&init));
        let port = free_port();
        let running = launch(&folder, port, &settings).unwrap_or_else(|log| never_started(&folder, &log));
        let server = Self { folder, port, settings, running };
        let made = "CREATE DATABASE shop; CREATE USER shop@'127.0.0.1'; GRANT ALL ON *.* TO shop@'127.0.0.1'";
        let made = client(&server.folder).args(["-e", made]).status().unwrap();
        assert!(made.success(), "the database was not made");
        server
    }

    /// The URL of a database of its own.
    pub fn url(&self) -> String {
        format!("mysql://shop@127.0.0.1:{}/shop", self.port)
    }

    /// The server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL by the server's client, and gives what it prints.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn sql(&self, text: &str) -> String {
        let output = client(&self.folder).args(["-N", "-B", "-D", "shop", "-e", text]).output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// SIGSTOP: all stands still.
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
        self.running.relaunch(|| launch(&self.folder, self.port, &self.settings));
    }
}

/// Its own: a server that starts removes what it finds of temporary tables, another's as well.
fn tmpdir(folder: &Path) -> String {
    format!("--tmpdir={}", folder.display())
}

fn client(folder: &Path) -> Command {
    let mut client = Command::new(binary("mariadb", &[], "mariadb-client"));
    client.args(["--no-defaults", "-u", "root", "-S"]).arg(folder.join("socket"));
    client
}

fn launch(folder: &Path, port: u16, settings: &[String]) -> Result<Running, String> {
    let mut command = as_user(USER);
    command.push(binary("mariadbd", &sbin(), PACKAGE).display().to_string());
    command.extend([
        "--no-defaults".to_owned(),
        format!("--datadir={}", folder.join("data").display()),
        tmpdir(folder),
        format!("--socket={}", folder.join("socket").display()),
        format!("--pid-file={}", folder.join("pid").display()),
        format!("--port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--skip-name-resolve".to_owned(),
        "--max-connections=300".to_owned(),
    ]);
    command.extend(settings.iter().cloned());
    let running = Running::start(folder, &os(&command));
    let ready = wait_until_ready(&running, folder, port, || {
        let mut asked = client(folder);
        asked.args(["-e", "SELECT 1"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    });
    running.unless_it_ended(ready)
}

fn sbin() -> Vec<PathBuf> {
    let folder = std::env::var_os("ONCEKEY_MARIADB_BIN").map(PathBuf::from);
    folder.into_iter().chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from)).collect()
}
