//! A backend behind the settings of this module. It rewrites each message on its way in, and each answer on its way
//! out.

use super::{AtRest, Names};
use crate::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Find, Finding, Found, Held, Hold, List, Lookup, Purge, Purged, RecordView,
    Release, Released, Remove, Removed, Renew, Renewed, Reply, Request, Resolution, Resolve, ResolveStep, Resolved,
    Stats, StepBegun, StepCommitted, StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Watch,
    Withdraw, Withdrawn,
};

/// A backend whose store sees no keys, or no outcomes, or neither. [`AtRest::protect`] returns it.
///
/// ```
/// # use oncekey::at_rest::{AtRest, Protected};
/// # use oncekey_backends::MemoryBackend;
/// let store: Protected<MemoryBackend> = AtRest::default().protect(MemoryBackend::new());
/// ```
#[derive(Debug, Clone)]
pub struct Protected<B> {
    backend: B,
    at_rest: AtRest,
}

impl<B> Protected<B> {
    pub(crate) fn new(backend: B, at_rest: AtRest) -> Self {
        Self { backend, at_rest }
    }
}

/// The messages, as the store receives them.
impl AtRest {
    fn acquire(&self, mut message: Acquire) -> (Acquire, Names) {
        let names = self.names(message.key);
        message.fingerprint = self.fingerprint(&names, message.fingerprint);
        message.key = names.stored.clone();
        (message, names)
    }

    fn renew(&self, message: Renew) -> Renew {
        Renew { key: self.names(message.key).stored, ..message }
    }

    pub(crate) fn complete(&self, message: Complete) -> Result<Complete, StoreError> {
        let names = self.names(message.key);
        let outcome = self.seal(&names, &message.outcome)?;
        Ok(Complete { key: names.stored, outcome, ..message })
    }

    fn complete_in_transaction(&self, message: CompleteInTransaction) -> (CompleteInTransaction, Names) {
        let names = self.names(message.key);
        let operation = self.operation(names.clone(), message.operation);
        (CompleteInTransaction { key: names.stored.clone(), operation, ..message }, names)
    }

    fn release(&self, message: Release) -> Release {
        Release { key: self.names(message.key).stored, ..message }
    }

    fn withdraw(&self, message: Withdraw) -> Withdraw {
        Withdraw { key: self.names(message.key).stored, ..message }
    }

    fn hold(&self, message: Hold) -> Hold {
        Hold { key: self.names(message.key).stored, ..message }
    }

    fn resolve(&self, message: Resolve) -> Result<Resolve, StoreError> {
        let names = self.names(message.key);
        let with = match message.with {
            Resolution::Complete { outcome, retention } => {
                Resolution::Complete { outcome: self.seal(&names, &outcome)?, retention }
            }
            Resolution::Release => Resolution::Release,
        };
        Ok(Resolve { key: names.stored, with, ..message })
    }

    fn lookup(&self, message: Lookup) -> (Lookup, Names) {
        let names = self.names(message.key);
        (Lookup { key: names.stored.clone() }, names)
    }

    fn remove(&self, message: Remove) -> Remove {
        Remove { key: self.names(message.key).stored }
    }

    fn list(&self, message: List) -> List {
        List { after: message.after.map(|key| self.names(key).stored), ..message }
    }

    fn watch(&self, message: Watch) -> Watch {
        Watch { key: self.names(message.key).stored, ..message }
    }
}

/// The answers, as the engine receives them.
impl AtRest {
    fn acquired(&self, names: &Names, answer: Acquired) -> Result<Acquired, StoreError> {
        Ok(match answer {
            Acquired::Completed { outcome } => Acquired::Completed { outcome: self.open(names, &outcome)? },
            Acquired::Claimed { attempt, token, took_over, steps: Some(mut steps) } => {
                self.open_steps(names, &mut steps)?;
                Acquired::Claimed { attempt, token, took_over, steps: Some(steps) }
            }
            other => other,
        })
    }

    fn completed_in_transaction(
        &self,
        names: &Names,
        answer: CompletedInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        Ok(match answer {
            CompletedInTransaction::Stored { outcome } => {
                CompletedInTransaction::Stored { outcome: self.open(names, &outcome)? }
            }
            other => other,
        })
    }

    fn found(&self, names: &Names, mut view: RecordView) -> RecordView {
        if let Some(steps) = &mut view.steps {
            self.show_steps(names, steps);
        }
        RecordView { key: names.plain.clone(), state: self.show(names, view.state), ..view }
    }

    /// A digest does not show its key, so a listed record keeps its name in the store.
    fn listed(&self, views: Vec<RecordView>) -> Vec<RecordView> {
        views
            .into_iter()
            .map(|view| {
                let names = Names { plain: view.key.clone(), stored: view.key.clone() };
                self.found(&names, view)
            })
            .collect()
    }

