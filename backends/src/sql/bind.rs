//! The parameters of a statement.

use diesel::QueryResult;
use diesel::query_builder::AstPass;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt};

use super::fragment::Part;
use super::row::{Columns, Expected};
use super::step::{Completion, FirstClaim, StepCompletion};
use super::step_row::StepColumns;

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bind<'a> {
    /// A text, which MySQL compares as bytes.
    Text(&'a str),
    Bytes(&'a [u8]),
    MaybeBytes(Option<&'a [u8]>),
    BigInt(i64),
    MaybeBigInt(Option<i64>),
    SmallInt(i16),
    MaybeSmallInt(Option<i16>),
}

macro_rules! part_of {
    ($feature:literal, $backend:ty, $text:ty, $bytes_of:expr) => {
        #[cfg(feature = $feature)]
        impl Part<$backend> for Bind<'_> {
            fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, $backend>) -> QueryResult<()> {
                match self {
                    Self::Text(value) => out.push_bind_param::<$text, _>($bytes_of(value)),
                    Self::Bytes(value) => out.push_bind_param::<Binary, _>(*value),
                    Self::MaybeBytes(value) => out.push_bind_param::<Nullable<Binary>, _>(value),
                    Self::BigInt(value) => out.push_bind_param::<BigInt, _>(value),
                    Self::MaybeBigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value),
                    Self::SmallInt(value) => out.push_bind_param::<SmallInt, _>(value),
                    Self::MaybeSmallInt(value) => out.push_bind_param::<Nullable<SmallInt>, _>(value),
                }
            }
        }
    };
}

part_of!("postgres", diesel::pg::Pg, diesel::sql_types::Text, |value: &'b &str| -> &'b str { value });
part_of!("mysql", diesel::mysql::Mysql, Binary, |value: &'b &str| -> &'b [u8] { value.as_bytes() });

impl<'a> Columns<'a> {
    /// Returns all columns but the key, in the order of the table's columns.
    pub(crate) fn binds(&self) -> [Bind<'a>; 11] {
        [
            Bind::Bytes(self.fingerprint),
            Bind::BigInt(self.attempt),
            Bind::Bytes(self.owner),
            Bind::SmallInt(self.state),
            Bind::MaybeBigInt(self.lease_until),
            Bind::MaybeSmallInt(self.on_abandoned),
            Bind::MaybeBytes(self.outcome),
            Bind::MaybeBigInt(self.purge_at),
            Bind::BigInt(self.fencing_token),
            Bind::MaybeBytes(self.barrier_owner),
            Bind::MaybeBigInt(self.barrier_until),
        ]
    }
}

impl<'a> Expected<'a> {
    /// Returns the fields in their order.
    pub(crate) fn binds(&self) -> [Bind<'a>; 6] {
        [
            Bind::Text(self.key),
            Bind::Bytes(self.owner),
            Bind::SmallInt(self.state),
            Bind::MaybeBigInt(self.lease_until),
            Bind::MaybeBytes(self.barrier_owner),
            Bind::MaybeBigInt(self.steps_life),
        ]
    }
}

impl<'a> FirstClaim<'a> {
    /// Returns the fields in their order.
    pub(crate) fn binds(&self) -> [Bind<'a>; 6] {
        [
            Bind::Text(self.key),
            Bind::Bytes(self.fingerprint),
            Bind::Bytes(self.owner),
            Bind::BigInt(self.lease),
            Bind::SmallInt(self.on_abandoned),
            Bind::MaybeBigInt(self.kept),
        ]
    }
}

impl<'a> Completion<'a> {
    /// Returns the values to write, followed by the values to match.
    pub(crate) fn binds(&self) -> [Bind<'a>; 4] {
        [Bind::Bytes(self.outcome), Bind::BigInt(self.retention), Bind::Text(self.key), Bind::Bytes(self.owner)]
    }
}

impl<'a> StepColumns<'a> {
    /// Returns all columns but the name, in the order of the table's columns.
    pub(crate) fn binds(&self) -> [Bind<'a>; 10] {
        [
            Bind::BigInt(self.life),
            Bind::BigInt(self.ordinal),
            Bind::MaybeBytes(self.fingerprint),
            Bind::BigInt(self.attempt),
            Bind::BigInt(self.run_token),
            Bind::BigInt(self.run_number),
            Bind::BigInt(self.began_at),
            Bind::MaybeBigInt(self.reruns_until),
            Bind::SmallInt(self.state),
            Bind::MaybeBytes(self.outcome),
        ]
    }
}

impl<'a> StepCompletion<'a> {
    /// Returns the values to match, followed by the outcome.
    pub(crate) fn binds(&self) -> [Bind<'a>; 6] {
        [
            Bind::Text(self.key),
            Bind::BigInt(self.life),
            Bind::Text(self.name),
            Bind::BigInt(self.run_token),
            Bind::BigInt(self.run_number),
            Bind::Bytes(self.outcome),
        ]
    }
}
