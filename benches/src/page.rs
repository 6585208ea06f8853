//! The page of figures: its words are written by hand, its tables and pictures by this program.
//!
//! A place for figures stands between `<!-- figures: NAME -->` and `<!-- end -->`; NAME is that of a question
//! or of a curve, or `instructions`, `targets`, `run`, `run-scaling`, `run-instructions`. A place whose figures
//! were not measured stays as it is.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;

use crate::{
    compare::{Answered, Curve, Report, number},
    plot,
};

/// Which page.
#[derive(Args, Clone, Debug)]
pub struct PageArgs {
    /// The page. Its pictures go into the directory of the same name without `.md`.
    #[arg(long, default_value = "docs/performance.md")]
    page: PathBuf,
}

/// What to write into which page.
#[derive(Args, Clone, Debug)]
pub struct FillArgs {
    /// What `compare --json` wrote.
    json: PathBuf,
    #[command(flatten)]
    page: PageArgs,
}

/// Writes the figures of a file into a page.
///
/// # Errors
/// A file cannot be read or written, or the page has a place without an end.
pub fn run(args: &FillArgs) -> anyhow::Result<()> {
    write(&Report::read(&args.json)?, &args.page)
}

/// Writes figures into a page.
pub(crate) fn write(report: &Report, args: &PageArgs) -> anyhow::Result<()> {
    let path = &args.page;
    let page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let directory = path.with_extension("");
    plot::draw(report, &directory)?;
    let pictures = directory.file_name().context("a page has a name")?;
    let page = filled(&page, report, Path::new(pictures))?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- end -->";

/// The page with the figures that there are.
fn filled(page: &str, report: &Report, pictures: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        text += line;
        text.push('\n');
        let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) else { continue };

        let mut old = String::new();
        loop {
            match lines.next() {
                None => bail!("the place for {name} has no end"),
                Some(END) => break,
                Some(line) => {
                    old += line;
                    old.push('\n');
                }
            }
        }

        text += &figures(name, report, pictures).unwrap_or(old);
        text += END;
        text.push('\n');
    }
    Ok(text)
}

/// What stands at a place. `None` if it was not measured.
fn figures(name: &str, report: &Report, pictures: &Path) -> Option<String> {
    let run = |measured: bool| measured.then(|| format!("{}.\n", report.run()));

    match name {
        "run" => run(!report.answers.is_empty()),
        "run-scaling" => run(!report.curves.is_empty()),
        "run-instructions" => run(!report.steps.is_empty()),
        "targets" => targets(&report.answers),
        "instructions" => instructions(report),
        _ => {
            let picture = pictures.join(name).with_extension("svg");
            let question = report.answers.iter().find(|answer| answer.name == name);
            let curve = report.curves.iter().find(|curve| curve.name == name);
            match (question, curve) {
                (Some(answer), _) => of_question(answer, &picture),
                (None, Some(curve)) => Some(of_curve(curve, &picture)),
                (None, None) => None,
            }
        }
    }
}

fn of_question(answer: &Answered, picture: &Path) -> Option<String> {
    if answer.kinds.is_empty() {
        return None;
    }
    let mut text = format!("![{}]({})\n\n{}", answer.title, picture.display(), table(&answer.rows()));
    for (kind, why) in &answer.skipped {
        let _ = write!(text, "\n{kind} has no figures in a round or all: {why}.\n");
    }
    Some(text)
}

fn of_curve(curve: &Curve, picture: &Path) -> String {
    let mut rows = curve.rows();
    rows[0][0] = format!("{}: {}", curve.x, curve.y);
    format!("![{}: {}]({})\n\n{}", curve.title, curve.y, picture.display(), table(&rows))
}

/// All targets, and what came of them.
fn targets(answers: &[Answered]) -> Option<String> {
    let mut rows = vec![["question", "to reach", "median", ""].map(str::to_owned).to_vec()];
    for answer in answers {
        for reached in &answer.targets {
            let median = reached.median.map(number).unwrap_or_default();
            let verdict = reached.verdict().to_lowercase();
            rows.push(vec![format!("`{}`", answer.name), reached.target.clone(), median, verdict]);
        }
    }
    (1 < rows.len()).then(|| table(&rows))
}

fn instructions(report: &Report) -> Option<String> {
    let mut rows = vec![["step", "instructions", "to reach", "allocations"].map(str::to_owned).to_vec()];
    rows.extend(report.steps.iter().map(|step| {
        let whole = |value: f64| number(value.round()).trim_end_matches(".00").to_owned();
        let most = step.to_reach.map(|most| format!("≤ {}", whole(most))).unwrap_or_default();
        vec![step.title.clone(), whole(step.instructions), most, format!("{:.2}", step.allocations)]
    }));
    (1 < rows.len()).then(|| table(&rows))
}

fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (place, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if place == 0 {
            let _ = writeln!(text, "|---|{}", "---:|".repeat(row.len() - 1));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{OfKind, OfMetric};

    fn report() -> Report {
        let metrics = vec![OfMetric { metric: "calls/s".into(), median: 1_200.0, rounds: vec![1_200.0] }];
        let answer = Answered {
            name: "calls".into(),
            title: "how many?".into(),
            kinds: vec![OfKind { kind: "bothways".into(), metrics }],
            ratios: Default::default(),
            targets: Vec::new(),
            skipped: [("go-rpcx".to_owned(), "no Go".to_owned())].into(),
        };
        Report { answers: vec![answer], ..Report::default() }
    }

    #[test]
    fn figures_stand_where_the_page_has_a_place_for_them() {
        let page = "words\n<!-- figures: calls -->\nold\n<!-- end -->\n<!-- figures: other -->\nkept\n<!-- end -->\n";
        let filled = filled(page, &report(), Path::new("pictures")).expect("each place has an end");
        for part in [
            "words\n<!-- figures: calls -->\n![how many?](pictures/calls.svg)\n\n|  | calls/s |\n|---|---:|\n| bothways | 1,200 |\n",
            "go-rpcx has no figures in a round or all: no Go.\n<!-- end -->\n",
            "<!-- figures: other -->\nkept\n<!-- end -->\n",
        ] {
            assert!(filled.contains(part), "no {part} in {filled}");
        }
        assert!(!filled.contains("old"));
    }

    #[test]
    fn a_place_without_an_end_is_an_error() {
        assert!(filled("<!-- figures: calls -->\n", &report(), Path::new("pictures")).is_err());
    }
}
