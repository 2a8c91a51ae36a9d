//! Implements the backend trait for each dialect.

/// Implements the backend trait on a handle's [`Core`](super::Core). `own` contains the methods that the dialect
/// implements differently.
macro_rules! by_core {
    ($backend:ident { $($own:item)* }) => {
        const _: () = {
            use oncekey::backend::{
                Acquire, Acquired, Backend, BeginStep, Complete, CompleteInTransaction, CompleteStep, Completed,
                CompletedInTransaction, FailStep, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release, Released,
                Remove, Removed, Renew, Renewed, Request, Resolve, ResolveStep, Resolved, Stats, StepBegun, StepCommitted,
                StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Withdraw, Withdrawn,
            };

            impl $backend {
                /// Executes one step by itself.
                async fn ask<T: Send + 'static>(
                    &self,
                    request: impl FnOnce(oncekey::backend::Reply<T>) -> Request,
                ) -> Result<T, StoreError> {
                    self.0.core.ask(request).await
                }
            }

            impl Backend for $backend {
                fn session(&self) -> Self {
                    Self(self.0.session())
                }

                fn max_in_flight_batches(&self) -> usize {
                    $crate::sql::BATCHES
                }

                $crate::ask::by_asking! {
                    acquire: Acquire -> Acquired,
                    renew: Renew -> Renewed,
                    complete: Complete -> Completed,
                    release: Release -> Released,
                    withdraw: Withdraw -> Withdrawn,
                    hold: Hold -> Held,
                    resolve: Resolve -> Resolved,
                    begin_step: BeginStep -> StepBegun,
                    complete_step: CompleteStep -> StepCompleted,
                    fail_step: FailStep -> StepFailed,
                    resolve_step: ResolveStep -> Resolved,
                }

                async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
                    self.0.core.step_in_transaction(message).await
                }

                async fn complete_in_transaction(
                    &self,
                    message: CompleteInTransaction,
                ) -> Result<CompletedInTransaction, StoreError> {
                    self.0.core.complete_in_transaction(message).await
                }

                async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
                    self.0.core.lookup(message).await
                }

                async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
                    self.0.core.remove(message).await
                }

                async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
                    self.0.core.list(message).await
                }

                async fn examine(&self) -> Result<Vec<$crate::Finding>, StoreError> {
                    self.doctor().await
                }

                async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
                    self.0.core.purge(message).await
                }

                async fn stats(&self, message: Stats) -> Result<StoreStats, StoreError> {
                    self.0.core.stats(message).await
                }

                async fn execute(&self, batch: Vec<Request>) {
                    self.0.core.execute(batch, |request| request.dispatch(self)).await;
                }

                $($own)*
            }
        };
    };
}
pub(crate) use by_core;
