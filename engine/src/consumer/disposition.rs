//! How a message is settled.

use std::fmt;
use std::time::Duration;

/// How a source settles a message.
///
/// ```
/// use oncekey::consumer::Disposition;
///
/// assert_eq!(Disposition::Ack.name(), "ack");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// The message is done, by this delivery or an earlier one. The broker must not deliver it again.
    Ack,
    /// The message must be delivered again.
    RetryLater {
        /// The shortest time until the next delivery.
        after: Duration,
        /// Whether the job ran and failed. The source counts these failures and reports the count with the next
        /// delivery ([`Delivery::failures`](super::Delivery::failures)). It does not count retries for other reasons.
        failed: bool,
    },
    /// The message is set aside, with the reason, for a person to examine.
    DeadLetter {
        /// The job's last error, or the engine's reason.
        reason: String,
    },
}

impl Disposition {
    /// Returns the name that logs and metrics use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::RetryLater { .. } => "retry_later",
            Self::DeadLetter { .. } => "dead_letter",
        }
    }

    /// Gives a message back unprocessed, for immediate redelivery, because the consumer ends.
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
