//! Terminal output: colours where wanted, escaped text, times.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use bothways::codec::time::rfc3339;

use crate::failure::Failure;

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    pub(crate) fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    pub(crate) fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { on: terminal && !no_color && !dumb }
    }

    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.wrap("36", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Standard output. A reader that has enough ends the program in peace.
#[derive(Debug)]
pub(crate) struct Out {
    stdout: io::Stdout,
}

impl Out {
    pub(crate) fn new() -> Self {
        Self { stdout: io::stdout() }
    }

    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        let mut out = self.stdout.lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = self.stdout.lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
    }
}

/// A line on standard error. Nobody can be told if that fails.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A payload from a peer, with what could steer a terminal written as escapes. It may have several lines: for all
/// else there is [`one_line`].
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if is_control(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A name or a notice from a peer: on one line, whatever is in it.
pub(crate) fn one_line(text: &str) -> String {
    bothways_proto::one_line(text).to_string()
}

/// Control characters, and those that change the direction of the text round them.
pub(crate) fn is_control(c: char) -> bool {
    bothways_proto::steers(c)
}

/// Characters in a line: 80, or what `COLUMNS` says, as far as tables and stories can do with it.
pub(crate) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.filter(|columns| (60..=1000).contains(columns)).unwrap_or(80)
}

/// Breaks a line between words, so that it has room; what follows begins so far in. A word that is longer than a line
/// stays whole.
pub(crate) fn wrap(line: &str, indent: usize) -> Vec<String> {
    wrap_at(line, indent, width())
}

pub(crate) fn wrap_at(line: &str, indent: usize, width: usize) -> Vec<String> {
    let begin = line.len() - line.trim_start().len();
    let (mut lines, mut at) = (vec![line[..begin].to_owned()], begin);
    let mut is_begun = false;

    for word in line[begin..].split(' ') {
        let len = word.chars().count();
        if is_begun && width < at + 1 + len {
            lines.push(" ".repeat(indent));
            (at, is_begun) = (indent, false);
        }

        let last = lines.last_mut().expect("there is a line");
        if is_begun {
            last.push(' ');
            at += 1;
        }
        last.push_str(word);
        (at, is_begun) = (at + len, true);
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Cuts a text that is longer than `max` characters, and says so.
pub(crate) fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}… ({} bytes in all)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

/// A time as people read it: `340 µs`, `2.1 ms`, `1.50 s`.
pub(crate) fn time(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e5 => format!("{:.1} µs", n / 1e3),
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e8 => format!("{:.1} ms", n / 1e6),
        n if n < 1e9 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

/// A number with its noun, which gets an `s` unless it is one.
pub(crate) fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{} {noun}s", grouped(n)) }
}

/// A number with commas between thousands.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in milliseconds since 1970 as RFC 3339 in UTC, to the second; `-` if it is none.
pub(crate) fn utc(at_ms: u64) -> String {
    let at = (at_ms != 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms));
    at.and_then(|at| rfc3339(at, 0)).unwrap_or_else(|| "-".to_owned())
}

/// The time of day as RFC 3339 in UTC, with milliseconds.
pub(crate) fn now() -> String {
    rfc3339(SystemTime::now(), 3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\n"), "a\\u{1b}[2Jb\\u{202e}c\n");
        assert_eq!(one_line("P\n2026 forged\tx"), "P\\n2026 forged\\tx");
    }

    #[test]
    fn times_have_few_digits() {
        for (nanos, shown) in [
            (5, "5 ns"),
            (12_340, "12.3 µs"),
            (340_000, "340 µs"),
            (2_100_000, "2.1 ms"),
            (210_000_000, "210 ms"),
            (1_500_000_000, "1.50 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), shown);
        }
        assert_eq!((grouped(1), grouped(1_234_567)), ("1".to_owned(), "1,234,567".to_owned()));
        assert_eq!((count(1, "call"), count(2000, "call")), ("1 call".to_owned(), "2,000 calls".to_owned()));
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap_at("short", 4, 10), ["short"]);
        assert_eq!(wrap_at("  one two  three four", 4, 12), ["  one two", "    three", "    four"]);
        assert_eq!(wrap_at("0123456789abcdef x", 2, 10), ["0123456789abcdef", "  x"]);
        assert_eq!(wrap_at("", 2, 10), [""]);
    }

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöü", 2), "äö… (6 bytes in all)");
    }
}
