//! Job processors over real brokers, with consumers that are killed and brokers that are restarted.
//!
//! A run has 1,000 messages, or as many as `ONCEKEY_BROKER_MESSAGES` says. With `--nocapture` it prints what happened:
//!
//! ```console
//! $ ONCEKEY_BROKER_MESSAGES=10000 cargo test -p tests --all-features --test brokers j03 -- --nocapture --test-threads 1
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod apalis;
mod forms;
mod poison;
mod refusals;
mod refused;
mod sizes;
mod survival;

macro_rules! on_each_broker {
    ($($broker:ident: $server:ident),* $(,)?) => { $(
        mod $broker {
            use tests::server::$server;

            use super::{poison, refused, sizes, survival};

            #[actix_rt::test]
            async fn j03_in_a_transaction_every_effect_is_exactly_once() {
                survival::exactly_once_in_a_transaction($server::start()).await;
            }

            #[actix_rt::test]
            async fn j03_under_hold_every_effect_is_at_most_once_and_no_message_is_lost() {
                survival::at_most_once_under_hold($server::start()).await;
            }

            #[actix_rt::test]
            async fn j03_under_rerun_every_effect_is_at_least_once() {
                survival::at_least_once_under_rerun($server::start()).await;
            }

            #[actix_rt::test]
            async fn j03_control_without_the_engine_effects_are_doubled() {
                survival::control_without_the_engine($server::start()).await;
            }

            #[actix_rt::test]
            async fn j02_a_poison_message_reaches_the_dead_letters_with_its_error_and_holds_up_nobody() {
                poison::reaches_the_dead_letters($server::start()).await;
            }

            #[actix_rt::test]
            async fn j08_dead_letters_that_are_refused_for_a_while_run_no_job_again() {
                refused::for_a_while($server::start()).await;
            }

            #[actix_rt::test]
            async fn j08_a_dead_letter_is_kept_whatever_the_size_of_its_message() {
                sizes::of_dead_letters($server::start()).await;
            }

            #[actix_rt::test]
            async fn j05_sigterm_under_load_loses_nothing_and_ends_in_time() {
                survival::sigterm_under_load($server::start()).await;
            }
        }
    )* };
}

on_each_broker!(redis: Redis, rabbitmq: RabbitMqServer, nats: Nats);
