//! Group commit: steps on many keys, taken by few statements.
//!
//! All the batch's rows are read by one statement; the protocol's pure functions decide; one statement each inserts,
//! replaces and deletes what was decided, **if its row is still what it was decided on**. What was changed by another
//! in between is read and decided again. So there is no transaction to hold open and no lock to wait behind, and a
//! replay writes nothing.
//!
//! Most steps need no look: a claim of a key that nobody has used, and a completion by the claim's owner. They are tried
//! so first, in one statement; what that does not take is looked at. Where the last claims met records, the next ones
//! look first.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::QueryResult;
use diesel::result::Error;
use oncekey::backend::{Request, StoreError};
use oncekey::record::transition::Write;
use oncekey::record::{Record, State, StoreTime};
use oncekey::{Key, KeyHasher};

use super::dialect::{Dialect, Failure, Written};
use super::error::{of_read, of_write};
use super::lent::Lent;
use super::row::{Columns, Expected, Row};
use super::step::{Step, Unseen, step_of};

/// The most steps in one statement.
const MAX_STATEMENT: usize = 128;
/// How often steps that meet others' changes are decided anew before they are refused.
const MAX_TRIES: u32 = 20;

/// Splits a batch into rounds in which each key occurs once, so that a key's steps are taken in their order. What is no
/// step comes first: nothing waits for it.
pub(crate) fn rounds(batch: Vec<Request>) -> (Vec<Request>, Vec<Vec<Box<dyn Step>>>) {
    let (mut others, mut rounds): (_, Vec<Vec<Box<dyn Step>>>) = (Vec::new(), Vec::new());
    let mut seen: HashMap<Key, usize, KeyHasher> = HashMap::default();
    for request in batch {
        match step_of(request) {
            Ok(step) => {
                let round = seen.entry(step.key().clone()).or_default();
                if rounds.len() == *round {
                    rounds.push(Vec::new());
                }
                rounds[*round].push(step);
                *round += 1;
            }
            Err(other) => others.push(other),
        }
    }
    (others, rounds)
}

/// Whether the last claims were of keys that had no record.
#[derive(Debug)]
pub(crate) struct KeysAreNew(AtomicBool);

impl Default for KeysAreNew {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

/// Takes one round: claims on one connection, settlements on another, so that neither waits for the other's commit.
pub(crate) async fn take_round<D: Dialect>(dialect: &D, keys_are_new: &KeysAreNew, round: Vec<Box<dyn Step>>) {
    let (mut acquires, mut others): (Vec<_>, Vec<_>) = round.into_iter().partition(|step| step.is_acquire());
    let mut groups = Vec::new();
    for (steps, keys_are_new) in [(&mut acquires, Some(keys_are_new)), (&mut others, None)] {
        // In the order of their keys, in which every process locks.
        steps.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        while !steps.is_empty() {
            let rest = steps.split_off(steps.len().min(MAX_STATEMENT));
            let group = std::mem::replace(steps, rest);
            groups.push(async move {
                let looks_first = keys_are_new.is_some_and(|new| !new.0.load(Ordering::Relaxed));
                let rest = if looks_first { group } else { take_unseen(dialect, group).await };
                if !rest.is_empty() {
                    take(dialect, keys_are_new, rest).await;
                }
            });
        }
    }
    let _: Vec<()> = futures_util::future::join_all(groups).await;
}

/// A step, and what it decided on.
struct Open {
    step: Box<dyn Step>,
    found: Option<Record>,
    write: Write,
    /// Whether its write was sent, and may have been done.
    sent: bool,
}

/// Takes what can be taken without a look, of claims or of settlements, and gives the others back.
///
/// Whatever fails here is looked at and decided by [`take`]: a step that was done already is found done.
async fn take_unseen<D: Dialect>(dialect: &D, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
    let (trying, mut rest): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| step.unseen().is_some());
    if trying.is_empty() {
        return rest;
    }
    let (mut claims, mut completions) = (Vec::new(), Vec::new());
    for step in &trying {
        match step.unseen() {
            Some(Unseen::Claim(row)) => claims.push(row),
            Some(Unseen::Completion(row)) => completions.push(row),
            None => {}
        }
    }
    let written = async {
        let mut lent = Lent::from(dialect).await.ok()?;
        let connection = lent.connection().ok()?;
        let written = if claims.is_empty() {
            dialect.complete(connection, &completions).await
        } else {
            dialect.claim(connection, &claims).await
        };
        let written = written.ok()?;
        lent.give_back();
        Some(written)
    };
    let written = written.await;
    drop((claims, completions));
    let written = written.unwrap_or(Written::Some);
    let (done, unwritten) = divide(trying, &written, |step| step.key());
    done.into_iter().for_each(Step::done);
    rest.extend(unwritten);
    rest.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    rest
}

