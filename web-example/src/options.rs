//! The command line, and its environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use oncekey::OnAbandoned;

/// A small shop that charges cards exactly once.
#[derive(Clone, Parser)]
#[command(version, about)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes a free port
    #[arg(long, env = "ONCEKEY_BIND", default_value = "127.0.0.1:8080")]
    pub(crate) bind: SocketAddr,
    /// Where the idempotency records are: memory:, sqlite:PATH, postgres://…, mysql://… or redis://…
    // A URL may hold a password, which the help must not print.
    #[arg(
        long,
        env = "ONCEKEY_STORE",
        hide_env_values = true,
        default_value = "sqlite:oncekey.db",
        value_name = "URL"
    )]
    pub(crate) store: String,
    /// The shop's own database, if the store is not an SQL database
    #[arg(long, env = "ONCEKEY_SHOP_DB", default_value = "shop.db", value_name = "PATH")]
    pub(crate) shop_db: PathBuf,
    /// The number of worker threads; by default, the number of cores
    #[arg(long, env = "ONCEKEY_WORKERS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) workers: Option<u16>,
    /// How long a claim holds without a heartbeat
    #[arg(long, env = "ONCEKEY_LEASE", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,
    /// How long responses are kept
    #[arg(long, env = "ONCEKEY_RETENTION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) retention: Duration,
    /// How long a request waits for another request with the same key; by default, it gets 409 at once
    #[arg(long, env = "ONCEKEY_WAIT", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
    /// A Redis server, redis://…, whose stream carries the mails to a worker; without one the shop sends them itself
    #[arg(long, env = "ONCEKEY_MAIL_STREAM", hide_env_values = true, value_name = "URL")]
    pub(crate) mail_stream: Option<String>,
    /// Only sends the mails of the stream, without serving HTTP; the store must be the shop's SQL database
    #[arg(long, requires = "mail_stream")]
    pub(crate) worker: bool,
    /// What a lapsed lease means; by default, rerun for orders in the store's transaction, hold for everything else
    #[arg(long, env = "ONCEKEY_ON_ABANDONED")]
    pub(crate) on_abandoned: Option<Abandoned>,
    /// The password for the operator's console at /admin/; without it, only this machine can open the console
    #[arg(
        long,
        env = "ONCEKEY_ADMIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub(crate) admin_token: Option<String>,
    /// Performs the effects of a checkout without steps, and repeats all of them after a crash, to show what steps are
    /// for
    #[arg(long)]
    pub(crate) bare_checkouts: bool,
}

/// What a lapsed lease means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Abandoned {
    /// The next request takes the key over
    Rerun,
    /// The key waits until it is resolved
    Hold,
}

impl From<Abandoned> for OnAbandoned {
    fn from(abandoned: Abandoned) -> Self {
        match abandoned {
            Abandoned::Rerun => Self::Rerun,
            Abandoned::Hold => Self::Hold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_the_command_line_are_read() {
        let options = Options::try_parse_from([
            "web-example",
            "--bind=127.0.0.1:0",
            "--store=memory:",
            "--workers=3",
            "--lease=1s",
            "--retention=3s",
            "--wait=500ms",
            "--on-abandoned=rerun",
        ])
        .unwrap();
        assert_eq!((options.workers, options.lease), (Some(3), Duration::from_secs(1)));
        assert_eq!((options.retention, options.wait), (Duration::from_secs(3), Some(Duration::from_millis(500))));
        assert_eq!(options.on_abandoned.map(OnAbandoned::from), Some(OnAbandoned::Rerun));
    }

    #[test]
    fn bad_flags_are_refused() {
        use clap::CommandFactory as _;
        for name in ["store", "mail_stream", "admin_token"] {
            let flag = Options::command().get_arguments().find(|flag| flag.get_id() == name).cloned().unwrap();
            assert!(flag.is_hide_env_values_set(), "the help would print a password");
        }
        for bad in [
            "--admin-token=",
            "--worker",
            "--bind=here",
            "--workers=0",
            "--lease=soon",
            "--on-abandoned=maybe",
            "--nothing",
        ] {
            assert!(Options::try_parse_from(["web-example", bad]).is_err(), "{bad}");
        }
    }
}
