//! A plain HTTP client on one connection, over HTTP/1.1 or over HTTP/2 by prior knowledge. It sends exactly the given
//! bytes and can disconnect at any moment.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case with their values, in order.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Returns all values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns whether the answer is marked as a replay.
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// Like [`problem`](Self::problem), but returns `None` if the answer is not a problem of the engine.
    pub fn problem_name(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        problem["type"].as_str()?.strip_prefix("urn:oncekey:problem:").map(str::to_owned)
    }

    /// Returns the last part of the `type` of a problem in the form of RFC 9457.
    ///
    /// # Panics
    /// If the answer is not such a problem.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        let problem_type = problem["type"].as_str().unwrap();
        problem_type.strip_prefix("urn:oncekey:problem:").unwrap().to_owned()
    }
}

/// The HTTP version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
}

/// Both versions.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// How a client leaves before it has its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Closes the connection (FIN).
    Close,
    /// Resets the connection (RST).
    Reset,
    /// Resets the stream (`RST_STREAM`), and stays until the server has seen that. HTTP/1.1 does not have this.
    ResetStream,
}

impl Leave {
    /// Returns every way that a client of this HTTP version can leave.
    pub fn all(protocol: Protocol) -> &'static [Self] {
        match protocol {
            Protocol::Http1 => &[Self::Close, Self::Reset],
            Protocol::Http2 => &[Self::Close, Self::Reset, Self::ResetStream],
        }
    }
}

/// A request to send.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The chunks of a body whose length is not announced.
    chunks: Option<Vec<String>>,
    /// Whether only half of the announced body is sent.
    is_cut: bool,
    protocol: Protocol,
}

impl Request {
    /// Returns a request with a body.
    pub fn new(method: &str, target: &str, body: impl Into<Vec<u8>>) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        let (headers, body, protocol) = (Vec::new(), body.into(), Protocol::Http1);
        Self { method, target, headers, body, chunks: None, is_cut: false, protocol }
    }

    /// Returns a POST.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target, body)
    }

    /// Returns a POST whose body arrives in chunks, without an announced length.
    pub fn post_in_chunks(target: &str, chunks: &[&str]) -> Self {
        let chunks = chunks.iter().map(|&chunk| chunk.to_owned()).collect();
        Self { chunks: Some(chunks), ..Self::new("POST", target, "") }
    }

    /// Adds a header, unchanged.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds the idempotency key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    /// Sends the request over another HTTP version. The default is 1.1.
    #[must_use]
    pub fn by(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Announces the whole body but sends only half of it.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.is_cut = true;
        self
    }

    fn sent_body(&self) -> &[u8] {
        if self.is_cut { &self.body[..self.body.len() / 2] } else { &self.body }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: shop\r\n", self.method, self.target);
        match self.chunks {
            Some(_) => head.push_str("Transfer-Encoding: chunked\r\n"),
            None => head.push_str(&format!("Content-Length: {}\r\n", self.body.len())),
        }
        self.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        let framed = |chunk: &str| format!("{:x}\r\n{chunk}\r\n", chunk.len());
        let body = match &self.chunks {
            Some(chunks) => {
                chunks.iter().map(|chunk| framed(chunk)).chain([framed("")]).collect::<String>().into_bytes()
            }
            None => self.sent_body().to_vec(),
        };
        [head.as_bytes(), b"\r\n", &body].concat()
    }

    async fn begin_by_http2(&self, stream: TcpStream, leave: Leave) -> io::Result<Begun> {
        let (client, mut connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        let ping = connection.ping_pong().ok_or_else(|| io::Error::other("a connection has one ping"))?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        let mut client = client.ready().await.map_err(io::Error::other)?;
        let uri = format!("http://shop{}", self.target);
        let mut request = http::Request::builder().method(self.method.as_str()).uri(uri);
        for (name, value) in &self.headers {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).map_err(io::Error::other)?;
            request = request.header(name.as_str(), value);
        }
        if self.chunks.is_none() {
            request = request.header("content-length", self.body.len());
        }
        let request = request.body(()).map_err(io::Error::other)?;
        let (response, mut stream) = client.send_request(request, false).map_err(io::Error::other)?;
        let chunks = self.chunks.as_ref().map(|chunks| chunks.concat().into_bytes());
        let body = chunks.unwrap_or_else(|| self.sent_body().to_vec());
        // The server may answer, and close the stream, before it has read the whole body.
        let _ = stream.send_data(body.into(), !self.is_cut);
        Ok(Begun { leave, connection: Connection::Http2 { response, stream, ping, driver, client } })
    }

    /// Sends the request on a new connection and reads the answer.
    ///
    /// # Panics
    /// If the server cannot be reached or its answer is not HTTP.
    pub async fn send(&self, server: SocketAddr) -> Answer {
        self.try_send(server)
            .await
            .unwrap_or_else(|error| panic!("{} {} got no answer: {error}", self.method, self.target))
    }

    /// Like [`send`](Self::send), for a server that may be gone.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn try_send(&self, server: SocketAddr) -> io::Result<Answer> {
        self.begin(server, Leave::Close).await?.answer().await
    }

    /// Sends the request, and leaves the answer for later or forever.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn begin(&self, server: SocketAddr, leave: Leave) -> io::Result<Begun> {
        let mut stream = TcpStream::connect(server).await?;
        if leave == Leave::Reset {
            stream.set_zero_linger()?;
        }
        if self.protocol == Protocol::Http2 {
            return self.begin_by_http2(stream, leave).await;
        }
        self.send_on(&mut stream).await?;
        Ok(Begun { leave, connection: Connection::Http1(stream) })
    }

    /// Sends the request on an open HTTP/1.1 connection, and reads no answer.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn send_on(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.bytes()).await
    }

    /// Sends the request and returns the connection, which the caller can close at any time.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn send_only(&self, server: SocketAddr) -> TcpStream {
        self.try_send_only(server).await.unwrap()
    }

    /// Like [`send_only`](Self::send_only), for a server that may be gone.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn try_send_only(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(server).await?;
        self.send_on(&mut stream).await?;
        Ok(stream)
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Begun {
    leave: Leave,
    connection: Connection,
}

