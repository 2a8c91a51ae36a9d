//! A PostgreSQL server.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{
    ASK_SERVERS, Running, as_user, binary, folder_for, free_port, further_servers, never_started, os, run,
    wait_until_ready, write_for,
};

const USER: &str = "postgres";
const PACKAGE: &str = "postgresql";

/// A separate server with durable settings. It can be killed, paused and restarted.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    running: Running,
}

impl Postgres {
    /// Creates a cluster and starts the server.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not start.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the server with settings, such as `synchronous_commit=off`.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not start.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_with_files(&[], settings)
    }

    /// Starts the server with settings and files, each with a name and a text. `{folder}` in the settings is the folder
    /// of the files.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not start.
    pub fn start_with_files(files: &[(&str, &str)], settings: &[&str]) -> Self {
        let folder = folder_for(USER);
        for (name, text) in files {
            write_for(USER, &folder.join(name), text);
        }
        let path = folder.display().to_string();
        let settings: Vec<_> = settings.iter().map(|setting| setting.replace("{folder}", &path)).collect();
        let data = folder.join("data").display().to_string();
        let mut init = as_user(USER);
        init.push(find("initdb").display().to_string());
        init.extend(["-D", &data, "-U", "shop", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"].map(str::to_owned));
        run(&os(&init));
        let port = free_port();
        let running = launch(&folder, port, &settings).unwrap_or_else(|log| never_started(&folder, &log));
        Self { folder, port, settings, running }
    }

    /// Returns a hot standby that follows this server.
    ///
    /// # Panics
    /// If the server cannot be copied, or the standby does not start.
    pub fn standby(&self) -> Self {
        let folder = folder_for(USER);
        let data = folder.join("data").display().to_string();
        let mut copy = as_user(USER);
        copy.push(find("pg_basebackup").display().to_string());
        copy.extend(["-d", &self.url(), "-D", &data, "-R", "-N", "-X", "stream", "-c", "fast"].map(str::to_owned));
        run(&os(&copy));
        let (port, settings) = (free_port(), self.settings.clone());
        let running = launch(&folder, port, &settings).unwrap_or_else(|log| never_started(&folder, &log));
        Self { folder, port, settings, running }
    }

    /// Returns the version that `ONCEKEY_POSTGRES` chooses for the suites, such as 18.
    pub fn chosen_version() -> Option<String> {
        std::env::var("ONCEKEY_POSTGRES").ok().filter(|version| !version.is_empty())
    }

    /// Returns the URL of a database that every server has.
    pub fn url(&self) -> String {
        format!("postgres://shop@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns the server's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL with `psql`, and returns what it prints.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn sql(&self, text: &str) -> String {
        let output = Command::new(find("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", text])
            .output()
            .unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs SQL on a server that may be down or paused. Returns whether it ran within a few seconds.
    pub fn try_sql(&self, text: &str) -> bool {
        self.try_each_sql(&[text])
    }

    /// Like [`try_sql`](Self::try_sql), for several texts, each in its own transaction.
    pub fn try_each_sql(&self, texts: &[&str]) -> bool {
        let mut psql = Command::new("timeout");
        psql.arg("5").arg(find("psql")).env("PGCONNECT_TIMEOUT", "2");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url()]);
        psql.args(texts.iter().flat_map(|text| ["-c", text]));
        psql.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Kills the postmaster with SIGKILL. Its other processes then end by themselves.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Pauses the postmaster with SIGSTOP, so new connections get no answer.
    pub fn pause(&self) {
        self.running.signal(Signal::STOP);
    }

    /// Pauses the postmaster and all its processes with SIGSTOP, so nothing gets an answer.
    pub fn pause_all(&self) {
        self.running.signal_all(Signal::STOP);
    }

    /// Resumes all of them with SIGCONT.
    pub fn resume_all(&self) {
        self.running.signal_all(Signal::CONT);
    }

    /// Resumes the postmaster with SIGCONT.
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
}

fn launch(folder: &std::path::Path, port: u16, settings: &[String]) -> Result<Running, String> {
    let mut command = as_user(USER);
    command.push(find("postgres").display().to_string());
    command.extend(["-D".to_owned(), folder.join("data").display().to_string(), "-p".to_owned(), port.to_string()]);
    let socket = format!("unix_socket_directories={}", folder.display());
    // After a crash PostgreSQL flushes every file of the data folder. This setting does it in one call, which saves
    // three seconds.
    let flush = "recovery_init_sync_method=syncfs";
    let own = ["listen_addresses=127.0.0.1", &socket, "max_connections=300", flush];
    for setting in own.into_iter().chain(settings.iter().map(String::as_str)) {
        command.extend(["-c".to_owned(), setting.to_owned()]);
    }
    let running = Running::start(folder, &os(&command));
    let probe = find("pg_isready");
    let ready = wait_until_ready(&running, folder, port, || {
        let port = port.to_string();
        let mut asked = Command::new(&probe);
        asked.args(["-q", "-h", "127.0.0.1", "-p", &port]).stdout(Stdio::null()).status().unwrap().success()
    });
    running.unless_it_ended(ready)
}

/// Finds a binary. Debian keeps the server's binaries out of the path, in one folder per version, of which this takes
/// the newest. `ONCEKEY_POSTGRES` chooses a version, there or among [`further_servers`]; `ONCEKEY_POSTGRES_BIN` names
/// any other folder.
fn find(name: &str) -> PathBuf {
    let chosen = |root: PathBuf| {
        let versions = std::fs::read_dir(root).into_iter().flatten().flatten();
        let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
        if let Some(version) = Postgres::chosen_version() {
            versions.retain(|folder| folder.ends_with(&version));
        }
        versions.sort();
        versions.into_iter().rev().map(|folder| folder.join("bin"))
    };
    let named = std::env::var_os("ONCEKEY_POSTGRES_BIN").map(PathBuf::from);
    let installed = chosen(PathBuf::from("/usr/lib/postgresql"));
    let further = further_servers().into_iter().flat_map(|root| chosen(root.join("postgresql")));
    let mut folders = named.into_iter().chain(installed).chain(further);
    folders.find(|folder| folder.join(name).is_file()).map(|folder| folder.join(name)).unwrap_or_else(|| {
        // The path may lead to another version than the chosen one.
        assert!(
            Postgres::chosen_version().is_none(),
            "PostgreSQL {} is not installed: {ASK_SERVERS}",
            Postgres::chosen_version().unwrap_or_default()
        );
        binary(name, &[], PACKAGE)
    })
}
