//! Detects that a user's operation met a deadlock.
//!
//! The operation's error has the user's own type and tells this library nothing. But Diesel's instrumentation sees the
//! database's answer first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::{Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::result::Error;

use super::dialect::{Dialect, Failure};

/// A predicate on errors.
type Question = fn(&Error) -> bool;

/// Records whether a statement failed in one of the watched ways. It replaces the application's default
/// instrumentation, and passes every event on to it.
pub(crate) struct Noticing {
    /// Each flag is set when its predicate matches.
    watched: [(Arc<AtomicBool>, Question); 2],
    default: Option<Box<dyn Instrumentation>>,
}

impl Noticing {
    /// Watches one transaction for contention, and for a stale server: another server has taken over, and only a new
    /// connection reaches it.
    pub(crate) fn of<D: Dialect>(contended: &Arc<AtomicBool>, stale: &Arc<AtomicBool>) -> Self {
        let is_contention: Question = |error| D::failure(error).is_contention();
        let is_stale: Question = |error| matches!(D::failure(error), Failure::Disconnected | Failure::ReadOnly);
        let watched = [(Arc::clone(contended), is_contention), (Arc::clone(stale), is_stale)];
        Self { watched, default: get_default_instrumentation() }
    }
}

impl Instrumentation for Noticing {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { error: Some(error), .. } = &event {
            for (flag, question) in &self.watched {
                if question(error) {
                    flag.store(true, Ordering::Relaxed);
                }
            }
        }
        if let Some(default) = &mut self.default {
            default.on_connection_event(event);
        }
    }
}
