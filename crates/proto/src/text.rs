//! Shows a peer's text on one line of a log or a terminal.

use std::fmt::{self, Write};

/// Shows a text on one line: line breaks, tabs and other control characters, and marks that turn the direction of
/// writing, appear as escapes. So nobody forges a line in a log, or steers a terminal.
///
/// ```
/// use bothways_proto::one_line;
///
/// assert_eq!(one_line("busy\n2026-01-01 forged").to_string(), "busy\\n2026-01-01 forged");
/// ```
pub fn one_line(text: &str) -> OneLine<'_> {
    OneLine(text)
}

/// See [`one_line`].
#[derive(Clone, Copy, Debug)]
pub struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(steers) {
            f.write_str(&rest[..at])?;
            let mut chars = rest[at..].chars();
            match chars.next() {
                Some(c @ ('\n' | '\r' | '\t')) => c.escape_default().try_for_each(|c| f.write_char(c))?,
                Some(c) => c.escape_unicode().try_for_each(|c| f.write_char(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// True for control characters, separators of lines, and marks that change the direction of the text round them.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever comes, what is shown has one line; what steers nothing stays as it is.
    #[test]
    fn every_text_is_one_line() {
        for (text, shown) in [
            ("", ""),
            ("plain: ä 漢 🦀 \\n", "plain: ä 漢 🦀 \\n"),
            ("a\nb\r\n\tc", "a\\nb\\r\\n\\tc"),
            ("\u{1b}[2J\u{9b}2J\u{7f}\0", "\\u{1b}[2J\\u{9b}2J\\u{7f}\\u{0}"),
            ("\u{85}\u{2028}\u{2029}\u{202e}x\u{2066}\u{61c}", "\\u{85}\\u{2028}\\u{2029}\\u{202e}x\\u{2066}\\u{61c}"),
        ] {
            assert_eq!(one_line(text).to_string(), shown);
        }
    }
}
