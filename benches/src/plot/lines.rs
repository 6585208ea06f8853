//! A line for each kind, both axes in powers of ten: what doubles with each doubling is a straight line.

use super::{Svg, WIDTH, escaped, short};
use crate::compare::{Curve, Line, Report};

const HEIGHT: f64 = 380.0;
const LEFT: f64 = 76.0;
/// Right of the lines stand their names.
const RIGHT: f64 = WIDTH - 220.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = HEIGHT - 66.0;

/// One curve's picture. `None` if nothing was measured, or something that has no place on such axes.
pub(super) fn lines(report: &Report, curve: &Curve) -> Option<String> {
    let points = || curve.lines.iter().flat_map(|line| &line.points);
    let xs = Axis::of(points().map(|point| point.x as f64), LEFT, RIGHT)?;
    let ys = Axis::of(points().map(|point| point.median), BOTTOM, TOP)?.rounded();

    let mut svg = Svg::new(HEIGHT, &curve.title, &curve.y);
    for y in ys.ticks() {
        let at = ys.place(y);
        svg.put(format_args!(r#"<path class="grid" d="M{LEFT} {at:.1}H{RIGHT}"/>"#));
        svg.put(format_args!(
            r#"<text class="soft" x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            at + 4.0,
            short(y)
        ));
    }

    for point in curve.lines.first().map_or(&[][..], |line: &Line| &line.points) {
        let at = xs.place(point.x as f64);
        svg.put(format_args!(r#"<path class="grid" d="M{at:.1} {TOP}V{BOTTOM}"/>"#));
        svg.put(format_args!(
            r#"<text class="soft" x="{at:.1}" y="{}" text-anchor="middle">{}</text>"#,
            BOTTOM + 18.0,
            if curve.x.contains("bytes") { binary(point.x) } else { short(point.x as f64) }
        ));
    }

    svg.put(format_args!(
        r#"<text class="soft" x="{:.1}" y="{}" text-anchor="middle">{}</text>"#,
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 38.0,
        escaped(&curve.x)
    ));

    for (place, line) in curve.lines.iter().enumerate() {
        let places: Vec<_> =
            line.points.iter().map(|point| (xs.place(point.x as f64), ys.place(point.median))).collect();
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        svg.put(format_args!(r#"<path class="c{place}" style="fill:none;stroke-width:2" d="M{}"/>"#, path.join("L")));
        for (x, y) in &places {
            svg.put(format_args!(r#"<circle class="c{place}" cx="{x:.1}" cy="{y:.1}" r="3.5"/>"#));
        }

        let y = TOP + 10.0 + 22.0 * place as f64;
        svg.put(format_args!(r#"<circle class="c{place}" cx="{}" cy="{}" r="4"/>"#, RIGHT + 20.0, y - 4.0));
        svg.put(format_args!(r#"<text class="ink" x="{}" y="{y}">{}</text>"#, RIGHT + 32.0, escaped(&line.name)));
    }
    Some(svg.end(HEIGHT, report))
}

/// From values to places, by their logarithms.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Option<Self> {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(f64::NEG_INFINITY, f64::max);
        let is_drawable = 0.0 < least && most.is_finite();
        is_drawable.then_some(Self { least, most: if least < most { most } else { least * 2.0 }, from, to })
    }

    /// Wider, so that it begins and ends with a tick.
    fn rounded(self) -> Self {
        let steps: Vec<_> = steps(self.least / 10.0, self.most * 10.0).collect();
        let least = steps.iter().copied().rfind(|step| *step <= self.least).unwrap_or(self.least);
        let most = steps.iter().copied().find(|step| self.most <= *step).unwrap_or(self.most);
        Self { least, most, ..self }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        self.from + share * (self.to - self.from)
    }

    /// 1, 2 and 5 of each power of ten; over many of them only 1.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let sparse = 3e2 < self.most / self.least;
        let (least, most) = (self.least, self.most);
        let is_one = |step: &f64| (step.log10() - step.log10().round()).abs() < 1e-9;
        steps(least / 1.001, most * 1.001)
            .filter(move |step| !sparse || is_one(step) || *step <= least * 1.01 || most / 1.01 <= *step)
    }
}

/// 1, 2 and 5 of each power of ten from `least` to `most`.
fn steps(least: f64, most: f64) -> impl Iterator<Item = f64> {
    let first = least.log10().floor() as i32;
    let tens = first..=most.log10().ceil() as i32;
    tens.flat_map(|ten| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(ten)))
        .filter(move |step| (least..=most).contains(step))
}

/// 65,536 as 64 Ki.
fn binary(value: usize) -> String {
    match value {
        0..1024 => value.to_string(),
        1024..1_048_576 => format!("{} Ki", value / 1024),
        _ => format!("{} Mi", value >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Point;

    fn curve(lines: &[(&str, &[(usize, f64)])]) -> Curve {
        let lines = lines.iter().map(|(name, points)| {
            let points = points.iter().map(|&(x, median)| Point { x, median, rounds: vec![median] });
            Line { name: (*name).to_owned(), points: points.collect() }
        });
        let [name, title, x, y] = ["n", "t", "bytes of payload", "ns/byte"].map(str::to_owned);
        Curve { name, title, x, y, lines: lines.collect() }
    }

    #[test]
    fn equal_factors_are_equal_distances() {
        let xs = Axis::of([64.0, 1_048_576.0].into_iter(), 0.0, 14.0).expect("values above zero");
        for (power, place) in [(6, 0.0), (7, 1.0), (13, 7.0), (20, 14.0)] {
            assert!((xs.place(2_f64.powi(power)) - place).abs() < 1e-9);
        }
        let ys = Axis::of([3.0, 42.0].into_iter(), 0.0, 1.0).expect("values above zero").rounded();
        assert_eq!(ys.ticks().map(|tick| tick.round()).collect::<Vec<_>>(), [2.0, 5.0, 10.0, 20.0, 50.0]);
    }

    #[test]
    fn a_picture_has_a_line_for_each_kind_and_a_label_for_each_step() {
        let curve = curve(&[("bothways", &[(64, 20.0), (65_536, 0.5)]), ("limit", &[(64, 9.0), (65_536, 0.2)])]);
        let svg = lines(&Report::default(), &curve).expect("there are figures");
        assert_eq!((svg.matches("fill:none").count(), svg.matches("<circle").count()), (2, 6));
        for part in [">64<", ">64 Ki<", ">bothways<", ">limit<", ">ns/byte<", ">bytes of payload<", ">0.2<", ">20<"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(lines(&Report::default(), &self::curve(&[("bothways", &[(64, 0.0)])])), None);
    }
}
