//! What must hold in every state, and what must happen somewhere.

use stateright::Property;

use super::store::Answer;
use super::{Ask, Broken, Job, Life, Mode, Phase, Protocol, State};

pub(super) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always("never two live owners", |_, state| no(state, &[Broken::TwoOwners])),
        Property::always("an outcome once stored stands for its retention", |_, state| {
            no(state, &[Broken::OutcomeChanged])
        }),
        Property::always("a stale owner changes nothing", |_, state| no(state, &[Broken::StaleWrite])),
        Property::always("the owner is never refused", |_, state| no(state, &[Broken::OwnerRefused])),
        Property::always("at most one effect under Hold and in transactions", |_, state| {
            no(state, &[Broken::TwoEffects])
        }),
        Property::always("a takeover raises the attempt, and takes nothing that is held", |_, state| {
            no(state, &[Broken::AttemptNotRaised, Broken::HeldTakenOver])
        }),
        Property::always("a withdrawn claim never lands", |_, state| no(state, &[Broken::WithdrawnClaimLanded])),
        Property::always("a key on which nothing began never becomes indeterminate", nothing_began_nothing_stays),
        Property::always("a live claim is always renewed", live_claims_are_renewed),
        Property::always("no confirmation while another holder has the key", |_, state| {
            no(state, &[Broken::ConfirmedWhileHeld])
        }),
        Property::always("answers tell what stands there", |_, state| no(state, &[Broken::WrongAnswer])),
        Property::always("another fingerprint is refused", another_fingerprint_is_refused),
        Property::always("an operator's word about another attempt changes nothing", another_attempt_is_not_resolved),
        Property::always("a stranger changes nothing", strangers_change_nothing),
        Property::always("every abandoned key can be settled", every_key_settles),
        // A model in which these never happen proves nothing.
        Property::sometimes("a process works whose lease has lapsed", |protocol: &Protocol, state: &State| {
            state.jobs().any(|job| {
                let record = state.records[usize::from(job.key)].as_ref();
                matches!(job.phase, Phase::Working { .. })
                    && protocol.store.now(record, job.key).is_some_and(|now| {
                        now.owner == job.owner
                            && matches!(now.life, Life::Indeterminate | Life::Claimed { left: ..=0, .. })
                    })
            })
        }),
        Property::sometimes("a process asks for a key whose claim it withdraws", |_, state: &State| {
            let asks = |jobs: &[Job]| jobs.iter().any(|job| job.phase == Phase::Asking);
            state.processes.iter().any(|process| asks(&process.jobs) && process.jobs.iter().any(|job| !job.is_routed()))
        }),
        Property::sometimes("a call waits for another of its process", |_, state: &State| {
            state.jobs().any(|job| job.joined)
        }),
        Property::sometimes("two processes work on one key that may be rerun", |_, state: &State| {
            let mut keys: Vec<_> =
                state.jobs().filter(|job| matches!(job.phase, Phase::Working { .. })).map(|job| job.key).collect();
            keys.sort_unstable();
            keys.windows(2).any(|pair| pair[0] == pair[1])
        }),
    ]
}

fn no(state: &State, broken: &[Broken]) -> bool {
    !state.ghosts.iter().any(|ghost| ghost.broken.is_some_and(|found| broken.contains(&found)))
}

/// Once a process has finished with a claim under which nothing began, that claim does not make the key indeterminate.
fn nothing_began_nothing_stays(protocol: &Protocol, state: &State) -> bool {
    state.records.iter().zip(&state.ghosts).zip(0..).all(|((record, ghost), key)| {
        protocol.store.now(record.as_ref(), key).is_none_or(|now| {
            now.life != Life::Indeterminate
                || ghost.began.has(now.owner)
                || ghost.excused.has(now.owner)
                || state.jobs().any(|job| job.owner == now.owner)
        })
    })
}

/// A process renews every claim under which it works, or that it settles in a way that needs a valid claim.
fn live_claims_are_renewed(protocol: &Protocol, state: &State) -> bool {
    state.jobs().all(|job| {
        let is_live = match job.phase {
            Phase::Asking => false,
            Phase::Working { .. } => true,
            Phase::Settling(ask) => matches!(ask, Ask::Complete | Ask::Transact | Ask::Probe | Ask::Hold),
        };
        !is_live || protocol.renews(job)
    })
}

fn another_fingerprint_is_refused(protocol: &Protocol, state: &State) -> bool {
    state.records.iter().zip(0..).all(|(record, key)| {
        protocol
            .store
            .now(record.as_ref(), key)
            .is_none_or(|_| record.as_ref().is_none_or(|found| protocol.store.refuses_another_fingerprint(found, key)))
    })
}

fn another_attempt_is_not_resolved(protocol: &Protocol, state: &State) -> bool {
    state.records.iter().zip(0..).all(|(record, key)| {
        record.as_ref().is_none_or(|found| {
            let (after, resolved) = protocol.store.resolve(Some(found), key, (found.attempt + 1, None), true);
            !resolved && after.as_ref() == Some(found)
        })
    })
}

/// Requests from an owner that never claimed the key change nothing.
fn strangers_change_nothing(protocol: &Protocol, state: &State) -> bool {
    const STRANGER: u8 = 200;
    state.records.iter().zip(0..).all(|(record, key)| {
        [Ask::Renew, Ask::Confirm, Ask::Complete, Ask::Transact, Ask::Release, Ask::Hold].into_iter().all(|ask| {
            let (after, answer) = protocol.store.take(record.as_ref(), ask, key, STRANGER);
            after == *record && answer == Answer::Lost
        })
    })
}

/// If all processes and messages vanish now, then time, one caller and, where the effect is in doubt, one operator are
/// enough to settle every key.
fn every_key_settles(protocol: &Protocol, state: &State) -> bool {
    const NEWCOMER: u8 = 201;
    state.records.iter().zip(0..).all(|(record, key)| {
        let mut record = record.clone();
        for _ in 0..super::LEASE {
            record = record.map(super::Stored::aged);
        }
        let ask = |found: Option<&super::Stored>| {
            let (after, answer) = protocol.store.take(found, Ask::Acquire { past: None }, key, NEWCOMER);
            match answer {
                Answer::Withdrawn(name) => {
                    protocol.store.take(after.as_ref(), Ask::Acquire { past: Some(name) }, key, NEWCOMER)
                }
                answer => (after, answer),
            }
        };
        let (after, answer) = ask(record.as_ref());
        let may_be_held = protocol.store.mode(key) == Mode::Hold || state.ghosts[usize::from(key)].was_held;
        let answer = match answer {
            Answer::Indeterminate if may_be_held => {
                let attempt = after.as_ref().map_or(0, |found| found.attempt);
                let (after, resolved) = protocol.store.resolve(after.as_ref(), key, (attempt, None), false);
                if !resolved {
                    return false;
                }
                ask(after.as_ref()).1
            }
            other => other,
        };
        matches!(answer, Answer::Claimed { .. } | Answer::Replay(_))
    })
}
