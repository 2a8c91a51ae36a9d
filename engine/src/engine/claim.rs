//! What an operation is handed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;

use crate::backend::Complete;
use crate::claims::{ClaimAddr, Grant, ToClaim, What};
use crate::derived_key::{DerivedKey, KeyDerivation};
use crate::record::{Owner, SealedOutcome};
use crate::{Attempt, Error, FencingToken, Key};

/// The claim under which an operation runs.
///
/// Pass a [derived key](Self::derive_key) to each provider that takes an idempotency key, and the
/// [fencing token](Self::fencing_token) to each service that can refuse a stale holder.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, Key};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let outcome = engine
///     .run(Key::new("charge", "r-1")?, &1999, |claim| async move {
///         claim.confirm().await?; // the last moment before what can't be undone
///         Ok::<_, oncekey::Error>(format!("{} {}", claim.key(), claim.attempt()))
///     })
///     .await?;
/// assert_eq!(outcome.into_inner(), "charge/r-1 1");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Claim {
    key: Key,
    attempt: Attempt,
    token: FencingToken,
    claim: Option<ClaimAddr>,
    derivation: KeyDerivation,
    retention: Duration,
    /// Where the claim's own operation may complete it: its owner.
    completed_as: Option<Owner>,
}

impl Claim {
    pub(crate) fn of(key: Key, grant: &Grant, retention: Duration, derivation: &KeyDerivation) -> Self {
        let claim = Some(grant.claim().clone());
        let derivation = derivation.clone();
        Self { key, attempt: grant.attempt, token: grant.token, claim, derivation, retention, completed_as: None }
    }

    /// One that its operation may complete by itself.
    pub(crate) fn completed_by_its_operation(
        key: Key,
        grant: &Grant,
        retention: Duration,
        derivation: &KeyDerivation,
    ) -> Self {
        Self { completed_as: Some(grant.owner), ..Self::of(key, grant, retention, derivation) }
    }

    pub(crate) fn unguarded(key: Key, derivation: &KeyDerivation) -> Self {
        let (attempt, token) = (Attempt::FIRST, FencingToken::ZERO);
        let (derivation, retention) = (derivation.clone(), Duration::ZERO);
        Self { key, attempt, token, claim: None, derivation, retention, completed_as: None }
    }

    pub(super) fn address(&self) -> Option<&ClaimAddr> {
        self.claim.as_ref()
    }

    pub(super) fn derivation(&self) -> &KeyDerivation {
        &self.derivation
    }

    pub(super) fn retention(&self) -> Duration {
        self.retention
    }

    /// The key that is claimed.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How often the key has been claimed since it was last free: above 1 if an earlier holder's lease lapsed, so that an
    /// earlier attempt may have had its effect. A release starts again at 1, also the release of an attempt above 1.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The fencing token of the claim. It rises with every claim of the key and never goes back, so a service that
    /// remembers the highest token it has seen can refuse a stale holder. [`FencingToken::ZERO`] without a claim.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, FencingToken, Key};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let token = engine
    ///     .run(Key::new("charge", "r-1")?, &1999, |claim| async move {
    ///         Ok::<_, std::io::Error>(claim.fencing_token().get())
    ///     })
    ///     .await?;
    /// assert!(token.into_inner() > FencingToken::ZERO.get());
    /// # Ok(()) }
    /// ```
    pub fn fencing_token(&self) -> FencingToken {
        self.token
    }

