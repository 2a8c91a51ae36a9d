//! Whether the paths that were opened still lead to the file that is open.
//!
//! A process keeps the file that it opened. Once another stands at its path (a backup that was put back, a deployment that
//! brought a fresh one, a link that leads elsewhere), the next process claims the same keys there, and both run.
//!
//! The same happens where the files beside it are deleted, or where it has a second name: SQLite keeps what was committed
//! last in the write-ahead log, and its locks in the shared memory, both under the name that the file was opened by.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oncekey::backend::StoreError;
use parking_lot::Mutex;
use tracing::error;

/// How long an answer is taken for granted.
const CHECKED_EVERY: Duration = Duration::from_secs(1);

/// What tells a file from every other one of its machine: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;

        std::fs::metadata(path).map(|found| Self(found.dev(), found.ino()))
    }

    /// How many names the file has: each hard link is one more. A folder counts its own.
    #[cfg(unix)]
    pub(super) fn names_of(path: &Path) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;

        std::fs::metadata(path).map(|found| if found.is_file() { found.nlink() } else { 1 })
    }

    #[cfg(not(unix))]
    pub(super) fn names_of(_: &Path) -> io::Result<u64> {
        Ok(1)
    }

    /// Where files have no such numbers, any that is there is taken for the same.
    #[cfg(not(unix))]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|_| Self(0, 0))
    }
}

/// A file that SQLite keeps beside a database, by the end of its name.
pub(super) fn beside(database: &Path, end: &str) -> PathBuf {
    let mut path = database.to_owned().into_os_string();
    path.push(end);
    PathBuf::from(path)
}

/// The open file, and the paths by which it was opened.
#[derive(Debug)]
pub(super) struct Identity {
    file: FileId,
    /// The write-ahead log and the shared memory. They are there for as long as a connection is open.
    beside: [(PathBuf, FileId); 2],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    paths: Vec<PathBuf>,
    checked: Instant,
    found: Result<(), String>,
}

impl Identity {
    /// Of the file that is open and stands at `path`. One connection to it must stay open and have read from it: the last
    /// one that closes removes the files beside it.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let state = State { paths: vec![path.to_owned()], checked: Instant::now(), found: Ok(()) };
        let known = |path: PathBuf| FileId::of(&path).map(|file| (path, file));
        let beside = [known(beside(path, "-wal"))?, known(beside(path, "-shm"))?];
        Ok(Self { file: FileId::of(path)?, beside, state: Mutex::new(state) })
    }

    /// Whether the file that is open stands at `path`, whatever stands beside it.
    pub(super) fn stands_at(&self, path: &Path) -> bool {
        FileId::of(path).is_ok_and(|found| found == self.file)
    }

    /// The file was opened by this path as well, which may be a link.
    pub(super) fn add(&self, path: PathBuf) {
        let mut state = self.state.lock();
        if !state.paths.contains(&path) {
            state.paths.push(path);
        }
    }

    /// Looks at the paths, at most once a second.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] while one of them leads elsewhere or nowhere.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.checked.elapsed() >= CHECKED_EVERY {
            state.look(self);
        }
        state.found.clone().map_err(StoreError::Replaced)
    }

    /// The same, now.
    pub(super) fn check_now(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.look(self);
        state.found.clone().map_err(StoreError::Replaced)
    }
}

impl State {
    fn look(&mut self, identity: &Identity) {
        let paths = self.paths.iter().map(|path| (path, identity.file));
        let mut all = paths.chain(identity.beside.iter().map(|(path, file)| (path, *file)));
        let found = all.try_for_each(|(path, file)| match FileId::of(path) {
            Ok(found) if found == file => Ok(()),
            Ok(_) => Err(format!("another file stands at {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("the file is not at {} any more", path.display()))
            }
            // Not being allowed to look says nothing of the file.
            Err(_) => Ok(()),
        });
        if let (Ok(()), Err(reason)) = (&self.found, &found) {
            error!(reason, "the SQLite file was moved or replaced beneath this process: steps are refused");
        }
        (self.found, self.checked) = (found, Instant::now());
    }
}
