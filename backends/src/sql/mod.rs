//! What PostgreSQL and MySQL share: the batches, the transactions, and the table's columns.

mod batch;
mod core;
mod dialect;
mod error;
mod fragment;
mod lent;
mod loan;
mod name;
mod noticing;
pub(crate) mod row;
mod step;
mod transaction;

pub(crate) use core::{BATCHES, Core};
pub(crate) use dialect::{Claimed, Dialect, Failure, Keyed, Written};
pub(crate) use error::of_read;
pub(crate) use fragment::{Fragment, Part};
#[cfg(feature = "postgres")]
pub(crate) use lent::Lent;
pub(crate) use lent::try_if_idle;
pub(crate) use loan::lend_clean;
pub use name::InvalidName;
pub(crate) use name::{Name, lock_number};
pub(crate) use row::{Columns, Expected, Row, from_column, time_of};
pub(crate) use step::{Completion, FirstClaim};
