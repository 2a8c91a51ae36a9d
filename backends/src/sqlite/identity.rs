//! Checks that the paths by which a file was opened still lead to it.
//!
//! A process keeps the file that it opened. The path may lead to another file later: a restored backup, a deployment
//! that brought a fresh file, a link that changed. Then the next process claims the same keys in that file, and both
//! run.
//!
//! The same happens if the files beside it are deleted, or if it has a second name. SQLite keeps the last commits in
//! the write-ahead log and its locks in the shared memory, both under the name by which the file was opened.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oncekey::backend::StoreError;
use parking_lot::Mutex;
use tracing::error;

/// How long the result of a check is reused.
const CHECKED_EVERY: Duration = Duration::from_secs(1);

/// Device and inode, which identify a file on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;

        std::fs::metadata(path).map(|found| Self(found.dev(), found.ino()))
    }

    /// Returns the number of the file's names: each hard link is one more. A folder counts as one.
    #[cfg(unix)]
    pub(super) fn names_of(path: &Path) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt as _;

        std::fs::metadata(path).map(|found| if found.is_file() { found.nlink() } else { 1 })
    }

    #[cfg(not(unix))]
    pub(super) fn names_of(_: &Path) -> io::Result<u64> {
        Ok(1)
    }

    /// Accepts any existing file as the same where the platform has no such numbers.
    #[cfg(not(unix))]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|_| Self(0, 0))
    }
}

/// Returns the path of a file that SQLite keeps beside a database: the database's name with `end` appended.
pub(super) fn beside(database: &Path, end: &str) -> PathBuf {
    let mut path = database.to_owned().into_os_string();
    path.push(end);
    PathBuf::from(path)
}

/// The open file, and the paths by which it was opened.
#[derive(Debug)]
pub(super) struct Identity {
    file: FileId,
    /// The write-ahead log and the shared memory. They exist as long as a connection is open.
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
    /// Identifies the open file at `path`. One connection that has read from it must stay open: the last connection to
    /// close removes the files beside it.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let state = State { paths: vec![path.to_owned()], checked: Instant::now(), found: Ok(()) };
        let known = |path: PathBuf| FileId::of(&path).map(|file| (path, file));
        let beside = [known(beside(path, "-wal"))?, known(beside(path, "-shm"))?];
        Ok(Self { file: FileId::of(path)?, beside, state: Mutex::new(state) })
    }

    /// Whether `path` leads to the open file, whatever is beside it.
    pub(super) fn stands_at(&self, path: &Path) -> bool {
        FileId::of(path).is_ok_and(|found| found == self.file)
    }

    /// Adds another path by which the file was opened; it may be a link.
    pub(super) fn add(&self, path: PathBuf) {
        let mut state = self.state.lock();
        if !state.paths.contains(&path) {
            state.paths.push(path);
        }
    }

    /// Checks the paths, at most once a second.
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

    /// Checks the paths now.
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
            // A missing permission to look says nothing about the file.
            Err(_) => Ok(()),
        });
        if let (Ok(()), Err(reason)) = (&self.found, &found) {
            error!(reason, "the SQLite file was moved or replaced beneath this process: steps are refused");
        }
        (self.found, self.checked) = (found, Instant::now());
    }
}
