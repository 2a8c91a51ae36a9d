//! The [`Engine`]: the handle through which callers use an idempotency engine.

mod admin;
mod blocking;
mod builder;
mod claim;
mod operator;
mod run;
mod shutdown;
mod step;
mod step_transaction;
mod transaction;

pub use builder::{EngineBuilder, StartError};
pub use claim::Claim;
pub use run::Outcome;
#[cfg(feature = "consumer")]
pub(crate) use run::or_read;
pub use shutdown::Shutdown;
pub use step::{Step, StepError, StepOptions};
#[cfg(feature = "web")]
pub(crate) use transaction::{Given, Transacted, awaited, blocking, transact};

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::answer::Answer;
use crate::backend::Backend;
use crate::call::{Admitted, Begin};
#[cfg(feature = "web")]
use crate::derived_key::KeyDerivation;
use crate::node::{Node, Nodes};
use crate::supervisor::{CallerLeft, Supervisor};
use crate::{CallPolicy, Error, EventKind, Fingerprint, Key, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure};

/// The handle to an idempotency engine.
///
/// It is cheap to clone and `Send`. Use it on an arbiter (in an actix actor or an actix-web handler), in a task on a
/// plain tokio runtime, or on a plain thread with [`run_blocking`](Self::run_blocking). On an arbiter, a call never
/// crosses threads.
///
/// The engine ends when its last handle is dropped. [`shutdown`](Self::shutdown) lets the operations in flight finish
/// first.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::{Engine, Key, Outcome};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let key = Key::new("mail", 17)?;
/// for _ in 0..2 {
///     let outcome = engine
///         .run(key.clone(), &"to: ada", |claim| async move { Ok::<_, std::io::Error>(claim.attempt().get()) })
///         .await?;
///     assert_eq!(outcome.into_inner(), 1);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Engine {
    nodes: Arc<Nodes>,
    policy: CallPolicy,
}

impl Engine {
    /// Returns a builder for an engine on a store.
    pub fn builder<B: Backend>(backend: B) -> EngineBuilder<B> {
        EngineBuilder::new(backend)
    }

    fn new(nodes: Nodes, policy: CallPolicy) -> Self {
        Self { nodes: Arc::new(nodes), policy }
    }

    /// Returns the policies of this handle's calls.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert_eq!(engine.policy().retention.as_secs(), 86_400);
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn policy(&self) -> &CallPolicy {
        &self.policy
    }

    /// Returns a handle to the same engine whose calls follow `policy`.
    ///
    /// ```
    /// # use oncekey::{CallPolicy, Engine, OnFailure};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let careful = engine.with_policy(CallPolicy { on_failure: OnFailure::Hold, ..*engine.policy() });
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_policy(&self, policy: CallPolicy) -> Self {
        Self { nodes: Arc::clone(&self.nodes), policy }
    }

    /// Returns a handle whose outcomes are kept for `retention`, counted from their completion.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let for_a_week = engine.with_retention(Duration::from_secs(7 * 86_400));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_retention(&self, retention: Duration) -> Self {
        self.with_policy(CallPolicy { retention, ..self.policy })
    }

    /// Returns a handle whose calls wait up to `limit` if another caller holds their key.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::{Engine, OnInProgress};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let patient = engine.with_wait(Duration::from_secs(10));
    /// assert_eq!(patient.policy().on_in_progress, OnInProgress::Wait(Duration::from_secs(10)));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_wait(&self, limit: Duration) -> Self {
        self.with_policy(CallPolicy { on_in_progress: OnInProgress::Wait(limit), ..self.policy })
    }

    /// Returns a handle whose claims, if abandoned, follow `on_abandoned`.
    ///
    /// ```
    /// # use oncekey::{Engine, OnAbandoned};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let harmless_twice = engine.with_on_abandoned(OnAbandoned::Rerun);
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_on_abandoned(&self, on_abandoned: OnAbandoned) -> Self {
        self.with_policy(CallPolicy { on_abandoned: Some(on_abandoned), ..self.policy })
    }

    /// Returns a handle whose claims follow `on_failure` if their operation returns an error.
    ///
    /// ```
    /// # use oncekey::{Engine, OnFailure};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let careful = engine.with_on_failure(OnFailure::Hold);
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_on_failure(&self, on_failure: OnFailure) -> Self {
        self.with_policy(CallPolicy { on_failure, ..self.policy })
    }

    /// Returns a handle whose calls follow `on_store_failure` when the store is unavailable.
    ///
    /// ```
    /// # use oncekey::{Engine, OnStoreFailure};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let rather_twice_than_never = engine.with_on_store_failure(OnStoreFailure::Run);
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_on_store_failure(&self, on_store_failure: OnStoreFailure) -> Self {
        self.with_policy(CallPolicy { on_store_failure, ..self.policy })
    }

    /// Returns a handle whose operations may run for at most `limit`: see [`CallPolicy::run_limit`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let for_a_minute = engine.with_run_limit(Duration::from_secs(60));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    #[must_use]
    pub fn with_run_limit(&self, limit: Duration) -> Self {
        self.with_policy(CallPolicy { run_limit: Some(limit), ..self.policy })
    }

    /// Returns whether the engine accepts new claims: `false` once [`shutdown`](Self::shutdown) has begun. Report it as
    /// readiness. Completed keys still replay while the engine drains.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// assert!(engine.is_accepting());
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn is_accepting(&self) -> bool {
        !self.nodes.shared().is_closing()
    }

    #[cfg(feature = "web")]
    pub(crate) fn derivation(&self) -> &KeyDerivation {
        &self.nodes.shared().settings.derivation
    }

    #[cfg(feature = "web")]
    pub(crate) fn attach(&self) -> Arc<Node> {
        self.nodes.attach()
    }

    pub(crate) fn tell(&self, kind: EventKind, key: &Key) {
        self.nodes.shared().events.tell(kind, key);
    }

    /// Asks the supervisor of `node` for a key.
    ///
    /// Dropping the future withdraws the call: the engine releases a claim that no caller received.
    pub(crate) async fn begin(
        &self,
        node: &Node,
        key: Key,
        fingerprint: Fingerprint,
        policy: &CallPolicy,
    ) -> Result<Admitted, Error> {
        let permit = node.admit(&key).inspect_err(|_| self.tell(EventKind::Overloaded, &key))?;
        let (sender, receiver) = oneshot::channel();
        let waits = matches!(policy.on_in_progress, OnInProgress::Wait(_));
        let leaving = waits.then(|| Leaving { supervisor: &node.supervisor, key: Some(key.clone()) });
        let call = Begin::new(key, fingerprint, policy, Answer::Task(sender), permit);
        node.supervisor.try_send(call).map_err(|_| Error::Stopped)?;
        let decision = receiver.await.unwrap_or(Err(Error::Stopped));
        if let Some(mut leaving) = leaving {
            leaving.key = None;
        }
        decision
    }
}

/// A waiting caller. If its future is dropped, the supervisor frees what the caller held.
struct Leaving<'a> {
    supervisor: &'a Addr<Supervisor>,
    key: Option<Key>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // A supervisor that has ended holds nothing for the caller.
            let _ = self.supervisor.try_send(CallerLeft(key));
        }
    }
}
