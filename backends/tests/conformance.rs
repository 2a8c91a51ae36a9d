//! The public conformance suite, on every backend of this crate.

use oncekey::conformance::Capabilities;

#[cfg(feature = "memory")]
oncekey::conformance_tests!(memory, Capabilities::without_transactions(), {
    let store = oncekey_backends::MemoryBackend::new();
    move || std::future::ready(store.clone())
});

#[cfg(feature = "sqlite")]
oncekey::conformance_tests!(sqlite, Capabilities::all(), {
    // The folder outlives the check: its threads may still hold the file when the test ends.
    let path = tempfile::tempdir().unwrap().keep().join("keys.db");
    move || {
        let path = path.clone();
        async move { oncekey_backends::SqliteBackend::open(&path).unwrap() }
    }
});
