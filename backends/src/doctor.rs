//! What a store's server is set to, where that is not what this library wants.

use std::fmt;

use tracing::warn;

/// A setting that is not as it should be. The store works with it, and something may be lost, late or refused.
///
/// A setting by which operations would run twice without anybody's doing is no finding: the store sets it on its own
/// connections, or refuses to open.
///
/// ```
/// use oncekey_backends::Finding;
///
/// let finding = Finding::new("fsync", "off", "on", "a crash of the machine takes back what was answered");
/// assert_eq!(finding.to_string(), "fsync is off, and should be on: a crash of the machine takes back what was answered");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The server, where the store has several.
    pub server: Option<String>,
    /// The setting's name, as the server calls it.
    pub setting: String,
    /// The value that was found.
    pub found: String,
    /// The value that is wanted.
    pub wanted: String,
    /// What may happen as it is.
    pub why: String,
}

impl Finding {
    /// A finding on the one server that there is.
    pub fn new(
        setting: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let (setting, found, wanted, why) = (setting.into(), found.into(), wanted.into(), why.into());
        Self { server: None, setting, found, wanted, why }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn at(mut self, server: String) -> Self {
        self.server = Some(server);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(server) = &self.server {
            write!(f, "{server}: ")?;
        }
        write!(f, "{} is {}, and should be {}: {}", self.setting, self.found, self.wanted, self.why)
    }
}

/// Puts what was found at the opening into the log.
pub(crate) fn log(findings: &[Finding]) {
    for Finding { server, setting, found, wanted, why } in findings {
        let server = server.as_deref();
        warn!(server, setting, found, wanted, why, "a setting of the store's server is not as it should be");
    }
}
