//! Random messages about one record with steps, sent to Redis and to the memory store, which runs the protocol's own
//! functions. Both must always give the same answers.

use std::collections::BTreeMap;
use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Complete, CompleteStep, FailStep, Hold, List, Lookup, Release, Remove,
    Renew, Resolution, Resolve, ResolveStep, StateView, Stats, StepResolution, StoreError, Withdraw,
};
use oncekey::record::{Owner, Progress, SealedOutcome, StepName, StepRun};
use oncekey::{FencingToken, Fingerprint, Key, OnAbandoned, StepPolicy};
use oncekey_backends::MemoryBackend;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{CLUSTER, SENTINEL, SERVER, fresh_prefix, open};

const LONG: Duration = Duration::from_secs(3_600);
const NAMES: [&str; 3] = ["charge", "mail", "reserve"];

/// A message that names claims and runs by number.
#[derive(Debug, Clone)]
enum Asked {
    Acquire {
        owner: Owner,
        asked: u8,
        on_abandoned: OnAbandoned,
    },
    /// Ends the claim's lease at once.
    Lapse {
        owner: Owner,
    },
    Renew {
        owner: Owner,
    },
    Begin {
        owner: Owner,
        name: StepName,
        number: u32,
        asked: Option<u8>,
        policy: StepPolicy,
    },
    CompleteStep {
        claim: usize,
        life: usize,
        name: StepName,
        number: u32,
    },
    FailStep {
        owner: Owner,
        claim: usize,
        name: StepName,
        number: u32,
    },
    ResolveStep {
        name: StepName,
        run: Option<(usize, u32)>,
        completes: bool,
    },
    Complete {
        owner: Owner,
    },
    Release {
        owner: Owner,
    },
    Withdraw {
        owner: Owner,
    },
    Hold {
        owner: Owner,
    },
    Resolve {
        completes: bool,
    },
    Remove,
}

/// One store, and the tokens that it gave, which are named by number.
struct Side<B> {
    backend: B,
    key: Key,
    tokens: Vec<FencingToken>,
}

impl<B: Backend> Side<B> {
    fn number_of(&self, token: FencingToken) -> Option<usize> {
        self.tokens.iter().position(|known| *known == token)
    }

    fn token(&self, claim: usize) -> FencingToken {
        self.tokens.get(claim).copied().unwrap_or(FencingToken::new(1))
    }

    fn shown<T: std::fmt::Debug>(&self, answer: Result<T, StoreError>) -> String {
        let mut text = format!("{:?}", answer.unwrap());
        for (number, token) in self.tokens.iter().enumerate() {
            text = text.replace(&format!("FencingToken({token})"), &format!("token {number}"));
        }
        text
    }

