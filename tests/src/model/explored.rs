//! Runs an exploration and collects its results.

use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker as _, HasDiscoveries, Model as _, report::WriteReporter};

use super::{Action, Bounds, Mutation, Protocol, Transition};

/// The results of an exploration.
#[derive(Debug)]
pub struct Explored {
    /// The bounds.
    pub bounds: Bounds,
    /// The number of different states.
    pub unique: usize,
    /// The length of the longest of the shortest paths to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The violated properties by name, each with the shortest path to the violation.
    pub violations: Vec<(&'static str, Vec<Action>)>,
    /// The properties that should have occurred somewhere and did not.
    pub never: Vec<&'static str>,
    /// How often each transition was taken.
    pub seen: Vec<(Transition, u64)>,
}

/// Explores all states within the bounds. With a mutation, stops at the first violation.
pub fn explore(bounds: Bounds, mutation: Option<Mutation>, threads: usize, progress: bool) -> Explored {
    let started = Instant::now();
    let checker = Protocol::mutated(bounds, mutation).checker().threads(threads);
    let finish_when = if mutation.is_some() { HasDiscoveries::AnyFailures } else { HasDiscoveries::All };
    let checker = checker.finish_when(finish_when).spawn_bfs();
    let checker = if progress {
        checker.join_and_report(&mut WriteReporter::new(&mut std::io::stderr()))
    } else {
        checker.join()
    };
    let discoveries = checker.discoveries();
    let found = |name| discoveries.get(name).map(|path| path.clone().into_actions());
    let properties = checker.model().properties();
    let is_always =
        |property: &&stateright::Property<Protocol>| property.expectation == stateright::Expectation::Always;
    Explored {
        bounds,
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
        violations: properties.iter().filter(is_always).filter_map(|p| Some((p.name, found(p.name)?))).collect(),
        never: properties.iter().filter(|p| !is_always(p) && found(p.name).is_none()).map(|p| p.name).collect(),
        seen: checker.model().seen().collect(),
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} unique states, depth {}, in {:?}", self.bounds, self.unique, self.depth, self.took)?;
        for (name, way) in &self.violations {
            writeln!(f, "BROKEN: {name}")?;
            way.iter().try_for_each(|action| writeln!(f, "    {action:?}"))?;
        }
        self.never.iter().try_for_each(|name| writeln!(f, "NEVER SEEN: {name}"))?;
        self.seen.iter().try_for_each(|(transition, times)| writeln!(f, "{times:>12}  {transition:?}"))
    }
}
