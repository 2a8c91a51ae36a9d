//! Finds the route of a request as the router itself would.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::iter;
use std::panic::catch_unwind;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::dev::{Path, ResourceDef, ResourceMap, ServiceRequest, Url};
use parking_lot::RwLock;

use super::router_map::RouterMap;

/// Returns the pattern of the route to which the router sends the request, including the patterns of the enclosing
/// scopes.
///
/// Returns `None` if the router's map has no route for the path. **The router may still have one**: the map looks only
/// into the first scope whose prefix matches, but the router continues with the next scope if a guard of the first
/// refuses. [`Unrouted`] tells when there is certainly no route.
pub(super) fn of_request(request: &ServiceRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info()).or_else(|| request.match_pattern())
}

/// Like [`of_request`], once the request has reached its handler.
pub(super) fn of_routed(request: &HttpRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info()).or_else(|| request.match_pattern())
}

/// Tells whether the router certainly has no route for a path.
#[derive(Default)]
pub(super) struct Unrouted {
    /// All scopes and resources of the router. `None` if its map could not be read.
    router: OnceCell<Option<RouterMap>>,
    /// The router's map plus a final resource that matches every path. The map never looks past a scope whose prefix
    /// matches, so it finds that resource only for a path that no scope and no other resource can match.
    with_catch_all: OnceCell<ResourceMap>,
}

impl Unrouted {
    /// Returns whether no resource of any scope matches the path, even after a `NormalizePath`. If the router's map
    /// cannot be read, this is `false` for every path inside a scope.
    pub(super) fn is_certain(&self, request: &ServiceRequest) -> bool {
        if of_request(request).is_some() {
            return false;
        }
        let path = request.match_info().as_str();
        let mut paths = iter::once(path.to_owned()).chain(normalized(path));
        if let Some(router) = self.router.get_or_init(|| RouterMap::read(request.resource_map(), define_all)) {
            return paths.all(|path| !router.may_route(&path));
        }
        let map = self.with_catch_all.get_or_init(|| {
            let mut map = request.resource_map().clone();
            map.add(&mut define("/{any}*", false), None);
            map
        });
        paths.all(|path| map.has_resource(&path))
    }
}

fn of_path(map: &ResourceMap, path: &Path<Url>) -> Option<String> {
    // The router matches the decoded path, not the path of the URI.
    let path = path.as_str();
    map.match_pattern(path).or_else(|| normalized(path).find_map(|path| map.match_pattern(&path)))
}

/// Returns the forms into which a `NormalizePath` inside the guard may change a path that no route matches.
fn normalized(path: &str) -> impl Iterator<Item = String> {
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    let trimmed = merged.trim_end_matches('/').to_owned();
    let slashed = format!("{trimmed}/");
    [merged, trimmed, slashed].into_iter().filter(|path| !path.is_empty())
}

/// Returns whether the router found a route for the request, which must have passed the router.
pub(super) fn is_routed(request: &HttpRequest) -> bool {
    // A matching scope leaves the rest of the path unprocessed, and a matching resource leaves nothing. If a resource
    // matches the path but refuses the method, the whole path is unprocessed. The request knows which resource the
    // router chose, even where the map would have chosen another scope.
    let path = request.match_info();
    path.unprocessed().is_empty()
        && (request.match_pattern().is_some() || request.resource_map().match_pattern(path.as_str()).is_some())
}

/// Creates a definition. Each one compiles a regular expression, and the router's crate leaks a part of it. So the
/// guard creates them when it is built, and one for each pattern of the router.
///
/// # Panics
/// If the router rejects the pattern.
fn define(pattern: &str, is_prefix: bool) -> ResourceDef {
    #[cfg(test)]
    tests::MADE.with(|made| made.set(made.get() + 1));
    if is_prefix { ResourceDef::root_prefix(pattern) } else { ResourceDef::new(pattern) }
}

/// Recreates one of the router's own definitions from its patterns.
fn define_all(patterns: Vec<String>, is_prefix: bool) -> ResourceDef {
    #[cfg(test)]
    tests::MADE.with(|made| made.set(made.get() + 1));
    if is_prefix { ResourceDef::prefix(patterns) } else { ResourceDef::new(patterns) }
}

/// The definitions of the router's own patterns, created when a request first needs them. Their number is bounded by
/// the number of routes and scopes.
#[derive(Default)]
pub(super) struct Definitions {
    routes: RwLock<HashMap<String, Option<Arc<ResourceDef>>>>,
    scopes: RwLock<HashMap<String, Option<Arc<ResourceDef>>>>,
}

