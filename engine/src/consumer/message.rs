//! The message type that all broker sources share.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MessageKey;
use crate::{Fingerprint, Key, KeyError};

/// A message of one of the bundled sources: bytes, an id, and text headers.
///
/// The **id** is the publisher's, if the publisher set one. It then stays the same however often the message is
/// published or delivered, so it can serve as the idempotency key. Otherwise the id is the broker's own, which is the
/// same for each delivery. RabbitMQ has none, so the id is then empty.
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
    /// Creates a message from bytes.
    pub fn new(id: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { id: id.into(), payload: payload.into(), headers: BTreeMap::new() }
    }

    /// Creates a message with a value as JSON.
    ///
    /// # Errors
    /// JSON cannot represent the value.
    pub fn json<T: Serialize + ?Sized>(id: impl Into<String>, value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::new(id, serde_json::to_vec(value)?))
    }

    /// Adds a header. Header names that begin with `oncekey-` are reserved for the sources.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Returns the id, which is the same for each delivery.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns an identity with the message's id, in `scope`, as the key and a digest of its payload as the
    /// fingerprint. Use it if the publisher sets ids.
    ///
    /// # Errors
    /// The id is empty, or is not valid in a [`Key`].
    ///
    /// ```
    /// # use oncekey::consumer::Message;
    /// let identity = Message::new("order-17", "a book").identity("mail")?;
    /// assert_eq!(identity.key.to_string(), "mail/order-17");
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn identity(&self, scope: &str) -> Result<MessageKey, KeyError> {
        Ok(MessageKey { key: Key::new(scope, &self.id)?, fingerprint: Fingerprint::of(&self.payload) })
    }

    /// Returns the payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Returns all headers, ordered by name.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }

    /// Parses the payload as JSON.
    ///
    /// # Errors
    /// The payload is not the JSON of a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }
}

/// Shows only the payload's length, because a payload may hold data that must not be logged.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("payload_len", &self.payload.len())
            .field("headers", &self.headers.keys())
            .finish()
    }
}
