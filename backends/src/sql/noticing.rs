//! Learning that a user's operation met a deadlock.
//!
//! Its error is of the user's own type, and says nothing to this library. But the database's answer passes Diesel's
//! instrumentation first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::{Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::result::Error;

/// Tells whether a statement failed for another transaction's sake. It passes everything on to the application's default
/// instrumentation, in whose place it stands.
pub(crate) struct Noticing {
    contended: Arc<AtomicBool>,
    is_contention: fn(&Error) -> bool,
    default: Option<Box<dyn Instrumentation>>,
}

impl Noticing {
    pub(crate) fn new(contended: &Arc<AtomicBool>, is_contention: fn(&Error) -> bool) -> Self {
        Self { contended: Arc::clone(contended), is_contention, default: get_default_instrumentation() }
    }
}

impl Instrumentation for Noticing {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { error: Some(error), .. } = &event
            && (self.is_contention)(error)
        {
            self.contended.store(true, Ordering::Relaxed);
        }
        if let Some(default) = &mut self.default {
            default.on_connection_event(event);
        }
    }
}
