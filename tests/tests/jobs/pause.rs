//! The store is unavailable, and a processor on threads pauses.

use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::Engine;
use oncekey::consumer::{BlockingProcessor, RetryPolicy, blocking_job, crossbeam_channel};
use oncekey_backends::SqliteBackend;

use crate::tasks::{Task, identify, quick, task};

/// Another connection locks the file. The messages that workers took wait, the rest stays in the channel, and no
/// attempt counts.
#[test]
fn j09_while_the_store_is_away_threads_take_no_further_messages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let backend = SqliteBackend::builder(&path).busy_timeout(Duration::from_millis(5)).open().unwrap();
    let engine = Engine::builder(backend).store_deadline(Duration::from_millis(100)).start().unwrap();
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE").unwrap();

    let work = blocking_job(identify, |task: &Task, _claim| Ok::<_, String>(task.number));
    let away = Duration::from_millis(500);
    let policy = RetryPolicy { max_attempts: 1, store_away_delay: away, ..quick() };
    let (messages, taken) = crossbeam_channel::bounded(100);
    (0..100).for_each(|number| messages.send(task(number, "work")).unwrap());
    let processor = BlockingProcessor::builder(engine, work).threads(2).retry(policy).start(taken).unwrap();
    // Each pause of at least a quarter of a second lets each thread take at most one more message.
    std::thread::sleep(4 * away);
    assert!(messages.len() > 60, "{} are left in the channel", messages.len());
    other.batch_execute("COMMIT").unwrap();
    drop(messages);
    let processed = processor.join();
    assert_eq!((processed.ran, processed.dead), (100, 0));
}
