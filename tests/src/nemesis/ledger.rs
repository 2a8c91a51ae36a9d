//! What the shop's own tables record about its checkouts.

use std::collections::HashMap;

use serde_json::Value;

use super::apps::Apps;
use super::connections::Connections;
use super::history::Seen;
use crate::http::Request;

/// How often each effect of each checkout happened.
#[derive(Debug, Default)]
pub(super) struct Ledger(HashMap<(String, String), usize>);

impl Ledger {
    /// The effects of a checkout. The charge is the charge itself, and not the line that its step writes after it.
    pub(super) const EFFECTS: [&str; 3] = ["reserve", "charge", "mail"];

    /// Reads the tables from the shops.
    ///
    /// # Panics
    /// If they do not answer.
    pub(super) async fn read(apps: &Apps, references: impl Iterator<Item = &String>) -> Self {
        let (mut ledger, mut connections) = (Self::default(), Connections::default());
        for charge in list(apps, &mut connections, "/payments").await {
            let reference = charge["reference"].as_str().unwrap().to_owned();
            *ledger.0.entry((reference, "charge".to_owned())).or_default() += 1;
        }
        for reference in references {
            let executed = list(apps, &mut connections, &format!("/checkouts?reference={reference}")).await;
            for step in executed.iter().map(|entry| entry["step"].as_str().unwrap()) {
                if step != "charge" {
                    *ledger.0.entry((reference.clone(), step.to_owned())).or_default() += 1;
                }
            }
            let charge_lines = executed.iter().filter(|entry| entry["step"] == "charge").count();
            assert!(charge_lines <= ledger.times(reference, "charge"), "{reference}: a charge without a payment");
        }
        ledger
    }

    pub(super) fn times(&self, reference: &str, effect: &str) -> usize {
        self.0.get(&(reference.to_owned(), effect.to_owned())).copied().unwrap_or_default()
    }
}

async fn list(apps: &Apps, connections: &mut Connections, target: &str) -> Vec<Value> {
    let request = Request::new("GET", target, "");
    // A busy shop answers late.
    for shop in (0..100).map(|tried| tried % 2) {
        if let Seen::Answer { status: 200, body, .. } = connections.ask(&request, apps, shop).await {
            return serde_json::from_slice(&body).unwrap();
        }
    }
    panic!("{target}: the shops do not answer")
}
