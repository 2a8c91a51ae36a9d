//! Reads a stream as one consumer of a group.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::streams::{
    StreamAutoClaimReply, StreamId, StreamInfoGroupsReply, StreamInfoStreamReply, StreamPendingCountReply,
    StreamReadReply,
};
use redis::{Value, from_redis_value, pipe};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::link::Link;
use super::{Names, RedisStreamsBuilder, RedisStreamsError};
use crate::consumer::backoff::bounded;
use crate::consumer::{Delivery, Disposition, Message, Source};

/// One consumer of a consumer group of a stream.
///
/// Keep the **consumer's name** the same across restarts: a restarted consumer begins with the messages that it held.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::redis_streams::{RedisStreams, redis};
///
/// let client = redis::Client::open("redis://127.0.0.1/")?;
/// let source = RedisStreams::builder(client, "orders", "mailers", "mailer-1").open().await?;
/// # Ok(()) }
/// ```
pub struct RedisStreams {
    shared: Arc<Shared>,
    reading: tokio::sync::Mutex<Reading>,
    keeper: JoinHandle<()>,
}

struct Shared {
    commands: Arc<Link>,
    names: Names,
    claim_after: Duration,
    delete_settled: bool,
    held: Mutex<Held>,
}

/// The messages that this consumer holds in this process.
#[derive(Default)]
struct Held {
    ids: HashSet<String>,
    /// Messages to be retried, ordered by due time.
    later: BTreeMap<(Instant, String), (Arc<Message>, u32)>,
}

struct Reading {
    /// A separate connection, because a blocking read delays every other command on its connection.
    link: Link,
    batch: usize,
    max_waiting: usize,
    from_start: bool,
    /// The last entry that the group has read, as far as this consumer knows. A recreated group starts here.
    seen: EntryId,
    /// Messages that were read and not delivered yet.
    buffer: VecDeque<Delivery<Message, Receipt>>,
    /// The position from which the source reads messages that were already pending with this consumer. `None` once all
    /// are read.
    own_past: Option<String>,
    next_claim: Instant,
    claim_cursor: String,
}

/// Identifies a delivery of this source. It outlives connections.
#[derive(Debug, Clone)]
pub struct Receipt {
    id: String,
    message: Arc<Message>,
    failures: u32,
}

/// The most headers that a dead letter stores one by one, because a script can pass about 8,000 values to a command.
/// More headers are stored as one JSON object.
const MOST_HEADERS: usize = 2_000;

/// The prefix of each of the original's header names in a dead letter.
const PREFIX: &str = "oncekey-header-";

/// The longest time for which a read blocks on the server. A read is never cut short, because its messages would stay
/// unseen. On a quiet stream, a retry may be late by this much.
const LONGEST_BLOCK: Duration = Duration::from_millis(500);

impl RedisStreams {
    /// Returns a [`RedisStreamsBuilder`] for this consumer of the group of `stream`.
    pub fn builder(client: redis::Client, stream: &str, group: &str, consumer: &str) -> RedisStreamsBuilder {
        RedisStreamsBuilder::new(client, stream, group, consumer)
    }

    pub(super) async fn open(options: RedisStreamsBuilder, commands: Arc<Link>) -> Result<Self, RedisStreamsError> {
        let shared = Arc::new(Shared {
            commands,
            names: options.names,
            claim_after: options.claim_after,
            delete_settled: options.delete_settled,
            held: Mutex::default(),
        });
        shared.make_group(if options.from_start { "0" } else { "$" }).await?;
        let seen = shared.last_delivered().await?;
        let reading = Reading {
            link: Link::new(options.client, options.deadline + LONGEST_BLOCK),
            batch: options.batch,
            max_waiting: options.max_waiting,
            from_start: options.from_start,
            seen,
            buffer: VecDeque::new(),
            own_past: Some("0".to_owned()),
            next_claim: Instant::now(),
            claim_cursor: "0-0".to_owned(),
        };
        let keeper = tokio::spawn(keep_alive(Arc::downgrade(&shared), shared.claim_after / 3));
        Ok(Self { shared, reading: tokio::sync::Mutex::new(reading), keeper })
    }
}

