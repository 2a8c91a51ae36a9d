//! Settles keys: a confirmation page that reads the keys again, and the action.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use futures_util::future::join_all;

use super::access::Operator;
use super::outcome::{Entered, Given};
use super::pages::{self, Confirm, Item, Page, Settled};
use crate::backend::{RecordView, Resolution, Resolved, StateName, StateView};
use crate::{Engine, Error, Key};

/// The most keys that one form settles, which is several pages' worth.
const AT_ONCE: usize = 500;

/// A form's fields in order. A name may occur more than once.
pub(super) type Fields = web::Form<Vec<(String, String)>>;

pub(super) fn all<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a str> {
    fields.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
}

pub(super) fn one<'a>(fields: &'a Fields, name: &'a str) -> &'a str {
    all(fields, name).next().unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Release,
    Complete,
}

impl Act {
    fn of(text: &str) -> Option<Self> {
        match text {
            "release" | "release-all" => Some(Self::Release),
            "complete" | "complete-all" => Some(Self::Complete),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Complete => "complete",
        }
    }
}

/// Shows the current state of the keys, and asks for confirmation.
pub(super) async fn confirm(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    fields: Fields,
) -> HttpResponse {
    let page = Page::new("stuck", &operator);
    let act = one(&fields, "act");
    let names = if act.ends_with("-all") { "shown" } else { "key" };
    let keys: Result<Vec<Key>, _> = all(&fields, names).map(Key::from_stored).collect();
    let (Some(act), Ok(keys)) = (Act::of(act), keys) else { return not_understood(page) };
    if keys.is_empty() {
        let text = "Select at least one key on the page before.";
        return pages::message(StatusCode::BAD_REQUEST, page, "No key is selected", text);
    }
    ask(page, &engine, act, keys, Entered::default(), String::new()).await
}

async fn ask(
    page: Page,
    engine: &Engine,
    act: Act,
    mut keys: Vec<Key>,
    entered: Entered,
    problem: String,
) -> HttpResponse {
    keys.sort_unstable();
    keys.dedup();
    if keys.len() > AT_ONCE {
        return not_understood(page);
    }
    let views = match read(engine, &keys).await {
        Ok(views) => views,
        Err(error) => return pages::failed(page, &error),
    };
    let items: Vec<_> = keys.iter().zip(&views).map(|(key, view)| item(key, view.as_ref(), act)).collect();
    let ready = items.iter().filter(|item| item.is_ready).count().to_string();
    let status = if problem.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    pages::show(status, &Confirm { page, act: act.name(), ready, items, entered, problem })
}

async fn read(engine: &Engine, keys: &[Key]) -> Result<Vec<Option<RecordView>>, Error> {
    join_all(keys.iter().map(|key| engine.lookup(key))).await.into_iter().collect()
}

fn item(key: &Key, view: Option<&RecordView>, act: Act) -> Item {
    let step = view.and_then(|view| view.steps.as_ref()?.unsettled(view.read_at));
    let (state, is_ready) = match view {
        None => ("no record".to_owned(), false),
        Some(view) if view.state != StateView::Indeterminate => (StateName::of(&view.state).name().to_owned(), false),
        Some(_) => match step {
            // The step's effect may have happened, and only a decision about this step settles that.
            Some(step) if act == Act::Release => (format!("step {} is stuck: settle it first", step.name), false),
            _ => (StateName::Indeterminate.name().to_owned(), true),
        },
    };
    Item {
        key: key.clone(),
        attempt: view.map(|view| view.attempt.to_string()).unwrap_or_default(),
        token: view.map(|view| view.token.get()).unwrap_or_default(),
        state,
        is_ready,
    }
}

/// Parses a key and the fencing token of the claim that the operator has seen.
fn seen(item: &str) -> Option<(u64, Key)> {
    let (token, key) = item.split_once(':')?;
    Some((token.parse().ok()?, Key::from_stored(key).ok()?))
}

/// Settles the keys, each only if it has not changed since the operator saw it.
pub(super) async fn settle(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    fields: Fields,
) -> HttpResponse {
    let page = Page::new("stuck", &operator);
    let items: Option<Vec<_>> = all(&fields, "item").map(seen).collect();
    let (Some(act), Some(items)) = (Act::of(one(&fields, "act")), items) else { return not_understood(page) };
    if items.is_empty() || items.len() > AT_ONCE {
        return not_understood(page);
    }
    let given = match act {
        Act::Release => None,
        Act::Complete => {
            let entered = entered(&fields);
            match entered.read() {
                Ok(given) => Some(given),
                Err(problem) => {
                    let keys = items.into_iter().map(|(_, key)| key).collect();
                    return ask(page, &engine, act, keys, entered, problem).await;
                }
            }
        }
    };
    let name = operator.name.as_str();
    let settled =
        join_all(items.iter().map(|(token, key)| settle_one(&engine, name, *token, key, given.as_ref()))).await;
    engine.console().forget_census().await;
    let count = settled.iter().filter(|result| result.is_done).count();
    pages::show(StatusCode::OK, &Settled { page, settled: count, items: settled })
}

fn entered(fields: &Fields) -> Entered {
    let field = |name| one(fields, name).to_owned();
    Entered {
        kind: field("kind"),
        json: field("json"),
        status: field("status"),
        content_type: field("content_type"),
        headers: field("headers"),
        body: field("body"),
    }
}

async fn settle_one(
    engine: &Engine,
    operator: &str,
    token: u64,
    key: &Key,
    given: Option<&Given>,
) -> pages::SettledKey {
    let view = engine.lookup(key).await;
    let resolved = match view {
        Ok(Some(view)) if view.token.get() == token && view.state == StateView::Indeterminate => {
            let with = match given {
                Some(given) => Resolution::Complete { outcome: given.seal(key), retention: engine.policy().retention },
                None => Resolution::Release,
            };
            engine.settle(&view, with, operator).await
        }
        Ok(_) => Ok(Resolved::NotIndeterminate),
        Err(error) => Err(error),
    };
    let (result, is_done) = told(&resolved, if given.is_some() { "completed" } else { "released" });
    pages::SettledKey { key: key.clone(), result, is_done }
}

pub(super) fn told(resolved: &Result<Resolved, Error>, done: &str) -> (String, bool) {
    match resolved {
        Ok(Resolved::Resolved) => (done.to_owned(), true),
        Ok(Resolved::NotIndeterminate) => ("left as it is: it has changed since you looked".to_owned(), false),
        Ok(Resolved::UnsettledStep { step }) => (format!("left as it is: settle its step {step} first"), false),
        Err(error) => (format!("not known: {error}. Look at the key before you try again"), false),
    }
}

pub(super) fn not_understood(page: Page) -> HttpResponse {
    let text = "The form is not one of this console's. Nothing was changed.";
    pages::message(StatusCode::BAD_REQUEST, page, "Not understood", text)
}
