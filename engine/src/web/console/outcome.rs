//! Outcomes that an operator enters, and outcomes that an operator may read.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use serde::de::IgnoredAny;

use super::pages::{Fact, Outcome};
use crate::Key;
use crate::record::{Payload, PayloadKind, SealedOutcome};
use crate::web::RecordedResponse;

/// The fields of an outcome, as entered.
#[derive(Debug, Clone)]
pub(super) struct Entered {
    pub(super) kind: String,
    pub(super) json: String,
    pub(super) status: String,
    pub(super) content_type: String,
    pub(super) headers: String,
    pub(super) body: String,
}

impl Default for Entered {
    fn default() -> Self {
        let (kind, status, content_type) = ("json".to_owned(), "200".to_owned(), "application/json".to_owned());
        Self { kind, json: String::new(), status, content_type, headers: String::new(), body: String::new() }
    }
}

/// An outcome that can be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Given {
    Json(Vec<u8>),
    Http(RecordedResponse),
}

impl Given {
    pub(super) fn seal(&self, key: &Key) -> SealedOutcome {
        match self {
            Self::Json(json) => SealedOutcome::seal(key, PayloadKind::Json, |bytes| bytes.extend_from_slice(json)),
            Self::Http(response) => response.seal(key),
        }
    }
}

/// Returns the text of a JSON value exactly as entered, so that a number loses no digit.
pub(super) fn json_of(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("Enter the outcome as JSON. An operation that returns nothing returned null.".to_owned());
    }
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(text.as_bytes().to_vec()),
        Err(error) => Err(format!("This is not JSON: {error}.")),
    }
}

impl Entered {
    pub(super) fn read(&self) -> Result<Given, String> {
        if self.kind != "http" {
            return json_of(&self.json).map(Given::Json);
        }
        let status = self.status.trim().parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.filter(|status| (200..600).contains(&status.as_u16()));
        let status = status.ok_or("Enter a status from 200 to 599.")?;
        // Browsers end each line of a form's text with CRLF.
        let body = self.body.replace("\r\n", "\n");
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) && !body.is_empty() {
            return Err(format!("A response with status {} has no body. Leave the body empty.", status.as_u16()));
        }
        let mut response = RecordedResponse::new(status, body);
        let content_type = self.content_type.trim();
        if !content_type.is_empty() {
            let value = HeaderValue::from_str(content_type).map_err(|_| "The content type is not one of HTTP.")?;
            response = response.header(header::CONTENT_TYPE, value);
        }
        for line in self.headers.lines().filter(|line| !line.trim().is_empty()) {
            let no_header = || format!("“{line}” is not a header. Write it as Name: value.");
            let (name, value) = line.split_once(':').ok_or_else(no_header)?;
            let name: HeaderName = name.trim().parse().map_err(|_| no_header())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| no_header())?;
            let before = response.headers().count();
            response = response.header(name, value);
            if response.headers().count() == before {
                return Err(format!("“{line}” can't be kept: a replay never carries this header."));
            }
        }
        Ok(Given::Http(response))
    }
}

/// The most bytes of a body that a page shows.
const SHOWN: usize = 64 << 10;

/// Describes an outcome for an operator who may read it.
pub(super) fn shown(key: &Key, outcome: &SealedOutcome) -> Outcome {
    match outcome.open(key) {
        Ok(Payload::Tombstone) => {
            let why = "The operation is done. Its outcome was too large to keep.";
            Outcome { kind: "not kept", facts: vec![Fact::new("Why", why)], body: String::new() }
        }
        Ok(Payload::Value { kind: PayloadKind::Json, bytes }) => {
            Outcome { kind: "JSON", facts: Vec::new(), body: text(&bytes) }
        }
        Ok(Payload::Value { kind: PayloadKind::Http, bytes }) => match RecordedResponse::decode(bytes) {
            Ok(response) => {
                let status = Fact::new("Status", response.status().as_u16().to_string());
                let headers = response.headers().map(|(name, value)| {
                    Fact::new(name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                });
                let facts = std::iter::once(status).chain(headers).collect();
                Outcome { kind: "HTTP response", facts, body: text(response.body()) }
            }
            Err(error) => unreadable(&error),
        },
        Err(error) => unreadable(&error),
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Outcome {
    Outcome { kind: "unreadable", facts: vec![Fact::new("Why", error.to_string())], body: String::new() }
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN {
        text.push_str("\n…");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Entered {
        Entered { kind: "http".into(), body: "{}".into(), ..Entered::default() }
    }

    #[test]
    fn json_is_kept_as_it_was_entered() {
        let exact = "{\"b\": 12345678901234567890.5, \"a\": 1}";
        let entered = Entered { json: format!("  {exact}\r\n"), ..Entered::default() };
        let given = entered.read().unwrap();
        assert_eq!(given, Given::Json(exact.as_bytes().to_vec()));
        let key = Key::new("s", "k").unwrap();
        assert_eq!(shown(&key, &given.seal(&key)).body, exact);
        for bad in ["", "  ", "{", "{} {}", "undefined", "'a'"] {
            let entered = Entered { json: bad.into(), ..Entered::default() };
            assert!(entered.read().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_response_is_checked_before_it_is_stored() {
        let entered = Entered { headers: "Location: /orders/17\r\n\r\nX-Trace: a:b".into(), ..http() };
        let Given::Http(response) = entered.read().unwrap() else { panic!("a response was entered") };
        let headers: Vec<_> =
            response.headers().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("content-type", "application/json"), ("location", "/orders/17"), ("x-trace", "a:b")]);
        let bad = [
            Entered { status: "abc".into(), ..http() },
            Entered { status: "199".into(), ..http() },
            Entered { status: "600".into(), ..http() },
            Entered { status: "204".into(), ..http() },
            Entered { headers: "Location".into(), ..http() },
            Entered { headers: "A b: c".into(), ..http() },
            Entered { headers: "Set-Cookie: session=1".into(), ..http() },
            Entered { content_type: "text/html\u{7}".into(), ..http() },
        ];
        for entered in bad {
            assert!(entered.read().is_err(), "{entered:?}");
        }
        assert!(Entered { status: "204".into(), body: String::new(), ..http() }.read().is_ok());
    }
}
