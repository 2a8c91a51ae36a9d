//! The tables, as Diesel's query language sees them. `backends/migrations/outbox` creates them.

diesel::table! {
    oncekey_outbox (id) {
        id -> BigInt,
        message_id -> Text,
        topic -> Text,
        payload -> Binary,
        headers -> Text,
    }
}

/// Texts are read as bytes, so that an unreadable row does not keep other rows from being read.
#[cfg(feature = "sqlite")]
pub(super) mod as_bytes {
    diesel::table! {
        oncekey_outbox (id) {
            id -> BigInt,
            message_id -> Binary,
            topic -> Binary,
            payload -> Binary,
            headers -> Binary,
        }
    }

    diesel::table! {
        oncekey_outbox_parked (id) {
            id -> BigInt,
            message_id -> Binary,
            topic -> Binary,
            reason -> Binary,
        }
    }
}
