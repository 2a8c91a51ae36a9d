//! Access rights in the console.

/// What a request may do in the [console](super::console). Your closure returns it.
///
/// The operator's name appears in the event and the log line of each key that the operator settles.
///
/// ```
/// use oncekey::web::ConsoleAccess;
///
/// let support = ConsoleAccess::view("ada");
/// let on_call = ConsoleAccess::settle("grace").with_outcomes();
/// assert!(!support.may_settle() && on_call.may_settle());
/// assert_eq!(ConsoleAccess::none().operator(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ConsoleAccess(Option<Operator>);

/// A person who may see the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    pub(super) name: String,
    pub(super) settles: bool,
    pub(super) sees_outcomes: bool,
}

impl ConsoleAccess {
    /// Grants nothing. The console answers 403, always with the same page.
    pub fn none() -> Self {
        Self(None)
    }

    /// Lets the operator see keys, states and times, but change nothing.
    pub fn view(operator: impl Into<String>) -> Self {
        Self(Some(Operator { name: operator.into(), settles: false, sees_outcomes: false }))
    }

    /// Lets the operator also settle keys.
    pub fn settle(operator: impl Into<String>) -> Self {
        Self(Some(Operator { name: operator.into(), settles: true, sees_outcomes: false }))
    }

    /// Lets the operator also read stored outcomes, which may contain your customers' data.
    pub fn with_outcomes(self) -> Self {
        Self(self.0.map(|operator| Operator { sees_outcomes: true, ..operator }))
    }

    /// Returns the operator's name, or `None` for a request without any right.
    pub fn operator(&self) -> Option<&str> {
        self.0.as_ref().map(|operator| operator.name.as_str())
    }

    /// Returns whether the operator may settle keys.
    pub fn may_settle(&self) -> bool {
        self.0.as_ref().is_some_and(|operator| operator.settles)
    }

    /// Returns whether the operator may read stored outcomes.
    pub fn may_see_outcomes(&self) -> bool {
        self.0.as_ref().is_some_and(|operator| operator.sees_outcomes)
    }

    pub(super) fn into_operator(self) -> Option<Operator> {
        self.0
    }
}
