//! The command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use oncekey::backend::StateName;

const EXAMPLES: &str = "\
Examples:
  oncekey --store sqlite:keys.db stats
  oncekey --store sqlite:keys.db list --state indeterminate --older-than 1h
  oncekey --store sqlite:keys.db show public pay-1
  oncekey --store sqlite:keys.db resolve public pay-1 --release
  oncekey --store sqlite:keys.db resolve public pay-1 --http-status 201 --http-body '{\"id\": 17}'
  ONCEKEY_STORE=postgres://shop@db/shop ONCEKEY_PASSWORD=… oncekey doctor --json

Exit codes:
  0  done
  1  the answer is no: no such key, not settled, or the doctor found something
  2  not done: a bad command line, or the store did not answer";

/// Finds and settles stuck idempotency keys
#[derive(Parser)]
#[command(name = "oncekey", version, about, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The store: sqlite:PATH, postgres://…, mysql://… or redis://…; ONCEKEY_PASSWORD may hold its password
    // A URL may contain a password, which the help must not print.
    #[arg(long, env = "ONCEKEY_STORE", hide_env_values = true, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Prints JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Makes changes without asking
    #[arg(long, global = true)]
    pub(crate) yes: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Reports settings of the store that should be changed
    Doctor,
    /// Counts the records by state
    Stats,
    /// Lists records
    List(List),
    /// Shows one key
    Show(Name),
    /// Settles an indeterminate key
    Resolve(Resolve),
    /// Removes one record; a retry then runs the operation again
    Remove(Name),
    /// Removes all records of a scope; retries then run their operations again
    EraseScope {
        /// The scope
        scope: String,
    },
    /// Removes the records whose retention has ended
    Purge,
    /// Prints the SQL of the store's tables
    Schema,
    /// Creates or updates the store's tables
    Migrate,
}

#[derive(Args)]
pub(crate) struct Name {
    /// The scope
    pub(crate) scope: String,
    /// The idempotency key
    pub(crate) key: String,
}

#[derive(Args)]
pub(crate) struct List {
    /// Only records in this state
    #[arg(long)]
    pub(crate) state: Option<State>,
    /// Only records in this scope
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// Only records claimed at least this long ago, such as 90s, 1h or 2days
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// The most records to list
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum State {
    InProgress,
    Completed,
    Indeterminate,
    Released,
}

impl From<State> for StateName {
    fn from(state: State) -> Self {
        match state {
            State::InProgress => Self::InProgress,
            State::Completed => Self::Completed,
            State::Indeterminate => Self::Indeterminate,
            State::Released => Self::Released,
        }
    }
}

#[derive(Args)]
pub(crate) struct Resolve {
    #[command(flatten)]
    pub(crate) name: Name,
    /// What happened to the operation
    #[command(flatten)]
    pub(crate) with: With,
    /// The body of the HTTP response
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["release", "outcome"], default_value = "")]
    pub(crate) http_body: String,
    /// The content type of the HTTP response
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["release", "outcome"], default_value = "application/json")]
    pub(crate) http_content_type: String,
    /// How long the outcome is kept
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "24h")]
    pub(crate) retention: Duration,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct With {
    /// It did not happen: frees the key
    #[arg(long)]
    pub(crate) release: bool,
    /// It happened, and returned this JSON
    #[arg(long, value_name = "JSON")]
    pub(crate) outcome: Option<String>,
    /// It happened, and this is the status of its HTTP response
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(200..600))]
    pub(crate) http_status: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_clear_is_refused() {
        use clap::CommandFactory as _;

        Options::command().debug_assert();
        let parse = |line: &str| Options::try_parse_from(line.split(' ')).is_ok();
        for good in [
            "oncekey stats",
            "oncekey list --state indeterminate --older-than 1h --json",
            "oncekey resolve s k --release --yes",
            "oncekey resolve s k --outcome 17",
            "oncekey resolve s k --http-status 201 --http-body x",
        ] {
            assert!(parse(good), "{good}");
        }
        for bad in [
            "oncekey",
            "oncekey resolve s k",
            "oncekey resolve s k --release --outcome 17",
            "oncekey resolve s k --http-status 100",
            "oncekey resolve s k --release --http-body x",
            "oncekey list --state stuck",
            "oncekey list --older-than soon",
            "oncekey show s",
        ] {
            assert!(!parse(bad), "{bad}");
        }
    }
}
