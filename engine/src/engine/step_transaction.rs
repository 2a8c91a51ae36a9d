//! Steps whose rows commit together with their outcome.

use std::any::{Any, type_name};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Claim;
use super::step::{Ready, Step, StepError, StepOptions, read, sealed};
use crate::FencingToken;
use crate::backend::{OperationFailure, StepCommitted, StoreError, TransactionOperation};
use crate::claims::{StepCall, StepRefusal, ToClaim, What};
use crate::record::{SealedOutcome, StepName};

/// Where a step's operation leaves its value or error for its caller, because the store's messages carry only bytes.
type Given<T, E> = Arc<Mutex<Option<Result<T, StepError<E>>>>>;

impl Claim {
    /// Runs a step in a transaction of the store's own database: what the step writes and its outcome commit together.
    /// **It happens exactly once.** For blocking connections: `diesel::SqliteConnection` for SQLite, and with an r2d2
    /// pool (`blocking_pool`) `diesel::PgConnection` for PostgreSQL and `diesel::MysqlConnection` for MySQL and
    /// MariaDB.
    ///
    /// The store checks the claim before the step, and again under the record's lock before the commit. A holder that
    /// has lost its claim commits nothing. The lock is held only for the commit, so the claim's renewals and its other
    /// steps continue while the step runs.
    ///
    /// # Cancel safety
    /// As for [`step`](Self::step), but nothing stays unsettled: the transaction commits, or it is rolled back.
    ///
    /// # Errors
    /// As for [`step`](Self::step). After any error except [`StepError::OutcomeNotStored`], what the step wrote is
    /// rolled back.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel::connection::SimpleConnection as _;
    /// use diesel::sqlite::SqliteConnection;
    /// use oncekey::{Engine, Key, OnAbandoned};
    /// use oncekey_backends::SqliteBackend;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let file = folder.path().join("shop.db");
    /// let engine = Engine::builder(SqliteBackend::open(&file)?).on_abandoned(OnAbandoned::Resume).start()?;
    /// engine
    ///     .run(Key::new("checkout", "r-1")?, &1999, async |claim| {
    ///         claim
    ///             .step_in_transaction("reserve", |tx: &mut SqliteConnection, _step| {
    ///                 tx.batch_execute("CREATE TABLE reserved (item TEXT); INSERT INTO reserved VALUES ('book')")
    ///             })
    ///             .await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn step_in_transaction<C, T, E, F>(
        &self,
        options: impl Into<StepOptions>,
        operation: F,
    ) -> Result<T, StepError<E>>
    where
        C: Any,
        F: FnOnce(&mut C, &Step) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        self.transact_step(options.into(), type_name::<C>(), |claim, step, name, life, given| {
            TransactionOperation::new(move |connection: &mut C| {
                let ran = catch_unwind(AssertUnwindSafe(|| operation(connection, &step)));
                leave(ran, &claim, &name, life, &given)
            })
        })
        .await
    }

    /// [`step_in_transaction`](Self::step_in_transaction) for async connections: `diesel_async::AsyncPgConnection` for
    /// PostgreSQL, `diesel_async::AsyncMysqlConnection` for MySQL and MariaDB.
    ///
    /// The operation **may run several times**. When the database aborts the transaction because of another one, it
    /// rolls everything back and the operation runs again. What it writes through its connection is committed once.
    ///
    /// # Cancel safety
    /// As for [`step_in_transaction`](Self::step_in_transaction).
    ///
    /// # Errors
    /// As for [`step_in_transaction`](Self::step_in_transaction).
    ///
    /// ```no_run
    /// # async fn example(engine: oncekey::Engine) -> Result<(), Box<dyn std::error::Error>> {
    /// # struct AsyncPgConnection;
    /// # async fn reserve(_: &mut AsyncPgConnection, _: &str) -> Result<u64, std::io::Error> { Ok(17) }
    /// use oncekey::Key;
    ///
    /// engine
    ///     .run(Key::new("checkout", "r-1")?, &"book", async |claim| {
    ///         claim
    ///             .step_in_async_transaction("reserve", async |tx: &mut AsyncPgConnection, _step| reserve(tx, "book").await)
    ///             .await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn step_in_async_transaction<C, T, E, F>(
        &self,
        options: impl Into<StepOptions>,
        mut operation: F,
    ) -> Result<T, StepError<E>>
    where
        C: Any,
        F: AsyncFnMut(&mut C, &Step) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        self.transact_step(options.into(), type_name::<C>(), |claim, step, name, life, given| {
            TransactionOperation::new_async(async move |connection: &mut C| {
                // The async block also catches a panic in the call itself.
                let running = AssertUnwindSafe(async { operation(connection, &step).await });
                leave(running.catch_unwind().await, &claim, &name, life, &given)
            })
        })
        .await
    }

    async fn transact_step<T, E>(
        &self,
        options: StepOptions,
        wanted: &'static str,
        make: impl FnOnce(Self, Step, StepName, FencingToken, Given<T, E>) -> TransactionOperation,
    ) -> Result<T, StepError<E>>
    where
        T: DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let asked = self.ask_step(options, true)?;
        let ready = asked.about.ready(self, asked.answer.await)?;
        let Ready::Transact { step, life, mut end } = ready else { return ready.replayed(self) };
        let (given, name) = (Given::default(), step.stored_name().clone());
        let operation = make(self.clone(), step, name.clone(), life, Arc::clone(&given));
        let (reply, committed) = oneshot::channel();
        let call = What::Step(Box::new(StepCall::Transact { number: end.number(), operation, reply }));
        end.begin();
        ToClaim::send(asked.about.claim, call).map_err(|_| StepError::Stopped)?;
        let committed = committed.await;
        // The claim's actor has already ended the step.
        end.disarm();
        let given = given.lock().take();
        match committed.unwrap_or(Err(StepRefusal::Lost)) {
            Ok(StepCommitted::Stored { outcome, life }) => match given {
                Some(Ok(value)) => Ok(value),
                // The transaction was committed, but the answer was lost on the way.
                _ => read(self, &name, life, &outcome),
            },
            Ok(StepCommitted::Completed { outcome, life }) => read(self, &name, life, &outcome),
            Ok(StepCommitted::RolledBack) => match given {
                Some(Err(error)) => Err(error),
                // A constraint failed at the commit, or the operation ignored a failed statement.
                _ => Err(StepError::Store(StoreError::unavailable("the step's transaction was rolled back"))),
            },
            Ok(StepCommitted::WrongConnection { wanted }) => Err(StepError::NoSuchTransaction {
                wanted,
                what: "its transactions have connections of another type".into(),
            }),
            Ok(StepCommitted::Lost) => Err(StepError::Lost),
            Ok(StepCommitted::Mismatch) => Err(StepError::Mismatch),
            Ok(StepCommitted::Unsettled) => Err(StepError::Unsettled),
            Ok(StepCommitted::TooMany) => Err(StepError::TooMany),
            Err(StepRefusal::Store(StoreError::Unsupported(what))) => {
                Err(StepError::NoSuchTransaction { wanted, what: format!("it does not support {what}") })
            }
            Err(refusal) => Err(StepError::refused(refusal)),
        }
    }
}

fn leave<T: Serialize + DeserializeOwned, E>(
    ran: std::thread::Result<Result<T, E>>,
    claim: &Claim,
    name: &StepName,
    life: FencingToken,
    given: &Given<T, E>,
) -> Result<SealedOutcome, OperationFailure> {
    let (left, told) = match ran {
        Ok(Ok(value)) => match sealed(claim, name, life, &value) {
            Ok((value, outcome)) => (Ok(value), Ok(outcome)),
            Err(error) => (Err(StepError::Unserializable(error)), Err(OperationFailure::RollBack)),
        },
        Ok(Err(error)) => (Err(StepError::Operation(error)), Err(OperationFailure::RollBack)),
        Err(_) => (Err(StepError::Panicked), Err(OperationFailure::RollBack)),
    };
    *given.lock() = Some(left);
    told
}
