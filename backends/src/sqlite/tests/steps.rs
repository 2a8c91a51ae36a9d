//! What the statements of steps cost, and what they leave.

use oncekey::backend::{Acquired, BeginStep, Complete, CompleteStep, Purged, Remove, Renew, StoreError, Withdraw};
use oncekey::record::{PayloadKind, Progress, SealedOutcome, StepName, StepRecord, StepRun};
use oncekey::{Attempt, FencingToken, StepPolicy};

use super::*;
use crate::sqlite::clock::{Clock, Machine};
use crate::sqlite::session::Session;
use crate::sqlite::{schema, steps, unseen};
use crate::step_columns::outcome_of_step;

/// A session on a database in memory that has one claimed key.
pub(super) fn session() -> (Session, Acquire, FencingToken) {
    let mut connection = SqliteConnection::establish(":memory:").unwrap();
    migration::bring_up_to_date(&mut connection, true).unwrap();
    let clock = Clock::anchor(&mut connection, &Machine::now()).unwrap();
    let mut session = Session::new(connection, clock);
    let message = claim(1);
    session.step(&message.key, Outcomes::All, |found, now| transition::acquire(found, now, &message)).unwrap();
    let token = find(&mut session, &message.key).token;
    (session, message, token)
}

fn find(session: &mut Session, key: &Key) -> Record {
    records::find(&mut session.connection, key, Outcomes::All).unwrap().unwrap().record
}

fn begin(session: &mut Session, claim: &Acquire, number: u32) {
    let message = BeginStep {
        key: claim.key.clone(),
        owner: claim.owner,
        name: name(number),
        fingerprint: None,
        number,
        policy: StepPolicy::Hold,
        retention: Duration::from_secs(60),
    };
    let outcomes = Outcomes::Of(&message.name);
    session.step(&message.key, outcomes, |found, now| transition::begin_step(found, now, &message)).unwrap();
}

fn complete(session: &mut Session, claim: &Acquire, life: FencingToken, number: u32) {
    let outcome = SealedOutcome::seal(&claim.key, PayloadKind::Json, |bytes| bytes.resize(10_000, b'1'));
    let run = StepRun { token: life, number };
    let message = CompleteStep { key: claim.key.clone(), life, name: name(number), run, outcome };
    let outcomes = Outcomes::Of(&message.name);
    session.step(&message.key, outcomes, |found, now| transition::complete_step(found, now, &message)).unwrap();
}

fn name(number: u32) -> StepName {
    StepName::new(format!("step {number}")).unwrap()
}

pub(super) fn rows(session: &mut Session) -> i64 {
    schema::oncekey_steps::table.count().get_result(&mut session.connection).unwrap()
}

/// The SQL that `run` executes, and how many of its statements had to be prepared.
fn heard(session: &mut Session, run: impl FnOnce(&mut Session)) -> (Vec<String>, usize) {
    let said = Arc::new(Mutex::new((Vec::new(), 0)));
    let hears = Arc::clone(&said);
    session.connection.set_instrumentation(move |event: InstrumentationEvent<'_>| match event {
        InstrumentationEvent::StartQuery { query, .. } => hears.lock().unwrap().0.push(query.to_string()),
        InstrumentationEvent::CacheQuery { .. } => hears.lock().unwrap().1 += 1,
        _ => {}
    });
    run(session);
    session.connection.set_instrumentation(|_: InstrumentationEvent<'_>| ());
    std::mem::take(&mut *said.lock().unwrap())
}

#[test]
fn e26_a_step_costs_three_statements_to_begin_and_three_to_complete_however_many_there_are() {
    let (mut session, claim, life) = session();
    for number in 0..3 {
        begin(&mut session, &claim, number);
        complete(&mut session, &claim, life, number);
    }
    let (queries, prepared) = heard(&mut session, |session| {
        for number in 3..13 {
            begin(session, &claim, number);
            complete(session, &claim, life, number);
        }
    });
    assert_eq!((queries.len(), prepared), (60, 0), "{queries:#?}");
    // Without steps there is no statement more than before.
    let other = super::claim(2);
    let (queries, _) = heard(&mut session, |session| {
        session.step(&other.key, Outcomes::All, |found, now| transition::acquire(found, now, &other)).unwrap();
        find(session, &other.key);
    });
    assert_eq!(queries.len(), 3, "{queries:#?}");
}

