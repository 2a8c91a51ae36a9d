//! What becomes of a message.

use std::fmt;
use std::time::Duration;

/// What becomes of a message: the one word that its source is told.
///
/// ```
/// use oncekey::consumer::Disposition;
///
/// assert_eq!(Disposition::Ack.name(), "ack");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It is done, by this delivery or an earlier one: it is not to come again.
    Ack,
    /// It is to come again.
    RetryLater {
        /// Not before this time has passed.
        after: Duration,
        /// Whether the job was tried and failed. The source counts these, and tells them with the next delivery
        /// ([`Delivery::failures`](super::Delivery::failures)); a retry for another reason is not counted.
        failed: bool,
    },
    /// It is to be put aside, with the reason, for a person to look at.
    DeadLetter {
        /// Why: the last error of the job, or the engine's reason.
        reason: String,
    },
}

impl Disposition {
    /// The name, as logs and metrics show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::RetryLater { .. } => "retry_later",
            Self::DeadLetter { .. } => "dead_letter",
        }
    }

    /// Given back untouched, to come again at once: by a consumer that ends.
    pub(crate) fn give_back() -> Self {
        Self::RetryLater { after: Duration::ZERO, failed: false }
    }
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack => f.write_str("ack"),
            Self::RetryLater { after, .. } => write!(f, "retry in {after:?}"),
            Self::DeadLetter { reason } => write!(f, "dead letter: {reason}"),
        }
    }
}
