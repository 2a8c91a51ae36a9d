//! Malformed requests, generated from a seed, such as a scanner, a broken client or an attacker sends.
//!
//! Each one starts as a valid order or payment, and is broken in one way that no lenient parser repairs.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The bytes to send on one connection, after which the sending side is closed.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// How the request is broken.
    pub kind: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

type Break = fn(&mut StdRng, Draft) -> Vec<u8>;

/// Each way to break a request.
const KINDS: [(&str, Break); 12] = [
    ("request line", request_line),
    ("header line", header_line),
    ("idempotency key", idempotency_key),
    ("content length", content_length),
    ("chunks", chunks),
    ("smuggling", smuggling),
    ("json", json),
    ("truncated", truncated),
    ("oversized", oversized),
    ("pipelined", pipelined),
    ("binary", binary),
    ("another protocol", another_protocol),
];

/// Returns the names of all kinds.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Returns the malformed request with this number. The same seed always gives the same request.
pub fn nth(seed: u64, number: u64) -> Malformed {
    let mut rng = rng(seed, number);
    let (kind, make) = KINDS[(number % KINDS.len() as u64) as usize];
    let draft = Draft::new(&mut rng, seed, number);
    Malformed { kind, bytes: make(&mut rng, draft) }
}

/// Returns the malformed request with this number as it was before it was broken, under a fresh key. It is accepted.
/// (The old key may have a refusal by now, which is an outcome like any other.)
pub fn unbroken(seed: u64, number: u64) -> Vec<u8> {
    let draft = Draft::new(&mut rng(seed, number), seed, number);
    Draft { key: format!("Idempotency-Key: unbroken-{seed}-{number}"), ..draft }.sound()
}

