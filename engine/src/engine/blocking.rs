//! The engine for plain threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::Sender;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::{replayed, settlement};
use super::{Claim, Engine};
use crate::answer::Answer;
use crate::backend::StoreError;
use crate::call::{Admitted, Begin, Decision};
use crate::claims::{Grant, Settled};
use crate::{Error, EventKind, Fingerprint, Key, Outcome, RunError, ToFingerprint};

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
        let (mut operation, mut done) = (Some(operation), None);
        self.run_each_blocking(
            vec![(key, fingerprint)],
            // There is one call, and its operation runs once.
            |_, claim| operation.take().map(|operation| operation(claim)),
            |_, result| done = Some(result),
        );
        done.unwrap_or(Err(RunError::Engine(Error::Stopped)))
    }

    /// Runs several calls for a plain thread: their claims and outcomes are on their way to the store together, and the
    /// thread is woken far less often than for each by itself. [`run_all`](Self::run_all) is the same for async code.
    ///
    /// The operations run here one after the other, in any order; each gets its call's number. The results are in the
    /// order of the calls. A call that is refused, or fails, concerns no other. Two calls of one key in a batch are two
    /// callers of that key: the second is in flight elsewhere, waits, or replays, as the policy says. Keep a batch shorter
    /// than the lease: an operation that waits for the others longer than that is confirmed by the store first.
    ///
    /// # Errors
    /// Each call's as for [`run_blocking`](Self::run_blocking).
    ///
    /// ```
    /// use oncekey::{Engine, Fingerprint, Key, Outcome};
    /// use oncekey_backends::MemoryBackend;
    ///
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let orders = [17, 18, 19];
    /// let calls = orders.map(|order| Ok((Key::new("mail", order)?, Fingerprint::of(&[order]))));
    /// let calls = calls.into_iter().collect::<Result<Vec<_>, oncekey::KeyError>>()?;
    /// let sent = engine.run_all_blocking(calls, |number, _claim| Ok::<_, std::io::Error>(orders[number]));
    /// assert!(sent.iter().zip(orders).all(|(sent, order)| matches!(sent, Ok(Outcome::Ran(ran)) if *ran == order)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run_all_blocking<T, E>(
        &self,
        calls: Vec<(Key, Fingerprint)>,
        mut operation: impl FnMut(usize, &Claim) -> Result<T, E>,
    ) -> Vec<Result<Outcome<T>, RunError<E>>>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut results: Vec<_> = calls.iter().map(|_| None).collect();
        self.run_each_blocking(
            calls,
            |number, claim| Some(operation(number, claim)),
            |number, result| results[number] = Some(result),
        );
        results.into_iter().map(|result| result.unwrap_or(Err(RunError::Engine(Error::Stopped)))).collect()
    }

    /// Runs several calls for a plain thread, one operation after the other, while their claims and outcomes are on their
    /// way together: a thread is woken far less often than for each by itself. `done` is told of each, by its number.
    pub(crate) fn run_each_blocking<T, E>(
        &self,
        calls: Vec<(Key, Fingerprint)>,
        mut operation: impl FnMut(usize, &Claim) -> Option<Result<T, E>>,
        mut done: impl FnMut(usize, Result<Outcome<T>, RunError<E>>),
    ) where
        T: Serialize + DeserializeOwned,
    {
        let keys: Vec<Key> = calls.iter().map(|(key, _)| key.clone()).collect();
        // Each has room for its answer: the answering side never waits.
        let (sender, decisions) = crossbeam_channel::bounded(calls.len());
        let mut open: Vec<bool> = vec![true; calls.len()];
        if let Err(error) = self.send_to_home(calls, sender, |number, error| {
            open[number] = false;
            done(number, Err(error.into()));
        }) {
            // What was sent is answered or dropped all the same; nothing of it has begun.
            for number in (0..open.len()).filter(|number| open[*number]) {
                done(number, Err(error.clone().into()));
            }
            return;
        }
        let (settled_sender, settlements) = crossbeam_channel::bounded(keys.len());
        let derivation = &self.nodes.shared().settings.derivation;
        let mut settling: Vec<Option<Settling<T, E>>> = keys.iter().map(|_| None).collect();
        // The supervisor answers every call: the store has its deadline, and waiting its limit. If its arbiter ends, the
        // channel is closed.
        while let Ok((number, decision)) = decisions.recv() {
            open[number] = false;
            let key = &keys[number];
            match decision {
                Err(error) => done(number, Err(error.into())),
                Ok(Admitted::Replay(outcome)) => {
                    done(number, replayed(key, &outcome).map(Outcome::Replayed).map_err(RunError::Engine));
                }
                Ok(Admitted::Unguarded) => {
                    let claim = Claim::unguarded(key.clone(), derivation);
                    let ran = catch_unwind(AssertUnwindSafe(|| operation(number, &claim)));
                    done(
                        number,
                        match ran {
                            Ok(Some(Ok(value))) => Ok(Outcome::Ran(value)),
                            Ok(Some(Err(error))) => Err(RunError::Operation(error)),
                            Ok(None) => Err(Error::Stopped.into()),
                            Err(_) => Err(Error::Panicked.into()),
                        },
                    );
                }
                Ok(Admitted::Granted(mut grant)) => {
                    let retention = self.policy.retention;
                    let claim = Claim::completed_by_its_operation(key.clone(), &grant, retention, derivation);
                    // The operations before it may have taken longer than its lease.
                    if let Err(error) = grant.begin_blocking() {
                        done(number, Err(error.into()));
                        continue;
                    }
                    let result = match catch_unwind(AssertUnwindSafe(|| operation(number, &claim))) {
                        Ok(Some(result)) => Ok(result),
                        Ok(None) => {
                            done(number, Err(Error::Stopped.into()));
                            continue;
                        }
                        Err(panic) => Err(panic),
                    };
                    let (settlement, answer) = settlement(self.nodes.shared(), key, &self.policy, result);
                    let sent = grant.settle_for_thread(settlement, &settled_sender, number);
                    match sent {
                        Ok(()) => settling[number] = Some(Settling { grant, answer }),
                        Err(error) => done(number, told(Err(error), answer)),
                    }
                }
            }
        }
        drop(settled_sender);
        // Each lock gives up by itself after its limits, so that this ends.
        while let Ok((number, settled)) = settlements.recv() {
            if let Some(Settling { mut grant, answer }) = settling[number].take() {
                done(number, told(grant.note(settled), answer));
            }
        }
        for (number, open) in open.into_iter().enumerate() {
            if let Some(Settling { answer, .. }) = settling[number].take() {
                let unknown = StoreError::unknown("its arbiter has stopped");
                done(number, told(Err(Error::OutcomeNotStored(unknown)), answer));
            } else if open {
                done(number, Err(Error::Stopped.into()));
            }
        }
    }

    /// Sends calls to the home arbiter; `refused` is told of those that find no place there.
    fn send_to_home(
        &self,
        calls: Vec<(Key, Fingerprint)>,
        decisions: Sender<(usize, Decision)>,
        mut refused: impl FnMut(usize, Error),
    ) -> Result<(), Error> {
        let (node, bridge) = self.nodes.home()?;
        let admitted =
            calls.into_iter().enumerate().filter_map(|(number, (key, fingerprint))| match node.admit(&key) {
                Ok(permit) => {
                    Some(Begin::new(key, fingerprint, &self.policy, Answer::Thread(decisions.clone(), number), permit))
                }
                Err(error) => {
                    self.tell(EventKind::Overloaded, &key);
                    refused(number, error);
                    None
                }
            });
        bridge.send(admitted)
    }
}

/// An operation that ran, its claim on the way to be settled.
struct Settling<T, E> {
    grant: Grant,
    answer: Result<Outcome<T>, RunError<E>>,
}

/// The operation's own error is the one to tell; its value only once it is stored.
fn told<T, E>(
    settled: Result<Settled, Error>,
    answer: Result<Outcome<T>, RunError<E>>,
) -> Result<Outcome<T>, RunError<E>> {
    match (settled, answer) {
        (Err(error), Ok(_)) => Err(RunError::Engine(error)),
        (_, answer) => answer,
    }
}
