//! Where messages come from.

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
    /// The message; shared, so that a source that keeps it in memory can deliver it again.
    pub message: Arc<M>,
    /// What it is settled by.
    pub receipt: R,
    /// How often it was settled as [`RetryLater`](Disposition::RetryLater) with `failed` before.
    pub failures: u32,
}

/// A broker's queue, as a [`Processor`](super::Processor) sees it. A source is thin: it takes the next message, and
/// settles one by its disposition. The guide to [sources of your own](crate::guide::writing_a_source) writes one.
///
/// It reconnects by itself: an error of [`next`](Self::next) goes to the log, and the processor asks again a moment later.
/// It may deliver a message any number of times, to any number of processors at once; it must not lose one that was never
/// settled as [`Ack`](Disposition::Ack) or [`DeadLetter`](Disposition::DeadLetter).
///
/// An `Arc` of a source is a source: keep a clone to have the source after its processor ended, or to give several
/// processors the same one.
pub trait Source: Send + Sync + 'static {
    /// What it delivers.
    type Message: Send + Sync + 'static;
    /// What it settles a delivery by. The processor keeps a clone until the source has taken the settle.
    type Receipt: Clone + Send + 'static;
    /// Why it can't.
    type Error: Error + Send + Sync + 'static;

    /// Waits for the next message; `None` when there will be none any more. It is not called again before it has
    /// answered.
    ///
    /// # Cancel safety
    /// It is dropped midway only when the processor ends. A message that it has taken by then must come again by itself.
    #[expect(clippy::type_complexity, reason = "an implementation writes it as an async fn, without the half of it")]
    fn next(&self) -> impl Future<Output = Result<Option<Delivery<Self::Message, Self::Receipt>>, Self::Error>> + Send;

    /// Settles a delivery. It is called while [`next`](Self::next) waits, and for several deliveries at once.
    ///
    /// If it fails, the processor calls it again with the same receipt and the same disposition, a moment later and then
    /// ever more rarely, for as long as the source [can settle](Self::can_settle) by that receipt. The job does not run
    /// for it. A dead letter must be kept before the message is taken from the queue. A settle that has no answer after a
    /// second takes no job's place any more; give it a limit of its own.
    fn settle(
        &self,
        receipt: Self::Receipt,
        disposition: Disposition,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether a receipt still settles its message. It is asked after [`settle`](Self::settle) failed.
    ///
    /// Return `false` once the connection that a receipt belongs to has ended: the message then comes again by itself, as
    /// it does when a consumer dies. Default: a receipt outlives connections, and is always good.
    fn can_settle(&self, receipt: &Self::Receipt) -> bool {
        let _ = receipt;
        true
    }

    /// Takes no further messages: those that the broker would send from now on are left to other consumers. Called once,
    /// when the processor begins to end; [`settle`](Self::settle) is called after it. Default: nothing, which is right
    /// where messages are taken only while [`next`](Self::next) runs.
    fn end_intake(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Gives back what it has taken and not delivered yet. Called once, when the processor ends.
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
