//! The two shops.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::process::{PATIENCE, Process};
use crate::shop::command;

/// Two shops on one store. One fault at a time kills a shop and opens it again; the clients look up its address.
#[derive(Debug)]
pub struct Apps {
    folder: PathBuf,
    flags: [Vec<String>; 2],
    shops: [Mutex<Opened>; 2],
    addresses: [RwLock<SocketAddr>; 2],
}

/// An opened shop: its process, and its log.
#[derive(Debug)]
struct Opened {
    process: Process,
    log: PathBuf,
}

/// The claims on which nothing ran, according to the logs of all shops.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    /// The keys of all such claims.
    pub(super) begun: HashSet<String>,
    /// The keys of the claims that a shop had not freed yet when it was killed. No process is left that knows that
    /// nothing ran.
    pub(super) never_freed: HashSet<String>,
}

/// The log of claims on which nothing ran. Each start of a shop has its own file.
const LOG_FILTER: &str = "off,oncekey::freeing=debug";
const LOG_EXTENSION: &str = "log";

/// How long a shop may take to open. Its store may be away.
const OPENS_WITHIN: Duration = Duration::from_secs(60);

impl Apps {
    /// Opens both shops.
    ///
    /// # Panics
    /// If they do not open.
    pub fn open(folder: &Path, urls: &[String; 2], lease: Duration) -> Self {
        Self::open_with(folder, urls, lease, &[])
    }

    /// Opens both shops with more flags.
    ///
    /// # Panics
    /// If they do not open.
    pub fn open_with(folder: &Path, urls: &[String; 2], lease: Duration, more: &[&str]) -> Self {
        let lease = format!("--lease={}ms", lease.as_millis());
        let flags = urls.each_ref().map(|url| {
            let own = [format!("--store={url}"), lease.clone(), "--workers=2".to_owned(), "--retention=2h".to_owned()];
            own.into_iter().chain(more.iter().map(|flag| (*flag).to_owned())).collect::<Vec<_>>()
        });
        let [one, other] = flags.each_ref().map(|flags| open(folder, flags));
        Self {
            folder: folder.to_owned(),
            flags,
            shops: [Mutex::new(one.0), Mutex::new(other.0)],
            addresses: [RwLock::new(one.1), RwLock::new(other.1)],
        }
    }

    /// Returns where a shop listens, or listened before it was killed.
    pub fn address(&self, number: usize) -> SocketAddr {
        *self.addresses[number].read()
    }

    /// Kills a shop with SIGKILL, and opens it again.
    pub(super) fn kill(&self, number: usize) {
        let mut shop = self.shops[number].lock();
        shop.process.kill();
        let address;
        (*shop, address) = open(&self.folder, &self.flags[number]);
        *self.addresses[number].write() = address;
    }

    /// Pauses a shop with SIGSTOP for a while.
    pub(super) fn pause(&self, number: usize, time: Duration) {
        let shop = self.shops[number].lock();
        shop.process.pause();
        std::thread::sleep(time);
        shop.process.resume();
    }

    /// Waits until the open shops have freed every claim on which nothing ran. Returns false if they did not.
    pub(super) fn have_freed_all(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let has_freed = |shop: &Mutex<Opened>| read(&shop.lock().log).never_freed.is_empty();
        while !self.shops.iter().all(has_freed) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// Returns what the logs of all shops say.
    pub(super) fn freeing(&self) -> Freeing {
        let mut all = Freeing::default();
        for file in std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == LOG_EXTENSION) {
                let Freeing { begun, never_freed } = read(&file);
                all.begun.extend(begun);
                all.never_freed.extend(never_freed);
            }
        }
        all
    }
}

/// Opens a shop, and retries while its store is away.
fn open(folder: &Path, flags: &[String]) -> (Opened, SocketAddr) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let deadline = Instant::now() + OPENS_WITHIN;
    loop {
        let mut command = command(folder, &flags);
        let log = next_log(folder);
        command.env("RUST_LOG", LOG_FILTER).stderr(File::create(&log).unwrap());
        let mut process = Process::start(&mut command);
        if let Some(url) = process.expect_within("The shop is open: http://", Duration::from_secs(10)) {
            return (Opened { process, log }, url.trim_end_matches('/').parse().unwrap());
        }
        assert!(Instant::now() < deadline, "the shop does not open");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn next_log(folder: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!("shop-{}.{LOG_EXTENSION}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn read(log: &Path) -> Freeing {
    parse(&String::from_utf8_lossy(&std::fs::read(log).unwrap()))
}

fn parse(log: &str) -> Freeing {
    let mut found = Freeing::default();
    for line in log.lines() {
        // A line that a kill truncated names no key.
        let Some((said, key)) = line.rsplit_once("key=") else { continue };
        let key = key.rsplit('/').next().unwrap_or(key).to_owned();
        if said.contains("to be freed") {
            found.begun.insert(key.clone());
            found.never_freed.insert(key);
        } else if said.contains("freed") {
            found.never_freed.remove(&key);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_names_the_keys_that_were_never_freed() {
        let log = "DEBUG oncekey::freeing: the claim is to be freed: nothing happened by it key=a/key-1-7\n\
                   DEBUG oncekey::freeing: the claim is to be freed: nothing happened by it key=a/key-1-8\n\
                   DEBUG oncekey::freeing: the claim is freed key=a/key-1-7\nDEBUG oncekey::freei";
        let Freeing { begun, never_freed } = parse(log);
        assert_eq!(begun, HashSet::from(["key-1-7".to_owned(), "key-1-8".to_owned()]));
        assert_eq!(never_freed, HashSet::from(["key-1-8".to_owned()]));
    }
}
