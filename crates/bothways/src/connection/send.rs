//! Pushes and oneway requests: to one connection, or encoded once for many.

use std::time::Duration;

use bothways_proto as proto;
use bothways_proto::{FrameParts, Header, Limits, Metadata, Names, Seq, SerializeType, keys};
use bytes::Bytes;

use super::{
    Connection, after,
    end::Phase,
    lanes::Lane,
    lock::Locked,
    outbox::Refused,
    wire::{SHARE_BYTES, WIRE_BYTES},
    writer::Writer,
};
use crate::{
    clock::timeout,
    codec::IntoBytes,
    error::{CloseReason, PushError, ReservedName},
};

/// How far a message has come when sending returns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Sent {
    /// The kernel has all of it. That is not delivery.
    Written,
    /// It waits in the connection's queue, and is written as soon as the socket accepts it.
    Queued,
}

/// A push, encoded once for any number of connections. A clone is a counter. `Debug` shows its size: what is in it
/// may be secret.
///
/// ```
/// use bothways::{Limits, Metadata, Server, raw::{PushFrame, fan_out}};
///
/// let frame = PushFrame::new("News", "Flash", &Metadata::new(), b"rain", &Limits::default())?;
/// let server = Server::builder().build();
/// let outcome = fan_out(&server.connections(), &[frame]);
/// assert_eq!(outcome.queued, 0); // Nobody is connected.
/// # Ok::<(), bothways::PushError>(())
/// ```
#[derive(Clone)]
pub struct PushFrame(Bytes);

impl std::fmt::Debug for PushFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushFrame").field("bytes", &self.0.len()).finish()
    }
}

impl PushFrame {
    /// Encodes a push without a codec, as Go's `SendMessage` does.
    ///
    /// # Errors
    /// [`PushError::TooLarge`] beyond `limits`; [`PushError::ReservedMetadata`].
    pub fn new(
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Self, PushError> {
        ReservedName::check_for_client(service_path, metadata)?;
        let header = Header::oneway(Seq::of_push(0), SerializeType::RAW);
        Self::with_header(header, service_path, service_method, metadata, payload, limits)
    }

    /// Encodes a push with this header.
    pub(crate) fn with_header(
        header: Header,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Self, PushError> {
        Ok(Self(proto::frame(header, service_path, service_method, metadata, payload, limits)?))
    }

    /// The frame as it travels.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.clone()
    }
}

/// The result of a push to many connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FanOut {
    /// Connections that took it.
    pub queued: usize,
    /// Connections whose queue was full.
    pub full: usize,
    /// Connections that are over.
    pub closed: usize,
    /// Connections whose peers have said that they take nothing so large.
    pub too_large: usize,
}

/// Sends pushes that were encoded once to many connections: first all are queued, then each
/// connection is written once. Never waits for any of them.
///
/// A push counts once per connection and frame in the answer.
pub fn fan_out(connections: &[Connection], frames: &[PushFrame]) -> FanOut {
    let mut outcome = FanOut::default();
    let joined = join(frames);
    for connection in connections {
        connection.fan_out_to(frames, joined.as_ref(), &mut outcome);
    }
    outcome
}

/// Small pushes in one piece, which a connection whose socket is free takes as one, and from [`SHARE_BYTES`] on
/// without a copy: 195 instructions less a push of 581 bytes, 16 at once. The step `push16` of `compare
/// instructions` shows it. `None` if that gains nothing: it is one push, or each is shared as it is.
fn join(frames: &[PushFrame]) -> Option<Bytes> {
    let bytes: usize = frames.iter().map(|frame| frame.0.len()).sum();
    if frames.len() < 2 || WIRE_BYTES < bytes || SHARE_BYTES * frames.len() <= bytes {
        return None;
    }
    let mut joined = Vec::with_capacity(bytes);
    frames.iter().for_each(|frame| joined.extend_from_slice(&frame.0));
    Some(joined.into())
}

/// A connection that is being given pushes.
pub(crate) struct Taking<'a> {
    connection: &'a Connection,
    state: Locked<'a>,
}

impl Taking<'_> {
    /// Takes a push that was encoded before, under this number, if it goes straight to the socket's next write. Answers as
    /// [`Connection::queue_as`], and whether so much waits that it is to be written at once; `None`: there is no room for it
    /// now, or it is larger than the peer takes.
    pub(crate) fn take(&mut self, frame: &Bytes, seq: Seq) -> Option<(u64, bool)> {
        let Self { connection, state } = self;
        if !connection.is_trusted()
            || !state.takes_pushes()
            || !state.outbox.goes_direct()
            || state.check_frame(frame).is_err()
        {
            return None;
        }
        let added = state.outbox.add_frame_as(Lane::Push, frame, Some(seq), &connection.shared.settings.bounds());
        added.ok()?;
        Some((state.outbox.pushes_added(), state.outbox.is_worth_a_write()))
    }
}

