//! Settings of a store's server that differ from what the engine wants.

use std::fmt;

/// A setting that is not as it should be. The store works with it, but writes may be lost, late or refused.
///
/// A setting that would make operations run twice is never a finding: the backend sets it on its own connections, or
/// refuses to open.
///
/// ```
/// use oncekey::backend::Finding;
///
/// let finding = Finding::new("fsync", "off", "on", "a crash of the machine takes back what was answered");
/// assert_eq!(finding.to_string(), "fsync is off, and should be on: a crash of the machine takes back what was answered");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The server, if the store has several.
    pub server: Option<String>,
    /// The setting's name, as the server calls it.
    pub setting: String,
    /// The value that the server has.
    pub found: String,
    /// The value that the engine wants.
    pub wanted: String,
    /// What may happen with the current value.
    pub why: String,
}

impl Finding {
    /// Returns a finding on a store's only server.
    pub fn new(
        setting: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let (setting, found, wanted, why) = (setting.into(), found.into(), wanted.into(), why.into());
        Self { server: None, setting, found, wanted, why }
    }

    /// Returns the same finding, on one of several servers.
    ///
    /// ```
    /// use oncekey::backend::Finding;
    ///
    /// let finding = Finding::new("appendonly", "no", "yes", "a killed server forgets outcomes").at("10.0.0.7:6379");
    /// assert!(finding.to_string().starts_with("10.0.0.7:6379: appendonly is no"));
    /// ```
    #[must_use]
    pub fn at(mut self, server: impl Into<String>) -> Self {
        self.server = Some(server.into());
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
