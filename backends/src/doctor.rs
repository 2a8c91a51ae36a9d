//! What a store's server is set to, where that is not what this library wants.

use tracing::warn;

pub use oncekey::backend::Finding;

/// Puts what was found at the opening into the log.
pub(crate) fn log(findings: &[Finding]) {
    for Finding { server, setting, found, wanted, why, .. } in findings {
        let server = server.as_deref();
        warn!(server, setting, found, wanted, why, "a setting of the store's server is not as it should be");
    }
}
