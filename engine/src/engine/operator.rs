//! The operator's queries and decisions.

use futures_util::future::join_all;
use serde::Serialize;

use super::Engine;
use crate::backend::{
    Filter, Find, Finding, Found, Persist, RecordView, Removed, Request, Resolution, Resolve, ResolveStep, Resolved,
    StepResolution, StoreError,
};
use crate::record::{Binding, SealedOutcome, StepName};
#[cfg(feature = "web")]
use crate::record::{PayloadKind, StepRecord};
use crate::{Attempt, Error, Event, EventKind, Key};

/// Small enough that other requests do not wait long behind a batch of removals.
const ERASED_AT_ONCE: usize = 200;

impl Engine {
    /// Reads a page of the records that match a filter, in the order of the stored keys. Pass [`Found::next`] as
    /// `after` to read the next page.
    ///
    /// A store without an index for the filter scans its records, at most 10,000 for one page. A page may then hold
    /// fewer records than `limit`, or none, although more pages follow.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey::Engine;
    /// use oncekey::backend::{Filter, StateName};
    /// # use oncekey_backends::MemoryBackend;
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let stuck = Filter { state: Some(StateName::Indeterminate), ..Filter::default() };
    /// let page = engine.find(stuck, None, 100).await?;
    /// assert!(page.records.is_empty() && page.next.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn find(&self, filter: Filter, after: Option<Key>, limit: usize) -> Result<Found, Error> {
        let message = Find { filter, after, limit };
        Ok(self.nodes.current()?.persist(|reply| Persist::Find(message, reply)).await?)
    }

    /// Removes all records of a scope in batches, and returns how many it removed. **A retry of any of their operations
    /// runs it again.** A running operation continues, and its outcome is not kept.
    ///
    /// A store may keep a removed key for up to ten minutes, without its outcome, so that a late claim can't take
    /// effect. Dropping the future stops between two removals; call again to continue. Records that are claimed in the
    /// meantime may remain.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer, or under [`key_hashing`](crate::EngineBuilder::key_hashing),
    /// because a hashed key does not show its scope.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.erase_scope("tenant 17").await?, 0);
    /// # Ok(()) }
    /// ```
    pub async fn erase_scope(&self, scope: &str) -> Result<u64, Error> {
        if self.nodes.shared().settings.at_rest.hides_keys() {
            return Err(StoreError::Unsupported("finding the records of a scope whose keys are hashed").into());
        }
        let filter = Filter { scope: Some(scope.to_owned()), ..Filter::default() };
        let (mut erased, mut after) = (0, None);
        loop {
            let found = self.find(filter.clone(), after, ERASED_AT_ONCE).await?;
            for removed in join_all(found.records.iter().map(|view| self.remove(&view.key))).await {
                erased += u64::from(removed? == Removed::Removed);
            }
            after = found.next;
            if after.is_none() {
                return Ok(erased);
            }
        }
    }

    /// Reports the settings of the store's servers that need correcting. A store without such settings reports none.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// for finding in engine.doctor().await? {
    ///     println!("{finding}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn doctor(&self) -> Result<Vec<Finding>, Error> {
        Ok(self.nodes.current()?.persist(Persist::Examine).await?)
    }

    /// Settles an indeterminate key like [`resolve`](Self::resolve). The event [`EventKind::Resolved`] names the
    /// operator.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, backend::{Resolution, Resolved}};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let resolved = engine.resolve_by("ada", &Key::new("mail", 17)?, None, Resolution::Release).await?;
    /// assert_eq!(resolved, Resolved::NotIndeterminate);
    /// # Ok(()) }
    /// ```
    pub async fn resolve_by(
        &self,
        operator: &str,
        key: &Key,
        attempt: Option<Attempt>,
        with: Resolution,
    ) -> Result<Resolved, Error> {
        self.send_resolve(Resolve { key: key.clone(), attempt, owner: None, with }, Some(operator)).await
    }

    /// Settles an indeterminate key only if its claim is still the one that `view` shows. It never settles a later
    /// claim of the key. The event [`EventKind::Resolved`] names the operator.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey::backend::{Filter, Resolution, StateName};
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let stuck = Filter { state: Some(StateName::Indeterminate), ..Filter::default() };
    /// for view in engine.find(stuck, None, 100).await?.records {
    ///     engine.settle(&view, Resolution::Release, "ada").await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn settle(&self, view: &RecordView, with: Resolution, operator: &str) -> Result<Resolved, Error> {
        let (attempt, owner) = (Some(view.attempt), Some(view.owner));
        self.send_resolve(Resolve { key: view.key.clone(), attempt, owner, with }, Some(operator)).await
    }

    /// Settles a step like [`resolve_step`](Self::resolve_step). The event [`EventKind::StepResolved`] names the
    /// operator.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer; [`Error::Unserializable`] for the value or the name.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, backend::Resolved};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let resolved = engine.resolve_step_by("ada", &Key::new("checkout", 17)?, "charge", Some(&"charge 5")).await?;
    /// assert_eq!(resolved, Resolved::NotIndeterminate);
    /// # Ok(()) }
    /// ```
    pub async fn resolve_step_by<T: Serialize + ?Sized>(
        &self,
        operator: &str,
        key: &Key,
        name: &str,
        with: Option<&T>,
    ) -> Result<Resolved, Error> {
        self.resolve_any_step(Some(operator), key, name, with).await
    }

    pub(super) async fn resolve_any_step<T: Serialize + ?Sized>(
        &self,
        operator: Option<&str>,
        key: &Key,
        name: &str,
        with: Option<&T>,
    ) -> Result<Resolved, Error> {
        let unserializable = |error: &dyn std::fmt::Display| Error::Unserializable(error.to_string());
        let Some(steps) = self.lookup(key).await?.and_then(|view| view.steps) else {
            return Ok(Resolved::NotIndeterminate);
        };
        let name = StepName::from_stored(name).map_err(|error| unserializable(&error))?;
        let name = self.nodes.shared().settings.at_rest.step_name(key, name);
        let with = match with {
            Some(value) => {
                let outcome = SealedOutcome::of_value(Binding::step(key, steps.life, &name), value);
                StepResolution::Complete { outcome: outcome.map_err(|error| unserializable(&error))? }
            }
            None => StepResolution::Release,
        };
        let message = ResolveStep { key: key.clone(), name, run: None, life: Some(steps.life), with };
        self.send_resolve_step(message, operator).await
    }

    pub(super) async fn send_resolve(&self, message: Resolve, operator: Option<&str>) -> Result<Resolved, Error> {
        let key = message.key.clone();
        let node = self.nodes.current()?;
        let resolved = node.ask_store(|reply| Request::Resolve(message, reply)).await?;
        self.tell_resolved(EventKind::Resolved, &key, operator, &resolved);
        Ok(resolved)
    }

    async fn send_resolve_step(&self, message: ResolveStep, operator: Option<&str>) -> Result<Resolved, Error> {
        let key = message.key.clone();
        let node = self.nodes.current()?;
        let resolved = node.ask_store(|reply| Request::ResolveStep(Box::new(message), reply)).await?;
        self.tell_resolved(EventKind::StepResolved, &key, operator, &resolved);
        Ok(resolved)
    }

    fn tell_resolved(&self, kind: EventKind, key: &Key, operator: Option<&str>, resolved: &Resolved) {
        if *resolved == Resolved::Resolved {
            self.nodes.shared().events.tell_of(Event::new(kind, key).by(operator));
        }
    }
}

/// For the console, which settles only what its operator has seen.
#[cfg(feature = "web")]
impl Engine {
    /// Settles exactly the run of a step that `view` shows. `json` is the value that the step would have returned, or
    /// `None` if its effect did not happen.
    pub(crate) async fn settle_step(
        &self,
        view: &RecordView,
        step: &StepRecord,
        json: Option<&[u8]>,
        operator: &str,
    ) -> Result<Resolved, Error> {
        let Some(steps) = &view.steps else { return Ok(Resolved::NotIndeterminate) };
        let with = match json {
            Some(json) => {
                let bound_to = Binding::step(&view.key, steps.life, &step.name);
                let write = |bytes: &mut Vec<u8>| bytes.extend_from_slice(json);
                StepResolution::Complete { outcome: SealedOutcome::seal(bound_to, PayloadKind::Json, write) }
            }
            None => StepResolution::Release,
        };
        let (key, name) = (view.key.clone(), step.name.clone());
        let message = ResolveStep { key, name, run: Some(step.run), life: Some(steps.life), with };
        self.send_resolve_step(message, Some(operator)).await
    }

    pub(crate) fn console(&self) -> &std::sync::Arc<crate::web::ConsoleHub> {
        self.nodes.shared().console()
    }
}
