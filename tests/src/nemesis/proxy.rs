//! The network between a shop and the server. It can cut every connection, and swallow what is sent on all of them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// A proxy in front of a server on 127.0.0.1. It ends with the process.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: Arc<Network>,
}

#[derive(Debug, Default)]
struct Network {
    state: Mutex<State>,
    opened: Condvar,
    /// How many pieces were held back since the black hole began.
    swallowed: AtomicU64,
    /// How many pieces the shops have sent so far.
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    black_hole: bool,
    next_id: u64,
    open: Vec<(u64, TcpStream, TcpStream)>,
}

impl Network {
    /// Waits while there is a black hole.
    fn wait_for_passage(&self) {
        let mut state = self.state.lock();
        if state.black_hole {
            self.swallowed.fetch_add(1, Ordering::SeqCst);
            self.opened.wait_while(&mut state, |state| state.black_hole);
        }
    }

    fn cut(&self) -> usize {
        let open = std::mem::take(&mut self.state.lock().open);
        for (_, client, server) in &open {
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
        open.len()
    }
}

impl Proxy {
    /// Starts a proxy in front of the server at `port`.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Arc::new(Network::default());
        let of_listener = Arc::clone(&network);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let network = Arc::clone(&of_listener);
                std::thread::spawn(move || connect(&network, client, server));
            }
        });
        Self { port, network }
    }

    /// Returns its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections, and returns how many there were.
    pub fn cut(&self) -> usize {
        self.network.cut()
    }

    /// Returns how many pieces the shops have sent so far. It shows whether a fault affected a shop.
    pub fn sent(&self) -> u64 {
        self.network.sent.load(Ordering::SeqCst)
    }

    /// Starts a black hole: nothing passes and nothing reports it. Sent data is accepted, and so are connections.
    pub fn begin_black_hole(&self) {
        self.network.swallowed.store(0, Ordering::SeqCst);
        self.network.state.lock().black_hole = true;
    }

    /// Ends the black hole, and returns how much it held back. Unless the connections are cut, the held data arrives
    /// late.
    pub fn end_black_hole(&self, and_cut: bool) -> u64 {
        if and_cut {
            self.network.cut();
        }
        self.network.state.lock().black_hole = false;
        self.network.opened.notify_all();
        self.network.swallowed.load(Ordering::SeqCst)
    }
}

fn connect(network: &Arc<Network>, client: TcpStream, port: u16) {
    network.wait_for_passage();
    // If the server is away, the client's connection is accepted and then closed.
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let clones = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
    let (Ok(client_in), Ok(server_in), Ok(client_kept), Ok(server_kept)) = clones else { return };
    let id = {
        let mut state = network.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.open.push((id, client_kept, server_kept));
        id
    };
    let upwards = Arc::clone(network);
    let up = std::thread::spawn(move || pass(&upwards, client_in, server, &upwards.sent));
    pass(network, server_in, client, &AtomicU64::new(0));
    let _ = up.join();
    network.state.lock().open.retain(|(other, ..)| *other != id);
}

fn pass(network: &Network, mut from: TcpStream, mut to: TcpStream, pieces: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        pieces.fetch_add(1, Ordering::SeqCst);
        network.wait_for_passage();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The end of a connection does not pass a black hole either.
    network.wait_for_passage();
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
