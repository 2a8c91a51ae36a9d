//! The addresses that the key locks of one arbiter send to.

use std::sync::Arc;

use actix::prelude::*;

use crate::backend::{Persist, Request};
use crate::call::Begin;
use crate::claims::ClaimPlace;
use crate::shared::Shared;
use crate::{EventKind, Key};

/// Each arbiter has its own, so that no other thread touches its reference count: a count that two threads share costs
/// each of them more than a message does.
pub(crate) struct Neighbours {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Recipient<Persist>,
    pub(crate) supervisor: Recipient<ToSupervisor>,
}

/// A key lock's message to its supervisor.
pub(crate) enum ToSupervisor {
    /// The lock no longer answers for its key. These calls must begin again.
    Retired {
        key: Key,
        id: u64,
        claim: Option<ClaimPlace>,
        resubmit: Vec<Begin>,
        /// Whether the lock may be assigned another key.
        is_reusable: bool,
    },
    /// The lock's claim is lost. The lock keeps the claim until its operation ends, but no longer answers for its key.
    /// These calls must begin again.
    LetGo { key: Key, id: u64, resubmit: Vec<Begin> },
    /// A call that met a retired lock must begin again.
    Resubmit(Box<Begin>),
}

impl Message for ToSupervisor {
    type Result = ();
}

impl Neighbours {
    pub(crate) fn ask_store(&self, request: Request) {
        // If the backend has ended, the request is dropped, and its reply reports that.
        let _ = self.store.try_send(Persist::Step(request));
    }

    /// Sends to the supervisor, which outlives its locks. Once the supervisor has ended, nothing needs the message.
    pub(crate) fn tell_supervisor(&self, message: ToSupervisor) {
        let _ = self.supervisor.try_send(message);
    }

    pub(crate) fn tell(&self, kind: EventKind, key: &Key) {
        self.shared.events.tell(kind, key);
    }
}
