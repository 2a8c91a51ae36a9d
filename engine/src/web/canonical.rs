//! Canonical JSON (RFC 8785), for fingerprints.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Returns the canonical form of a JSON body without the fields that the pointers name.
///
/// Returns `None` if the body has no canonical form: it is not JSON, or the canonical form would hide a difference. The
/// latter applies to an object that contains a name twice, and to a number that a double cannot hold exactly. The
/// caller then compares the body byte by byte.
pub(super) fn of(body: &[u8], without: &[Pointer]) -> Option<Vec<u8>> {
    let Unambiguous(mut value) = serde_json::from_slice(body).ok()?;
    if !numbers(body).all(is_exact_as_double) {
        return None;
    }
    for pointer in without {
        pointer.remove_from(&mut value);
    }
    serde_json_canonicalizer::to_vec(&value).ok()
}

/// A JSON pointer (RFC 6901) to a field.
#[derive(Clone, Debug)]
pub(super) struct Pointer {
    written: String,
    parent: String,
    last: String,
}

impl Pointer {
    pub(super) fn new(written: String) -> Self {
        let (parent, last) = written.rsplit_once('/').unwrap_or(("", ""));
        let (parent, last) = (parent.to_owned(), last.replace("~1", "/").replace("~0", "~"));
        Self { written, parent, last }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.written
    }

    /// Returns whether the pointer names a field: it begins with a slash, and each `~` begins an escape.
    pub(super) fn is_valid(&self) -> bool {
        self.written.starts_with('/')
            && self.written.split('~').skip(1).all(|escaped| escaped.starts_with('0') || escaped.starts_with('1'))
    }

    fn remove_from(&self, value: &mut Value) {
        if !self.is_valid() {
            return;
        }
        match value.pointer_mut(&self.parent) {
            Some(Value::Object(members)) => {
                members.remove(&self.last);
            }
            Some(Value::Array(items)) => {
                // RFC 6901 allows neither a sign nor a leading zero in an index.
                if let Some(index) = self.last.parse::<usize>().ok().filter(|index| index.to_string() == self.last)
                    && index < items.len()
                {
                    items.remove(index);
                }
            }
            _ => {}
        }
    }
}

/// JSON in which no object contains a name twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadUnambiguous).map(Self)
    }
}

struct ReadUnambiguous;

impl<'de> Visitor<'de> for ReadUnambiguous {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut read = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            read.push(item);
        }
        Ok(Value::Array(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some((name, Unambiguous(member))) = members.next_entry::<String, _>()? {
            if read.insert(name, member).is_some() {
                return Err(A::Error::custom("a name twice"));
            }
        }
        Ok(Value::Object(read))
    }
}

/// Returns the numbers of a valid JSON text, as written.
fn numbers(json: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        loop {
            let (&first, after) = rest.split_first()?;
            match first {
                b'"' => rest = after_string(after),
                b'-' | b'0'..=b'9' => {
                    let end =
                        rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
                    let (number, after) = rest.split_at(end.unwrap_or(rest.len()));
                    rest = after;
                    return std::str::from_utf8(number).ok();
                }
                _ => rest = after,
            }
        }
    })
}

fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'"' => return after,
            b'\\' => after.get(1..).unwrap_or_default(),
            _ => after,
        };
    }
    rest
}

/// Returns whether a number survives a round trip through a double. Then no other number reads as the same double.
fn is_exact_as_double(written: &str) -> bool {
    written.parse::<f64>().is_ok_and(|double| double.is_finite() && decimal(written) == decimal(&format!("{double:e}")))
}

