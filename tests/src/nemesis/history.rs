//! What the clients saw.

use std::collections::BTreeMap;
use std::fmt;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An order: its row and its outcome commit together. Exactly once.
    Order,
    /// A payment: an outside effect, held if its holder vanishes. At most once.
    Payment,
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An answer.
    Answer {
        /// Its status.
        status: u16,
        /// Whether it was marked as a replay.
        is_replay: bool,
        /// The `type` of its problem, if it is one.
        problem: Option<String>,
        /// Its body, where it is a success.
        body: Vec<u8>,
    },
    /// None: the connection failed, or took too long. It may have been carried out, or not.
    Unknown,
    /// The client left without waiting.
    Left,
}

impl Seen {
    /// Whether it is a success.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Answer { status: 200..300, .. })
    }

    /// Whether the shop says that nobody knows whether it happened.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Answer { status: 409, problem: Some(problem), .. } if problem == "indeterminate")
    }

    /// Whether it leaves open what happened: what explains that a key is indeterminate later. A client without an answer
    /// knows nothing, and a shop that says that the outcome was not stored, or that its handler failed, says that the
    /// operation may have run. A shop that says "nothing ran" is taken at its word.
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Unknown | Self::Left => true,
            Self::Answer { status: 500.., problem, .. } => !problem.as_deref().is_some_and(says_nothing_ran),
            Self::Answer { .. } => false,
        }
    }

    /// Whether the rule of before would have left it open: any answer of 500 and more.
    pub fn left_open_before(&self) -> bool {
        matches!(self, Self::Unknown | Self::Left | Self::Answer { status: 500.., .. })
    }
}

/// The problems by which the shop states that this request ran nothing.
fn says_nothing_ran(problem: &str) -> bool {
    matches!(problem, "store-unavailable" | "overloaded" | "shutting-down" | "record-unreadable")
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { status, is_replay, problem, .. } => {
                write!(f, "{status}")?;
                if let Some(problem) = problem {
                    write!(f, " {problem}")?;
                }
                f.write_str(if *is_replay { " replayed" } else { "" })
            }
            Self::Unknown => f.write_str("unknown"),
            Self::Left => f.write_str("left"),
        }
    }
}

/// How an operation ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It succeeded.
    Success,
    /// The key is indeterminate: somebody has to find out.
    Indeterminate,
    /// Refused for good.
    Refused,
    /// There was no final answer, however often it was asked for.
    Stuck,
}

/// One operation: all tries under one key, or in a control run, under a key each.
#[derive(Debug, Clone)]
pub struct Operation {
    /// What is wanted.
    pub kind: Kind,
    /// The name of its row in the shop's tables.
    pub name: String,
    /// Its key, unless each try had its own.
    pub key: String,
    /// In the order of their answers.
    pub tries: Vec<Seen>,
    /// How it ended.
    pub end: End,
    /// What came of asking for it once more, after its success and while faults still struck: all tries of each time.
    pub replays: Vec<Vec<Seen>>,
}

impl Operation {
    /// Those until its end, and those of its replays.
    pub fn all_tries(&self) -> impl Iterator<Item = &Seen> {
        self.tries.iter().chain(self.replays.iter().flatten())
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order of their ends.
    pub operations: Vec<Operation>,
}

impl History {
    /// How many times a client wanted something, until it had a final answer or gave up: each key, and each replay.
    pub fn len(&self) -> usize {
        self.operations.iter().map(|operation| 1 + operation.replays.len()).sum()
    }

    /// Whether nobody wanted anything.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// How many times something was asked for once more, while faults still struck.
    pub fn replays(&self) -> usize {
        self.operations.iter().map(|operation| operation.replays.len()).sum()
    }

    /// How many ended in which way, by kind.
    pub fn ends(&self) -> BTreeMap<Kind, [usize; 4]> {
        let mut ends: BTreeMap<Kind, [usize; 4]> = BTreeMap::new();
        for operation in &self.operations {
            ends.entry(operation.kind).or_default()[operation.end as usize] += 1;
        }
        ends
    }

    /// How many tries there were, by what they saw.
    pub fn tries(&self) -> BTreeMap<String, usize> {
        let mut tries = BTreeMap::new();
        for seen in self.operations.iter().flat_map(Operation::all_tries) {
            *tries.entry(seen.to_string()).or_default() += 1;
        }
        tries
    }
}
