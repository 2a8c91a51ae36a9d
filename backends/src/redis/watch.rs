//! Waiting for another process's change, by a channel of announcements.
//!
//! A watcher marks the record, by a write that either comes before the change, which then announces itself, or finds it
//! done. So a change that nobody waits for announces nothing: in a cluster every announcement goes to every node.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use oncekey::backend::{Changed, StoreError, Watch};
use parking_lot::Mutex;
use redis::Value;
use redis::aio::PubSub;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::error::Failure;
use super::link::Link;
use super::script;
use super::step::Names;
use crate::waiters::Waiters;

/// How often a watcher looks for itself while somebody listens: an announcement may be lost.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// After a listener could not be had, no other is tried for so long.
const LISTENS_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The keys that are waited for on one arbiter.
#[derive(Default)]
pub(super) struct Watchers {
    waiters: Arc<Waiters<Vec<u8>>>,
    listening: Mutex<Listening>,
}

#[derive(Default)]
struct Listening {
    /// The listener's task holds the other end and drops it when the task ends.
    task: Weak<()>,
    /// Whether it has its connection.
    is_heard: bool,
    /// Ends the task.
    ending: Arc<Notify>,
    refused_at: Option<Instant>,
}

impl Watchers {
    /// Sees to it that somebody listens, on a connection of its own; whether somebody does by now. Connecting can take
    /// seconds, for which no waiter waits: until then they look for themselves.
    fn listen(self: &Arc<Self>, link: &Arc<Link>, channel: &str) -> bool {
        let mut listening = self.listening.lock();
        if listening.task.strong_count() > 0 {
            return listening.is_heard;
        }
        if listening.refused_at.is_none_or(|at| at.elapsed() >= LISTENS_AGAIN_AFTER) {
            let (task, ending) = (Arc::new(()), Arc::new(Notify::new()));
            let (task_held, ended_by) = (Arc::downgrade(&task), Arc::clone(&ending));
            *listening = Listening { task: task_held, is_heard: false, ending, refused_at: None };
            let (watchers, link, channel) = (Arc::downgrade(self), Arc::clone(link), channel.to_owned());
            // It ends with its arbiter, with the last handle, with its connection, or when it was found deaf.
            tokio::spawn(async move {
                let _task = task;
                connect_and_hear(watchers, &link, &channel, &ended_by).await;
            });
        }
        false
    }

    /// A change came without its announcement: the listener's connection passes nothing on.
    fn is_deaf(&self) {
        self.listening.lock().ending.notify_one();
    }
}

async fn connect_and_hear(watchers: Weak<Watchers>, link: &Link, channel: &str, ending: &Notify) {
    let heard = link.listen(channel).await;
    let Some(held) = watchers.upgrade() else { return };
    match heard {
        Ok(heard) => {
            held.listening.lock().is_heard = true;
            drop(held);
            hear(heard, watchers, ending).await;
        }
        Err(error) => {
            debug!(%error, "nobody listens for Redis's announcements; waiters look for themselves");
            held.listening.lock().refused_at = Some(Instant::now());
        }
    }
}

async fn hear(heard: PubSub, watchers: Weak<Watchers>, ending: &Notify) {
    let mut announcements = std::pin::pin!(heard.into_on_message());
    loop {
        let next = tokio::select! {
            next = timeout(30 * LOOKS_EVERY, announcements.next()) => next,
            () = ending.notified() => Ok(None),
        };
        let Some(watchers) = watchers.upgrade() else { return };
        match next {
            Ok(Some(announcement)) => watchers.waiters.wake(announcement.get_payload_bytes()),
            Ok(None) => {
                debug!("the connection that listens for Redis's announcements ended");
                watchers.waiters.wake_all();
                return;
            }
            Err(_) => {}
        }
    }
}

/// Waits until the key is no longer in progress.
pub(super) async fn watch(
    link: &Arc<Link>,
    names: &Names,
    watchers: &Arc<Watchers>,
    message: Watch,
) -> Result<Changed, StoreError> {
    let waiter = watchers.waiters.register(names.of(&message.key));
    let mut looked_in_vain = false;
    loop {
        let is_heard = watchers.listen(link, &names.channel);
        // Before the record is marked, so that no announcement after it is missed.
        let mut changed = std::pin::pin!(waiter.changed());
        changed.as_mut().enable();
        let lease_left = mark(link, waiter.key(), || names.steps_of(&message.key)).await?;
        if lease_left.is_zero() {
            if looked_in_vain {
                watchers.is_deaf();
            }
            return Ok(Changed);
        }
        // Jitter keeps the waiters of many processes from looking in step.
        let look_after = if is_heard { LOOKS_EVERY } else { Duration::from_millis(rand::random_range(20..40)) };
        // A lease that lapses changes what an acquire would find, and nobody announces that.
        if timeout(lease_left.min(look_after), changed).await.is_ok() {
            return Ok(Changed);
        }
        looked_in_vain = is_heard && lease_left > look_after;
    }
}

/// Asks that the claim's end be announced, and gives what is left of its lease; zero if nobody is at work.
async fn mark(link: &Link, key: &[u8], steps: impl FnOnce() -> Vec<u8>) -> Result<Duration, StoreError> {
    let watch = async |keys: &[&[u8]]| match link.read(script::WATCH.call_for(keys, false)).await {
        Err(Failure::NoScript) => link.read(script::WATCH.call_for(keys, true)).await,
        answer => answer,
    };
    let answer = match watch(&[key]).await {
        // How long its lease is depends on its steps.
        Ok(Value::Int(-1)) => watch(&[key, &steps()]).await,
        answer => answer,
    };
    match answer.map_err(Failure::of_read)? {
        Value::Int(left) => Ok(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        _ => Ok(Duration::ZERO),
    }
}
