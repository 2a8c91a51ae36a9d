//! Errors planted on purpose, to see that the suites find them.
//!
//! The ordinary build has nothing of this: `planted!(…)` is `false` there. With `--cfg oncekey_planted_bugs` the
//! environment variable `ONCEKEY_PLANTED_BUG` names the one error that the process makes. `tests/planted` builds so, and
//! runs the suites against each until one fails.

/// Whether the named error is to be made.
#[cfg(not(oncekey_planted_bugs))]
#[doc(hidden)]
#[macro_export]
macro_rules! __planted {
    ($bug:ident) => {
        false
    };
}

/// Whether the named error is to be made.
#[cfg(oncekey_planted_bugs)]
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

#[cfg(oncekey_planted_bugs)]
pub use there::{Bug, is};

#[cfg(oncekey_planted_bugs)]
mod there {
    use std::sync::LazyLock;

    macro_rules! bugs {
        ($($bug:ident)*) => {
            /// What can be broken.
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            #[allow(missing_docs, reason = "the names say it")]
            pub enum Bug { $($bug),* }

            impl Bug {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$bug),*];
            }
        };
    }

    bugs! {
        CompleteByAnyone
        RenewByAnyone
        ReleaseByAnyone
        HoldByAnyone
        AttemptNotRaised
        HeldTakenOver
        ClaimedWhileHeld
        FingerprintIgnoredInFlight
        FingerprintIgnoredWhenCompleted
        ReleaseLeavesTheRecord
        RetentionForgotten
        RetentionFromTheStart
        LateOwnerRefused
        ResolvesAnotherAttempt
        LateWordTaken
        ScopeLeftOut
        ChecksumIgnored
        UnknownTakenForNo
        LateGrantUsed
        MismatchWhileTakingBack
        UnknownCommitTakenForNo
        UnguardedWithoutLeave
        HeartbeatStopped
        CompletionNotRetried
        LostCompletionSwallowed
        WaitersNotWoken
        WaitersNotCapped
        PanicLeavesTheKey
        DroppedGrantForgotten
        DroppedCallerStopsTheOperation
        AdmissionNotCounted
        ShutdownTakesCalls
        ServerErrorStored
        SetCookieReplayed
        LargeResponseForgotten
        FingerprintWithoutTheBody
        SeveralKeysTaken
        PurgeTakesLiveClaims
        CheckThenLock
        LeaseByTheWallClock
        WatchNeverTells
    }

    /// Whether this process makes this error.
    pub fn is(bug: Bug) -> bool {
        static WANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
            let name = std::env::var("ONCEKEY_PLANTED_BUG").ok()?;
            let found = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
            assert!(found.is_some(), "there is no planted bug of the name {name}");
            found.copied()
        });
        *WANTED == Some(bug)
    }
}