    /// Returns the answer as text, without the store's own tokens and times.
    async fn ask(&mut self, asked: &Asked) -> String {
        let key = self.key.clone();
        let outcome = || SealedOutcome::of_value(&key, &17).unwrap();
        match asked.clone() {
            Asked::Acquire { owner, asked, on_abandoned } => {
                let mut message = Acquire {
                    key: key.clone(),
                    fingerprint: Fingerprint::of(&[asked]),
                    owner,
                    lease: LONG,
                    on_abandoned,
                    past_withdrawal: None,
                };
                loop {
                    match self.backend.acquire(message.clone()).await.unwrap() {
                        Acquired::Withdrawn { owner } => message.past_withdrawal = Some(Box::new(owner)),
                        Acquired::Claimed { attempt, token, took_over, steps } => {
                            if self.number_of(token).is_none() {
                                assert!(self.tokens.last().is_none_or(|last| *last < token));
                                self.tokens.push(token);
                            }
                            let steps = steps.map(|steps| self.steps(&steps));
                            return format!("claim {:?} {attempt} {took_over} {steps:?}", self.number_of(token));
                        }
                        Acquired::InProgress { .. } => return "in progress".to_owned(),
                        other => return format!("{other:?}"),
                    }
                }
            }
            Asked::Lapse { owner } => {
                let answer = self.backend.renew(Renew { key, owner, lease: Duration::ZERO }).await;
                tokio::time::sleep(Duration::from_millis(3)).await;
                self.shown(answer)
            }
            Asked::Renew { owner } => {
                let answer = self.backend.renew(Renew { key, owner, lease: LONG }).await;
                self.shown(answer)
            }
            Asked::Begin { owner, name, number, asked, policy } => {
                let fingerprint = asked.map(|asked| Fingerprint::of(&[asked]));
                let message = BeginStep { key, owner, name, fingerprint, number, policy, retention: LONG };
                let answer = self.backend.begin_step(message).await;
                self.shown(answer)
            }
            Asked::CompleteStep { claim, life, name, number } => {
                let run = StepRun { token: self.token(claim), number };
                let outcome = outcome();
                let message = CompleteStep { key, life: self.token(life), name, run, outcome };
                let answer = self.backend.complete_step(message).await;
                self.shown(answer)
            }
            Asked::FailStep { owner, claim, name, number } => {
                let run = StepRun { token: self.token(claim), number };
                let answer = self.backend.fail_step(FailStep { key, owner, name, run, retention: LONG }).await;
                self.shown(answer)
            }
            Asked::ResolveStep { name, run, completes } => {
                let run = run.map(|(claim, number)| StepRun { token: self.token(claim), number });
                let with =
                    if completes { StepResolution::Complete { outcome: outcome() } } else { StepResolution::Release };
                let answer = self.backend.resolve_step(ResolveStep { key, name, run, life: None, with }).await;
                self.shown(answer)
            }
            Asked::Complete { owner } => {
                let outcome = outcome();
                let answer = self.backend.complete(Complete { key, owner, outcome, retention: LONG }).await;
                self.shown(answer)
            }
            Asked::Release { owner } => {
                let answer = self.backend.release(Release { key, owner }).await;
                self.shown(answer)
            }
            Asked::Withdraw { owner } => {
                let answer = self.backend.withdraw(Withdraw { key, owner }).await;
                self.shown(answer)
            }
            Asked::Hold { owner } => {
                let answer = self.backend.hold(Hold { key, owner }).await;
                self.shown(answer)
            }
            Asked::Resolve { completes } => {
                let with = if completes {
                    Resolution::Complete { outcome: outcome(), retention: LONG }
                } else {
                    Resolution::Release
                };
                let answer = self.backend.resolve(Resolve { key, attempt: None, owner: None, with }).await;
                self.shown(answer)
            }
            Asked::Remove => {
                let answer = self.backend.remove(Remove { key }).await;
                self.shown(answer)
            }
        }
    }

    fn steps(&self, steps: &oncekey::record::Steps) -> Vec<String> {
        let life = self.number_of(steps.life);
        let shown = steps.list.iter().map(|step| {
            let until = step.reruns_until.map(|until| {
                if until == oncekey::record::StoreTime::END { -1 } else { i64::from(until > step.began_at) }
            });
            let progress = match &step.progress {
                Progress::Completed(outcome) => format!("{outcome:?}"),
                other => other.name().to_owned(),
            };
            let (run, number) = (self.number_of(step.run.token), step.run.number);
            let (name, attempt) = (&step.name, step.attempt);
            format!("{life:?} {name} {attempt} {run:?}.{number} {:?} {until:?} {progress}", step.fingerprint)
        });
        shown.chain([format!("{:?}", steps.retention)]).collect()
    }

