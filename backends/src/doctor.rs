//! Reports settings of a store's server that differ from what this library wants.

use tracing::warn;

pub use oncekey::backend::Finding;

/// Logs the findings of `open`.
pub(crate) fn log(findings: &[Finding]) {
    for Finding { server, setting, found, wanted, why, .. } in findings {
        let server = server.as_deref();
        warn!(server, setting, found, wanted, why, "a setting of the store's server is not as it should be");
    }
}
