//! Waiting for another process's change, by a channel of announcements.
//!
//! A watcher marks the record, by a write that either comes before the change, which then announces itself, or finds it
//! done. So a change that nobody waits for announces nothing: in a cluster every announcement goes to every node.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use oncekey::backend::{Changed, StoreError, Watch};
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
    listening: tokio::sync::Mutex<Listening>,
}

#[derive(Default)]
struct Listening {
    /// The listener's task holds the other end: when its connection breaks it is gone.
    token: Weak<()>,
    /// Ends the task.
    ending: Arc<Notify>,
    refused_at: Option<Instant>,
}

impl Watchers {
    /// Sees to it that somebody listens, on a connection of its own; whether somebody does.
    async fn listen(self: &Arc<Self>, link: &Link, channel: &str) -> bool {
        let mut listening = self.listening.lock().await;
        if listening.token.strong_count() > 0 {
            return true;
        }
        if listening.refused_at.is_some_and(|at| at.elapsed() < LISTENS_AGAIN_AFTER) {
            return false;
        }
        match link.listen(channel).await {
            Ok(heard) => {
                let token = Arc::new(());
                let ending = Arc::new(Notify::new());
                *listening = Listening { token: Arc::downgrade(&token), ending: Arc::clone(&ending), refused_at: None };
                // It ends with its arbiter, with the last handle, with its connection, or when it was found deaf.
                tokio::spawn(hear(heard, Arc::downgrade(self), ending, token));
                true
            }
            Err(error) => {
                debug!(%error, "nobody listens for Redis's announcements; waiters look for themselves");
                listening.refused_at = Some(Instant::now());
                false
            }
        }
    }

    /// A change came without its announcement: the listener's connection passes nothing on.
    async fn is_deaf(&self) {
        self.listening.lock().await.ending.notify_one();
    }
}

async fn hear(heard: PubSub, watchers: Weak<Watchers>, ending: Arc<Notify>, _token: Arc<()>) {
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
    link: &Link,
    names: &Names,
    watchers: &Arc<Watchers>,
    message: Watch,
) -> Result<Changed, StoreError> {
    let waiter = watchers.waiters.register(names.of(&message.key));
    let mut looked_in_vain = false;
    loop {
        let is_heard = watchers.listen(link, &names.channel).await;
        // Before the record is marked, so that no announcement after it is missed.
        let mut changed = std::pin::pin!(waiter.changed());
        changed.as_mut().enable();
        let lease_left = mark(link, waiter.key()).await?;
        if lease_left.is_zero() {
            if looked_in_vain {
                watchers.is_deaf().await;
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
async fn mark(link: &Link, key: &[u8]) -> Result<Duration, StoreError> {
    let answer = match link.read(script::WATCH.call(key, false)).await {
        Err(Failure::NoScript) => link.read(script::WATCH.call(key, true)).await,
        answer => answer,
    };
    match answer.map_err(Failure::of_read)? {
        Value::Int(left) => Ok(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        _ => Ok(Duration::ZERO),
    }
}