impl Definitions {
    /// Returns the definition of a nameless pattern, of a scope or of a route with its scopes. Returns `None` if the
    /// two cannot form one pattern, for example because they have too many segments together.
    fn of(&self, nameless: &str, is_scope: bool) -> Option<Arc<ResourceDef>> {
        let known = if is_scope { &self.scopes } else { &self.routes };
        if let Some(found) = known.read().get(nameless) {
            return found.clone();
        }
        let named = with_names(nameless);
        let made = catch_unwind(|| Arc::new(define(&named, is_scope))).ok();
        known.write().entry(nameless.to_owned()).or_insert(made).clone()
    }
}

/// A pattern for which the user has set rules.
#[derive(Clone, Debug)]
pub(super) struct RulePattern {
    written: String,
    /// The pattern without the names of its segments, which may differ from the route's.
    nameless: String,
    definition: ResourceDef,
}

impl RulePattern {
    /// # Panics
    /// If the router rejects the pattern.
    pub(super) fn new(written: &str) -> Self {
        let written =
            if written.is_empty() || written.starts_with('/') { written.to_owned() } else { format!("/{written}") };
        let nameless = nameless(&written).into_owned();
        let definition = define(&written, false);
        Self { written, nameless, definition }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.written
    }

    /// Returns whether two patterns name the same routes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.nameless == other.nameless
    }

    fn is_literal(&self) -> bool {
        !self.written.contains('{')
    }

    /// Returns whether the rules apply to the request's route. For a guard inside a scope, the pattern may also begin
    /// at that scope.
    pub(super) fn applies(&self, routed: &Routed<'_>) -> bool {
        self.is_pattern(routed) || self.is_path(routed)
    }

    fn is_pattern(&self, routed: &Routed<'_>) -> bool {
        if routed.nameless.as_deref() == Some(self.nameless.as_str()) {
            return true;
        }
        let scope = routed.nameless.as_deref().and_then(|routed| routed.strip_suffix(self.nameless.as_str()));
        let Some(scope) = scope else { return false };
        // A guard on a resource leaves nothing of the path and sees no other route.
        let is_of_the_mount = routed.rest.is_empty() || {
            let before = routed.path.len() - routed.rest.len();
            before > 0
                && routed.definitions.of(scope, true).is_some_and(|scope| scope.find_match(routed.path) == Some(before))
        };
        is_of_the_mount && !scope.is_empty()
    }

    /// Matches by path. This covers a literal path under a dynamic route (`/orders/vip` under `/orders/{id}`), a
    /// resource with several patterns, of which the router reports only the first, and a route that the router's map
    /// does not find.
    fn is_path(&self, routed: &Routed<'_>) -> bool {
        let is_own = |path: &str| match self.is_literal() {
            true => path == self.written,
            false => self.definition.is_match(path),
        };
        let is_own_or_in_scope = is_own(routed.path) || (routed.is_in_scope() && is_own(routed.rest));
        let Some(nameless) = &routed.nameless else {
            let mut paths = normalized(routed.path);
            return is_own_or_in_scope
                || paths.any(|path| is_own(&path))
                || (routed.is_in_scope() && normalized(routed.rest).any(|rest| is_own(&rest)));
        };
        is_own_or_in_scope
            && (self.is_literal()
                || !routed.definitions.of(nameless, false).is_some_and(|route| route.is_match(routed.path)))
    }
}

/// A request's route, as seen by a guard at its place in the application.
pub(super) struct Routed<'a> {
    /// The pattern of the route. `None` if the router's map finds none.
    nameless: Option<Cow<'a, str>>,
    path: &'a str,
    /// The part of the path that the scopes around the guard have not matched.
    rest: &'a str,
    definitions: &'a Definitions,
}

impl<'a> Routed<'a> {
    pub(super) fn new(pattern: Option<&'a str>, path: &'a Path<Url>, definitions: &'a Definitions) -> Self {
        Self { nameless: pattern.map(nameless), path: path.as_str(), rest: path.unprocessed(), definitions }
    }

    fn is_in_scope(&self) -> bool {
        !self.rest.is_empty() && self.rest.len() < self.path.len()
    }
}