    /// Returns the request to send to the store, or `None` if it cannot be sent and was answered here.
    fn rewrite(&self, request: Request) -> Option<Request> {
        let at_rest = self.clone();
        Some(match request {
            Request::Acquire(message, reply) => {
                let (message, names) = self.acquire(message);
                let open = move |answer| at_rest.acquired(&names, answer);
                Request::Acquire(message, Reply::new(|answer| reply.send(answer.and_then(open))))
            }
            Request::Renew(message, reply) => Request::Renew(self.renew(message), reply),
            Request::Complete(message, reply) => match self.complete(message) {
                Ok(message) => Request::Complete(message, reply),
                Err(error) => return refuse(reply, error),
            },
            Request::CompleteInTransaction(message, reply) => {
                let (message, names) = self.complete_in_transaction(message);
                let open = move |answer| at_rest.completed_in_transaction(&names, answer);
                Request::CompleteInTransaction(message, Reply::new(|answer| reply.send(answer.and_then(open))))
            }
            Request::Release(message, reply) => Request::Release(self.release(message), reply),
            Request::Withdraw(message, reply) => Request::Withdraw(self.withdraw(message), reply),
            Request::Hold(message, reply) => Request::Hold(self.hold(message), reply),
            Request::Resolve(message, reply) => match self.resolve(message) {
                Ok(message) => Request::Resolve(message, reply),
                Err(error) => return refuse(reply, error),
            },
            Request::BeginStep(message, reply) => {
                let (message, names) = self.begin_step(*message);
                let open = move |answer| at_rest.step_begun(&names, answer);
                Request::BeginStep(message.into(), Reply::new(|answer| reply.send(answer.and_then(open))))
            }
            Request::CompleteStep(message, reply) => match self.complete_step(*message) {
                Ok(message) => Request::CompleteStep(message.into(), reply),
                Err(error) => return refuse(reply, error),
            },
            Request::FailStep(message, reply) => {
                let (message, names) = self.fail_step(*message);
                let open = move |answer| at_rest.step_failed(&names, answer);
                Request::FailStep(message.into(), Reply::new(|answer| reply.send(answer.and_then(open))))
            }
            Request::StepInTransaction(message, reply) => {
                let (message, names) = self.step_in_transaction(*message);
                let open = move |answer| at_rest.step_committed(&names, answer);
                Request::StepInTransaction(message.into(), Reply::new(|answer| reply.send(answer.and_then(open))))
            }
            Request::ResolveStep(message, reply) => match self.resolve_step(*message) {
                Ok(message) => Request::ResolveStep(message.into(), reply),
                Err(error) => return refuse(reply, error),
            },
            Request::Lookup(message, reply) => {
                let (message, names) = self.lookup(message);
                let open = move |found: Option<RecordView>| found.map(|view| at_rest.found(&names, view));
                Request::Lookup(message, Reply::new(|answer| reply.send(answer.map(open))))
            }
            Request::Remove(message, reply) => Request::Remove(self.remove(message), reply),
            Request::List(message, reply) => {
                let message = self.list(message);
                Request::List(message, Reply::new(move |answer| reply.send(answer.map(|views| at_rest.listed(views)))))
            }
            Request::Watch(message, reply) => Request::Watch(self.watch(message), reply),
            other @ (Request::Purge(..) | Request::Stats(..)) => other,
        })
    }
}

fn refuse<T>(reply: Reply<T>, error: StoreError) -> Option<Request> {
    reply.send(Err(error));
    None
}

impl<B: Backend> Backend for Protected<B> {
    fn session(&self) -> Self {
        Self::new(self.backend.session(), self.at_rest.clone())
    }

    fn max_in_flight_batches(&self) -> usize {
        self.backend.max_in_flight_batches()
    }

    fn min_batch_size(&self) -> usize {
        self.backend.min_batch_size()
    }

    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        let (message, names) = self.at_rest.acquire(message);
        self.at_rest.acquired(&names, self.backend.acquire(message).await?)
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.backend.renew(self.at_rest.renew(message)).await
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        self.backend.complete(self.at_rest.complete(message)?).await
    }

    async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let (message, names) = self.at_rest.complete_in_transaction(message);
        let answer = self.backend.complete_in_transaction(message).await?;
        self.at_rest.completed_in_transaction(&names, answer)
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.backend.release(self.at_rest.release(message)).await
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.backend.withdraw(self.at_rest.withdraw(message)).await
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.backend.hold(self.at_rest.hold(message)).await
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.backend.resolve(self.at_rest.resolve(message)?).await
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        let (message, names) = self.at_rest.begin_step(message);
        self.at_rest.step_begun(&names, self.backend.begin_step(message).await?)
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.backend.complete_step(self.at_rest.complete_step(message)?).await
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        let (message, names) = self.at_rest.fail_step(message);
        self.at_rest.step_failed(&names, self.backend.fail_step(message).await?)
    }

    async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
        let (message, names) = self.at_rest.step_in_transaction(message);
        self.at_rest.step_committed(&names, self.backend.step_in_transaction(message).await?)
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.backend.resolve_step(self.at_rest.resolve_step(message)?).await
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        let (message, names) = self.at_rest.lookup(message);
        Ok(self.backend.lookup(message).await?.map(|view| self.at_rest.found(&names, view)))
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.backend.remove(self.at_rest.remove(message)).await
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        Ok(self.at_rest.listed(self.backend.list(self.at_rest.list(message)).await?))
    }

    async fn find(&self, message: Find) -> Result<Found, StoreError> {
        let after = message.after.map(|key| self.at_rest.names(key).stored);
        let found = self.backend.find(Find { after, ..message }).await?;
        Ok(Found { records: self.at_rest.listed(found.records), ..found })
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.backend.examine().await
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        self.backend.purge(message).await
    }

    async fn stats(&self, message: Stats) -> Result<StoreStats, StoreError> {
        self.backend.stats(message).await
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        self.backend.watch(self.at_rest.watch(message)).await
    }

    async fn execute(&self, batch: Vec<Request>) {
        let batch: Vec<_> = batch.into_iter().filter_map(|request| self.at_rest.rewrite(request)).collect();
        if !batch.is_empty() {
            self.backend.execute(batch).await;
        }
    }
}