#[test]
fn e26_the_statements_of_steps_go_by_the_primary_key() {
    let (mut session, claim, life) = session();
    begin(&mut session, &claim, 1);
    complete(&mut session, &claim, life, 1);
    let (queries, _) = heard(&mut session, |session| {
        complete(session, &claim, life, 1);
        find(session, &claim.key);
        let now = StoreTime::END;
        session.connection.batch_execute("UPDATE oncekey_records SET purge_at = 1").unwrap();
        records::purge(&mut session.connection, 10, now).unwrap();
    });
    let of_steps: Vec<_> = queries.iter().filter(|query| query.contains("`oncekey_steps`")).collect();
    assert_eq!(of_steps.len(), 3, "{queries:#?}");
    for query in of_steps {
        let plan = plan(&mut session.connection, query);
        assert!(plan.contains("SEARCH oncekey_steps USING PRIMARY KEY"), "{query}: {plan}");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

/// A change of one step neither reads nor loses the outcomes of the others.
#[test]
fn e26_a_change_of_one_step_keeps_the_outcomes_of_the_others() {
    let (mut session, claim, life) = session();
    for number in 0..4 {
        begin(&mut session, &claim, number);
        complete(&mut session, &claim, life, number);
    }
    begin(&mut session, &claim, 4);
    let before = find(&mut session, &claim.key);
    let renew = Renew { key: claim.key.clone(), owner: claim.owner, lease: Duration::from_secs(60) };
    session.step(&claim.key, Outcomes::None, |found, now| transition::renew(found, now, &renew)).unwrap();
    complete(&mut session, &claim, life, 4);
    let after = find(&mut session, &claim.key);
    let (before, after) = (before.steps.unwrap(), after.steps.unwrap());
    assert_eq!(before.list[..4], after.list[..4]);
    assert!(matches!(after.list[4].progress, Progress::Completed(_)));
    let of_one = Outcomes::Of(&after.list[2].name);
    let read = records::find(&mut session.connection, &claim.key, of_one).unwrap().unwrap().record.steps.unwrap();
    let bytes = |step: &StepRecord| outcome_of_step(step).map(<[u8]>::len);
    assert_eq!(read.list.iter().map(bytes).collect::<Vec<_>>(), [0, 0, 10_000, 0, 0].map(Some));
    // An outcome that was not read can't be written over one that is stored.
    let mut damaged = (*read).clone();
    damaged.list[0].attempt = Attempt::new(9);
    let id = records::find(&mut session.connection, &claim.key, Outcomes::None).unwrap().unwrap().id;
    let written = steps::write(&mut session.connection, id, Some(&read), Some(&damaged));
    assert!(matches!(written, Err(StoreError::Corrupt(_))));
}

/// Whatever ends a record's life ends its steps, and a later life sees none of them.
#[test]
fn e26_no_step_is_left_behind() {
    type End = fn(&mut Session, &Acquire);
    let ends: [(&str, End); 6] = [
        ("remove", |session, claim| {
            let message = Remove { key: claim.key.clone() };
            session.step(&claim.key, Outcomes::None, |found, now| transition::remove(found, now, &message)).unwrap();
        }),
        ("remove what is corrupt", |session, claim| {
            session.connection.batch_execute("UPDATE oncekey_records SET state = 9").unwrap();
            assert!(records::remove(&mut session.connection, &claim.key).unwrap());
        }),
        ("purge", |session, _| {
            session.connection.batch_execute("UPDATE oncekey_records SET purge_at = 1").unwrap();
            let purged = records::purge(&mut session.connection, 10, StoreTime::END).unwrap();
            assert_eq!(purged, Purged { removed: 1, more: false });
        }),
        ("an operator's shell", |session, _| {
            session.connection.batch_execute("DELETE FROM oncekey_records").unwrap();
        }),
        ("a claim of a completed key whose time is over", |session, claim| {
            let complete = Complete {
                key: claim.key.clone(),
                owner: claim.owner,
                outcome: SealedOutcome::tombstone(&claim.key),
                retention: Duration::ZERO,
            };
            session.step(&claim.key, Outcomes::None, |found, now| transition::complete(found, now, &complete)).unwrap();
        }),
        ("a withdrawal of a claim whose steps had no effect", |session, claim| {
            session.connection.batch_execute("UPDATE oncekey_steps SET progress = 3, outcome = NULL").unwrap();
            let withdraw = Withdraw { key: claim.key.clone(), owner: claim.owner };
            session.step(&claim.key, Outcomes::None, |found, now| transition::withdraw(found, now, &withdraw)).unwrap();
        }),
    ];
    for (what, end) in ends {
        let (mut session, claim, life) = session();
        begin(&mut session, &claim, 1);
        complete(&mut session, &claim, life, 1);
        end(&mut session, &claim);
        let past_withdrawal = Some(Box::new(claim.owner));
        let next = Acquire { owner: Owner::random(), past_withdrawal, ..claim.clone() };
        // The next life gets a higher token by the clock.
        std::thread::sleep(Duration::from_millis(2));
        let claimed =
            session.step(&next.key, Outcomes::All, |found, now| transition::acquire(found, now, &next)).unwrap();
        assert!(matches!(claimed, Acquired::Claimed { steps: None, .. }), "{what}: {claimed:?}");
        assert_eq!(rows(&mut session), 0, "{what}");
        assert_eq!(find(&mut session, &next.key).steps, None, "{what}");
        begin(&mut session, &next, 1);
        assert_eq!(find(&mut session, &next.key).steps.unwrap().list.len(), 1, "{what}");
    }
}

/// A version of this library that knows no steps may have left rows: they are of another life.
#[test]
fn e26_a_row_of_another_life_is_no_step() {
    let (mut session, claim, life) = session();
    begin(&mut session, &claim, 1);
    let sql =
        "INSERT INTO oncekey_steps SELECT record_id, 1, life - 1, 'older', fingerprint, attempt, run_token, run_number,
               began_at, reruns_until, 2, x'00' FROM oncekey_steps";
    session.connection.batch_execute(sql).unwrap();
    assert_eq!(find(&mut session, &claim.key).steps.unwrap().list.len(), 1);
    begin(&mut session, &claim, 2);
    complete(&mut session, &claim, life, 2);
    let names: Vec<_> = find(&mut session, &claim.key).steps.unwrap().list.into_iter().map(|step| step.name).collect();
    assert_eq!(names, [name(1), name(2)]);
    assert_eq!(rows(&mut session), 2);
}

/// Whether the statement without a look took it. If so it did what the protocol decides, and if not it changed nothing.
fn completes_unseen(session: &mut Session, message: &CompleteStep) -> bool {
    let (found, now) = (find(session, &message.key), session.now());
    let decided = transition::complete_step(Some(&found), now, message);
    let Some(answer) = unseen::complete(&mut session.connection, message, now).unwrap() else {
        assert_eq!(find(session, &message.key), found);
        return false;
    };
    assert_eq!(answer, decided.answer);
    assert_eq!(Write::Put(find(session, &message.key)), decided.write);
    true
}

#[test]
fn e26_an_outcome_that_is_stored_without_a_look_is_the_protocols() {
    let (mut session, claim, life) = session();
    let complete_of = |number: u32| {
        let outcome = SealedOutcome::seal(&claim.key, PayloadKind::Json, |bytes| bytes.resize(100, b'1'));
        CompleteStep { key: claim.key.clone(), life, name: name(number), run: StepRun { token: life, number }, outcome }
    };
    assert!(!completes_unseen(&mut session, &complete_of(1)), "it has not begun");
    for number in 1..=3 {
        begin(&mut session, &claim, number);
    }
    let other_run = CompleteStep { run: StepRun { token: life, number: 9 }, ..complete_of(2) };
    let other_token = CompleteStep { run: StepRun { token: FencingToken::new(9), number: 2 }, ..complete_of(2) };
    let other_life = CompleteStep { life: FencingToken::new(life.get() - 1), ..complete_of(2) };
    for other in [other_run, other_token, other_life, complete_of(6)] {
        assert!(!completes_unseen(&mut session, &other), "{other:?}");
    }
    assert!(completes_unseen(&mut session, &complete_of(2)));
    assert!(!completes_unseen(&mut session, &complete_of(2)), "it is completed");
    for no_longer_in_progress in ["lease_until = 1", "lease_until = 9000000000000, state = 3"] {
        session.connection.batch_execute(&format!("UPDATE oncekey_records SET {no_longer_in_progress}")).unwrap();
        let now = session.now();
        let taken = unseen::complete(&mut session.connection, &complete_of(3), now);
        assert_eq!(taken, Ok(None), "{no_longer_in_progress}");
    }
}
