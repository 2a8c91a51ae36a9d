//! The list of indeterminate keys.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::access::Operator;
use super::pages::{self, Page, Row};
use super::words::span;
use crate::backend::{Filter, Found, RecordView, StateName};
use crate::record::Progress;
use crate::{Engine, Error, Key};

/// How many keys a page shows.
const ON_A_PAGE: usize = 50;
/// How long a page searches a store that has no index for such keys.
const LOOKS_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    scope: String,
    #[serde(default)]
    after: String,
}

pub(super) async fn page(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    asked: web::Query<Asked>,
) -> HttpResponse {
    let Asked { scope, after } = asked.into_inner();
    let page = Page::new("stuck", &operator);
    let after = match after.as_str() {
        "" => None,
        stored => match Key::from_stored(stored) {
            Ok(key) => Some(key),
            Err(error) => return pages::message(StatusCode::BAD_REQUEST, page, "No such page", &error.to_string()),
        },
    };
    let is_later = after.is_some();
    match look(&engine, &scope, after).await {
        Ok(Found { records, next }) => {
            let rows = records.iter().map(row).collect();
            let more = next.map(|key| key.as_stored().to_owned()).unwrap_or_default();
            pages::show(StatusCode::OK, &pages::Stuck { page, scope, rows, is_later, more })
        }
        Err(error) => pages::failed(page, &error),
    }
}

/// Searches until the page is full, or for a second.
async fn look(engine: &Engine, scope: &str, mut after: Option<Key>) -> Result<Found, Error> {
    let scope = Some(scope.to_owned()).filter(|scope| !scope.is_empty());
    let filter = Filter { state: Some(StateName::Indeterminate), scope, older_than: None };
    let began = Instant::now();
    let mut records = Vec::new();
    loop {
        let found = engine.find(filter.clone(), after, ON_A_PAGE - records.len()).await?;
        records.extend(found.records);
        if found.next.is_none() || records.len() >= ON_A_PAGE || began.elapsed() >= LOOKS_FOR {
            return Ok(Found { records, next: found.next });
        }
        after = found.next;
    }
}

fn row(view: &RecordView) -> Row {
    let steps = view.steps.as_deref();
    let done = |steps: &crate::record::Steps| {
        let done = steps.list.iter().filter(|step| matches!(step.progress, Progress::Completed(_))).count();
        format!("{done} of {} done", steps.list.len())
    };
    let stuck = steps.and_then(|steps| steps.unsettled(view.read_at));
    Row {
        key: view.key.clone(),
        attempt: view.attempt.get(),
        since: since(view),
        steps: steps.map(done).unwrap_or_default(),
        stuck: stuck.map(|step| step.name.to_string()).unwrap_or_default(),
    }
}

/// Describes how long a key has been indeterminate, as far as the store knows.
pub(super) fn since(view: &RecordView) -> String {
    if let Some(lapsed_at) = view.lapsed_at {
        return format!("{} ago, when its lease lapsed", span(view.read_at.left(lapsed_at)));
    }
    match view.claimed_at() {
        Some(claimed_at) => format!("at most {} ago", span(view.read_at.left(claimed_at))),
        None => "unknown".to_owned(),
    }
}
