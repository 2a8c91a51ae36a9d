//! Setting an engine up.

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
use crate::{Abandoned, CallPolicy, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure, Verdict};

/// Why an engine can't be started.
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
    /// The heartbeat could not keep up with such a lease.
    #[error("the lease is shorter than {} ms", EngineBuilder::<()>::SHORTEST_LEASE.as_millis())]
    LeaseTooShort,
    /// A store call that may take as long as a lease could lose every lease that meets one slow call.
    #[error("the store deadline ({deadline:?}) must be shorter than the lease ({lease:?})")]
    DeadlineExceedsLease {
        /// The store deadline.
        deadline: Duration,
        /// The lease.
        lease: Duration,
    },
    /// An operation that may not run at all.
    #[error("the run limit is zero: no operation could run")]
    NoRunLimit,
    /// An outcome that is gone at once answers no retry.
    #[error("the retention is zero: no retry would ever be answered")]
    NoRetention,
    /// An engine that admits nothing.
    #[error("a limit of calls or waiters is zero")]
    ZeroLimit,
    /// Which secret decrypts an outcome could not be told.
    #[error("one number names two secrets of the encryption")]
    AmbiguousSecret,
}

/// Sets an [`Engine`] up. Each method's documentation has its default.
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

    /// The largest outcome of a [step](crate::Claim::step) that is kept, in bytes as stored. The outcome of a larger one is
    /// [`StepError::TooLarge`](crate::StepError::TooLarge), now and at every retry; the step is done all the same. Default:
    /// 256 KiB.
    pub fn max_step_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_step_bytes = bytes;
        self
    }

    /// Separates the [derived keys](crate::Claim::derive_key) of this application from those of another that uses the same
    /// provider account: staging and production, or two services. Default: none.
    ///
    /// The namespace does not change keys in the store. Changing it changes every derived key, so that providers take a
    /// retry for a new request: set it before the first use, and keep it.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into().into());
        self
    }

    /// How long a claim holds without a heartbeat. Default: 30 s; at least 50 ms.
    ///
    /// The heartbeat renews it at a third of it for as long as the operation runs, so that the lease is not a limit on
    /// the operation: it is how long a key stays blocked after a crash. An operation that blocks its arbiter's thread
    /// stops the heartbeat as well; such work belongs on `web::block` or a thread.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long outcomes are kept, counted from completion. Default: 24 h.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.settings.policy.retention = retention;
        self
    }

    /// What becomes of a call whose key another is working on. Default: [`OnInProgress::Reject`].
    pub fn on_in_progress(mut self, on_in_progress: OnInProgress) -> Self {
        self.settings.policy.on_in_progress = on_in_progress;
        self
    }

    /// What a lapsed lease means. Default: [`OnAbandoned::Rerun`] for operations in a transaction of the store,
    /// [`OnAbandoned::Hold`] for all others.
    pub fn on_abandoned(mut self, on_abandoned: OnAbandoned) -> Self {
        self.settings.policy.on_abandoned = Some(on_abandoned);
        self
    }

    /// What becomes of a claim whose operation fails. Default: [`OnFailure::Release`].
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.policy.on_failure = on_failure;
        self
    }

    /// What becomes of a call when the store can't be asked. Default: [`OnStoreFailure::Reject`].
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.settings.policy.on_store_failure = on_store_failure;
        self
    }

    /// How long one call of the store may take before its answer counts as unknown. It must be shorter than the lease, so
    /// that one slow call does not cost the lease. Default: 5 s, or two thirds of a lease that is shorter than 7.5 s.
    pub fn store_deadline(mut self, deadline: Duration) -> Self {
        self.store_deadline = Some(deadline);
        self
    }

    /// How long the engine retries a settlement that the store does not take before it reports that. Default: 30 s.
    ///
    /// It keeps renewing the lease meanwhile, and goes on retrying afterwards, for as long as the process lives: see
    /// [`max_pending_settlements`](Self::max_pending_settlements).
    pub fn settling_limit(mut self, limit: Duration) -> Self {
        self.settings.settling_limit = limit;
        self
    }

    /// How many settlements, and how many bytes of outcomes, the engine keeps retrying past the
    /// [`settling_limit`](Self::settling_limit). Past either bound it gives a settlement up, leaves the claim to its lease,
    /// and emits [`EventKind::SettlementDropped`](crate::EventKind::SettlementDropped). The gauge
    /// `oncekey_pending_settlements` counts them. Default: 10 000 settlements and 64 MiB.
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

    /// How long an operation may run: see [`CallPolicy::run_limit`]. Default: no limit.
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

    /// How many calls an arbiter admits at once, those that wait included; more are told
    /// [`Error::Overloaded`](crate::Error::Overloaded). Default: 10 000.
    pub fn max_calls_per_arbiter(mut self, limit: usize) -> Self {
        self.settings.max_calls_per_arbiter = limit;
        self
    }

    /// How many calls of one scope an arbiter admits at once, those that wait included; more are told
    /// [`Error::Overloaded`](crate::Error::Overloaded), and callers of other scopes notice nothing. Default: no limit but
    /// that of all calls, which one scope can then take up alone.
    pub fn max_calls_per_scope(mut self, limit: usize) -> Self {
        self.settings.max_calls_per_scope = Some(limit);
        self
    }

    /// The store sees keyed digests in place of scopes, keys and fingerprints: see [`KeyHashing`]. Default: it sees them as
    /// they are.
    ///
    /// Records that were stored without it, or under another secret, are not found any more.
    pub fn key_hashing(mut self, hashing: KeyHashing) -> Self {
        self.settings.at_rest = self.settings.at_rest.key_hashing(hashing);
        self
    }

    /// The store sees outcomes encrypted: see [`Encryption`]. Default: it sees them as they are.
    #[cfg(feature = "encryption")]
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.settings.at_rest = self.settings.at_rest.encryption(encryption);
        self
    }

    /// How many calls may wait for one key on an arbiter. Default: 1 000.
    pub fn max_waiters_per_key(mut self, limit: usize) -> Self {
        self.settings.max_waiters_per_key = limit;
        self
    }

    /// How often one arbiter of the process purges records whose time is over, with some jitter; `None` leaves it to
    /// somebody else. Default: every 10 s.
    pub fn purge_every(mut self, interval: Option<Duration>) -> Self {
        self.settings.purge_every = interval;
        self
    }

    /// How many records one purge removes at most; while there are more, the next follows soon. Default: 1 000.
    pub fn purge_limit(mut self, limit: usize) -> Self {
        self.settings.purge_limit = limit;
        self
    }

    /// Hears of every [`Event`](crate::Event). May be called several times.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.0.push(Arc::new(observer));
        self
    }

    /// Asked about a key that a call finds indeterminate: it finds out, from the provider or a ledger, whether the
    /// effect happened. It may be asked about one key more than once, by several processes; its word is taken only for
    /// the attempt that it was asked about. Default: none; such keys wait for [`Engine::resolve`].
    ///
    /// ```
    /// # use oncekey::{Abandoned, Engine, Verdict, record::SealedOutcome};
    /// # use oncekey_backends::MemoryBackend;
    /// # async fn charge_of(_: &str) -> Option<String> { None }
    /// let engine = Engine::builder(MemoryBackend::new())
    ///     .reconciler(|abandoned: Abandoned| async move {
    ///         match charge_of(abandoned.key.idempotency_key()).await {
    ///             Some(charge) => match SealedOutcome::of_value(&abandoned.key, &charge) {
    ///                 Ok(outcome) => Verdict::Completed(outcome),
    ///                 Err(_) => Verdict::Unknown,
    ///             },
    ///             None => Verdict::NotDone,
    ///         }
    ///     })
    ///     .start()?;
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn reconciler<F, Fut>(mut self, reconcile: F) -> Self
    where
        F: Fn(Abandoned) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        self.settings.reconciler = Some(Reconciler::new(reconcile));
        self
    }

    /// How long the reconciler may take. Default: 30 s.
    pub fn reconcile_limit(mut self, limit: Duration) -> Self {
        self.settings.reconcile_limit = limit;
        self
    }

    /// Starts the engine. Its actors start on each arbiter at that arbiter's first call.
    ///
    /// The recorder of the `metrics` facade, if there is one, must be installed before.
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
