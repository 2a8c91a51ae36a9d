//! Which route a request goes to, as the router itself sees it.

use std::borrow::Cow;

use actix_web::HttpRequest;
use actix_web::dev::{Path, ResourceDef, ResourceMap, ServiceRequest, Url};

/// The pattern of the route that the router sends the request to, with the patterns of the scopes around it. `None` if
/// no route matches.
pub(super) fn of_request(request: &ServiceRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info()).or_else(|| request.match_pattern())
}

/// The same once the request is at its handler.
pub(super) fn of_routed(request: &HttpRequest) -> Option<String> {
    of_path(request.resource_map(), request.match_info())
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
    let path = request.match_info();
    // A scope that matched leaves the rest of the path; a resource that matched leaves nothing. Where a resource matches
    // by its pattern but refuses the method, nothing of the path has been processed.
    path.unprocessed().is_empty() && request.resource_map().match_pattern(path.as_str()).is_some()
}

/// A pattern for which the user made rules.
#[derive(Clone, Debug)]
pub(super) struct RulePattern {
    written: String,
    /// The pattern without the names of its segments, which need not be those of the route.
    nameless: String,
}

impl RulePattern {
    pub(super) fn new(written: &str) -> Self {
        let written =
            if written.is_empty() || written.starts_with('/') { written.to_owned() } else { format!("/{written}") };
        let nameless = nameless(&written).into_owned();
        Self { written, nameless }
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
        if *routed.nameless == self.nameless {
            return true;
        }
        let Some(scope) = routed.nameless.strip_suffix(self.nameless.as_str()) else { return false };
        // On a resource itself nothing of the path is left, and the guard sees no other route.
        let is_of_the_mount = routed.rest.is_empty() || {
            let before = routed.path.len() - routed.rest.len();
            before > 0 && ResourceDef::root_prefix(&with_names(scope)).find_match(routed.path) == Some(before)
        };
        is_of_the_mount && !scope.is_empty()
    }

    /// For a literal path beneath a dynamic route (`/orders/vip` beneath `/orders/{id}`), and for a resource with several
    /// patterns, of which the router names only the first.
    fn is_path(&self, routed: &Routed<'_>) -> bool {
        if self.is_literal() {
            return routed.path == self.written || (routed.is_in_scope() && routed.rest == self.written);
        }
        let own = ResourceDef::new(self.written.as_str());
        !ResourceDef::new(routed.pattern).is_match(routed.path)
            && (own.is_match(routed.path) || (routed.is_in_scope() && own.is_match(routed.rest)))
    }
}

/// A request's route, as a guard at some place in the application sees it.
pub(super) struct Routed<'a> {
    pattern: &'a str,
    nameless: Cow<'a, str>,
    path: &'a str,
    /// The part of the path that the scopes around the guard have not matched.
    rest: &'a str,
}

impl<'a> Routed<'a> {
    pub(super) fn new(pattern: &'a str, path: &'a Path<Url>) -> Self {
        Self { pattern, nameless: nameless(pattern), path: path.as_str(), rest: path.unprocessed() }
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
    use super::*;

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
