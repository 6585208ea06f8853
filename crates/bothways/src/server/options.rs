//! The options of a server, by what they are about. Each group can be read from a file: feature `config`.

use std::time::Duration;

use bothways_proto::{Limits, Rate};

use super::admission::AdmissionOptions;
#[cfg(feature = "config")]
use crate::config;
use crate::{
    connection::{Overflow, Settings, UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION},
    options::{Heartbeat, QueueBound},
    session::SessionOptions,
};

/// All options of a server that are numbers: what a program reads from a file.
///
/// With the feature `config` it implements `serde::Deserialize`, as each of its groups does. Durations are texts such as
/// `"30s"` or `"1m 30s"`; sizes are numbers of bytes; a rate is `{ per_second = 100, burst = 500 }` or `"unlimited"`;
/// `heartbeat` is `{ interval = "15s", timeout = "10s" }` or `"never"`. A missing option has its default, and an unknown
/// name is an error.
///
/// ```toml
/// [sessions]
/// resume_window = "5m"
/// log = { messages = 2000, bytes = 2097152 }
///
/// [limits]
/// connections_max = 50000
/// frames = { body_bytes_max = 1048576 }
///
/// [admission]
/// new_sessions = { per_second = 2000, burst = 10000 }
/// ```
///
/// ```
/// use bothways::{Server, ServerOptions, SessionOptions};
///
/// let options = ServerOptions::new().sessions(SessionOptions::new().away_max(10_000));
/// let server = Server::builder().options(options).build();
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct ServerOptions {
    pub(super) limits: ServerLimits,
    pub(super) outgoing: OutgoingOptions,
    pub(super) admission: AdmissionOptions,
    pub(super) timeouts: Timeouts,
    pub(super) heartbeat: Heartbeat,
    pub(super) sessions: SessionOptions,
}

impl ServerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`ServerBuilder::limits`](super::ServerBuilder::limits).
    pub fn limits(mut self, limits: impl Into<ServerLimits>) -> Self {
        self.limits = limits.into();
        self
    }

    /// See [`ServerBuilder::outgoing`](super::ServerBuilder::outgoing).
    pub fn outgoing(mut self, outgoing: OutgoingOptions) -> Self {
        self.outgoing = outgoing;
        self
    }

    /// See [`ServerBuilder::admission`](super::ServerBuilder::admission).
    pub fn admission(mut self, admission: AdmissionOptions) -> Self {
        self.admission = admission;
        self
    }

    /// See [`ServerBuilder::timeouts`](super::ServerBuilder::timeouts).
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// See [`ServerBuilder::heartbeat`](super::ServerBuilder::heartbeat).
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// See [`ServerBuilder::sessions`](super::ServerBuilder::sessions).
    pub fn sessions(mut self, sessions: SessionOptions) -> Self {
        self.sessions = sessions;
        self
    }

    /// Puts into the settings of each connection what belongs there.
    pub(super) fn apply(&self, settings: &mut Settings) {
        self.limits.apply(settings);
        self.outgoing.apply(settings);
        self.timeouts.apply(settings);
        settings.watch.heartbeat_interval = self.heartbeat.interval;
        settings.watch.heartbeat_timeout = self.heartbeat.timeout;
    }
}

/// Bounds on what clients may cost a server: connections, requests, and incoming bytes.
///
/// ```
/// use bothways::{Limits, Rate, Server, ServerLimits};
///
/// let limits = ServerLimits::new()
///     .frames(Limits::default().body_bytes_max(1 << 20))
///     .connections_max(50_000)
///     .frames_per_connection_rate(Rate::per_second(100).burst(1_000));
/// let server = Server::builder().limits(limits).build();
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct ServerLimits {
    pub(super) frames: Limits,
    pub(super) connections_max: usize,
    pub(super) calls_max: usize,
    calls_per_connection_max: usize,
    pub(super) calls_per_user_max: Option<usize>,
    pub(super) request_bytes_max: usize,
    request_bytes_per_connection_max: usize,
    pub(super) unpacked_bytes_max: usize,
    pub(super) unpacked_bytes_per_connection_max: usize,
    pub(super) partial_bytes_max: usize,
    unauthenticated_body_bytes_max: usize,
    #[cfg_attr(feature = "config", serde(deserialize_with = "config::rate"))]
    frames_per_connection_rate: Option<Rate>,
    #[cfg_attr(feature = "config", serde(deserialize_with = "config::rate"))]
    bytes_per_connection_rate: Option<Rate>,
}

