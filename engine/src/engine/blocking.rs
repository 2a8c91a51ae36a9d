//! The engine's calls for plain threads.

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
    /// [`run`](Self::run) for a plain thread. It blocks until the outcome is stored, or until the engine returns an
    /// error.
    ///
    /// The call reaches an arbiter that the engine owns through a bounded channel; the operation runs on the calling
    /// thread. A full channel makes the thread wait. Don't call it on an arbiter or in an async task: it would block
    /// all other work there.
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
            // There is only one call, and its operation runs once.
            |_, claim| operation.take().map(|operation| operation(claim)),
            |_, result| done = Some(result),
        );
        done.unwrap_or(Err(RunError::Engine(Error::Stopped)))
    }

    /// Runs several calls on a plain thread. The engine sends their claims and outcomes to the store together, and
    /// wakes the thread far less often than for separate calls. [`run_all`](Self::run_all) does the same for async
    /// code.
    ///
    /// The operations run on the calling thread one after the other, in any order; each receives its call's number. The
    /// results are in the order of the calls. A call that is refused or fails does not affect the others. Two calls
    /// with one key in a batch are two callers of that key: the second is refused as in progress, waits, or replays, as
    /// the policy says. Keep a batch shorter than the lease: before an operation that has waited longer than that, the
    /// engine confirms its claim with the store.
    ///
    /// # Errors
    /// For each call, as for [`run_blocking`](Self::run_blocking).
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

    /// Runs several calls on a plain thread: their operations run one after the other, while their claims and outcomes
    /// travel together. This wakes the thread far less often than separate calls. Calls `done` with each call's number
    /// and result.
    pub(crate) fn run_each_blocking<T, E>(
        &self,
        calls: Vec<(Key, Fingerprint)>,
        mut operation: impl FnMut(usize, &Claim) -> Option<Result<T, E>>,
        mut done: impl FnMut(usize, Result<Outcome<T>, RunError<E>>),
    ) where
        T: Serialize + DeserializeOwned,
    {
        let keys: Vec<Key> = calls.iter().map(|(key, _)| key.clone()).collect();
        // The channel has room for every answer, so the answering side never waits.
        let (sender, decisions) = crossbeam_channel::bounded(calls.len());
        let mut open: Vec<bool> = vec![true; calls.len()];
        if let Err(error) = self.send_to_home(calls, sender, |number, error| {
            open[number] = false;
            done(number, Err(error.into()));
        }) {
            // The calls that were sent are still answered or dropped, and none of their operations has begun.
            for number in (0..open.len()).filter(|number| open[*number]) {
                done(number, Err(error.clone().into()));
            }
            return;
        }
        let (settled_sender, settlements) = crossbeam_channel::bounded(keys.len());
        let derivation = &self.nodes.shared().settings.derivation;
        let mut settling: Vec<Option<Settling<T, E>>> = keys.iter().map(|_| None).collect();
        // The supervisor answers every call: store calls have a deadline, and waiting has a limit. If its arbiter ends,
        // the channel closes.
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
                    // The operations before this one may have taken longer than its lease.
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
        // Each lock gives up after its own limits, so this loop ends.
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

    /// Sends calls to the home arbiter. Calls `refused` for each call that is not admitted there.
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

/// An operation that ran, and whose claim is being settled.
struct Settling<T, E> {
    grant: Grant,
    answer: Result<Outcome<T>, RunError<E>>,
}

/// Returns the operation's own error if it has one, and its value only once that is stored.
fn told<T, E>(
    settled: Result<Settled, Error>,
    answer: Result<Outcome<T>, RunError<E>>,
) -> Result<Outcome<T>, RunError<E>> {
    match (settled, answer) {
        (Err(error), Ok(_)) => Err(RunError::Engine(error)),
        (_, answer) => answer,
    }
}
