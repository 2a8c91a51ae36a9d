//! Detects settings that cannot work, and reports them at start.

use std::collections::BTreeSet;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use parking_lot::Mutex;

use super::RecordedResponse;
use super::fingerprint::{CanonicalJson, FingerprintStrategy};
use super::rules::{RouteRules, Rules};
use crate::panics::guard;

/// A setting of a guard that cannot work as written.
///
/// The guard logs each problem once, at `warn` level, when its server starts. A test can check for them:
///
/// ```
/// # use oncekey::{Engine, web::{Idempotency, Scope}};
/// # use oncekey_backends::MemoryBackend;
/// use actix_web::http::header;
///
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let guard = Idempotency::new(engine, Scope::shared()).keep_header(header::SET_COOKIE);
/// assert_eq!(guard.problems()[0].to_string(), "keep_header(set-cookie): a replay never carries this header");
/// # Ok::<(), oncekey::StartError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingProblem {
    /// The scope comes from a header whose value changes when a credential is refreshed.
    #[error(
        "Scope::header({0}): a refreshed credential is another scope, so a retry after the refresh runs again; take the \
         credential's subject, by Scope::from_request"
    )]
    RefreshedScope(HeaderName),
    /// A replay never carries this header.
    #[error("keep_header({0}): a replay never carries this header")]
    NeverKept(HeaderName),
    /// Two rules match the same route, so the second is never used.
    #[error("route({0}): an earlier rule is for the same route, so this one is never used")]
    RuleTwice(String),
    /// The rules name no method.
    #[error("{0}: no method is guarded")]
    NoMethods(String),
    /// The rules guard a method that has no effect, so guarding it is useless.
    #[error("{0}: {1} requests have no effect that a guard could protect")]
    SafeMethod(String, Method),
    /// The key is derived from the body, but the fingerprint strategy leaves the body unread.
    #[error("{0}: the key strategy needs the body, so the guard reads the body after all, up to the request limit")]
    BodyIsRead(String),
    /// The text is not a JSON pointer to a field.
    #[error("{0}: canonical_json: {1:?} is not a JSON pointer to a field, so it leaves nothing out")]
    BadPointer(String, String),
    /// A limit is zero.
    #[error("{0}: {1} is zero, so no request or response with a body passes it")]
    ZeroLimit(String, &'static str),
}

pub(super) fn problems(rules: &Rules) -> Vec<SettingProblem> {
    let mut found: Vec<_> =
        rules.scope.refreshed_header().cloned().map(SettingProblem::RefreshedScope).into_iter().collect();
    let never = |name: &&HeaderName| {
        let probe =
            RecordedResponse::new(StatusCode::OK, "").header((*name).clone(), HeaderValue::from_static("probe"));
        probe.headers().next().is_none()
    };
    found.extend(rules.kept_headers.iter().filter(never).cloned().map(SettingProblem::NeverKept));
    of_rules("all routes", &rules.everywhere, &mut found);
    for (n, (pattern, of_route)) in rules.routes.iter().enumerate() {
        if rules.routes.iter().take(n).any(|(earlier, _)| earlier.is_same(pattern)) {
            found.push(SettingProblem::RuleTwice(pattern.as_str().to_owned()));
        }
        of_rules(&format!("route({})", pattern.as_str()), of_route, &mut found);
    }
    let mut seen = BTreeSet::new();
    found.retain(|problem| seen.insert(problem.to_string()));
    found
}

fn of_rules(which: &str, rules: &RouteRules, found: &mut Vec<SettingProblem>) {
    let which = || which.to_owned();
    if rules.methods.is_empty() {
        found.push(SettingProblem::NoMethods(which()));
    }
    let safe = rules.methods.iter().filter(|method| method.is_safe());
    found.extend(safe.map(|method| SettingProblem::SafeMethod(which(), method.clone())));
    if !rules.fingerprint.needs_body() && rules.key.needs_body(false) {
        found.push(SettingProblem::BodyIsRead(which()));
    }
    if let FingerprintStrategy::CanonicalJson(CanonicalJson(without)) = &rules.fingerprint {
        let bad = without.iter().filter(|pointer| !pointer.is_valid());
        found.extend(bad.map(|pointer| SettingProblem::BadPointer(which(), pointer.as_str().to_owned())));
    }
    for (is_zero, name) in [
        (rules.request_limit == 0, "request_limit"),
        (rules.response_limit == 0, "response_limit"),
        (rules.request_timeout.is_zero(), "request_timeout"),
    ] {
        if is_zero {
            found.push(SettingProblem::ZeroLimit(which(), name));
        }
    }
}

/// Calls a user's closure. Returns `None` if it panics: a panic that reached the server would close the connection
/// without an answer.
pub(super) fn caught<T>(name: &'static str, closure: impl FnOnce() -> T) -> Option<T> {
    let returned = guard(closure).ok();
    if returned.is_none() {
        tracing::error!(target: "oncekey", "the guard's {name} panicked");
    }
    returned
}

/// Logs `text` at `warn` level, once per process, even if several workers report it.
pub(super) fn report_once(text: &str) {
    static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if REPORTED.lock().insert(text.to_owned()) {
        tracing::warn!(target: "oncekey", "{text}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use actix_web::HttpResponse;
    use actix_web::http::header;

    use super::super::pattern::RulePattern;
    use super::super::{Idempotency, KeyStrategy, Scope};
    use super::*;

    fn rules(scope: Scope) -> Rules {
        Rules::new(scope, Arc::new(|_| HttpResponse::Ok().finish()))
    }

    #[test]
    fn the_default_settings_can_work() {
        assert_eq!(problems(&rules(Scope::header("X-Api-Key"))), []);
        assert_eq!(problems(&rules(Scope::shared())), []);
    }

    #[test]
    fn each_setting_that_cannot_work_is_found() {
        let mut bad = rules(Scope::header("Authorization"));
        bad.kept_headers.push(header::SET_COOKIE);
        bad.everywhere = RouteRules::default().methods([Method::GET, Method::POST]);
        let route = |pattern: &str, rules: RouteRules| (RulePattern::new(pattern), rules);
        bad.routes = vec![
            route("/a/{id}", RouteRules::default().methods([])),
            route("/a/{other}", RouteRules::default().request_limit(0).response_limit(0)),
            route(
                "/b",
                RouteRules::default().key(KeyStrategy::BodyHash).fingerprint(FingerprintStrategy::ContentDigest),
            ),
            route(
                "/c",
                RouteRules::default()
                    .fingerprint(FingerprintStrategy::canonical_json(["/fine", "bad"]))
                    .request_timeout(Duration::ZERO),
            ),
        ];
        let found: Vec<_> = problems(&bad).iter().map(|problem| format!("{problem:?}")).collect();
        let expected = [
            "RefreshedScope",
            "NeverKept",
            "SafeMethod(\"all routes\", GET)",
            "NoMethods(\"route(/a/{id})\")",
            "RuleTwice(\"/a/{other}\")",
            "ZeroLimit(\"route(/a/{other})\", \"request_limit\")",
            "ZeroLimit(\"route(/a/{other})\", \"response_limit\")",
            "BodyIsRead(\"route(/b)\")",
            "BadPointer(\"route(/c)\", \"bad\")",
            "ZeroLimit(\"route(/c)\", \"request_timeout\")",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}, not {expected}");
        }
    }

    #[test]
    fn a_guard_is_built_once_and_sent_to_each_worker() {
        fn is_for_all_workers<T: Clone + Send + Sync + 'static>() {}
        is_for_all_workers::<Idempotency>();
    }
}
