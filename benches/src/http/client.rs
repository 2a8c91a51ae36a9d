//! The load: keep-alive connections that each send a request, wait for its response, and send the next.

use std::cell::Cell;
use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::{ANSWER, Kind};
use crate::BODY;

/// The number of connections, and so of concurrent requests.
pub const CONNECTIONS: usize = 32;
/// The number of keys that replays use again and again.
pub const REPLAYED_KEYS: u64 = 1_024;

const KEY_DIGITS: usize = 20;

/// The client's state between its turns: which keys are used.
#[derive(Debug)]
pub struct Client {
    port: u16,
    next_key: u64,
}

impl Client {
    /// Returns a client that has completed the keys for its replays.
    ///
    /// # Errors
    /// The server does not answer as expected.
    pub fn new(port: u16) -> io::Result<Self> {
        let mut client = Self { port, next_key: 0 };
        // Uses each key once. The time that this takes does not matter.
        while client.next_key < REPLAYED_KEYS {
            client.turn(Kind::FirstUse, Duration::from_millis(100))?;
        }
        Ok(client)
    }

    /// Sends requests of one kind for the time `turn`, and returns how many were answered per second.
    ///
    /// # Errors
    /// The server does not answer as expected.
    pub fn turn(&mut self, kind: Kind, turn: Duration) -> io::Result<f64> {
        let keys = Rc::new(Cell::new(if kind == Kind::Replay { 0 } else { self.next_key }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let rate = tasks.block_on(&runtime, async {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
                stream.set_nodelay(true)?;
                streams.push(stream);
            }
            let began = Instant::now();
            let connections: Vec<_> = streams
                .into_iter()
                .map(|stream| {
                    let keys = Rc::clone(&keys);
                    tokio::task::spawn_local(async move { requests(stream, kind, &keys, began, turn).await })
                })
                .collect();
            let mut answered = 0;
            for connection in connections {
                answered += connection.await.map_err(io::Error::other)??;
            }
            Ok::<_, io::Error>(answered as f64 / began.elapsed().as_secs_f64())
        })?;
        if kind != Kind::Replay {
            self.next_key = keys.get();
        }
        Ok(rate)
    }
}

/// Sends the requests of one connection, and returns how many were answered.
async fn requests(
    mut stream: TcpStream,
    kind: Kind,
    keys: &Cell<u64>,
    began: Instant,
    turn: Duration,
) -> io::Result<usize> {
    let (mut request, digits) = request(kind);
    let mut response = [0; 2_048];
    let mut answered = 0;
    while began.elapsed() < turn {
        let key = keys.replace(keys.get() + 1);
        let key = if kind == Kind::Replay { key % REPLAYED_KEYS } else { key };
        write_digits(&mut request[digits..digits + KEY_DIGITS], key);
        stream.write_all(&request).await?;
        let mut read = 0;
        // Each connection has one request in flight, so the last bytes read are the end of its response.
        while !response[..read].ends_with(ANSWER.as_bytes()) {
            let more = stream.read(&mut response[read..]).await?;
            if more == 0 {
                return Err(io::Error::other(format!("not an answer: {}", String::from_utf8_lossy(&response[..read]))));
            }
            read += more;
        }
        if answered == 0 {
            check(&response[..read], kind)?;
        }
        answered += 1;
    }
    Ok(answered)
}

/// Returns a request, and the position of its key.
fn request(kind: Kind) -> (Vec<u8>, usize) {
    let mut request = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}: ",
        kind.path(),
        BODY.len(),
        kind.header(),
    )
    .into_bytes();
    let digits = request.len();
    request.extend_from_slice(&[b'0'; KEY_DIGITS]);
    request.extend_from_slice(b"\r\n\r\n");
    request.extend_from_slice(BODY);
    (request, digits)
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Checks that the server does what is being measured.
fn check(response: &[u8], kind: Kind) -> io::Result<()> {
    let text = String::from_utf8_lossy(response).to_ascii_lowercase();
    let replayed = text.contains("\r\nidempotent-replayed: true\r\n");
    if !text.starts_with("http/1.1 200 ") || replayed != (kind == Kind::Replay) {
        return Err(io::Error::other(format!("not an answer for {kind:?}: {text}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_send_as_many_bytes() {
        let lengths = [Kind::Unguarded, Kind::FirstUse, Kind::Replay, Kind::Bare].map(|kind| request(kind).0.len());
        assert!(lengths.iter().all(|length| *length == lengths[0]));
    }

    #[test]
    fn keys_are_padded() {
        let mut place = [0; 4];
        write_digits(&mut place, 17);
        assert_eq!(&place, b"0017");
    }
}
