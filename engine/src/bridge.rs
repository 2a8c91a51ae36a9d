//! The bridge from plain threads to the engine: a bounded crossbeam channel that the home arbiter drains.

use std::sync::Arc;

use actix::prelude::*;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::Notify;

use crate::Error;
use crate::call::Begin;
use crate::supervisor::Supervisor;

/// The threads' end of the channel. A thread that finds the channel full waits; this is the back-pressure.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    calls: Sender<Begin>,
    wake: Arc<Notify>,
}

impl Bridge {
    /// Starts the receiving end on the current arbiter.
    pub(crate) fn start(supervisor: Arc<Addr<Supervisor>>, depth: usize) -> Self {
        let (calls, taken) = bounded(depth);
        let wake = Arc::new(Notify::new());
        actix_rt::spawn(carry(taken, Arc::clone(&wake), supervisor));
        Self { calls, wake }
    }

    /// Sends calls, and wakes the arbiter once for all of them.
    pub(crate) fn send(&self, calls: impl IntoIterator<Item = Begin>) -> Result<(), Error> {
        for call in calls {
            match self.calls.try_send(call) {
                Ok(()) => {}
                Err(TrySendError::Full(call)) => {
                    self.wake.notify_one();
                    self.calls.send(call).map_err(|_| Error::Stopped)?;
                }
                Err(TrySendError::Disconnected(_)) => return Err(Error::Stopped),
            }
        }
        self.wake.notify_one();
        Ok(())
    }
}

/// Forwards the threads' calls to the supervisor. On the arbiter, only `try_recv` is allowed, because a blocked arbiter
/// serves no caller.
async fn carry(calls: Receiver<Begin>, wake: Arc<Notify>, supervisor: Arc<Addr<Supervisor>>) {
    while supervisor.connected() {
        for call in calls.try_iter() {
            // A supervisor that has just ended drops the call, and the thread gets `Error::Stopped`.
            let _ = supervisor.try_send(call);
        }
        wake.notified().await;
    }
}