impl Connection {
    /// Sends one message that wants no reply. Never waits: a peer that does not read hurts only itself.
    ///
    /// It is sent at once, also to a plain client that has requested nothing yet. An application on Go's `XClient` does not
    /// listen at that time, and loses it. A push to the client's session ([`Session::push`](crate::Session::push),
    /// [`Server::push`](crate::Server::push)) waits for its first request.
    ///
    /// # Errors
    /// - [`PushError::Full`]: the queue of this connection is full, and its rule is to refuse.
    /// - [`PushError::Closed`]: the connection is over.
    /// - [`PushError::TooLarge`]: the message is beyond `body_bytes_max`, of this side or of the peer.
    /// - [`PushError::ReservedMetadata`]: a key begins with `_bw.`, or the path is `_bothways`; towards a client also
    ///   `__AUTH`, `__ServerTimeout` and `__rpcx_error__`.
    ///
    /// In each case nothing was queued.
    ///
    /// Source: Go rpcx `server/server_response.go`, `Server.SendMessage` (a oneway request, raw codec).
    pub fn send_message(
        &self,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: impl IntoBytes,
    ) -> Result<Sent, PushError> {
        self.check_pairs(service_path, metadata)?;
        self.push(service_path, service_method, SerializeType::RAW, metadata, &payload.into_bytes())
    }

    fn check_pairs(&self, service_path: &str, metadata: &Metadata) -> Result<(), ReservedName> {
        match self.goes_to_client() {
            true => ReservedName::check_for_client(service_path, metadata),
            false => ReservedName::check(service_path, metadata),
        }
    }

    /// Like [`Self::send_message`], but waits for room in the queue, up to `wait`.
    ///
    /// Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// As [`Self::send_message`]; [`PushError::Full`] after `wait`.
    pub async fn send_message_within(
        &self,
        wait: Duration,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: impl IntoBytes,
    ) -> Result<Sent, PushError> {
        self.check_pairs(service_path, metadata)?;
        let payload = payload.into_bytes();
        self.with_room(wait, || self.push(service_path, service_method, SerializeType::RAW, metadata, &payload)).await
    }

    /// See [`raw::queue`](crate::raw::queue).
    pub(crate) fn queue(&self, frame: &PushFrame) -> Result<(), PushError> {
        self.catch_up();
        let mut state = self.shared.state.lock();
        state.check_open()?;
        state.check_frame(&frame.0)?;
        let added = state.outbox.add_frame(Lane::Push, &frame.0, &self.shared.settings.bounds());
        self.check_added(&mut state, added)?;
        self.write_if_much(state);
        Ok(())
    }

    /// One connection's share of [`fan_out`]: everything is queued under one lock, and written.
    fn fan_out_to(&self, frames: &[PushFrame], joined: Option<&Bytes>, outcome: &mut FanOut) {
        self.catch_up();
        let shared = &*self.shared;
        let mut state = shared.state.lock();

        let is_open = matches!(state.phase, Phase::Open) && !state.has_limit_of_peer();
        if joined.is_some_and(|joined| is_open && state.outbox.add_joined_pushes(joined, frames.len())) {
            outcome.queued += frames.len();
        } else {
            let bounds = shared.settings.bounds();
            for (done, frame) in frames.iter().enumerate() {
                // The rule for a full queue may have ended it just now.
                if !matches!(state.phase, Phase::Open) {
                    outcome.closed += frames.len() - done;
                    break;
                }
                if state.check_frame(&frame.0).is_err() {
                    outcome.too_large += 1;
                    continue;
                }

                let added = state.outbox.add_frame(Lane::Push, &frame.0, &bounds);
                match self.check_added(&mut state, added) {
                    Ok(_) => outcome.queued += 1,
                    Err(PushError::Full { .. }) => outcome.full += 1,
                    Err(_) => outcome.closed += 1,
                }

                if state.outbox.wants_write() {
                    // A write takes as long as the system needs for it.
                    drop(state);
                    self.write_out();
                    state = shared.state.lock();
                }
            }
        }

        self.write_out_of(state);
    }

    /// True if a push that is added now goes straight to the socket's next write.
    pub(crate) fn is_writable(&self) -> bool {
        let state = self.shared.state.lock();
        self.is_trusted() && state.takes_pushes() && state.outbox.goes_direct()
    }

    /// As [`Taking::take`], of one alone.
    pub(crate) fn take_push(&self, frame: &Bytes, seq: Seq) -> Option<(u64, bool)> {
        self.take_pushes().take(frame, seq)
    }

