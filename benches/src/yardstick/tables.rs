//! The tables of GoPotency's SQL storage, as Diesel's query language sees them.

diesel::table! {
    idempotency_records (key) {
        key -> Text,
        data -> Binary,
        expires_at -> BigInt,
    }
}

diesel::table! {
    idempotency_records_locks (key) {
        key -> Text,
        expires_at -> BigInt,
    }
}
