//! A proxy that cuts a connection when its COMMIT has been answered, and keeps the answer: whether it took place is known
//! to the server alone.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stands before a server on 127.0.0.1. It ends with the process.
#[derive(Debug)]
pub struct Cutter {
    port: u16,
    armed: Arc<AtomicUsize>,
}

impl Cutter {
    /// Starts one before the server at `port`. It passes everything on until it is [armed](Self::arm).
    ///
    /// # Panics
    /// If it can't listen.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&armed);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                pass_on(client, server, Arc::clone(&counter));
            }
        });
        Self { port, armed }
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the next `commits` connections at their COMMIT.
    pub fn arm(&self, commits: usize) {
        self.armed.store(commits, Ordering::SeqCst);
    }

    /// How many are still to be cut.
    pub fn left(&self) -> usize {
        self.armed.load(Ordering::SeqCst)
    }
}

fn pass_on(client: TcpStream, server: TcpStream, armed: Arc<AtomicUsize>) {
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (mut from_server, mut to_client) = (server, client);
    let cutting = Arc::new(AtomicUsize::new(0));
    let cut = Arc::clone(&cutting);
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(read @ 1..) = from_client.read(&mut buffer) {
            // One small message, which comes in one piece.
            let is_commit = buffer[..read].windows(6).any(|window| window == b"COMMIT");
            if is_commit && armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                cut.store(1, Ordering::SeqCst);
            }
            if to_server.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(read @ 1..) = from_server.read(&mut buffer) {
            if cutting.load(Ordering::SeqCst) == 1 || to_client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = (to_client.shutdown(Shutdown::Both), from_server.shutdown(Shutdown::Both));
    });
}
