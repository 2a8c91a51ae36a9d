//! The report of a run of checkouts, as text.

use std::fmt;

use super::checkouts::Report;

impl Report {
    /// Returns how many effects happened more than once.
    pub fn doubles(&self) -> usize {
        self.effects.iter().filter(|((_, times), _)| *times > 1).map(|(_, effects)| effects).sum()
    }

    /// Returns why the run does not pass; empty if it passes.
    ///
    /// A control run passes if it shows doubles, which proves that the kills would have caused them.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.wrong.iter().take(20).cloned().collect();
        if self.kills == 0 {
            failures.push("no shop was killed".to_owned());
        }
        if self.plan.control {
            if self.doubles() == 0 {
                failures.push("without steps nothing happened twice: the kills prove nothing".to_owned());
            }
            return failures;
        }
        for (struck, place) in self.struck.into_iter().zip(["inside of a step", "between two steps"]) {
            if struck == 0 {
                failures.push(format!("no kill struck {place}"));
            }
        }
        failures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plan, [inside, between], [happened, not_happened]) = (self.plan, self.struck, self.settled);
        let steps = if plan.control { ", without steps" } else { "" };
        let a_second = (2 * plan.count) as f64 / self.worked.as_secs_f64();
        writeln!(f, "{:?}, 2 shops × {} checkouts{steps}, {:.0} s", plan.store, plan.count, self.worked.as_secs_f64())?;
        writeln!(f, "  {:>8} checkouts finished by themselves, {a_second:.0} a second", self.finished)?;
        writeln!(f, "  {:>8} × kill -9 of a shop", self.kills)?;
        if !plan.control {
            writeln!(f, "  {inside:>8} checkouts were struck inside of a step, and {between} between two")?;
            let settled = happened + not_happened;
            writeln!(
                f,
                "  {settled:>8} steps were settled by the ledger: {happened} had happened, {not_happened} had not"
            )?;
        }
        for ((effect, times), checkouts) in &self.effects {
            writeln!(f, "  {checkouts:>8} checkouts: {effect} happened {times} ×")?;
        }
        for (seen, tries) in &self.tries {
            writeln!(f, "  {tries:>8} tries: {seen}")?;
        }
        match &self.failures()[..] {
            [] => writeln!(f, "  passed"),
            failures => failures.iter().try_for_each(|failure| writeln!(f, "  FAILED: {failure}")),
        }
    }
}
