//! A small shop that charges cards exactly once, however often its clients retry.
//!
//! `cargo run --release -p web-example` listens on <http://127.0.0.1:8080> and keeps its records in an SQLite file.

mod admin;
mod options;
mod page;
mod server;
mod shop;
mod store;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::EnvFilter;

use options::Options;
use server::StartError;

#[actix_web::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    // The store returns an error for what the Redis client logs as a warning, so without this filter the log would show
    // it twice. To see both, name `redis` in `RUST_LOG`.
    let filter = EnvFilter::new(format!("redis=error,{wanted}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A log file is not a terminal: it gets no color codes.
    log.with_ansi(std::io::stderr().is_terminal()).init();
    match start(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stderr, reason = "one line to whoever started it")]
fn report(error: &StartError) {
    eprintln!("web-example: {error}");
}

async fn start(options: Options) -> Result<(), StartError> {
    // The recorder must exist before the engine, which takes its counters from it.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let store = store::Store::open(&options).await?;
    let shop = shop::Shop::open(&store, &options).await?;
    if options.worker {
        return server::work(&options, store, shop).await;
    }
    server::serve(&options, store, shop, metrics).await
}
