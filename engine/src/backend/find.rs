//! Looking for records: by state, scope and age, page by page.

use std::time::Duration;

use super::{Backend, List, RecordView, StateView, StoreError};
use crate::Key;

/// Which records are wanted. The default wants all.
///
/// ```
/// use std::time::Duration;
/// use oncekey::backend::{Filter, StateName};
///
/// let stuck = Filter { state: Some(StateName::Indeterminate), older_than: Some(Duration::from_secs(3_600)), scope: None };
/// # let _ = stuck;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state, at the store's time of reading.
    pub state: Option<StateName>,
    /// Of this scope. Under [`key_hashing`](crate::EngineBuilder::key_hashing) a stored key does not show its scope, and
    /// no record matches.
    pub scope: Option<String>,
    /// Whose last claim was made at least so long ago. A record from before fencing tokens counts as old.
    pub older_than: Option<Duration>,
}

/// The state that a [`Filter`] wants.
///
/// ```
/// assert_eq!(oncekey::backend::StateName::Indeterminate.name(), "indeterminate");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateName {
    /// A holder works on it, or its lapsed claim waits for the next caller.
    InProgress,
    /// The outcome is known.
    Completed,
    /// The effect may or may not have happened.
    Indeterminate,
    /// It was released with steps.
    Released,
}

impl StateName {
    /// The state of a record.
    pub fn of(state: &StateView) -> Self {
        match state {
            StateView::InProgress { .. } => Self::InProgress,
            StateView::Completed { .. } => Self::Completed,
            StateView::Indeterminate => Self::Indeterminate,
            StateView::Released { .. } => Self::Released,
        }
    }

    /// The name, as lists and logs show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in progress",
            Self::Completed => "completed",
            Self::Indeterminate => "indeterminate",
            Self::Released => "released",
        }
    }
}

impl Filter {
    /// Whether a record is wanted.
    ///
    /// ```
    /// # use oncekey::backend::{Filter, RecordView};
    /// fn is_shown(view: &RecordView) -> bool {
    ///     Filter::default().takes(view)
    /// }
    /// # let _ = is_shown;
    /// ```
    pub fn takes(&self, view: &RecordView) -> bool {
        let is_old = |than: Duration| match view.claimed_at() {
            Some(at) => view.read_at.left(at) >= than,
            None => true,
        };
        self.state.is_none_or(|state| state == StateName::of(&view.state))
            && self.scope.as_deref().is_none_or(|scope| scope == view.key.scope())
            && self.older_than.is_none_or(is_old)
    }
}

/// Read the records that match a filter, in the order of their stored keys.
///
/// ```
/// use oncekey::backend::{Filter, Find};
///
/// let first_page = Find { filter: Filter::default(), after: None, limit: 100 };
/// # let _ = first_page;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// Which records.
    pub filter: Filter,
    /// Where the page before this one ended.
    pub after: Option<Key>,
    /// The most records to give.
    pub limit: usize,
}

/// The answer to [`Find`].
///
/// ```
/// use oncekey::backend::Found;
///
/// assert!(Found::default().next.is_none());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The records. A page with fewer than asked for, or with none, need not be the last.
    pub records: Vec<RecordView>,
    /// Where the next page begins: the [`Find::after`] to ask with. `None`: this is the last page.
    pub next: Option<Key>,
}

/// The most records that one page looks at where the store has no index for the filter.
const LOOKED_AT: usize = 10_000;
/// How many records are read at once for that.
const AT_ONCE: usize = 1_000;

/// Looks through the records in their order: [`Backend::find`] for stores without an index. One call looks at 10,000
/// records at most, and says where the next goes on.
///
/// # Errors
/// Those of [`Backend::list`].
///
/// ```
/// # use oncekey::backend::{Backend, Filter, Find, StoreError, find_by_listing};
/// async fn count<B: Backend>(backend: &B) -> Result<usize, StoreError> {
///     let page = Find { filter: Filter::default(), after: None, limit: 100 };
///     Ok(find_by_listing(backend, page).await?.records.len())
/// }
/// ```
pub async fn find_by_listing(backend: &impl Backend, message: Find) -> Result<Found, StoreError> {
    let Find { filter, mut after, limit } = message;
    let mut records = Vec::new();
    let mut looked_at = 0;
    // One more than fits in the page is read: it tells whether there is another page.
    let at_once = if filter == Filter::default() { limit.saturating_add(1) } else { AT_ONCE };
    loop {
        let page = backend.list(List { after: after.clone(), limit: at_once }).await?;
        let is_last = page.len() < at_once;
        for view in page {
            if records.len() == limit {
                return Ok(Found { records, next: after });
            }
            after = Some(view.key.clone());
            looked_at += 1;
            if filter.takes(&view) {
                records.push(view);
            }
        }
        if is_last {
            return Ok(Found { records, next: None });
        }
        if looked_at >= LOOKED_AT || records.len() == limit {
            return Ok(Found { records, next: after });
        }
    }
}
