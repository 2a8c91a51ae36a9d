//! The overview page, and the figures that keep it current.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::access::Operator;
use super::census::Census;
use super::hub::Series;
use super::pages::{self, Page};
use super::words::{grouped, span, took};
use crate::Engine;

/// Everything that changes on the page, as the page shows it.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// What is wrong. Empty if nothing is.
    pub(super) alarm: String,
    pub(super) in_flight: String,
    pub(super) indeterminate: String,
    pub(super) is_stuck: bool,
    pub(super) completed: String,
    pub(super) released: String,
    pub(super) lookup: String,
    pub(super) counted: String,
    pub(super) plots: Vec<Plot>,
}

#[derive(Debug, Serialize)]
pub(super) struct Plot {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) sum: String,
    pub(super) peak: String,
    pub(super) points: String,
}

pub(super) async fn page(
    request: HttpRequest,
    operator: web::ReqData<Operator>,
    engine: web::Data<Engine>,
) -> HttpResponse {
    let census = engine.console().census(&engine).await;
    let figures = Figures::of(&census, engine.console().plots());
    let page = Page::at_root(&request, &operator);
    pages::show(StatusCode::OK, &pages::Overview { page, figures, findings: census.findings })
}

pub(super) async fn activity(engine: web::Data<Engine>) -> HttpResponse {
    let census = engine.console().census(&engine).await;
    HttpResponse::Ok().json(Figures::of(&census, engine.console().plots()))
}

impl Figures {
    fn of(census: &Census, plots: Vec<Series>) -> Self {
        let (alarm, counts) = match &census.counts {
            Ok(counts) => (String::new(), Some(*counts)),
            Err(error) => (format!("The store could not be counted: {error}"), None),
        };
        let shown = |number: Option<u64>| number.map_or_else(|| "–".to_owned(), grouped);
        let least = counts.filter(|counts| counts.is_least).map_or("", |_| "at least ");
        Self {
            alarm,
            in_flight: shown(counts.map(|counts| counts.in_flight)),
            indeterminate: format!("{least}{}", shown(counts.map(|counts| counts.indeterminate))),
            is_stuck: counts.is_some_and(|counts| counts.indeterminate > 0),
            completed: shown(counts.map(|counts| counts.completed)),
            released: shown(counts.map(|counts| counts.released)),
            lookup: census
                .lookup
                .map_or_else(|| "–".to_owned(), |lookup| took(u64::try_from(lookup.as_micros()).unwrap_or(u64::MAX))),
            counted: span(census.taken_at.elapsed()),
            plots: plots.iter().map(Plot::of).collect(),
        }
    }
}

impl Plot {
    fn of(series: &Series) -> Self {
        let name = match series.id {
            "miss" => "First use",
            "hit" => "Replay",
            "conflict" => "Conflict",
            "mismatch" => "Mismatch",
            "takeover" => "Takeover",
            "lost" => "Lost claim",
            "store_failed" => "Store failure",
            _ => "Store, mean",
        };
        let (sum, peak) = match series.id {
            "store" => (took(series.sum), format!("{} for one batch", took(series.peak()))),
            _ => (grouped(series.sum), format!("{} in ten seconds", grouped(series.peak()))),
        };
        Self { id: series.id, name, sum, peak, points: series.points() }
    }
}
