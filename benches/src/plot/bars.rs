//! A bar for each kind.

use super::{Svg, WIDTH, escaped, short};
use crate::compare::{Answered, Report};

/// Where bars begin: left of it stand the names.
const BARS_AT: f64 = 140.0;
/// Right of the longest bar stands its figure.
const FIGURE_WIDTH: f64 = 190.0;
const BAR_HEIGHT: f64 = 24.0;
const BAR_STEP: f64 = 34.0;
const TOP: f64 = 64.0;

/// One question's picture. `None` if nothing was measured.
pub(super) fn bars(report: &Report, answer: &Answered) -> Option<String> {
    let bars: Vec<_> = answer.kinds.iter().filter_map(|kind| Some((&*kind.kind, kind.metrics.first()?))).collect();
    let (_, first) = bars.first()?;
    let longest = bars.iter().map(|(_, metric)| metric.median).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + BAR_STEP * bars.len() as f64 + 28.0;

    let mut svg = Svg::new(height, &answer.title, &first.metric);
    for (place, (kind, metric)) in bars.iter().enumerate() {
        let y = TOP + BAR_STEP * place as f64;
        let text_y = y + BAR_HEIGHT * 0.7;
        let width = (WIDTH - BARS_AT - FIGURE_WIDTH) * (metric.median / longest).max(0.0);
        let colour = if place == 0 { "c0" } else { "c1" };
        let (kind, figure) = (escaped(kind), short(metric.median));
        let figure_x = BARS_AT + width + 8.0;

        svg.put(format_args!(
            r#"<text class="ink" x="{}" y="{text_y:.1}" text-anchor="end">{kind}</text>"#,
            BARS_AT - 8.0
        ));
        svg.put(format_args!(
            r#"<rect class="{colour}" x="{BARS_AT}" y="{y:.1}" width="{width:.1}" height="{BAR_HEIGHT}"/>"#
        ));
        svg.put(format_args!(
            r#"<text class="ink" x="{figure_x:.1}" y="{text_y:.1}">{figure}{}</text>"#,
            spread(&metric.rounds)
        ));
    }
    Some(svg.end(height, report))
}

/// The smallest and the largest round, where there are several.
fn spread(rounds: &[f64]) -> String {
    if rounds.len() < 2 {
        return String::new();
    }
    let (least, most) = rounds.iter().fold((f64::MAX, f64::MIN), |(least, most), of| (least.min(*of), most.max(*of)));
    format!(" ({}–{})", short(least), short(most))
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
            targets: Vec::new(),
            skipped: Default::default(),
        };
        let report = Report { commit: "c".into(), machine: "m".into(), rounds: 2, ..Report::default() };
        let svg = bars(&report, &answer).expect("there are figures");
        assert_eq!((svg.matches("<rect").count(), svg.matches("class=\"c0\"").count()), (3, 1));
        for part in ["a &lt; b &amp; c", "600 k (500 k–600 k)", "1.2 M<", "width=\"235.0\"", "width=\"470.0\""] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(bars(&report, &Answered { kinds: Vec::new(), ..answer }), None);
    }
}