async fn take<D: Dialect>(dialect: &D, keys_are_new: Option<&KeysAreNew>, steps: Vec<Box<dyn Step>>) {
    let mut open: Vec<Open> =
        steps.into_iter().map(|step| Open { step, found: None, write: Write::Nothing, sent: false }).collect();
    let refuse = |open: Vec<Open>, error: StoreError| {
        open.into_iter().for_each(|open| open.step.refuse(error.clone()));
    };
    for tries in 0..MAX_TRIES {
        let (mut lent, now, found) = match read(dialect, &open).await {
            Ok(read) => read,
            Err(error) => return refuse(open, error),
        };
        if let (Some(new), 0) = (keys_are_new, tries) {
            new.0.store(found.is_empty(), Ordering::Relaxed);
        }
        let connection = match lent.connection() {
            Ok(connection) => connection,
            Err(error) => return refuse(open, error),
        };
        let (writing, replays) = decide(open, found, now);
        open = writing;
        if !replays.is_empty() {
            let flushed = dialect.await_flush(connection).await;
            match flushed {
                Ok(()) => replays.into_iter().for_each(|open| open.step.answer()),
                Err(error) => {
                    open.extend(replays);
                    if D::failure(&error) != Failure::Contended {
                        return refuse(open, of_read::<D>(&error));
                    }
                    open.sort_unstable_by(|a, b| a.step.key().cmp(b.step.key()));
                    lent.give_back();
                    pause(tries).await;
                    continue;
                }
            }
        }
        match write(dialect, connection, &mut open).await {
            Ok(()) => lent.give_back(),
            Err(error) if D::failure(&error) == Failure::Contended => {}
            Err(error) if matches!(D::failure(&error), Failure::Refused | Failure::Other) && open.len() > 1 => {
                // One of the rows is at fault: each goes by itself, so that its neighbours don't share its fate.
                drop(lent);
                for alone in open {
                    Box::pin(take(dialect, keys_are_new, vec![alone.step])).await;
                }
                return;
            }
            Err(error) => return refuse(open, of_write::<D>(&error)),
        }
        if open.is_empty() {
            return;
        }
        pause(tries).await;
    }
    refuse(open, StoreError::unavailable("others changed the record again and again"));
}

/// Reads the rows of all keys. A connection that broke while it lay in the pool is found out here, before anything is
/// written.
async fn read<D: Dialect>(
    dialect: &D,
    open: &[Open],
) -> Result<(Lent<D>, StoreTime, HashMap<Vec<u8>, Row>), StoreError> {
    let keys: Vec<&str> = open.iter().map(|open| open.step.key().as_stored()).collect();
    let read = async |connection: &mut D::Connection| dialect.read(connection, &keys).await;
    let (lent, (now, rows)) = Lent::after(dialect, &[Failure::Disconnected], of_read::<D>, read).await?;
    Ok((lent, now, rows.into_iter().collect()))
}