impl Shared {
    /// Creates the group if it is missing. It begins after `start`.
    async fn make_group(&self, start: &str) -> Result<(), RedisStreamsError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.names.stream).arg(&self.names.group).arg(start).arg("MKSTREAM");
        match self.commands.ask::<()>("making the group", &command).await {
            Err(error) if error.error.code() == Some("BUSYGROUP") => Ok(()),
            made => made,
        }
    }

    /// Returns the last entry that the group has read.
    async fn last_delivered(&self) -> Result<EntryId, RedisStreamsError> {
        let groups = redis::cmd("XINFO").arg("GROUPS").arg(&self.names.stream).to_owned();
        let found: StreamInfoGroupsReply = self.commands.ask("looking the group up", &groups).await?;
        let group = found.groups.into_iter().find(|group| group.name == self.names.group);
        Ok(group.map(|group| entry_id(&group.last_delivered_id)).unwrap_or_default())
    }

    /// Recreates a deleted group, without missing entries that were added in the meantime.
    async fn make_group_again(&self, from_start: bool, seen: EntryId) -> Result<(), RedisStreamsError> {
        if from_start {
            return self.make_group("0").await;
        }
        let stream = redis::cmd("XINFO").arg("STREAM").arg(&self.names.stream).to_owned();
        let end = match self.commands.ask::<StreamInfoStreamReply>("looking the stream up", &stream).await {
            Ok(found) => entry_id(&found.last_generated_id),
            // If the stream does not exist, Redis answers with the generic error code.
            Err(error) if error.error.code() == Some("ERR") => EntryId::default(),
            Err(error) => return Err(error),
        };
        // A stream that ends before the last entry read is a different stream, and all of its entries are new.
        let start = if end < seen { EntryId::default() } else { seen };
        self.make_group(&format!("{}-{}", start.0, start.1)).await
    }

    /// Marks an entry as held. Returns `false` if this process already holds it.
    fn hold(&self, id: &str) -> bool {
        self.held.lock().ids.insert(id.to_owned())
    }

    fn let_go(&self, id: &str) {
        self.held.lock().ids.remove(id);
    }

    /// Returns the first retry that is due, or the time when the first one will be.
    fn due(&self) -> Result<Delivery<Message, Receipt>, Option<Instant>> {
        let mut held = self.held.lock();
        match held.later.first_entry() {
            Some(first) if first.key().0 <= Instant::now() => {
                let ((_, id), (message, failures)) = first.remove_entry();
                Ok(deliver(id, message, failures))
            }
            Some(first) => Err(Some(first.key().0)),
            None => Err(None),
        }
    }

    /// Sets the idle time of entries: zero keeps them with this consumer, `claim_after` lets others take them. The
    /// delivery count does not change.
    async fn set_idle(&self, ids: &[String], idle: Duration) -> Result<(), RedisStreamsError> {
        for ids in ids.chunks(1_000) {
            let mut command = redis::cmd("XCLAIM");
            command.arg(&self.names.stream).arg(&self.names.group).arg(&self.names.consumer).arg(0).arg(ids);
            command.arg("IDLE").arg(millis(idle)).arg("JUSTID");
            self.commands.ask::<()>("keeping messages in hand", &command).await?;
        }
        Ok(())
    }
}

/// An entry's id, which orders the stream.
type EntryId = (u64, u64);

