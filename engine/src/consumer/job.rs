//! The work that is done for each message.

use std::error::Error;
use std::fmt::{self, Display};
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use super::guard::{Panicked, discard_value, guard, text};
use super::{Call, JobResult};
use crate::{Fingerprint, FingerprintError, Key, ToFingerprint};

/// What a message is about: the key of its piece of work, and a digest of what it asks for.
///
/// ```
/// use oncekey::{Key, consumer::Identity};
///
/// let identity = Identity::new(Key::new("mail", 17)?, &"to: ada")?;
/// assert_eq!(identity.key.idempotency_key(), "17");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The same for each delivery of the message, and for each message that asks for the same piece of work.
    pub key: Key,
    /// Another one under the same key is a mismatch: a dead letter.
    pub fingerprint: Fingerprint,
}

impl Identity {
    /// From a key and what is asked: anything that serializes, or a [`Fingerprint`].
    ///
    /// # Errors
    /// What is asked can't be serialized.
    pub fn new(key: Key, asked: impl ToFingerprint) -> Result<Self, FingerprintError> {
        Ok(Self { key, fingerprint: asked.to_fingerprint()? })
    }

    /// As a job reads it. The error is why the message is a dead letter.
    pub(super) fn read(identify: impl FnOnce() -> Result<Self, Unreadable>) -> Result<Self, String> {
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

/// Why no [`Identity`] can be read from a message: it becomes a dead letter with this reason.
pub type Unreadable = Box<dyn Error + Send + Sync>;

/// The work that is done, once, for each message.
///
/// ```
/// use std::sync::Arc;
/// use oncekey::Key;
/// use oncekey::consumer::{Call, Identity, Job, JobResult, Message, Unreadable};
///
/// struct SendMail;
///
/// impl Job<Message> for SendMail {
///     type Output = String;
///     type Error = std::io::Error;
///
///     fn identify(&self, message: &Message) -> Result<Identity, Unreadable> {
///         Ok(message.identity("mail")?)
///     }
///
///     async fn perform(&self, call: Call, message: Arc<Message>) -> JobResult<String, std::io::Error> {
///         call.run(move |_claim| async move { Ok(format!("sent {} bytes", message.payload().len())) }).await
///     }
///
///     /// Some errors are the message's own: no retry helps.
///     fn is_poison(&self, error: &std::io::Error) -> bool {
///         error.kind() == std::io::ErrorKind::InvalidData
///     }
/// }
/// ```
pub trait Job<M>: Send + Sync + 'static {
    /// What it gives, kept as the outcome.
    type Output: Send + 'static;
    /// What it fails with. Its text goes with a dead letter.
    type Error: Display + Send + 'static;

    /// Reads key and fingerprint from the message.
    ///
    /// # Errors
    /// The message is none that this job can read.
    fn identify(&self, message: &M) -> Result<Identity, Unreadable>;

    /// Does the work, by one of the ways of `call`. It may be called several times for one message; the engine sees to
    /// it that what is handed to `call` runs once.
    fn perform(&self, call: Call, message: Arc<M>)
    -> impl Future<Output = JobResult<Self::Output, Self::Error>> + Send;

    /// Whether the error is of a kind that no retry heals: the message becomes a dead letter at once. Default: never.
    fn is_poison(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// A job from two closures: one reads the [`Identity`] of a message, the other does the work by its [`Call`].
///
/// ```
/// use oncekey::Key;
/// use oncekey::consumer::{Identity, job};
///
/// let mail = job(
///     |order: &u64| Ok(Identity::new(Key::new("mail", order)?, order)?),
///     |call, order| async move { call.run(move |_| async move { Ok::<_, std::io::Error>(*order) }).await },
/// );
/// # let _ = mail;
/// ```
pub fn job<M, I, P, Fut, T, E>(identify: I, perform: P) -> impl Job<M, Output = T, Error = E> + use<M, I, P, Fut, T, E>
where
    M: Send + Sync + 'static,
    I: Fn(&M) -> Result<Identity, Unreadable> + Send + Sync + 'static,
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
    I: Fn(&M) -> Result<Identity, Unreadable> + Send + Sync + 'static,
    P: Fn(Call, Arc<M>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = JobResult<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Display + Send + 'static,
{
    type Output = T;
    type Error = E;

    fn identify(&self, message: &M) -> Result<Identity, Unreadable> {
        (self.identify)(message)
    }

    fn perform(&self, call: Call, message: Arc<M>) -> impl Future<Output = JobResult<T, E>> + Send {
        (self.perform)(call, message)
    }
}
