//! An apalis worker on apalis' Redis storage, under the engine's layer, that is killed again and again.

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use tests::process::{PATIENCE, Process};
use tests::server::Redis;

const MAILS: u64 = 60;
const KILLS: usize = 4;

#[derive(QueryableByName)]
struct Sent {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    mail_order: i64,
}

#[actix_rt::test]
async fn j03_each_mail_of_an_apalis_worker_that_is_killed_is_sent_once() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mails.db");
    let start = |mails: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apalis_redis"));
        Process::start(command.arg(redis.url()).arg(&file).arg(mails.to_string()))
    };
    // How often each mail was begun, and how often it was sent.
    let (mut begun, mut ended): (HashMap<u64, u32>, HashMap<u64, u32>) = Default::default();
    let mut note = |line: &str| {
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        match line.split_once(' ') {
            Some(("sending", order)) => *begun.entry(number(order)).or_default() += 1,
            Some(("sent", order)) => *ended.entry(number(order)).or_default() += 1,
            _ => {}
        }
    };
    let mut worker = start(MAILS);
    for kill in 0..KILLS {
        // The kill hits, in turn, a mail that is being sent, and a sent mail of which apalis may not know yet.
        let word = if kill % 2 == 0 { "sending" } else { "sent" };
        for _ in 0..8 {
            note(&format!("{word} {}", worker.expect(word)));
        }
        worker.kill();
        // After the first kill everything is enqueued again: an order that is enqueued twice is mailed once.
        worker = start(if kill == 0 { MAILS } else { 0 });
    }
    let began = Instant::now();
    while redis.cli(&["SCARD", "mails:done"]) != (2 * MAILS).to_string() {
        if let Some(line) = worker.expect_within("s", Duration::from_millis(50)) {
            note(&format!("s{line}"));
        }
        let (done, dead) = (redis.cli(&["SCARD", "mails:done"]), redis.cli(&["SCARD", "mails:dead"]));
        assert!(began.elapsed() < 4 * PATIENCE, "{done} of {} are done, and {dead} dead", 2 * MAILS);
    }
    worker.kill();
    let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let sent: Vec<Sent> =
        diesel::sql_query("SELECT mail_order FROM mails ORDER BY mail_order").load(&mut connection).unwrap();
    let sent: Vec<u64> = sent.iter().map(|mail| mail.mail_order as u64).collect();
    assert_eq!(sent, (0..MAILS).collect::<Vec<_>>(), "each once");
    assert_eq!(redis.cli(&["SCARD", "mails:dead"]), "0");
    // The kills took effect: workers began mails that they did not finish. Still, not every delivery began a mail.
    let begun: u32 = begun.values().sum();
    assert!(u64::from(begun) < MAILS + 2 * KILLS as u64, "{begun} begun");
}
