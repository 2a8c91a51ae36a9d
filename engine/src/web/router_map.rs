//! The router's map as a tree that can be searched completely.
//!
//! [`ResourceMap`] stops at the first scope whose prefix matches. The router continues with the next scope if a guard
//! of the first refuses. So a path that the map does not know may still have a route. The map does not expose its
//! nodes, but its `Debug` form shows them. If that form is not the expected one, there is no tree, and the caller must
//! assume that a route exists.

use actix_web::dev::{ResourceDef, ResourceMap};

/// All scopes and resources of an application.
pub(super) struct RouterMap(Vec<Node>);

struct Node {
    definition: ResourceDef,
    /// The children of a scope. `None` for a resource.
    children: Option<Vec<Node>>,
}

impl RouterMap {
    pub(super) fn read(map: &ResourceMap, define: fn(Vec<String>, bool) -> ResourceDef) -> Option<Self> {
        let text = format!("{map:?}");
        let mut reader = Reader { rest: &text, define };
        let root = reader.node()?;
        if reader.rest.is_empty() { root.children.map(Self) } else { None }
    }

    /// Returns whether some resource matches the path, in any scope whose prefix matches. Ignores route guards.
    pub(super) fn may_route(&self, path: &str) -> bool {
        may_route(&self.0, path)
    }
}

fn may_route(nodes: &[Node], path: &str) -> bool {
    nodes.iter().any(|Node { definition, children }| match children {
        None => definition.is_match(path),
        Some(children) => definition
            .find_match(path)
            .is_some_and(|matched| path.get(matched..).is_none_or(|rest| may_route(children, rest))),
    })
}

/// Parses the `Debug` form.
struct Reader<'a> {
    rest: &'a str,
    define: fn(Vec<String>, bool) -> ResourceDef,
}

impl Reader<'_> {
    fn node(&mut self) -> Option<Node> {
        self.take("ResourceMap { pattern: ResourceDef { ")?;
        self.skip_to("patterns: ")?;
        self.take("patterns: ")?;
        let patterns = self.patterns()?;
        self.take(", is_prefix: ")?;
        let is_prefix = if self.take("true").is_some() { true } else { self.take("false").map(|()| false)? };
        self.skip_to(" }, named: ")?;
        self.take(" }")?;
        self.skip_to(", nodes: ")?;
        self.take(", nodes: ")?;
        let children = match self.take("None") {
            Some(()) => None,
            None => {
                self.take("Some(")?;
                let children = self.list(Self::node)?;
                self.take(")")?;
                Some(children)
            }
        };
        self.take(" }")?;
        Some(Node { definition: (self.define)(patterns, is_prefix), children })
    }

    fn list<T>(&mut self, item: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.take("[")?;
        let mut items = Vec::new();
        while self.take("]").is_none() {
            if !items.is_empty() {
                self.take(", ")?;
            }
            items.push(item(self)?);
        }
        Some(items)
    }

    fn patterns(&mut self) -> Option<Vec<String>> {
        if self.take("Single(").is_some() {
            let pattern = self.string()?;
            self.take(")")?;
            return Some(vec![pattern]);
        }
        self.take("List(")?;
        let patterns = self.list(Self::string)?;
        self.take(")")?;
        Some(patterns)
    }

    fn take(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    /// Skips to `text`, ignoring matches inside strings and brackets that are opened on the way.
    fn skip_to(&mut self, text: &str) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            if depth == 0 && self.rest.starts_with(text) {
                return Some(());
            }
            match self.rest.chars().next()? {
                '"' => {
                    self.string()?;
                    continue;
                }
                '{' | '[' | '(' => depth += 1,
                '}' | ']' | ')' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            let width = self.rest.chars().next()?.len_utf8();
            self.rest = &self.rest[width..];
        }
    }

    /// Reads a string in its `Debug` form.
    fn string(&mut self) -> Option<String> {
        self.take("\"")?;
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        loop {
            let (at, character) = characters.next()?;
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                '\\' => match characters.next()?.1 {
                    'u' => {
                        let digits: String = characters
                            .by_ref()
                            .skip(1)
                            .map(|(_, digit)| digit)
                            .take_while(|digit| *digit != '}')
                            .collect();
                        text.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                    }
                    'n' => text.push('\n'),
                    'r' => text.push('\r'),
                    't' => text.push('\t'),
                    '0' => text.push('\0'),
                    same @ ('"' | '\'' | '\\') => text.push(same),
                    _ => return None,
                },
                _ => text.push(character),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn define(patterns: Vec<String>, is_prefix: bool) -> ResourceDef {
        if is_prefix { ResourceDef::prefix(patterns) } else { ResourceDef::new(patterns) }
    }

    fn scope(map: &mut ResourceMap, prefix: &str, resources: &[&str]) {
        let mut nested = ResourceMap::new(ResourceDef::root_prefix(prefix));
        for resource in resources {
            nested.add(&mut ResourceDef::new(*resource), None);
        }
        map.add(&mut ResourceDef::root_prefix(prefix), Some(Rc::new(nested)));
    }

    fn application() -> ResourceMap {
        let mut map = ResourceMap::new(ResourceDef::prefix(""));
        scope(&mut map, "/api", &["/old"]);
        scope(&mut map, "/api", &["/pay", "/orders/{id:[0-9]+}", "/files/{tail}*"]);
        scope(&mut map, "/t/{tenant}", &["", "/\"quoted\\\u{e9}\""]);
        let mut named = ResourceDef::new(vec!["/one", "/other/{name}"]);
        named.set_name("named");
        map.add(&mut named, None);
        map
    }

    #[test]
    fn h21_every_scope_of_a_prefix_is_searched() {
        let map = RouterMap::read(&application(), define).unwrap();
        let known = [
            "/api/old",
            "/api/pay",
            "/api/orders/17",
            "/api/files/a/b",
            "/t/ada",
            "/t/ada/\"quoted\\\u{e9}\"",
            "/one",
            "/other/x",
        ];
        for path in known {
            assert!(map.may_route(path), "{path}");
        }
        for path in ["/", "/api", "/api/nowhere", "/api/orders/x", "/apipay", "/t", "/t/ada/x", "/one/x", "/other"] {
            assert!(!map.may_route(path), "{path}");
        }
    }

    #[test]
    fn h05_another_debug_form_gives_no_tree() {
        let text = format!("{:?}", application());
        let read = |text: &str| {
            let mut reader = Reader { rest: text, define };
            reader.node().is_some() && reader.rest.is_empty()
        };
        assert!(read(&text));
        for (from, to) in [("is_prefix", "prefix"), ("nodes: Some(", "nodes: Many("), ("Single", "One"), (" }", "}")] {
            assert!(!read(&text.replacen(from, to, 1)), "{from}");
        }
        assert!(!read(&text[..text.len() - 1]));
    }
}