    /// Takes several pushes under one lock. Others wait for it meanwhile.
    pub(crate) fn take_pushes(&self) -> Taking<'_> {
        Taking { connection: self, state: self.shared.state.lock() }
    }

    /// True if so much waits that it is to be written at once.
    pub(crate) fn has_much_to_write(&self) -> bool {
        self.shared.state.lock().outbox.is_worth_a_write()
    }

    /// Queues a push that was encoded before, under this number. Answers where the counter of pushes stands
    /// behind it; see [`Self::pushes_written`].
    pub(crate) fn queue_as(&self, frame: &Bytes, seq: Seq) -> Result<u64, PushError> {
        let mut state = self.shared.state.lock();
        state.check_open()?;
        state.check_frame(frame)?;
        let added = state.outbox.add_frame_as(Lane::Push, frame, Some(seq), &self.shared.settings.bounds());
        self.check_added(&mut state, added)?;
        Ok(state.outbox.pushes_added())
    }

    /// Queues the notice that pushes were dropped. Answers as [`Self::queue_as`].
    pub(crate) fn queue_gap(&self, missed: u64) -> Result<u64, PushError> {
        let metadata = Metadata::new().with(keys::GAP_MISSED, missed.to_string());
        self.queue_notice(keys::GAP, &metadata, Seq::of_push(0))
    }

    /// Queues the notice that the push of this number does not come. Answers as [`Self::queue_as`].
    pub(crate) fn queue_skip(&self, seq: Seq) -> Result<u64, PushError> {
        self.queue_notice(keys::SKIP, &Metadata::new(), seq)
    }

    /// A push of a session is larger than its client takes.
    pub(crate) fn tell_too_large(&self, error: &PushError) {
        if let Some(left_out) = self.shared.settings.load.told_too_large.due() {
            tracing::warn!(peer = self.peer_address(), %error, left_out, "a push is larger than its client takes");
        }
    }

    fn queue_notice(&self, service_method: &str, metadata: &Metadata, seq: Seq) -> Result<u64, PushError> {
        let header = Header::oneway(seq, SerializeType::RAW);
        let limits = Limits::default();
        let frame = PushFrame::with_header(header, keys::CONTROL_PATH, service_method, metadata, &[], &limits)?;
        self.queue_as(&frame.0, seq)
    }

    /// Where the counter of pushes stood after the last one of which the kernel has all.
    pub(crate) fn pushes_written(&self) -> u64 {
        self.shared.state.lock().outbox.pushes_written()
    }

    /// Where that counter stood after the last push of which the kernel may have all, as a write is under way.
    pub(crate) fn pushes_begun(&self) -> u64 {
        self.shared.state.lock().outbox.pushes_begun()
    }

    /// Asks for [`ConnectionHandler::on_writable`], once, when everything is written. False: it is written already, and nobody
    /// will be told. `keeps`: the caller has more for it. The caller may hold locks of the layer above.
    pub(crate) fn notify_writable(&self, keeps: bool) -> bool {
        let mut state = self.shared.state.lock();
        if keeps {
            state.outbox.note_kept_push();
        }
        // A peer that cannot take anything has no room, however empty its queue is: its end, the answer to its Hello,
        // its first request, or the verdict on its token, is on its way to the caller.
        let takes = self.is_trusted() && state.takes_pushes();
        let is_writable = takes && state.outbox.is_empty() && state.outbox.writer == Writer::Idle;
        state.writable_wanted |= !is_writable;
        !is_writable
    }

    /// What waited for the client's first request goes now.
    pub(super) fn tell_waiting_pushes(&self) {
        if std::mem::take(&mut self.shared.state.lock().writable_wanted) {
            self.shared.handler.on_writable(self);
        }
    }

    pub(super) fn push(
        &self,
        service_path: &str,
        service_method: &str,
        serialize: SerializeType,
        metadata: &Metadata,
        payload: &Bytes,
    ) -> Result<Sent, PushError> {
        let shared = &*self.shared;
        let more = super::call::with_more(metadata, shared.settings.token.as_deref(), None);
        let metadata = more.as_ref().unwrap_or(metadata);

        self.catch_up();
        let mut state = shared.state.lock();
        state.check_open()?;

        let header = Header::oneway(state.proto.next_push(), serialize);
        let names = Names::new(service_path, service_method);
        let parts = FrameParts { header, names, metadata, payload_len: payload.len() };
        state.check_limit_of_peer(parts.body_len())?;
        let added = state.outbox.add(Lane::Push, &parts, payload, self.limits(), &shared.settings.bounds());
        self.check_added(&mut state, added)?;

        self.write_if_much(state);
        Ok(self.flush())
    }

    /// Tries again whenever room appears, up to `wait`.
    pub(crate) async fn with_room<T>(
        &self,
        wait: Duration,
        mut attempt: impl FnMut() -> Result<T, PushError>,
    ) -> Result<T, PushError> {
        match attempt() {
            Err(PushError::Full { .. }) => {}
            done => return done,
        }

        let deadline = after(wait);
        loop {
            // Listened to before the attempt: room that appears behind it wakes this.
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();

            let full = match attempt() {
                Err(full @ PushError::Full { .. }) => full,
                done => return done,
            };

            let clock = || self.shared.handler.clock().cloned();
            if timeout(clock, deadline, changed).await.is_err() {
                return Err(full);
            }
        }
    }

    #[inline(always)]
    pub(super) fn check_added<'a>(
        &'a self,
        state: &mut Locked<'a>,
        added: Result<u64, Refused>,
    ) -> Result<u64, PushError> {
        state.drop_forgotten();
        added.map_err(|refused| self.refused(state, refused))
    }

    #[cold]
    fn refused<'a>(&'a self, state: &mut Locked<'a>, refused: Refused) -> PushError {
        match refused {
            Refused::TooLarge(error) => PushError::TooLarge(error),
            Refused::Full { frames, bytes } => {
                PushError::Full { frames, bytes, setting: of_server(state, "outgoing.push_queue") }
            }
            Refused::AllFull { frames, bytes } => {
                PushError::Full { frames, bytes, setting: of_server(state, "outgoing.all_bytes_max") }
            }
            Refused::Disconnect(why) => {
                let reason = CloseReason::SlowPeer(why);
                self.end(state, reason.clone());
                PushError::Closed(reason)
            }
        }
    }
}