    /// Returns the record as inspection shows it.
    async fn look(&self) -> String {
        let looked = self.backend.lookup(Lookup { key: self.key.clone() }).await.unwrap();
        let listed = self.backend.list(List { after: None, limit: 10 }).await.unwrap();
        assert_eq!(looked.is_some(), listed.len() == 1);
        let stats = self.backend.stats(Stats).await.unwrap();
        let Some(view) = looked else { return format!("nothing {stats:?}") };
        let listed = listed.into_iter().next().unwrap();
        assert_eq!((&view.steps, view.token), (&listed.steps, listed.token));
        let state = match view.state {
            StateView::InProgress { lease_left } => format!("in progress, lapsed {}", lease_left.is_zero()),
            StateView::Completed { outcome, expires_in } => format!("{outcome:?} {}", expires_in > LONG / 2),
            StateView::Indeterminate => "indeterminate".to_owned(),
            StateView::Released { expires_in } => format!("released {}", expires_in > LONG / 2),
        };
        let (token, steps) = (self.number_of(view.token), view.steps.map(|steps| self.steps(&steps)));
        // Counts ignore steps.
        let stats = (stats.in_progress + stats.indeterminate, stats.completed, stats.released);
        format!("{token:?} {} {:?} {state} {steps:?} {stats:?}", view.attempt, view.fingerprint)
    }
}

/// What the sender of messages knows.
struct Sender {
    chance: StdRng,
    /// Every owner that ever asked for the key.
    owners: Vec<Owner>,
    /// The owner of the latest claim, and the claim's number.
    holder: (Owner, usize),
    released: Vec<Owner>,
    /// The latest run of each step.
    runs: BTreeMap<String, (usize, u32)>,
    life: usize,
    number: u32,
}

impl Sender {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.chance.random_range(0..of.len())].clone()
    }

    /// Returns mostly the holder, and sometimes a stale owner.
    fn owner(&mut self) -> Owner {
        if self.chance.random_bool(0.85) { self.holder.0 } else { self.one(&self.owners.clone()) }
    }

    fn claim(&mut self) -> usize {
        if self.chance.random_bool(0.85) { self.holder.1 } else { self.chance.random_range(0..=self.holder.1) }
    }

    /// Returns mostly the latest run of the step, and sometimes an earlier or later one.
    fn run(&mut self, name: &StepName) -> (usize, u32) {
        match self.runs.get(name.as_str()) {
            Some(run) if self.chance.random_bool(0.75) => *run,
            _ => (self.claim(), (self.number + 1).saturating_sub(self.chance.random_range(0..3))),
        }
    }

    fn learn(&mut self, asked: &Asked, answer: &str) {
        let number = |text: &str| text.split(|sign: char| !sign.is_ascii_digit()).find_map(|part| part.parse().ok());
        match asked {
            Asked::Acquire { owner, .. } if answer.starts_with("claim") => {
                self.holder = (*owner, number(answer).unwrap());
            }
            Asked::Begin { name, number: run, .. } if answer.starts_with("Begun") => {
                self.life = number(answer.split("life: token ").nth(1).unwrap()).unwrap();
                self.runs.insert(name.to_string(), (self.holder.1, *run));
            }
            _ => {}
        }
    }

    fn next(&mut self) -> Asked {
        let name = StepName::new(self.one(&NAMES)).unwrap();
        let owner = self.owner();
        match self.chance.random_range(0..100) {
            0..18 => {
                // Sometimes the same holder asks again.
                let is_again = self.chance.random_bool(0.2) && !self.released.contains(&owner);
                let owner = if is_again { owner } else { Owner::random() };
                self.owners.push(owner);
                let policies = [OnAbandoned::Resume, OnAbandoned::Resume, OnAbandoned::Rerun, OnAbandoned::Hold];
                let asked = u8::from(self.chance.random_bool(0.05));
                Asked::Acquire { owner, asked, on_abandoned: self.one(&policies) }
            }
            18..26 => Asked::Lapse { owner },
            26..56 => {
                // Sometimes a message is late, or is sent again.
                if self.chance.random_bool(0.85) {
                    self.number += 1;
                }
                let policies = [
                    StepPolicy::Hold,
                    StepPolicy::Rerun,
                    StepPolicy::RerunWithin(LONG),
                    StepPolicy::RerunWithin(Duration::ZERO),
                ];
                let asked = [None, None, None, Some(1), Some(2)];
                let (asked, policy) = (self.one(&asked), self.one(&policies));
                Asked::Begin { owner, name, number: self.number, asked, policy }
            }
            56..74 => {
                let (claim, number) = self.run(&name);
                let life = if self.chance.random_bool(0.9) { self.life } else { self.claim() };
                Asked::CompleteStep { claim, life, name, number }
            }
            74..79 => {
                let (claim, number) = self.run(&name);
                Asked::FailStep { owner, claim, name, number }
            }
            79..84 => {
                let run = self.chance.random_bool(0.3).then(|| self.run(&name));
                Asked::ResolveStep { name, run, completes: self.chance.random_bool(0.5) }
            }
            84..86 if !self.released.contains(&owner) => Asked::Complete { owner },
            86..91 => {
                self.released.push(owner);
                Asked::Release { owner }
            }
            91..93 => {
                self.released.push(owner);
                Asked::Withdraw { owner }
            }
            93..95 => Asked::Hold { owner },
            95..98 => Asked::Resolve { completes: self.chance.random_bool(0.3) },
            98 => Asked::Remove,
            _ => Asked::Renew { owner },
        }
    }
}

