//! The work that a processor runs for each message.

use std::error::Error;
use std::fmt::{self, Display};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::guard::{Panicked, discard_value, guard, text};
use super::{Call, JobResult};
use crate::{Fingerprint, FingerprintError, Key, ToFingerprint};

/// Identifies the work that a message asks for: its key, and a digest of the request.
///
/// ```
/// use oncekey::{Key, consumer::MessageKey};
///
/// let identity = MessageKey::new(Key::new("mail", 17)?, &"to: ada")?;
/// assert_eq!(identity.key.idempotency_key(), "17");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageKey {
    /// The same for each delivery of the message, and for each message that asks for the same work.
    pub key: Key,
    /// A different fingerprint under the same key is a mismatch, and the message becomes a dead letter.
    pub fingerprint: Fingerprint,
}

impl MessageKey {
    /// Creates an identity from a key and the request: anything that serializes, or a [`Fingerprint`].
    ///
    /// # Errors
    /// The request cannot be serialized.
    pub fn new(key: Key, asked: impl ToFingerprint) -> Result<Self, FingerprintError> {
        Ok(Self { key, fingerprint: asked.to_fingerprint()? })
    }

    /// Calls a job's `identify`. The error is the reason of the dead letter.
    pub(super) fn read(identify: impl FnOnce() -> Result<Self, IdentifyError>) -> Result<Self, String> {
        match guard(identify) {
            Ok(Ok(identity)) => Ok(identity),
            Ok(Err(error)) => {
                let reason = format!("no key can be read from the message: {}", text(&error));
                discard_value(error);
                Err(reason)
            }
            Err(Panicked) => Err("reading a key from the message panicked".to_owned()),
        }
    }
}

/// Why a message has no readable [`MessageKey`]. The message becomes a dead letter with this reason.
pub type IdentifyError = Box<dyn Error + Send + Sync>;

/// The work that runs once for each message.
///
/// ```
/// use std::sync::Arc;
/// use oncekey::Key;
/// use oncekey::consumer::{Call, MessageKey, Job, JobResult, Message, IdentifyError};
///
/// struct SendMail;
///
/// impl Job<Message> for SendMail {
///     type Output = String;
///     type Error = std::io::Error;
///
///     fn identify(&self, message: &Message) -> Result<MessageKey, IdentifyError> {
///         Ok(message.identity("mail")?)
///     }
///
///     async fn perform(&self, call: Call, message: Arc<Message>) -> JobResult<String, std::io::Error> {
///         call.run(move |_claim| async move { Ok(format!("sent {} bytes", message.payload().len())) }).await
///     }
///
///     /// The message itself causes these errors, so no retry helps.
///     fn is_poison(&self, error: &std::io::Error) -> bool {
///         error.kind() == std::io::ErrorKind::InvalidData
///     }
/// }
/// ```
pub trait Job<M>: Send + Sync + 'static {
    /// The type of the result, which the engine keeps as the outcome.
    type Output: Send + 'static;
    /// The type of the error. Its text is part of a dead letter.
    type Error: Display + Send + 'static;

    /// Reads the key and the fingerprint from the message.
    ///
    /// # Errors
    /// This job cannot read the message.
    fn identify(&self, message: &M) -> Result<MessageKey, IdentifyError>;

    /// Does the work through one of the methods of `call`. The processor may call this several times for one message.
    /// The engine ensures that the operation passed to `call` runs once.
    fn perform(&self, call: Call, message: Arc<M>)
    -> impl Future<Output = JobResult<Self::Output, Self::Error>> + Send;

    /// Returns whether no retry can resolve the error: the message then becomes a dead letter at once. Default: never.
    fn is_poison(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// Creates a job from two closures: one reads the [`MessageKey`] of a message, the other does the work through its
/// [`Call`].
///
/// ```
/// use oncekey::Key;
/// use oncekey::consumer::{MessageKey, job};
///
/// let mail = job(
///     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
///     |call, order| async move { call.run(move |_| async move { Ok::<_, std::io::Error>(*order) }).await },
/// );
/// # let _ = mail;
/// ```
pub fn job<M, I, P, Fut, T, E>(identify: I, perform: P) -> impl Job<M, Output = T, Error = E> + use<M, I, P, Fut, T, E>
where
    M: Send + Sync + 'static,
    I: Fn(&M) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    P: Fn(Call, Arc<M>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = JobResult<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Display + Send + 'static,
{
    Closures { identify, perform, message: PhantomData }
}

struct Closures<M, I, P> {
    identify: I,
    perform: P,
    message: PhantomData<fn(M)>,
}

impl<M, I, P> fmt::Debug for Closures<M, I, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

impl<M, I, P, Fut, T, E> Job<M> for Closures<M, I, P>
where
    M: Send + Sync + 'static,
    I: Fn(&M) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    P: Fn(Call, Arc<M>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = JobResult<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Display + Send + 'static,
{
    type Output = T;
    type Error = E;

    fn identify(&self, message: &M) -> Result<MessageKey, IdentifyError> {
        (self.identify)(message)
    }

    fn perform(&self, call: Call, message: Arc<M>) -> impl Future<Output = JobResult<T, E>> + Send {
        (self.perform)(call, message)
    }
}