impl Default for ServerLimits {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            frames: Limits::default(),
            connections_max: 1 << 20,
            calls_max: 1 << 17,
            calls_per_connection_max: settings.calls_running_max,
            calls_per_user_max: None,
            request_bytes_max: 1 << 30,
            request_bytes_per_connection_max: settings.request_bytes_max,
            unpacked_bytes_max: UNPACKED_BYTES,
            unpacked_bytes_per_connection_max: UNPACKED_BYTES_OF_CONNECTION,
            partial_bytes_max: 256 << 20,
            unauthenticated_body_bytes_max: settings.unauthenticated_body_bytes_max,
            frames_per_connection_rate: None,
            bytes_per_connection_rate: None,
        }
    }
}

/// Bounds on single frames, and the defaults for all else.
impl From<Limits> for ServerLimits {
    fn from(frames: Limits) -> Self {
        Self::new().frames(frames)
    }
}

impl ServerLimits {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds on what one frame may cost. See [`Limits`] for the defaults.
    pub fn frames(mut self, frames: Limits) -> Self {
        self.frames = frames;
        self
    }

    /// Most connections at once; more are closed as they come. Default 1,048,576: beyond what one
    /// process usually has files for.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// Most requests that run at once in the whole server; more are answered as overloaded at once. Beyond half of them
    /// a user, or without a user an address, has no more places than are left. Hellos that are being checked have a
    /// sixteenth on top. Default 131,072.
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.calls_max = calls;
        self
    }

    /// Most requests of one connection that run at once; more are answered as overloaded at once.
    /// Default 16,384.
    pub fn calls_per_connection_max(mut self, calls: usize) -> Self {
        self.calls_per_connection_max = calls;
        self
    }

    /// Most requests that run at once for all sessions of one user. More are answered as overloaded at once; oneway
    /// requests are dropped and counted. A request counts from the moment its session is bound to the user, by its own
    /// auth hook at the latest. Default: no bound except those of connections, because it costs each request two
    /// look-ups.
    pub fn calls_per_user_max(mut self, calls: impl Into<Option<usize>>) -> Self {
        self.calls_per_user_max = calls.into();
        self
    }

    /// Most bytes of the requests that run at once in the whole server. More are answered as overloaded at once; a
    /// single request is bounded by [`Limits::body_bytes_max`] instead. It counts what is held while a handler has its
    /// own task: the frame as it arrived, and a reply that waits to be packed. Beyond half of it a user, or
    /// without a user an address, has no more than is left. Default 1 GiB.
    pub fn request_bytes_max(mut self, bytes: usize) -> Self {
        self.request_bytes_max = bytes;
        self
    }

    /// The same for one connection. Default 64 MiB.
    pub fn request_bytes_per_connection_max(mut self, bytes: usize) -> Self {
        self.request_bytes_per_connection_max = bytes;
        self
    }

    /// Most bytes of unpacked payloads of the requests that run at once in the whole server. Beyond its first 64 KiB a
    /// connection has no more than it leaves for the others. Further payloads wait, packed, and are answered as
    /// [overloaded](crate::ErrorCode::Overloaded) if there is no room for 10 s. The bound is at least
    /// [`Limits::decompressed_bytes_max`]. Replies to calls of clients have the same again, until their callers have
    /// them. Four payloads are unpacked at a time, each in up to twice its bytes. Default 512 MiB.
    pub fn unpacked_bytes_max(mut self, bytes: usize) -> Self {
        self.unpacked_bytes_max = bytes;
        self
    }

    /// The same for one connection. Default 64 MiB.
    pub fn unpacked_bytes_per_connection_max(mut self, bytes: usize) -> Self {
        self.unpacked_bytes_per_connection_max = bytes;
        self
    }

    /// Most bytes of frames that have begun and not ended, in the whole server, beyond one read of 64 KiB for each
    /// connection. If there is no room for a frame, its connection is told that the server is overloaded, and ends.
    /// Beyond half of it a user, or without a user an address, has no more than is left. Default 256 MiB.
    pub fn partial_bytes_max(mut self, bytes: usize) -> Self {
        self.partial_bytes_max = bytes;
        self
    }

    /// Most bytes of a frame's body until the [`auth`](super::ServerBuilder::auth) hook has let its connection in once.
    /// Without a hook, [`Limits::body_bytes_max`] holds from the beginning. Until then the requests of a connection are
    /// also handled one after another. Default 1 MiB: more than a token takes, and enough for most first calls.
    pub fn unauthenticated_body_bytes_max(mut self, bytes: usize) -> Self {
        self.unauthenticated_body_bytes_max = bytes;
        self
    }

    /// How many frames one connection may send. Requests beyond it are answered as overloaded at once, to services and
    /// to the framework's own; oneway requests are dropped and counted. Heartbeats, acknowledgements, answers to the
    /// server's calls, and a client's leave count, but are always accepted. Default: no bound, because only the
    /// application knows what its clients do.
    pub fn frames_per_connection_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.frames_per_connection_rate = rate.into();
        self
    }

    /// How many bytes one connection may send. Beyond it the server stops reading until the client may send more:
    /// nothing is lost, and the client's own writes slow down. Default: no bound.
    pub fn bytes_per_connection_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.bytes_per_connection_rate = rate.into();
        self
    }

    fn apply(&self, settings: &mut Settings) {
        settings.limits = self.frames.clone();
        settings.calls_running_max = self.calls_per_connection_max;
        settings.request_bytes_max = self.request_bytes_per_connection_max;
        settings.unauthenticated_body_bytes_max = self.unauthenticated_body_bytes_max;
        settings.frames_rate = self.frames_per_connection_rate;
        settings.bytes_rate = self.bytes_per_connection_rate;
    }
}

