//! Waiting for another process's change, by LISTEN and NOTIFY.
//!
//! Announcements are committed one after the other by the whole server, so that announcing every change would undo what
//! group commit gains. Only rows that somebody waits for are announced: a watcher marks the row first, by a write that
//! either comes before the change, which then announces itself, or finds it done.

use std::sync::{Arc, Weak};
use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::StreamExt as _;
use oncekey::backend::{Changed, Lookup, StateView, StoreError, Watch};
use tokio::time::timeout;
use tracing::debug;

use super::table::Postgres;
use crate::sql::{Bind, Core, Fragment, Lent, Place, Taken, of_read};
use crate::waiters::Waiters;

/// How often a watcher looks for itself: where the announcements don't come through (a pooler between, a connection that
/// broke), it learns late, and not never.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// The channel of announcements. Another schema's table of the same name may share it: a wake-up too many.
pub(super) fn channel(place: &Place) -> String {
    format!("oncekey_{}", place.table())
}

/// The keys that are waited for on one arbiter.
#[derive(Default)]
pub(super) struct Watchers {
    waiters: Arc<Waiters<String>>,
    listening: tokio::sync::Mutex<Option<Arc<()>>>,
}

impl Watchers {
    /// Sees to it that somebody listens on a connection of its own.
    async fn listen(self: &Arc<Self>, core: &Core<Postgres>, channel: &str) -> Result<(), StoreError> {
        let mut listening = self.listening.lock().await;
        // The listener's task holds the other end; when its connection breaks it is gone.
        if listening.as_ref().is_some_and(|token| Arc::strong_count(token) > 1) {
            return Ok(());
        }
        let mut lent = Lent::from(&*core.dialect).await?;
        let listen = format!("LISTEN \"{channel}\"");
        lent.connection()?.batch_execute(&listen).await.map_err(|error| of_read::<Postgres>(&error))?;
        let Some(connection) = lent.keep() else { return Ok(()) };
        let token = Arc::new(());
        *listening = Some(Arc::clone(&token));
        // It ends with its arbiter, with the last handle, or with its connection.
        tokio::spawn(hear(connection, Arc::downgrade(self), token));
        Ok(())
    }
}

async fn hear(mut connection: Taken<AsyncPgConnection>, watchers: Weak<Watchers>, _token: Arc<()>) {
    {
        let mut announcements = std::pin::pin!(connection.notifications_stream());
        loop {
            let heard = timeout(LOOKS_EVERY * 30, announcements.next()).await;
            let Some(watchers) = watchers.upgrade() else { return };
            match heard {
                Ok(Some(Ok(announcement))) => watchers.waiters.wake(&announcement.payload),
                Ok(Some(Err(_)) | None) => {
                    debug!("the connection that listens broke");
                    watchers.waiters.wake_all();
                    return;
                }
                Err(_) => {}
            }
        }
    }
}

/// Waits until the key is no longer in progress.
pub(super) async fn watch(
    core: &Core<Postgres>,
    watchers: &Arc<Watchers>,
    channel: &str,
    message: Watch,
) -> Result<Changed, StoreError> {
    let key = message.key.as_stored();
    let waiter = watchers.waiters.register(key.to_owned());
    loop {
        watchers.listen(core, channel).await?;
        // Before the row is marked, so that no announcement after it is missed.
        let changed = waiter.changed();
        match mark(core, key).await {
            // Another session has the row locked, and will hardly announce its end: the watcher looks for itself.
            Ok(()) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
        let found = core.lookup(Lookup { key: message.key.clone() }).await?;
        match found.map(|view| view.state) {
            // A lease that lapses changes what an acquire would find, and nobody announces that.
            Some(StateView::InProgress { lease_left }) if !lease_left.is_zero() => {
                if timeout(lease_left.min(LOOKS_EVERY), changed).await.is_ok() {
                    return Ok(Changed);
                }
            }
            _ => return Ok(Changed),
        }
    }
}

/// Asks that the end of the claim be announced.
async fn mark(core: &Core<Postgres>, key: &str) -> Result<(), StoreError> {
    use diesel_async::RunQueryDsl as _;

    let binds = [Bind::Text(key)];
    core.writing(async |dialect, connection| {
        Fragment::<(), _>::new(&dialect.texts.watch, &binds).execute(connection).await
    })
    .await?;
    Ok(())
}
