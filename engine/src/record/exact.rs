//! Finds values that JSON would silently change.
//!
//! `serde_json` writes NaN and the infinities as `null`. It also writes `Some(())` as `null`, which reads back as
//! `None`. A replay would then return a different value from the first call. This serializer writes nothing; it only
//! checks.

use std::fmt::Display;

use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

type Checked = Result<Written, serde_json::Error>;

/// How a value is written, as far as the check needs to know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Null,
    Other,
}

/// Returns an error for a value that would be read back as another value.
pub(super) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), serde_json::Error> {
    value.serialize(Check).map(drop)
}

struct Check;

fn number(is_finite: bool) -> Checked {
    if is_finite { Ok(Written::Other) } else { Err(serde_json::Error::custom("JSON has no NaN and no infinity")) }
}

macro_rules! other {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, _: $type) -> Checked {
            Ok(Written::Other)
        })*
    };
}

impl Serializer for Check {
    type Ok = Written;
    type Error = serde_json::Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    other! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
    }

    fn serialize_f32(self, value: f32) -> Checked {
        number(value.is_finite())
    }

    fn serialize_f64(self, value: f64) -> Checked {
        number(value.is_finite())
    }

    fn serialize_none(self) -> Checked {
        Ok(Written::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        match value.serialize(self)? {
            Written::Null => Err(serde_json::Error::custom("a `Some` that is written as null is read back as `None`")),
            other => Ok(other),
        }
    }

    fn serialize_unit(self) -> Checked {
        Ok(Written::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Checked {
        Ok(Written::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Checked {
        Ok(Written::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self).map(|_| Written::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Self::Error> {
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Checked {
        Ok(Written::Other)
    }
}

macro_rules! parts {
    ($($trait:ident::$method:ident($($key:ty)?)),* $(,)?) => {
        $(impl $trait for Check {
            type Ok = Written;
            type Error = serde_json::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $key,)? value: &T) -> Result<(), Self::Error> {
                check(value)
            }

            fn end(self) -> Checked {
                Ok(Written::Other)
            }
        })*
    };
}

parts! {
    SerializeSeq::serialize_element(),
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(&'static str),
    SerializeStructVariant::serialize_field(&'static str),
}

impl SerializeMap for Check {
    type Ok = Written;
    type Error = serde_json::Error;

    /// `serde_json` itself refuses keys that are not strings.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Self::Error> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Self::Error> {
        check(value)
    }

    fn end(self) -> Checked {
        Ok(Written::Other)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Serialize)]
    struct Nested {
        inner: Vec<BTreeMap<&'static str, Option<f32>>>,
    }

    fn nested(number: f32) -> Nested {
        Nested { inner: vec![BTreeMap::from([("a", Some(1.5)), ("b", Some(number))])] }
    }

    #[test]
    fn e24_a_value_that_would_be_read_back_as_another_is_refused() {
        assert!(check(&f64::NAN).is_err());
        assert!(check(&(1, f32::INFINITY)).is_err());
        assert!(check(&Some(())).is_err());
        assert!(check(&Some(None::<u8>)).is_err());
        assert!(check(&[Some(Some(())), None]).is_err());
        assert!(check(&nested(f32::NAN)).is_err());
    }

    #[test]
    fn e24_a_value_that_is_read_back_as_itself_is_taken() {
        assert!(check(&()).is_ok());
        assert!(check(&None::<()>).is_ok());
        assert!(check(&Some(f64::MAX)).is_ok());
        assert!(check(&nested(f32::MIN_POSITIVE)).is_ok());
        assert!(check(&Ok::<(), String>(())).is_ok());
    }
}
