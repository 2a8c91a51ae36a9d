//! The end of a supervisor: draining, and counting what is left.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::Supervisor;

/// Tells when no key is in flight here any more.
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

/// How many keys are in flight here.
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

/// The engine is dropped: end as soon as nothing is in flight.
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
