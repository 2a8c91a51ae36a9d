//! What the clients saw.

use std::collections::BTreeMap;
use std::fmt;

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An order, exactly once: its row and its outcome commit together.
    Order,
    /// A payment, at most once: an external effect that is held if its holder vanishes.
    Payment,
}

/// The result of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An answer.
    Answer {
        /// Its status.
        status: u16,
        /// Whether it was marked as a replay.
        is_replay: bool,
        /// The `type` of its problem, if it is a problem.
        problem: Option<String>,
        /// Its body, if it is a success.
        body: Vec<u8>,
    },
    /// There was no answer: the connection failed, or it took too long. The operation may or may not have run.
    Unknown,
    /// The client disconnected without waiting.
    Left,
}

impl Seen {
    /// Returns whether it is a success.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Answer { status: 200..300, .. })
    }

    /// Returns whether the shop answered that the key is indeterminate.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Answer { status: 409, problem: Some(problem), .. } if problem == "indeterminate")
    }

    /// Returns whether the result leaves open what happened, and so explains why a key is indeterminate later. A client
    /// without an answer knows nothing. If the shop says that the outcome was not stored, or that its handler failed,
    /// the operation may have run. If the shop says "nothing ran", that must be true.
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Unknown | Self::Left => true,
            Self::Answer { status: 500.., problem, .. } => !problem.as_deref().is_some_and(says_nothing_ran),
            Self::Answer { .. } => false,
        }
    }

    /// Returns whether the former rule would have left it open: any answer of 500 or above.
    pub fn left_open_before(&self) -> bool {
        matches!(self, Self::Unknown | Self::Left | Self::Answer { status: 500.., .. })
    }
}

/// Returns whether the problem states that this request ran nothing.
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
    /// The key is indeterminate and must be resolved.
    Indeterminate,
    /// The request was refused for good.
    Refused,
    /// No final answer came, however often the client asked.
    Stuck,
}

/// One operation: all attempts under one key. In a control run each attempt has its own key.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The kind of the operation.
    pub kind: Kind,
    /// The name of its row in the shop's tables.
    pub name: String,
    /// Its key, unless each attempt had its own.
    pub key: String,
    /// The attempts, in the order of their answers.
    pub tries: Vec<Seen>,
    /// How it ended.
    pub end: End,
    /// The requests made after its success, while faults still struck: all attempts of each one.
    pub replays: Vec<Vec<Seen>>,
}

impl Operation {
    /// Returns the attempts until its end, and those of its replays.
    pub fn all_tries(&self) -> impl Iterator<Item = &Seen> {
        self.tries.iter().chain(self.replays.iter().flatten())
    }
}

/// All operations.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The operations, in the order of their ends.
    pub operations: Vec<Operation>,
}

impl History {
    /// Returns how many times a client wanted something, until it had a final answer or gave up: each key, and each
    /// replay.
    pub fn len(&self) -> usize {
        self.operations.iter().map(|operation| 1 + operation.replays.len()).sum()
    }

    /// Returns whether there were no operations.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Returns how many times a success was requested again, while faults still struck.
    pub fn replays(&self) -> usize {
        self.operations.iter().map(|operation| operation.replays.len()).sum()
    }

    /// Returns how many operations ended in which way, by kind.
    pub fn ends(&self) -> BTreeMap<Kind, [usize; 4]> {
        let mut ends: BTreeMap<Kind, [usize; 4]> = BTreeMap::new();
        for operation in &self.operations {
            ends.entry(operation.kind).or_default()[operation.end as usize] += 1;
        }
        ends
    }

    /// Returns the number of attempts, by result.
    pub fn tries(&self) -> BTreeMap<String, usize> {
        let mut tries = BTreeMap::new();
        for seen in self.operations.iter().flat_map(Operation::all_tries) {
            *tries.entry(seen.to_string()).or_default() += 1;
        }
        tries
    }
}
