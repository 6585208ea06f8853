//! Log lines that a peer can cause: the first is logged at once, later ones at most once in a while, with the number
//! left out. So refusals are seen, and a flood of them fills no disk.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use bothways_proto::one_line;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The least time between two lines of one kind.
pub const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug)]
pub struct Calm {
    /// Lines that are told in one pause.
    lines: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the pause began, and the lines since then.
    told: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Default for Calm {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Calm {
    /// For so many lines in one pause; with 0, for none ever. Where one has no owner whose life it could share, it is a
    /// static.
    pub const fn new(lines: u32) -> Self {
        let state = State { told: None, lines: 0, left_out: 0 };
        Self { lines, state: parking_lot::const_mutex(state) }
    }

    /// Something happened. `Some`: tell it, and that so many before it were left out.
    pub fn due(&self) -> Option<u64> {
        if self.lines == 0 {
            return None;
        }
        let mut state = self.state.lock();
        let now = Instant::now();
        // A moment to come is of another runtime's clock, which was moved.
        let since = state.told.and_then(|told| now.checked_duration_since(told));
        let pauses = since.is_some_and(|since| since < PAUSE);
        if pauses && self.lines <= state.lines {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        if !pauses {
            (state.told, state.lines) = (Some(now), 0);
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

/// Tells a line if it is due, with how many were left out; else at level debug. `$calm, $level, ` and then as for
/// [`tracing::warn!`].
macro_rules! tell {
    ($calm:expr, $level:ident, $($line:tt)*) => {
        match $calm.due() {
            Some(left_out) => tracing::$level!(left_out, $($line)*),
            None => tracing::debug!($($line)*),
        }
    };
}
pub(crate) use tell;

/// As much as a line of the log shows of what a peer says: 1 KiB.
const SAID_BYTES_MAX: usize = 1 << 10;

/// What a peer says, for a line of the log: on one line, and cut.
pub(crate) struct Said<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Shown { f, left: SAID_BYTES_MAX, is_cut: false };
        let outcome = write!(Escaped(&mut shown), "{}", self.0);
        if shown.is_cut { shown.f.write_str("…") } else { outcome }
    }
}

/// In quotes, as for a name among others.
impl<T: fmt::Display> fmt::Debug for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.to_string(), f)
    }
}

/// Puts what is written on one line.
struct Escaped<W>(W);

impl<W: fmt::Write> fmt::Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write!(self.0, "{}", one_line(text))
    }
}

/// Stops the writer when more is written.
struct Shown<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    left: usize,
    is_cut: bool,
}

impl fmt::Write for Shown<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let shown = &text[..text.floor_char_boundary(self.left)];
        self.f.write_str(shown)?;
        self.left -= shown.len();
        self.is_cut = shown.len() < text.len();
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer fills no line, and forges none.
    #[test]
    fn a_line_shows_so_much_of_what_a_peer_says() {
        assert_eq!(Said("no\nway").to_string(), "no\\nway");
        assert_eq!(format!("{:?}", Said("T method=Other")), "\"T method=Other\"");
        let whole = "x".repeat(SAID_BYTES_MAX);
        assert_eq!(Said(&whole).to_string(), whole);
        for more in ["x", "ä", "\u{1b}"] {
            let long = more.repeat(4 << 20);
            for shown in [Said(&long).to_string(), Said(format_args!("x{long}{whole}")).to_string()] {
                assert!(shown.ends_with('…') && shown.len() <= SAID_BYTES_MAX + "…".len(), "{}", shown.len());
                assert!(SAID_BYTES_MAX < shown.len() + 2, "{}", shown.len());
            }
        }
    }

    /// Lines of which each is looked for: so many at once, and then no more.
    #[tokio::test(start_paused = true)]
    async fn so_many_lines_are_told_at_once() {
        let calm = Calm::new(3);
        assert_eq!([(); 5].map(|()| calm.due()), [Some(0), Some(0), Some(0), None, None]);
        tokio::time::advance(PAUSE).await;
        assert_eq!([(); 4].map(|()| calm.due()), [Some(2), Some(0), Some(0), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_told_where_none_may_be() {
        let calm = Calm::new(0);
        assert_eq!((calm.due(), calm.due()), (None, None));
        tokio::time::advance(PAUSE * 2).await;
        assert_eq!(calm.due(), None);
    }

    /// The first is told, then one each ten seconds, with how many were not.
    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_line_each_ten_seconds() {
        let calm = Calm::default();
        assert_eq!(calm.due(), Some(0));
        assert_eq!((0..1000).filter_map(|_| calm.due()).count(), 0);
        tokio::time::advance(PAUSE - Duration::from_millis(1)).await;
        assert_eq!(calm.due(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((calm.due(), calm.due()), (Some(1001), None));
    }
}
