//! One stream: a client inside that listens, the events that were written last, and the HTTP response that reads now.
//!
//! ```text
//!            begin                 the response is dropped
//!   ───► Read by n ──────────────────────► Waiting ──── the window is over ───► gone
//!            ▲  │ resume: n + 1 reads         │ resume: n + 1 reads
//!            └──┴─────────────────────────────┘
//! ```
//!
//! The client's queue is the only one: a response takes a message from it when HTTP has room.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bothways::{
    Client, CloseReason, ConnectError,
    client::{ServerMessage, ServerMessages},
    shares::Share,
    transport::BoxFuture,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::{
    encode::{self, Encodings, Event},
    streams::Streams,
};
use crate::{body::PIECE_BYTES, options::StreamBounds};

/// Up to so many bytes, an event and its id are one piece.
const SHORT_BYTES: usize = 4 << 10;

/// After how long a client for whose events there was no room is to come again.
const NO_ROOM_RETRY_MILLIS: u128 = 1000;

/// What the id of an event says: which stream, and which of its events. And what an acknowledgement says, by the other
/// secret of the stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LastSeen {
    pub(super) key: u128,
    pub(super) number: u64,
}

impl LastSeen {
    /// `KEY-NUMBER`, as the front wrote it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (key, number) = text.split_once('-')?;
        let is_key = key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        let key = u128::from_str_radix(key, 16).ok().filter(|_| is_key)?;
        Some(Self { key, number: number.parse().ok()? })
    }

    fn text(&self) -> String {
        format!("{:032x}-{}", self.key, self.number)
    }
}

/// An event that was written.
struct Kept {
    event: Arc<Event>,
    /// What it was made of, where its client has to say that it has handled it.
    message: Option<ServerMessage>,
}

/// What a client has said that it has handled.
#[derive(Default)]
struct Acks {
    /// The number of the first event that it has not.
    next: u64,
    /// Bytes of this one and those after it.
    owed_bytes: usize,
}

/// Whether the client of a stream may still come back.
#[derive(Debug)]
pub(super) enum Watch {
    Until(Instant),
    Over,
    /// It is there.
    Read,
}

pub(crate) struct Stream {
    /// Names it, and lets its client come back.
    pub(super) key: u128,
    /// Lets its client acknowledge, and nothing else; `None`: it need not.
    pub(super) ack_key: Option<u128>,
    /// Given back with the stream.
    pub(super) place: Share,
    bounds: StreamBounds,
    state: Mutex<State>,
}

struct State {
    client: Client,
    messages: ServerMessages,
    /// Done when the server ends the client: a server that stops waits for its clients to go.
    leaving: BoxFuture<CloseReason>,
    /// The last events; the first one's number is `next - kept.len()`.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// The number of the next event.
    next: u64,
    /// Where the client says what it has handled.
    acks: Option<Acks>,
    /// Where it does not: the number of the last event, and what that was made of, until HTTP has taken all of it.
    untaken: Option<(u64, ServerMessage)>,
    /// Which response reads: the last one that came.
    reader: u64,
    /// That one waits: for a message, for an acknowledgement, or for another one to take over.
    waiting: Option<Waker>,
    /// Since when nobody reads.
    waiting_since: Option<Instant>,
    /// A task looks whether the client comes back in time.
    is_watched: bool,
    has_ended: bool,
}

impl Stream {
    /// A stream that begins with this event.
    pub(super) fn new(
        place: Share,
        client: Client,
        messages: ServerMessages,
        bounds: StreamBounds,
        opened: Arc<Event>,
        ack_key: Option<u128>,
    ) -> Self {
        let mut state = State {
            leaving: leaving(&client),
            client,
            messages,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next: 0,
            acks: ack_key.map(|_| Acks::default()),
            untaken: None,
            reader: 0,
            waiting: None,
            waiting_since: None,
            is_watched: false,
            has_ended: false,
        };
        state.keep(Kept { event: opened, message: None }, &bounds);
        Self { key: rand::random(), ack_key, place, bounds, state: Mutex::new(state) }
    }

