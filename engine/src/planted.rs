//! Errors planted on purpose, to see that the suites find them.
//!
//! The ordinary build has nothing of this: `planted!(…)` is `false` there. With `--cfg oncekey_planted_bugs` the
//! environment variable `ONCEKEY_PLANTED_BUG` names the one error that the process makes. `tests/planted` builds so, and
//! runs the suites against each until one fails.
//!
//! This crate's own unit tests have the errors as well: [`with`] makes one for as long as a test's function runs.

/// Whether the named error is to be made.
#[cfg(not(any(test, oncekey_planted_bugs)))]
#[doc(hidden)]
#[macro_export]
macro_rules! __planted {
    ($bug:ident) => {
        false
    };
}

/// Whether the named error is to be made.
#[cfg(any(test, oncekey_planted_bugs))]
#[doc(hidden)]
#[macro_export]
macro_rules! __planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

/// The same inside of this crate.
macro_rules! planted {
    ($bug:ident) => {
        $crate::__planted!($bug)
    };
}

#[cfg(test)]
pub(crate) use there::with;
#[cfg(any(test, oncekey_planted_bugs))]
pub use there::{Bug, is};

#[cfg(any(test, oncekey_planted_bugs))]
mod there {
    #[cfg(test)]
    use std::cell::Cell;
    use std::sync::LazyLock;

    macro_rules! bugs {
        ($($(#[$meaning:meta])* $bug:ident)*) => {
            /// What can be broken.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum Bug { $($(#[$meaning])* $bug),* }

            impl Bug {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$bug),*];
            }
        };
    }

    bugs! {
        /// A completion counts whoever sends it.
        CompleteByAnyone
        /// A lease is renewed for anyone.
        RenewByAnyone
        /// Anyone releases a claim.
        ReleaseByAnyone
        /// Anyone puts a claim on hold.
        HoldByAnyone
        /// A take-over keeps the attempt's number.
        AttemptNotRaised
        /// An abandoned claim is taken over under Hold.
        HeldTakenOver
        /// A key is claimed while its lease lasts.
        ClaimedWhileHeld
        /// Another request under a key in flight is no mismatch.
        FingerprintIgnoredInFlight
        /// Another request under a completed key is no mismatch.
        FingerprintIgnoredWhenCompleted
        /// A release does nothing.
        ReleaseLeavesTheRecord
        /// A record is never past its retention.
        RetentionForgotten
        /// Retention counts from the claim, not from its completion.
        RetentionFromTheStart
        /// The owner of a held key may not complete it any more.
        LateOwnerRefused
        /// A word about one attempt settles another.
        ResolvesAnotherAttempt
        /// A word about one claim settles a later one of the same number.
        LateWordTaken
        /// A claim that was withdrawn lands when it arrives late.
        WithdrawnClaimLands
        /// A step that was sent twice is judged by its second time.
        LostAnswerForgotten
        /// A key that was released starts again at a low fencing token.
        TokenForgotten
        /// Keys of all scopes are the same.
        ScopeLeftOut
        /// A step begins for a holder that has lost its claim.
        StaleParentBeginsStep
        /// The steps of a key's earlier life are those of the next one.
        OlderLifeReplays
        /// A step goes away while its parent is there.
        OneStepExpires
        /// Another request claims a key that was released with steps.
        ReleasedKeyTakesAnotherBody
        /// A key is released although nobody knows what became of a step.
        DroppedStepReleased
        /// A release forgets the steps.
        StepsForgottenAtRelease
        /// The steps of two keys are told apart by their names alone.
        StepsShareAName
        /// A record goes, and its steps stay.
        OrphanLeft
        /// A value is stored that is read back as another.
        AnyValueStored
        /// A damaged outcome is replayed.
        ChecksumIgnored
        /// A claim of unknown fate is taken for refused.
        UnknownTakenForNo
        /// A step whose begin has no answer is taken for not begun.
        UnknownStepTakenForNo
        /// A grant that is heard after its lease is used.
        LateGrantUsed
        /// A claim that is being taken back makes a mismatch.
        MismatchWhileTakingBack
        /// A completion of unknown fate is taken for refused.
        UnknownCommitTakenForNo
        /// Operations run while the store is away, though nobody allowed it.
        UnguardedWithoutLeave
        /// A claim whose hold is not stored yet is not renewed.
        HoldNotRenewed
        /// A renewal that was asked for long ago confirms a claim.
        OldRenewalConfirms
        /// A settlement is given up at the settling limit.
        PendingSettlementDropped
        /// What a caller held who has left stays until its limit.
        LeftWaitersKept
        /// An operation that has passed its run limit keeps its key.
        RunLimitForgotten
        /// An operation that passes over a conflict, at which the database has rolled its rows back, is completed.
        ContentionSwallowed
        /// A completion does not prove that its transaction is the one that began.
        TransactionNotProven
        /// An operation that has ended its transaction by itself is taken for one that was rolled back.
        EndedTransactionReleased
        /// Two calls of one key ask the store side by side, and the later answer's claim takes the earlier one's place.
        ClaimFollowsTheRoute
        /// Leases are not renewed.
        HeartbeatStopped
        /// A completion that fails once is given up.
        CompletionNotRetried
        /// A lost claim is told as a success.
        LostCompletionSwallowed
        /// Who waits is not told of the end.
        WaitersNotWoken
        /// Any number of calls may wait.
        WaitersNotCapped
        /// A panic leaves its claim.
        PanicLeavesTheKey
        /// A call that is dropped leaves its claim.
        DroppedGrantForgotten
        /// An operation ends with its caller.
        DroppedCallerStopsTheOperation
        /// The limit of calls is none.
        AdmissionNotCounted
        /// A shutdown does not wait for claims that are on their way.
        ClaimOnItsWayForgotten
        /// Calls are taken after the end was told.
        ShutdownTakesCalls
        /// A response of 500 is an outcome.
        ServerErrorStored
        /// Another's cookie is replayed.
        SetCookieReplayed
        /// A response that is too large releases its key.
        LargeResponseForgotten
        /// The body is not part of the fingerprint.
        FingerprintWithoutTheBody
        /// Of several keys the first is taken.
        SeveralKeysTaken
        /// A purge takes claims that are held.
        PurgeTakesLiveClaims
        /// A key is looked at in one step, and claimed in another.
        CheckThenLock
        /// Leases end by the machine's date.
        LeaseByTheWallClock
        /// A watch never tells.
        WatchNeverTells
        /// A worker that leaves wakes nobody.
        LastRingsNobody
    }

    #[cfg(test)]
    thread_local! {
        static HERE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Makes this error on this thread while `run` runs.
    #[cfg(test)]
    pub(crate) fn with<T>(bug: Bug, run: impl FnOnce() -> T) -> T {
        struct Reset;

        impl Drop for Reset {
            fn drop(&mut self) {
                HERE.set(None);
            }
        }

        HERE.set(Some(bug));
        let _reset = Reset;
        run()
    }

    /// Whether this process makes this error.
    pub fn is(bug: Bug) -> bool {
        #[cfg(test)]
        if HERE.get() == Some(bug) {
            return true;
        }
        static WANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
            let name = std::env::var("ONCEKEY_PLANTED_BUG").ok()?;
            let found = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
            assert!(found.is_some(), "there is no planted bug of the name {name}");
            found.copied()
        });
        *WANTED == Some(bug)
    }
}
