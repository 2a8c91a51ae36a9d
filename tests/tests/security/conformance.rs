//! The conformance suite with hashed keys and encrypted outcomes. Every promise holds as before.

use oncekey::conformance::{Capabilities, Store, on_an_arbiter};

use super::stores::{both, fresh_table, mariadb, postgres};

/// Runs all checks except those that read names as the store knows them, and three more. Seven checks of steps read the
/// names that a store returns, which are digests here; `secrets` has an engine with these settings. A draining engine
/// compares fingerprints, which a backend that is protected outside the engine shows hashed (`secrets` covers this with
/// an engine that has these settings). One check writes damaged outcomes through the backend, which refuses them before
/// they are stored (`tampered` covers damage *in* the store). A list has the keys as the store knows them (see
/// `secrets`).
macro_rules! check {
    ($open:expr; e13_a_corrupt_outcome_is_an_error) => {};
    ($open:expr; e14_list_pages_through_the_records) => {};
    ($open:expr; e16_a_draining_engine_answers_what_it_can) => {};
    ($open:expr; e26_a_released_parent_keeps_its_steps) => {};
    ($open:expr; e26_a_retry_continues_where_the_last_try_ended) => {};
    ($open:expr; e26_a_step_begins_and_completes_once) => {};
    ($open:expr; e26_a_takeover_brings_the_steps) => {};
    ($open:expr; e26_an_unsettled_step_makes_its_parent_indeterminate) => {};
    ($open:expr; e26_the_reconciler_is_asked_per_step) => {};
    ($open:expr; e26_what_is_not_known_of_a_step_outranks_the_result) => {};
    ($open:expr; $check:ident) => {
        #[test]
        fn $check() {
            let store = Store::new($open, Capabilities::all());
            on_an_arbiter(async move { oncekey::conformance::$check(&store).await });
        }
    };
}

macro_rules! checks {
    ($open:expr; $($check:ident)*) => {
        $(check!($open; $check);)*
    };
}

mod sqlite {
    use super::*;

    fn path() -> std::path::PathBuf {
        tempfile::tempdir().unwrap().keep().join("keys.db")
    }

    oncekey::__for_each_conformance_check!(checks, {
        let path = path();
        move || {
            let path = path.clone();
            async move { both().protect(oncekey_backends::SqliteBackend::open(&path).unwrap()) }
        }
    };);
}

mod postgres_server {
    use super::*;

    oncekey::__for_each_conformance_check!(checks, {
        let table = fresh_table();
        move || {
            let table = table.clone();
            async move { both().protect(postgres(&table).await) }
        }
    };);
}

mod mariadb_server {
    use super::*;

    oncekey::__for_each_conformance_check!(checks, {
        let table = fresh_table();
        move || {
            let table = table.clone();
            async move { both().protect(mariadb(&table).await) }
        }
    };);
}