fn entry_id(text: &str) -> EntryId {
    let (millis, number) = text.split_once('-').unwrap_or((text, "0"));
    (millis.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

/// Redis counts in whole milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Resets the idle time of held messages. Otherwise another consumer would take the message of a long job.
async fn keep_alive(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        let ids: Vec<String> = shared.held.lock().ids.iter().cloned().collect();
        if let Err(error) = shared.set_idle(&ids, Duration::ZERO).await {
            debug!(%error, "messages in hand got no sign of life");
        }
    }
}

fn deliver(id: String, message: Arc<Message>, failures: u32) -> Delivery<Message, Receipt> {
    Delivery { message: Arc::clone(&message), receipt: Receipt { id, message, failures }, failures }
}

impl Source for RedisStreams {
    type Message = Message;
    type Receipt = Receipt;
    type Error = RedisStreamsError;

    async fn next(&self) -> Result<Option<Delivery<Message, Receipt>>, RedisStreamsError> {
        let mut reading = self.reading.lock().await;
        loop {
            let due = match self.shared.due() {
                Ok(delivery) => return Ok(Some(delivery)),
                Err(due) => due,
            };
            if let Some(delivery) = reading.buffer.pop_front() {
                return Ok(Some(delivery));
            }
            if let Err(error) = reading.read(&self.shared, due).await {
                // The entries of the lost answer are pending with this consumer, so it reads its pending entries again.
                reading.own_past = Some("0".to_owned());
                if error.error.code() != Some("NOGROUP") {
                    return Err(error);
                }
                // The server restarted without its data. The new group must not miss entries that are added from now
                // on.
                warn!(stream = self.shared.names.stream, "the consumer group is gone, and made again");
                self.shared.make_group_again(reading.from_start, reading.seen).await?;
            }
        }
    }

    async fn settle(&self, receipt: Receipt, disposition: Disposition) -> Result<(), RedisStreamsError> {
        let Receipt { id, message, failures } = receipt;
        // If this fails, the entry stays held and refreshed until the processor settles it again.
        self.shared.settle(&id, &message, failures, &disposition).await?;
        let mut held = self.shared.held.lock();
        match disposition {
            Disposition::RetryLater { after, failed } => {
                let due = Instant::now() + bounded(after);
                held.later.insert((due, id), (message, failures.saturating_add(u32::from(failed))));
            }
            Disposition::Ack | Disposition::DeadLetter { .. } => drop(held.ids.remove(&id)),
        }
        Ok(())
    }

    /// Lets other consumers claim this consumer's messages at once.
    async fn close(&self) {
        self.keeper.abort();
        let mut ids: Vec<String> = self.shared.held.lock().ids.drain().collect();
        // A read that was dropped early may have fetched more messages.
        match self.shared.pending_here().await {
            Ok(pending) => ids.extend(pending),
            Err(error) => debug!(%error, "what a last read brought is claimed when it was idle long enough"),
        }
        if let Err(error) = self.shared.set_idle(&ids, self.shared.claim_after).await {
            warn!(%error, messages = ids.len(), "messages could not be given back: they are claimed when they were idle long enough");
        }
    }
}

impl Shared {
    async fn settle(
        &self,
        id: &str,
        message: &Message,
        failures: u32,
        disposition: &Disposition,
    ) -> Result<(), RedisStreamsError> {
        let Names { stream, group, failures: counts, .. } = &self.names;
        match disposition {
            Disposition::RetryLater { failed: false, .. } => return Ok(()),
            Disposition::RetryLater { failed: true, .. } => {
                // The count is set, not incremented, so repeating the command counts the failure once.
                let count = failures.saturating_add(1);
                let counted = redis::cmd("HSET").arg(counts).arg(id).arg(count).to_owned();
                return self.commands.ask("counting a failure", &counted).await;
            }
            Disposition::DeadLetter { reason } => return self.put_aside(id, message, reason).await,
            Disposition::Ack => {}
        }
        let mut commands = pipe();
        commands.atomic().cmd("XACK").arg(stream).arg(group).arg(id).ignore();
        if failures > 0 {
            commands.cmd("HDEL").arg(counts).arg(id).ignore();
        }
        if self.delete_settled {
            commands.cmd("XDEL").arg(stream).arg(id).ignore();
        }
        self.commands.ask_all("settling a message", &commands).await
    }

    /// Adds a dead letter and removes its message from the queue, in a script. If Redis refuses the `XADD`, because the
    /// key holds no stream or memory is full, the script stops there. In a `MULTI`, the other commands would still run,
    /// and the message would be lost.
    async fn put_aside(&self, id: &str, message: &Message, reason: &str) -> Result<(), RedisStreamsError> {
        const PUT_ASIDE: &str = "redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
if ARGV[3] == '1' then redis.call('XDEL', KEYS[2], ARGV[2]) end";

        let Names { stream, group, dead, failures: counts, .. } = &self.names;
        let mut script = redis::cmd("EVAL");
        script.arg(PUT_ASIDE).arg(3).arg(dead).arg(stream).arg(counts);
        script.arg(group).arg(id).arg(u8::from(self.delete_settled));
        script.arg("id").arg(message.id()).arg("payload").arg(message.payload().as_ref());
        if message.headers().len() <= MOST_HEADERS {
            for (name, value) in message.headers() {
                script.arg(format!("{PREFIX}{name}")).arg(value);
            }
        } else {
            script.arg("oncekey-headers").arg(serde_json::json!(message.headers()).to_string());
        }
        script.arg("oncekey-error").arg(reason).arg("oncekey-stream").arg(stream).arg("oncekey-entry").arg(id);
        self.commands.ask("putting a message aside", &script).await
    }

    /// Returns the unsettled entries that Redis has delivered to this consumer.
    async fn pending_here(&self) -> Result<Vec<String>, RedisStreamsError> {
        let Names { stream, group, consumer, .. } = &self.names;
        let mut command = redis::cmd("XPENDING");
        command.arg(stream).arg(group).arg("-").arg("+").arg(1_000).arg(consumer);
        let pending: StreamPendingCountReply = self.commands.ask("looking up what is pending", &command).await?;
        Ok(pending.ids.into_iter().map(|entry| entry.id).collect())
    }
}

impl Reading {
    /// Fills the buffer from one of three places: this consumer's pending entries, entries of dead consumers, or new
    /// entries. Waits for new entries until something is due.
    async fn read(&mut self, shared: &Shared, due: Option<Instant>) -> Result<(), RedisStreamsError> {
        if let Some(after) = self.own_past.clone() {
            let entries = self.read_group(shared, &after, None).await?;
            self.own_past = entries.last().map(|last| last.id.clone());
            return self.take(shared, entries, true).await;
        }
        let now = Instant::now();
        if now >= self.next_claim {
            return self.claim(shared, now).await;
        }
        let until = due.map_or(self.next_claim, |due| due.min(self.next_claim)).min(now + LONGEST_BLOCK);
        let block = until.saturating_duration_since(now);
        if shared.held.lock().later.len() >= self.max_waiting {
            // Read no new messages until some retries are settled.
            tokio::time::sleep(block).await;
            return Ok(());
        }
        let entries = self.read_group(shared, ">", Some(block)).await?;
        if let Some(last) = entries.last() {
            self.seen = self.seen.max(entry_id(&last.id));
        }
        self.take(shared, entries, false).await
    }

    async fn read_group(
        &self,
        shared: &Shared,
        after: &str,
        block: Option<Duration>,
    ) -> Result<Vec<StreamId>, RedisStreamsError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&shared.names.group).arg(&shared.names.consumer).arg("COUNT").arg(self.batch);
        if let Some(block) = block {
            // Redis treats a block of zero as "forever".
            command.arg("BLOCK").arg(millis(block).max(1));
        }
        command.arg("STREAMS").arg(&shared.names.stream).arg(after);
        let read: Option<StreamReadReply> = self.link.ask("reading the stream", &command).await?;
        Ok(read.into_iter().flat_map(|read| read.keys).flat_map(|key| key.ids).collect())
    }

    /// Takes over messages of consumers that have been silent too long.
    async fn claim(&mut self, shared: &Shared, now: Instant) -> Result<(), RedisStreamsError> {
        let mut command = redis::cmd("XAUTOCLAIM");
        command.arg(&shared.names.stream).arg(&shared.names.group).arg(&shared.names.consumer);
        command.arg(millis(shared.claim_after)).arg(&self.claim_cursor).arg("COUNT").arg(self.batch);
        let claimed: StreamAutoClaimReply = self.link.ask("claiming abandoned messages", &command).await?;
        self.claim_cursor = claimed.next_stream_id;
        if self.claim_cursor == "0-0" {
            // The scan is complete. The jitter spreads consumers that started together.
            self.next_claim = now + shared.claim_after.mul_f64(rand::random_range(0.4..0.6));
        }
        self.take(shared, claimed.claimed, true).await
    }

    /// Puts entries into the buffer. Looks up the failures of entries that were delivered before.
    async fn take(
        &mut self,
        shared: &Shared,
        entries: Vec<StreamId>,
        was_delivered: bool,
    ) -> Result<(), RedisStreamsError> {
        let entries: Vec<StreamId> = entries.into_iter().filter(|entry| shared.hold(&entry.id)).collect();
        let ids: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
        let buffered = self.buffer_up(shared, entries, was_delivered).await;
        if buffered.is_err() {
            // None of the entries is in the buffer, so they would be held without being delivered.
            ids.iter().for_each(|id| shared.let_go(id));
        }
        buffered
    }

    async fn buffer_up(
        &mut self,
        shared: &Shared,
        mut entries: Vec<StreamId>,
        was_delivered: bool,
    ) -> Result<(), RedisStreamsError> {
        let mut failures = vec![None; entries.len()];
        if was_delivered {
            // An entry that was deleted while it was pending has no fields and needs only an acknowledgement.
            for gone in entries.extract_if(.., |entry| entry.map.is_empty()) {
                let ack =
                    redis::cmd("XACK").arg(&shared.names.stream).arg(&shared.names.group).arg(&gone.id).to_owned();
                self.link.ask::<()>("dropping a deleted entry", &ack).await?;
                shared.let_go(&gone.id);
            }
            if entries.is_empty() {
                return Ok(());
            }
            let mut command = redis::cmd("HMGET");
            command.arg(&shared.names.failures);
            for entry in &entries {
                command.arg(&entry.id);
            }
            failures = self.link.ask::<Vec<Option<u32>>>("looking failures up", &command).await?;
        }
        for (entry, failures) in entries.into_iter().zip(failures) {
            let (id, message) = read_entry(entry);
            self.buffer.push_back(deliver(id, Arc::new(message), failures.unwrap_or(0)));
        }
        Ok(())
    }
}

fn read_entry(mut entry: StreamId) -> (String, Message) {
    let text =
        |value: Value| from_redis_value::<Vec<u8>>(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let id = entry.map.remove("id").and_then(|id| text(id).ok()).unwrap_or_else(|| entry.id.clone());
    let payload = entry.map.remove("payload").and_then(|payload| from_redis_value::<Vec<u8>>(payload).ok());
    let message = Message::new(id, payload.unwrap_or_default());
    let headers = entry.map.into_iter().filter_map(|(name, value)| Some((name, text(value).ok()?)));
    (entry.id, headers.fold(message, |message, (name, value)| message.with_header(name, value)))
}

impl Drop for RedisStreams {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.shared.held.lock();
        f.debug_struct("RedisStreams")
            .field("names", &self.shared.names)
            .field("held", &held.ids.len())
            .field("later", &held.later.len())
            .finish_non_exhaustive()
    }
}
