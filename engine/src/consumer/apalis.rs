//! A layer for apalis (1.0) workers that does each task's work once.
//!
//! A worker of [apalis](https://docs.rs/apalis) takes tasks from its storage. Storages deliver at least once: if a
//! worker dies, another worker takes its task again. [`OncePerTask`] is a layer of the worker. It runs the task's
//! service as the operation of [`Engine::run`], under the key that you read from the task.
//!
//! ```
//! # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! use oncekey::consumer::MessageKey;
//! use oncekey::consumer::apalis::{OncePerTask, apalis_core};
//! use oncekey::{Engine, Key};
//! use oncekey_backends::MemoryBackend;
//! use apalis_core::layers::{Layer as _, Service as _};
//! use apalis_core::task::{Task, builder::TaskBuilder, task_fn::task_fn};
//!
//! async fn send_mail(order: u64) -> Result<String, std::io::Error> {
//!     Ok(format!("mail for order {order}"))
//! }
//!
//! let engine = Engine::builder(MemoryBackend::new()).start()?;
//! let once = OncePerTask::new(engine, |task: &Task<u64>| {
//!     Ok(MessageKey::new(Key::new("mail", task.args)?, &task.args)?)
//! });
//! // In a worker: WorkerBuilder::new("mailer").backend(storage).layer(once).build(send_mail)
//! let mut worker = once.layer(task_fn(send_mail));
//! for _ in 0..2 {
//!     assert_eq!(worker.call(TaskBuilder::new(17).build()).await?, "mail for order 17");
//! }
//! # Ok(()) }
//! ```
//!
//! | the engine's decision | apalis gets |
//! |---|---|
//! | ran, or replayed | the response |
//! | the service failed or panicked | its error, which counts as one of the task's attempts |
//! | in flight elsewhere, at a limit, the store is unavailable, shutting down | [`RetryAfterError`]: the task is taken again |
//! | mismatch, a damaged record, no key in the task, indeterminate, an outcome of an older type | [`AbortError`]: no retry helps |
//!
//! The task's function can take the [`Claim`] as apalis' `Data<Claim>`, to derive keys for providers. The example
//! `apalis_redis` shows this on apalis' Redis storage.
//!
//! A task's id identifies one enqueued task. Use it as the key only if you enqueue each piece of work once. Otherwise
//! build the key from the arguments.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use apalis_core;
use apalis_core::error::{AbortError, BoxDynError, RetryAfterError};
use apalis_core::layers::{Layer, Service};
use apalis_core::task::Task;
use apalis_core::task::status::{AtomicStatus, Status};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Disposition, IdentifyError, JobResult, MessageKey, RetryPolicy};
use crate::{Claim, Engine, Error, RunError};

/// A layer of an apalis worker that does each task's work once. See the [module](self).
pub struct OncePerTask<I> {
    engine: Engine,
    identify: Arc<I>,
    retry: RetryPolicy,
}

impl<I> OncePerTask<I> {
    /// Creates a layer that reads the key and the fingerprint of a task with `identify`. It follows the policies of the
    /// engine's handle.
    pub fn new<Args>(engine: Engine, identify: I) -> Self
    where
        I: Fn(&Task<Args>) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    {
        Self { engine, identify: Arc::new(identify), retry: RetryPolicy::default() }
    }

    /// Sets the delays for tasks that are taken again, and what happens to an indeterminate task. apalis decides how
    /// many times a task is attempted.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }
}

impl<I> Clone for OncePerTask<I> {
    fn clone(&self) -> Self {
        let Self { engine, identify, retry } = self;
        Self { engine: engine.clone(), identify: Arc::clone(identify), retry: retry.clone() }
    }
}

impl<I> fmt::Debug for OncePerTask<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OncePerTask").field("retry", &self.retry).finish_non_exhaustive()
    }
}

impl<S, I> Layer<S> for OncePerTask<I> {
    type Service = OnceService<S, I>;

    fn layer(&self, inner: S) -> OnceService<S, I> {
        OnceService { inner, once: self.clone() }
    }
}

/// The service of [`OncePerTask`].
pub struct OnceService<S, I> {
    inner: S,
    once: OncePerTask<I>,
}

impl<S: Clone, I> Clone for OnceService<S, I> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), once: self.once.clone() }
    }
}

impl<S, I> fmt::Debug for OnceService<S, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceService").field("once", &self.once).finish_non_exhaustive()
    }
}

impl<S, I, Args> Service<Task<Args>> for OnceService<S, I>
where
    S: Service<Task<Args>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Serialize + DeserializeOwned + Send + 'static,
    S::Error: Into<BoxDynError> + Send + 'static,
    I: Fn(&Task<Args>) -> Result<MessageKey, IdentifyError> + Send + Sync + 'static,
    Args: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<S::Response, BoxDynError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut task: Task<Args>) -> Self::Future {
        // `poll_ready` made this instance of the service ready, so this call must use it and leave the clone behind.
        let next = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, next);
        let identity = MessageKey::read(|| (self.once.identify)(&task));
        let (engine, retry) = (self.once.engine.clone(), self.once.retry.clone());
        // apalis writes a task's status around its function. If the function does not run, this layer must write it;
        // otherwise the storage treats the task as dead.
        let status = task.raw_status().clone();
        Box::pin(async move {
            let identity = identity.map_err(|reason| with_status(&status, AbortError::new(reason).into()))?;
            let MessageKey { key, fingerprint } = identity;
            let operation = move |claim: Claim| async move {
                task.inject_data(claim);
                ready.call(task).await.map_err(Into::into)
            };
            match engine.run::<_, BoxDynError, _, _>(key, fingerprint, operation).await {
                Ok(outcome) => {
                    status.store(Status::Done);
                    Ok(outcome.into_inner())
                }
                // apalis wrote the status where the function ran.
                Err(RunError::Operation(error)) => Err(error),
                Err(RunError::Engine(error)) => Err(with_status(&status, for_apalis(&retry, error))),
            }
        })
    }
}

/// Writes the status that apalis gives a task with this error.
fn with_status(status: &AtomicStatus, error: BoxDynError) -> BoxDynError {
    status.store(if error.is::<AbortError>() {
        Status::Killed
    } else if error.is::<RetryAfterError>() {
        Status::Pending
    } else {
        Status::Failed
    });
    error
}

fn for_apalis(retry: &RetryPolicy, error: Error) -> BoxDynError {
    let decision: JobResult<(), String> = Err(RunError::Engine(error.clone()));
    match retry.disposition(&decision, 0) {
        Disposition::RetryLater { after, failed } if !failed || matches!(error, Error::Overloaded { .. }) => {
            RetryAfterError::new(error, after).into()
        }
        Disposition::RetryLater { .. } => error.into(),
        // Either the task is finished and there is no value to return, or no retry helps.
        Disposition::Ack | Disposition::DeadLetter { .. } => AbortError::new(error).into(),
    }
}
