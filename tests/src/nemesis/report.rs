//! The report of a run.

use std::fmt;
use std::time::Duration;

use super::Plan;
use super::checker::{Findings, Wrong};
use super::faults::Fault;
use super::history::{End, History};

/// Everything that a run showed.
#[derive(Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// How long the clients ran.
    pub worked: Duration,
    /// What the clients saw.
    pub history: History,
    /// The violations.
    pub findings: Findings,
    /// The faults, and how often each struck.
    pub faults: Vec<(Fault, u64)>,
}

impl Report {
    /// Returns why the run does not pass; empty if it passes.
    ///
    /// A control run passes if it shows doubles, which proves that the faults would have caused them.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (fault, _) in self.faults.iter().filter(|(_, struck)| *struck == 0) {
            failures.push(format!("{fault}: it never struck"));
        }
        let (operations, successes) = (self.history.operations.len(), self.ended(End::Success));
        if 3 * successes < operations || operations == 0 {
            failures.push(format!("{successes} of {operations} operations succeeded: under a third shows nothing"));
        }
        if self.plan.control {
            if self.findings.count(Wrong::Double) == 0 {
                failures.push("without the guard there was no double: the faults prove nothing".to_owned());
            }
            return failures;
        }
        for wrong in Wrong::ALL {
            let count = self.findings.count(wrong);
            if count > 0 {
                failures.push(format!("{count} {wrong}"));
            }
        }
        failures
    }

    fn ended(&self, end: End) -> usize {
        self.history.operations.iter().filter(|operation| operation.end == end).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { store, seed, control, clients, .. } = self.plan;
        let guard = if control { ", without the guard" } else { "" };
        writeln!(f, "{store:?}, seed {seed}, {clients} clients, {:.0} s{guard}", self.worked.as_secs_f64())?;
        let tries = self.history.tries();
        let (operations, keys, replays) = (self.history.len(), self.history.operations.len(), self.history.replays());
        let a_second = operations as f64 / self.worked.as_secs_f64();
        writeln!(f, "  {operations:>8} operations ({keys} keys, {replays} replays), {a_second:.0} a second")?;
        writeln!(f, "  {:>8} tries", tries.values().sum::<usize>())?;
        for (kind, [success, indeterminate, refused, stuck]) in self.history.ends() {
            let kind = format!("{kind:?}s").to_lowercase();
            writeln!(
                f,
                "  {success:>8} {kind} succeeded, {indeterminate} indeterminate, {refused} refused, {stuck} stuck"
            )?;
        }
        for (seen, count) in tries {
            writeln!(f, "  {count:>8} tries: {seen}")?;
        }
        writeln!(f, "  {:>8} keys asked for once more at the end", self.findings.asked_again)?;
        let Findings { excused_before, killed_before_freed, freed_late, .. } = &self.findings;
        writeln!(
            f,
            "  {excused_before:>8} indeterminate keys that no answer explains, and any 5xx would have excused:"
        )?;
        writeln!(f, "  {killed_before_freed:>8} of a shop that was killed before it could free them")?;
        writeln!(f, "  {freed_late:>8} that were freed later, since their store was away for longer than the lease")?;
        for (fault, struck) in &self.faults {
            writeln!(f, "  {struck:>8} × {fault}")?;
        }
        for wrong in Wrong::ALL {
            writeln!(f, "  {:>8} {wrong}", self.findings.count(wrong))?;
        }
        for wrong in Wrong::ALL {
            // In a control run the violations are expected, and there are many.
            let shown = if control { 0 } else { 10 };
            for (_, why) in self.findings.wrong.iter().filter(|(found, _)| *found == wrong).take(shown) {
                writeln!(f, "  {wrong}: {why}")?;
            }
        }
        match &self.failures()[..] {
            [] => writeln!(f, "  passed"),
            failures => failures.iter().try_for_each(|failure| writeln!(f, "  FAILED: {failure}")),
        }
    }
}