/// Bounds on replies, calls and messages that wait for clients to read them.
///
/// Pushes to sessions have bounds of their own: [`SessionOptions`].
#[derive(Clone, Debug)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct OutgoingOptions {
    push_queue: QueueBound,
    overflow: Overflow,
    reply_bytes_max: usize,
    call_bytes_max: usize,
    pub(super) all_bytes_max: usize,
}

impl Default for OutgoingOptions {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            push_queue: QueueBound::messages(settings.push_frames_max).bytes(settings.push_bytes_max),
            overflow: settings.overflow,
            reply_bytes_max: settings.reply_bytes_max,
            call_bytes_max: settings.call_bytes_max,
            all_bytes_max: 1 << 30,
        }
    }
}

impl OutgoingOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages of [`Connection::send_message`](crate::Connection::send_message) and
    /// [`raw::broadcast`](crate::raw::broadcast) that may wait for one slow client, beyond the 64 KiB that are
    /// being written. Default 1,024 messages, 1 MiB: a burst, not a backlog.
    pub fn push_queue(mut self, bound: QueueBound) -> Self {
        self.push_queue = bound;
        self
    }

    /// The rule for a message when that queue is full. Default [`Overflow::RefuseNewest`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Bytes of replies that may wait for a client that does not read them, before the server stops reading its
    /// requests. Default 4 MiB. Handlers that already run still finish: 16 times as many bytes of their replies are
    /// accepted, and beyond that a caller is told that its reply cannot be sent.
    pub fn reply_bytes_max(mut self, bytes: usize) -> Self {
        self.reply_bytes_max = bytes;
        self
    }

    /// Bytes of calls to one client that may wait for it to read them. A call beyond it is refused with
    /// [`CallError::QueueFull`](crate::CallError::QueueFull), and nothing of it is sent. A single larger call is
    /// accepted if no other waits. Default 16 MiB.
    pub fn call_bytes_max(mut self, bytes: usize) -> Self {
        self.call_bytes_max = bytes;
        self
    }

    /// Bytes of replies, calls and messages that may wait in the whole server, beyond 64 KiB for each client. Pushes
    /// that were encoded once for many do not count. A client that holds more than is left is not read from, and its
    /// replies, calls to it and messages are refused as if its own bounds were reached. So one that does not read gets
    /// half of the room at most, and clients that hold little find room. A reply that is kept for several clients at
    /// once counts for each. Default 1 GiB.
    pub fn all_bytes_max(mut self, bytes: usize) -> Self {
        self.all_bytes_max = bytes;
        self
    }

    fn apply(&self, settings: &mut Settings) {
        self.push_queue.set(&mut settings.push_frames_max, &mut settings.push_bytes_max);
        settings.overflow = self.overflow;
        settings.reply_bytes_max = self.reply_bytes_max;
        settings.call_bytes_max = self.call_bytes_max;
    }
}

