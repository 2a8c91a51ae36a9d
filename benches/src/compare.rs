//! Sides that take turns, and the median of their ratios.

use std::error::Error;

/// Why a side cannot do its work.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One side. It returns the rates that it measures in a turn, in operations per second. A side may measure several
/// things in one turn.
pub type Side<'a> = Box<dyn FnMut() -> Vec<f64> + 'a>;

/// The rates of one measured thing, turn by turn.
pub type Turns = Vec<f64>;

/// Returns a side whose failure ends the run.
///
/// # Panics
/// The side panics if its turn fails: a side that cannot do its work has no figures.
pub fn side<'a>(mut turn: impl FnMut() -> Result<Vec<f64>, Failure> + 'a) -> Side<'a> {
    #[expect(clippy::panic, reason = "a side that can't do its work has no figures")]
    Box::new(move || turn().unwrap_or_else(|error| panic!("a side failed: {error}")))
}

/// Returns a [`side`] that measures one thing.
pub fn single<'a>(mut turn: impl FnMut() -> Result<f64, Failure> + 'a) -> Side<'a> {
    side(move || turn().map(|rate| vec![rate]))
}

/// Lets the sides take turns. Returns, for each side and each thing that it measures, its rates in the order of rounds.
pub fn take_turns(rounds: usize, mut sides: Vec<Side<'_>>) -> Vec<Vec<Turns>> {
    let mut measured: Vec<Vec<Turns>> = sides.iter().map(|_| Vec::new()).collect();
    let count = sides.len();
    for round in 0..rounds {
        for turn in 0..count {
            // The order alternates, so that what one side leaves behind (a warm cache, a full disk queue) affects each
            // neighbour.
            let side = if round % 2 == 0 { turn } else { count - 1 - turn };
            let rates = sides[side]();
            measured[side].resize_with(rates.len(), Vec::new);
            measured[side].iter_mut().zip(rates).for_each(|(turns, rate)| turns.push(rate));
        }
    }
    measured
}

/// Returns the median of the figures, or zero if there are none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (Some(middle), 1) => *middle,
        (Some(above), _) => f64::midpoint(*above, sorted[sorted.len() / 2 - 1]),
        (None, _) => 0.0,
    }
}

/// Returns the median of the ratios of turns in the same round.
pub fn median_ratio(ours: &[f64], yardstick: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(yardstick).map(|(ours, yardstick)| ours / yardstick).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median_ratio(&[1.0, 4.0, 9.0], &[2.0, 4.0, 3.0]), 1.0);
    }

    #[test]
    fn sides_go_forth_and_back() {
        let order = std::cell::RefCell::new(Vec::new());
        let side = |name: f64| -> Side<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                vec![name]
            })
        };
        let measured = take_turns(2, vec![side(1.0), side(2.0)]);
        assert_eq!(*order.borrow(), [1.0, 2.0, 2.0, 1.0]);
        assert_eq!(measured, [[[1.0, 1.0]], [[2.0, 2.0]]]);
    }
}
