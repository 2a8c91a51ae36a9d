//! Reads the idempotency key from a request.

use std::fmt;
use std::sync::Arc;

use actix_web::dev::ServiceRequest;
use actix_web::http::header::HeaderName;
use bytes::Bytes;

use super::{IdempotencyError, settings};
use crate::{Fingerprint, MAX_PART_LEN};

type MakeKey = dyn Fn(&ServiceRequest, &Bytes) -> Option<String> + Send + Sync;

/// Where a request's idempotency key comes from.
///
/// ```
/// use oncekey::web::KeyStrategy;
///
/// // A webhook's sender numbers its deliveries in the body.
/// let delivery = KeyStrategy::custom(|_request, body| {
///     let delivery: serde_json::Value = serde_json::from_slice(body).ok()?;
///     Some(delivery.get("delivery_id")?.as_str()?.to_owned())
/// });
/// # let _ = delivery;
/// ```
#[derive(Clone, Default)]
pub enum KeyStrategy {
    /// From the header. The default.
    #[default]
    Header,
    /// From the fingerprint of the whole request. Within a scope, equal requests then count as the same request.
    BodyHash,
    /// From the header or, without one, as [`BodyHash`](Self::BodyHash).
    HeaderOrBodyHash,
    /// From a function of the request and its body. `None` means that the key is missing. The guard answers 400 to a
    /// key that is empty, longer than [`MAX_PART_LEN`] bytes, or contains a control character.
    Custom(Arc<MakeKey>),
}

impl KeyStrategy {
    /// Creates a strategy from your own function.
    pub fn custom(make: impl Fn(&ServiceRequest, &Bytes) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(make))
    }

    /// Returns whether the strategy may need the body. `has_header` tells whether the header contains a key.
    pub(super) fn needs_body(&self, has_header: bool) -> bool {
        match self {
            Self::Header => false,
            Self::HeaderOrBodyHash => !has_header,
            Self::BodyHash | Self::Custom(_) => true,
        }
    }

    pub(super) fn reads_header(&self) -> bool {
        matches!(self, Self::Header | Self::HeaderOrBodyHash)
    }

    /// Makes the key of a request without a key header. Returns `Ok(None)` if the request has no key.
    pub(super) fn make(
        &self,
        request: &ServiceRequest,
        body: &Bytes,
        whole: impl FnOnce() -> Fingerprint,
    ) -> Result<Option<String>, IdempotencyError> {
        Ok(match self {
            Self::Header => None,
            Self::BodyHash | Self::HeaderOrBodyHash => {
                Some(whole().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
            }
            Self::Custom(make) => settings::caught("key strategy", || make(request, body))
                .ok_or(IdempotencyError::SettingPanicked("key strategy"))?,
        })
    }
}

impl fmt::Debug for KeyStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "Header",
            Self::BodyHash => "BodyHash",
            Self::HeaderOrBodyHash => "HeaderOrBodyHash",
            Self::Custom(_) => "Custom",
        })
    }
}

/// Why an idempotency key is invalid.
///
/// ```
/// use oncekey::web::BadKey;
///
/// assert_eq!(BadKey::TooLong.to_string(), "it is longer than 255 bytes");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// The header is empty, or contains an empty quoted string.
    #[error("it is empty")]
    Empty,
    /// The key is longer than [`MAX_PART_LEN`] bytes.
    #[error("it is longer than {MAX_PART_LEN} bytes")]
    TooLong,
    /// The key contains a space, a control character, or a non-ASCII character.
    #[error("it has a character that is not visible ASCII")]
    NotVisibleAscii,
    /// A bare key contains a quote, or a quoted key is not a structured-field String (RFC 9651).
    #[error("it is not quoted as a structured-field String")]
    BadQuoting,
    /// The request has more than one such header.
    #[error("there is more than one")]
    Several,
}

/// Reads the key from the header, bare or as a structured-field String: `abc` and `"abc"` are the same key.
///
/// The IETF draft (draft-ietf-httpapi-idempotency-key-header-07) requires quotes. Stripe and nearly every client send a
/// bare key.
pub(super) fn from_header(request: &ServiceRequest, name: &HeaderName) -> Result<Option<String>, BadKey> {
    let mut values = request.headers().get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() && !planted!(SeveralKeysTaken) {
        return Err(BadKey::Several);
    }
    parse(value.as_bytes()).map(Some)
}

pub(super) fn parse(value: &[u8]) -> Result<String, BadKey> {
    let text = std::str::from_utf8(value).map_err(|_| BadKey::NotVisibleAscii)?;
    let key = if text.starts_with('"') {
        let item = sfv::Parser::new(text).parse::<sfv::Item>().map_err(|_| BadKey::BadQuoting)?;
        match item.bare_item {
            sfv::BareItem::String(key) if item.params.is_empty() => String::from(key),
            _ => return Err(BadKey::BadQuoting),
        }
    } else if text.contains('"') {
        return Err(BadKey::BadQuoting);
    } else {
        text.to_owned()
    };
    match key {
        key if key.is_empty() => Err(BadKey::Empty),
        key if key.len() > MAX_PART_LEN => Err(BadKey::TooLong),
        key if !key.bytes().all(|byte| byte.is_ascii_graphic()) => Err(BadKey::NotVisibleAscii),
        key => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn h06_bad_keys_are_told_apart() {
        let longest = "k".repeat(255);
        assert_eq!(parse(longest.as_bytes()), Ok(longest.clone()));
        assert_eq!(parse(format!("\"{longest}\"").as_bytes()), Ok(longest.clone()));
        for (value, error) in [
            ("", BadKey::Empty),
            ("\"\"", BadKey::Empty),
            (&*format!("{longest}k"), BadKey::TooLong),
            ("a b", BadKey::NotVisibleAscii),
            ("\"a b\"", BadKey::NotVisibleAscii),
            ("a\tb", BadKey::NotVisibleAscii),
            ("kéy", BadKey::NotVisibleAscii),
            ("\"abc", BadKey::BadQuoting),
            ("\"", BadKey::BadQuoting),
            ("ab\"c", BadKey::BadQuoting),
            ("\"abc\"d", BadKey::BadQuoting),
            ("\"abc\";p=1", BadKey::BadQuoting),
        ] {
            assert_eq!(parse(value.as_bytes()), Err(error), "{value:?}");
        }
    }

    #[test]
    fn h07_quoted_and_bare_are_one_key() {
        assert_eq!(parse(br#""abc""#), parse(b"abc"));
        assert_eq!(parse(br#""a\\b""#), parse(br"a\b"));
    }

    proptest! {
        #[test]
        fn h07_every_bare_key_has_a_quoted_form(key in "[!#-~]{1,255}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\"));
            prop_assert_eq!(parse(quoted.as_bytes()), parse(key.as_bytes()));
        }

        #[test]
        fn h06_any_bytes_are_read_or_refused(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = parse(&value) {
                prop_assert!(!key.is_empty() && key.len() <= 255 && key.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
