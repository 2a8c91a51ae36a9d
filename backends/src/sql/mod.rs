//! The code that PostgreSQL and MySQL share: the public handle, opening, batches, transactions, and the table's
//! columns.
//!
//! Each dialect has a folder. It implements [`Server`] (URLs, connections, and checks when the store is opened),
//! [`Dialect`] and [`StepStatements`] (its statements), and declares its handle with [`sql_backend!`].

mod backend;
mod batch;
mod bind;
#[cfg(feature = "blocking")]
mod blocking;
mod by_core;
mod core;
mod dialect;
mod error;
mod family;
mod fragment;
mod handle;
mod lent;
mod name;
mod noticing;
mod open_error;
mod place;
mod pool;
pub(crate) mod row;
mod server;
mod step;
mod step_row;
mod transaction;

pub(crate) use backend::{Options, Source, SqlBackend};
pub(crate) use bind::Bind;
#[cfg(feature = "blocking")]
pub(crate) use blocking::{BlockingConnection, BlockingDialect, Transacting, Transactions, complete_in};
pub(crate) use by_core::by_core;
pub(crate) use core::BATCHES;
#[cfg(feature = "postgres")]
pub(crate) use core::Core;
pub(crate) use dialect::{
    Begun, Claimed, Database, Dialect, Failure, Keyed, PURGE_LOOKS_AGAIN, StepStatements, Written,
};
pub(crate) use error::of_read;
pub(crate) use fragment::Fragment;
#[cfg(feature = "postgres")]
pub(crate) use fragment::Part;
pub(crate) use handle::sql_backend;
#[cfg(feature = "postgres")]
pub(crate) use lent::Lent;
#[cfg(feature = "outbox")]
pub(crate) use lent::lend_clean;
pub use name::InvalidName;
pub(crate) use name::{Name, lock_number};
pub(crate) use open_error::open_error;
pub(crate) use place::Place;
#[cfg(feature = "postgres")]
pub(crate) use place::quoted;
pub(crate) use pool::Connections;
pub use pool::DieselPool;
#[cfg(feature = "mysql")]
pub(crate) use pool::Pooled;
#[cfg(feature = "postgres")]
pub(crate) use pool::Taken;
pub(crate) use row::{Columns, Expected, Row, RowTypes, TimedTypes, locked, timed};
#[cfg(feature = "postgres")]
pub(crate) use server::CONNECT_TIMEOUT;
pub(crate) use server::{Server, Wanted, is_loopback};
pub(crate) use step::{Completion, FirstClaim, FirstRun, StepCompletion};
#[cfg(feature = "mysql")]
pub(crate) use step_row::StepChange;
pub(crate) use step_row::{Family, StepRow, StepTypes};
