//! A proxy before a server that loses what passes through it: it swallows everything without a word, or cuts a connection
//! when an answer is on its way, to anything or to a COMMIT. It can also hold a statement back and let it through later.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

/// Stands before a server on 127.0.0.1. It ends with the process. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    swallows: AtomicBool,
    refuses: AtomicBool,
    /// Connections that were refused.
    refused: AtomicUsize,
    /// Connections that have swallowed something.
    swallowed: AtomicUsize,
    /// Answers that are still to be cut off.
    cuts: AtomicUsize,
    /// Commits whose answers are still to be cut off.
    commits: AtomicUsize,
    /// Commits after which their connections are still to be closed.
    left_alone: AtomicUsize,
    /// What a connection is held back by.
    word: Mutex<Option<&'static str>>,
    let_go: Condvar,
    /// Connections that are held back.
    held: AtomicUsize,
}

impl Faults {
    /// Waits if this is to be held back.
    fn hold_back(&self, message: &[u8]) {
        let mut word = self.word.lock();
        let holds = |word: &str| message.windows(word.len()).any(|window| window == word.as_bytes());
        if word.is_some_and(holds) {
            self.held.fetch_add(1, Ordering::SeqCst);
            while word.is_some() {
                self.let_go.wait(&mut word);
            }
        }
    }
}

/// Takes one from what is left.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Proxy {
    /// Starts one before the server at `port`. It passes everything on until it is told otherwise.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.refuses.load(Ordering::SeqCst) {
                    shared.refused.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                pass_on(&client, &server, &shared);
            }
        });
        Self { port, faults }
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on whatever comes is swallowed. A connection that has lost something never speaks again, as one whose
    /// peer's machine is gone.
    pub fn swallow(&self) {
        self.faults.swallows.store(true, Ordering::SeqCst);
    }

    /// From now on new connections are closed at once.
    pub fn refuse(&self) {
        self.faults.refuses.store(true, Ordering::SeqCst);
    }

    /// From now on new connections pass.
    pub fn heal(&self) {
        self.faults.refuses.store(false, Ordering::SeqCst);
        self.faults.swallows.store(false, Ordering::SeqCst);
    }

    /// How many connections were refused.
    pub fn refused(&self) -> usize {
        self.faults.refused.load(Ordering::SeqCst)
    }

    /// From now on a connection on which this word is sent to the server is held back, that message and all that follows.
    pub fn hold(&self, word: &'static str) {
        *self.faults.word.lock() = Some(word);
    }

    /// What is held back goes on to the server.
    pub fn let_go(&self) {
        *self.faults.word.lock() = None;
        self.faults.let_go.notify_all();
    }

    /// How many connections have been held back.
    pub fn held(&self) -> usize {
        self.faults.held.load(Ordering::SeqCst)
    }

    /// The connections of the next commits are closed as soon as the commit is passed on, while the server is at it.
    pub fn leave_commits_alone(&self, commits: usize) {
        self.faults.left_alone.store(commits, Ordering::SeqCst);
    }

    /// How many connections have lost something.
    pub fn swallowed(&self) -> usize {
        self.faults.swallowed.load(Ordering::SeqCst)
    }

    /// The next answers are kept, and their connections closed.
    pub fn cut_answers(&self, answers: usize) {
        self.faults.cuts.store(answers, Ordering::SeqCst);
    }

    /// How many answers are still to be cut off.
    pub fn cuts_left(&self) -> usize {
        self.faults.cuts.load(Ordering::SeqCst)
    }

    /// The answers to the next commits are kept, and their connections closed: whether they took place is known to the
    /// server alone.
    pub fn cut_commits(&self, commits: usize) {
        self.faults.commits.store(commits, Ordering::SeqCst);
    }

    /// How many commits' answers are still to be cut off.
    pub fn commits_left(&self) -> usize {
        self.faults.commits.load(Ordering::SeqCst)
    }
}

/// Whether a statement of these is a COMMIT. `READ COMMITTED` is none.
fn has_commit(bytes: &[u8]) -> bool {
    let found = bytes.windows(6).enumerate().filter(|(_, window)| *window == b"COMMIT");
    found.map(|(at, _)| at).any(|at| !bytes[at..].starts_with(b"COMMITTED"))
}

fn pass_on(client: &TcpStream, server: &TcpStream, faults: &Arc<Faults>) {
    let (is_dead, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for (from, to, is_answer) in [(client, server, false), (server, client, true)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let (faults, is_dead, commits) = (Arc::clone(faults), Arc::clone(&is_dead), Arc::clone(&commits));
        std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if is_dead.load(Ordering::SeqCst) {
                    continue;
                }
                if faults.swallows.load(Ordering::SeqCst) {
                    is_dead.store(true, Ordering::SeqCst);
                    faults.swallowed.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                if !is_answer {
                    faults.hold_back(&buffer[..read]);
                }
                // One small message, which comes in one piece.
                let is_commit = !is_answer && has_commit(&buffer[..read]);
                if is_commit && take_one(&faults.commits) {
                    commits.store(true, Ordering::SeqCst);
                }
                if is_commit && take_one(&faults.left_alone) {
                    let _ = to.write_all(&buffer[..read]);
                    break;
                }
                let is_cut = is_answer && (commits.load(Ordering::SeqCst) || take_one(&faults.cuts));
                if is_cut || to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
        });
    }
}
