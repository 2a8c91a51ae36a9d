//! The truth about a key, kept beside the store. The promises are checked against it, never against the record alone.

use super::store::{Answer, OPERATORS};
use super::{Ask, LEASE, Life, Mode, RETENTION, Stored, Transition};

/// The truth about one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// The owner of the current claim.
    pub claimant: Option<u8>,
    /// For how many more ticks the store has promised the claim.
    pub lease: i8,
    /// The highest attempt of this life of the key.
    pub attempt: u8,
    /// Whether only a reconciler or an operator can settle the claim.
    pub held: bool,
    /// The current outcome, and for how many ticks it is kept.
    pub completed: Option<(u8, i8)>,
    /// How often the effect happened in this life of the key, if it must happen at most once.
    pub effects: u8,
    /// Whether the holder has put the claim on hold in this life of the key.
    pub was_held: bool,
    /// The owners whose claims a withdrawal has withdrawn.
    pub withdrawn: Owners,
    /// The owners whose operations began.
    pub began: Owners,
    /// The owners that may leave a claim on which nothing began, because their process crashed or the network repeated
    /// their acquire.
    pub excused: Owners,
    /// The first broken promise.
    pub broken: Option<Broken>,
}

/// A set of owners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Owners(u32);

impl Owners {
    /// Returns whether the set contains this owner.
    pub fn has(self, owner: u8) -> bool {
        self.0 & (1 << owner) != 0
    }

    /// Adds an owner.
    pub fn add(&mut self, owner: u8) {
        self.0 |= 1 << owner;
    }

    fn keep(&mut self, others: Self) {
        self.0 &= others.0;
    }
}

/// A broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A claim was granted while another owner's lease held.
    TwoOwners,
    /// An effect that happens at most once happened twice.
    TwoEffects,
    /// An outcome changed or disappeared before its time.
    OutcomeChanged,
    /// A request changed a record of another owner.
    StaleWrite,
    /// The holder of a claim was refused.
    OwnerRefused,
    /// A takeover did not raise the attempt.
    AttemptNotRaised,
    /// A claim under Hold was taken over.
    HeldTakenOver,
    /// The store's answer does not match its record.
    WrongAnswer,
    /// A different request was treated as the same one.
    FingerprintIgnored,
    /// A claim was granted after its withdrawal.
    WithdrawnClaimLanded,
    /// A holder's claim was confirmed while another owner held the key.
    ConfirmedWhileHeld,
}