/// Returns the kinds of a message and of its answer.
fn kind_of(asked: &Asked, answer: &str) -> String {
    let word = |text: &str| text.split(|sign: char| !sign.is_alphabetic()).next().unwrap_or_default().to_owned();
    format!("{} {}", word(&format!("{asked:?}")), word(answer))
}

/// The kinds that must occur, because otherwise the messages are not varied enough.
const MET: [&str; 19] = [
    "Acquire claim",
    "Acquire Completed",
    "Acquire Indeterminate",
    "Acquire Mismatch",
    "Acquire in",
    "Begin Begun",
    "Begin Completed",
    "Begin Lost",
    "Begin Mismatch",
    "Begin Unsettled",
    "CompleteStep Lost",
    "CompleteStep Stored",
    "FailStep Failed",
    "Release Released",
    "Release Unsettled",
    "Resolve Resolved",
    "Resolve UnsettledStep",
    "ResolveStep Resolved",
    "Withdraw Withdrawn",
];

async fn says_what_the_protocol_says(url: &str, rounds: u64) {
    let mut seen = BTreeMap::new();
    for seed in 0..rounds {
        let key = Key::new("s", "k").unwrap();
        let mut redis = Side { backend: open(url, &fresh_prefix()).await, key: key.clone(), tokens: Vec::new() };
        let mut memory = Side { backend: MemoryBackend::new(), key, tokens: Vec::new() };
        let owner = Owner::random();
        let mut sender = Sender {
            chance: StdRng::seed_from_u64(seed),
            owners: vec![owner],
            holder: (owner, 0),
            released: Vec::new(),
            runs: BTreeMap::new(),
            life: 0,
            number: 0,
        };
        let mut asked = Asked::Acquire { owner, asked: 0, on_abandoned: OnAbandoned::Resume };
        let mut told = Vec::new();
        for _ in 0..60 {
            let (answer, expected) = (redis.ask(&asked).await, memory.ask(&asked).await);
            sender.learn(&asked, &expected);
            *seen.entry(kind_of(&asked, &expected)).or_insert(0) += 1;
            told.push(format!("{asked:?} -> {expected}"));
            assert_eq!(answer, expected, "seed {seed}, after\n{}", told.join("\n"));
            assert_eq!(redis.look().await, memory.look().await, "seed {seed}, after\n{}", told.join("\n"));
            asked = sender.next();
        }
    }
    println!("{seen:?}");
    assert!(rounds < 60 || MET.iter().all(|met| seen.contains_key(*met)), "{seen:?}");
}

#[actix_rt::test]
async fn e26_one_server_says_what_the_protocol_says() {
    says_what_the_protocol_says(&SERVER.url(), 60).await;
}

#[actix_rt::test]
async fn e26_a_server_behind_sentinels_says_what_the_protocol_says() {
    says_what_the_protocol_says(&SENTINEL.url(), 10).await;
}

#[actix_rt::test]
async fn e26_a_cluster_says_what_the_protocol_says() {
    says_what_the_protocol_says(&CLUSTER.url(), 10).await;
}
