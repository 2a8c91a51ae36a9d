//! The page of one key: its life cycle, times and steps.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::access::Operator;
use super::outcome;
use super::pages::{self, Fact, Found, OneKey, Page, Stage, StepRow};
use super::stuck::since;
use super::words::{date_after, date_before, span};
use crate::backend::{RecordView, StateName, StateView};
use crate::record::Progress;
use crate::{Engine, Key, KeyError};

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// The stored form, with which pages link to a key.
    #[serde(default)]
    id: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    key: String,
}

impl Asked {
    fn key(&self) -> Result<Option<Key>, KeyError> {
        if !self.id.is_empty() {
            return Key::from_stored(&self.id).map(Some);
        }
        if self.scope.is_empty() && self.key.is_empty() {
            return Ok(None);
        }
        Key::new(&self.scope, &self.key).map(Some)
    }
}

pub(super) async fn page(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    asked: web::Query<Asked>,
) -> HttpResponse {
    let page = Page::new("key", &operator);
    let (status, message, found) = match asked.key() {
        Ok(None) => (StatusCode::OK, String::new(), None),
        Err(error) => (StatusCode::BAD_REQUEST, format!("This can't be a key: {error}."), None),
        Ok(Some(key)) => match engine.lookup(&key).await {
            Ok(Some(view)) => (StatusCode::OK, String::new(), Some(found(&view, &operator))),
            Ok(None) => {
                let text = "The store has no record of this key. It was never used, it was released, or its retention has ended.";
                (StatusCode::NOT_FOUND, text.to_owned(), None)
            }
            Err(error) => return pages::failed(page, &error),
        },
    };
    let Asked { mut scope, mut key, .. } = asked.into_inner();
    if let Some(found) = &found {
        (scope, key) = (found.key.scope().to_owned(), found.key.idempotency_key().to_owned());
    }
    pages::show(status, &OneKey { page, scope, key, message, found })
}

fn found(view: &RecordView, operator: &Operator) -> Found {
    let is_stuck = view.state == StateView::Indeterminate;
    let now = view.read_at;
    let steps = view.steps.iter().flat_map(|steps| &steps.list).map(|step| {
        let is_open = step.progress == Progress::Begun;
        StepRow {
            name: step.name.to_string(),
            state: step.progress.name(),
            attempt: step.attempt.get(),
            began: format!("{} ago", span(now.left(step.began_at))),
            is_stuck: step.is_unsettled(now) && is_stuck,
            can_settle: is_open && is_stuck,
        }
    });
    let outcome = match &view.state {
        StateView::Completed { outcome, .. } if operator.sees_outcomes => Some(outcome::shown(&view.key, outcome)),
        _ => None,
    };
    Found {
        key: view.key.clone(),
        state: StateName::of(&view.state).name(),
        stages: stages(&view.state),
        facts: facts(view, operator),
        is_stuck,
        steps: steps.collect(),
        outcome,
    }
}

fn stages(state: &StateView) -> Vec<Stage> {
    let past = |name| Stage { name, class: "past", is_now: false };
    let now = |name| Stage { name, class: "now", is_now: true };
    let later = |name| Stage { name, class: "later", is_now: false };
    match state {
        StateView::InProgress { .. } => vec![past("claimed"), now("in progress"), later("completed")],
        StateView::Completed { .. } => vec![past("claimed"), past("in progress"), now("completed"), later("expired")],
        StateView::Indeterminate => {
            let stuck = Stage { name: "indeterminate", class: "now bad", is_now: true };
            vec![past("claimed"), past("in progress"), stuck, later("settled by you")]
        }
        StateView::Released { .. } => {
            vec![past("claimed"), past("in progress"), now("released"), later("claimed again")]
        }
    }
}

fn facts(view: &RecordView, operator: &Operator) -> Vec<Fact> {
    let mut facts = vec![Fact::new("Attempt", view.attempt.to_string())];
    match view.claimed_at() {
        Some(at) => {
            let ago = view.read_at.left(at);
            facts.push(Fact::new("Claimed", format!("{} ago", span(ago))).exactly(date_before(ago)));
        }
        None => facts.push(Fact::new("Claimed", "unknown: by an earlier version")),
    }
    match &view.state {
        StateView::InProgress { lease_left } if lease_left.is_zero() => {
            facts.push(Fact::new("Lease", "lapsed: the next caller takes the key over"));
        }
        StateView::InProgress { lease_left } => {
            facts.push(Fact::new("Lease", format!("holds for {} more unless it is renewed", span(*lease_left))));
        }
        StateView::Completed { expires_in, .. } => {
            facts.push(Fact::new("Kept for", span(*expires_in)).exactly(date_after(*expires_in)));
            if !operator.sees_outcomes {
                facts.push(Fact::new("Outcome", "stored; you may not read it"));
            }
        }
        StateView::Indeterminate => facts.push(Fact::new("Indeterminate since", since(view))),
        StateView::Released { expires_in } => {
            facts.push(Fact::new("Steps kept for", span(*expires_in)).exactly(date_after(*expires_in)));
        }
    }
    facts.push(Fact::new("Fencing token", view.token.to_string()));
    facts
}
