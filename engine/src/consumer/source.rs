//! The interface between a processor and a broker's queue.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use super::Disposition;

/// One delivery of a message.
///
/// ```
/// use oncekey::consumer::Delivery;
///
/// let delivery = Delivery { message: "to: ada".into(), receipt: 17, failures: 0 };
/// # let _: Delivery<&str, u64> = delivery;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<M, R> {
    /// The message, shared so that a source that keeps it in memory can deliver it again.
    pub message: Arc<M>,
    /// The receipt with which the processor settles this delivery.
    pub receipt: R,
    /// How many times the message was settled before as [`RetryLater`](Disposition::RetryLater) with `failed` set.
    pub failures: u32,
}

/// A broker's queue, as a [`Processor`](super::Processor) uses it. A source takes the next message and settles messages
/// by their disposition. The guide to [sources of your own](crate::guide::writing_a_source) shows how to write one.
///
/// A source reconnects by itself. The processor logs an error of [`next`](Self::next) and calls it again after a short
/// delay. A source may deliver a message any number of times, to any number of processors at once. It must not lose a
/// message that was never settled as [`Ack`](Disposition::Ack) or [`DeadLetter`](Disposition::DeadLetter).
///
/// An `Arc` of a source is also a source. Keep a clone to use the source after its processor has ended, or to share it
/// among processors.
pub trait Source: Send + Sync + 'static {
    /// The type of the messages that it delivers.
    type Message: Send + Sync + 'static;
    /// Identifies a delivery when it is settled. The processor keeps a clone until the source has settled the delivery.
    type Receipt: Clone + Send + 'static;
    /// Why the source could not take or settle a message.
    type Error: Error + Send + Sync + 'static;

    /// Waits for the next message; returns `None` when there will be no more. The processor makes one call at a time.
    ///
    /// # Cancel safety
    /// The processor drops this future early only when it ends. A message that it has taken by then must be delivered
    /// again.
    #[expect(clippy::type_complexity, reason = "an implementation writes it as an async fn, without the half of it")]
    fn next(&self) -> impl Future<Output = Result<Option<Delivery<Self::Message, Self::Receipt>>, Self::Error>> + Send;

    /// Settles a delivery. The processor calls it while [`next`](Self::next) waits, and for several deliveries at once.
    ///
    /// If it fails, the processor calls it again with the same receipt and disposition, with increasing delays, for as
    /// long as the source [can settle](Self::can_settle) with that receipt. The job does not run again for this. The
    /// source must store a dead letter before it removes the message from the queue. A call without an answer for one
    /// second no longer occupies a job's place; set a time limit of your own.
    fn settle(
        &self,
        receipt: Self::Receipt,
        disposition: Disposition,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns whether a receipt can still settle its message. The processor asks after [`settle`](Self::settle) has
    /// failed.
    ///
    /// Return `false` once the connection of the receipt has ended: the broker then delivers the message again, as it
    /// does when a consumer dies. By default, receipts outlive connections and are always valid.
    fn can_settle(&self, receipt: &Self::Receipt) -> bool {
        let _ = receipt;
        true
    }

    /// Stops taking messages, so that the broker delivers new messages to other consumers. The processor calls it once,
    /// when it begins to end, and may call [`settle`](Self::settle) afterwards. The default does nothing, which is
    /// right if only [`next`](Self::next) takes messages.
    fn end_intake(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Gives back messages that the source has taken and not delivered. The processor calls it once, when it ends.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

impl<S: Source> Source for Arc<S> {
    type Message = S::Message;
    type Receipt = S::Receipt;
    type Error = S::Error;

    async fn next(&self) -> Result<Option<Delivery<S::Message, S::Receipt>>, S::Error> {
        S::next(self).await
    }

    async fn settle(&self, receipt: S::Receipt, disposition: Disposition) -> Result<(), S::Error> {
        S::settle(self, receipt, disposition).await
    }

    fn can_settle(&self, receipt: &S::Receipt) -> bool {
        S::can_settle(self, receipt)
    }

    async fn end_intake(&self) {
        S::end_intake(self).await;
    }

    async fn close(&self) {
        S::close(self).await;
    }
}
