//! The pages, which are templates from `pages/`. The templates escape every value.

use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use super::access::Operator;
use crate::{Error, Key};

/// The values that a page's frame needs.
#[derive(Debug)]
pub(super) struct Page {
    /// The path from this page to the others. Empty if they are in the same directory.
    pub(super) root: String,
    pub(super) operator: String,
    pub(super) settles: bool,
    /// The part of the console that the page belongs to.
    pub(super) at: &'static str,
}

impl Page {
    /// Creates a page in the same directory as the others.
    pub(super) fn new(at: &'static str, operator: &Operator) -> Self {
        Self { root: String::new(), operator: operator.name.clone(), settles: operator.settles, at }
    }

    /// Creates the page at the console's own path, which may or may not end with a slash.
    pub(super) fn at_root(request: &HttpRequest, operator: &Operator) -> Self {
        let path = request.path().trim_matches('/');
        // One slash only: a path that begins with two would name a host.
        let root = if path.is_empty() { "/".to_owned() } else { format!("/{path}/") };
        Self { root, ..Self::new("overview", operator) }
    }

    fn home(&self) -> &str {
        if self.root.is_empty() { "./" } else { &self.root }
    }
}

pub(super) fn show(status: StatusCode, page: &impl Template) -> HttpResponse {
    match page.render() {
        Ok(text) => HttpResponse::build(status).content_type(ContentType::html()).body(text),
        Err(error) => {
            tracing::error!(%error, "a page of the console can't be written");
            HttpResponse::InternalServerError().finish()
        }
    }
}

#[derive(Template)]
#[template(path = "plain.html")]
struct Plain<'a> {
    title: &'a str,
    text: &'a str,
}

/// Shows a page without a frame, which links to no other page.
pub(super) fn plain(status: StatusCode, title: &str, text: &str) -> HttpResponse {
    show(status, &Plain { title, text })
}

#[derive(Template)]
#[template(path = "message.html")]
struct Message<'a> {
    page: Page,
    title: &'a str,
    text: &'a str,
}

pub(super) fn message(status: StatusCode, page: Page, title: &str, text: &str) -> HttpResponse {
    show(status, &Message { page, title, text })
}

/// Shows that the store did not provide what a page needs.
pub(super) fn failed(page: Page, error: &Error) -> HttpResponse {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    message(status, page, "The store does not answer", &format!("{error}. Nothing was changed. Try again."))
}

#[derive(Template)]
#[template(path = "overview.html")]
pub(super) struct Overview {
    pub(super) page: Page,
    pub(super) figures: super::overview::Figures,
    pub(super) findings: Vec<crate::backend::Finding>,
}

#[derive(Debug)]
pub(super) struct Row {
    /// Links and forms use its stored form.
    pub(super) key: Key,
    pub(super) attempt: u64,
    pub(super) since: String,
    pub(super) steps: String,
    pub(super) stuck: String,
}

#[derive(Template)]
#[template(path = "stuck.html")]
pub(super) struct Stuck {
    pub(super) page: Page,
    pub(super) scope: String,
    pub(super) rows: Vec<Row>,
    pub(super) is_later: bool,
    pub(super) more: String,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) attempt: String,
    pub(super) token: u64,
    pub(super) state: String,
    pub(super) is_ready: bool,
}

#[derive(Template)]
#[template(path = "confirm.html")]
pub(super) struct Confirm {
    pub(super) page: Page,
    pub(super) act: &'static str,
    /// How many items are ready to be settled.
    pub(super) ready: String,
    pub(super) items: Vec<Item>,
    pub(super) entered: super::outcome::Entered,
    pub(super) problem: String,
}

#[derive(Debug)]
pub(super) struct SettledKey {
    pub(super) key: Key,
    pub(super) result: String,
    pub(super) is_done: bool,
}

#[derive(Template)]
#[template(path = "settled.html")]
pub(super) struct Settled {
    pub(super) page: Page,
    pub(super) settled: usize,
    pub(super) items: Vec<SettledKey>,
}

#[derive(Debug)]
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) exact: String,
}

impl Fact {
    pub(super) fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into(), exact: String::new() }
    }

    pub(super) fn exactly(self, exact: String) -> Self {
        Self { exact, ..self }
    }
}

/// A stage of a key's life cycle.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) is_now: bool,
}

#[derive(Debug)]
pub(super) struct StepRow {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) attempt: u64,
    pub(super) began: String,
    pub(super) is_stuck: bool,
    pub(super) can_settle: bool,
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) kind: &'static str,
    pub(super) facts: Vec<Fact>,
    pub(super) body: String,
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) state: &'static str,
    pub(super) stages: Vec<Stage>,
    pub(super) facts: Vec<Fact>,
    pub(super) is_stuck: bool,
    pub(super) steps: Vec<StepRow>,
    /// Set only for operators who may see it.
    pub(super) outcome: Option<Outcome>,
}

#[derive(Template)]
#[template(path = "key.html")]
pub(super) struct OneKey {
    pub(super) page: Page,
    pub(super) scope: String,
    pub(super) key: String,
    pub(super) message: String,
    pub(super) found: Option<Found>,
}

#[derive(Template)]
#[template(path = "step.html")]
pub(super) struct SettleStep {
    pub(super) page: Page,
    pub(super) key: Key,
    pub(super) name: String,
    pub(super) run: String,
    pub(super) act: String,
    pub(super) json: String,
    pub(super) problem: String,
}
