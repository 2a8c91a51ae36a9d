//! Whom the key locks of one arbiter talk to.

use std::sync::Arc;

use actix::prelude::*;

use crate::backend::{Persist, Request};
use crate::call::Begin;
use crate::claims::ClaimPlace;
use crate::shared::Shared;
use crate::{EventKind, Key};

/// Each arbiter has its own, so that counting the references to it is nobody else's affair: what two threads count
/// together costs each of them more than a message does.
pub(crate) struct Neighbours {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Recipient<Persist>,
    pub(crate) supervisor: Recipient<ToSupervisor>,
}

/// What a key lock tells its supervisor.
pub(crate) enum ToSupervisor {
    /// The lock answers no more for its key. These calls are to be begun again.
    Retired {
        key: Key,
        id: u64,
        claim: Option<ClaimPlace>,
        resubmit: Vec<Begin>,
        /// Whether the lock may be given another key.
        is_reusable: bool,
    },
    /// The lock's claim is lost. It keeps the claim until its operation ends, but answers no more for its key. These calls
    /// are to be begun again.
    LetGo { key: Key, id: u64, resubmit: Vec<Begin> },
    /// A call that met a retired lock is to be begun again.
    Resubmit(Box<Begin>),
}

impl Message for ToSupervisor {
    type Result = ();
}

impl Neighbours {
    pub(crate) fn ask_store(&self, request: Request) {
        // A request that a dead backend can't take is dropped, and its reply says so.
        let _ = self.store.try_send(Persist::Step(request));
    }

    /// Tells the supervisor, which outlives its locks; at its own end nobody is left to care.
    pub(crate) fn tell_supervisor(&self, message: ToSupervisor) {
        let _ = self.supervisor.try_send(message);
    }

    pub(crate) fn tell(&self, kind: EventKind, key: &Key) {
        self.shared.events.tell(kind, key);
    }
}
