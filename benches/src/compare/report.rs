//! Medians, ratios, table, JSON.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::Command};

use anyhow::Context;

use serde::{Deserialize, Serialize};

use super::{
    kinds::Kind,
    questions::Question,
    targets::{Reached, Target},
};

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    metric: &'static str,
    value: f64,
}

impl Figure {
    pub(crate) fn new(metric: &'static str, value: f64) -> Self {
        Self { metric, value }
    }

    /// Shares of a whole have none, and nothing has one to zero.
    fn has_ratio_to(&self, other: &Self) -> bool {
        !self.metric.ends_with('%') && (self.value / other.value).is_finite()
    }
}

/// Everything that was measured, as it is written to a file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Report {
    /// What of the code was measured.
    pub commit: String,
    /// Where.
    pub machine: String,
    /// How often.
    pub rounds: usize,
    /// True if the figures mean little.
    pub quick: bool,
    /// By question.
    #[serde(default)]
    pub answers: Vec<Answered>,
    /// What grows with what.
    #[serde(default)]
    pub curves: Vec<Curve>,
    /// Instructions, by step.
    #[serde(default)]
    pub steps: Vec<Counted>,
}

/// How a cost changes as something grows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Curve {
    /// Its short name.
    pub name: String,
    /// What costs.
    pub title: String,
    /// What grows, with its unit.
    pub x: String,
    /// The cost, with its unit.
    pub y: String,
    /// One for each kind.
    pub lines: Vec<Line>,
}

/// A line of a [`Curve`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Line {
    /// Whose.
    pub name: String,
    /// In the order of `x`.
    pub points: Vec<Point>,
}

/// A point of a [`Line`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Point {
    /// How many, or how large.
    pub x: usize,
    /// Over the rounds.
    pub median: f64,
    /// Each round.
    pub rounds: Vec<f64>,
}

/// What was counted of one step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Counted {
    /// Its short name.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Instructions of one.
    pub instructions: f64,
    /// Most that it may take.
    #[serde(default)]
    pub to_reach: Option<f64>,
    /// Allocations of one.
    pub allocations: f64,
}

impl Curve {
    pub(super) fn new(name: &str, title: &str, x: &str, y: &str) -> Self {
        let [name, title, x, y] = [name, title, x, y].map(str::to_owned);
        Self { name, title, x, y, lines: Vec::new() }
    }

    /// One more round of a point.
    pub(super) fn add(&mut self, line: &str, x: usize, value: f64) {
        let at = self.lines.iter().position(|of| of.name == line).unwrap_or_else(|| {
            self.lines.push(Line { name: line.to_owned(), points: Vec::new() });
            self.lines.len() - 1
        });
        let points = &mut self.lines[at].points;
        let at = points.iter().position(|point| point.x == x).unwrap_or_else(|| {
            points.push(Point { x, median: value, rounds: Vec::new() });
            points.len() - 1
        });
        points[at].rounds.push(value);
        points[at].median = median(points[at].rounds.clone());
    }

    /// For people: the head, then a row for each step.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec![self.x.clone()]];
        rows[0].extend(self.lines.iter().map(|line| line.name.clone()));
        let steps = self.lines.first().map_or(&[][..], |line| &line.points);
        for point in steps {
            let mut row = vec![number(point.x as f64).trim_end_matches(".00").to_owned()];
            row.extend(self.lines.iter().map(|line| {
                let of = line.points.iter().find(|of| of.x == point.x);
                of.map(|of| number(of.median)).unwrap_or_default()
            }));
            rows.push(row);
        }
        rows
    }

    pub(super) fn table(&self) -> String {
        format!("\n{}: {} ({})\n{}", self.title, self.y, self.name, aligned(&self.rows()))
    }
}

/// All figures of one question.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answered {
    /// The question's short name.
    pub name: String,
    /// The question.
    pub title: String,
    /// By kind, in the order of the table.
    pub kinds: Vec<OfKind>,
    /// Of the first kind to each other, the median over the rounds: kind, then metric.
    pub ratios: BTreeMap<String, BTreeMap<String, f64>>,
    /// What was to be reached, and what came of it.
    #[serde(default)]
    pub targets: Vec<Reached>,
    /// Kinds without figures, and why.
    pub skipped: BTreeMap<String, String>,
}

