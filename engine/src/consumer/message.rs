//! A message, whatever broker it came from.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Identity;
use crate::{Fingerprint, Key, KeyError};

/// A message of one of the kept sources: bytes, an id, and headers that are text.
///
/// The **id** is its publisher's, where they gave one: it stays the same however often the message is published or
/// delivered, so that it can be the idempotency key. A message without one has the broker's own id, which is the same for
/// each delivery.
///
/// ```
/// use oncekey::consumer::Message;
///
/// let message = Message::json("order-17", &["book"])?.with_header("tenant", "a");
/// assert_eq!(message.parse::<Vec<String>>()?, ["book"]);
/// assert_eq!((message.id(), message.header("tenant")), ("order-17", Some("a")));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    id: String,
    payload: Bytes,
    headers: BTreeMap<String, String>,
}

impl Message {
    /// A message of bytes.
    pub fn new(id: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { id: id.into(), payload: payload.into(), headers: BTreeMap::new() }
    }

    /// A message of a value as JSON.
    ///
    /// # Errors
    /// A value that JSON can't hold.
    pub fn json<T: Serialize + ?Sized>(id: impl Into<String>, value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::new(id, serde_json::to_vec(value)?))
    }

    /// Adds a header. The names that begin with `oncekey-` are the sources' own.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// The id: the same for each delivery.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The message's id under `scope` as the key, and its bytes as what is asked: right where a publisher gives ids.
    ///
    /// # Errors
    /// The id is none, or no [`Key`] can be made of it.
    ///
    /// ```
    /// # use oncekey::consumer::Message;
    /// let identity = Message::new("order-17", "a book").identity("mail")?;
    /// assert_eq!(identity.key.to_string(), "mail/order-17");
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn identity(&self, scope: &str) -> Result<Identity, KeyError> {
        Ok(Identity { key: Key::new(scope, &self.id)?, fingerprint: Fingerprint::of(&self.payload) })
    }

    /// The bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// All headers, by name.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// The payload is no JSON of a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }
}

/// Payloads may hold what no log should: their length is shown.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("payload_len", &self.payload.len())
            .field("headers", &self.headers.keys())
            .finish()
    }
}
