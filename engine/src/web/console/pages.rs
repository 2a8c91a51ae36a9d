//! The pages: templates from `pages/`, which escape all that they are given.

use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use super::access::Operator;
use crate::{Error, Key};

/// What the frame of a page needs.
#[derive(Debug)]
pub(super) struct Page {
    /// What leads to the other pages: nothing where they lie beside this one.
    pub(super) root: String,
    pub(super) operator: String,
    pub(super) settles: bool,
    /// Which part of the console this is.
    pub(super) at: &'static str,
}

impl Page {
    /// A page beside the others.
    pub(super) fn new(at: &'static str, operator: &Operator) -> Self {
        Self { root: String::new(), operator: operator.name.clone(), settles: operator.settles, at }
    }

    /// The page at the console's own path, which may or may not end with a slash.
    pub(super) fn at_root(request: &HttpRequest, operator: &Operator) -> Self {
        let path = request.path().trim_matches('/');
        // One slash: two would name a host.
        let root = if path.is_empty() { "/".to_owned() } else { format!("/{path}/") };
        Self { root, ..Self::new("overview", operator) }
    }

    fn home(&self) -> &str {
        if self.root.is_empty() { "./" } else { &self.root }
    }
}

/// Gives a page its status.
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

/// A page without a frame, which names no other page.
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

/// A page with one message.
pub(super) fn message(status: StatusCode, page: Page, title: &str, text: &str) -> HttpResponse {
    show(status, &Message { page, title, text })
}

/// The store did not do what a page needs.
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

/// A key in a list.
#[derive(Debug)]
pub(super) struct Row {
    /// Links and forms name it by its stored form.
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

/// A key that is about to be settled.
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
    /// How many are ready.
    pub(super) ready: String,
    pub(super) items: Vec<Item>,
    pub(super) entered: super::outcome::Entered,
    pub(super) problem: String,
}

/// What became of a key.
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

/// A part of a key's life.
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
    /// Only for operators who may see it.
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
