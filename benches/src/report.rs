//! The table at the end of a run, and its JSON.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::compare::{median, median_ratio};

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The unit of the figures: operations per second, requests per second, or bytes.
    pub unit: &'static str,
    /// Oncekey's figure: the median of its turns.
    pub ours: f64,
    /// The other side's figure.
    pub yardstick: Option<f64>,
    /// The median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// The ratio that we want or, for a figure without another side, the figure.
    pub wanted: Option<f64>,
    /// Whether the wanted value is reached.
    pub reached: Option<bool>,
}

impl Row {
    /// Returns a line with both sides.
    pub fn ratio(what: &str, unit: &'static str, ours: &[f64], yardstick: &[f64], wanted: Option<f64>) -> Self {
        let ratio = median_ratio(ours, yardstick);
        Self {
            what: what.to_owned(),
            unit,
            ours: median(ours),
            yardstick: Some(median(yardstick)),
            ratio: Some(ratio),
            wanted,
            reached: wanted.map(|wanted| ratio >= wanted),
        }
    }

    /// Returns a line with only our own figure.
    pub fn figure(what: &str, unit: &'static str, ours: f64) -> Self {
        Self { what: what.to_owned(), unit, ours, yardstick: None, ratio: None, wanted: None, reached: None }
    }

    /// Requires the figure to be exactly this.
    #[must_use]
    pub fn exactly(mut self, wanted: f64) -> Self {
        self.wanted = Some(wanted);
        self.reached = Some((self.ours - wanted).abs() < f64::EPSILON);
        self
    }

    fn cells(&self) -> [String; 7] {
        let or_empty = |cell: Option<String>| cell.unwrap_or_default();
        [
            self.what.clone(),
            self.unit.to_owned(),
            whole(self.ours),
            or_empty(self.yardstick.map(whole)),
            or_empty(self.ratio.map(|ratio| format!("{ratio:.2}"))),
            or_empty(
                self.wanted.map(|wanted| if self.ratio.is_some() { format!("{wanted:.2}") } else { whole(wanted) }),
            ),
            or_empty(self.reached.map(|reached| if reached { "yes" } else { "NO" }.to_owned())),
        ]
    }
}

/// Formats a figure without decimals, with separated thousands.
fn whole(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut apart = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            apart.push(' ');
        }
        apart.push(digit);
    }
    apart
}

/// All lines of a run, and the notes that explain them.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The table.
    pub rows: Vec<Row>,
    /// The notes below the table.
    pub notes: Vec<String>,
}

impl Report {
    /// Writes the report as JSON under the build folder, and returns its path.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write_json(&self) -> io::Result<PathBuf> {
        let path = target_folder()?.join("oncekey-bench.json");
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what", "unit", "ours", "yardstick", "ratio", "wanted", "ok?"].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        for [what, unit, rest @ ..] in &lines {
            write!(f, "{what:<0$}  {unit:<1$}", widths[0], widths[1])?;
            for (cell, width) in rest.iter().zip(&widths[2..]) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "- {note}"))
    }
}

/// Prints what a bench found.
#[expect(clippy::print_stdout, reason = "a bench prints what it found")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Returns Cargo's build folder, which contains this executable and is marked by a file.
///
/// # Errors
/// The executable was moved out of it.
pub fn target_folder() -> io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let marked = executable.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    marked.map(Path::to_owned).ok_or_else(|| io::Error::other("this is not run by Cargo: it finds no target folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whether_it_is_reached() {
        let row = Row::ratio("first use", "op/s", &[1_234_567.0], &[1_000_000.0], Some(1.0));
        let report = Report { rows: vec![row, Row::figure("locks", "actors", 2.0).exactly(0.0)], notes: Vec::new() };
        let table = report.to_string();
        assert!(table.contains("1 234 567  1 000 000   1.23    1.00  yes"), "{table}");
        assert!(table.lines().last().unwrap().ends_with("0   NO"), "{table}");
    }
}
