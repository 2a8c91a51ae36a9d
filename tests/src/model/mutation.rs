//! The planted bugs that the model must notice.

/// A bug planted in the store's steps. A model that does not notice it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A completion is accepted from any sender.
    CompleteByAnyone,
    /// A release is accepted from any sender.
    ReleaseByAnyone,
    /// A renewal is accepted from any sender.
    RenewByAnyone,
    /// A takeover keeps the attempt of the previous claim.
    AttemptNotRaised,
    /// A lapsed claim under Hold is taken over.
    HoldRerun,
    /// A claim is granted while another one holds.
    ClaimedWhileHeld,
    /// A repeated completion writes again.
    CompletedTwice,
    /// A completed key is claimed again.
    CompletedForgotten,
    /// A release leaves the claim in place.
    ReleaseLeavesTheClaim,
    /// A purge removes lapsed claims before their time.
    PurgeTakesClaims,
    /// An operator's resolution applies to whichever claim is there.
    ResolveAnything,
    /// A reconciler's late resolution applies to a later claim with the same attempt number.
    LateWordTaken,
    /// An owner whose lease lapsed is refused although nobody took over.
    LateOwnerRefused,
    /// A commit of unknown result is sent again as if it had not happened.
    CommitRepeatedBlindly,
    /// Another fingerprint is treated as the same one.
    FingerprintIgnored,
    /// A barrier refuses no claim.
    WithdrawnClaimLands,
    /// A withdrawal that arrives again restores the barrier's first name.
    BarrierNameComesBack,
    /// Two calls of one process ask for a key at once, and the process renews the claim that was answered last.
    HeartbeatFollowsTheRoute,
    /// A renewal that was sent before a confirmation answers it, however old the answer is.
    ConfirmByOlderRenewal,
    /// A claim without an answer counts as refused.
    UnknownTakenForNo,
    /// A claim is not renewed while its hold is not stored yet.
    HoldNotRenewed,
}

impl Mutation {
    /// All mutations.
    pub const ALL: [Self; 21] = [
        Self::CompleteByAnyone,
        Self::ReleaseByAnyone,
        Self::RenewByAnyone,
        Self::AttemptNotRaised,
        Self::HoldRerun,
        Self::ClaimedWhileHeld,
        Self::CompletedTwice,
        Self::CompletedForgotten,
        Self::ReleaseLeavesTheClaim,
        Self::PurgeTakesClaims,
        Self::ResolveAnything,
        Self::LateWordTaken,
        Self::LateOwnerRefused,
        Self::CommitRepeatedBlindly,
        Self::FingerprintIgnored,
        Self::WithdrawnClaimLands,
        Self::BarrierNameComesBack,
        Self::HeartbeatFollowsTheRoute,
        Self::ConfirmByOlderRenewal,
        Self::UnknownTakenForNo,
        Self::HoldNotRenewed,
    ];
}
