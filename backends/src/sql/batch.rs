//! Group commit: executes the steps on many keys with few statements.
//!
//! One statement reads all rows of the batch, and the protocol's pure functions decide. Then one statement each
//! inserts, replaces and deletes rows, **if each row is still what its decision was based on**. A row that another
//! session has changed is read and decided again. So no transaction stays open, nothing waits behind its locks, and a
//! replay writes nothing.
//!
//! **A row that another session has locked delays the other rows only briefly.** A connection waits one second for a
//! lock. Then the batch asks the database which of its rows are free: their steps continue, and the steps on locked
//! rows fail.
//!
//! Most steps need no read first: a claim of an unused key, a completion by the claim's owner, the first run of an
//! operation's step, and that step's outcome. The batch tries these in one statement, and reads only the rows of the
//! steps that this did not cover. If the last claims found records, the next claims read first.
//!
//! A step that must see an operation's steps is decided in its own transaction: see [`family`].
//!
//! **If the answer to a step's statement is lost, the step ends here as unknown.** It is not decided again: the
//! statement may still be on its way or waiting for a lock, so no read can show what will happen to it, and a lock on a
//! missing row keeps nothing out. The engine knows how to continue: it repeats a step of a claim's owner, which is
//! safe, and withdraws a claim, which keeps the lost one out. Connections that broke while idle don't end up here,
//! because they are tested before they are lent. If the server answered, even with an error, the statement has
//! finished, and the next read shows what it wrote.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::QueryResult;
use diesel::result::Error;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use oncekey::backend::{Request, StoreError};
use oncekey::record::transition::Write;
use oncekey::record::{Record, State, StoreTime};
use oncekey::{Key, KeyHasher};

use super::dialect::{Dialect, Failure, Written};
use super::error::{Fate, fate, of_read, of_write};
use super::family;
use super::lent::Lent;
use super::row::{Columns, Expected, Row};
use super::step::{Given, Group, Step, Unseen, step_of};
use super::step_row::given_token;

/// The most steps in one statement.
const MAX_STATEMENT: usize = 128;
/// How often a batch waits for the locks of its rows before its steps fail.
const MAX_WAITS: u32 = 3;
/// How often steps are decided again because of others' changes, before they are refused.
pub(super) const MAX_TRIES: u32 = 20;
/// How many transactions on records with steps a group runs at once.
const FAMILIES: usize = 2;

/// Splits a batch into rounds in which each key occurs once, so that the steps of a key keep their order. Requests that
/// are no steps are returned first, because they need not wait for any step.
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

/// Whether the last claims were for keys without a record.
#[derive(Debug)]
pub(crate) struct KeysAreNew(AtomicBool);

