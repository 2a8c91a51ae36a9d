//! Fingerprints: what a retry must have in common with its first request.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use actix_web::HttpMessage as _;
use actix_web::dev::ServiceRequest;
use actix_web::http::header::{self, HeaderName};
use bytes::Bytes;

use super::canonical::{self, Pointer};
use super::{IdempotencyError, settings};
use crate::{Fingerprint, FingerprintBuilder};

type MakeFingerprint = dyn Fn(&ServiceRequest, &Bytes) -> Fingerprint + Send + Sync;

/// Defines what a retry must have in common with the first request under its key. The guard answers 422 to a request
/// that differs.
///
/// ```
/// use oncekey::{Fingerprint, web::FingerprintStrategy};
///
/// // The same JSON written differently is a retry, and so is one with another `sent_at`.
/// let order = FingerprintStrategy::canonical_json(["/sent_at"]);
/// // An upload: its body streams to the handler, and its digest identifies it.
/// let upload = FingerprintStrategy::ContentDigest;
/// // Your own.
/// let own = FingerprintStrategy::custom(|request, body| {
///     Fingerprint::builder().field(request.path().as_bytes()).field(body).finish()
/// });
/// # let _ = (order, upload, own);
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum FingerprintStrategy {
    /// Method, path, query, the body's media type, and the body, byte by byte. The default.
    ///
    /// The path is the decoded one that the router matches: `/%70ay` equals `/pay`. The media type includes its
    /// parameters except `boundary`, which clients choose anew for each attempt.
    #[default]
    Full,
    /// Only the body, byte by byte.
    BodyOnly,
    /// Like [`Full`](Self::Full), but compares a JSON body in its canonical form. See
    /// [`canonical_json`](Self::canonical_json).
    CanonicalJson(CanonicalJson),
    /// Method, path, query, media type, and the digest in the request's `Content-Digest` header (RFC 9530, `sha-256` or
    /// `sha-512`). **The body streams to the handler unread**, whatever its size. The guard answers 400 to a request
    /// without such a digest.
    ///
    /// The guard does not compare the digest with the body. If the match matters, the handler must compare them while
    /// it reads.
    ContentDigest,
    /// Method, path, query, and the values of some headers. **The body streams to the handler unread** and is not
    /// compared. See [`headers_only`](Self::headers_only).
    HeadersOnly(Headers),
    /// A function of the request and its body.
    Custom(Custom),
}

/// The settings of [`FingerprintStrategy::CanonicalJson`].
#[derive(Clone, Debug)]
pub struct CanonicalJson(pub(super) Arc<[Pointer]>);

/// The settings of [`FingerprintStrategy::HeadersOnly`].
#[derive(Clone, Debug)]
pub struct Headers(Arc<[HeaderName]>);

/// The function of [`FingerprintStrategy::Custom`].
#[derive(Clone)]
pub struct Custom(Arc<MakeFingerprint>);

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom")
    }
}

impl FingerprintStrategy {
    /// Like [`Full`](Self::Full), but compares a JSON body in its canonical form (RFC 8785). The order of an object's
    /// members, white space, and the notation of strings and numbers do not matter. `without` names fields to leave
    /// out, as JSON pointers (RFC 6901).
    ///
    /// The guard compares a body byte by byte if the canonical form would hide a difference: if the body is not JSON,
    /// if an object in it contains a name twice, or if it has a number that a double cannot hold exactly
    /// (`9007199254740993`).
    pub fn canonical_json<P: Into<String>>(without: impl IntoIterator<Item = P>) -> Self {
        Self::CanonicalJson(CanonicalJson(without.into_iter().map(|pointer| Pointer::new(pointer.into())).collect()))
    }

    /// Compares the method, path, query, and all values of these headers. The body streams to the handler unread and is
    /// not compared, so a retry with another body is replayed. Use it if the key alone identifies the request, or if a
    /// header does, such as one that carries a document's version.
    ///
    /// ```
    /// use actix_web::http::header;
    /// use oncekey::web::FingerprintStrategy;
    ///
    /// let upload = FingerprintStrategy::headers_only([header::CONTENT_LENGTH, header::IF_MATCH]);
    /// # let _ = upload;
    /// ```
    pub fn headers_only(names: impl IntoIterator<Item = HeaderName>) -> Self {
        Self::HeadersOnly(Headers(names.into_iter().collect()))
    }

