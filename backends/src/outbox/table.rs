//! The table, as Diesel's query language sees it. `backends/migrations/outbox` creates it.

diesel::table! {
    oncekey_outbox (id) {
        id -> BigInt,
        message_id -> Text,
        topic -> Text,
        payload -> Binary,
        headers -> Text,
    }
}
