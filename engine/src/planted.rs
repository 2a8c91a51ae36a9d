//! Planted bugs: errors made on purpose, to verify that the test suites find them.
//!
//! The ordinary build contains none of them: there, `planted!(…)` is `false`. With `--cfg oncekey_planted_bugs`, the
//! environment variable `ONCEKEY_PLANTED_BUG` names the one bug that the process has. `tests/planted` builds the crates
//! this way, and runs the suites against each bug until one fails.
//!
//! This crate's own unit tests contain the bugs as well: [`with`] turns one on while a test's function runs.

/// Returns whether the named bug is on.
#[cfg(not(any(test, oncekey_planted_bugs)))]
#[doc(hidden)]
#[macro_export]
macro_rules! __planted {
    ($bug:ident) => {
        false
    };
}

/// Returns whether the named bug is on.
#[cfg(any(test, oncekey_planted_bugs))]
#[doc(hidden)]
#[macro_export]
macro_rules! __planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

/// The same macro, for use inside this crate.
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
            /// The bugs that can be planted.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub enum Bug { $($(#[$meaning])* $bug),* }

            impl Bug {
                /// All planted bugs.
                pub const ALL: &[Self] = &[$(Self::$bug),*];
            }
        };
    }

    bugs! {
        /// Any owner can complete a claim.
        CompleteByAnyone
        /// Any owner can renew a lease.
        RenewByAnyone
        /// Any owner can release a claim.
        ReleaseByAnyone
        /// Any owner can put a claim on hold.
        HoldByAnyone
        /// A takeover keeps the attempt number.
        AttemptNotRaised
        /// An abandoned claim is taken over under Hold.
        HeldTakenOver
        /// A key is claimed before its lease lapses.
        ClaimedWhileHeld
        /// Another fingerprint under a key in flight is not a mismatch.
        FingerprintIgnoredInFlight
        /// Another fingerprint under a completed key is not a mismatch.
        FingerprintIgnoredWhenCompleted
        /// A release does nothing.
        ReleaseLeavesTheRecord
        /// A record's retention never ends.
        RetentionForgotten
        /// Retention counts from the claim, not from its completion.
        RetentionFromTheStart
        /// The owner of a held key may no longer complete it.
        LateOwnerRefused
        /// A resolution of one attempt settles another.
        ResolvesAnotherAttempt
        /// A resolution of one claim settles a later claim with the same attempt number.
        LateWordTaken
        /// A withdrawn claim takes effect when it arrives late.
        WithdrawnClaimLands
        /// A message that was sent twice is judged by its second arrival.
        LostAnswerForgotten
        /// After a release, a key starts again at a low fencing token.
        TokenForgotten
        /// The same key in different scopes is one key.
        ScopeLeftOut
        /// A step begins for a holder that has lost its claim.
        StaleParentBeginsStep
        /// A key's next life replays the steps of its earlier life.
        OlderLifeReplays
        /// A step expires before its parent.
        OneStepExpires
        /// Another fingerprint claims a key that was released with steps.
        ReleasedKeyTakesAnotherBody
        /// A key is released although the result of a step is unknown.
        DroppedStepReleased
        /// A release forgets the steps.
        StepsForgottenAtRelease
        /// Steps of different keys are distinguished only by their names.
        StepsShareAName
        /// A record is removed, and its steps stay.
        OrphanLeft
        /// A value is stored although it reads back as another value.
        AnyValueStored
        /// A damaged outcome is replayed.
        ChecksumIgnored
        /// A claim whose result is unknown counts as refused.
        UnknownTakenForNo
        /// A step whose begin was not answered counts as not begun.
        UnknownStepTakenForNo
        /// A grant that arrives after its lease is used.
        LateGrantUsed
        /// A claim that is being withdrawn causes a mismatch.
        MismatchWhileTakingBack
        /// A completion whose result is unknown counts as refused.
        UnknownCommitTakenForNo
        /// Operations run unguarded while the store is unavailable, although the policy does not allow it.
        UnguardedWithoutLeave
        /// A claim whose hold is not stored yet is not renewed.
        HoldNotRenewed
        /// A renewal requested long ago confirms a claim.
        OldRenewalConfirms
        /// A settlement is given up at the settling limit.
        PendingSettlementDropped
        /// What a waiting caller held is kept until its limit after the caller has left.
        LeftWaitersKept
        /// An operation that has passed its run limit keeps its key.
        RunLimitForgotten
        /// An operation is completed although it ignored a conflict at which the database rolled its rows back.
        ContentionSwallowed
        /// A completion does not prove that its transaction is the one that began.
        TransactionNotProven
        /// An operation that ended its transaction itself counts as rolled back.
        EndedTransactionReleased
        /// Two calls of one key ask the store at the same time, and the claim of the later answer replaces the earlier
        /// one.
        ClaimFollowsTheRoute
        /// Leases are not renewed.
        HeartbeatStopped
        /// A completion that fails once is given up.
        CompletionNotRetried
        /// A lost claim is reported as a success.
        LostCompletionSwallowed
        /// Waiting callers are not notified when the claim ends.
        WaitersNotWoken
        /// Any number of calls may wait.
        WaitersNotCapped
        /// A panic does not settle its claim.
        PanicLeavesTheKey
        /// A dropped call does not settle its claim.
        DroppedGrantForgotten
        /// An operation ends with its caller.
        DroppedCallerStopsTheOperation
        /// The limit of calls is not enforced.
        AdmissionNotCounted
        /// A shutdown does not wait for claims that the store is still being asked for.
        ClaimOnItsWayForgotten
        /// Calls are accepted after the shutdown has begun.
        ShutdownTakesCalls
        /// A response with status 500 is stored as an outcome.
        ServerErrorStored
        /// Another caller's cookie is replayed.
        SetCookieReplayed
        /// A response over the size limit releases its key.
        LargeResponseForgotten
        /// The body is not part of the fingerprint.
        FingerprintWithoutTheBody
        /// The first of several keys is used.
        SeveralKeysTaken
        /// A purge removes claims that are held.
        PurgeTakesLiveClaims
        /// A key is looked up in one step and claimed in another.
        CheckThenLock
        /// Leases end by the machine's clock.
        LeaseByTheWallClock
        /// A watch never reports a change.
        WatchNeverTells
        /// A worker that leaves wakes no other.
        LastRingsNobody
    }

    #[cfg(test)]
    thread_local! {
        static HERE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Turns `bug` on for this thread while `run` runs.
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

    /// Returns whether this process has the bug.
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
