//! The builder, which checks the settings and starts an engine.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
#[cfg(feature = "encryption")]
use crate::at_rest::Encryption;
use crate::at_rest::{AtRest, KeyHashing};
use crate::backend::Backend;
use crate::derived_key::KeyDerivation;
use crate::event::{Events, Observer};
use crate::node::Nodes;
use crate::pending_settlements::PendingSettlements;
use crate::reconcile::Reconciler;
use crate::shared::{Settings, Shared};
use crate::{AbandonedClaim, CallPolicy, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure, ReconcileOutcome};

/// Why an engine can't start.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Engine, StartError};
/// # use oncekey_backends::MemoryBackend;
/// let started = Engine::builder(MemoryBackend::new()).lease(Duration::ZERO).start();
/// assert_eq!(started.unwrap_err(), StartError::LeaseTooShort);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The lease is too short for the heartbeat to keep up.
    #[error("the lease is shorter than {} ms", EngineBuilder::<()>::SHORTEST_LEASE.as_millis())]
    LeaseTooShort,
    /// The store deadline is not shorter than the lease, so one slow store call could cost a claim its lease.
    #[error("the store deadline ({deadline:?}) must be shorter than the lease ({lease:?})")]
    DeadlineExceedsLease {
        /// The store deadline.
        deadline: Duration,
        /// The lease.
        lease: Duration,
    },
    /// The run limit is zero, so no operation could run.
    #[error("the run limit is zero: no operation could run")]
    NoRunLimit,
    /// The retention is zero, so no retry could replay an outcome.
    #[error("the retention is zero: no retry would ever be answered")]
    NoRetention,
    /// A limit of calls, of waiting callers or of purged records is zero.
    #[error("a limit of calls, waiting callers or purged keys is zero")]
    ZeroLimit,
    /// Two encryption secrets have the same number, so the engine could not tell which one decrypts an outcome.
    #[error("one number names two secrets of the encryption")]
    AmbiguousSecret,
}

/// Configures and starts an [`Engine`]. Each method's documentation states its default.
///
/// ```
/// # fn main() -> Result<(), oncekey::StartError> {
/// use std::time::Duration;
/// use oncekey::{Engine, OnAbandoned};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new())
///     .lease(Duration::from_secs(10))
///     .retention(Duration::from_secs(7 * 86_400))
///     .on_abandoned(OnAbandoned::Hold)
///     .start()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use]
pub struct EngineBuilder<B> {
    backend: B,
    settings: Settings,
    store_deadline: Option<Duration>,
    namespace: Option<Arc<str>>,
    max_pending: (usize, usize),
    observers: Observers,
}

#[derive(Default)]
struct Observers(Vec<Arc<dyn Observer>>);

impl std::fmt::Debug for Observers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} observers", self.0.len())
    }
}

impl<B> EngineBuilder<B> {
    const SHORTEST_LEASE: Duration = Duration::from_millis(50);
    const DEADLINE: Duration = Duration::from_secs(5);
}

impl<B: Backend> EngineBuilder<B> {
    pub(super) fn new(backend: B) -> Self {
        let settings = Settings {
            policy: CallPolicy::default(),
            lease: Duration::from_secs(30),
            store_deadline: Self::DEADLINE,
            settling_limit: Duration::from_secs(30),
            reconcile_limit: Duration::from_secs(30),
            max_calls_per_arbiter: 10_000,
            max_calls_per_scope: None,
            max_waiters_per_key: 1_000,
            max_step_bytes: 256 << 10,
            purge_every: Some(Duration::from_secs(10)),
            purge_limit: 1_000,
            reconciler: None,
            at_rest: AtRest::default(),
            derivation: KeyDerivation::default(),
        };
        Self {
            backend,
            settings,
            store_deadline: None,
            namespace: None,
            max_pending: (10_000, 64 << 20),
            observers: Observers::default(),
        }
    }

