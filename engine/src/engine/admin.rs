//! Inspection of the store, and the operator's resolutions.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use super::Engine;
use crate::backend::{
    List, Lookup, Purge, Purged, RecordView, Remove, Removed, Request, Resolution, Resolve, Resolved, Stats, StoreStats,
};
use crate::supervisor::CountInFlight;
use crate::{Attempt, Error, Key};

/// The limit for an arbiter's answer. An arbiter whose thread is not blocked answers much sooner.
const ARBITER_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Reads the record of one key.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable, or if what it holds for the key is not a record.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.lookup(&Key::new("mail", 17)?).await?, None);
    /// # Ok(()) }
    /// ```
    pub async fn lookup(&self, key: &Key) -> Result<Option<RecordView>, Error> {
        let message = Lookup { key: key.clone() };
        Ok(self.nodes.current()?.ask_store(|reply| Request::Lookup(message, reply)).await?)
    }

    /// Settles an indeterminate key. Call it once you know whether the effect happened.
    ///
    /// With an `attempt`, it settles the key only if the indeterminate claim is that attempt.
    /// [`resolve_by`](Self::resolve_by) also reports to observers who settled it.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, backend::{Resolution, Resolved}};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let resolved = engine.resolve(&Key::new("mail", 17)?, None, Resolution::Release).await?;
    /// assert_eq!(resolved, Resolved::NotIndeterminate);
    /// # Ok(()) }
    /// ```
    pub async fn resolve(&self, key: &Key, attempt: Option<Attempt>, with: Resolution) -> Result<Resolved, Error> {
        self.send_resolve(Resolve { key: key.clone(), attempt, owner: None, with }, None).await
    }

    /// Settles a step whose result is unknown. Pass the value that the step would have returned, or `None` if its
    /// effect did not happen; the step may then run again.
    ///
    /// Once its last unsettled step is settled, the key is free for the next attempt of its request.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable; [`Error::Unserializable`] for the value or the name.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, backend::Resolved};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let resolved = engine.resolve_step(&Key::new("checkout", 17)?, "charge", Some(&"charge 5")).await?;
    /// assert_eq!(resolved, Resolved::NotIndeterminate);
    /// # Ok(()) }
    /// ```
    pub async fn resolve_step<T: Serialize + ?Sized>(
        &self,
        key: &Key,
        name: &str,
        with: Option<&T>,
    ) -> Result<Resolved, Error> {
        self.resolve_any_step(None, key, name, with).await
    }

    /// Removes a record, whatever its state. **Removing a claim lets its operation run again**, alongside one that may
    /// still be running.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, backend::Removed};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.remove(&Key::new("mail", 17)?).await?, Removed::Absent);
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, key: &Key) -> Result<Removed, Error> {
        let message = Remove { key: key.clone() };
        Ok(self.nodes.current()?.ask_store(|reply| Request::Remove(message, reply)).await?)
    }

    /// Reads up to `limit` records after a key, in the order of the stored keys. Call it page by page to read the whole
    /// store.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert!(engine.list(None, 100).await?.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn list(&self, after: Option<Key>, limit: usize) -> Result<Vec<RecordView>, Error> {
        let message = List { after, limit };
        Ok(self.nodes.current()?.ask_store(|reply| Request::List(message, reply)).await?)
    }

    /// Removes up to `limit` expired records. The engine does so itself at intervals; this method is for tests, and for
    /// operators who don't want to wait.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.purge(1_000).await?.removed, 0);
    /// # Ok(()) }
    /// ```
    pub async fn purge(&self, limit: usize) -> Result<Purged, Error> {
        Ok(self.nodes.current()?.ask_store(|reply| Request::Purge(Purge { limit }, reply)).await?)
    }

    /// Counts the records. You can also use it to check that the store answers.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is unavailable.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.stats().await?.completed, 0);
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self) -> Result<StoreStats, Error> {
        Ok(self.nodes.current()?.ask_store(|reply| Request::Stats(Stats, reply)).await?)
    }

    /// Returns how many settlements the store has not accepted within the settling limit, over all arbiters of the
    /// process. The engine keeps retrying them.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.pending_settlements(), 0);
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn pending_settlements(&self) -> usize {
        self.nodes.shared().pending.count()
    }

    /// Returns how many keys are in flight, over all arbiters of the process: those with a key lock, and those that the
    /// engine is asking the store for. For an arbiter whose thread is blocked, it uses the count of that arbiter's last
    /// sweep.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.keys_in_flight().await, 0);
    /// # Ok(()) }
    /// ```
    pub async fn keys_in_flight(&self) -> usize {
        let counts = self.nodes.all().into_iter().map(|node| async move {
            match timeout(ARBITER_ANSWERS_WITHIN, node.supervisor.send(CountInFlight)).await {
                Ok(Ok(count)) => count,
                // An arbiter that has stopped has no keys in flight.
                Ok(Err(_)) => 0,
                // The arbiter's thread is blocked, perhaps by an operation, so the count of its last sweep is used.
                Err(_) => node.in_flight_at_last_sweep(),
            }
        });
        join_all(counts).await.into_iter().sum()
    }

    /// Returns how many key lock actors are alive, over all arbiters of the process: one for each key in flight, and
    /// those that the idle pool keeps for up to a second for the next key. An idle engine has none.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.key_lock_actors(), 0);
    /// # Ok(()) }
    /// ```
    pub fn key_lock_actors(&self) -> usize {
        self.nodes.shared().lock_actors()
    }
}
