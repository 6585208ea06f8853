//! A picture for each question: one bar for each kind, as SVG, which is text.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;

use crate::compare::{Answered, Report};

const WIDTH: f64 = 760.0;
/// Where bars begin: left of it stand the names.
const BARS_AT: f64 = 110.0;
/// Right of the longest bar stands its figure.
const FIGURE_WIDTH: f64 = 150.0;
const BAR_HEIGHT: f64 = 24.0;
const BAR_STEP: f64 = 34.0;
const TOP: f64 = 64.0;

const OURS: &str = "#c2410c";
const OTHERS: &str = "#94a3b8";

/// What to draw, and where to.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// What `compare --json` wrote.
    json: PathBuf,
    /// A directory: each question becomes NAME.svg in it.
    #[arg(long, default_value = "docs/performance")]
    out: PathBuf,
}

/// Draws every question that has figures.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(args: &PlotArgs) -> anyhow::Result<()> {
    let json = fs::read_to_string(&args.json).with_context(|| format!("cannot read {}", args.json.display()))?;
    let report: Report = serde_json::from_str(&json)?;
    fs::create_dir_all(&args.out)?;
    for answer in &report.answers {
        let Some(picture) = picture(&report, answer) else { continue };
        let path = args.out.join(Path::new(&answer.name).with_extension("svg"));
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// One question's picture. `None` if nothing was measured.
pub fn picture(report: &Report, answer: &Answered) -> Option<String> {
    let bars: Vec<_> = answer.kinds.iter().filter_map(|kind| Some((&*kind.kind, kind.metrics.first()?))).collect();
    let (_, first) = bars.first()?;
    let longest = bars.iter().map(|(_, metric)| metric.median).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + BAR_STEP * bars.len() as f64 + 28.0;

    let mut svg = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        svg.write_fmt(text).and_then(|()| svg.write_char('\n')).expect("a string takes all text");
    };
    line(format_args!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="#0f172a">"##
    ));
    line(format_args!(r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##));
    line(format_args!(r#"<text x="12" y="24" font-size="14" font-weight="bold">{}</text>"#, escaped(&answer.title)));
    line(format_args!(r##"<text x="12" y="46" fill="#475569">{}</text>"##, escaped(&first.metric)));
    for (place, (kind, metric)) in bars.iter().enumerate() {
        let y = TOP + BAR_STEP * place as f64;
        let text_y = y + BAR_HEIGHT * 0.7;
        let width = (WIDTH - BARS_AT - FIGURE_WIDTH) * (metric.median / longest).max(0.0);
        let colour = if place == 0 { OURS } else { OTHERS };
        let (kind, figure) = (escaped(kind), number(metric.median));
        let figure_x = BARS_AT + width + 8.0;
        line(format_args!(r#"<text x="{}" y="{text_y:.1}" text-anchor="end">{kind}</text>"#, BARS_AT - 8.0));
        line(format_args!(
            r#"<rect x="{BARS_AT}" y="{y:.1}" width="{width:.1}" height="{BAR_HEIGHT}" fill="{colour}"/>"#
        ));
        line(format_args!(r#"<text x="{figure_x:.1}" y="{text_y:.1}">{figure}{}</text>"#, spread(&metric.rounds)));
    }
    let of = format!("{}; {}; median of {} rounds", report.machine, report.commit, report.rounds);
    line(format_args!(
        r##"<text x="12" y="{:.1}" font-size="11" fill="#64748b">{}</text>"##,
        height - 12.0,
        escaped(&of)
    ));
    line(format_args!("</svg>"));
    Some(svg)
}

/// The smallest and the largest round, where there are several.
fn spread(rounds: &[f64]) -> String {
    if rounds.len() < 2 {
        return String::new();
    }
    let (least, most) = rounds.iter().fold((f64::MAX, f64::MIN), |(least, most), of| (least.min(*of), most.max(*of)));
    format!(" ({}–{})", number(least), number(most))
}

fn number(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{:.2} M", value / 1e6),
        1e4.. => format!("{:.0} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{OfKind, OfMetric};

    #[test]
    fn a_picture_has_a_bar_for_each_kind() {
        let kind = |kind: &str, rounds: Vec<f64>| OfKind {
            kind: kind.into(),
            metrics: vec![OfMetric { metric: "calls/s".into(), median: rounds[0], rounds }],
        };
        let answer = Answered {
            name: "calls".into(),
            title: "calls: a < b & c".into(),
            kinds: vec![kind("bothways", vec![600_000.0, 500_000.0]), kind("go-rpcx", vec![1_200_000.0])],
            ratios: Default::default(),
            skipped: Default::default(),
        };
        let report =
            Report { commit: "c".into(), machine: "m".into(), rounds: 2, quick: false, answers: vec![answer.clone()] };
        let svg = picture(&report, &answer).expect("there are figures");
        assert_eq!((svg.matches("<rect").count(), svg.matches(OURS).count()), (3, 1));
        for part in ["a &lt; b &amp; c", "600 k (500 k–600 k)", "1.20 M<", "width=\"250.0\"", "width=\"500.0\""] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(picture(&report, &Answered { kinds: Vec::new(), ..answer }), None);
    }
}