impl Ghost {
    pub(super) fn breaks(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    pub(super) fn ends(&mut self) {
        let Self { withdrawn, began, excused, broken, .. } = *self;
        *self = Self { withdrawn, began, excused, broken, ..Self::default() };
    }

    /// Forgets owners of which nothing is left.
    pub fn keeps(&mut self, left: Owners) {
        [&mut self.withdrawn, &mut self.began, &mut self.excused].into_iter().for_each(|owners| owners.keep(left));
    }

    /// A holder learns that its claim is still valid.
    pub fn confirms(&mut self, owner: u8) {
        if self.lease > 0 && self.claimant.is_some_and(|claimant| claimant != owner) {
            self.breaks(Broken::ConfirmedWhileHeld);
        }
    }

    fn completes(&mut self, outcome: u8) {
        (self.claimant, self.lease, self.held) = (None, 0, false);
        self.completed = Some((outcome, RETENTION));
    }

    /// Records an external effect.
    pub fn effect(&mut self, mode: Mode) {
        // Effects that may be rerun are not counted.
        self.effects += u8::from(mode != Mode::Rerun);
        if self.effects > 1 {
            self.breaks(Broken::TwoEffects);
        }
    }

    /// Lets one tick pass. An outcome is kept while a barrier stands.
    pub fn ages(&mut self, is_barred: bool) {
        self.lease = (self.lease - 1).max(0);
        if let Some((_, left)) = &mut self.completed {
            *left = (*left - 1).max(i8::from(is_barred));
            if *left <= 0 {
                self.ends();
            }
        }
    }

    /// Compares what the store did with a request to what it may do, and returns the transition.
    pub fn observes(
        &mut self,
        mode: Mode,
        ask: Ask,
        owner: u8,
        answer: Answer,
        before: Option<&Stored>,
        after: Option<&Stored>,
    ) -> Transition {
        if let Ask::Word { happened, .. } = ask {
            return self.is_resolved(owner, happened, answer, before != after);
        }
        let rightful = self.claimant == Some(owner);
        let is_acquire = matches!(ask, Ask::Acquire { .. });
        if !rightful && !is_acquire && before != after {
            self.breaks(Broken::StaleWrite);
        }
        match answer {
            Answer::Claimed { attempt, took_over } => return self.claims(mode, owner, attempt, took_over),
            Answer::Replay(outcome) => {
                if self.completed.is_none_or(|(stands, _)| stands != outcome) {
                    self.breaks(Broken::OutcomeChanged);
                }
                return Transition::Replay;
            }
            Answer::InProgress => {
                if self.claimant.is_none() || self.lease == 0 {
                    self.breaks(Broken::WrongAnswer);
                }
                return Transition::InProgress;
            }
            Answer::Indeterminate => {
                if (mode != Mode::Hold && !self.was_held) || self.completed.is_some() || (self.lease > 0 && !self.held)
                {
                    self.breaks(Broken::WrongAnswer);
                }
                self.held = true;
                return Transition::Lapse;
            }
            Answer::Withdrawn(_) => {
                let is_lapsed = self.claimant.is_some() && self.lease == 0 && mode != Mode::Hold;
                if self.completed.is_some() || self.held || (self.claimant.is_some() && !is_lapsed) {
                    self.breaks(Broken::WrongAnswer);
                }
                return Transition::Barred;
            }
            Answer::Mismatch => self.breaks(Broken::WrongAnswer),
            Answer::Lost => {
                if rightful {
                    self.breaks(Broken::OwnerRefused);
                }
                return Transition::StaleRefused;
            }
            Answer::RolledBack if !rightful => self.breaks(Broken::WrongAnswer),
            Answer::RolledBack => return Transition::ProbedUncommitted,
            Answer::Done | Answer::Committed => {}
        }
        match ask {
            Ask::Renew | Ask::Confirm => {
                (self.lease, self.held) = (LEASE, false);
                Transition::Renew
            }
            Ask::Complete | Ask::Transact | Ask::Probe if !rightful => {
                // The sender repeats its own request.
                if self.completed.is_some_and(|(stands, _)| stands != owner && stands != OPERATORS) {
                    self.breaks(Broken::StaleWrite);
                }
                if answer == Answer::Committed {
                    self.effect(mode);
                }
                if ask == Ask::Probe { Transition::ProbedCommitted } else { Transition::CompleteRepeated }
            }
            Ask::Complete | Ask::Transact | Ask::Probe => {
                self.completes(owner);
                if answer == Answer::Committed {
                    self.effect(mode);
                }
                if ask == Ask::Complete { Transition::Complete } else { Transition::Commit }
            }
            Ask::Release => {
                self.ends();
                if after.is_some() {
                    self.breaks(Broken::WrongAnswer);
                }
                Transition::Release
            }
            Ask::Withdraw => {
                self.withdrawn.add(owner);
                if rightful {
                    self.ends();
                    if after.is_some() {
                        self.breaks(Broken::WrongAnswer);
                    }
                }
                Transition::Withdraw
            }
            Ask::Hold => {
                (self.held, self.was_held, self.lease) = (true, true, 0);
                Transition::Hold
            }
            Ask::Acquire { .. } | Ask::Word { .. } => {
                self.breaks(Broken::WrongAnswer);
                Transition::Claim
            }
        }
    }

    fn claims(&mut self, mode: Mode, owner: u8, attempt: u8, took_over: bool) -> Transition {
        if self.completed.is_some() {
            self.breaks(Broken::OutcomeChanged);
        }
        if self.withdrawn.has(owner) {
            self.breaks(Broken::WithdrawnClaimLanded);
        }
        let again = self.claimant == Some(owner);
        if !again && self.claimant.is_some() {
            if self.lease > 0 {
                self.breaks(Broken::TwoOwners);
            }
            if mode == Mode::Hold {
                self.breaks(Broken::HeldTakenOver);
            }
            if took_over && attempt <= self.attempt {
                self.breaks(Broken::AttemptNotRaised);
            }
        }
        (self.claimant, self.lease, self.attempt) = (Some(owner), LEASE, attempt);
        match (again, took_over) {
            (true, _) => Transition::ClaimRepeated,
            (false, true) => Transition::Takeover,
            (false, false) => Transition::Claim,
        }
    }

    /// Records a resolution of the claim of `owner`.
    fn is_resolved(&mut self, owner: u8, happened: bool, answer: Answer, changed: bool) -> Transition {
        if answer == Answer::Lost {
            if changed {
                self.breaks(Broken::StaleWrite);
            }
            return Transition::StaleWord;
        }
        if self.claimant != Some(owner) {
            self.breaks(Broken::StaleWrite);
        }
        if happened {
            self.completes(OPERATORS);
            return Transition::ResolveCompleted;
        }
        self.ends();
        Transition::ResolveReleased
    }

    /// Compares the store's record with the truth.
    pub fn compares(&mut self, now: Option<&Stored>) {
        let stands = now.and_then(|record| match record.life {
            Life::Completed { outcome, .. } => Some(outcome),
            _ => None,
        });
        if stands != self.completed.map(|(outcome, _)| outcome) {
            self.breaks(Broken::OutcomeChanged);
        }
        // A claim that may be rerun is forgotten if no caller took it over. A claim under Hold never is.
        if now.is_none() && self.held {
            self.breaks(Broken::OutcomeChanged);
        }
    }
}
