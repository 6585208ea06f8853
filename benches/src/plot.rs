//! Pictures of the figures, as SVG, which is text. They follow the reader's choice of light or dark.
//!
//! | file | what it draws |
//! |---|---|
//! | `bars.rs` | a question: a bar for each kind |
//! | `lines.rs` | a curve: a line for each kind, both axes in powers of ten |

mod bars;
mod lines;

use std::{
    fmt::{Arguments, Write},
    fs,
    path::Path,
};

use anyhow::Context;

use self::{bars::bars, lines::lines};
use crate::compare::Report;

const WIDTH: f64 = 800.0;

/// Draws every question and every curve that has figures, each into a file of a directory.
pub(crate) fn draw(report: &Report, out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out)?;
    let questions = report.answers.iter().map(|answer| (&answer.name, bars(report, answer)));
    let curves = report.curves.iter().map(|curve| (&curve.name, lines(report, curve)));
    for (name, picture) in questions.chain(curves) {
        let Some(picture) = picture else { continue };
        let path = out.join(name).with_extension("svg");
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A picture while it is drawn.
struct Svg(String);

impl Svg {
    /// Its frame, with a title and a line below that says what is shown.
    fn new(height: f64, title: &str, what: &str) -> Self {
        let mut svg = Self(String::new());
        svg.put(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif" font-size="13">"#
        ));
        svg.put(format_args!("<style>{LIGHT} @media (prefers-color-scheme: dark) {{{DARK}}}</style>"));
        svg.put(format_args!(r#"<rect class="ground" width="{WIDTH}" height="{height:.0}"/>"#));
        svg.put(format_args!(
            r#"<text class="ink" x="12" y="24" font-size="14" font-weight="bold">{}</text>"#,
            escaped(title)
        ));
        svg.put(format_args!(r#"<text class="soft" x="12" y="46">{}</text>"#, escaped(what)));
        svg
    }

    fn put(&mut self, text: Arguments<'_>) {
        self.0.write_fmt(text).and_then(|()| self.0.write_char('\n')).expect("a string takes all text");
    }

    /// Where and when it was measured stands at the foot.
    fn end(mut self, height: f64, report: &Report) -> String {
        let of = escaped(&report.run());
        let y = height - 12.0;
        self.put(format_args!(r#"<text class="soft" x="12" y="{y:.1}" font-size="11">{of}</text>"#));
        self.put(format_args!("</svg>"));
        self.0
    }
}

/// Colours: the ground, what is written, grids, and one for each line; ours comes first.
const LIGHT: &str = ".ground{fill:#fff} .ink{fill:#0f172a} .soft{fill:#475569} .grid{stroke:#e2e8f0} \
    .c0{fill:#c2410c;stroke:#c2410c} .c1{fill:#64748b;stroke:#64748b} .c2{fill:#0369a1;stroke:#0369a1}";
const DARK: &str = ".ground{fill:#0d1117} .ink{fill:#e6edf3} .soft{fill:#9da7b3} .grid{stroke:#30363d} \
    .c0{fill:#fb923c;stroke:#fb923c} .c1{fill:#94a3b8;stroke:#94a3b8} .c2{fill:#38bdf8;stroke:#38bdf8}";

/// Few characters for a figure.
fn short(value: f64) -> String {
    let trimmed = |text: String, unit: &str| format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'));
    match value.abs() {
        1e6.. => trimmed(format!("{:.2}", value / 1e6), " M"),
        1e4.. => format!("{:.0} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        0.01.. => trimmed(format!("{value:.2}"), ""),
        _ => trimmed(format!("{value:.5}"), ""),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
