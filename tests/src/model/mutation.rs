//! The errors that the model must notice.

/// An error planted in the store's steps: a model that does not notice is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A completion is taken from whoever sends it.
    CompleteByAnyone,
    /// A release is taken from whoever sends it.
    ReleaseByAnyone,
    /// A renewal is taken from whoever sends it.
    RenewByAnyone,
    /// A takeover keeps the attempt of the claim before.
    AttemptNotRaised,
    /// A lapsed claim to be held is taken over.
    HoldRerun,
    /// A claim is granted while another holds.
    ClaimedWhileHeld,
    /// A repeated completion writes once more.
    CompletedTwice,
    /// A completed key is claimed again.
    CompletedForgotten,
    /// A release leaves the claim where it is.
    ReleaseLeavesTheClaim,
    /// A purge takes lapsed claims before their time.
    PurgeTakesClaims,
    /// An operator's word is taken about whichever claim is there.
    ResolveAnything,
    /// A reconciler's word that comes late is taken about a later claim of the same number.
    LateWordTaken,
    /// An owner whose lease lapsed is refused though nobody took over.
    LateOwnerRefused,
    /// An unknown commit is sent again as if it had not happened.
    CommitRepeatedBlindly,
    /// Another fingerprint is taken for the same.
    FingerprintIgnored,
    /// A barrier keeps no claim out.
    WithdrawnClaimLands,
    /// A withdrawal that arrives once more gives the barrier its first name again.
    BarrierNameComesBack,
    /// Two calls of one process ask for a key at once, and the process renews the claim of the one that was answered last.
    HeartbeatFollowsTheRoute,
    /// A confirmation is given by a renewal that was sent before it, however old its answer is.
    ConfirmByOlderRenewal,
    /// A claim that nobody heard of is taken for refused.
    UnknownTakenForNo,
    /// A claim is not renewed while its hold is not stored.
    HoldNotRenewed,
}

impl Mutation {
    /// All of them.
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
