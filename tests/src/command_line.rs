//! The command line `oncekey` as a process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The result of running the command line.
#[derive(Debug)]
pub struct Called {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub told: String,
    /// Its standard error.
    pub errors: String,
}

/// Returns the binary that was built with the tests, or builds it now.
///
/// # Panics
/// If it cannot be built.
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

/// Runs the command line on a store. Standard input is empty, so questions get no answer.
///
/// # Panics
/// If it cannot be started.
pub fn call(store: &str, arguments: &[&str]) -> Called {
    let mut command = Command::new(binary());
    command.args(arguments).env("ONCEKEY_STORE", store).env("USER", "ada").stdin(Stdio::null());
    let ended = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Called { code: ended.status.code().unwrap(), told: text(ended.stdout), errors: text(ended.stderr) }
}
