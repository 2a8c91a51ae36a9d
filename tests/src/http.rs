//! A plain HTTP client on one connection, which sends exactly what it is told and can leave at any moment: HTTP/1.1, or
//! HTTP/2 by prior knowledge.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values, in their order.
    pub headers: Vec<(String, String)>,
    /// The body, its framing taken off.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether it is marked as a replay.
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// The same as [`problem`](Self::problem); `None` if the answer is no problem of the engine's.
    pub fn problem_name(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        problem["type"].as_str()?.strip_prefix("urn:oncekey:problem:").map(str::to_owned)
    }

    /// The last part of the `type` of a problem in the form of RFC 9457.
    ///
    /// # Panics
    /// If the answer is no such problem.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        let problem_type = problem["type"].as_str().unwrap();
        problem_type.strip_prefix("urn:oncekey:problem:").unwrap().to_owned()
    }
}

/// The version of HTTP that a request is sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The pieces of a body whose length is not announced.
    chunks: Option<Vec<String>>,
    protocol: Protocol,
}

impl Request {
    /// A request with a body.
    pub fn new(method: &str, target: &str, body: impl Into<Vec<u8>>) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self { method, target, headers: Vec::new(), body: body.into(), chunks: None, protocol: Protocol::Http1 }
    }

    /// A POST.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target, body)
    }

    /// A POST whose body comes in chunks, its length not announced.
    pub fn post_in_chunks(target: &str, chunks: &[&str]) -> Self {
        let chunks = chunks.iter().map(|&chunk| chunk.to_owned()).collect();
        Self { chunks: Some(chunks), ..Self::new("POST", target, "") }
    }

    /// Adds a header, as it is.
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

    /// Sends it by another version of HTTP; 1.1 unless this says otherwise.
    #[must_use]
    pub fn by(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
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
            None => self.body.clone(),
        };
        [head.as_bytes(), b"\r\n", &body].concat()
    }

    async fn try_send_by_http2(&self, server: SocketAddr) -> io::Result<Answer> {
        let stream = TcpStream::connect(server).await?;
        let (client, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        let exchange = async {
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
            let (response, mut sending) = client.send_request(request, false).map_err(io::Error::other)?;
            let body = self.chunks.as_ref().map_or_else(|| self.body.clone(), |chunks| chunks.concat().into_bytes());
            // The server may answer, and close the stream, before it has read the whole body.
            let _ = sending.send_data(body.into(), true);
            let response = response.await.map_err(io::Error::other)?;
            let (head, mut body) = response.into_parts();
            let headers = head.headers.iter().map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            });
            let mut answer = Answer { status: head.status.as_u16(), headers: headers.collect(), body: Vec::new() };
            while let Some(chunk) = body.data().await {
                let chunk = chunk.map_err(io::Error::other)?;
                let _ = body.flow_control().release_capacity(chunk.len());
                answer.body.extend_from_slice(&chunk);
            }
            Ok(answer)
        };
        tokio::select! {
            answer = exchange => answer,
            ended = connection => Err(io::Error::other(format!("the connection ended: {ended:?}"))),
        }
    }

    /// Sends it on a connection of its own and reads the answer.
    ///
    /// # Panics
    /// If the server can't be reached or its answer is no HTTP.
    pub async fn send(&self, server: SocketAddr) -> Answer {
        self.try_send(server)
            .await
            .unwrap_or_else(|error| panic!("{} {} got no answer: {error}", self.method, self.target))
    }

    /// The same, where the server may be gone.
    ///
    /// # Errors
    /// What the connection failed with.
    pub async fn try_send(&self, server: SocketAddr) -> io::Result<Answer> {
        if self.protocol == Protocol::Http2 {
            return self.try_send_by_http2(server).await;
        }
        let mut stream = TcpStream::connect(server).await?;
        self.send_on(&mut stream).await?;
        read_answer(&mut stream).await
    }

    /// Sends it on a connection that is open, by HTTP/1.1, and reads no answer.
    ///
    /// # Errors
    /// What the connection failed with.
    pub async fn send_on(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.bytes()).await
    }

    /// Sends it and gives the connection, to be left at will.
    ///
    /// # Panics
    /// If the server can't be reached.
    pub async fn send_only(&self, server: SocketAddr) -> TcpStream {
        self.try_send_only(server).await.unwrap()
    }

    /// The same, where the server may be gone.
    ///
    /// # Errors
    /// What the connection failed with.
    pub async fn try_send_only(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(server).await?;
        self.send_on(&mut stream).await?;
        Ok(stream)
    }
}

/// Reads an HTTP/1.1 answer.
///
/// # Errors
/// What the connection failed with.
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

/// Takes the chunks apart; `None` while the last is missing.
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
