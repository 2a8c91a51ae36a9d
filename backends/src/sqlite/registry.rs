//! The process's open files. Each has exactly one writer, however often it is opened.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Weak};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use oncekey::Key;
use parking_lot::Mutex;

use super::clock::Clock;
use super::connection::Opener;
use super::identity::{FileId, Identity};
use super::job::Job;
use super::log::{self, Log};
use super::reader::Reader;
use super::session::Session;
use super::watch::Lookout;
use super::writer::Writer;
use super::{SqliteBuilder, SqliteOpenError, Synchronous};
use crate::Finding;
use crate::waiters::Waiters;

/// One open file. When it is dropped, each of its threads finishes its waiting work and ends.
pub(super) struct Store {
    /// Stays open so that no other connection is the last one to close: the last one removes the files beside the
    /// database.
    _kept_open: Mutex<Session>,
    pub(super) path: PathBuf,
    pub(super) writes: Sender<Box<dyn Job>>,
    pub(super) reads: Sender<Box<dyn Job>>,
    pub(super) clock: Clock,
    pub(super) identity: Arc<Identity>,
    synchronous: Synchronous,
    wal_limit: u64,
    pub(super) waiters: Arc<Waiters<Key>>,
    pub(super) lookout: Sender<()>,
    /// Counts the committed transactions.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests of group commit read it"))]
    pub(super) commits: Arc<AtomicU64>,
}

impl Store {
    pub(super) fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(replaced) = self.identity.check_now() {
            let why = "steps are refused, since another process may find other records there";
            findings.push(Finding::new("the file", replaced.to_string(), "the one that was opened", why));
        }
        let length = std::fs::metadata(log::log_of(&self.path)).map_or(0, |log| log.len());
        let long = log::long(self.wal_limit);
        if length > long {
            let (found, wanted) = (format!("{length} bytes"), format!("under {long} bytes"));
            let why = "a reader that stays in its transaction keeps the write-ahead log from being written back: reads get \
                       slower, and beyond wal_limit new claims are refused";
            findings.push(Finding::new("the write-ahead log", found, wanted, why));
        }
        if self.synchronous == Synchronous::Normal {
            let why = "after a power cut operations whose outcome was answered run again";
            findings.push(Finding::new("synchronous", "NORMAL", "FULL", why));
        }
        findings
    }
}

/// The lock of one path. A file whose opening waits for its lock does not block the opening of other files.
type Opening = Arc<Mutex<Weak<Store>>>;

static OPEN: LazyLock<Mutex<HashMap<PathBuf, Opening>>> = LazyLock::new(Mutex::default);

/// Returns the process's one store for the file, and opens the file if it is not open yet.
pub(super) fn open(options: &SqliteBuilder) -> Result<Arc<Store>, SqliteOpenError> {
    let path = canonical(&options.path)?;
    // The path as given is watched too, because a link may lead elsewhere later.
    let named = std::path::absolute(&options.path)
        .map_err(|source| SqliteOpenError::Path { path: options.path.clone(), source })?;
    let opening = {
        let mut open = OPEN.lock();
        // An entry without a store or an opener belongs to a closed file.
        open.retain(|_, opening| Arc::strong_count(opening) > 1 || opening.lock().strong_count() > 0);
        Arc::clone(open.entry(path.clone()).or_default())
    };
    let mut store = opening.lock();
    if let Some(store) = store.upgrade() {
        match store.identity.check_now() {
            Ok(()) => {
                store.identity.add(named);
                return Ok(store);
            }
            // The open file was moved away, and the path leads to another file: open that one.
            Err(_) if !store.identity.stands_at(&path) => {}
            // The file has lost its log. Within one process, SQLite would share the old connections' log with new ones.
            Err(error) => return Err(SqliteOpenError::Replaced { path, reason: error.to_string() }),
        }
    }
    refuse_second_name(&path)?;
    let opened = Arc::new(start(Opener::new(path, options)?, options)?);
    opened.identity.add(named);
    *store = Arc::downgrade(&opened);
    Ok(opened)
}

/// Returns the one path by which a file is known, whatever its given name. For a file that does not exist yet, it
/// resolves the folder. (It does not open the file: closing it would release the locks that SQLite holds on it in this
/// process.)
fn canonical(path: &Path) -> Result<PathBuf, SqliteOpenError> {
    if path.as_os_str().is_empty() || path.as_os_str() == ":memory:" {
        return Err(SqliteOpenError::InMemory);
    }
    let failed = |source| SqliteOpenError::Path { path: path.to_owned(), source };
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| failed(error))?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            folder.canonicalize().map(|folder| folder.join(name)).map_err(failed)
        }
        found => found.map_err(failed),
    }
}

/// Refuses a file with several names. SQLite keeps a log and locks for each name, so two processes that use different
/// names would claim the same keys.
fn refuse_second_name(path: &Path) -> Result<(), SqliteOpenError> {
    match FileId::names_of(path) {
        Ok(names) if names > 1 => Err(SqliteOpenError::Linked { path: path.to_owned(), names }),
        // Either the file does not exist yet, or SQLite will report what is wrong with it.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn start(mut opener: Opener, options: &SqliteBuilder) -> Result<Store, SqliteOpenError> {
    let session = opener.writer()?;
    let kept_open = opener.reader(session.clock())?;
    let found = Identity::of(&opener.path);
    let identity = Arc::new(found.map_err(|source| SqliteOpenError::Path { path: opener.path.clone(), source })?);
    // From here on the opener opens only this file.
    opener.identity = Some(Arc::clone(&identity));
    let clock = session.clock().clone();
    let (writes, write_queue) = bounded(options.queue_depth);
    let (reads, read_queue) = bounded(options.queue_depth);
    let (lookout, calls) = bounded(1);
    let (waiters, commits) = (Arc::<Waiters<Key>>::default(), Arc::<AtomicU64>::default());

    for _ in 0..options.readers {
        let session = Some(opener.reader(&clock)?);
        let reader = Reader { queue: read_queue.clone(), opener: opener.clone(), clock: clock.clone(), session };
        spawn("oncekey-sqlite-reader", move || reader.run())?;
    }
    let watching = Lookout { calls, waiters: Arc::clone(&waiters), opener: opener.clone(), clock: clock.clone() };
    spawn("oncekey-sqlite-watch", move || watching.run())?;
    let path = opener.path.clone();
    let log = Log::new(&path, options.wal_limit, options.busy_timeout);
    let writer = Writer {
        queue: write_queue,
        max_batch: options.max_batch,
        opener,
        session: Some(session),
        log,
        waiters: Arc::clone(&waiters),
        commits: Arc::clone(&commits),
    };
    spawn("oncekey-sqlite-writer", move || writer.run())?;
    let SqliteBuilder { synchronous, wal_limit, .. } = *options;
    let _kept_open = Mutex::new(kept_open);
    Ok(Store { _kept_open, path, writes, reads, clock, identity, synchronous, wal_limit, waiters, lookout, commits })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), SqliteOpenError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(SqliteOpenError::Thread)
}
