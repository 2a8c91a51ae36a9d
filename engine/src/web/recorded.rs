//! A response as it is stored and replayed.

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Responder};
use bytes::{Buf as _, Bytes};
use serde::Serialize;

use crate::Key;
use crate::record::{PayloadKind, SealedOutcome};

/// The header that marks a replay.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A response as the engine stores and replays it: status, headers and body.
///
/// A reconciler returns one after it has found out what a handler did. A sanitizer changes one before the guard stores
/// it. It is also a [`Responder`]: an operation in a [`Transaction`](super::Transaction) may return it to choose which
/// headers a replay carries, regardless of the guard's allow-list.
///
/// ```
/// use actix_web::http::{StatusCode, header};
/// use oncekey::web::RecordedResponse;
///
/// let ordered = RecordedResponse::json(StatusCode::CREATED, &serde_json::json!({"id": 17}))?
///     .header(header::LOCATION, "/orders/17".try_into()?);
/// assert_eq!(ordered.status(), StatusCode::CREATED);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedResponse {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

/// The stored bytes are not an HTTP response.
///
/// ```
/// use oncekey::web::RecordedResponse;
///
/// assert!(RecordedResponse::decode("?".into()).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored bytes are not an HTTP response")]
pub struct MalformedResponse;

impl RecordedResponse {
    /// Creates a response with a body and no headers.
    ///
    /// ```
    /// # use actix_web::http::StatusCode;
    /// # use oncekey::web::RecordedResponse;
    /// let done = RecordedResponse::new(StatusCode::NO_CONTENT, "");
    /// ```
    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// Creates a response with a JSON body and its content type.
    ///
    /// # Errors
    /// JSON cannot represent the value.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, serde_json::Error> {
        let content_type = HeaderValue::from_static("application/json");
        Ok(Self::new(status, serde_json::to_vec(value)?).header(header::CONTENT_TYPE, content_type))
    }

    /// Adds a header and keeps existing ones of that name. Headers that a replay must never carry are left out: see
    /// [`Idempotency::keep_header`](super::Idempotency::keep_header).
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        if !is_never_kept(&name) {
            self.headers.push((name, value));
        }
        self
    }

    /// Captures the part of a handler's response that a replay carries: the headers in `kept`, or all headers if `kept`
    /// is `None`.
    pub(super) fn capture(status: StatusCode, headers: &HeaderMap, kept: Option<&[HeaderName]>, body: Bytes) -> Self {
        let headers = headers
            .iter()
            .filter(|(name, _)| kept.is_none_or(|kept| kept.contains(name)) && !is_never_kept(name))
            .map(|(name, value)| (name.clone(), value.clone()));
        Self { status, headers: headers.collect(), body }
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Replaces the status.
    pub fn set_status(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Returns the headers in their order.
    pub fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.headers.iter().map(|(name, value)| (name, value))
    }

    /// Removes all values of a header.
    pub fn remove_header(&mut self, name: &HeaderName) {
        self.headers.retain(|(found, _)| found != name);
    }

    /// Replaces all values of a header. Leaves out a header that a replay must never carry.
    ///
    /// ```
    /// # use actix_web::http::{StatusCode, header};
    /// # use oncekey::web::RecordedResponse;
    /// let mut response = RecordedResponse::new(StatusCode::CREATED, "");
    /// response.set_header(header::LOCATION, "/orders/17".try_into()?);
    /// assert_eq!(response.headers().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove_header(&name);
        if !is_never_kept(&name) {
            self.headers.push((name, value));
        }
    }

    /// Returns the body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Replaces the body.
    pub fn set_body(&mut self, body: impl Into<Bytes>) {
        self.body = body.into();
    }

    /// Seals the response as the outcome of `key`.
    ///
    /// ```
    /// # use actix_web::http::StatusCode;
    /// # use oncekey::{Key, ReconcileOutcome, web::RecordedResponse};
    /// let key = Key::new("public", "r-1")?;
    /// let happened = ReconcileOutcome::Completed(RecordedResponse::new(StatusCode::CREATED, "charged").seal(&key));
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn seal(&self, key: &Key) -> SealedOutcome {
        SealedOutcome::seal(key, PayloadKind::Http, |bytes| self.encode(bytes))
    }

    /// Writes the status, the number of headers, each name and value after its length, and the body. Numbers are
    /// big-endian.
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.status.as_u16().to_be_bytes());
        bytes.extend_from_slice(&(self.headers.len() as u32).to_be_bytes());
        for (name, value) in &self.headers {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(&self.body);
    }

    /// Reads what [`seal`](Self::seal) wrote, after the outcome was opened. Whatever the bytes contain, the result has
    /// no header that HTTP forbids or a replay must not carry.
    ///
    /// # Errors
    /// [`MalformedResponse`] for any other bytes.
    pub fn decode(mut bytes: Bytes) -> Result<Self, MalformedResponse> {
        let status = bytes.try_get_u16().ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.filter(|status| status.as_u16() >= 200).ok_or(MalformedResponse)?;
        let count = bytes.try_get_u32().map_err(|_| MalformedResponse)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = HeaderName::from_bytes(&part(&mut bytes)?).map_err(|_| MalformedResponse)?;
            let value = HeaderValue::from_maybe_shared(part(&mut bytes)?).map_err(|_| MalformedResponse)?;
            if !is_never_kept(&name) {
                headers.push((name, value));
            }
        }
        Ok(Self { status, headers, body: bytes })
    }

    /// Returns the response for its first caller.
    pub(super) fn into_response(self) -> HttpResponse<BoxBody> {
        let mut response = HttpResponse::new(self.status);
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response.set_body(BoxBody::new(self.body))
    }

    /// Returns the response as a replay.
    pub(super) fn into_replay(self) -> HttpResponse<BoxBody> {
        let mut response = self.into_response();
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

/// Marks a response whose headers are all kept.
#[derive(Clone, Copy)]
pub(super) struct KeepAllHeaders;

impl Responder for RecordedResponse {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse<BoxBody> {
        let mut response = self.into_response();
        response.extensions_mut().insert(KeepAllHeaders);
        response
    }
}

fn part(bytes: &mut Bytes) -> Result<Bytes, MalformedResponse> {
    let len = bytes.try_get_u32().map_err(|_| MalformedResponse)? as usize;
    if len > bytes.len() {
        return Err(MalformedResponse);
    }
    Ok(bytes.split_to(len))
}

/// Returns whether a header belongs to one message or one client and must never be replayed: cookies, the date, the
/// framing, and the hop-by-hop headers of RFC 9110, section 7.6.1.
fn is_never_kept(name: &HeaderName) -> bool {
    if planted!(SetCookieReplayed) && *name == header::SET_COOKIE {
        return false;
    }
    // By text, which the compiler compares by length first: this is called for each header of each replay.
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "date"
            | "idempotent-replayed"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "set-cookie"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Payload;
    use proptest::prelude::*;

    fn sample() -> RecordedResponse {
        RecordedResponse::new(StatusCode::CREATED, "paid")
            .header(header::LINK, HeaderValue::from_static("</a>"))
            .header(header::LINK, HeaderValue::from_static("</b>"))
    }

    #[test]
    fn h02_what_is_stored_is_replayed() {
        let key = Key::new("s", "k").unwrap();
        let Payload::Value { bytes, .. } = sample().seal(&key).open(&key).unwrap() else { panic!("a tombstone") };
        let read = RecordedResponse::decode(bytes).unwrap();
        assert_eq!(read, sample());
        let links: Vec<_> = read.into_replay().headers().get_all(header::LINK).cloned().collect();
        assert_eq!(links, ["</a>", "</b>"]);
    }

    #[test]
    fn h15_a_tampered_record_smuggles_no_header() {
        let mut bytes = Vec::new();
        let smuggler =
            RecordedResponse { headers: vec![(header::SET_COOKIE, HeaderValue::from_static("session=1"))], ..sample() };
        smuggler.encode(&mut bytes);
        assert!(RecordedResponse::decode(bytes.into()).unwrap().headers.is_empty());

        let mut bytes = vec![0, 200, 0, 0, 0, 1, 0, 0, 0, 4];
        bytes.extend_from_slice(b"link\0\0\0\x12a\r\nSet-Cookie: b=1");
        assert_eq!(RecordedResponse::decode(bytes.into()), Err(MalformedResponse));
    }

    proptest! {
        #[test]
        fn e13_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(read) = RecordedResponse::decode(bytes.into()) {
                let mut again = Vec::new();
                read.encode(&mut again);
                prop_assert_eq!(RecordedResponse::decode(again.into()), Ok(read));
            }
        }
    }
}