impl Default for KeysAreNew {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

/// Executes one round: claims on one connection and settlements on another, so that neither waits for the other's
/// commit. The two groups of operations' steps have their own connections too.
pub(crate) async fn take_round<D: Dialect>(dialect: &D, keys_are_new: &KeysAreNew, mut round: Vec<Box<dyn Step>>) {
    let mut groups = Vec::new();
    for group in Group::ALL {
        let (mut steps, others): (Vec<_>, Vec<_>) = round.into_iter().partition(|step| step.group() == group);
        round = others;
        let keys_are_new = (group == Group::Claims).then_some(keys_are_new);
        // Steps are sorted by key, because every process locks rows in that order.
        steps.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        while !steps.is_empty() {
            let rest = steps.split_off(together(&steps, dialect));
            let part = std::mem::replace(&mut steps, rest);
            groups.push(async move {
                let looks_first = keys_are_new.is_some_and(|new| !new.0.load(Ordering::Relaxed));
                let rest = if looks_first { part } else { take_unseen(dialect, part).await };
                if group.is_of_steps() {
                    take_families(dialect, rest).await;
                } else if !rest.is_empty() {
                    take(dialect, keys_are_new, rest).await;
                }
            });
        }
    }
    let _: Vec<()> = join_all(groups).await;
}

/// Executes each step in its own transaction.
async fn take_families<D: Dialect>(dialect: &D, steps: Vec<Box<dyn Step>>) {
    let take_one = async |mut step: Box<dyn Step>| {
        // The record may disappear or appear between the read and the lock.
        for tries in 0..MAX_TRIES {
            let Some(absent) = family::take(dialect, step).await else { return };
            let (mut alone, mut families) = (Vec::new(), Vec::new());
            take_together(dialect, None, vec![absent], &mut alone, &mut families).await;
            match families.pop() {
                Some(diverted) => step = diverted,
                None => return,
            }
            pause(tries).await;
        }
        step.fail(StoreError::unavailable("others made and removed the record again and again"));
    };
    stream::iter(steps).for_each_concurrent(FAMILIES, take_one).await;
}

/// Returns how many of the first steps share a statement. A step with a long outcome has its own statement: a server
/// limits a statement's length, and the other steps must not be refused with it.
fn together<D: Dialect>(steps: &[Box<dyn Step>], dialect: &D) -> usize {
    let longest_shared = dialect.longest_shared_outcome();
    let is_long = |step: &dyn Step| match step.unseen() {
        Some(Unseen::Completion(row)) => row.outcome.len() > longest_shared,
        Some(Unseen::StepCompletion(row)) => row.outcome.len() > longest_shared,
        Some(Unseen::Claim(_) | Unseen::Begin(_)) | None => false,
    };
    let most = match steps.first().map(|step| step.group()) {
        Some(Group::Begins) => MAX_STATEMENT.min(dialect.most_begun_together()),
        _ => MAX_STATEMENT,
    };
    match steps.iter().take(most).position(|step| is_long(step.as_ref())) {
        Some(0) => 1,
        Some(shared) => shared,
        None => steps.len().min(most),
    }
}

/// A step, and the record on which it was decided.
struct Open {
    step: Box<dyn Step>,
    found: Option<Record>,
    write: Write,
}

impl Open {
    fn new(step: Box<dyn Step>) -> Self {
        Self { step, found: None, write: Write::Nothing }
    }
}

/// What a statement without a read did.
enum Done {
    /// The steps of these keys, with the values that they got.
    Given(HashMap<Vec<u8>, Given>),
    Written(Written),
}

/// Executes the claims or settlements that need no read, and returns the other steps, for [`take`] to read and decide.
/// It finds out if one of them was already done.
async fn take_unseen<D: Dialect>(dialect: &D, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
    let (mut trying, mut rest): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| step.unseen().is_some());
    if trying.is_empty() {
        return rest;
    }
    match try_unseen(dialect, &mut trying).await {
        // Nothing was sent. If `take` meets the same problem, it reports the reason.
        None => rest.extend(trying),
        Some(Ok(Done::Given(given))) => {
            for mut step in trying {
                match given.get(step.key().as_stored().as_bytes()) {
                    Some(given) => step.done(*given),
                    None => {
                        step.state().refused();
                        rest.push(step);
                    }
                }
            }
        }
        Some(Ok(Done::Written(written))) => {
            let (done, unwritten) = divide(trying, &written, |step| step.key());
            done.into_iter().for_each(|step| step.done(Given::NOTHING));
            rest.extend(unwritten.into_iter().map(|mut step| {
                if written != Written::Some {
                    step.state().refused();
                }
                step
            }));
        }
        Some(Err(error)) => rest.extend(trying.into_iter().filter_map(|step| unless_lost::<D>(step, &error))),
    }
    rest.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    rest
}

/// Runs the statement. Returns `None` if it was not sent.
async fn try_unseen<D: Dialect>(dialect: &D, trying: &mut [Box<dyn Step>]) -> Option<QueryResult<Done>> {
    let mut lent = Lent::from(dialect).await.ok()?;
    let connection = lent.connection().ok()?;
    trying.iter_mut().for_each(|step| step.state().sent());
    let (mut claims, mut completions) = (Vec::new(), Vec::new());
    let (mut begins, mut outcomes) = (Vec::new(), Vec::new());
    for step in trying.iter() {
        match step.unseen() {
            Some(Unseen::Claim(row)) => claims.push(row),
            Some(Unseen::Completion(row)) => completions.push(row),
            Some(Unseen::Begin(row)) => begins.push(row),
            Some(Unseen::StepCompletion(row)) => outcomes.push(row),
            None => {}
        }
    }
    // All of them belong to one group.
    let done = if !claims.is_empty() {
        let claimed = dialect.claim(connection, &claims).await;
        let given = |(key, token)| (key, Given { token: given_token(token), ..Given::NOTHING });
        claimed.map(|claimed| Done::Given(claimed.into_iter().map(given).collect()))
    } else if !begins.is_empty() {
        let begun = dialect.begin_steps(connection, &begins).await;
        let given = |(key, life, token)| (key, Given { token: given_token(token), life: given_token(life) });
        begun.map(|begun| Done::Given(begun.into_iter().map(given).collect()))
    } else if !outcomes.is_empty() {
        dialect.complete_steps(connection, &outcomes).await.map(Done::Written)
    } else {
        dialect.complete(connection, &completions).await.map(Done::Written)
    };
    // A lock timeout leaves nothing behind on the connection.
    if done.as_ref().err().is_none_or(|error| D::failure(error) == Failure::Locked) {
        lent.give_back();
    }
    Some(done)
}

/// Handles a failed statement: ends a step whose answer is lost, and returns any other step, to be read and decided.
fn unless_lost<D: Dialect>(mut step: Box<dyn Step>, error: &Error) -> Option<Box<dyn Step>> {
    match fate::<D>(error) {
        Fate::NotWritten => step.state().refused(),
        Fate::Finished => {}
        Fate::Lost => {
            step.state().lost();
            step.fail(of_write::<D>(error));
            return None;
        }
    }
    Some(step)
}

