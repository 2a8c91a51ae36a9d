//! The two shops.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::process::Process;
use crate::shop::command;

/// Two shops on one store. Each is killed and opened again by one fault at a time; the clients ask where it is.
#[derive(Debug)]
pub struct Apps {
    folder: PathBuf,
    flags: Vec<String>,
    shops: [Mutex<Process>; 2],
    addresses: [RwLock<SocketAddr>; 2],
}

/// How long a shop may take to open: its store may be away.
const OPENS_WITHIN: Duration = Duration::from_secs(60);

impl Apps {
    /// Opens both.
    ///
    /// # Panics
    /// If they do not open.
    pub fn open(folder: &Path, url: &str, lease: Duration) -> Self {
        let lease = format!("--lease={}ms", lease.as_millis());
        let flags = vec![format!("--store={url}"), lease, "--workers=2".to_owned(), "--retention=2h".to_owned()];
        let [one, other] = [(); 2].map(|()| open(folder, &flags));
        Self {
            folder: folder.to_owned(),
            flags,
            shops: [Mutex::new(one.0), Mutex::new(other.0)],
            addresses: [RwLock::new(one.1), RwLock::new(other.1)],
        }
    }

    /// Where one of them listens, or listened before it was killed.
    pub fn address(&self, number: usize) -> SocketAddr {
        *self.addresses[number].read()
    }

    /// SIGKILL, and opens it again.
    pub(super) fn kill(&self, number: usize) {
        let mut shop = self.shops[number].lock();
        shop.kill();
        let (process, address) = open(&self.folder, &self.flags);
        *shop = process;
        *self.addresses[number].write() = address;
    }

    /// SIGSTOP for a while.
    pub(super) fn pause(&self, number: usize, time: Duration) {
        let shop = self.shops[number].lock();
        shop.pause();
        std::thread::sleep(time);
        shop.resume();
    }
}

/// Opens a shop, again and again while its store is away.
fn open(folder: &Path, flags: &[String]) -> (Process, SocketAddr) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let deadline = Instant::now() + OPENS_WITHIN;
    loop {
        let mut command = command(folder, &flags);
        // One line each time that the store is away, which the faults see to.
        let mut process = Process::start(command.stderr(std::process::Stdio::null()));
        if let Some(url) = process.expect_within("The shop is open: http://", Duration::from_secs(10)) {
            return (process, url.trim_end_matches('/').parse().unwrap());
        }
        assert!(Instant::now() < deadline, "the shop does not open");
    }
}
