//! How a supervisor ends: draining, and counting the keys that are left.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::Supervisor;

/// Asks for a signal once no key is in flight on this arbiter.
pub(crate) struct Drain(pub(crate) oneshot::Sender<()>);

impl Message for Drain {
    type Result = ();
}

impl Handler<Drain> for Supervisor {
    type Result = ();

    fn handle(&mut self, Drain(waiting): Drain, _: &mut Self::Context) {
        self.draining.push(waiting);
        self.end_if_drained();
    }
}

/// Asks how many keys are in flight on this arbiter.
pub(crate) struct CountInFlight;

impl Message for CountInFlight {
    type Result = usize;
}

impl Handler<CountInFlight> for Supervisor {
    type Result = usize;

    fn handle(&mut self, _: CountInFlight, _: &mut Self::Context) -> usize {
        self.in_flight()
    }
}

/// Tells the supervisor that the engine was dropped: it ends as soon as nothing is in flight.
pub(crate) struct End;

impl Message for End {
    type Result = ();
}

impl Handler<End> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: End, ctx: &mut Self::Context) {
        self.ending = true;
        if self.in_flight() == 0 {
            ctx.stop();
        }
    }
}
