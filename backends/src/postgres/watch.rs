//! Waits for another process's change, through LISTEN and NOTIFY.
//!
//! The whole server commits announcements one after the other, so announcing every change would undo the gain of group
//! commit. Only rows with waiting callers are announced. A watching caller first marks the row. The mark is written
//! either before the change, which then announces itself, or after it, and then the caller finds the change.

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

/// How often a waiting caller checks the record itself. If announcements are lost (a pooler in between, a broken
/// connection), it learns of the change late, but it does learn of it.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Returns the channel of announcements. A table with the same name in another schema may share it, which only causes
/// needless wake-ups.
pub(super) fn channel(place: &Place) -> String {
    format!("oncekey_{}", place.table())
}

/// The keys for which callers of one arbiter wait.
#[derive(Default)]
pub(super) struct Watchers {
    waiters: Arc<Waiters<String>>,
    listening: tokio::sync::Mutex<Option<Arc<()>>>,
}

impl Watchers {
    /// Starts a listener on its own connection if none runs.
    async fn listen(self: &Arc<Self>, core: &Core<Postgres>, channel: &str) -> Result<(), StoreError> {
        let mut listening = self.listening.lock().await;
        // The listener's task holds the other end and drops it when its connection breaks.
        if listening.as_ref().is_some_and(|token| Arc::strong_count(token) > 1) {
            return Ok(());
        }
        let mut lent = Lent::from(&*core.dialect).await?;
        let listen = format!("LISTEN \"{channel}\"");
        lent.connection()?.batch_execute(&listen).await.map_err(|error| of_read::<Postgres>(&error))?;
        let Some(connection) = lent.keep() else { return Ok(()) };
        let token = Arc::new(());
        *listening = Some(Arc::clone(&token));
        // The task ends with its arbiter, the last handle or its connection.
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
        // Created before the row is marked, so that no later announcement is missed.
        let changed = waiter.changed();
        match mark(core, key).await {
            // Another session has locked the row and may not announce its change: the waiting caller checks the row
            // itself.
            Ok(()) | Err(StoreError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
        let found = core.lookup(Lookup { key: message.key.clone() }).await?;
        match found.map(|view| view.state) {
            // A lapsing lease changes what an acquire would find, but nothing announces it.
            Some(StateView::InProgress { lease_left }) if !lease_left.is_zero() => {
                if timeout(lease_left.min(LOOKS_EVERY), changed).await.is_ok() {
                    return Ok(Changed);
                }
            }
            _ => return Ok(Changed),
        }
    }
}

/// Requests an announcement of the claim's end.
async fn mark(core: &Core<Postgres>, key: &str) -> Result<(), StoreError> {
    use diesel_async::RunQueryDsl as _;

    let binds = [Bind::Text(key)];
    core.writing(async |dialect, connection| {
        Fragment::<(), _>::new(&dialect.texts.watch, &binds).execute(connection).await
    })
    .await?;
    Ok(())
}