/// Returns a number's sign, digits and exponent, without insignificant zeros.
fn decimal(number: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_end_matches('0');
    // An exponent that does not fit here does not fit a double either.
    let exponent: i64 = exponent.parse().ok()?;
    // The exponent of a zero may be as large as an integer holds, and has no meaning, so the arithmetic saturates.
    let exponent = exponent.saturating_sub(fraction.len() as i64).saturating_add((digits.len() - trimmed.len()) as i64);
    let significant = trimmed.trim_start_matches('0');
    Some(if significant.is_empty() {
        (false, String::new(), 0)
    } else {
        (is_negative, significant.to_owned(), exponent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(body: &str) -> Option<String> {
        of(body.as_bytes(), &[]).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// RFC 8785, sections 3.2.2 to 3.2.4 and appendix B: the numbers that a double holds exactly as written.
    #[test]
    fn h23_the_vectors_of_rfc_8785() {
        let sample = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let value: Value = serde_json::from_str(sample).unwrap();
        let expected = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
                        \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(serde_json_canonicalizer::to_string(&value).unwrap(), expected);

        let sorted = "{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet With Dagesh\",\
                      \"1\":\"One\",\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":\"Control\",\
                      \"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}";
        let order: Vec<_> =
            ["Carriage Return", "One", "Control", "Latin Small", "Euro Sign", "Emoji", "Hebrew"].to_vec();
        let sorted = canonical(sorted).unwrap();
        let found: Vec<_> = order.iter().map(|name| sorted.find(name).unwrap()).collect();
        assert!(found.is_sorted(), "{sorted}");

        for (bits, expected) in [
            (0x0000000000000000, "0"),
            (0x8000000000000000, "0"),
            (0x0000000000000001, "5e-324"),
            (0x8000000000000001, "-5e-324"),
            (0x7fefffffffffffff, "1.7976931348623157e+308"),
            (0xffefffffffffffff, "-1.7976931348623157e+308"),
            (0x4340000000000000, "9007199254740992"),
            (0xc340000000000000, "-9007199254740992"),
            (0x4430000000000000, "295147905179352830000"),
            (0x44b52d02c7e14af5, "9.999999999999997e+22"),
            (0x44b52d02c7e14af6, "1e+23"),
            (0x44b52d02c7e14af7, "1.0000000000000001e+23"),
            (0x444b1ae4d6e2ef4e, "999999999999999700000"),
            (0x444b1ae4d6e2ef4f, "999999999999999900000"),
            (0x444b1ae4d6e2ef50, "1e+21"),
            (0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"),
            (0x3eb0c6f7a0b5ed8d, "0.000001"),
            (0x41b3de4355555553, "333333333.3333332"),
            (0x41b3de4355555554, "333333333.33333325"),
            (0x41b3de4355555555, "333333333.3333333"),
            (0x41b3de4355555556, "333333333.3333334"),
            (0x41b3de4355555557, "333333333.33333343"),
            (0xbecbf647612f3696, "-0.0000033333333333333333"),
            (0x43143ff3c1cb0959, "1424953923781206.2"),
        ] {
            let double = f64::from_bits(bits);
            assert_eq!(serde_json_canonicalizer::to_string(&double).unwrap(), expected);
            assert_eq!(canonical(&format!("{double:e}")).unwrap(), expected, "read again");
        }
    }

    #[test]
    fn h23_an_exponent_at_the_limits_of_an_integer_is_read() {
        assert_eq!(canonical("0e9223372036854775807").as_deref(), Some("0"));
        assert_eq!(canonical("0.0e-9223372036854775808").as_deref(), Some("0"));
    }

    #[test]
    fn h23_what_a_double_would_hide_has_no_canonical_form() {
        for body in [
            "9007199254740993",
            "[0.1000000000000000055]",
            "1e9223372036854775807",
            "{\"a\": 18446744073709551615}",
            "1e400",
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": {\"b\": 1, \"\\u0062\": 2}}",
            "{\"a\": 1",
            "",
        ] {
            assert_eq!(canonical(body), None, "{body}");
        }
        for (body, same) in [("1.0", "1"), ("1e2", "100"), ("0.10", "0.1"), ("-0", "0"), ("\"\\u0061\"", "\"a\"")] {
            assert_eq!(canonical(body), canonical(same), "{body}");
            assert!(canonical(body).is_some());
        }
        // A number inside a string does not count.
        assert!(canonical("\"9007199254740993 \\\" 9007199254740993\"").is_some());
    }

    #[test]
    fn h23_pointers_leave_fields_out() {
        let without = |pointers: &[&str], body: &str| {
            let pointers: Vec<_> = pointers.iter().map(|&pointer| Pointer::new(pointer.to_owned())).collect();
            String::from_utf8(of(body.as_bytes(), &pointers).unwrap()).unwrap()
        };
        let body = r#"{"a": 1, "sent_at": "9:00", "meta": {"try": 2, "x/y~z": 3}, "items": [1, 2, 3]}"#;
        assert_eq!(
            without(&["/sent_at", "/meta/try", "/meta/x~1y~0z", "/items/1", "/none", "/a/b", "/items/01"], body),
            r#"{"a":1,"items":[1,3],"meta":{}}"#
        );
        assert_eq!(without(&["", "a", "/a~"], r#"{"a":1}"#), r#"{"a":1}"#, "no pointers to a field");
    }

    /// JSON values whose numbers fit a double.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no infinities", |n| n.is_finite()).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Writes a value with reordered members, extra white space and escaped characters.
    fn written_otherwise(value: &Value, text: &mut String) {
        match value {
            Value::Object(members) => {
                text.push_str("{\n ");
                for (n, (name, member)) in members.iter().rev().enumerate() {
                    if n > 0 {
                        text.push_str(" ,\t");
                    }
                    escaped(name, text);
                    text.push_str(" : ");
                    written_otherwise(member, text);
                }
                text.push_str("\r\n}");
            }
            Value::Array(items) => {
                text.push_str("[ ");
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        text.push_str("\n,");
                    }
                    written_otherwise(item, text);
                }
                text.push_str(" ]");
            }
            Value::String(string) => escaped(string, text),
            Value::Number(number) => match number.as_f64() {
                Some(double) if number.is_f64() => text.push_str(&format!("{double:e}")),
                _ => text.push_str(&number.to_string()),
            },
            other => text.push_str(&other.to_string()),
        }
    }

    fn escaped(string: &str, text: &mut String) {
        text.push('"');
        for unit in string.encode_utf16() {
            text.push_str(&format!("\\u{unit:04x}"));
        }
        text.push('"');
    }

    /// All values that differ from this one in one place.
    fn changed(value: &Value) -> Vec<Value> {
        let mut others = match value {
            Value::Null => vec![Value::Bool(false)],
            Value::Bool(on) => vec![Value::Bool(!on), Value::Null],
            Value::Number(number) => {
                let double = number.as_f64().unwrap();
                vec![Value::from(double.next_up()), Value::from(number.to_string())]
            }
            Value::String(string) => vec![Value::from(format!("{string} ")), Value::Null],
            Value::Array(_) => vec![Value::Null],
            Value::Object(_) => vec![Value::Null],
        };
        match value {
            Value::Array(items) => {
                for n in 0..items.len() {
                    others.extend(changed(&items[n]).into_iter().map(|item| {
                        let mut items = items.clone();
                        items[n] = item;
                        Value::from(items)
                    }));
                }
                others.push(Value::from([items.clone(), vec![Value::Null]].concat()));
                for n in 0..items.len() {
                    let mut without = items.clone();
                    without.remove(n);
                    others.push(without.into());
                    // An integer equals a double of the same value.
                    let written = |n: usize| items.get(n).map(|item: &Value| canonical(&item.to_string()));
                    if n > 0 && written(n) != written(n - 1) {
                        let mut swapped = items.clone();
                        swapped.swap(n - 1, n);
                        others.push(swapped.into());
                    }
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    others.extend(changed(member).into_iter().map(|member| {
                        let mut members = members.clone();
                        members.insert(name.clone(), member);
                        Value::from(members)
                    }));
                    let mut without = members.clone();
                    let member = without.remove(name).unwrap();
                    others.push(without.clone().into());
                    let renamed = format!("{name} ");
                    if !members.contains_key(&renamed) {
                        without.insert(renamed, member);
                        others.push(without.into());
                    }
                }
            }
            _ => {}
        }
        others.retain(|other| !matches!(other.as_f64(), Some(double) if !double.is_finite()));
        others
    }

    proptest! {
        #[test]
        fn h23_equal_when_written_otherwise_and_unequal_when_changed(value in any_json()) {
            let mut text = String::new();
            written_otherwise(&value, &mut text);
            let found = canonical(&text);
            prop_assert!(found.is_some(), "{text}");
            prop_assert_eq!(&found, &canonical(&value.to_string()));
            for other in changed(&value) {
                prop_assert_ne!(&found, &canonical(&other.to_string()), "{}", other);
            }
        }

        #[test]
        fn h23_any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = of(&body, &[Pointer::new("/a".to_owned())]);
        }
    }
}