#[derive(Debug)]
enum Connection {
    Http1(TcpStream),
    Http2 {
        response: ResponseFuture,
        stream: h2::SendStream<Bytes>,
        ping: h2::PingPong,
        driver: JoinHandle<()>,
        client: SendRequest<Bytes>,
    },
}

impl Begun {
    /// Reads the answer.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn answer(self) -> io::Result<Answer> {
        match self.connection {
            Connection::Http1(mut stream) => read_answer(&mut stream).await,
            // The handles stay until the answer has arrived, because the connection ends without them.
            Connection::Http2 { response, stream: _stream, ping: _ping, driver, client: _client } => {
                let answer = read_answer_by_http2(response).await;
                driver.abort();
                answer
            }
        }
    }

    /// Leaves without the answer.
    ///
    /// # Panics
    /// If the server does not see that its stream was reset.
    pub async fn leave(self) {
        match self.connection {
            Connection::Http1(stream) => drop(stream),
            Connection::Http2 { response, mut stream, mut ping, driver, client } => {
                if self.leave == Leave::ResetStream {
                    // A server answers frames in order. The first answer shows that it has the request, and the second
                    // that it has seen the reset.
                    ping.ping(h2::Ping::opaque()).await.unwrap();
                    stream.send_reset(h2::Reason::CANCEL);
                    ping.ping(h2::Ping::opaque()).await.unwrap();
                }
                driver.abort();
                let _ = driver.await;
                drop((response, client));
            }
        }
    }
}

/// Reads an HTTP/2 answer.
///
/// # Errors
/// The connection's error.
pub async fn read_answer_by_http2(response: ResponseFuture) -> io::Result<Answer> {
    let (head, mut body) = response.await.map_err(io::Error::other)?.into_parts();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let mut answer = Answer { status: head.status.as_u16(), headers: headers.collect(), body: Vec::new() };
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(io::Error::other)?;
        let _ = body.flow_control().release_capacity(chunk.len());
        answer.body.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// Reads an HTTP/1.1 answer.
///
/// # Errors
/// The connection's error.
pub async fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_len]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head}")))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: bytes.split_off(head_len) };
    let chunked = answer.header("transfer-encoding") == Some("chunked");
    let length: usize = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    loop {
        if chunked {
            if let Some(body) = unchunk(&answer.body) {
                answer.body = body;
                return Ok(answer);
            }
        } else if answer.body.len() >= length {
            answer.body.truncate(length);
            return Ok(answer);
        }
        if stream.read_buf(&mut answer.body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Decodes a chunked body. Returns `None` while the last chunk is missing.
fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_len = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line_len]).ok()?, 16).ok()?;
        let chunk = bytes.get(line_len + 2..line_len + 2 + size)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk);
        bytes = bytes.get(line_len + 2 + size + 2..)?;
    }
}
