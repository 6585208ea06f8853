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
    task::{Context, Poll, ready},
    time::Duration,
};

use bothways::{Client, CloseReason, ConnectError, client::ServerMessages, shares::Share, transport::BoxFuture};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::{
    encode::{self, Event},
    streams::Streams,
};
use crate::options::StreamBounds;

/// What the id of an event says: which stream, and which of its events.
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
    /// The last events, each as it was written; the first one's number is `next - kept.len()`.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// The number of the next event.
    next: u64,
    /// Which response reads: the last one that came.
    reader: u64,
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
        opened: &Event,
    ) -> Self {
        let key = rand::random();
        let mut state = State {
            leaving: leaving(&client),
            client,
            messages,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next: 0,
            reader: 0,
            waiting_since: None,
            is_watched: false,
            has_ended: false,
        };
        state.keep(key, opened, &bounds);
        Self { key, place, bounds, state: Mutex::new(state) }
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

    /// A new response reads from here on: after the event that its client has seen, or from the beginning. An earlier
    /// response ends.
    pub(super) fn read(self: &Arc<Self>, streams: &Arc<Streams>, seen: Option<u64>) -> Events {
        let mut state = self.state.lock();
        state.reader += 1;
        state.waiting_since = None;
        let first = state.first();
        // No client has seen what was never written.
        let at = seen.map_or(0, |seen| seen.saturating_add(1)).min(state.next);
        let missed = first.saturating_sub(at);
        Events {
            stream: Arc::clone(self),
            streams: Arc::downgrade(streams),
            reader: state.reader,
            at: at.max(first),
            before: Some(begin_with(missed)),
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
    fn keep(&mut self, key: u128, event: &Event, bounds: &StreamBounds) -> Bytes {
        let text = event.text(&LastSeen { key, number: self.next }.text());
        self.next += 1;
        self.kept_bytes += text.len();
        self.kept.push_back(text.clone());
        // The last one stays, however large: it is still to be read.
        while 1 < self.kept.len()
            && (bounds.kept_events_max < self.kept.len() || bounds.kept_bytes_max < self.kept_bytes)
        {
            self.kept_bytes -= self.kept.pop_front().map_or(0, |text| text.len());
        }
        text
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
    before: Option<Bytes>,
    beat: Pin<Box<Sleep>>,
}

impl Events {
    /// The next bytes; `None`: another response reads now, or the stream has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(before) = self.before.take() {
            return Poll::Ready(Some(before));
        }
        let next = match self.poll_event(cx) {
            Poll::Pending => {
                ready!(self.beat.as_mut().poll(cx));
                Poll::Ready(Some(Bytes::from_static(encode::BEAT)))
            }
            next => next,
        };
        self.beat.as_mut().reset(Instant::now() + self.stream.bounds.beat);
        next
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.stream.state.lock();
        let state = &mut *state;
        if state.reader != self.reader {
            return Poll::Ready(None);
        }
        if let Some(kept) = state.kept.get(self.at.saturating_sub(state.first()) as usize) {
            self.at += 1;
            return Poll::Ready(Some(kept.clone()));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }

        // Dropping this future loses nothing.
        let next = pin!(state.messages.next()).poll(cx);
        let next = match next {
            Poll::Ready(Some(message)) => Ok(message),
            Poll::Ready(None) => Err(state.end()),
            // All that came before has been read.
            Poll::Pending => Err(end_with(&ready!(state.leaving.as_mut().poll(cx)))),
        };
        let message = match next {
            Ok(message) => message,
            Err(end) => {
                state.has_ended = true;
                return Poll::Ready(Some(end));
            }
        };
        let (key, bounds) = (self.stream.key, &self.stream.bounds);
        let mut text = Vec::new();
        if 0 < message.dropped_before() {
            let gap = Event::named("bothways.gap", &json!({ "missed": message.dropped_before() }));
            text.push(state.keep(key, &gap, bounds));
        }
        // Handled, as far as the server is told: it is kept here from now on.
        text.push(state.keep(key, &Event::of(&message), bounds));
        self.at = state.next;
        Poll::Ready(Some(if text.len() == 1 { text.swap_remove(0) } else { text.concat().into() }))
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
