//! Which route a request goes to, as the router itself sees it.

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

/// The pattern of the route that the router sends the request to, with the patterns of the scopes around it.
///
/// `None` if the router's map knows no route for the path. **The router may know one nonetheless**: the map asks only the
/// first scope whose prefix matches, and the router goes on to the next one if a guard of that scope refuses.
/// [`Unrouted`] says when there is certainly none.
pub(super) fn of_request(request: &ServiceRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info()).or_else(|| request.match_pattern())
}

/// The same once the request is at its handler.
pub(super) fn of_routed(request: &HttpRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info()).or_else(|| request.match_pattern())
}

/// Says of a path whether the router certainly has no route for it.
#[derive(Default)]
pub(super) struct Unrouted {
    /// Everything that the router knows. `None` if it could not be read.
    router: OnceCell<Option<RouterMap>>,
    /// The router's map, and after all that is in it a resource that takes every path. The map never looks behind a scope
    /// whose prefix matches, so it finds that last resource only for a path that no scope and no resource can take.
    with_catch_all: OnceCell<ResourceMap>,
}

impl Unrouted {
    /// Whether no resource of any scope matches the path, nor what a `NormalizePath` would make of it. Where the router's
    /// map cannot be read, this is `false` for every path beneath a scope.
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
    // Not the path of the URI: the router matches the decoded one.
    let path = path.as_str();
    map.match_pattern(path).or_else(|| normalized(path).find_map(|path| map.match_pattern(&path)))
}

/// What a `NormalizePath` inside the guard may make of a path that no route matches as it is.
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

/// Whether the router found a route for the request. Only a request that has passed the router can be asked about.
pub(super) fn is_routed(request: &HttpRequest) -> bool {
    // A scope that matched leaves the rest of the path; a resource that matched leaves nothing. Where a resource matches
    // by its pattern but refuses the method, nothing of the path has been processed. The request knows the resource that
    // the router chose, also where the map would have asked another scope.
    let path = request.match_info();
    path.unprocessed().is_empty()
        && (request.match_pattern().is_some() || request.resource_map().match_pattern(path.as_str()).is_some())
}

/// Makes a definition. The router's crate leaks a part of each one and compiles a regular expression, so the guard makes
/// them when it is built, and once for each pattern of the router.
///
/// # Panics
/// If the router does not take the pattern.
fn define(pattern: &str, is_prefix: bool) -> ResourceDef {
    #[cfg(test)]
    tests::MADE.with(|made| made.set(made.get() + 1));
    if is_prefix { ResourceDef::root_prefix(pattern) } else { ResourceDef::new(pattern) }
}

/// A definition of the router's own, made anew from its patterns.
fn define_all(patterns: Vec<String>, is_prefix: bool) -> ResourceDef {
    #[cfg(test)]
    tests::MADE.with(|made| made.set(made.get() + 1));
    if is_prefix { ResourceDef::prefix(patterns) } else { ResourceDef::new(patterns) }
}

/// The definitions of the router's own patterns, made when a request first needs them. There are no more of them than
/// routes and scopes.
#[derive(Default)]
pub(super) struct Definitions {
    routes: RwLock<HashMap<String, Option<Arc<ResourceDef>>>>,
    scopes: RwLock<HashMap<String, Option<Arc<ResourceDef>>>>,
}

impl Definitions {
    /// The definition of a nameless pattern: of a scope, or of a route with its scopes. `None` if the two cannot be
    /// written as one pattern, as where they have too many segments together.
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

/// A pattern for which the user made rules.
#[derive(Clone, Debug)]
pub(super) struct RulePattern {
    written: String,
    /// The pattern without the names of its segments, which need not be those of the route.
    nameless: String,
    definition: ResourceDef,
}

impl RulePattern {
    /// # Panics
    /// If the router does not take the pattern.
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

    /// Whether two patterns name the same routes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.nameless == other.nameless
    }

    fn is_literal(&self) -> bool {
        !self.written.contains('{')
    }

    /// Whether the rules are for the route of this pattern. A guard inside a scope takes patterns that begin at that
    /// scope as well.
    pub(super) fn applies(&self, routed: &Routed<'_>) -> bool {
        self.is_pattern(routed) || self.is_path(routed)
    }

    fn is_pattern(&self, routed: &Routed<'_>) -> bool {
        if routed.nameless.as_deref() == Some(self.nameless.as_str()) {
            return true;
        }
        let scope = routed.nameless.as_deref().and_then(|routed| routed.strip_suffix(self.nameless.as_str()));
        let Some(scope) = scope else { return false };
        // On a resource itself nothing of the path is left, and the guard sees no other route.
        let is_of_the_mount = routed.rest.is_empty() || {
            let before = routed.path.len() - routed.rest.len();
            before > 0
                && routed.definitions.of(scope, true).is_some_and(|scope| scope.find_match(routed.path) == Some(before))
        };
        is_of_the_mount && !scope.is_empty()
    }

    /// For a literal path beneath a dynamic route (`/orders/vip` beneath `/orders/{id}`), for a resource with several
    /// patterns, of which the router names only the first, and for a route that the router's map does not find.
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

/// A request's route, as a guard at some place in the application sees it.
pub(super) struct Routed<'a> {
    /// The pattern of the route; `None` where the router's map finds none.
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

/// `/orders/{id:[0-9]+}` as `/orders/{:[0-9]+}`.
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

/// A nameless pattern with names that differ, as the router wants them.
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
        /// How many definitions this thread has made.
        pub(super) static MADE: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn h21_ten_thousand_requests_make_no_new_definition() {
        let rules = ["/orders/{id}", "/second/{id}", "/carts/{cart}", "/plain"].map(RulePattern::new);
        let definitions = Definitions::default();
        let made = |requests: usize| {
            let before = MADE.get();
            for n in 0..requests {
                // In a scope, by the second pattern of a resource, and where the map knows no route.
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
        // Two patterns that are fine, and not as one: no request brings the worker down.
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
