//! Learning that a user's operation met a deadlock.
//!
//! Its error is of the user's own type, and says nothing to this library. But the database's answer passes Diesel's
//! instrumentation first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::{Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::result::Error;

/// What is asked of each error.
pub(crate) type Question = fn(&Error) -> bool;

/// Tells whether a statement failed in certain ways, such as for another transaction's sake. It passes everything on to the
/// application's default instrumentation, in whose place it stands.
pub(crate) struct Noticing {
    /// Each is set when its question is answered by yes.
    watched: [(Arc<AtomicBool>, Question); 2],
    default: Option<Box<dyn Instrumentation>>,
}

impl Noticing {
    pub(crate) fn new(watched: [(&Arc<AtomicBool>, Question); 2]) -> Self {
        let watched = watched.map(|(flag, question)| (Arc::clone(flag), question));
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