    /// Since when nobody reads it.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.state.lock().waiting_since
    }

    /// True for the first who asks, who watches from now on.
    pub(super) fn begin_watch(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().is_watched, true)
    }

    /// What who watches has to do next. If it is read, nobody watches any more.
    pub(super) fn watch(&self, window: Duration) -> Watch {
        let mut state = self.state.lock();
        match state.waiting_since.map(|since| since + window) {
            Some(until) if Instant::now() < until => Watch::Until(until),
            Some(_) => Watch::Over,
            None => {
                state.is_watched = false;
                Watch::Read
            }
        }
    }

    /// The client has handled all events up to this one. False: it need not say so, or has not been sent it.
    pub(super) fn ack(&self, number: u64) -> bool {
        let mut handled = Vec::new();
        let reader = {
            let mut state = self.state.lock();
            let (first, next) = (state.first(), state.next);
            let State { kept, acks: Some(acks), .. } = &mut *state else { return false };
            if next <= number {
                return false;
            }
            while acks.next <= number {
                let kept = kept.get_mut((acks.next - first) as usize);
                acks.next += 1;
                if let Some(kept) = kept {
                    acks.owed_bytes -= kept.event.len();
                    handled.extend(kept.message.take());
                }
            }
            state.waiting.take()
        };

        // Dropped, they are acknowledged: outside the lock.
        drop(handled);
        reader.into_iter().for_each(Waker::wake);
        true
    }

    /// A new response reads from here on: after the event that its client has seen, or from the beginning. An earlier
    /// response is told, and ends.
    pub(super) fn read(self: &Arc<Self>, streams: &Arc<Streams>, seen: Option<u64>) -> Events {
        let mut state = self.state.lock();
        state.reader += 1;
        state.waiting_since = None;
        state.waiting.take().into_iter().for_each(Waker::wake);
        let first = state.first();
        // No client has seen what was never written.
        let at = seen.map_or(0, |seen| seen.saturating_add(1)).min(state.next);
        let missed = first.saturating_sub(at);
        Events {
            stream: Arc::clone(self),
            streams: Arc::downgrade(streams),
            reader: state.reader,
            at: at.max(first),
            is_over: false,
            ready: VecDeque::from([begin_with(missed)]),
            beat: Box::pin(tokio::time::sleep(self.bounds.beat)),
        }
    }
}

/// What a response begins with: when to come back, and what is missing.
fn begin_with(missed: u64) -> Bytes {
    match missed {
        0 => encode::retry(),
        _ => {
            let gap = format!("event: bothways.gap\ndata: {}\n\n", json!({ "missed": missed }));
            [encode::retry(), gap.into()].concat().into()
        }
    }
}

/// Waits until the client inside is told goodbye, or its connection is over. Of one that is over already the messages end.
fn leaving(client: &Client) -> BoxFuture<CloseReason> {
    match client.connection() {
        Ok(connection) => Box::pin(async move { connection.leaving().await }),
        Err(_) => Box::pin(std::future::pending()),
    }
}

fn end_with(reason: &CloseReason) -> Bytes {
    encode::end(&reason.to_string(), reason.reconnect_after().map(|after| after.as_millis()))
}

