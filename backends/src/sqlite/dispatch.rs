//! From a message to the thread that takes its step.

use std::collections::HashSet;

use crossbeam_channel::{Sender, TrySendError};
use oncekey::backend::{
    Changed, CompletedInTransaction, Purge, Purged, RecordView, Remove, Removed, Reply, Request, Stats, StoreError,
};
use oncekey::record::transition;
use oncekey::{Key, KeyHasher};

use super::job::{Batch, Job};
use super::registry::Store;
use super::session::Session;
use super::{records, transaction};

/// Puts steps into their threads' queues, in order for each key: a look-up of a key that is written before it goes to
/// the writer, behind that step.
pub(super) fn queue_all(store: &Store, requests: Vec<Request>, batch: &mut Batch) {
    let has_lookups = requests.iter().any(|request| matches!(request, Request::Lookup(..)));
    let mut written = HashSet::<Key, KeyHasher>::default();
    for request in requests {
        match request {
            Request::Lookup(message, reply) if written.contains(&message.key) => {
                write(store, batch, reply, move |session| lookup(session, &message.key));
            }
            request => {
                if has_lookups {
                    written.extend(written_key(&request).cloned());
                }
                queue(store, request, batch);
            }
        }
    }
}

fn written_key(request: &Request) -> Option<&Key> {
    match request {
        Request::Acquire(message, _) => Some(&message.key),
        Request::Renew(message, _) => Some(&message.key),
        Request::Complete(message, _) => Some(&message.key),
        Request::CompleteInTransaction(message, _) => Some(&message.key),
        Request::Release(message, _) => Some(&message.key),
        Request::Withdraw(message, _) => Some(&message.key),
        Request::Hold(message, _) => Some(&message.key),
        Request::Resolve(message, _) => Some(&message.key),
        Request::Remove(message, _) => Some(&message.key),
        Request::BeginStep(message, _) => Some(&message.key),
        Request::CompleteStep(message, _) => Some(&message.key),
        Request::FailStep(message, _) => Some(&message.key),
        Request::StepInTransaction(message, _) => Some(&message.step.key),
        Request::ResolveStep(message, _) => Some(&message.key),
        Request::Purge(..) | Request::Lookup(..) | Request::List(..) | Request::Stats(..) | Request::Watch(..) => None,
    }
}

/// Puts one step into its thread's queue. `batch` hears of its answer.
pub(super) fn queue(store: &Store, request: Request, batch: &mut Batch) {
    match request {
        Request::Acquire(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::acquire(found, now, &message))
        }),
        Request::Renew(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::renew(found, now, &message))
        }),
        Request::Complete(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::complete(found, now, &message))
        }),
        Request::Release(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::release(found, now, &message))
        }),
        Request::Withdraw(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::withdraw(found, now, &message))
        }),
        Request::Hold(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::hold(found, now, &message))
        }),
        Request::Resolve(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::resolve(found, now, &message))
        }),
        Request::Remove(message, reply) => write(store, batch, reply, move |session| remove(session, &message)),
        Request::BeginStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::begin_step(found, now, &message))
        }),
        Request::CompleteStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::complete_step(found, now, &message))
        }),
        Request::FailStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::fail_step(found, now, &message))
        }),
        Request::ResolveStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, |found, now| transition::resolve_step(found, now, &message))
        }),
        Request::StepInTransaction(_, reply) => reply.send(Err(StoreError::Unsupported("steps in its transactions"))),
        Request::Purge(message, reply) => write(store, batch, reply, move |session| purge(session, message)),
        Request::CompleteInTransaction(message, reply) => {
            let mut message = Some(message);
            let job = batch.job(reply, Some(CompletedInTransaction::RolledBack), move |session| match message.take() {
                Some(message) => transaction::complete(session, message),
                None => Err(StoreError::unavailable("the operation has been run before")),
            });
            send(&store.writes, job);
        }
        Request::Lookup(message, reply) => read(store, batch, reply, move |session| lookup(session, &message.key)),
        Request::List(message, reply) => read(store, batch, reply, move |session| {
            let after = message.after.as_ref().map_or("", Key::as_stored);
            let now = session.now();
            records::list(&mut session.connection, after, message.limit, now)
        }),
        Request::Stats(Stats, reply) => read(store, batch, reply, |session| records::stats(&mut session.connection)),
        // Never part of a batch; if it is, the hint to ask again is allowed at any time.
        Request::Watch(_, reply) => reply.send(Ok(Changed)),
    }
}

fn write<Answer: Send + 'static>(
    store: &Store,
    batch: &mut Batch,
    reply: Reply<Answer>,
    take: impl FnMut(&mut Session) -> Result<Answer, StoreError> + Send + 'static,
) {
    send(&store.writes, batch.job(reply, None, take));
}

fn read<Answer: Send + 'static>(
    store: &Store,
    batch: &mut Batch,
    reply: Reply<Answer>,
    take: impl FnMut(&mut Session) -> Result<Answer, StoreError> + Send + 'static,
) {
    send(&store.reads, batch.job(reply, None, take));
}

/// Only tries: this runs on arbiters, which must not block.
fn send(queue: &Sender<Box<dyn Job>>, job: Box<dyn Job>) {
    match queue.try_send(job) {
        Ok(()) => {}
        Err(TrySendError::Full(job)) => {
            job.refuse(StoreError::Overloaded("as many steps wait for the database as are allowed to".to_owned()));
        }
        Err(TrySendError::Disconnected(job)) => {
            job.refuse(StoreError::unavailable("the database's thread has ended"));
        }
    }
}

/// A row that is no record goes as a whole. The barrier and the token that are lost with it are not missed: what is
/// withdrawn comes through this one writer before its withdrawal or never, and the next token follows the file's clock.
fn remove(session: &mut Session, message: &Remove) -> Result<Removed, StoreError> {
    match session.step(&message.key, |found, now| transition::remove(found, now, message)) {
        Err(StoreError::Corrupt(_)) => {}
        answer => return answer,
    }
    if records::remove(&mut session.connection, &message.key)? {
        session.settled.push(message.key.clone());
        Ok(Removed::Removed)
    } else {
        Ok(Removed::Absent)
    }
}

fn purge(session: &mut Session, message: Purge) -> Result<Purged, StoreError> {
    let now = session.now();
    let removed = records::purge(&mut session.connection, message.limit, now)?;
    Ok(Purged { removed, more: removed == message.limit })
}

fn lookup(session: &mut Session, key: &Key) -> Result<Option<RecordView>, StoreError> {
    let found = records::find(&mut session.connection, key)?;
    Ok(found.and_then(|found| RecordView::of(key.clone(), found.record, session.now())))
}
