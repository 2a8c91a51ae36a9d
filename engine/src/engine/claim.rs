//! The [`Claim`]: what the engine passes to an operation.

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
///         claim.confirm().await?; // immediately before the irreversible effect
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
    /// The claim's owner, if its own operation may complete it.
    completed_as: Option<Owner>,
}

impl Claim {
    pub(crate) fn of(key: Key, grant: &Grant, retention: Duration, derivation: &KeyDerivation) -> Self {
        let claim = Some(grant.claim().clone());
        let derivation = derivation.clone();
        Self { key, attempt: grant.attempt, token: grant.token, claim, derivation, retention, completed_as: None }
    }

    /// Creates a claim that its operation may complete by itself.
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

    /// Returns the claimed key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns how often the key has been claimed since it was last free. A number above 1 means that an earlier
    /// holder's lease lapsed, so an earlier attempt may have had its effect. After a release, the count starts at 1
    /// again, even if the released attempt was above 1.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Returns the claim's fencing token. The token rises with every claim of the key and never goes back, so a service
    /// that remembers the highest token it has seen can refuse a stale holder. Without a claim, this is
    /// [`FencingToken::ZERO`].
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

    /// Returns an idempotency key for the effect `name` of this operation. Pass it to the provider that performs the
    /// effect: the provider then performs it once, however often the operation runs.
    ///
    /// The key does not depend on the attempt. Two effects of one operation need two names, which give two keys. In a
    /// loop, put the item into the name and not its index, because a retry may see another order. Renaming an effect
    /// changes its key.
    ///
    /// The key is a digest of the [namespace](crate::EngineBuilder::namespace), the scope, the idempotency key and the
    /// name. Without [`key_hashing`](crate::EngineBuilder::key_hashing) the digest is not keyed: anyone who sees a
    /// derived key can test guesses of a guessable idempotency key against it. With `key_hashing` the digest is keyed,
    /// and another secret gives other derived keys.
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

    /// Returns whether the operation has a claim. It has none if the store was unavailable and
    /// [`OnStoreFailure::Run`](crate::OnStoreFailure::Run) let the operation run.
    pub fn is_guarded(&self) -> bool {
        self.claim.is_some()
    }

    /// Asks the store now whether the claim still stands, and renews its lease. Only a renewal sent by this call
    /// counts, and only if its answer arrives within the lease.
    ///
    /// The engine renews the lease without this call. Use it immediately before an irreversible effect, after a pause
    /// that may have been longer than the lease.
    ///
    /// # Errors
    /// [`Error::ClaimLost`] if the claim no longer stands; [`Error::Store`] if the store did not answer.
    pub async fn confirm(&self) -> Result<(), Error> {
        let Some(claim) = &self.claim else { return Ok(()) };
        let (reply, confirmed) = oneshot::channel();
        ToClaim::send(claim, What::Confirm(reply))?;
        confirmed.await.unwrap_or(Err(Error::Stopped))
    }

    /// Returns the message for a store's `complete_in`, which stores `value` as this claim's outcome **in a transaction
    /// that the operation opened itself**. Return the same value from the operation.
    ///
    /// Use it in operations of [`run`](crate::Engine::run), [`run_local`](crate::Engine::run_local) and
    /// [`run_blocking`](crate::Engine::run_blocking) that own their transaction, for example an application's unit of
    /// work. If the engine may open the transaction, [`run_in_transaction`](crate::Engine::run_in_transaction) is
    /// simpler, and it retries after deadlocks.
    ///
    /// # Errors
    /// [`Error::Unserializable`] for the value. [`Error::ClaimLost`] where this method can't complete the claim: in an
    /// unguarded run, for an HTTP request's claim (which [`web::Transaction`](crate::web::Transaction) completes with a
    /// response), and for a claim that the engine's own transaction completes.
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
    /// // What was not committed did not happen, so a claim whose holder crashed may run again.
    /// let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start()?;
    /// let mut own = SqliteConnection::establish(file.to_str().unwrap_or_default())?;
    /// own.batch_execute("PRAGMA busy_timeout = 5000; CREATE TABLE orders (item TEXT)")?;
    ///
    /// let ordered = engine
    ///     .run_local(Key::new("orders", 17)?, &"book", move |claim| async move {
    ///         own.immediate_transaction(|tx| {
    ///             tx.batch_execute("INSERT INTO orders VALUES ('book')")?;
    ///             let order = 17_u64;
    ///             backend.complete_in(tx, claim.completion(&order)?)?; // last: the record is locked from here on
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
