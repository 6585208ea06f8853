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
//! The clock is nanoseconds since 1970 as 8 bytes, big-endian. On one connection it always goes forward.

use std::time::{SystemTime, UNIX_EPOCH};

/// The name of the service.
pub const SERVICE: &str = "Bench";
/// Answers its payload.
pub const ECHO: &str = "Echo";
/// Answers its record (MessagePack). Our server only: it is for clients of ours, see `pair.rs`.
pub const RECORD: &str = "Record";
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
        let mut words = str::from_utf8(payload).ok()?.split_ascii_whitespace();
        let (count, size) = (words.next()?.parse().ok()?, words.next()?.parse::<usize>().ok()?);
        words.next().is_none().then_some(Self { count, size: size.max(CLOCK_LEN) })
    }
}

impl std::fmt::Display for BroadcastArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.count, self.size)
    }
}

/// Nanoseconds since 1970. All processes of one machine read the same clock.
pub fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_nanos()).expect("the clock is before the year 2554")
}

/// Stamps the messages of one broadcast. No two get the same time, and none an earlier one than the
/// message before: whoever receives them can tell that each came once and in order.
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
