//! `oncekey`: finds and settles stuck keys from the command line.

mod options;
mod print;
mod store;
mod work;

use std::process::ExitCode;

use clap::Parser as _;

use options::Options;

/// What ends the program before its work is done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("--store is missing: name the store by --store URL or in ONCEKEY_STORE")]
    NoStore,
    #[error(
        "--store takes a URL such as sqlite:PATH, postgres://…, mysql://… or redis://…; this is none of the schemes that it knows"
    )]
    UnknownScheme,
    #[error("ONCEKEY_PASSWORD is set, but the URL has no user name: add the user name to the URL")]
    NoUser,
    #[error("the store can't be opened: {0}")]
    Open(String),
    #[error("{0}")]
    Engine(#[from] oncekey::Error),
    #[error("this is not a key: {0}")]
    Key(#[from] oncekey::KeyError),
    #[error("the outcome can't be stored: {0}")]
    Outcome(String),
    #[error("nothing was changed: answer y, or add --yes where nobody can answer")]
    NotConfirmed,
    #[error("there is no schema for this store: Redis has no tables")]
    NoSchema,
    #[error("the terminal can't be used: {0}")]
    Terminal(#[from] std::io::Error),
}

#[actix_rt::main]
async fn main() -> ExitCode {
    // A pager or `head` that ends early is no error.
    match work::run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Terminal(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stderr, reason = "one line to whoever called it")]
fn report(failure: &Failure) {
    eprintln!("oncekey: {failure}");
}