/// Decides each step; answers those that neither write nor tell of what was stored before, and gives those that write, and
/// those that tell.
fn decide(open: Vec<Open>, mut rows: HashMap<Vec<u8>, Row>, now: StoreTime) -> (Vec<Open>, Vec<Open>) {
    let (mut writing, mut replays) = (Vec::with_capacity(open.len()), Vec::new());
    for mut open in open {
        let found = match rows.remove(open.step.key().as_stored().as_bytes()).map(Row::decode).transpose() {
            Ok(found) => found,
            Err(error) => {
                open.step.refuse(error);
                continue;
            }
        };
        // It was this step that wrote it: the database did not say so.
        let is_done = open.sent
            && match &open.write {
                Write::Put(record) => found.as_ref() == Some(record),
                Write::Delete => found.is_none(),
                Write::Nothing => false,
            };
        if is_done {
            open.step.answer();
            continue;
        }
        open.write = open.step.decide(found.as_ref(), now);
        (open.found, open.sent) = (found, false);
        match open.write {
            Write::Nothing if is_completed(open.found.as_ref()) => replays.push(open),
            Write::Nothing => open.step.answer(),
            Write::Put(_) | Write::Delete => writing.push(open),
        }
    }
    (writing, replays)
}

fn is_completed(found: Option<&Record>) -> bool {
    found.is_some_and(|record| matches!(record.state, State::Completed { .. }))
}

/// Writes what was decided and answers what is written; the rest stays in `open`.
async fn write<D: Dialect>(dialect: &D, connection: &mut D::Connection, open: &mut Vec<Open>) -> QueryResult<()> {
    let (mut inserts, mut updates, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    for open in open.drain(..) {
        match (&open.write, &open.found) {
            (Write::Put(_), None) => inserts.push(open),
            (Write::Put(_), Some(_)) => updates.push(open),
            (Write::Delete | Write::Nothing, _) => deletes.push(open),
        }
    }
    let mut result = Ok(());
    if !inserts.is_empty() {
        let rows: Vec<_> = inserts.iter().filter_map(put).collect();
        let written = dialect.insert(connection, &rows).await;
        drop(rows);
        result = keep_unwritten(inserts, written, open);
    }
    if !updates.is_empty() {
        // After a failure the others are left as they are: they come again.
        let written = match &result {
            Ok(()) => {
                let rows: Vec<_> = updates.iter().filter_map(|open| Some((expected(open)?, put(open)?))).collect();
                dialect.update(connection, &rows).await
            }
            Err(_) => Ok(Written::Only(Vec::new())),
        };
        result = result.and(keep_unwritten(updates, written, open));
    }
    if !deletes.is_empty() {
        let written = match &result {
            Ok(()) => {
                let rows: Vec<_> = deletes.iter().filter_map(expected).collect();
                dialect.delete(connection, &rows).await
            }
            Err(_) => Ok(Written::Only(Vec::new())),
        };
        result = result.and(keep_unwritten(deletes, written, open));
    }
    open.sort_unstable_by(|a, b| a.step.key().cmp(b.step.key()));
    result
}

fn put(open: &Open) -> Option<Columns<'_>> {
    match &open.write {
        Write::Put(record) => Some(Columns::of(open.step.key(), record)),
        Write::Delete | Write::Nothing => None,
    }
}

fn expected(open: &Open) -> Option<Expected<'_>> {
    open.found.as_ref().map(|found| Expected::of(open.step.key(), found))
}

fn keep_unwritten(sent: Vec<Open>, written: Result<Written, Error>, open: &mut Vec<Open>) -> QueryResult<()> {
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            open.extend(sent);
            return Err(error);
        }
    };
    let (done, unwritten) = divide(sent, &written, |open| open.step.key());
    done.into_iter().for_each(|open| open.step.answer());
    let may_be_done = written == Written::Some;
    open.extend(unwritten.into_iter().map(|open| Open { sent: may_be_done || open.sent, ..open }));
    Ok(())
}

/// Those whose rows are known to be written, and the others.
fn divide<T>(sent: Vec<T>, written: &Written, key: impl Fn(&T) -> &Key) -> (Vec<T>, Vec<T>) {
    match written {
        Written::All => (sent, Vec::new()),
        Written::Only(keys) => {
            let keys: HashSet<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            sent.into_iter().partition(|one| keys.contains(key(one).as_stored().as_bytes()))
        }
        Written::Some => (Vec::new(), sent),
    }
}

/// The first tries follow at once; later ones leave the others time to finish, each after another while.
pub(crate) async fn pause(tries: u32) {
    if tries > 0 {
        let limit = 2_u64 << tries.min(6);
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..limit))).await;
    }
}