/// How long a client may be silent, slow or unknown.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct Timeouts {
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    first_frame: Duration,
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    unauthenticated: Duration,
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    idle: Option<Duration>,
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    write: Duration,
    frame_progress_min: usize,
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    frame_progress_time: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let watch = Settings::default().watch;
        Self {
            first_frame: watch.first_frame_timeout,
            unauthenticated: watch.unauthenticated_timeout,
            idle: watch.idle_timeout,
            write: watch.write_timeout,
            frame_progress_min: watch.frame_progress_min,
            frame_progress_time: watch.frame_progress_time,
        }
    }
}

impl Timeouts {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a client may take to send its first frame. Default 10 s. With zero, a client that has sent none is
    /// closed at the next tick, within a second.
    pub fn first_frame(mut self, limit: Duration) -> Self {
        self.first_frame = limit;
        self
    }

    /// How long a client may stay without passing the [auth hook](super::ServerBuilder::auth), however many heartbeats
    /// it sends. Default 5 min: a Go client sends its token with its first call, and connects again if that comes
    /// later. Without a hook there is no such limit.
    pub fn unauthenticated(mut self, limit: Duration) -> Self {
        self.unauthenticated = limit;
        self
    }

    /// Close connections from which nothing has arrived for this long. Default: never, because a plain Go client that
    /// only listens sends nothing. Zero closes each at the next tick, within a second.
    pub fn idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.idle = limit.into();
        self
    }

    /// Close a client whose socket accepts no byte for this long while bytes wait for it. Default 10 s.
    pub fn write(mut self, limit: Duration) -> Self {
        self.write = limit;
        self
    }

    /// How fast a frame must arrive once it has begun: `bytes` within each `within`, or its end. A slower client is
    /// closed. Time in which the server itself does not read from it, or holds it back by
    /// [`ServerLimits::bytes_per_connection_rate`], does not count. Default 10 KiB within 10 s: a line of 8 kbit/s.
    /// Zero bytes turn it off.
    pub fn frame_progress(mut self, bytes: usize, within: Duration) -> Self {
        (self.frame_progress_min, self.frame_progress_time) = (bytes, within);
        self
    }

    fn apply(&self, settings: &mut Settings) {
        let watch = &mut settings.watch;
        watch.first_frame_timeout = self.first_frame;
        watch.unauthenticated_timeout = self.unauthenticated;
        watch.idle_timeout = self.idle;
        watch.write_timeout = self.write;
        watch.frame_progress_min = self.frame_progress_min;
        watch.frame_progress_time = self.frame_progress_time;
    }
}
