//! Sends each request to the thread that executes it.

use std::collections::HashSet;

use crossbeam_channel::{Sender, TrySendError};
use oncekey::backend::{
    Changed, CompletedInTransaction, Find, Found as Page, Purge, Purged, RecordView, Remove, Removed, Reply, Request,
    Stats, StepCommitted, StoreError,
};
use oncekey::record::transition;
use oncekey::{Key, KeyHasher};

use super::job::{Batch, Job};
use super::records::Found;
use super::registry::Store;
use super::session::Session;
use super::steps::Outcomes;
use super::{records, transaction, unseen};

/// Puts requests into their threads' queues and keeps the order for each key: a look-up after a write of the same key
/// goes to the writer, behind that write.
pub(super) fn queue_all(store: &Store, requests: Vec<Request>, batch: &mut Batch) {
    let has_lookups = requests.iter().any(|request| matches!(request, Request::Lookup(..)));
    let mut written = HashSet::<Key, KeyHasher>::default();
    for request in requests {
        match request {
            Request::Lookup(message, reply) if written.contains(&message.key) => {
                write(store, batch, reply, move |session| {
                    let found = records::find(&mut session.connection, &message.key, Outcomes::All)?;
                    Ok(view(session, &message.key, found))
                });
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

/// Puts one request into its thread's queue. `batch` waits for its answer.
pub(super) fn queue(store: &Store, request: Request, batch: &mut Batch) {
    match request {
        Request::Acquire(message, reply) => write(store, batch, reply, move |session| session.acquire(&message)),
        Request::Renew(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::renew(found, now, &message))
        }),
        Request::Complete(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::complete(found, now, &message))
        }),
        Request::Release(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::release(found, now, &message))
        }),
        Request::Withdraw(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::withdraw(found, now, &message))
        }),
        Request::Hold(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::hold(found, now, &message))
        }),
        Request::Resolve(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::None, |found, now| transition::resolve(found, now, &message))
        }),
        Request::Remove(message, reply) => write(store, batch, reply, move |session| remove(session, &message)),
        Request::BeginStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::Of(&message.name), |found, now| {
                transition::begin_step(found, now, &message)
            })
        }),
        Request::CompleteStep(message, reply) => write(store, batch, reply, move |session| {
            let now = session.now();
            if let Some(completed) = unseen::complete(&mut session.connection, &message, now)? {
                return Ok(completed);
            }
            session.step(&message.key, Outcomes::Of(&message.name), |found, now| {
                transition::complete_step(found, now, &message)
            })
        }),
        Request::FailStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::Of(&message.name), |found, now| {
                transition::fail_step(found, now, &message)
            })
        }),
        Request::ResolveStep(message, reply) => write(store, batch, reply, move |session| {
            session.step(&message.key, Outcomes::Of(&message.name), |found, now| {
                transition::resolve_step(found, now, &message)
            })
        }),
        Request::StepInTransaction(message, reply) => {
            operate(store, batch, reply, StepCommitted::RolledBack, *message, transaction::commit_step);
        }
        Request::Purge(message, reply) => write(store, batch, reply, move |session| purge(session, message)),
        Request::CompleteInTransaction(message, reply) => {
            operate(store, batch, reply, CompletedInTransaction::RolledBack, message, transaction::complete);
        }
        Request::Lookup(message, reply) => read(store, batch, reply, move |session| {
            let found = records::read(&mut session.connection, &message.key)?;
            Ok(view(session, &message.key, found))
        }),
        Request::List(message, reply) => read(store, batch, reply, move |session| {
            let after = message.after.as_ref().map_or("", Key::as_stored);
            let now = session.now();
            records::list(&mut session.connection, after, message.limit, now)
        }),
        Request::Stats(Stats, reply) => read(store, batch, reply, |session| records::stats(&mut session.connection)),
        // A watch is never part of a batch. If it is, "changed" is allowed at any time: the caller only looks again.
        Request::Watch(_, reply) => reply.send(Ok(Changed)),
    }
}

/// Puts an operator's query into a reader's queue.
pub(super) fn queue_find(store: &Store, message: Find, reply: Reply<Page>, batch: &mut Batch) {
    read(store, batch, reply, move |session| {
        let now = session.now();
        records::find_page(&mut session.connection, &message, now)
    });
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

/// Queues a message with a user's operation, which runs at most once.
fn operate<Message: Send + 'static, Answer: Send + 'static>(
    store: &Store,
    batch: &mut Batch,
    reply: Reply<Answer>,
    when_refused: Answer,
    message: Message,
    take: fn(&mut Session, Message) -> Result<Answer, StoreError>,
) {
    let mut message = Some(message);
    let job = batch.job(reply, Some(when_refused), move |session| match message.take() {
        Some(message) => take(session, message),
        None => Err(StoreError::unavailable("the operation has been run before")),
    });
    send(&store.writes, job);
}

/// Never blocks, because this runs on arbiters.
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

/// Removes a key's record. A row that holds no valid record is deleted whole. Losing its barrier and its token does no
/// harm: a withdrawn claim reaches this one writer before its withdrawal or never, and the next token follows the
/// file's clock.
fn remove(session: &mut Session, message: &Remove) -> Result<Removed, StoreError> {
    let removed = session.step(&message.key, Outcomes::None, |found, now| transition::remove(found, now, message));
    match removed {
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
    records::purge(&mut session.connection, message.limit, now)
}

fn view(session: &Session, key: &Key, found: Option<Found>) -> Option<RecordView> {
    found.and_then(|found| RecordView::of(key.clone(), found.record, session.now()))
}