    /// An idempotency key for the effect `name` of this operation: pass it to the provider that performs the effect, which
    /// then performs it once, however often the operation runs.
    ///
    /// The key does not depend on the attempt. Two effects of one operation have two names, and so two keys. In a loop, the
    /// name contains the item and not its index, since a retry may see another order. A rename makes another key.
    ///
    /// It is a digest of the [namespace](crate::EngineBuilder::namespace), the scope, the idempotency key and the name.
    /// Without [`key_hashing`](crate::EngineBuilder::key_hashing) the digest is not keyed, and a key that can be guessed can
    /// be found by guessing. With it the digest is keyed, and another secret makes other derived keys.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// # async fn charge(_: u64, key: &str) -> Result<String, std::io::Error> { Ok(key.to_owned()) }
    /// # async fn mail(_: &str, key: &str) -> Result<String, std::io::Error> { Ok(key.to_owned()) }
    /// engine
    ///     .run(Key::new("checkout", "r-1")?, &1999, |claim| async move {
    ///         let receipt = charge(1999, claim.derive_key("charge").as_str()).await?;
    ///         mail(&receipt, claim.derive_key("mail").as_str()).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn derive_key(&self, name: impl AsRef<str>) -> DerivedKey {
        self.derivation.derive(&self.key, name.as_ref())
    }

    /// Whether there is a claim at all: not where the store was away and
    /// [`OnStoreFailure::Run`](crate::OnStoreFailure::Run) let the operation run.
    pub fn is_guarded(&self) -> bool {
        self.claim.is_some()
    }

    /// Asks the store, now, whether the claim still stands, and renews its lease. Only a renewal that is sent by this call
    /// counts, and only if it is answered within the lease.
    ///
    /// The lease is renewed without this. It is for the moment before an effect that can't be undone, after a pause that
    /// may have been longer than the lease.
    ///
    /// # Errors
    /// [`Error::ClaimLost`] if another holder has the key by now; [`Error::Store`] if the store did not say.
    pub async fn confirm(&self) -> Result<(), Error> {
        let Some(claim) = &self.claim else { return Ok(()) };
        let (reply, confirmed) = oneshot::channel();
        ToClaim::send(claim, What::Confirm(reply))?;
        confirmed.await.unwrap_or(Err(Error::Stopped))
    }

    /// What stores `value` as the outcome of this claim **in a transaction that the operation opened by itself**: the
    /// message for a store's `complete_in`. Give the same value back from the operation.
    ///
    /// It is for operations of [`run`](crate::Engine::run), [`run_local`](crate::Engine::run_local) and
    /// [`run_blocking`](crate::Engine::run_blocking) whose transaction is theirs: an application's unit of work, say. Where
    /// the transaction may be the engine's, [`run_in_transaction`](crate::Engine::run_in_transaction) is simpler, and does
    /// deadlocks again.
    ///
    /// # Errors
    /// [`Error::Unserializable`] for the value, and [`Error::ClaimLost`] where there is no claim that could be completed
    /// so: an unguarded run, an HTTP request's claim (which is completed with a response, by
    /// [`web::Transaction`](crate::web::Transaction)), a claim that is completed in the engine's own transaction.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel::connection::{Connection as _, SimpleConnection as _};
    /// use diesel::sqlite::SqliteConnection;
    /// use oncekey::{CallPolicy, Engine, Key, OnAbandoned, Outcome};
    /// use oncekey_backends::SqliteBackend;
    ///
    /// type Failure = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let file = folder.path().join("shop.db");
    /// let backend = SqliteBackend::open(&file)?;
    /// // What did not commit did not happen: a claim whose holder crashed is run again.
    /// let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start()?;
    /// let mut own = SqliteConnection::establish(file.to_str().unwrap_or_default())?;
    /// own.batch_execute("PRAGMA busy_timeout = 5000; CREATE TABLE orders (item TEXT)")?;
    ///
    /// let ordered = engine
    ///     .run_local(Key::new("orders", 17)?, &"book", move |claim| async move {
    ///         own.immediate_transaction(|tx| {
    ///             tx.batch_execute("INSERT INTO orders VALUES ('book')")?;
    ///             let order = 17_u64;
    ///             backend.complete_in(tx, claim.completion(&order)?)?; // last, since the record is locked from here
    ///             Ok::<_, Failure>(order)
    ///         })
    ///     })
    ///     .await?;
    /// assert_eq!(ordered, Outcome::Ran(17));
    /// # Ok(()) }
    /// ```
    pub fn completion<T: Serialize>(&self, value: &T) -> Result<Complete, Error> {
        let owner = self.completed_as.ok_or(Error::ClaimLost)?;
        let outcome = SealedOutcome::of_value(&self.key, value);
        let outcome = outcome.map_err(|error| Error::Unserializable(error.to_string()))?;
        let message = Complete { key: self.key.clone(), owner, outcome, retention: self.retention };
        Ok(self.derivation.at_rest().complete(message)?)
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("key", &self.key)
            .field("attempt", &self.attempt)
            .field("fencing_token", &self.token)
            .field("is_guarded", &self.is_guarded())
            .finish()
    }
}
