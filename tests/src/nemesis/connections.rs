//! A client's connections to the shops.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::apps::Apps;
use super::history::Seen;
use super::workload::seen;
use crate::http::{Request, read_answer};

/// How long a client waits for an answer before it retries.
pub const PATIENCE: Duration = Duration::from_millis(800);
/// How long a connection is reused. The shops close a connection that is idle for five seconds.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// One connection to each shop, kept from one request to the next.
#[derive(Debug, Default)]
pub struct Connections {
    kept: [Kept; 2],
}

/// The connection to one shop.
#[derive(Debug, Default)]
pub struct Kept(Option<Open>);

#[derive(Debug)]
struct Open {
    stream: TcpStream,
    server: SocketAddr,
    used_at: Instant,
}

impl Connections {
    /// Sends a request to a shop, and waits for its answer for as long as a client does.
    pub async fn ask(&mut self, request: &Request, apps: &Apps, shop: usize) -> Seen {
        self.kept[shop].ask(request, apps.address(shop)).await
    }

    /// Sends a request to each shop at once.
    pub async fn ask_both(&mut self, requests: [&Request; 2], apps: &Apps) -> [Seen; 2] {
        let [one, other] = &mut self.kept;
        let asked = (one.ask(requests[0], apps.address(0)), other.ask(requests[1], apps.address(1)));
        tokio::join!(asked.0, asked.1).into()
    }
}

impl Kept {
    async fn ask(&mut self, request: &Request, server: SocketAddr) -> Seen {
        // A connection is kept only if its answer arrived whole. The next answer on it then belongs to the next
        // request.
        let kept = self.0.take().filter(|open| open.is_usable(server));
        let asked = async {
            let mut stream = match kept {
                Some(open) => open.stream,
                None => TcpStream::connect(server).await?,
            };
            request.send_on(&mut stream).await?;
            let answer = read_answer(&mut stream).await?;
            Ok::<_, io::Error>((stream, answer))
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok((stream, answer))) => {
                if answer.header("connection") != Some("close") {
                    self.0 = Some(Open { stream, server, used_at: Instant::now() });
                }
                seen(answer)
            }
            Ok(Err(_)) | Err(_) => Seen::Unknown,
        }
    }
}

impl Open {
    /// Returns whether the connection leads to the shop's current address and is still open. A request on a connection
    /// that the shop has closed would be lost before it was sent, and would count as unknown.
    fn is_usable(&self, server: SocketAddr) -> bool {
        let is_open =
            || matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.server == server && self.used_at.elapsed() < IDLE_LIMIT && is_open()
    }
}