fn rng(seed: u64, number: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A request that would be accepted.
#[derive(Clone)]
struct Draft {
    line: String,
    /// The headers without framing and key.
    headers: Vec<String>,
    key: String,
    body: String,
}

impl Draft {
    fn new(rng: &mut StdRng, seed: u64, number: u64) -> Self {
        let (path, body) = if rng.random_bool(0.5) {
            ("/orders", format!(r#"{{"item": "malformed-{number}", "quantity": 1}}"#))
        } else {
            let body = r#"{"amount": 1999, "currency": "usd", "card": "tok_visa", "reference": "#;
            ("/payments", format!("{body}\"malformed-{number}\"}}"))
        };
        Self {
            line: format!("POST {path} HTTP/1.1"),
            headers: vec!["Host: shop".to_owned(), "Content-Type: application/json".to_owned()],
            key: format!("Idempotency-Key: malformed-{seed}-{number}"),
            body,
        }
    }

    fn with(mut self, header: impl Into<String>) -> Self {
        self.headers.push(header.into());
        self
    }

    fn length(self) -> Self {
        let length = format!("Content-Length: {}", self.body.len());
        self.with(length)
    }

    fn keyed(self) -> Self {
        let key = self.key.clone();
        self.with(key)
    }

    fn head(&self) -> String {
        format!("{}\r\n{}\r\n\r\n", self.line, self.headers.join("\r\n"))
    }

    fn whole(self) -> Vec<u8> {
        format!("{}{}", self.head(), self.body).into_bytes()
    }

    /// Returns the valid request.
    fn sound(self) -> Vec<u8> {
        self.keyed().length().whole()
    }
}

fn pick(rng: &mut StdRng, of: &[&'static str]) -> &'static str {
    of[rng.random_range(0..of.len())]
}

fn noise(rng: &mut StdRng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.random()).collect()
}

fn request_line(rng: &mut StdRng, mut draft: Draft) -> Vec<u8> {
    let path = draft.line.split(' ').nth(1).unwrap_or("/").to_owned();
    draft.line = match rng.random_range(0..13) {
        0 => format!("POST {path}"),
        1 => format!("POST {path} HTTP/{}", pick(rng, &["0.9", "1.2", "2.0", "9.9", "1", "one", "", "1.1.1", "-1.1"])),
        2 => {
            format!("POST {path} {}", pick(rng, &["http/1.1", "HTTPS/1.1", "HTTP 1.1", "HTP/1.1", "HTTP/1.1 HTTP/1.1"]))
        }
        3 => format!("PO{}ST {path} HTTP/1.1", pick(rng, &["\0", "\x07", "(", "\"", "@", "\u{e9}", "\x7f", "{"])),
        4 => format!("POST {path}{} HTTP/1.1", pick(rng, &["\0", "\x01", "\x7f", " x", "\t"])),
        5 => format!(" POST {path} HTTP/1.1"),
        6 => format!("POST{path}HTTP/1.1"),
        7 => format!("{} {path} HTTP/1.1", "POST".repeat(rng.random_range(2..5_000))),
        8 => format!("POST {}{} HTTP/1.1", path, "/a".repeat(rng.random_range(35_000..70_000))),
        9 => format!(
            "POST {} HTTP/1.1",
            pick(rng, &["*", "orders", "//", "\\orders", "http://", "http:///orders", "?", "#"])
        ),
        10 => format!("{} {path} HTTP/1.1", pick(rng, &["post", "Post", "GETPOST", "BREW", "P", "POST:", "-", "0"])),
        11 => format!(
            "POST {path}{} HTTP/1.1",
            pick(rng, &["/%00", "/%", "/%zz", "/..%2f..%2fetc", "/.", "/%0d%0aX:1", "/ü"])
        ),
        _ => format!("POST {path} HTTP/1.1\rX: y"),
    };
    draft.sound()
}

fn header_line(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let broken = match rng.random_range(0..10) {
        0 => "No colon here".to_owned(),
        1 => format!("X{}A: 1", pick(rng, &[" ", "\0", "(", "\"", "\u{e9}", "\x7f", "[", "@"])),
        2 => format!("X-A: {}", pick(rng, &["\0", "a\0b", "\x01", "\x1b[31m", "a\x7fb", "\x08"])),
        3 => ": no name".to_owned(),
        4 => "X-A : space before the colon".to_owned(),
        5 => "X-A: folded\r\n it is".to_owned(),
        6 => "X-A: 1\rX-B: 2".to_owned(),
        7 => (0..rng.random_range(110..400)).map(|n| format!("X-{n}: {n}")).collect::<Vec<_>>().join("\r\n"),
        8 => format!("X-A: {}", "a".repeat(rng.random_range(140_000..200_000))),
        _ => format!("{}: 1", "X".repeat(rng.random_range(140_000..150_000))),
    };
    // The broken header is anywhere among the headers.
    let mut draft = draft.keyed().length();
    let at = rng.random_range(0..=draft.headers.len());
    draft.headers.insert(at, broken);
    draft.whole()
}

fn idempotency_key(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let named = |value: &str| format!("Idempotency-Key: {value}");
    let value = match rng.random_range(0..9) {
        0 => String::new(),
        1 => named(""),
        2 => named(pick(
            rng,
            &["\"\"", "\"", "\"a", "a\"", "a\"b", "\"a\"b", "\"a\";p=1", "\"a\", \"b\"", "\"\\x\"", "\"a\\\""],
        )),
        3 => named(&"k".repeat(rng.random_range(256..5_000))),
        4 => named(&format!("\"{}\"", "k".repeat(rng.random_range(256..5_000)))),
        5 => named(pick(rng, &["a b", "a\tb", "k\u{e9}y", "\u{1f511}", "\u{7f}", "a\u{a0}b", "\"a b\"", "\u{202e}k"])),
        6 => format!("{}\r\n{}", draft.key, draft.key),
        7 => format!("{}\r\nidempotency-key: other", draft.key),
        _ => format!("X-Idempotency-Key: {}", draft.key.len()),
    };
    if value.is_empty() { draft.length().whole() } else { draft.with(value).length().whole() }
}

fn content_length(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let length = draft.body.len();
    let named = match rng.random_range(0..9) {
        0 => format!("Content-Length: -{length}"),
        1 => format!("Content-Length: +{length}"),
        2 => format!("Content-Length: {}", pick(rng, &["abc", "0x20", "1e1", "1 0", "", "\u{661}", "10,10", "1.0"])),
        3 => format!("Content-Length: {length}\r\nContent-Length: {}", length + 1),
        4 => format!("Content-Length: {length}, {}", length + 2),
        5 => format!(
            "Content-Length: {}",
            pick(rng, &["18446744073709551616", "99999999999999999999999", "9223372036854775808"])
        ),
        // Announces more than it sends. The rest never arrives.
        6 => format!("Content-Length: {}", length + rng.random_range(1..500_000)),
        // Announces less than it sends. The rest is not a request.
        7 => format!("Content-Length: {}", rng.random_range(0..length)),
        // Announces no length, so there is no body, and the rest is not a request.
        _ => "X-No-Length: 1".to_owned(),
    };
    draft.keyed().with(named).whole()
}

fn chunks(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let (body, len) = (draft.body.clone(), draft.body.len());
    let framed = match rng.random_range(0..11) {
        0 => format!("{}\r\n{body}\r\n0\r\n\r\n", pick(rng, &["xyz", "-5", "+5", "0x10", "", "\u{661}", "1 0", "\0"])),
        1 => format!("{}\r\n{body}\r\n0\r\n\r\n", "f".repeat(rng.random_range(17..200))),
        2 => format!("{len:x}\r\n{body}"),
        3 => format!("{len:x}\r\n{body}0\r\n\r\n"),
        4 => format!("{:x}\r\n{body}\r\n0\r\n\r\n", len + 1),
        5 => format!("{:x}\r\n{body}\r\n0\r\n\r\n", len - 1),
        6 => format!("{len:x}\r\n{body}\r\n"),
        7 => format!("{len:x}\r\n{body}\r\n0\r\n"),
        8 => format!("7fffffffffffffff\r\n{body}"),
        9 => body,
        _ => format!("{len:x}\r\r{body}\r\n0\r\n\r\n"),
    };
    let head = draft.keyed().with("Transfer-Encoding: chunked").head();
    [head.into_bytes(), framed.into_bytes()].concat()
}

/// Frames a request so that it has two readings of where it ends. By either one, a valid request hides behind it, and
/// must not be read.
fn smuggling(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let hidden = String::from_utf8_lossy(&draft.clone().sound()).into_owned();
    let chunked = format!("0\r\n\r\n{hidden}");
    let framing = match rng.random_range(0..6) {
        0 => format!("Content-Length: {}\r\nTransfer-Encoding: chunked", chunked.len()),
        1 => "Transfer-Encoding: chunked\r\nContent-Length: 4".to_owned(),
        2 => format!("Content-Length: {}\r\nTransfer-Encoding : chunked", chunked.len()),
        3 => format!("Transfer-Encoding: {}", pick(rng, &["xchunked", "chunke", "\"chunked\"", "chunked;", "gzip"])),
        4 => format!("Content-Length: {}\r\nContent-Length: 0", chunked.len()),
        _ => "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
    };
    let head = draft.keyed().with(framing).head();
    format!("{head}{chunked}").into_bytes()
}

fn json(rng: &mut StdRng, mut draft: Draft) -> Vec<u8> {
    let whole = draft.body.clone();
    draft.body = match rng.random_range(0..9) {
        0 => whole[..rng.random_range(0..whole.len())].to_owned(),
        1 => pick(rng, &["null", "[]", "{}", "17", "\"\"", "true", "{\"item\": \"book\"}", "[{}]"]).to_owned(),
        2 => format!("{}{}", "[".repeat(rng.random_range(100..60_000)), whole),
        3 => whole.replace(": 1", ": -1").replace("tok_visa", "tok_none"),
        4 => whole.replace(": 1", ": 1e99").replace("usd", "dollars"),
        5 => format!("{whole}{whole}"),
        6 => whole
            .replace("\"quantity\"", "\"quantity\": 1, \"quantity\"")
            .replace("\"amount\"", "\"amount\": 1, \"amount\""),
        7 => whole.replace(['{', '}'], "\u{0}"),
        _ => {
            draft.headers[1] = format!(
                "Content-Type: {}",
                pick(rng, &["text/plain", "application/xml", "json", "multipart/form-data", "*/*"])
            );
            whole
        }
    };
    draft.sound()
}

fn truncated(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let mut bytes = draft.sound();
    bytes.truncate(rng.random_range(0..bytes.len()));
    bytes
}

fn oversized(rng: &mut StdRng, mut draft: Draft) -> Vec<u8> {
    // Mostly announces the body without sending it, and sometimes sends all of it.
    let announced = rng.random_range((1 << 20) + 1..1_u64 << 40);
    if rng.random_range(0..200) != 0 {
        return draft.keyed().with(format!("Content-Length: {announced}")).whole();
    }
    draft.body = format!("{}{}", " ".repeat(1 << 20), draft.body);
    draft.sound()
}

/// Sends several requests on one connection. After the first one with a broken end, a valid request must not be read.
fn pipelined(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let sound = draft.clone().sound();
    let mut bytes = Vec::new();
    // These are well framed, and each is refused.
    for _ in 0..rng.random_range(0..4) {
        bytes.extend(match rng.random_bool(0.5) {
            true => draft.clone().length().whole(),
            false => idempotency_key(rng, draft.clone()),
        });
    }
    let broken = match rng.random_range(0..4) {
        0 => b"\0\0\0\0\r\n\r\n".to_vec(),
        1 => draft.clone().with("no colon").length().whole(),
        2 => b"POST\r\n\r\n".to_vec(),
        _ => draft.clone().keyed().with("Content-Length: -1").whole(),
    };
    bytes.extend(broken);
    for _ in 0..rng.random_range(1..3) {
        bytes.extend_from_slice(&sound);
    }
    bytes
}

fn binary(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    let len = rng.random_range(1..2_000);
    let mut bytes = noise(rng, len);
    // This is no byte of a method name, so no method can begin in it.
    bytes[0] |= 0x80;
    if rng.random_bool(0.5) {
        return bytes;
    }
    // The noise is in the middle of a valid head.
    let mut sound = draft.sound();
    let head = sound.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
    let at = rng.random_range(0..head);
    sound.splice(at..at, [b"\0".as_slice(), &bytes].concat());
    sound
}

fn another_protocol(rng: &mut StdRng, draft: Draft) -> Vec<u8> {
    match rng.random_range(0..8) {
        0 => [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), noise(rng, 200)].concat(),
        1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        2 => b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n".to_vec(),
        3 => b"EHLO shop\r\nMAIL FROM:<a@b>\r\n".to_vec(),
        4 => b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        5 => b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        6 => format!("{}\r\n", draft.body).into_bytes(),
        _ => b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_requests() {
        for number in 0..200 {
            assert_eq!(nth(7, number).bytes, nth(7, number).bytes);
        }
        assert_ne!(nth(7, 0).bytes, nth(8, 0).bytes);
    }
}
