//! Uploads that are larger than a process may hold. They stream through the guard, and their retries do not run.

use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use futures_util::future::poll_fn;
use tests::http::{Answer, Protocol, Request, read_answer, read_answer_by_http2};
use tests::process::Process;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const MIB: u64 = 1 << 20;

/// A body of this many bytes `x`, and its digest in the format of `sha256sum`.
#[derive(Clone, Copy)]
struct Upload {
    length: u64,
    digest: &'static str,
}

const SMALL: Upload = Upload { length: MIB, digest: "sha-256=:j5kLoLV3tRzwCeoEk2jBa72hsh4bk74HqCR1i7JTw5s=:" };
const MEDIUM: Upload = Upload { length: 64 * MIB, digest: "sha-256=:4gpp7KOTaFcukLkTVzimE4OPlUmHoLRLYiCInBccu3Y=:" };
const GIBIBYTE: Upload =
    Upload { length: 1_024 * MIB, digest: "sha-256=:6ZUI8r2O4XHH5B6wNwkH7t30fbpi77z5ndJeSO6HxMg=:" };

/// A request whose whole body has been sent.
enum Sent {
    Http1(TcpStream),
    Http2 { response: h2::client::ResponseFuture, _client: h2::client::SendRequest<Bytes> },
}

impl Sent {
    async fn answer(self) -> Answer {
        match self {
            Self::Http1(mut stream) => read_answer(&mut stream).await.unwrap(),
            Self::Http2 { response, .. } => read_answer_by_http2(response).await.unwrap(),
        }
    }
}

struct Server {
    process: Process,
    address: SocketAddr,
    /// The server's maximum resident memory during an upload, in bytes.
    most: u64,
}

impl Server {
    fn start() -> Self {
        let mut process = Process::start(&mut Command::new(env!("CARGO_BIN_EXE_upload_server")));
        let address = process.expect("ready").parse().unwrap();
        Self { process, address, most: 0 }
    }

    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1_024
    }

    fn note_memory(&mut self) {
        self.most = self.most.max(self.resident());
    }

    async fn runs(&self) -> String {
        Request::new("GET", "/runs", "").send(self.address).await.text()
    }

    /// Sends an upload, piece by piece.
    async fn send(&mut self, upload: Upload, key: &str, protocol: Protocol) -> Sent {
        match protocol {
            Protocol::Http1 => self.send_by_http1(upload, key).await,
            Protocol::Http2 => self.send_by_http2(upload, key).await,
        }
    }

    async fn send_by_http1(&mut self, Upload { length, digest }: Upload, key: &str) -> Sent {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\nContent-Digest: {digest}\r\n\
             Idempotency-Key: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; MIB as usize];
        for sent in 0..length / MIB {
            stream.write_all(&piece).await.unwrap();
            if sent % 8 == 0 {
                self.note_memory();
            }
        }
        self.note_memory();
        Sent::Http1(stream)
    }

    async fn send_by_http2(&mut self, Upload { length, digest }: Upload, key: &str) -> Sent {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let mut client = client.ready().await.unwrap();
        let request = http::Request::post("http://shop/upload")
            .header("content-length", length)
            .header("content-digest", digest)
            .header("idempotency-key", key)
            .body(())
            .unwrap();
        let (response, mut stream) = client.send_request(request, false).unwrap();
        let piece = Bytes::from(vec![b'x'; MIB as usize]);
        let mut left = length;
        while left > 0 {
            // No more than the server has asked for is sent, so this process holds one piece too.
            stream.reserve_capacity(left.min(MIB) as usize);
            let capacity = poll_fn(|context| stream.poll_capacity(context)).await.unwrap().unwrap();
            let now = capacity.min(left as usize).min(piece.len());
            left -= now as u64;
            stream.send_data(piece.slice(..now), left == 0).unwrap();
            if left % MIB == 0 {
                self.note_memory();
            }
        }
        Sent::Http2 { response, _client: client }
    }

    /// Lets the handler answer once it has read the whole upload.
    fn let_it_answer(&mut self, upload: Upload) {
        assert_eq!(self.process.expect("read"), upload.length.to_string());
        self.process.say("go");
    }

    /// Sends a retry, and checks that it replays.
    async fn replays(&mut self, upload: Upload, key: &str, protocol: Protocol) {
        let again = self.send(upload, key, protocol).await.answer().await;
        assert!(again.is_replay(), "{again:?}");
        assert_eq!((again.status, again.text()), (201, upload.length.to_string()));
    }
}

/// The test's server is a separate process, so the memory of this process, and of the tests beside it, does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h25_an_upload_of_a_gibibyte_needs_no_memory_and_runs_once() {
    let mut server = Server::start();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        // Whatever the server needs for any request is allocated before the measurement.
        let first = server.send(SMALL, &format!("small-{protocol:?}"), protocol).await;
        server.let_it_answer(SMALL);
        assert_eq!(first.answer().await.status, 201);
    }
    let before = server.resident();
    server.most = before;

    let first = server.send(GIBIBYTE, "first", Protocol::Http1).await;
    server.let_it_answer(GIBIBYTE);
    let first = first.answer().await;
    assert_eq!((first.status, first.text(), first.is_replay()), (201, GIBIBYTE.length.to_string(), false));
    server.replays(GIBIBYTE, "first", Protocol::Http1).await;
    // Another digest is another request.
    let other = SMALL;
    assert_eq!(server.send(other, "first", Protocol::Http1).await.answer().await.problem(), "mismatch");
    assert_eq!(server.runs().await, "3");

    for (protocol, runs) in [(Protocol::Http1, "4"), (Protocol::Http2, "5")] {
        let key = format!("cut-{protocol:?}");
        let cut = server.send(MEDIUM, &key, protocol).await;
        assert_eq!(server.process.expect("read"), MEDIUM.length.to_string());
        // The answer is lost, because the client disconnects before the handler returns it.
        drop(cut);
        let early = server.send(MEDIUM, &key, protocol).await.answer().await;
        assert_eq!(early.problem(), "in-progress");
        server.process.say("go");
        loop {
            let again = server.send(MEDIUM, &key, protocol).await.answer().await;
            if again.problem_name().as_deref() != Some("in-progress") {
                assert!(again.is_replay(), "{again:?}");
                assert_eq!((again.status, again.text()), (201, MEDIUM.length.to_string()));
                break;
            }
        }
        server.replays(MEDIUM, &key, protocol).await;
        assert_eq!(server.runs().await, runs, "a retry ran");
    }

    let more = server.most - before;
    assert!(more < 20 * MIB, "{more} bytes more");
}
