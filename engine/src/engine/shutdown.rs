//! Ending an engine with care.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Engine;
use crate::supervisor::Drain;

/// How a shutdown went.
///
/// ```
/// use oncekey::Shutdown;
///
/// let clean = Shutdown { left_to_their_lease: 0 };
/// # let _ = clean;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Keys that were still in flight at the limit. Their operations are not stopped, but if the process ends now they
    /// are abandoned: each lease lapses, and what then happens is for the claim's [`OnAbandoned`](crate::OnAbandoned).
    pub left_to_their_lease: usize,
}

impl Engine {
    /// Takes no new calls, by any handle of this engine, and waits up to `limit` for those in flight to be settled.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting; the engine stays closed.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use oncekey::{Engine, Error, Key, RunError};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.shutdown(Duration::from_secs(10)).await.left_to_their_lease, 0);
    /// let late = engine.run(Key::new("mail", 17)?, &(), |_| async { Ok::<_, std::io::Error>(()) }).await;
    /// assert!(matches!(late, Err(RunError::Engine(Error::ShuttingDown))));
    /// # Ok(()) }
    /// ```
    pub async fn shutdown(&self, limit: Duration) -> Shutdown {
        self.nodes.shared().close();
        let drained = self.nodes.all().into_iter().map(|node| async move {
            let (waiting, drained) = oneshot::channel();
            if node.supervisor.try_send(Drain(waiting)).is_ok() {
                // An arbiter that stops meanwhile has nothing left to wait for.
                let _ = drained.await;
            }
        });
        let is_drained = timeout(limit, join_all(drained)).await.is_ok();
        let in_flight = if is_drained { 0 } else { self.keys_in_flight().await };
        Shutdown { left_to_their_lease: in_flight + self.nodes.shared().left_by_arbiters() }
    }
}
