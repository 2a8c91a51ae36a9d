//! What a lock is given to do: at its start, or after it has rested.

use std::sync::Arc;

use actix::prelude::*;

use super::{KeyLock, Role};
use crate::call::Begin;
use crate::{Fingerprint, Key};

/// A key's place in a lock: what a new one starts with, or one that has rested takes up.
pub(crate) struct Part {
    pub(crate) key: Key,
    pub(crate) id: u64,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) role: Role,
    pub(crate) waiting: Vec<Begin>,
}

impl Message for Part {
    type Result = ();
}

impl KeyLock {
    /// Begins to play the role that the lock has been given.
    pub(super) fn play(&mut self, ctx: &mut Context<Self>) {
        let waiting = std::mem::take(&mut self.waiters);
        for call in waiting {
            self.take_in(call, ctx);
        }
        if matches!(&self.role, Role::Holding(holding) if !holding.is_recovering()) {
            return;
        }
        self.may_rest = false;
        match &self.role {
            Role::Holding(_) => self.settle_step(Arc::new(ctx.address())),
            Role::Retired(_) => {}
            Role::Following(_) => self.follow(ctx),
            Role::Reconciling(_) => self.reconcile(ctx),
        }
    }
}

impl Handler<Part> for KeyLock {
    type Result = ();

    fn handle(&mut self, part: Part, ctx: &mut Self::Context) {
        // What was still to be told about the key before has been read from the mailbox first.
        let Part { key, id, fingerprint, role, waiting } = part;
        (self.key, self.id, self.fingerprint, self.role, self.waiters) = (key, id, fingerprint, role, waiting);
        self.play(ctx);
    }
}
