//! Finding records by state, scope and age, page by page.

use std::time::Duration;

use super::{Backend, List, RecordView, StateView, StoreError};
use crate::Key;

/// Which records to find. The default matches all.
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
    /// Matches records in this state, at the store's time of reading.
    pub state: Option<StateName>,
    /// Matches records of this scope. Under [`key_hashing`](crate::EngineBuilder::key_hashing) a stored key does not
    /// show its scope, so no record matches.
    pub scope: Option<String>,
    /// Matches records whose latest claim is at least this old. A record written before fencing tokens existed counts
    /// as old.
    pub older_than: Option<Duration>,
}

/// The state that a [`Filter`] matches.
///
/// ```
/// assert_eq!(oncekey::backend::StateName::Indeterminate.name(), "indeterminate");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateName {
    /// A holder has claimed the key, or its lapsed claim waits for the next caller.
    InProgress,
    /// The outcome is known.
    Completed,
    /// The effect may or may not have happened.
    Indeterminate,
    /// The key was released with steps.
    Released,
}

impl StateName {
    /// Returns the state of a record.
    pub fn of(state: &StateView) -> Self {
        match state {
            StateView::InProgress { .. } => Self::InProgress,
            StateView::Completed { .. } => Self::Completed,
            StateView::Indeterminate => Self::Indeterminate,
            StateView::Released { .. } => Self::Released,
        }
    }

    /// Returns the name, as lists and logs show it.
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
    /// Returns whether the filter matches a record.
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

/// Reads the records that match a filter, in the order of their stored keys.
///
/// ```
/// use oncekey::backend::{Filter, Find};
///
/// let first_page = Find { filter: Filter::default(), after: None, limit: 100 };
/// # let _ = first_page;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// Which records to read.
    pub filter: Filter,
    /// The key at which the previous page ended.
    pub after: Option<Key>,
    /// The maximum number of records to return.
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
    /// The records. A page with fewer records than asked for, even an empty one, need not be the last.
    pub records: Vec<RecordView>,
    /// Where the next page begins: pass it as [`Find::after`]. `None` on the last page.
    pub next: Option<Key>,
}

/// The maximum number of records that one page reads when the store has no index for the filter.
const LOOKED_AT: usize = 10_000;
/// How many records such a page reads at a time.
const AT_ONCE: usize = 1_000;

/// Reads through the records in their order. This is [`Backend::find`] for stores without an index. One call reads
/// 10,000 records at most, and returns where the next one continues.
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
    // Reads one record more than fits in the page, to learn whether there is another page.
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
