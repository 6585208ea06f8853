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
//! | `Borrowed` | a record | the same | the handler reads it where it lies (`record.rs`) |
//! | `Enter` | empty, or a topic | empty | the session of this connection has a user and one topic from now on |
//! | `Publish` | `COUNT SIZE MICROS CLASS ORIGIN AWAY` | `WRITTEN HANDLED WAITING FULL ENDED BYTES` in decimal | COUNT pushes of SIZE bytes to that topic, one every MICROS, each with the clock. The reply comes when every push has an outcome, except for those to AWAY clients. It counts the outcomes, and says what a session may take at most |
//! | `Fill` | `SIZE` in decimal | SIZE bytes | a large reply |
//! | `Tell` | bytes, at least 8 | none, none is wanted | a push of as many bytes, which begins with how much of large replies is written (`fairness.rs`) |
//! | `Hold` | empty | none | runs for as long as the connection |
//!
//! The clock is nanoseconds since 1970 as 8 bytes, big-endian. On one connection it always goes forward.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bothways_proto::{FrameParts, Header, Limits, Metadata, Names, PREFIX_LEN, Seq, SerializeType};
use clap::ValueEnum;

/// The name of the service.
pub const SERVICE: &str = "Bench";
/// Answers its payload.
pub const ECHO: &str = "Echo";
/// Answers its record. Our server only, as are the following but [`JOIN`] and [`BROADCAST`].
pub const RECORD: &str = "Record";
/// As [`RECORD`], read where it lies.
pub const BORROWED: &str = "Borrowed";
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

/// The class of what is published, and whether its topic has a history.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Promise {
    /// `Class::Fire`.
    Fire,
    /// `Class::Tracked`.
    Tracked,
    /// `Class::Tracked`, on a topic with history.
    History,
}

impl Promise {
    /// The topic.
    pub fn topic(self) -> &'static str {
        match self {
            Self::Fire | Self::Tracked => "ticks",
            Self::History => "kept-ticks",
        }
    }
}

/// Which code publishes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Origin {
    /// A handler, before its first await.
    Handler,
    /// A spawned task.
    Task,
    /// A spawned task that yields after each push.
    YieldingTask,
}

/// What is published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublishArgs {
    /// Pushes to each session.
    pub count: usize,
    /// Payload bytes of each push.
    pub size: usize,
    /// From one push to the next; zero: as fast as it goes.
    pub every: Duration,
    /// Class and topic.
    pub promise: Promise,
    /// Which code publishes.
    pub origin: Origin,
    /// Subscribed sessions without a connection.
    pub away: usize,
}

impl PublishArgs {
    /// Pushes of class `Fire` from a handler. No client is away.
    pub fn new(count: usize, size: usize, every: Duration) -> Self {
        Self { count, size, every, promise: Promise::Fire, origin: Origin::Handler, away: 0 }
    }

    /// Reads `COUNT SIZE MICROS CLASS ORIGIN AWAY`. `None` if the payload is anything else.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let words: Vec<_> = str::from_utf8(payload).ok()?.split_ascii_whitespace().collect();
        let [count, size, micros, promise, origin, away] = words.try_into().ok()?;
        Some(Self {
            count: count.parse().ok()?,
            size: size.parse::<usize>().ok()?.max(CLOCK_LEN),
            every: Duration::from_micros(micros.parse().ok()?),
            promise: Promise::from_str(promise, false).ok()?,
            origin: Origin::from_str(origin, false).ok()?,
            away: away.parse().ok()?,
        })
    }
}

impl std::fmt::Display for PublishArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, size, every, promise, origin, away } = self;
        write!(f, "{count} {size} {} {} {} {away}", every.as_micros(), word(promise), word(origin))
    }
}

/// The name of a value on the command line.
pub fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("none is hidden").get_name().to_owned()
}

/// What became of all pushes that were published.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Taken whole by the kernel, and never acknowledged.
    pub written: u64,
    /// Acknowledged.
    pub handled: u64,
    /// Still queued: their clients are away.
    pub waiting: u64,
    /// Dropped since too much waited.
    pub dropped_full: u64,
    /// Dropped since the connection ended.
    pub dropped_ended: u64,
    /// What one session may take by the documented sum, in bytes.
    pub session_bytes_max: u64,
}

impl Published {
    /// Reads `WRITTEN HANDLED WAITING FULL ENDED BYTES`. `None` if the payload is anything else.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let [written, handled, waiting, dropped_full, dropped_ended, session_bytes_max] =
            numbers(payload)?.try_into().ok()?;
        Some(Self { written, handled, waiting, dropped_full, dropped_ended, session_bytes_max })
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { written, handled, waiting, dropped_full, dropped_ended, session_bytes_max } = self;
        write!(f, "{written} {handled} {waiting} {dropped_full} {dropped_ended} {session_bytes_max}")
    }
}

fn numbers(payload: &[u8]) -> Option<Vec<u64>> {
    str::from_utf8(payload).ok()?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

/// Appends a frame to these names.
pub fn put(out: &mut Vec<u8>, header: Header, (path, method): (&str, &str), metadata: &Metadata, payload: &[u8]) {
    let parts = FrameParts { header, names: Names::new(path, method), metadata, payload_len: payload.len() };
    parts.put_frame(out, payload, &Limits::default()).expect("a benchmark's payload is within the limits");
}

/// Appends a request of the contract that wants a reply.
pub fn put_request(out: &mut Vec<u8>, seq: u64, method: &str, payload: &[u8]) {
    put(out, Header::request(Seq::new(seq), SerializeType::RAW), (SERVICE, method), &Metadata::new(), payload);
}

/// Appends one that wants no reply: from a server, a push.
pub fn put_oneway(out: &mut Vec<u8>, seq: u64, method: &str, payload: &[u8]) {
    put(out, Header::oneway(Seq::new(seq), SerializeType::RAW), (SERVICE, method), &Metadata::new(), payload);
}

/// Path, method, metadata and payload of a whole frame. `None` if their lengths do not add up.
pub fn parts(frame: &[u8]) -> Option<[&[u8]; 4]> {
    let mut rest = frame.get(PREFIX_LEN..)?;
    let mut parts = [&[][..]; 4];
    for part in &mut parts {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        (*part, rest) = tail.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    }
    rest.is_empty().then_some(parts)
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
        let args = PublishArgs { away: 7, ..PublishArgs::new(3, 128, Duration::from_millis(2)) };
        for promise in Promise::value_variants() {
            for origin in Origin::value_variants() {
                let args = PublishArgs { promise: *promise, origin: *origin, ..args };
                assert_eq!(PublishArgs::parse(args.to_string().as_bytes()), Some(args));
            }
        }
        let published =
            Published { written: 1, handled: 2, waiting: 3, dropped_full: 4, dropped_ended: 5, session_bytes_max: 6 };
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
