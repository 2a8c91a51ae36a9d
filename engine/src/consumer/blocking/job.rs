//! The work of a plain thread.

use std::fmt::Display;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Claim;
use crate::consumer::{IdentifyError, MessageKey};

/// The work that a plain thread runs once for each message. It may block.
///
/// ```
/// use oncekey::consumer::{BlockingJob, MessageKey, IdentifyError};
/// use oncekey::{Claim, Key};
///
/// struct SendMail;
///
/// impl BlockingJob<u64> for SendMail {
///     type Output = String;
///     type Error = std::io::Error;
///
///     fn identify(&self, order: &u64) -> Result<MessageKey, IdentifyError> {
///         Ok(MessageKey::new(Key::new("mail", order)?, order)?)
///     }
///
///     fn perform(&self, order: &u64, claim: &Claim) -> Result<String, std::io::Error> {
///         Ok(format!("mail for order {order}, attempt {}", claim.attempt()))
///     }
/// }
/// ```
pub trait BlockingJob<M>: Send + Sync + 'static {
    /// The type of the result, which the engine keeps as the outcome.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// The type of the error. Its text is part of the dead letter.
    type Error: Display + Send + 'static;

    /// Reads the key and the fingerprint from the message.
    ///
    /// # Errors
    /// This job cannot read the message.
    fn identify(&self, message: &M) -> Result<MessageKey, IdentifyError>;

    /// Does the work, under the policies of the processor's engine handle.
    ///
    /// # Errors
    /// The work failed.
    fn perform(&self, message: &M, claim: &Claim) -> Result<Self::Output, Self::Error>;

    /// Returns whether no retry can resolve the error: the message then becomes a dead letter at once. Default: never.
    fn is_poison(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// Creates a job for threads from two closures.
///
/// ```
/// use oncekey::Key;
/// use oncekey::consumer::{MessageKey, blocking_job};
///
/// let mail = blocking_job(
///     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
///     |order, _claim| Ok::<_, std::io::Error>(*order),
/// );
/// # let _ = mail;
/// ```
pub fn blocking_job<M, I, P, T, E>(
    identify: I,
    perform: P,
) -> impl BlockingJob<M, Output = T, Error = E> + use<M, I, P, T, E>
where
    M: 'static,
    I: Fn(&M) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    P: Fn(&M, &Claim) -> Result<T, E> + Send + Sync + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Display + Send + 'static,
{
    Closures { identify, perform, message: PhantomData }
}

struct Closures<M, I, P> {
    identify: I,
    perform: P,
    message: PhantomData<fn(M)>,
}

impl<M, I, P, T, E> BlockingJob<M> for Closures<M, I, P>
where
    M: 'static,
    I: Fn(&M) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    P: Fn(&M, &Claim) -> Result<T, E> + Send + Sync + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Display + Send + 'static,
{
    type Output = T;
    type Error = E;

    fn identify(&self, message: &M) -> Result<MessageKey, IdentifyError> {
        (self.identify)(message)
    }

    fn perform(&self, message: &M, claim: &Claim) -> Result<T, E> {
        (self.perform)(message, claim)
    }
}
