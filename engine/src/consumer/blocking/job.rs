//! The work of a plain thread.

use std::fmt::Display;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Claim;
use crate::consumer::{Identity, Unreadable};

/// The work that is done, once, for each message, by a plain thread that may block.
///
/// ```
/// use oncekey::consumer::{BlockingJob, Identity, Unreadable};
/// use oncekey::{Claim, Key};
///
/// struct SendMail;
///
/// impl BlockingJob<u64> for SendMail {
///     type Output = String;
///     type Error = std::io::Error;
///
///     fn identify(&self, order: &u64) -> Result<Identity, Unreadable> {
///         Ok(Identity::new(Key::new("mail", order)?, order)?)
///     }
///
///     fn perform(&self, order: &u64, claim: &Claim) -> Result<String, std::io::Error> {
///         Ok(format!("mail for order {order}, attempt {}", claim.attempt()))
///     }
/// }
/// ```
pub trait BlockingJob<M>: Send + Sync + 'static {
    /// What it gives, kept as the outcome.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What it fails with. Its text goes with a dead letter.
    type Error: Display + Send + 'static;

    /// Reads key and fingerprint from the message.
    ///
    /// # Errors
    /// The message is none that this job can read.
    fn identify(&self, message: &M) -> Result<Identity, Unreadable>;

    /// Does the work. The engine's policies are those of the processor's handle.
    ///
    /// # Errors
    /// The work could not be done.
    fn perform(&self, message: &M, claim: &Claim) -> Result<Self::Output, Self::Error>;

    /// Whether the error is of a kind that no retry heals: the message becomes a dead letter at once. Default: never.
    fn is_poison(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// A job for threads from two closures.
///
/// ```
/// use oncekey::Key;
/// use oncekey::consumer::{Identity, blocking_job};
///
/// let mail = blocking_job(
///     |order: &u64| Ok(Identity::new(Key::new("mail", order)?, order)?),
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
    I: Fn(&M) -> Result<Identity, Unreadable> + Send + Sync + 'static,
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
    I: Fn(&M) -> Result<Identity, Unreadable> + Send + Sync + 'static,
    P: Fn(&M, &Claim) -> Result<T, E> + Send + Sync + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Display + Send + 'static,
{
    type Output = T;
    type Error = E;

    fn identify(&self, message: &M) -> Result<Identity, Unreadable> {
        (self.identify)(message)
    }

    fn perform(&self, message: &M, claim: &Claim) -> Result<T, E> {
        (self.perform)(message, claim)
    }
}
