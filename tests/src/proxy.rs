//! A proxy in front of a server that loses data. It can swallow everything silently, or cut a connection when an answer
//! is on its way, either any answer or that to a COMMIT. It can also hold a statement back and let it through later.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

/// A proxy in front of a server on 127.0.0.1. It ends with the process. Clones are handles of the same proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    swallows: AtomicBool,
    refuses: AtomicBool,
    /// The number of refused connections.
    refused: AtomicUsize,
    /// The number of connections that have swallowed something.
    swallowed: AtomicUsize,
    /// The number of answers still to cut off.
    cuts: AtomicUsize,
    /// The number of commits whose answers are still to be cut off.
    commits: AtomicUsize,
    /// The number of commits after which their connections are still to be closed.
    left_alone: AtomicUsize,
    /// The word on which a connection is held back.
    word: Mutex<Option<&'static str>>,
    let_go: Condvar,
    /// The number of connections held back.
    held: AtomicUsize,
}

impl Faults {
    /// Waits if this message must be held back.
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

/// Takes one from the remaining count.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Proxy {
    /// Starts a proxy in front of the server at `port`. At first it passes everything on.
    ///
    /// # Panics
    /// If it cannot listen.
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

    /// Returns its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Swallows all data from now on. A connection that has lost something stays silent forever, as if the peer's
    /// machine were gone.
    pub fn swallow(&self) {
        self.faults.swallows.store(true, Ordering::SeqCst);
    }

    /// Closes new connections at once from now on.
    pub fn refuse(&self) {
        self.faults.refuses.store(true, Ordering::SeqCst);
    }

    /// Lets new connections pass from now on.
    pub fn heal(&self) {
        self.faults.refuses.store(false, Ordering::SeqCst);
        self.faults.swallows.store(false, Ordering::SeqCst);
    }

    /// Returns how many connections were refused.
    pub fn refused(&self) -> usize {
        self.faults.refused.load(Ordering::SeqCst)
    }

    /// Makes the proxy watch for `word` in what clients send. The proxy holds the message that contains it, and every
    /// later message on that connection.
    pub fn hold(&self, word: &'static str) {
        *self.faults.word.lock() = Some(word);
    }

    /// Lets what was held back continue to the server.
    pub fn let_go(&self) {
        *self.faults.word.lock() = None;
        self.faults.let_go.notify_all();
    }

    /// Returns how many connections have been held back.
    pub fn held(&self) -> usize {
        self.faults.held.load(Ordering::SeqCst)
    }

    /// Closes the connections of the next commits as soon as the commit is passed on, while the server executes it.
    pub fn leave_commits_alone(&self, commits: usize) {
        self.faults.left_alone.store(commits, Ordering::SeqCst);
    }

    /// Returns how many connections have lost something.
    pub fn swallowed(&self) -> usize {
        self.faults.swallowed.load(Ordering::SeqCst)
    }

    /// Drops the next answers, and closes their connections.
    pub fn cut_answers(&self, answers: usize) {
        self.faults.cuts.store(answers, Ordering::SeqCst);
    }

    /// Returns how many answers are still to be cut off.
    pub fn cuts_left(&self) -> usize {
        self.faults.cuts.load(Ordering::SeqCst)
    }

    /// Drops the answers to the next commits, and closes their connections. Only the server knows whether they took
    /// place.
    pub fn cut_commits(&self, commits: usize) {
        self.faults.commits.store(commits, Ordering::SeqCst);
    }

    /// Returns how many commits' answers are still to be cut off.
    pub fn commits_left(&self) -> usize {
        self.faults.commits.load(Ordering::SeqCst)
    }
}

/// Returns whether one of these statements is a COMMIT. `READ COMMITTED` is not one.
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
                // A COMMIT is a small message, which arrives in one piece.
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