    /// Creates a strategy from your own function.
    pub fn custom(make: impl Fn(&ServiceRequest, &Bytes) -> Fingerprint + Send + Sync + 'static) -> Self {
        Self::Custom(Custom(Arc::new(make)))
    }

    pub(super) fn needs_body(&self) -> bool {
        !matches!(self, Self::ContentDigest | Self::HeadersOnly(_))
    }

    pub(super) fn make(&self, request: &ServiceRequest, body: &Bytes) -> Result<Fingerprint, IdempotencyError> {
        Ok(match self {
            Self::Full => whole(request, body),
            Self::BodyOnly => Fingerprint::of(body),
            Self::CanonicalJson(CanonicalJson(without)) => {
                let made = head(request).field(&media_type(request));
                match canonical::of(body, without) {
                    Some(json) => made.field(b"json").field(&json),
                    None => made.field(b"bytes").field(body),
                }
                .finish()
            }
            Self::ContentDigest => {
                let (algorithm, digest) = content_digest(request)?;
                head(request).field(&media_type(request)).field(algorithm.as_bytes()).field(&digest).finish()
            }
            Self::HeadersOnly(Headers(names)) => {
                let mut made = head(request);
                for name in names.iter() {
                    made = made.field(name.as_str().as_bytes());
                    for value in request.headers().get_all(name) {
                        made = made.field(b"value").field(value.as_bytes());
                    }
                }
                made.finish()
            }
            Self::Custom(Custom(make)) => settings::caught("fingerprint strategy", || make(request, body))
                .ok_or(IdempotencyError::SettingPanicked("fingerprint strategy"))?,
        })
    }
}

impl fmt::Debug for FingerprintStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("Full"),
            Self::BodyOnly => f.write_str("BodyOnly"),
            Self::CanonicalJson(without) => without.fmt(f),
            Self::ContentDigest => f.write_str("ContentDigest"),
            Self::HeadersOnly(names) => names.fmt(f),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// Returns the fingerprint of the whole request.
pub(super) fn whole(request: &ServiceRequest, body: &Bytes) -> Fingerprint {
    head(request)
        .field(&media_type(request))
        .field(if planted!(FingerprintWithoutTheBody) { b"" } else { body })
        .finish()
}

fn head(request: &ServiceRequest) -> FingerprintBuilder {
    // The router replaces bytes that are not UTF-8 when it decodes a path. Two different paths could then look equal,
    // so this uses the original path.
    let path = match request.match_info().as_str() {
        lossy if lossy.contains(char::REPLACEMENT_CHARACTER) => request.path(),
        path => path,
    };
    Fingerprint::builder()
        .field(request.method().as_str().as_bytes())
        .field(path.as_bytes())
        .field(request.query_string().as_bytes())
}

/// Returns the body's media type, with its parameters but without a boundary.
fn media_type(request: &ServiceRequest) -> Cow<'_, [u8]> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return Cow::Borrowed(b"") };
    let written = value.as_bytes();
    if !written.contains(&b';') {
        let is_lower = !written.iter().any(u8::is_ascii_uppercase);
        return if is_lower { Cow::Borrowed(written) } else { Cow::Owned(written.to_ascii_lowercase()) };
    }
    let Ok(Some(mime)) = request.mime_type() else { return Cow::Borrowed(written) };
    let counts = mime.params().filter(|(name, _)| *name != "boundary");
    let mut parameters: Vec<_> = counts.map(|(name, value)| format!("; {name}={value:?}")).collect();
    parameters.sort();
    // The names of charsets, like those of types, are case-insensitive.
    Cow::Owned(format!("{}{}", mime.essence_str(), parameters.concat()).to_ascii_lowercase().into())
}