/// The figures of one kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OfKind {
    /// Its name.
    pub kind: String,
    /// By metric, in the order of the table.
    pub metrics: Vec<OfMetric>,
}

/// One metric of one kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OfMetric {
    /// Its name, with its unit.
    pub metric: String,
    /// Over the rounds.
    pub median: f64,
    /// Each round.
    pub rounds: Vec<f64>,
}

impl Report {
    /// What `compare --json` wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let json = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&json).with_context(|| format!("{} has no figures", path.display()))
    }

    /// What was measured, where and how often.
    pub(crate) fn run(&self) -> String {
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("medians of {} rounds", self.rounds) };
        format!("Commit {}, {}, {rounds}", self.commit, self.machine)
    }

    pub(super) fn new(rounds: usize, quick: bool) -> Self {
        Self {
            commit: commit(),
            machine: machine(),
            rounds,
            quick,
            answers: Vec::new(),
            curves: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// What is known of a question while it is asked.
pub(super) struct Answer {
    name: &'static str,
    title: String,
    kinds: Vec<Kind>,
    targets: Vec<Target>,
    /// By kind: the rounds that went well.
    rounds: Vec<Vec<(usize, Vec<Figure>)>>,
    failures: BTreeMap<String, String>,
}

impl Answer {
    pub(super) fn new(question: &Question) -> Self {
        let rounds = vec![Vec::new(); question.kinds.len()];
        let Question { name, title, kinds, targets, .. } = question;
        let (title, kinds, targets) = (title.clone(), kinds.clone(), targets.clone());
        Self { name, title, kinds, targets, rounds, failures: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, kind: Kind, round: usize, figures: Vec<Figure>) {
        let place = self.kinds.iter().position(|of| *of == kind).expect("a kind that was asked");
        self.rounds[place].push((round, figures));
    }

    pub(super) fn add_failure(&mut self, kind: Kind, why: String) {
        self.failures.insert(kind.name().to_owned(), why);
    }

    pub(super) fn finish(&self) -> Answered {
        let kinds = self.kinds.iter().zip(&self.rounds).filter_map(|(kind, rounds)| {
            let (_, first) = rounds.first()?;
            let metric = |at: usize, figure: &Figure| {
                let rounds: Vec<_> = rounds.iter().map(|(_, figures)| figures[at].value).collect();
                OfMetric { metric: figure.metric.to_owned(), median: median(rounds.clone()), rounds }
            };
            let metrics = first.iter().enumerate().map(|(at, figure)| metric(at, figure)).collect();
            Some(OfKind { kind: kind.name().to_owned(), metrics })
        });

        let mut answered = Answered {
            name: self.name.to_owned(),
            title: self.title.clone(),
            kinds: kinds.collect(),
            ratios: self.ratios(),
            targets: Vec::new(),
            skipped: self.failures.clone(),
        };

        answered.targets = self.targets.iter().map(|target| target.reached(&answered)).collect();
        answered
    }

    fn ratios(&self) -> BTreeMap<String, BTreeMap<String, f64>> {
        let Some((first, others)) = self.rounds.split_first() else { return BTreeMap::new() };
        let mut ratios = BTreeMap::new();
        for (kind, rounds) in self.kinds[1..].iter().zip(others) {
            let mut of_kind = BTreeMap::<_, Vec<_>>::new();
            for (round, theirs) in rounds {
                let Some((_, ours)) = first.iter().find(|(of, _)| of == round) else { continue };
                for (ours, theirs) in ours.iter().zip(theirs).filter(|(ours, theirs)| ours.has_ratio_to(theirs)) {
                    of_kind.entry(ours.metric.to_owned()).or_default().push(ours.value / theirs.value);
                }
            }
            if !of_kind.is_empty() {
                let medians = of_kind.into_iter().map(|(metric, of_rounds)| (metric, median(of_rounds)));
                ratios.insert(kind.name().to_owned(), medians.collect());
            }
        }
        ratios
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let answered = self.finish();
        let mut text = format!("\n{} ({})\n{}", answered.title, answered.name, aligned(&answered.rows()));
        for reached in &answered.targets {
            let _ = writeln!(text, "  to reach: {reached}");
        }
        for (kind, why) in &answered.skipped {
            let _ = writeln!(text, "  {kind}: no figures in a round or all: {why}");
        }
        text
    }
}

impl Answered {
    /// For people: the head, a row for each kind, a row for the ratio to each.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let Some(first) = self.kinds.first() else { return Vec::new() };
        let head = first.metrics.iter().map(|metric| metric.metric.clone());
        let mut rows: Vec<Vec<String>> = vec![[String::new()].into_iter().chain(head).collect()];
        for kind in &self.kinds {
            let medians = kind.metrics.iter().map(|metric| number(metric.median));
            rows.push([kind.kind.clone()].into_iter().chain(medians).collect());
        }
        for kind in &self.kinds[1..] {
            let Some(ratios) = self.ratios.get(&kind.kind) else { continue };
            let ratio = |metric: &OfMetric| ratios.get(&metric.metric).map(|ratio| format!("{ratio:.2}"));
            let cells = first.metrics.iter().map(|metric| ratio(metric).unwrap_or_default());
            rows.push([format!("{} ÷ {}", first.kind, kind.kind)].into_iter().chain(cells).collect());
        }
        rows
    }
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let median = self.median.map(|median| format!(": {}", number(median))).unwrap_or_default();
        write!(f, "{}{median}, {}", self.target, self.verdict())
    }
}

/// Rows of cells as text, in columns. The first row is the head.
fn aligned(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        let _ = write!(text, "  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// About three digits, thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu_facts = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_facts.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // What the maker of the kernel adds behind its version says nothing here.
    let release = release.trim().split('-').next().unwrap_or_default();
    let model = model.map_or("unknown CPU", |(_, model)| model);
    format!("{cores} cores, {model}, {} {release}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn thousands_stand_apart() {
        let numbers = [0.5, 99.99, 100.0, 1_234.4, -1_234_567.0].map(number);
        assert_eq!(numbers, ["0.50", "99.99", "100", "1,234", "-1,234,567"]);
    }

    #[test]
    fn a_point_of_a_curve_is_the_median_of_its_rounds() {
        let mut curve = Curve::new("n", "t", "clients", "µs");
        for (x, value) in [(1_000, 3.0), (20, 7.0), (1_000, 1.0), (1_000, 2.0)] {
            curve.add("ours", x, value);
        }
        curve.add("limit", 20, 5.0);
        let rows = [["clients", "ours", "limit"], ["1,000", "2.00", ""], ["20", "7.00", "5.00"]];
        assert_eq!(curve.rows(), rows.map(|row| row.map(str::to_owned).to_vec()));
        assert!(curve.table().contains("  20       7.00   5.00\n"), "{}", curve.table());
    }

    /// A ratio is taken within each round, not between medians of different rounds.
    #[test]
    fn ratios_are_of_one_round() {
        let rounds = |values: [f64; 3]| {
            values.into_iter().enumerate().map(|(round, value)| (round, vec![Figure::new("calls/s", value)])).collect()
        };
        let answer = Answer {
            name: "n",
            title: "t".into(),
            kinds: vec![Kind::Ours, Kind::Go],
            targets: vec![
                Target::ratio(Kind::Go, "calls/s").at_least(2.0),
                Target::figure("calls/s").at_most(39.0),
                Target::ratio(Kind::Limit, "calls/s").at_least(0.5),
            ],
            rounds: vec![rounds([10.0, 100.0, 40.0]), rounds([5.0, 50.0, 10.0])],
            failures: BTreeMap::new(),
        };
        assert_eq!(answer.ratios()["go-rpcx"]["calls/s"], 2.0);
        assert!(answer.table().contains("bothways ÷ go-rpcx"), "{}", answer.table());
        let verdicts: Vec<_> = answer.finish().targets.iter().map(|reached| reached.holds).collect();
        assert_eq!(verdicts, [Some(true), Some(false), None]);
    }
}
