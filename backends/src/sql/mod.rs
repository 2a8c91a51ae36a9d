//! What PostgreSQL and MySQL share: the batches, the transactions, and the table's columns.

mod batch;
#[cfg(feature = "blocking")]
mod blocking;
mod core;
mod dialect;
mod error;
mod family;
mod fragment;
mod lent;
mod loan;
mod name;
mod noticing;
mod open_error;
mod place;
mod pool;
pub(crate) mod row;
mod step;
mod step_row;
mod transaction;

#[cfg(feature = "blocking")]
pub(crate) use blocking::{BlockingConnection, BlockingDialect, Transacting, Transactions, complete_in};
pub(crate) use core::{BATCHES, Core};
pub(crate) use dialect::{Begun, Claimed, Dialect, Failure, Keyed, PURGE_LOOKS_AGAIN, Written};
pub(crate) use error::of_read;
pub(crate) use fragment::{Fragment, Part};
#[cfg(feature = "postgres")]
pub(crate) use lent::Lent;
pub(crate) use lent::try_if_idle;
pub(crate) use loan::lend_clean;
pub use name::InvalidName;
pub(crate) use name::{Name, lock_number};
pub(crate) use open_error::open_error;
pub(crate) use place::{Place, quoted};
pub use pool::DieselPool;
pub(crate) use pool::{Pooled, Taken};
pub(crate) use row::{Columns, Expected, Row, from_column, time_of};
pub(crate) use step::{Completion, FirstClaim, FirstRun, StepCompletion};
pub(crate) use step_row::{Family, StepChange, StepColumns, StepRow};
