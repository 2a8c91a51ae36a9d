//! The model's transitions, each tied to the checks by which every backend is held to it.

/// One arrow of the record's life, as the model takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transition {
    /// A fresh key is claimed.
    Claim,
    /// A claim is asked for again by its owner.
    ClaimRepeated,
    /// A lapsed claim that may be rerun is taken over.
    Takeover,
    /// A claim of another is met.
    InProgress,
    /// An outcome is met.
    Replay,
    /// A lapsed claim that is to be held becomes indeterminate.
    Lapse,
    /// A claim is renewed.
    Renew,
    /// An outcome is stored.
    Complete,
    /// An outcome is stored once more by its owner.
    CompleteRepeated,
    /// An outcome and its effect are committed.
    Commit,
    /// A probe finds an unknown commit done.
    ProbedCommitted,
    /// A probe finds an unknown commit not done.
    ProbedUncommitted,
    /// A claim is given up.
    Release,
    /// A claim of unknown fate is withdrawn.
    Withdraw,
    /// A claim meets the barrier of a withdrawn one.
    Barred,
    /// A claim is held by its owner's word.
    Hold,
    /// Whoever has lost the claim is refused.
    StaleRefused,
    /// An operator says that the effect happened.
    ResolveCompleted,
    /// An operator says that it did not.
    ResolveReleased,
    /// A word that comes too late, about a claim that is no more, is refused.
    StaleWord,
    /// A record whose time is over goes away.
    Expire,
}

impl Transition {
    /// All of them.
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

    /// The checks of the conformance suite that hold a real store to it.
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
