//! Several processes on one file.

use std::env;
use std::process::{Command, Stdio};

use oncekey::backend::{Backend as _, Stats};
use oncekey::record::Owner;

use super::*;

/// Tells a process that this test binary started what to do.
const FILE: &str = "ONCEKEY_TEST_FILE";

#[test]
fn ten_processes_open_a_fresh_file_at_once_and_one_wins_each_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let start = || {
        let mut process = Command::new(env::current_exe().unwrap());
        process.args(["--exact", "processes::one_of_ten", "--ignored", "--nocapture"]);
        process.env(FILE, &path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..10).map(|_| start()).collect();
    let mut won = 0;
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        won += text.matches("<won>").count();
    }
    assert_eq!(won, 20);
    let backend = SqliteBackend::open(&path).unwrap();
    let stats = actix_rt::System::new().block_on(async move { backend.stats(Stats).await.unwrap() });
    assert_eq!(stats.in_progress, 20);
}

#[test]
#[ignore = "is started by the test above, in processes of its own"]
#[expect(clippy::print_stdout, reason = "it is how the process tells the test")]
fn one_of_ten() {
    let backend = SqliteBackend::open(env::var_os(FILE).unwrap()).unwrap();
    actix_rt::System::new().block_on(async move {
        for n in 0..20 {
            if is_claimed(&backend, claim(&key(n), Owner::random())).await {
                println!("<won>");
            }
        }
    });
}

#[test]
fn twenty_threads_open_a_fresh_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    std::thread::scope(|threads| {
        for n in 0..20 {
            let path = &path;
            threads.spawn(move || match n % 2 {
                0 => drop(SqliteBackend::open(path).unwrap()),
                _ => {
                    let mut other = connect(path);
                    other.batch_execute("BEGIN IMMEDIATE; COMMIT").unwrap();
                }
            });
        }
    });
}
