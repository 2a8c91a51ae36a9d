//! The engine for plain threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::{replayed, settlement};
use super::{Claim, Engine};
use crate::call::{Admitted, Answer, Begin};
use crate::{Error, EventKind, Key, Outcome, RunError, ToFingerprint};

impl Engine {
    /// [`run`](Self::run) for a plain thread: it blocks until the outcome is stored, or the engine says why not.
    ///
    /// The call goes by a bounded channel to an arbiter of the engine's own; the operation runs here. A full channel
    /// makes the thread wait. Don't call this on an arbiter or in an async task: it would hold up all others there.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    ///
    /// ```
    /// use oncekey::{Engine, Key, Outcome};
    /// use oncekey_backends::MemoryBackend;
    ///
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let key = Key::new("mail", 17)?;
    /// let sent = engine.run_blocking(key.clone(), &"to: ada", |_claim| Ok::<_, std::io::Error>("sent".to_owned()))?;
    /// assert_eq!(sent, Outcome::Ran("sent".into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run_blocking<T, E>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        operation: impl FnOnce(&Claim) -> Result<T, E>,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
    {
        let fingerprint = fingerprint.to_fingerprint().map_err(Error::from)?;
        if self.nodes.shared().is_closing() {
            return Err(Error::ShuttingDown.into());
        }
        let (node, bridge) = self.nodes.home()?;
        let permit = node.admit(&key).inspect_err(|_| self.tell(EventKind::Overloaded, &key))?;
        let (sender, receiver) = crossbeam_channel::bounded(1);
        bridge.send(Begin::new(key.clone(), fingerprint, &self.policy, Answer::Thread(sender), permit))?;
        // The supervisor answers every call: the store has its deadline, and waiting its limit.
        match receiver.recv().unwrap_or(Err(Error::Stopped))? {
            Admitted::Replay(outcome) => Ok(Outcome::Replayed(replayed(&key, &outcome)?)),
            Admitted::Unguarded => match catch_unwind(AssertUnwindSafe(|| operation(&Claim::unguarded(key)))) {
                Ok(Ok(value)) => Ok(Outcome::Ran(value)),
                Ok(Err(error)) => Err(RunError::Operation(error)),
                Err(_) => Err(Error::Panicked.into()),
            },
            Admitted::Granted(mut grant) => {
                let claim = Claim::of(key.clone(), &grant).kept_for(
                    &grant,
                    self.policy.retention,
                    &self.nodes.shared().settings.at_rest,
                );
                grant.begin();
                let result = catch_unwind(AssertUnwindSafe(|| operation(&claim)));
                let (settlement, answer) = settlement(self.nodes.shared(), &key, &self.policy, result);
                match (grant.settle_blocking(settlement), answer) {
                    (Ok(_), answer) => answer,
                    (Err(_), Err(error)) => Err(error),
                    (Err(error), Ok(_)) => Err(RunError::Engine(error)),
                }
            }
        }
    }
}