/// The option of that name, where the application has it: a client's queue of pushes has none.
fn of_server(state: &super::State, option: &'static str) -> Option<&'static str> {
    (state.proto.role() == proto::Role::Server).then_some(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(sizes: &[usize]) -> Vec<PushFrame> {
        sizes.iter().map(|bytes| PushFrame(Bytes::from(vec![b'x'; *bytes]))).collect()
    }

    /// Several small ones are one piece, in order; one alone, large ones, and very many are not copied.
    #[test]
    fn small_pushes_are_joined() {
        let joined = |sizes: &[usize]| join(&frames(sizes)).map(|bytes| bytes.len());
        assert_eq!(joined(&[]), None);
        assert_eq!(joined(&[1]), None);
        assert_eq!(joined(&[1, 2]), Some(3));
        assert_eq!(joined(&[1, 2, 3]), Some(6));
        assert_eq!(joined(&[SHARE_BYTES - 1, SHARE_BYTES]), Some(2 * SHARE_BYTES - 1));
        assert_eq!(joined(&[SHARE_BYTES, SHARE_BYTES]), None);
        let many = WIRE_BYTES / 64;
        assert_eq!(joined(&vec![64; many]), Some(WIRE_BYTES));
        assert_eq!(joined(&vec![64; many + 1]), None);
        let two = [PushFrame(Bytes::from_static(b"a")), PushFrame(Bytes::from_static(b"b"))];
        assert_eq!(join(&two), Some(Bytes::from_static(b"ab")));
    }

    /// Each push counts once, as what became of it. One that ends its connection for want of room counts as closed, and
    /// so does each behind it.
    #[tokio::test(start_paused = true)]
    async fn each_push_of_a_fan_out_counts_as_what_became_of_it() {
        use std::sync::Arc;

        use bothways_proto::Role;

        use crate::{
            connection::{Overflow, Settings, alone::Deaf, writer::Writer},
            transport::memory,
        };

        for (overflow, body_max, expected) in [
            (Overflow::Disconnect, None, (2, 3, 0, 0)),
            (Overflow::RefuseNewest, None, (2, 0, 3, 0)),
            (Overflow::RefuseNewest, Some(0), (0, 0, 0, 5)),
        ] {
            let (near, _far) = memory::pair(1 << 16);
            let settings = Settings { push_frames_max: 2, overflow, ..Settings::default() };
            let connection =
                Connection::start(Role::Server, near.into(), settings.into(), Arc::new(Deaf), None, |_| {});
            let mut state = connection.shared.state.lock();
            state.outbox.writer = Writer::Blocked;
            if body_max.is_some() {
                state.rare().peer_body_max = body_max;
            }
            drop(state);
            let outcome = fan_out(&[connection], &frames(&[100, 100, 100, 100, 100]));
            assert_eq!((outcome.queued, outcome.closed, outcome.full, outcome.too_large), expected, "{overflow:?}");
        }
    }
}
