//! The properties and headers of a message that this source publishes again: selected properties, the source's own
//! headers, and the original's headers under a prefix.
//!
//! Everything else that a publisher set is left out. `expiration` would let a dead letter expire. `user_id` and `CC`
//! would make the broker refuse it. A header with the name of one of this source's own would be mistaken for it.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// How many times the job failed.
pub(super) const FAILURES: &str = "oncekey-failures";
/// Why the message is a dead letter.
pub(super) const ERROR: &str = "oncekey-error";
/// The prefix of each of the original's header names.
const PREFIX: &str = "oncekey-header-";
/// A table of the original's headers whose names are too long for the prefix. If there are many headers, it holds all
/// of them.
const LONG: &str = "oncekey-long-headers";
/// The most headers that are prefixed one by one. All properties of a message fit into one frame (128 KiB by default),
/// which more prefixes could exceed.
const MOST_PREFIXED: usize = 100;
/// AMQP's limit for a header's name, in bytes.
const LONGEST_NAME: usize = 255;

/// Returns the properties that a retry and a dead letter keep.
pub(super) fn named(original: &BasicProperties) -> BasicProperties {
    macro_rules! keep {
        ($($get:ident: $set:ident),* $(,)?) => {{
            let mut kept = BasicProperties::default();
            $( if let Some(value) = original.$get().clone() { kept = kept.$set(value); } )*
            kept
        }};
    }
    keep! {
        message_id: with_message_id,
        content_type: with_content_type,
        content_encoding: with_content_encoding,
        correlation_id: with_correlation_id,
        reply_to: with_reply_to,
        timestamp: with_timestamp,
        priority: with_priority,
        kind: with_type,
        app_id: with_app_id,
    }
}

/// Returns the original's headers under their prefix, plus one header of this source.
pub(super) fn wrap(original: &FieldTable, name: &'static str, value: AMQPValue) -> FieldTable {
    let (mut wrapped, mut long) = (FieldTable::default(), FieldTable::default());
    for (name, value) in original.inner() {
        if original.inner().len() <= MOST_PREFIXED && PREFIX.len() + name.as_str().len() <= LONGEST_NAME {
            wrapped.insert(format!("{PREFIX}{name}").into(), value.clone());
        } else {
            long.insert(name.clone(), value.clone());
        }
    }
    if !long.inner().is_empty() {
        wrapped.insert(LONG.into(), AMQPValue::FieldTable(long));
    }
    wrapped.insert(name.into(), value);
    wrapped
}

/// Reverses [`wrap`]: returns the failures and the original's headers.
pub(super) fn unwrap(wrapped: &FieldTable) -> (u32, FieldTable) {
    let (mut failures, mut original) = (0, FieldTable::default());
    for (name, value) in wrapped.inner() {
        match (name.as_str(), value) {
            (FAILURES, AMQPValue::LongLongInt(count)) => failures = u32::try_from(*count).unwrap_or(0),
            (LONG, AMQPValue::FieldTable(long)) => {
                for (name, value) in long.inner() {
                    original.insert(name.clone(), value.clone());
                }
            }
            (name, value) => {
                // When the broker forwards a message, it adds headers of its own, which are not the original's.
                if let Some(name) = name.strip_prefix(PREFIX).and_then(|name| ShortString::try_new(name).ok()) {
                    original.insert(name, value.clone());
                }
            }
        }
    }
    (failures, original)
}

#[cfg(test)]
mod tests {
    use super::super::link::text;
    use super::*;

    #[test]
    fn j08_only_named_properties_and_prefixed_headers_go_with_a_message() {
        let original = BasicProperties::default()
            .with_message_id("17".into())
            .with_content_type("application/json".into())
            .with_expiration("1".into())
            .with_user_id("somebody".into())
            .with_cluster_id("c".into());
        let kept = named(&original);
        let expected =
            BasicProperties::default().with_message_id("17".into()).with_content_type("application/json".into());
        assert_eq!(kept, expected);

        let mut headers = FieldTable::default();
        let long = "n".repeat(250);
        for name in ["CC", "BCC", "tenant", FAILURES, ERROR, LONG, long.as_str()] {
            headers.insert(name.into(), text(name));
        }
        headers.insert("count".into(), AMQPValue::LongLongInt(3));
        let wrapped = wrap(&headers, FAILURES, AMQPValue::LongLongInt(2));
        assert!(!wrapped.contains_key("CC") && !wrapped.contains_key("BCC") && !wrapped.contains_key("tenant"));
        assert_eq!(unwrap(&wrapped), (2, headers.clone()));

        for number in 0..=MOST_PREFIXED {
            headers.insert(format!("h{number}").into(), text("v"));
        }
        let wrapped = wrap(&headers, ERROR, text("no route"));
        assert_eq!(wrapped.inner().keys().map(ShortString::as_str).collect::<Vec<_>>(), [ERROR, LONG]);
        assert_eq!(unwrap(&wrapped), (0, headers));
    }
}
