//! Consumers are killed again and again, and the broker twice. Every third message is redelivered, and for a while the
//! broker refuses dead letters.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::Message;
use tempfile::TempDir;
use tests::broker::{Broker, Letter};
use tests::process::{PATIENCE, Process};

const CONSUMERS: usize = 3;

/// Fewer kills would hardly be a fault.
const FEWEST_KILLS: usize = 5;

fn messages() -> usize {
    std::env::var("ONCEKEY_BROKER_MESSAGES").map_or(1_000, |count| count.parse().expect("a number of messages"))
}

/// One in this many messages is poison, if there is any.
const POISON_EACH: usize = 25;

/// Returns messages, some of which are poison, depending on their numbers.
fn numbered(count: usize, has_poison: bool) -> Vec<Message> {
    let payload = |number| if has_poison && is_poison(number) { "poison" } else { "mail" };
    (0..count).map(|number| Message::new(number.to_string(), payload(number))).collect()
}

fn is_poison(number: usize) -> bool {
    number % POISON_EACH == 7
}

#[derive(QueryableByName)]
struct Effects {
    #[diesel(sql_type = diesel::sql_types::Text)]
    message: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Rows {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    messages: i64,
}

/// The file with the consumers' effects and keys.
struct Ledger {
    folder: TempDir,
    connection: SqliteConnection,
}

impl Ledger {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut connection = SqliteConnection::establish(folder.path().join("effects.db").to_str().unwrap()).unwrap();
        let made =
            "PRAGMA busy_timeout = 20000; PRAGMA journal_mode = WAL; CREATE TABLE effects (message TEXT NOT NULL);
            CREATE TABLE tries (message TEXT NOT NULL); CREATE TABLE refusals (message TEXT NOT NULL)";
        connection.batch_execute(made).unwrap();
        Self { folder, connection }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("effects.db")
    }

    /// Returns how often each message had its effect.
    fn effects(&mut self) -> HashMap<String, i64> {
        let counted = diesel::sql_query("SELECT message, count(*) AS count FROM effects GROUP BY message");
        let rows: Vec<Effects> = counted.load(&mut self.connection).unwrap();
        rows.into_iter().map(|row| (row.message, row.count)).collect()
    }

    /// Returns how many rows a table has after row number `after`, and how many messages they belong to.
    fn rows(&mut self, table: &str, after: i64) -> Rows {
        let counted =
            format!("SELECT count(*) AS count, count(DISTINCT message) AS messages FROM {table} WHERE rowid > {after}");
        diesel::sql_query(counted).get_result(&mut self.connection).unwrap()
    }
}

fn start(url: &str, number: usize, mode: &str, ledger: &Ledger) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command.args([url, &format!("mailer-{number}"), mode]).arg(ledger.path()).arg("10");
    Process::start(&mut command)
}

/// The faults besides the kills of consumers.
#[derive(Clone, Copy)]
struct Faults {
    broker_restarts: usize,
    /// Some messages are poison, and for a while the broker refuses their dead letters.
    has_refusals: bool,
}

/// The period in which dead letters are refused.
enum Refusals {
    /// The period begins when this many messages are done.
    From(usize),
    On {
        refusals_before: i64,
        tries_before: i64,
        told: Instant,
    },
    Over(Refused),
}

/// What happened in the period of refusals.
#[derive(Debug, Default)]
struct Refused {
    refusals: i64,
    /// The attempts on poison messages, and the number of these messages.
    tries: i64,
    tried: i64,
}

/// The results of a run.
struct Left {
    messages: usize,
    kills: usize,
    refused: Refused,
    effects: HashMap<String, i64>,
    dead: Vec<Letter>,
}

impl Left {
    fn doubled(&self) -> usize {
        self.effects.values().filter(|count| **count > 1).count()
    }

    fn settled(effects: &HashMap<String, i64>, dead: &[Letter]) -> usize {
        let dead = dead.iter().map(|letter| &letter.id);
        effects.keys().chain(dead).collect::<HashSet<_>>().len()
    }

    fn lost(&self) -> usize {
        self.messages - Self::settled(&self.effects, &self.dead)
    }

    #[expect(clippy::print_stderr, reason = "a run of 10,000 by hand reports what it met")]
    fn report(&self, url: &str, mode: &str, restarts: usize) {
        let Refused { refusals, tries, tried } = self.refused;
        let broker = url.split(':').next().unwrap_or_default();
        eprintln!(
            "{broker}, {mode}: {} messages; {} kills of a consumer, {restarts} of the broker; {refusals} refusals of dead \
             letters, {tries} tries of {tried} messages meanwhile; {} doubled, {} lost, {} dead letters",
            self.messages,
            self.kills,
            self.doubled(),
            self.lost(),
            self.dead.len(),
        );
    }
}

