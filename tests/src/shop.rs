//! The shop as a process. It is built once, and started on a free port in its own folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::process::Process;

/// Returns the shop's binary: the one that `ONCEKEY_SHOP` names, or one built by the cargo that runs the tests.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(built) = std::env::var_os("ONCEKEY_SHOP") {
            return built.into();
        }
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let built = Command::new(cargo)
            .args(["build", "--package=web-example", "--bin=web-example", "--message-format=json"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the shop can't be built");
        let messages = String::from_utf8(built.stdout).unwrap();
        let found = messages
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find_map(|message| Some(message.get("executable")?.as_str()?.to_owned()));
        found.expect("cargo names the binary").into()
    })
}

/// Returns a command that starts the shop in `folder`.
pub fn command(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder).arg("--bind=127.0.0.1:0").args(flags).env("RUST_LOG", "off");
    command
}

/// A running shop.
#[derive(Debug)]
pub struct Shop {
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Shop {
    /// Starts a shop and waits until it is open.
    ///
    /// # Panics
    /// If it does not open.
    pub fn open(folder: &Path, flags: &[&str]) -> Self {
        let mut process = Process::start(&mut command(folder, flags));
        let url = process.expect("The shop is open: http://");
        let address = url.trim_end_matches('/').parse().unwrap();
        Self { process, address }
    }
}
