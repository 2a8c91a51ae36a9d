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
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 15] = [
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
    ];
}
