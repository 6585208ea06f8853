//! Medians, ratios, table, JSON.

use std::{collections::BTreeMap, fmt::Write, fs, process::Command};

use serde::{Deserialize, Serialize};

use super::{kinds::Kind, questions::Question};

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    metric: &'static str,
    value: f64,
}

impl Figure {
    pub(super) fn new(metric: &'static str, value: f64) -> Self {
        Self { metric, value }
    }

    /// Shares of a whole have none, and nothing has one to zero.
    fn has_ratio_to(&self, other: &Self) -> bool {
        !self.metric.ends_with('%') && (self.value / other.value).is_finite()
    }
}

/// Everything that was measured, as it is written to a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
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
    pub answers: Vec<Answered>,
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
    pub(super) fn new(rounds: usize, quick: bool) -> Self {
        Self { commit: commit(), machine: machine(), rounds, quick, answers: Vec::new() }
    }
}

/// What is known of a question while it is asked.
pub(super) struct Answer {
    name: &'static str,
    title: String,
    kinds: Vec<Kind>,
    /// By kind: the rounds that went well.
    rounds: Vec<Vec<(usize, Vec<Figure>)>>,
    failures: BTreeMap<String, String>,
}

impl Answer {
    pub(super) fn new(question: &Question) -> Self {
        let rounds = vec![Vec::new(); question.kinds.len()];
        let (name, title, kinds) = (question.name, question.title.clone(), question.kinds.clone());
        Self { name, title, kinds, rounds, failures: BTreeMap::new() }
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
        Answered {
            name: self.name.to_owned(),
            title: self.title.clone(),
            kinds: kinds.collect(),
            ratios: self.ratios(),
            skipped: self.failures.clone(),
        }
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
        let mut lines: Vec<Vec<String>> = Vec::new();
        if let Some(first) = answered.kinds.first() {
            let head = first.metrics.iter().map(|metric| metric.metric.clone());
            lines.push([String::new()].into_iter().chain(head).collect());
            for kind in &answered.kinds {
                let medians = kind.metrics.iter().map(|metric| number(metric.median));
                lines.push([kind.kind.clone()].into_iter().chain(medians).collect());
            }
            for kind in &answered.kinds[1..] {
                let Some(ratios) = answered.ratios.get(&kind.kind) else { continue };
                let ratio = |metric: &OfMetric| ratios.get(&metric.metric).map(|ratio| format!("{ratio:.2}"));
                let cells = first.metrics.iter().map(|metric| ratio(metric).unwrap_or_default());
                lines.push([format!("{} ÷ {}", first.kind, kind.kind)].into_iter().chain(cells).collect());
            }
        }
        let mut text = format!("\n{} ({})\n", self.title, self.name);
        let columns = lines.first().map_or(0, Vec::len);
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        for line in &lines {
            let _ = write!(text, "  {:<width$}", line[0], width = widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.push('\n');
        }
        for (kind, why) in &answered.skipped {
            let _ = writeln!(text, "  {kind}: no figures in a round or all: {why}");
        }
        text
    }
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
fn number(value: f64) -> String {
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
    let (model, release) = (model.map_or("unknown CPU", |(_, model)| model), release.trim());
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
            rounds: vec![rounds([10.0, 100.0, 40.0]), rounds([5.0, 50.0, 10.0])],
            failures: BTreeMap::new(),
        };
        assert_eq!(answer.ratios()["go-rpcx"]["calls/s"], 2.0);
        assert!(answer.table().contains("bothways ÷ go-rpcx"), "{}", answer.table());
    }
}
