//! The tables, as Diesel's query language sees them. `backends/migrations/sqlite` creates them.

diesel::table! {
    oncekey_records (id) {
        id -> BigInt,
        key -> Text,
        fingerprint -> Binary,
        attempt -> BigInt,
        owner -> Binary,
        state -> BigInt,
        lease_until -> Nullable<BigInt>,
        on_abandoned -> Nullable<BigInt>,
        outcome -> Nullable<Binary>,
        purge_at -> Nullable<BigInt>,
        fencing_token -> BigInt,
        barrier_owner -> Nullable<Binary>,
        barrier_until -> Nullable<BigInt>,
    }
}

diesel::table! {
    oncekey_clock (id) {
        id -> BigInt,
        boot_id -> Text,
        offset_ms -> BigInt,
        latest_ms -> BigInt,
    }
}

diesel::table! {
    oncekey_migrations (version) {
        version -> Text,
    }
}