/// Returns the strongest digest in the header that RFC 9530 still recommends.
fn content_digest(request: &ServiceRequest) -> Result<(&'static str, Vec<u8>), IdempotencyError> {
    const ALGORITHMS: [(&str, usize); 2] = [("sha-512", 64), ("sha-256", 32)];
    let values: Vec<_> = request.headers().get_all("content-digest").map(|value| value.as_bytes()).collect();
    if values.is_empty() {
        return Err(IdempotencyError::DigestMissing);
    }
    // Several lines of a structured field are one value, joined by commas (RFC 9651, section 4.2).
    let joined = values.join(&b", "[..]);
    let digests = sfv::Parser::new(joined.as_slice()).parse::<sfv::Dictionary>();
    let digests = digests.map_err(|_| IdempotencyError::DigestInvalid)?;
    for (algorithm, length) in ALGORITHMS {
        let Some(entry) = digests.get(algorithm) else { continue };
        return match entry {
            sfv::ListEntry::Item(sfv::Item { bare_item: sfv::BareItem::ByteSequence(digest), .. })
                if digest.len() == length =>
            {
                Ok((algorithm, digest.clone()))
            }
            _ => Err(IdempotencyError::DigestInvalid),
        };
    }
    Err(IdempotencyError::DigestInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn made(strategy: &FingerprintStrategy, content_type: &str, body: &'static [u8]) -> Fingerprint {
        let request = TestRequest::post().uri("/pay").insert_header(("Content-Type", content_type)).to_srv_request();
        strategy.make(&request, &Bytes::from_static(body)).unwrap()
    }

    #[test]
    fn h04_the_media_type_counts_but_not_a_boundary() {
        let full = |content_type| made(&FingerprintStrategy::Full, content_type, b"{}");
        assert_ne!(full("application/json"), full("text/plain"));
        assert_eq!(full("application/json"), full("Application/JSON"));
        assert_eq!(full("text/plain; charset=utf-8"), full("text/plain;charset=UTF-8"));
        assert_ne!(full("text/plain; charset=utf-8"), full("text/plain; charset=latin1"));
        assert_ne!(full("text/plain; charset=utf-8"), full("text/plain"));
        assert_eq!(full("multipart/form-data; boundary=a"), full("multipart/form-data; boundary=b"));
        assert_eq!(full("multipart/form-data; boundary=a"), full("multipart/form-data"));
        assert_ne!(full("not a media type; a"), full("not a media type; b"));
    }

    #[test]
    fn h23_canonical_json_and_bytes_do_not_meet() {
        let strategy = FingerprintStrategy::canonical_json(["/at"]);
        let json = |body| made(&strategy, "application/json", body);
        assert_eq!(json(br#"{"a": 1, "b": 2, "at": 3}"#), json(br#"{"b":2,"a":1}"#));
        assert_ne!(json(br#"{"a": 1}"#), json(br#"{"a": 2}"#));
        assert_ne!(json(b"no json"), json(b"no  json"));
        assert_ne!(json(br#"{"a":9007199254740993}"#), json(br#"{"a":9007199254740992}"#));
    }

    #[test]
    fn h25_a_content_digest_is_read_as_rfc_9530_has_it() {
        let digest = |value: &str| {
            content_digest(&TestRequest::post().insert_header(("Content-Digest", value)).to_srv_request())
                .map(|(algorithm, digest)| (algorithm, digest.len()))
                .map_err(|error| error.problem_type())
        };
        let sha256 = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
        assert_eq!(digest(sha256), Ok(("sha-256", 32)));
        let sha512 =
            "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:";
        assert_eq!(digest(&format!("{sha256}, {sha512}")), Ok(("sha-512", 64)), "the strongest counts");
        assert_eq!(digest(&format!("unixsum=:GQU=:, {sha256}")), Ok(("sha-256", 32)));
        for bad in ["", "sha-256", "sha-256=abc", "sha-256=:AAAA:", "md5=:aa:", "sha-256=:X48E9qO", "unixsum=:GQU=:"] {
            assert!(digest(bad).is_err(), "{bad}");
        }
    }
}
