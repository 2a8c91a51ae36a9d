//! Waits for another process's change, through a channel of announcements.
//!
//! A watching caller marks the record. The mark is written either before the change, which then announces itself, or
//! after it, and then the caller finds the change. So a change without waiting callers announces nothing: in a cluster,
//! every announcement goes to every node.

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

/// How often a waiting caller checks the record while a listener runs. An announcement may be lost.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// The pause before another listener is started after one failed.
const LISTENS_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The keys for which callers of one arbiter wait.
#[derive(Default)]
pub(super) struct Watchers {
    waiters: Arc<Waiters<Vec<u8>>>,
    listening: Mutex<Listening>,
}

#[derive(Default)]
struct Listening {
    /// The listener's task holds the other end and drops it when the task ends.
    task: Weak<()>,
    /// Whether the listener has its connection.
    is_heard: bool,
    /// Ends the task.
    ending: Arc<Notify>,
    refused_at: Option<Instant>,
}

impl Watchers {
    /// Starts a listener on its own connection if none runs, and returns whether a listener is connected. Connecting
    /// can take seconds. Waiting callers don't wait for that: until then they check the record themselves.
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
            // The task ends with its arbiter, the last handle or its connection, or when its connection passes nothing
            // on.
            tokio::spawn(async move {
                let _task = task;
                connect_and_hear(watchers, &link, &channel, &ended_by).await;
            });
        }
        false
    }

    /// Ends the listener: a change came without its announcement, so the connection passes nothing on.
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
        // Enabled before the record is marked, so that no later announcement is missed.
        let mut changed = std::pin::pin!(waiter.changed());
        changed.as_mut().enable();
        let lease_left = mark(link, waiter.key(), || names.steps_of(&message.key)).await?;
        if lease_left.is_zero() {
            if looked_in_vain {
                watchers.is_deaf();
            }
            return Ok(Changed);
        }
        // Jitter keeps the waiting callers of many processes from checking in step.
        let look_after = if is_heard { LOOKS_EVERY } else { Duration::from_millis(rand::random_range(20..40)) };
        // A lapsing lease changes what an acquire would find, but nothing announces it.
        if timeout(lease_left.min(look_after), changed).await.is_ok() {
            return Ok(Changed);
        }
        looked_in_vain = is_heard && lease_left > look_after;
    }
}

/// Requests an announcement of the claim's end. Returns the remaining lease; zero if no claim is in progress.
async fn mark(link: &Link, key: &[u8], steps: impl FnOnce() -> Vec<u8>) -> Result<Duration, StoreError> {
    let watch = async |keys: &[&[u8]]| match link.read(script::WATCH.call_for(keys, false)).await {
        Err(Failure::NoScript) => link.read(script::WATCH.call_for(keys, true)).await,
        answer => answer,
    };
    let answer = match watch(&[key]).await {
        // The length of the lease depends on the record's steps.
        Ok(Value::Int(-1)) => watch(&[key, &steps()]).await,
        answer => answer,
    };
    match answer.map_err(Failure::of_read)? {
        Value::Int(left) => Ok(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        _ => Ok(Duration::ZERO),
    }
}
