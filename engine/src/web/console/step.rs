//! Settles one step of an operation.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::access::Operator;
use super::outcome::json_of;
use super::pages::{self, Page, SettleStep, Settled};
use super::settle::{Fields, not_understood, one, told};
use crate::backend::{RecordView, StateView};
use crate::record::{Progress, StepRecord};
use crate::{Engine, Error, Key};

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    id: String,
    name: String,
}

/// A step of an indeterminate key whose result is unknown.
struct Open {
    view: RecordView,
    step: StepRecord,
}

impl Open {
    async fn find(engine: &Engine, id: &str, name: &str) -> Result<Option<Self>, Error> {
        let Ok(key) = Key::from_stored(id) else { return Ok(None) };
        let Some(view) = engine.lookup(&key).await? else { return Ok(None) };
        let mut steps = view.steps.iter().flat_map(|steps| &steps.list);
        let step = steps.find(|step| step.name.as_str() == name && step.progress == Progress::Begun).cloned();
        Ok(step.filter(|_| view.state == StateView::Indeterminate).map(|step| Self { view, step }))
    }

    /// Names the step's run, so that a form cannot settle a later one.
    fn run(&self) -> String {
        format!("{}.{}", self.step.run.token, self.step.run.number)
    }

    fn ask(&self, page: Page, status: StatusCode, act: &str, json: &str, problem: String) -> HttpResponse {
        let form = SettleStep {
            page,
            key: self.view.key.clone(),
            name: self.step.name.to_string(),
            run: self.run(),
            act: act.to_owned(),
            json: json.to_owned(),
            problem,
        };
        pages::show(status, &form)
    }
}

/// Shows the current state of the step, and asks for confirmation.
pub(super) async fn page(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    asked: web::Query<Asked>,
) -> HttpResponse {
    let page = Page::new("key", &operator);
    match Open::find(&engine, &asked.id, &asked.name).await {
        Ok(Some(open)) => open.ask(page, StatusCode::OK, "release", "", String::new()),
        Ok(None) => gone(page, StatusCode::NOT_FOUND),
        Err(error) => pages::failed(page, &error),
    }
}

fn gone(page: Page, status: StatusCode) -> HttpResponse {
    pages::message(status, page, "No such step", "There is no stuck step of this name, or it was settled since.")
}

/// Settles the step, only if it is still the run that the operator has seen.
pub(super) async fn settle(
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
    fields: Fields,
) -> HttpResponse {
    let page = Page::new("key", &operator);
    let (id, name, act, json) = (one(&fields, "id"), one(&fields, "name"), one(&fields, "act"), one(&fields, "json"));
    if !matches!(act, "release" | "complete") {
        return not_understood(page);
    }
    let open = match Open::find(&engine, id, name).await {
        Ok(Some(open)) if open.run() == one(&fields, "run") => open,
        Ok(_) => return gone(page, StatusCode::CONFLICT),
        Err(error) => return pages::failed(page, &error),
    };
    let value = if act == "complete" { Some(json_of(json)) } else { None };
    let value = match value.transpose() {
        Ok(value) => value,
        Err(problem) => return open.ask(page, StatusCode::UNPROCESSABLE_ENTITY, act, json, problem),
    };
    let resolved = engine.settle_step(&open.view, &open.step, value.as_deref(), &operator.name).await;
    engine.console().forget_census().await;
    let (result, is_done) = told(&resolved, if value.is_some() { "step completed" } else { "step released" });
    let item = pages::SettledKey { key: open.view.key, result, is_done };
    pages::show(StatusCode::OK, &Settled { page, settled: usize::from(is_done), items: vec![item] })
}
