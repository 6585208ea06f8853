//! The service `Bench` on the wire, so that one load generator measures every server alike.
//!
//! All payloads are raw bytes (serialize type 0).
//!
//! | method | argument | reply | meaning |
//! |---|---|---|---|
//! | `Echo` | bytes | the same | |
//! | `Join` | empty | empty | this connection gets broadcasts from now on |
//! | `Broadcast` | `COUNT SIZE` in decimal | empty | COUNT pushes of SIZE bytes, at least 8, to `Bench`/`Tick` on every joined connection; each begins with the wall clock |
//!
//! Our server has some more, for questions that are put to it alone:
//!
//! | method | argument | reply | meaning |
//! |---|---|---|---|
//! | `Record` | a record | the same | MessagePack, for our own client (`pair.rs`) |
//! | `Enter` | empty | empty | the session of this connection has a user and one topic from now on |
//! | `Publish` | `COUNT SIZE MICROS` in decimal | `WRITTEN FULL ENDED BYTES` in decimal | COUNT pushes of SIZE bytes to that topic, one every MICROS, each with the clock; the reply says when all have an outcome what they were, and what a session may take at most |
//! | `Fill` | `SIZE` in decimal | SIZE bytes | a large reply |
//! | `Tell` | bytes, at least 8 | none, none is wanted | a push of as many bytes, which begins with how much of large replies is written (`fairness.rs`) |
//! | `Hold` | empty | none | runs for as long as the connection |
//!
//! The clock is nanoseconds since 1970 as 8 bytes, big-endian. On one connection it always goes forward.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The name of the service.
pub const SERVICE: &str = "Bench";
/// Answers its payload.
pub const ECHO: &str = "Echo";
/// Answers its record. Our server only, as are the following but [`JOIN`] and [`BROADCAST`].
pub const RECORD: &str = "Record";
/// Gives the session a user and one topic.
pub const ENTER: &str = "Enter";
/// Pushes to the sessions that have entered.
pub const PUBLISH: &str = "Publish";
/// Answers with so many bytes.
pub const FILL: &str = "Fill";
/// Pushes how much was written on another connection.
pub const TELL: &str = "Tell";
/// Never answers.
pub const HOLD: &str = "Hold";
/// Adds the connection to those that get broadcasts.
pub const JOIN: &str = "Join";
/// Pushes to all that have joined.
pub const BROADCAST: &str = "Broadcast";
/// The method of the pushes.
pub const TICK: &str = "Tick";

/// Bytes of the clock at the start of a push.
pub const CLOCK_LEN: usize = 8;

/// What a broadcast is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BroadcastArgs {
    /// Pushes to each connection.
    pub count: usize,
    /// Payload bytes of each push.
    pub size: usize,
}

impl BroadcastArgs {
    /// Reads `COUNT SIZE`. `None` if the payload is anything else.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [count, size] = numbers(payload)?.try_into().ok()?;
        Some(Self { count: usize::try_from(count).ok()?, size: usize::try_from(size).ok()?.max(CLOCK_LEN) })
    }
}

impl std::fmt::Display for BroadcastArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.count, self.size)
    }
}

/// What is published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublishArgs {
    /// Pushes to each session.
    pub count: usize,
    /// Payload bytes of each push.
    pub size: usize,
    /// From one push to the next.
    pub every: Duration,
}

impl PublishArgs {
    /// Reads `COUNT SIZE MICROS`. `None` if the payload is anything else.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [count, size, micros] = numbers(payload)?.try_into().ok()?;
        let every = Duration::from_micros(micros);
        Some(Self { count: usize::try_from(count).ok()?, size: usize::try_from(size).ok()?.max(CLOCK_LEN), every })
    }
}

impl std::fmt::Display for PublishArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.count, self.size, self.every.as_micros())
    }
}

/// What became of all pushes that were published.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Taken whole by the kernel.
    pub written: u64,
    /// Dropped since too much waited.
    pub dropped_full: u64,
    /// Dropped since the connection ended.
    pub dropped_ended: u64,
    /// What one session may take by the documented sum, in bytes.
    pub session_bytes_max: u64,
}

impl Published {
    /// Reads `WRITTEN FULL ENDED BYTES`. `None` if the payload is anything else.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [written, dropped_full, dropped_ended, session_bytes_max] = numbers(payload)?.try_into().ok()?;
        Some(Self { written, dropped_full, dropped_ended, session_bytes_max })
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.written, self.dropped_full, self.dropped_ended, self.session_bytes_max)
    }
}

fn numbers(payload: &[u8]) -> Option<Vec<u64>> {
    str::from_utf8(payload).ok()?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

/// Nanoseconds since 1970. All processes of one machine read the same clock.
pub fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_nanos()).expect("the clock is before the year 2554")
}

/// Stamps the messages of one broadcast. No two get the same time, and none an earlier one than the
/// message before: the receiver can check that each came once and in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamps {
    last: u64,
}

impl Stamps {
    /// Puts the clock where a push carries it.
    pub fn stamp(&mut self, payload: &mut [u8]) {
        self.last = wall_clock().max(self.last + 1);
        payload[..CLOCK_LEN].copy_from_slice(&self.last.to_be_bytes());
    }
}

/// The clock that a push carries. `None` if it is too short for one.
pub fn stamped(payload: &[u8]) -> Option<u64> {
    payload.first_chunk().map(|clock| u64::from_be_bytes(*clock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broadcast_is_two_numbers() {
        assert_eq!(BroadcastArgs::parse(b"200 128"), Some(BroadcastArgs { count: 200, size: 128 }));
        assert_eq!(BroadcastArgs::parse(b"1 0"), Some(BroadcastArgs { count: 1, size: CLOCK_LEN }));
        for wrong in [&b""[..], b"1", b"1 2 3", b"a 1", b"-1 8", b"\xff 1"] {
            assert_eq!(BroadcastArgs::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_published_is_read_as_it_is_written() {
        let args = PublishArgs { count: 3, size: 128, every: Duration::from_millis(2) };
        assert_eq!(PublishArgs::parse(args.to_string().as_bytes()), Some(args));
        let published = Published { written: 1, dropped_full: 2, dropped_ended: 3, session_bytes_max: 4 };
        assert_eq!(Published::parse(published.to_string().as_bytes()), Some(published));
        assert_eq!((PublishArgs::parse(b"1 2"), Published::parse(b"1 2 3 4 5")), (None, None));
    }

    #[test]
    fn a_push_tells_when_it_was_sent() {
        let (before, mut payload, mut stamps) = (wall_clock(), [7; 9], Stamps::default());
        stamps.stamp(&mut payload);
        let clock = stamped(&payload).expect("a clock");
        assert!(before <= clock && clock <= wall_clock());
        let mut last = clock;
        for _ in 0..1000 {
            stamps.stamp(&mut payload);
            assert!(last < stamped(&payload).expect("a clock"));
            last = stamped(&payload).expect("a clock");
        }
        assert_eq!((payload[8], stamped(&payload[..7])), (7, None));
    }
}
