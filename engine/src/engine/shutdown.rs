//! Shuts an engine down: refuses new claims and waits for those in flight.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Engine;
use crate::supervisor::Drain;

/// The result of a shutdown.
///
/// ```
/// use oncekey::Shutdown;
///
/// let clean = Shutdown { unfinished: 0 };
/// # let _ = clean;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// The number of keys still in flight at the limit, plus the claims left by arbiters that have stopped. The engine
    /// does not stop the operations. If the process ends now, they are abandoned: when a lease lapses, the claim's
    /// [`OnAbandoned`](crate::OnAbandoned) decides.
    pub unfinished: usize,
}

impl Engine {
    /// Stops accepting new claims on every handle of this engine, and waits up to `limit` until the claims in flight
    /// are settled. Completed keys still replay.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait; the engine stays closed.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use oncekey::{Engine, Error, Key, RunError};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.shutdown(Duration::from_secs(10)).await.unfinished, 0);
    /// let late = engine.run(Key::new("mail", 17)?, &(), |_| async { Ok::<_, std::io::Error>(()) }).await;
    /// assert!(matches!(late, Err(RunError::Engine(Error::ShuttingDown))));
    /// # Ok(()) }
    /// ```
    pub async fn shutdown(&self, limit: Duration) -> Shutdown {
        self.nodes.shared().close();
        let drained = self.nodes.all().into_iter().map(|node| async move {
            let (waiting, drained) = oneshot::channel();
            if node.supervisor.try_send(Drain(waiting)).is_ok() {
                // An arbiter that stops in the meantime has nothing left to wait for.
                let _ = drained.await;
            }
        });
        let is_drained = timeout(limit, join_all(drained)).await.is_ok();
        let in_flight = if is_drained { 0 } else { self.keys_in_flight().await };
        Shutdown { unfinished: in_flight + self.nodes.shared().left_by_arbiters() }
    }
}