    /// Sets the largest outcome of a [step](crate::Claim::step) that the store keeps, in bytes as stored. A step with a
    /// larger outcome is done, but returns [`StepError::TooLarge`](crate::StepError::TooLarge), now and at every retry.
    /// Default: 256 KiB.
    pub fn max_step_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_step_bytes = bytes;
        self
    }

    /// Separates this application's [derived keys](crate::Claim::derive_key) from those of another that uses the same
    /// provider account: staging and production, or two services. Default: none.
    ///
    /// The namespace does not change keys in the store. Changing it changes every derived key, and providers then treat
    /// a retry as a new request. Set it before the first use, and keep it.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into().into());
        self
    }

    /// Sets how long a claim holds without a heartbeat. Default: 30 s; at least 50 ms.
    ///
    /// The engine renews the lease every third of its length for as long as the operation runs. The lease therefore
    /// does not limit the operation; it is how long a key stays blocked after a crash. An operation that blocks its
    /// arbiter's thread also stops the heartbeat: run such work on `web::block` or a thread.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets how long the store keeps outcomes, counted from their completion. Default: 24 h.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.settings.policy.retention = retention;
        self
    }

    /// Sets what happens to a call whose key another caller holds. Default: [`OnInProgress::Reject`].
    pub fn on_in_progress(mut self, on_in_progress: OnInProgress) -> Self {
        self.settings.policy.on_in_progress = on_in_progress;
        self
    }

    /// Sets what a lapsed lease means. Default: [`OnAbandoned::Rerun`] for operations in a transaction of the store,
    /// [`OnAbandoned::Hold`] for all others.
    pub fn on_abandoned(mut self, on_abandoned: OnAbandoned) -> Self {
        self.settings.policy.on_abandoned = Some(on_abandoned);
        self
    }

    /// Sets what happens to a claim whose operation returns an error. Default: [`OnFailure::Release`].
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.policy.on_failure = on_failure;
        self
    }

    /// Sets what happens to a call when the store is unavailable. Default: [`OnStoreFailure::Reject`].
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.settings.policy.on_store_failure = on_store_failure;
        self
    }

    /// Sets how long one store call may take before its answer counts as unknown. It must be shorter than the lease, so
    /// that one slow call does not cost a claim its lease. Default: 5 s, or two thirds of the lease if the lease is
    /// shorter than 7.5 s.
    pub fn store_deadline(mut self, deadline: Duration) -> Self {
        self.store_deadline = Some(deadline);
        self
    }

    /// Sets how long the engine retries a settlement that the store does not accept before it reports the failure.
    /// Default: 30 s.
    ///
    /// The engine keeps renewing the lease while it retries. After the limit it goes on retrying for as long as the
    /// process lives: see [`max_pending_settlements`](Self::max_pending_settlements).
    pub fn settling_limit(mut self, limit: Duration) -> Self {
        self.settings.settling_limit = limit;
        self
    }

    /// Sets how many settlements, and how many bytes of outcomes, the engine keeps retrying past the
    /// [`settling_limit`](Self::settling_limit). The count applies separately to settlements that report what an
    /// operation did and to those that free a key on which nothing happened. Past a limit, the engine gives the
    /// settlement up, leaves the claim to its lease, and emits
    /// [`EventKind::SettlementDropped`](crate::EventKind::SettlementDropped). The gauge `oncekey_pending_settlements`
    /// shows the current number. Default: 10 000 settlements and 64 MiB.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).max_pending_settlements(1_000, 16 << 20).start()?;
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn max_pending_settlements(mut self, count: usize, bytes: usize) -> Self {
        self.max_pending = (count, bytes);
        self
    }

    /// Sets how long an operation may run: see [`CallPolicy::run_limit`]. Default: no limit.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::Engine;
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).run_limit(Duration::from_secs(600)).start()?;
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn run_limit(mut self, limit: Duration) -> Self {
        self.settings.policy.run_limit = Some(limit);
        self
    }

    /// Sets how many calls an arbiter admits at once, including waiting calls. Further calls return
    /// [`Error::Overloaded`](crate::Error::Overloaded). Default: 10 000.
    pub fn max_calls_per_arbiter(mut self, limit: usize) -> Self {
        self.settings.max_calls_per_arbiter = limit;
        self
    }

    /// Sets how many calls of one scope an arbiter admits at once, including waiting calls. Further calls of that scope
    /// return [`Error::Overloaded`](crate::Error::Overloaded); other scopes are unaffected. Default: no limit, so one
    /// scope alone can use up [`max_calls_per_arbiter`](Self::max_calls_per_arbiter).
    pub fn max_calls_per_scope(mut self, limit: usize) -> Self {
        self.settings.max_calls_per_scope = Some(limit);
        self
    }

    /// Stores keyed digests in place of scopes, keys and fingerprints: see [`KeyHashing`]. Default: the store keeps
    /// them as they are.
    ///
    /// The engine no longer finds records that were stored without hashing or under another secret.
    pub fn key_hashing(mut self, hashing: KeyHashing) -> Self {
        self.settings.at_rest = self.settings.at_rest.key_hashing(hashing);
        self
    }

    /// Encrypts the stored outcomes: see [`Encryption`]. Default: the store keeps them as they are.
    #[cfg(feature = "encryption")]
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.settings.at_rest = self.settings.at_rest.encryption(encryption);
        self
    }

    /// Sets how many calls may wait for one key on an arbiter. Default: 1 000.
    pub fn max_waiters_per_key(mut self, limit: usize) -> Self {
        self.settings.max_waiters_per_key = limit;
        self
    }

    /// Sets how often one arbiter of the process purges expired records, with some jitter. With `None` the engine never
    /// purges; call [`Engine::purge`] yourself. Default: every 10 s.
    pub fn purge_every(mut self, interval: Option<Duration>) -> Self {
        self.settings.purge_every = interval;
        self
    }

    /// Sets how many records one purge removes at most. If more are left, the next purge follows at once.
    /// Default: 1 000.
    pub fn purge_limit(mut self, limit: usize) -> Self {
        self.settings.purge_limit = limit;
        self
    }

    /// Adds an observer, which receives every [`Event`](crate::Event). You can add several.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.0.push(Arc::new(observer));
        self
    }

    /// Sets the reconciler. The engine calls it when a call finds its key indeterminate. The reconciler asks the
    /// provider or a ledger whether the effect happened. Several processes may ask about one key, and more than once; a
    /// verdict applies only to the attempt in question. Default: none; such keys wait for [`Engine::resolve`].
    ///
    /// ```
    /// # use oncekey::{AbandonedClaim, Engine, ReconcileOutcome, record::SealedOutcome};
    /// # use oncekey_backends::MemoryBackend;
    /// # async fn charge_of(_: &str) -> Option<String> { None }
    /// let engine = Engine::builder(MemoryBackend::new())
    ///     .reconciler(|abandoned: AbandonedClaim| async move {
    ///         match charge_of(abandoned.key.idempotency_key()).await {
    ///             Some(charge) => match SealedOutcome::of_value(&abandoned.key, &charge) {
    ///                 Ok(outcome) => ReconcileOutcome::Completed(outcome),
    ///                 Err(_) => ReconcileOutcome::Unknown,
    ///             },
    ///             None => ReconcileOutcome::NotDone,
    ///         }
    ///     })
    ///     .start()?;
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn reconciler<F, Fut>(mut self, reconcile: F) -> Self
    where
        F: Fn(AbandonedClaim) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ReconcileOutcome> + Send + 'static,
    {
        self.settings.reconciler = Some(Reconciler::new(reconcile));
        self
    }

    /// Sets how long the reconciler may take. Default: 30 s.
    pub fn reconcile_limit(mut self, limit: Duration) -> Self {
        self.settings.reconcile_limit = limit;
        self
    }

    /// Starts the engine. On each arbiter, its actors start with that arbiter's first call.
    ///
    /// If you use a recorder of the `metrics` facade, install it first.
    ///
    /// # Errors
    /// [`StartError`] for settings that can't work.
    pub fn start(self) -> Result<Engine, StartError> {
        let mut settings = self.settings;
        let lease = settings.lease;
        if lease < Self::SHORTEST_LEASE {
            return Err(StartError::LeaseTooShort);
        }
        let deadline = self.store_deadline.unwrap_or_else(|| Self::DEADLINE.min(lease / 3 * 2));
        if deadline >= lease {
            return Err(StartError::DeadlineExceedsLease { deadline, lease });
        }
        settings.store_deadline = deadline;
        if settings.policy.run_limit.is_some_and(|limit| limit.is_zero()) {
            return Err(StartError::NoRunLimit);
        }
        if settings.policy.retention.is_zero() {
            return Err(StartError::NoRetention);
        }
        let limits = [
            settings.max_calls_per_arbiter,
            settings.max_calls_per_scope.unwrap_or(usize::MAX),
            settings.max_waiters_per_key,
            settings.purge_limit,
        ];
        if limits.contains(&0) {
            return Err(StartError::ZeroLimit);
        }
        if settings.at_rest.is_ambiguous() {
            return Err(StartError::AmbiguousSecret);
        }
        settings.derivation = KeyDerivation::new(self.namespace, settings.at_rest.clone());
        let policy = settings.policy;
        let pending = PendingSettlements::new(self.max_pending.0, self.max_pending.1);
        let shared = Shared::new(settings, Events::new(self.observers.0), pending);
        Ok(Engine::new(Nodes::new(Arc::new(shared), self.backend), policy))
    }
}
