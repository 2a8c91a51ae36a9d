//! A MariaDB server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Running, as_user, binary, folder_for, free_port, never_started, os, run, wait_until_ready, write_for};

const USER: &str = "mysql";
const PACKAGE: &str = "mariadb-server";

/// A separate server with durable settings. It can be killed, paused and restarted.
#[derive(Debug)]
pub struct MariaDb {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    /// Keeps the redo log from the disk, if the test wants that.
    holder: Option<LogHolder>,
    running: Running,
}

impl MariaDb {
    /// Creates the system tables and starts the server.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the server with settings, such as `--innodb-flush-log-at-trx-commit=2`.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_with_files(&[], settings)
    }

    /// Starts the server with settings and files, each with a name and a text. `{folder}` in the settings is the folder
    /// of the files.
    ///
    /// # Panics
    /// If MariaDB is not installed, or does not start.
    pub fn start_with_files(files: &[(&str, &str)], settings: &[&str]) -> Self {
        Self::start_in(folder_for(USER), files, settings, None)
    }

    /// Starts the server with settings and a redo log that can be [held](Self::hold_log).
    ///
    /// # Panics
    /// If MariaDB or a C compiler is not installed, or the server does not start.
    pub fn start_with_log_to_hold(settings: &[&str]) -> Self {
        let folder = folder_for(USER);
        let holder = LogHolder::build(&folder);
        Self::start_in(folder, &[], settings, Some(holder))
    }

    fn start_in(folder: PathBuf, files: &[(&str, &str)], settings: &[&str], holder: Option<LogHolder>) -> Self {
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
        let running =
            launch(&folder, port, &settings, holder.as_ref()).unwrap_or_else(|log| never_started(&folder, &log));
        let server = Self { folder, port, settings, holder, running };
        let made = "CREATE DATABASE shop; CREATE USER shop@'127.0.0.1'; GRANT ALL ON *.* TO shop@'127.0.0.1'";
        let made = client(&server.folder).args(["-e", made]).status().unwrap();
        assert!(made.success(), "the database was not made");
        server
    }

    /// Returns the URL of the tests' database.
    pub fn url(&self) -> String {
        format!("mysql://shop@127.0.0.1:{}/shop", self.port)
    }

    /// Returns the server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL with the server's client, and returns what it prints.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn sql(&self, text: &str) -> String {
        let output = client(&self.folder).args(["-N", "-B", "-D", "shop", "-e", text]).output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs SQL on a server that may be down or paused. Returns whether it ran within a few seconds.
    pub fn try_sql(&self, text: &str) -> bool {
        let mut client = Command::new("timeout");
        client.arg("5").arg(binary("mariadb", &[], "mariadb-client"));
        client.args(["--no-defaults", "-u", "root", "--connect-timeout=2", "-S"]).arg(self.folder.join("socket"));
        client.args(["-D", "shop", "-e", text]).stdout(Stdio::null()).stderr(Stdio::null());
        client.status().is_ok_and(|status| status.success())
    }

    /// Returns whether a statement with this beginning is executing.
    ///
    /// # Panics
    /// If the server refuses to tell.
    pub fn is_executing(&self, beginning: &str) -> bool {
        let statements = "SELECT count(*) FROM information_schema.processlist WHERE";
        self.sql(&format!("{statements} LEFT(info, LENGTH('{beginning}')) = '{beginning}'")) != "0"
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
        self.running.relaunch(|| launch(&self.folder, self.port, &self.settings, self.holder.as_ref()));
    }

    /// Keeps InnoDB's redo log from reaching the disk from now on, as on a slow disk.
    ///
    /// # Panics
    /// If the server was not [started for that](Self::start_with_log_to_hold).
    pub fn hold_log(&self) {
        std::fs::write(&self.holder().held, "").unwrap();
    }

    /// Lets the log reach the disk again.
    ///
    /// # Panics
    /// If the log was not held.
    pub fn let_log_go(&self) {
        std::fs::remove_file(&self.holder().held).unwrap();
    }

    fn holder(&self) -> &LogHolder {
        self.holder.as_ref().expect("a server whose log can be held")
    }
}

/// A library that the server loads. It makes writes to the log wait while a certain file exists.
#[derive(Debug)]
struct LogHolder {
    library: PathBuf,
    held: PathBuf,
}

impl LogHolder {
    fn build(folder: &Path) -> Self {
        let library = folder.join("held_log.so");
        write_for(USER, &folder.join("held_log.c"), include_str!("held_log.c"));
        let source = folder.join("held_log.c").display().to_string();
        let compiler = binary("cc", &[], "gcc").display().to_string();
        run(&os(&[
            compiler,
            "-shared".into(),
            "-fPIC".into(),
            "-O1".into(),
            "-o".into(),
            library.display().to_string(),
            source,
        ]));
        Self { library, held: folder.join("log_is_held") }
    }

    fn environment(&self) -> [String; 3] {
        ["env".into(), format!("LD_PRELOAD={}", self.library.display()), format!("HELD_LOG={}", self.held.display())]
    }
}

/// Gives each server its own folder: a server that starts removes all temporary tables that it finds, including those
/// of another server.
fn tmpdir(folder: &Path) -> String {
    format!("--tmpdir={}", folder.display())
}

fn client(folder: &Path) -> Command {
    let mut client = Command::new(binary("mariadb", &[], "mariadb-client"));
    client.args(["--no-defaults", "-u", "root", "-S"]).arg(folder.join("socket"));
    client
}

fn launch(folder: &Path, port: u16, settings: &[String], holder: Option<&LogHolder>) -> Result<Running, String> {
    let mut command = as_user(USER);
    command.extend(holder.into_iter().flat_map(LogHolder::environment));
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