/// Removes the names of segments: `/orders/{id:[0-9]+}` becomes `/orders/{:[0-9]+}`.
fn nameless(pattern: &str) -> Cow<'_, str> {
    if !pattern.contains('{') {
        return Cow::Borrowed(pattern);
    }
    let mut nameless = String::with_capacity(pattern.len());
    let (mut depth, mut is_name) = (0_u32, false);
    for character in pattern.chars() {
        match character {
            '{' => {
                is_name = depth == 0;
                depth += 1;
                nameless.push('{');
            }
            '}' => {
                depth = depth.saturating_sub(1);
                is_name = false;
                nameless.push('}');
            }
            ':' if is_name => {
                is_name = false;
                nameless.push(':');
            }
            _ if is_name => {}
            other => nameless.push(other),
        }
    }
    Cow::Owned(nameless)
}

/// Gives each segment of a nameless pattern a distinct name, as the router requires.
fn with_names(nameless: &str) -> String {
    let mut named = String::with_capacity(nameless.len() + 8);
    let (mut depth, mut count) = (0_u32, 0_u32);
    for character in nameless.chars() {
        named.push(character);
        match character {
            '{' => {
                if depth == 0 {
                    named.push_str(&format!("n{count}"));
                    count += 1;
                }
                depth += 1;
            }
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use actix_web::http::Uri;

    use super::*;

    thread_local! {
        /// The number of definitions that this thread has created.
        pub(super) static MADE: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn h21_ten_thousand_requests_make_no_new_definition() {
        let rules = ["/orders/{id}", "/second/{id}", "/carts/{cart}", "/plain"].map(RulePattern::new);
        let definitions = Definitions::default();
        let made = |requests: usize| {
            let before = MADE.get();
            for n in 0..requests {
                // These cases cover a scope, the second pattern of a resource, and a route that the map does not know.
                for (pattern, path, scope) in [
                    (Some("/in/{id}/carts/{id}"), format!("/in/{n}/carts/7"), 4 + n.to_string().len()),
                    (Some("/first/{id}"), format!("/second/{n}"), 0),
                    (None, format!("/orders/{n}"), 0),
                    (Some("/{a}/{tail:.*}"), format!("/other/{n}/x"), 0),
                ] {
                    let mut path = Path::new(Url::new(path.parse::<Uri>().unwrap()));
                    path.skip(scope as u16);
                    let routed = Routed::new(pattern, &path, &definitions);
                    let applies = rules.iter().position(|rule| rule.applies(&routed));
                    let expected = match pattern {
                        Some("/in/{id}/carts/{id}") => Some(2),
                        Some("/first/{id}") => Some(1),
                        None => Some(0),
                        Some(_) => None,
                    };
                    assert_eq!(applies, expected, "{pattern:?}");
                }
            }
            MADE.get() - before
        };
        let at_first = made(1);
        assert!((1..10).contains(&at_first), "{at_first}");
        assert_eq!(made(10_000), 0);
    }

    #[test]
    fn h21_a_malformed_pattern_is_reported_when_its_rule_is_made() {
        let too_many: String = (0..17).map(|n| format!("/{{s{n}}}")).collect();
        for malformed in ["/orders/{id", "/a/{}", "/{id}/{id}", "/{id:[}", too_many.as_str()] {
            assert!(catch_unwind(|| RulePattern::new(malformed)).is_err(), "{malformed}");
        }
        // Each pattern is valid alone, but not both together. No request may bring the worker down.
        assert!(Definitions::default().of(&nameless(&too_many), false).is_none());
    }

    #[test]
    fn h21_names_of_segments_do_not_count() {
        assert_eq!(nameless("/a/{id}/b/{n:[0-9]{2}}/{tail:.*}"), "/a/{}/b/{:[0-9]{2}}/{:.*}");
        assert_eq!(with_names("/a/{}/b/{:[0-9]{2}}"), "/a/{n0}/b/{n1:[0-9]{2}}");
        assert!(RulePattern::new("orders/{id}").is_same(&RulePattern::new("/orders/{order}")));
        assert!(!RulePattern::new("/orders/{id:[0-9]+}").is_same(&RulePattern::new("/orders/{order}")));
    }

    #[test]
    fn h21_paths_are_tried_as_a_normalizer_would_leave_them() {
        assert_eq!(normalized("//a//b/").collect::<Vec<_>>(), ["/a/b/", "/a/b", "/a/b/"]);
        assert_eq!(normalized("/").collect::<Vec<_>>(), ["/", "/"]);
    }
}
