//! What is known about one store step.

use super::StoreError;

/// What is known about one store step: *not sent*, *may have been executed*, or (once its [`Reply`](super::Reply) has
/// been used) *answered*.
///
/// Each [`Reply`](super::Reply) carries one, from the backend's queue to the engine. The backend reports to it what
/// happens on the connection. A later failure never turns "may have been executed" into "not sent": a step that was
/// sent twice, and refused the second time, may have been executed the first time.
///
/// ```
/// use oncekey::backend::{StepState, StoreError};
///
/// let mut state = StepState::default();
/// assert!(!state.may_have_been_executed());
///
/// state.sent();
/// state.lost(); // the connection broke
/// state.sent(); // the same step again, on another connection
/// state.refused(); // the server did not execute it this time
/// assert!(state.may_have_been_executed());
///
/// let error = state.judge(StoreError::unavailable("connection refused"));
/// assert!(error.is_unknown());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepState {
    /// The step was sent and has no answer yet.
    in_flight: bool,
    /// The step was sent and its answer is lost for good.
    lost: bool,
}

impl StepState {
    /// Records that the step is about to leave for the store. Call this before the first byte is written.
    pub fn sent(&mut self) {
        // The step is sent again without an answer, so the earlier answer is lost.
        self.lost |= self.in_flight;
        self.in_flight = true;
    }

    /// Records the store's answer that it did not execute the step this time.
    pub fn refused(&mut self) {
        self.in_flight = false;
    }

    /// Records that the answer will not come: the connection broke, or the deadline passed.
    pub fn lost(&mut self) {
        self.lost |= self.in_flight;
        self.in_flight = false;
    }

    /// Returns whether the store may have executed the step.
    pub fn may_have_been_executed(self) -> bool {
        self.in_flight || self.lost
    }

    /// Returns the error to report for a step that ends with `error`: [`StoreError::Unknown`] if the store may have
    /// executed it.
    #[must_use]
    pub fn judge(self, error: StoreError) -> StoreError {
        if self.may_have_been_executed() && !error.is_unknown() && !planted!(LostAnswerForgotten) {
            return StoreError::unknown(error);
        }
        error
    }
}