/// Publishes messages, has them consumed under faults until none is left, and returns the results.
async fn run(mut broker: impl Broker, mode: &str, faults: Faults) -> Left {
    let Faults { broker_restarts, has_refusals } = faults;
    let (count, mut ledger) = (messages(), Ledger::new());
    let messages = numbered(count, has_refusals);
    // With refusals the messages come in three parts, so that there is poison to refuse, and messages are left for the
    // kills afterwards.
    let (first, second) = if has_refusals { (count / 2, count * 3 / 4) } else { (count, count) };
    broker.publish(&messages[..first]).await;
    let url = broker.url();
    let mut consumers: Vec<Process> = (0..CONSUMERS).map(|number| start(&url, number, mode, &ledger)).collect();
    let (mut kills, mut restarts, mut killed_at, mut last_kill) = (0, 0, 0, Instant::now());
    let mut refusals = if has_refusals { Refusals::From(count * 4 / 10) } else { Refusals::Over(Refused::default()) };
    let (began, mut moved) = (Instant::now(), Instant::now());
    let mut settled_before = 0;
    loop {
        let effects = ledger.effects();
        let done = effects.len();
        match &mut refusals {
            Refusals::From(begin) if done >= *begin => {
                let (refusals_before, tries_before) = (ledger.rows("refusals", 0).count, ledger.rows("tries", 0).count);
                broker.refuse_dead_letters(true).await;
                broker.publish(&messages[first..second]).await;
                refusals = Refusals::On { refusals_before, tries_before, told: Instant::now() };
            }
            Refusals::On { refusals_before, tries_before, told } => {
                let seen = ledger.rows("refusals", *refusals_before).count;
                if seen >= wanted_refusals(count) {
                    let Rows { count: tries, messages: tried } = ledger.rows("tries", *tries_before);
                    broker.refuse_dead_letters(false).await;
                    broker.publish(&messages[second..]).await;
                    refusals = Refusals::Over(Refused { refusals: seen, tries, tried });
                } else if told.elapsed() > Duration::from_secs(1) {
                    // A consumer that has opened in the meantime may have ended the refusals.
                    broker.refuse_dead_letters(true).await;
                    *told = Instant::now();
                }
            }
            Refusals::From(_) | Refusals::Over(_) => {}
        }
        // No other fault strikes while dead letters are refused: the messages of a dead consumer would be tried again.
        let is_refusing = matches!(refusals, Refusals::On { .. });
        // Once nearly all messages are done, there are no more kills.
        if done < count * 9 / 10
            && (done >= killed_at + count / 15 || last_kill.elapsed() > Duration::from_secs(1))
            && done > 0
            && !is_refusing
        {
            let number = kills % CONSUMERS;
            consumers[number].kill();
            consumers[number] = start(&url, number, mode, &ledger);
            (kills, killed_at, last_kill) = (kills + 1, done, Instant::now());
        }
        if restarts < broker_restarts && done >= count * (restarts + 1) / (broker_restarts + 1) && !is_refusing {
            broker.kill_and_restart();
            restarts += 1;
        }
        if done >= count * 9 / 10 && !is_refusing {
            let settled = Left::settled(&effects, &broker.dead().await);
            if settled == count && broker.left().await == 0 {
                if mode == "unguarded" {
                    break;
                }
                for consumer in &mut consumers {
                    consumer.terminate();
                    consumer.expect("ended");
                    assert_eq!(consumer.exit_code(), Some(0));
                }
                // RabbitMQ does not count delivered messages. This gives them back to other consumers, if there are
                // any.
                if broker.left().await == 0 {
                    break;
                }
                consumers = (0..CONSUMERS).map(|number| start(&url, number, mode, &ledger)).collect();
            }
            if settled > settled_before {
                (settled_before, moved) = (settled, Instant::now());
            }
            assert!(
                moved.elapsed() < 8 * PATIENCE,
                "{} of {count} are settled, and {} left",
                settled,
                broker.left().await
            );
        }
        assert!(began.elapsed() < Duration::from_secs(900), "{done} of {count} were done");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(restarts, broker_restarts);
    assert!(kills >= FEWEST_KILLS, "only {kills} kills: the fault hardly fired");
    let Refusals::Over(refused) = refusals else { panic!("no dead letter was refused: the fault did not fire") };
    let left = Left { messages: count, kills, refused, effects: ledger.effects(), dead: broker.dead().await };
    left.report(&url, mode, restarts);
    left
}

/// Returns enough refusals for each letter to be refused several times.
fn wanted_refusals(messages: usize) -> i64 {
    i64::try_from((messages / POISON_EACH).clamp(20, 400)).unwrap()
}

pub(crate) async fn exactly_once_in_a_transaction(broker: impl Broker) {
    let left = run(broker, "transaction", Faults { broker_restarts: 2, has_refusals: true }).await;
    let (poison, others): (Vec<_>, Vec<_>) = (0..left.messages).partition(|number| is_poison(*number));
    assert_eq!((left.effects.len(), left.doubled()), (others.len(), 0), "after {} kills", left.kills);
    assert_eq!(left.lost(), 0);
    let mut dead: Vec<usize> = left.dead.iter().map(|letter| letter.id.parse().unwrap()).collect();
    dead.sort_unstable();
    // A kill between a letter and the acknowledgement of its message leaves the letter twice.
    dead.dedup();
    assert_eq!(dead, poison);
    assert!(left.dead.iter().all(|letter| letter.error == "no route"), "{:?}", left.dead);
    // The job does not run again for a refusal, but only for a message that the broker took from a busy consumer.
    let Refused { refusals, tries, tried } = left.refused;
    assert!(tries - tried <= 16 + refusals / 10, "{tries} tries of {tried} messages for {refusals} refusals");
}

pub(crate) async fn at_most_once_under_hold(broker: impl Broker) {
    let left = run(broker, "hold", Faults { broker_restarts: 2, has_refusals: false }).await;
    assert_eq!(left.doubled(), 0, "after {} kills", left.kills);
    assert_eq!(left.lost(), 0);
    // These are the messages that a kill interrupted, and no others.
    assert!(left.dead.iter().all(|letter| letter.error.contains("not known whether")), "{:?}", left.dead);
    let without_effect = left.messages - left.effects.len();
    assert!(!left.dead.is_empty() && without_effect <= left.dead.len(), "{} dead", left.dead.len());
}

pub(crate) async fn at_least_once_under_rerun(broker: impl Broker) {
    let left = run(broker, "rerun", Faults { broker_restarts: 2, has_refusals: false }).await;
    assert_eq!((left.effects.len(), left.dead.as_slice()), (left.messages, &[][..]), "after {} kills", left.kills);
    // Only messages that a kill interrupted are doubled, and each kill interrupts at most sixteen.
    assert!((1..=left.kills * 16).contains(&left.doubled()), "{} doubled by {} kills", left.doubled(), left.kills);
}

/// The same faults without the engine: each message whose acknowledgement was lost has its effect again.
pub(crate) async fn control_without_the_engine(broker: impl Broker) {
    let left = run(broker, "unguarded", Faults { broker_restarts: 0, has_refusals: false }).await;
    assert!(left.doubled() * 4 > left.messages, "only {} of {} are doubled", left.doubled(), left.messages);
}

/// SIGTERM for each consumer in turn while messages flow: every message that it took is finished or given back.
pub(crate) async fn sigterm_under_load(broker: impl Broker) {
    let (count, mut ledger) = (messages(), Ledger::new());
    broker.publish(&numbered(count, false)).await;
    let url = broker.url();
    let mut ended = 0;
    let began = Instant::now();
    for round in 1..=4 {
        let mut consumer = start(&url, 0, "hold", &ledger);
        while ledger.effects().len() < count * round / 6 {
            assert!(began.elapsed() < 10 * PATIENCE, "{} of {count} were done", ledger.effects().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told = Instant::now();
        consumer.terminate();
        consumer.expect("ended");
        assert_eq!(consumer.exit_code(), Some(0));
        // This is the drain's limit, and a second for the last output.
        assert!(told.elapsed() < Duration::from_secs(12), "it took {:?}", told.elapsed());
        ended += 1;
    }
    loop {
        let mut last = start(&url, 0, "hold", &ledger);
        while ledger.effects().len() < count || broker.left().await > 0 {
            assert!(began.elapsed() < 10 * PATIENCE, "{} of {count} were done", ledger.effects().len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        last.terminate();
        assert_eq!(last.exit_code(), Some(0));
        // The last consumer has given back what it held, even where the broker did not count it.
        if broker.left().await == 0 {
            break;
        }
    }
    assert_eq!(ended, 4);
    // Under Hold, an interrupted operation would be a dead letter.
    assert_eq!(broker.dead().await, []);
    assert!(ledger.effects().values().all(|count| *count == 1));
}
