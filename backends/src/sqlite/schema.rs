//! The tables for Diesel's query language. `backends/migrations/sqlite` creates them.

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
        steps_life -> Nullable<BigInt>,
        steps_retention -> Nullable<BigInt>,
    }
}

diesel::table! {
    oncekey_steps (record_id, position) {
        record_id -> BigInt,
        position -> BigInt,
        life -> BigInt,
        name -> Text,
        fingerprint -> Nullable<Binary>,
        attempt -> BigInt,
        run_token -> BigInt,
        run_number -> BigInt,
        began_at -> BigInt,
        reruns_until -> Nullable<BigInt>,
        progress -> BigInt,
        outcome -> Nullable<Binary>,
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
