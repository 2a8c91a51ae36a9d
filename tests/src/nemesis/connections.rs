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

/// How long a client waits for an answer before it tries again.
pub const PATIENCE: Duration = Duration::from_millis(800);
/// The shops close a connection on which nothing is asked for five seconds.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// One to each shop, kept from one request to the next.
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
    /// Asks a shop, and waits for its answer for as long as a client does.
    pub async fn ask(&mut self, request: &Request, apps: &Apps, shop: usize) -> Seen {
        self.kept[shop].ask(request, apps.address(shop)).await
    }

    /// Asks both at once, each for something.
    pub async fn ask_both(&mut self, requests: [&Request; 2], apps: &Apps) -> [Seen; 2] {
        let [one, other] = &mut self.kept;
        let asked = (one.ask(requests[0], apps.address(0)), other.ask(requests[1], apps.address(1)));
        tokio::join!(asked.0, asked.1).into()
    }
}

impl Kept {
    async fn ask(&mut self, request: &Request, server: SocketAddr) -> Seen {
        // A connection is kept only if its answer came whole: the next answer on it is that of the next request.
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
    /// Whether it leads to the shop as it is now, and is still open. One that its shop has closed would lose a request that
    /// was never sent, and leave open what is known.
    fn is_usable(&self, server: SocketAddr) -> bool {
        let is_open =
            || matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.server == server && self.used_at.elapsed() < IDLE_LIMIT && is_open()
    }
}
