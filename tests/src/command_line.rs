//! The command line `oncekey` as a process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a call of the command line gave.
#[derive(Debug)]
pub struct Called {
    /// Its exit code.
    pub code: i32,
    /// Its output.
    pub told: String,
    /// What it said of errors.
    pub errors: String,
}

/// The binary: the one that was built with the tests, or else built now.
///
/// # Panics
/// If it can't be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = std::env::current_exe().unwrap();
        let built = built.parent().and_then(Path::parent).unwrap().join("oncekey");
        if built.exists() {
            return built;
        }
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let status = Command::new(cargo)
            .args(["build", "--workspace", "--all-features", "--bin=oncekey"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.unwrap().success() && built.exists(), "the command line can't be built");
        built
    })
}

/// Calls it on a store. Nobody can answer its questions.
///
/// # Panics
/// If it can't be started.
pub fn call(store: &str, arguments: &[&str]) -> Called {
    let mut command = Command::new(binary());
    command.args(arguments).env("ONCEKEY_STORE", store).env("USER", "ada").stdin(Stdio::null());
    let ended = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Called { code: ended.status.code().unwrap(), told: text(ended.stdout), errors: text(ended.stderr) }
}
