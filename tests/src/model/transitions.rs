//! The model's transitions, each tied to the checks that hold every backend to it.

/// One transition of the record's life cycle, as the model takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transition {
    /// A fresh key is claimed.
    Claim,
    /// An owner repeats its claim.
    ClaimRepeated,
    /// A lapsed claim that may be rerun is taken over.
    Takeover,
    /// An acquire finds another owner's claim.
    InProgress,
    /// An acquire finds an outcome.
    Replay,
    /// A lapsed claim under Hold becomes indeterminate.
    Lapse,
    /// A claim is renewed.
    Renew,
    /// An outcome is stored.
    Complete,
    /// An owner repeats its completion.
    CompleteRepeated,
    /// An outcome and its effect are committed.
    Commit,
    /// A probe finds that an unknown commit happened.
    ProbedCommitted,
    /// A probe finds that an unknown commit did not happen.
    ProbedUncommitted,
    /// A claim is released.
    Release,
    /// A claim of unknown fate is withdrawn.
    Withdraw,
    /// An acquire finds the barrier of a withdrawn claim.
    Barred,
    /// A claim is put on hold by its owner.
    Hold,
    /// A request of an owner that has lost the claim is refused.
    StaleRefused,
    /// An operator resolves that the effect happened.
    ResolveCompleted,
    /// An operator resolves that the effect did not happen.
    ResolveReleased,
    /// A late resolution of a claim that no longer exists is refused.
    StaleWord,
    /// An expired record disappears.
    Expire,
}

impl Transition {
    /// All transitions.
    pub const ALL: [Self; 21] = [
        Self::Claim,
        Self::ClaimRepeated,
        Self::Takeover,
        Self::InProgress,
        Self::Replay,
        Self::Lapse,
        Self::Renew,
        Self::Complete,
        Self::CompleteRepeated,
        Self::Commit,
        Self::ProbedCommitted,
        Self::ProbedUncommitted,
        Self::Release,
        Self::Withdraw,
        Self::Barred,
        Self::Hold,
        Self::StaleRefused,
        Self::ResolveCompleted,
        Self::ResolveReleased,
        Self::StaleWord,
        Self::Expire,
    ];

    /// Returns the checks of the conformance suite that hold a real store to this transition.
    pub fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Claim => &["e01_one_of_many_acquires_wins", "e01_one_of_many_calls_runs"],
            Self::ClaimRepeated => &["e06_steps_can_be_repeated_by_their_owner"],
            Self::Takeover => &["e05_a_lapsed_lease_is_taken_over_where_it_may_be_rerun"],
            Self::InProgress => &["e01_one_of_many_acquires_wins", "e03_another_fingerprint_is_a_mismatch"],
            Self::Replay => &["e02_a_completed_key_replays_until_its_retention_ends"],
            Self::Lapse => &["e05_a_lapsed_lease_is_indeterminate_where_it_is_held"],
            Self::Renew => &["e04_a_renewed_lease_holds", "e04_a_long_operation_keeps_its_key"],
            Self::Complete => &[
                "e02_a_completed_key_replays_until_its_retention_ends",
                "e02_retention_begins_with_the_completion",
                "e06_a_late_owner_completes_what_nobody_took_over",
            ],
            Self::CompleteRepeated => {
                &["e06_steps_can_be_repeated_by_their_owner", "e12_a_lost_answer_to_a_completion_is_found_again"]
            }
            Self::Commit => &["e18_the_outcome_commits_with_the_operation"],
            Self::ProbedCommitted => &["e12_a_lost_answer_to_a_completion_is_found_again"],
            Self::ProbedUncommitted => &["e18_a_failed_transaction_leaves_the_claim"],
            Self::Release => &["e07_release_frees_at_once", "e09_an_error_frees_the_key_or_holds_it"],
            Self::Withdraw | Self::Barred => &["e11_a_lost_answer_to_an_acquire_leaves_no_claim"],
            Self::Hold => &["e09_an_error_frees_the_key_or_holds_it"],
            Self::StaleRefused => &["e06_a_stale_owner_changes_nothing"],
            Self::ResolveCompleted | Self::ResolveReleased | Self::StaleWord => {
                &["e05_resolve_settles_an_indeterminate_key"]
            }
            Self::Expire => &[
                "e02_a_completed_key_replays_until_its_retention_ends",
                "e14_expired_records_are_purged_in_bounded_batches",
            ],
        }
    }
}