async fn take<D: Dialect>(dialect: &D, keys_are_new: Option<&KeysAreNew>, steps: Vec<Box<dyn Step>>) {
    let (mut alone, mut families) = (Vec::new(), Vec::new());
    take_together(dialect, keys_are_new, steps, &mut alone, &mut families).await;
    for open in alone {
        // A single step sets no others apart.
        take_together(dialect, keys_are_new, vec![open.step], &mut Vec::new(), &mut families).await;
    }
    take_families(dialect, families).await;
}

/// Executes steps together. Steps that must then run one by one go to `alone`, and steps that must see their records'
/// steps go to `families`.
async fn take_together<D: Dialect>(
    dialect: &D,
    keys_are_new: Option<&KeysAreNew>,
    steps: Vec<Box<dyn Step>>,
    alone: &mut Vec<Open>,
    families: &mut Vec<Box<dyn Step>>,
) {
    let mut waits = 0;
    let mut open: Vec<Open> = steps.into_iter().map(Open::new).collect();
    let fail = |open: Vec<Open>, error: StoreError| {
        open.into_iter().for_each(|open| open.step.fail(error.clone()));
    };
    for tries in 0..MAX_TRIES {
        let (mut lent, now, found) = match read(dialect, &open).await {
            Ok(read) => read,
            Err(error) => return fail(open, error),
        };
        if let (Some(new), 0) = (keys_are_new, tries) {
            new.0.store(found.is_empty(), Ordering::Relaxed);
        }
        let connection = match lent.connection() {
            Ok(connection) => connection,
            Err(error) => return fail(open, error),
        };
        let (writing, replays) = decide(open, found, now, families);
        open = writing;
        if open.is_empty() && replays.is_empty() {
            lent.give_back();
            return;
        }
        if !replays.is_empty() {
            let flushed = dialect.await_flush(connection).await;
            match flushed {
                Ok(()) => replays.into_iter().for_each(|open| open.step.answer()),
                Err(error) => {
                    open.extend(replays);
                    if !D::failure(&error).is_contention() {
                        return fail(open, of_read::<D>(&error));
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
            // The steps whose answers are lost have ended. The open ones were not sent.
            Err(error) if D::failure(&error) == Failure::Contended || fate::<D>(&error) == Fate::Lost => {}
            Err(error) if D::failure(&error) == Failure::Locked && open.len() > 1 && waits < MAX_WAITS => {
                waits += 1;
                match set_locked_apart(dialect, connection, open, alone, &of_write::<D>(&error)).await {
                    Ok(unlocked) => open = unlocked,
                    Err((open, error)) => return fail(open, of_write::<D>(&error)),
                }
                lent.give_back();
            }
            // One of the rows caused the error. Each step now runs by itself, so the others don't fail with it.
            Err(error) if matches!(D::failure(&error), Failure::Refused | Failure::Other) && open.len() > 1 => {
                alone.append(&mut open);
                return;
            }
            Err(error) => return fail(open, of_write::<D>(&error)),
        }
        if open.is_empty() {
            return;
        }
        pause(tries).await;
    }
    fail(open, StoreError::unavailable("others changed the record again and again"));
}

/// Handles a lock timeout: fails the steps whose rows are locked, and returns those whose rows are free. An insert may
/// wait for another session's uncommitted insert of the same key, which is not visible yet: it goes to `alone`.
async fn set_locked_apart<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    open: Vec<Open>,
    alone: &mut Vec<Open>,
    locked: &StoreError,
) -> Result<Vec<Open>, (Vec<Open>, Error)> {
    let keys: Vec<&str> = open.iter().map(|open| open.step.key().as_stored()).collect();
    let unlocked: HashSet<Vec<u8>> = match dialect.unlocked(connection, &keys).await {
        Ok(unlocked) => unlocked.into_iter().collect(),
        Err(error) => return Err((open, error)),
    };
    let mut free = Vec::with_capacity(open.len());
    for open in open {
        if open.found.is_none() {
            alone.push(open);
        } else if unlocked.contains(open.step.key().as_stored().as_bytes()) {
            free.push(open);
        } else {
            open.step.fail(locked.clone());
        }
    }
    Ok(free)
}

/// Reads the rows of all keys. If the connection broke while it was idle, this detects it before anything is written.
async fn read<D: Dialect>(
    dialect: &D,
    open: &[Open],
) -> Result<(Lent<D::Connection>, StoreTime, HashMap<Vec<u8>, Row>), StoreError> {
    let keys: Vec<&str> = open.iter().map(|open| open.step.key().as_stored()).collect();
    let read = async |connection: &mut D::Connection| dialect.read(connection, &keys).await;
    let (lent, (now, rows)) = Lent::after(dialect, &[Failure::Disconnected], of_read::<D>, read).await?;
    Ok((lent, now, rows.into_iter().collect()))
}

/// Decides each step. Answers the steps that neither write nor replay a stored outcome, and returns the writing and the
/// replaying ones. Steps that must be decided with their records' steps go to `families`.
fn decide(
    open: Vec<Open>,
    mut rows: HashMap<Vec<u8>, Row>,
    now: StoreTime,
    families: &mut Vec<Box<dyn Step>>,
) -> (Vec<Open>, Vec<Open>) {
    let (mut writing, mut replays) = (Vec::with_capacity(open.len()), Vec::new());
    for mut open in open {
        let found = match rows.remove(open.step.key().as_stored().as_bytes()).map(Row::decode).transpose() {
            Ok(found) => found,
            Err(error) => {
                open.step.refuse(error);
                continue;
            }
        };
        // The step's last statement has finished, but the database did not say which rows it wrote. This read shows it.
        let is_done = open.step.state().may_have_been_executed()
            && match &open.write {
                Write::Put(record) => found.as_ref() == Some(record),
                Write::Delete => found.is_none(),
                Write::Nothing => false,
            };
        if is_done {
            open.step.answer();
            continue;
        }
        open.step.state().refused();
        if found.as_ref().is_some_and(|found| open.step.must_see_steps(found, now)) {
            families.push(open.step);
            continue;
        }
        open.write = open.step.decide(found.as_ref(), now);
        open.found = found;
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

/// Writes the decisions and answers the steps whose rows are written. The rest stays in `open`.
async fn write<D: Dialect>(dialect: &D, connection: &mut D::Connection, open: &mut Vec<Open>) -> QueryResult<()> {
    let sent = |steps: &mut [Open]| steps.iter_mut().for_each(|open| open.step.state().sent());
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
        sent(&mut inserts);
        let rows: Vec<_> = inserts.iter().filter_map(put).collect();
        let written = dialect.insert(connection, &rows).await;
        drop(rows);
        result = keep_unwritten::<D>(inserts, written, open);
    }
    for mut updates in statements(updates, D::LONGEST_SHARED_OUTCOME.min(dialect.longest_shared_outcome())) {
        // After a failure, the other steps stay unchanged: they are decided again.
        if result.is_ok() {
            sent(&mut updates);
            let rows: Vec<_> = updates.iter().filter_map(|open| Some((expected(open)?, put(open)?))).collect();
            let written = dialect.update(connection, &rows).await;
            drop(rows);
            result = keep_unwritten::<D>(updates, written, open);
        } else {
            open.append(&mut updates);
        }
    }
    if !deletes.is_empty() {
        if result.is_ok() {
            sent(&mut deletes);
            let rows: Vec<_> = deletes.iter().filter_map(expected).collect();
            let written = dialect.delete(connection, &rows).await;
            drop(rows);
            result = keep_unwritten::<D>(deletes, written, open);
        } else {
            open.append(&mut deletes);
        }
    }
    open.sort_unstable_by(|a, b| a.step.key().cmp(b.step.key()));
    result
}

/// Divides updates into statements. A row with a long outcome has its own statement.
fn statements(updates: Vec<Open>, longest_shared: usize) -> Vec<Vec<Open>> {
    let is_long =
        |open: &Open| put(open).and_then(|row| row.outcome).is_some_and(|outcome| outcome.len() > longest_shared);
    let (long, shared): (Vec<_>, Vec<_>) = updates.into_iter().partition(is_long);
    let shared = (!shared.is_empty()).then_some(shared);
    shared.into_iter().chain(long.into_iter().map(|open| vec![open])).collect()
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

fn keep_unwritten<D: Dialect>(sent: Vec<Open>, written: QueryResult<Written>, open: &mut Vec<Open>) -> QueryResult<()> {
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            open.extend(sent.into_iter().filter_map(|Open { step, found, write }| {
                unless_lost::<D>(step, &error).map(|step| Open { step, found, write })
            }));
            return Err(error);
        }
    };
    let (done, unwritten) = divide(sent, &written, |open| open.step.key());
    done.into_iter().for_each(|open| open.step.answer());
    open.extend(unwritten.into_iter().map(|mut open| {
        if written != Written::Some {
            open.step.state().refused();
        }
        open
    }));
    Ok(())
}

/// Separates the items whose rows are known to be written from the others.
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

/// Waits before the next attempt. The first attempt follows at once; later ones wait for a random time, so that the
/// others can finish.
pub(crate) async fn pause(tries: u32) {
    if tries > 0 {
        let limit = 2_u64 << tries.min(6);
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..limit))).await;
    }
}