impl State {
    /// The number of the first event that is kept.
    fn first(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// Numbers an event, and keeps it for a client that comes back.
    fn keep(&mut self, kept: Kept, bounds: &StreamBounds) {
        self.next += 1;
        self.kept_bytes += kept.event.len();
        if let Some(acks) = &mut self.acks {
            acks.owed_bytes += kept.event.len();
        }
        self.kept.push_back(kept);
        // The last one stays, however large: it is still to be read.
        while bounds.kept_events_max < self.kept.len() || bounds.kept_bytes_max < self.kept_bytes {
            if !self.forget_oldest() {
                break;
            }
        }
    }

    /// Keeps one event less: never the last one, or one that is to be acknowledged.
    fn forget_oldest(&mut self) -> bool {
        let is_owed = self.acks.as_ref().is_some_and(|acks| acks.next <= self.first());
        if is_owed || self.kept.len() <= 1 {
            return false;
        }
        self.kept_bytes -= self.kept.pop_front().map_or(0, |kept| kept.event.len());
        true
    }

    /// True if the client has to acknowledge something before it gets more.
    fn is_owed_much(&self, bounds: &StreamBounds) -> bool {
        self.acks.as_ref().is_some_and(|acks| {
            bounds.kept_events_max as u64 <= self.next - acks.next || bounds.kept_bytes_max <= acks.owed_bytes
        })
    }

    /// The event of a message, for which older ones of this stream make room if there is none.
    fn encode(&mut self, message: &ServerMessage, encodings: &Encodings, peer: &str) -> Option<Arc<Event>> {
        loop {
            match encodings.of(message, peer) {
                Ok(event) => return Some(event),
                Err(_) if self.forget_oldest() => {}
                Err(_) => return None,
            }
        }
    }

    /// Why the client inside has ended, and when to come back.
    fn end(&self) -> Bytes {
        match self.client.connection() {
            Err(ConnectError::Lost { lost, .. }) => end_with(&lost),
            Err(error) => encode::end(&error.to_string(), None),
            Ok(_) => encode::end("the stream has ended", None),
        }
    }
}

/// The body of a response: events as they come. Dropped, it leaves the stream to a client that comes back.
pub(crate) struct Events {
    stream: Arc<Stream>,
    streams: Weak<Streams>,
    reader: u64,
    /// The number of the next event to write.
    at: u64,
    /// Another response reads now, and this one has said so.
    is_over: bool,
    /// What comes before that.
    ready: VecDeque<Bytes>,
    beat: Pin<Box<Sleep>>,
}

impl Events {
    /// The next bytes; `None`: another response reads now, or the stream has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.ready.is_empty() {
            match self.poll_event(cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => {
                    ready!(self.beat.as_mut().poll(cx));
                    self.ready.push_back(Bytes::from_static(encode::BEAT));
                }
            }
        }
        self.beat.as_mut().reset(Instant::now() + self.stream.bounds.beat);
        Poll::Ready(self.take_piece())
    }

    /// No more than HTTP has room for: what it takes, it copies.
    fn take_piece(&mut self) -> Option<Bytes> {
        let first = self.ready.front_mut()?;
        if PIECE_BYTES < first.len() {
            return Some(first.split_to(PIECE_BYTES));
        }
        let first = self.ready.pop_front()?;
        // The id of an event and a short event are one piece.
        match self.ready.front() {
            Some(next) if first.len() + next.len() <= SHORT_BYTES => {
                let both = [first, self.ready.pop_front()?].concat();
                Some(both.into())
            }
            _ => Some(first),
        }
    }

    /// Makes the next event ready; false: there is none any more.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.stream.state.lock();
        let state = &mut *state;
        if state.reader != self.reader {
            // A page that does not know it comes back after a second, and takes the stream from the other one.
            self.ready.extend((!self.is_over).then(encode::taken_over));
            return Poll::Ready(!std::mem::replace(&mut self.is_over, true));
        }
        // HTTP asks for more, so it has taken what is before: that is handled, as far as the server is told.
        drop(state.untaken.take_if(|(number, _)| *number < self.at));
        if let Some(kept) = state.kept.get(self.at.saturating_sub(state.first()) as usize) {
            let id = LastSeen { key: self.stream.key, number: self.at };
            self.ready.extend(kept.event.parts(&id.text()));
            self.at += 1;
            return Poll::Ready(true);
        }
        if state.has_ended {
            return Poll::Ready(false);
        }

        let bounds = &self.stream.bounds;
        let next = if state.is_owed_much(bounds) { Poll::Pending } else { pin!(state.messages.next()).poll(cx) };
        let end = match next {
            Poll::Ready(Some(message)) => {
                let Some(streams) = self.streams.upgrade() else { return Poll::Ready(false) };
                if 0 < message.dropped_before() {
                    let gap = json!({ "missed": message.dropped_before() });
                    state.keep(Kept { event: Event::named("bothways.gap", &gap), message: None }, bounds);
                }
                match state.encode(&message, streams.encodings(), self.stream.place.peer()) {
                    Some(event) => {
                        let message = match state.acks {
                            Some(_) => Some(message),
                            None => {
                                state.untaken = Some((state.next, message));
                                None
                            }
                        };
                        state.keep(Kept { event, message }, bounds);
                        return Poll::Ready(true);
                    }
                    None => {
                        message.forget();
                        encode::end("no room for its events (`streams_bytes_max`)", Some(NO_ROOM_RETRY_MILLIS))
                    }
                }
            }
            Poll::Ready(None) => state.end(),
            // All that came before has been read.
            Poll::Pending => {
                state.waiting = Some(cx.waker().clone());
                end_with(&ready!(state.leaving.as_mut().poll(cx)))
            }
        };
        state.has_ended = true;
        self.ready.push_back(end);
        Poll::Ready(true)
    }
}

impl Drop for State {
    /// What its client has not acknowledged, or was not written as a whole, nobody says to be handled.
    fn drop(&mut self) {
        self.untaken.take().into_iter().for_each(|(_, message)| message.forget());
        self.kept.drain(..).filter_map(|kept| kept.message).for_each(ServerMessage::forget);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Some(streams) = self.streams.upgrade() else { return };
        {
            let mut state = self.stream.state.lock();
            if state.reader != self.reader {
                return;
            }
            if !state.has_ended {
                state.waiting_since = Some(Instant::now());
            }
        }
        streams.left(&self.stream);
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key: it lets its bearer in.
        f.debug_struct("Events").field("at", &self.at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let seen = LastSeen { key: 7, number: u64::MAX };
        assert_eq!(LastSeen::parse(&seen.text()), Some(seen));
        for wrong in ["", "-", "7-1", "+0000000000000000000000000000007-1", &format!("{:032x}-x", 7)] {
            assert_eq!(LastSeen::parse(wrong), None, "{wrong}");
        }
    }
}
