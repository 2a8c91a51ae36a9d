//! What an attacker can try: through requests, and through a store that the attacker can read or write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod conformance;
mod floods;
mod hostile;
mod logs;
mod secrets;
mod stores;
mod tampered;
mod tenants;
