//! Looking into the store, and the operator's word.

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

/// An arbiter whose thread is not blocked answers much sooner.
const ARBITER_ANSWERS_WITHIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Reads the record of one key.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked, or what it has is no record.
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

    /// Settles an indeterminate key, by the word of somebody who has found out what happened.
    ///
    /// With an `attempt` the word is taken only if it is about the claim that stands there.
    /// [`resolve_by`](Self::resolve_by) also tells observers who settled it.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked.
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

    /// Settles a step whose result is unknown. Pass the value that the step would have returned, or `None` if its effect did
    /// not happen: then the step may run again.
    ///
    /// With its last unsettled step settled, the key is free for the next try of its request.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked; [`Error::Unserializable`] for the value or the name.
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

    /// Removes a record, whatever its state. **Removing a claim lets its operation run again**, beside the one that may
    /// still be running.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked.
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

    /// Reads up to `limit` records after a key, in the order of the stored keys: page by page, the whole store.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked.
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

    /// Removes up to `limit` records whose time is over. The engine does so by itself at intervals; this is for tests and
    /// for operators in a hurry.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked.
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

    /// Counts the records. Also the way to ask whether the store answers.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be asked.
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

    /// How many settlements the store has not taken within the settling limit, over all arbiters of the process. The
    /// engine goes on trying.
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

    /// How many keys are in flight, over all arbiters of the process: each has a key lock, or is being asked for. An
    /// arbiter whose thread is blocked is counted as its last sweep found it.
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
                // An arbiter that has stopped has none.
                Ok(Err(_)) => 0,
                // Its thread is blocked, perhaps by an operation: its last sweep has counted.
                Err(_) => node.in_flight_at_last_sweep(),
            }
        });
        join_all(counts).await.into_iter().sum()
    }

    /// How many key lock actors are alive, over all arbiters of the process: those of the keys in flight, and for up to a
    /// second those that rest for the next key. An idle engine has none.
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
