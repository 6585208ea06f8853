//! The connection: asks with a bound on each, a bounded outbox, and whether the broker is there.
//!
//! The client library takes messages while there is no connection, and its asks wait for ten seconds; this is where that
//! ends. What is sent holds its place in an outbox until it is answered, or given up. Leases and records, mail, and logs
//! have an outbox each: what is full of one kind keeps no other from being sent.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, Event, HeaderMap, Message, PublishError, ServerError, StatusCode, Subscriber, client::PublishErrorKind,
    connection::State as ConnectionState,
};
use bothways::cluster::engine::EngineState;
use bytes::Bytes;
use futures_core::Stream as _;
use parking_lot::Mutex;
use tokio::{
    sync::{AcquireError, Notify, Semaphore, SemaphorePermit, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// Most messages of one outbox that were sent and not answered yet.
pub(crate) const OUTBOX_MESSAGES_MAX: usize = 32 << 10;
/// Their bytes.
pub(crate) const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// The least time between two epochs in which something may have been missed: all readers read again after one.
const GAP_EVERY: Duration = Duration::from_secs(1);
/// How long a message without an answer may take until it is written.
const WRITE_MAX: Duration = Duration::from_secs(2);

/// Why nothing was answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// Nobody listens: it was not taken.
    Nobody,
    /// It was not sent: there is no connection.
    NotSent,
    /// It was not sent: there was no room in time.
    NoRoom,
    /// It was not sent: the server takes no message that is so large. Another one that this node came to may take less than the
    /// first.
    TooLarge,
    /// Nobody knows: no answer in time, or the connection broke.
    Unknown,
}

/// Whose outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outbox {
    /// Leases, records, and what the streams are.
    Register,
    Mail,
    Logs,
}

/// Its room.
struct Room {
    messages: Semaphore,
    bytes: Semaphore,
}

impl Room {
    fn new() -> Self {
        Self { messages: Semaphore::new(OUTBOX_MESSAGES_MAX), bytes: Semaphore::new(OUTBOX_BYTES_MAX) }
    }
}

enum Waiting {
    One(oneshot::Sender<Message>),
    Many(mpsc::Sender<Message>),
}

/// What the client library tells, and who waits.
pub(crate) struct Events {
    mail: watch::Sender<EngineState>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// Woken when there is a connection again.
    pub(crate) connected: Notify,
    /// How often that was told.
    connects: AtomicU64,
    /// Woken when something may have been missed.
    missed: Notify,
    /// What the server said last against us, such as a permission that is missing.
    complaint: Mutex<Option<String>>,
}

impl Events {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            mail: watch::Sender::new(EngineState::Up { epoch: rand::random() }),
            waiting: Mutex::default(),
            connected: Notify::new(),
            connects: AtomicU64::new(0),
            missed: Notify::new(),
            complaint: Mutex::default(),
        })
    }

    /// What the client library tells.
    pub(crate) fn told(&self, event: Event) {
        if matches!(event, Event::Connected) {
            self.connects.fetch_add(1, Ordering::Relaxed);
        }
        self.happened(event);
    }

    fn happened(&self, event: Event) {
        match event {
            Event::Connected => {
                self.mail.send_replace(EngineState::Up { epoch: rand::random() });
                self.connected.notify_one();
            }
            Event::Disconnected | Event::Closed => {
                self.mail.send_replace(EngineState::Down);
                // Their answers will not come: those who wait are told now.
                let gone = std::mem::take(&mut *self.waiting.lock());
                drop(gone);
                tracing::warn!("the connection to NATS is gone");
            }
            // Something was dropped.
            Event::SlowConsumer(_) => self.gap(),
            Event::ServerError(ServerError::Other(text)) => {
                tracing::warn!(said = %text, "NATS refused something");
                *self.complaint.lock() = Some(text);
            }
            _ => {}
        }
    }

    /// Something may have been missed: another epoch, at once, or a second after the one before.
    pub(crate) fn gap(&self) {
        self.missed.notify_one();
    }

    fn begin_epoch(&self) {
        self.mail.send_if_modified(|state| {
            let is_up = state.is_up();
            if is_up {
                *state = EngineState::Up { epoch: rand::random() };
            }
            is_up
        });
    }

    pub(crate) fn is_up(&self) -> bool {
        self.mail.borrow().is_up()
    }

    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.lock().clone()
    }
}

/// Tells of gaps, one a second: many come together.
pub(crate) async fn tell_gaps(events: Arc<Events>) {
    loop {
        events.missed.notified().await;
        events.begin_epoch();
        sleep(GAP_EVERY).await;
    }
}

/// What the client library says of its connection, beside what it told: where its events have no room, it drops them.
#[derive(Default)]
pub(crate) struct Looked {
    /// Connections that were made and not told of.
    untold: u64,
    /// The same as they were found a moment ago, and whether it was connected while nobody said so, or the reverse.
    suspected: (u64, bool),
}

impl Looked {
    /// An event that was lost, if one was: what is so at two looks one after the other. One that is on its way comes
    /// between them.
    fn lost(&mut self, untold: u64, is_connected: bool, is_up: bool) -> Option<Event> {
        let found = (untold, is_connected != is_up);
        let is_same = std::mem::replace(&mut self.suspected, found) == found;
        let is_untold = is_connected && self.untold < untold;
        if !is_same || !(found.1 || is_untold) {
            // Those that came late are told.
            self.untold = self.untold.min(untold);
            return None;
        }
        self.untold = untold;
        Some(if is_connected { Event::Connected } else { Event::Disconnected })
    }
}

/// See the module.
pub(crate) struct Wire {
    client: Client,
    pub(crate) events: Arc<Events>,
    /// What subjects for answers begin with.
    inbox: String,
    next: AtomicU64,
    register: Room,
    mail: Room,
    logs: Room,
    reader: AbortHandle,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Ends the waiting when it is dropped.
struct Asked<'a> {
    events: &'a Events,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.events.waiting.lock().remove(&self.number);
    }
}

impl Wire {
    /// `prefix` is that of all subjects.
    pub(crate) async fn new(client: Client, events: Arc<Events>, prefix: &str) -> Result<Arc<Self>, Failure> {
        let inbox = format!("{prefix}i.{:016x}.", rand::random::<u64>());
        let subscribed = timeout(WRITE_MAX, client.subscribe(format!("{inbox}*"))).await;
        let subscriber = subscribed.map_err(|_| Failure::Unknown)?.map_err(|_| Failure::NotSent)?;
        let reader = tokio::spawn(read_answers(subscriber, inbox.clone(), Arc::clone(&events))).abort_handle();
        Ok(Arc::new(Self {
            client,
            events,
            inbox,
            next: AtomicU64::new(1),
            register: Room::new(),
            mail: Room::new(),
            logs: Room::new(),
            reader,
        }))
    }

    pub(crate) fn mail_state(&self) -> watch::Receiver<EngineState> {
        self.events.mail.subscribe()
    }

    /// Waits for room, first come, first served. Those who wait hold what they send: how many there are is bounded where
    /// they come from.
    async fn room(
        &self,
        of: Outbox,
        messages: usize,
        bytes: usize,
        within: Duration,
    ) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), Failure> {
        if !self.events.is_up() {
            return Err(Failure::NotSent);
        }
        let room = match of {
            Outbox::Register => &self.register,
            Outbox::Mail => &self.mail,
            Outbox::Logs => &self.logs,
        };
        // What is larger than the whole outbox goes alone.
        let (messages, bytes) = (messages.min(OUTBOX_MESSAGES_MAX) as u32, bytes.min(OUTBOX_BYTES_MAX) as u32);
        let both = async {
            Ok::<_, AcquireError>((room.messages.acquire_many(messages).await?, room.bytes.acquire_many(bytes).await?))
        };
        let both = timeout(within, both).await.map_err(|_| Failure::NoRoom)?.map_err(|_| Failure::NotSent)?;
        // Gone meanwhile.
        if self.events.is_up() { Ok(both) } else { Err(Failure::NotSent) }
    }

    fn asked(&self, waiting: Waiting) -> (Asked<'_>, String) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.events.waiting.lock().insert(number, waiting);
        (Asked { events: &self.events, number }, format!("{}{number}", self.inbox))
    }

    async fn send(
        &self,
        subject: String,
        reply: String,
        headers: Option<HeaderMap>,
        bytes: Bytes,
    ) -> Result<(), Failure> {
        let sent = match headers {
            Some(headers) => self.client.publish_with_reply_and_headers(subject, reply, headers, bytes).await,
            None => self.client.publish_with_reply(subject, reply, bytes).await,
        };
        sent.map_err(|error| not_sent(&error))
    }

    /// Asks, and waits this long, for room too.
    pub(crate) async fn ask(
        &self,
        of: Outbox,
        subject: String,
        headers: Option<HeaderMap>,
        bytes: Bytes,
        within: Duration,
    ) -> Result<Message, Failure> {
        let began = Instant::now();
        let _room = self.room(of, 1, bytes.len(), within).await?;
        let (sender, answer) = oneshot::channel();
        let (_asked, reply) = self.asked(Waiting::One(sender));
        let answered = timeout(within.saturating_sub(began.elapsed()), async {
            self.send(subject, reply, headers, bytes).await?;
            answer.await.map_err(|_| Failure::Unknown)
        });
        answered.await.map_err(|_| Failure::Unknown)?.and_then(by_somebody)
    }

    /// Asks several times, one behind the other, and waits this long for all answers. They are in the order of what was
    /// asked.
    pub(crate) async fn ask_each(
        &self,
        of: Outbox,
        subject: &str,
        messages: Vec<(HeaderMap, Bytes)>,
        within: Duration,
    ) -> Vec<Result<Message, Failure>> {
        let (until, count) = (Instant::now() + within, messages.len());
        let bytes = messages.iter().map(|(_, bytes)| bytes.len()).sum();
        let _room = match self.room(of, count, bytes, within).await {
            Ok(room) => room,
            Err(failure) => return (0..count).map(|_| Err(failure)).collect(),
        };
        let (mut waiting, mut broken) = (Vec::with_capacity(count), None);
        for (headers, bytes) in messages {
            let (sender, answer) = oneshot::channel();
            let (asked, reply) = self.asked(Waiting::One(sender));
            let sent = match broken {
                Some(failure) => Err(failure),
                // One that is given up here has not gone out.
                None => timeout_at(until, self.send(subject.to_owned(), reply, Some(headers), bytes))
                    .await
                    .unwrap_or(Err(Failure::NotSent)),
            };
            broken = sent.err().filter(|failure| *failure != Failure::TooLarge).or(broken);
            waiting.push(sent.map(|()| (asked, answer)));
        }

        let mut answers = Vec::with_capacity(count);
        for one in waiting {
            answers.push(match one {
                Ok((_asked, answer)) => match timeout_at(until, answer).await {
                    Ok(Ok(message)) => by_somebody(message),
                    _ => Err(Failure::Unknown),
                },
                Err(failure) => Err(failure),
            });
        }
        answers
    }

    /// Sends several, one behind the other, of which the last one is answered; and waits this long.
    pub(crate) async fn ask_together(
        &self,
        of: Outbox,
        subject: &str,
        mut messages: Vec<(HeaderMap, Bytes)>,
        within: Duration,
    ) -> Result<Message, Failure> {
        let (until, count) = (Instant::now() + within, messages.len());
        let bytes = messages.iter().map(|(_, bytes)| bytes.len()).sum();
        let _room = self.room(of, count, bytes, within).await?;
        let Some((headers, bytes)) = messages.pop() else { return Err(Failure::NotSent) };
        let (sender, answer) = oneshot::channel();
        let (_asked, reply) = self.asked(Waiting::One(sender));
        let sent = timeout_at(until, async {
            for (headers, bytes) in messages {
                let sent = self.client.publish_with_headers(subject.to_owned(), headers, bytes).await;
                sent.map_err(|error| not_sent(&error))?;
            }
            self.send(subject.to_owned(), reply, Some(headers), bytes).await
        });
        // Without the last one the others are nothing.
        sent.await.map_err(|_| Failure::NotSent)??;
        let answered = timeout_at(until, answer).await;
        answered.map_err(|_| Failure::Unknown)?.map_err(|_| Failure::Unknown).and_then(by_somebody)
    }

    /// Asks what is answered by several messages, up to one for which `is_last` holds, which is not among them.
    pub(crate) async fn ask_many(
        &self,
        of: Outbox,
        subject: String,
        bytes: Bytes,
        most: usize,
        is_last: impl Fn(&Message) -> bool,
        within: Duration,
    ) -> Result<Vec<Message>, Failure> {
        let began = Instant::now();
        let _room = self.room(of, 1, bytes.len(), within).await?;
        let (sender, mut answers) = mpsc::channel(most + 1);
        let (_asked, reply) = self.asked(Waiting::Many(sender));
        let all = timeout(within.saturating_sub(began.elapsed()), async {
            self.send(subject, reply, None, bytes).await?;
            let mut all = Vec::new();
            loop {
                let message = answers.recv().await.ok_or(Failure::Unknown)?;
                if message.status == Some(StatusCode::NO_RESPONDERS) {
                    return Err(Failure::Nobody);
                }
                if is_last(&message) {
                    return Ok(all);
                }
                all.push(message);
            }
        });
        all.await.map_err(|_| Failure::Unknown)?
    }

    /// Sends what nobody answers, and waits until it is written.
    pub(crate) async fn tell(&self, subject: String, bytes: Bytes) -> Result<(), Failure> {
        let _room = self.room(Outbox::Mail, 1, bytes.len(), WRITE_MAX).await?;
        let written = timeout(WRITE_MAX, async {
            self.client.publish(subject, bytes).await.map_err(|_| Failure::NotSent)?;
            self.client.flush().await.map_err(|_| Failure::Unknown)
        });
        written.await.map_err(|_| Failure::Unknown)?
    }

    /// Follows a subject. The server of this connection has it when this returns.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, Failure> {
        if !self.events.is_up() {
            return Err(Failure::NotSent);
        }
        let subscribed = timeout(WRITE_MAX, self.client.subscribe(subject)).await.map_err(|_| Failure::Unknown)?;
        let subscriber = subscribed.map_err(|_| Failure::NotSent)?;
        self.is_served(WRITE_MAX).await.then_some(subscriber).ok_or(Failure::Unknown)
    }

    /// True if the server of this connection brings what this node sends to itself. It has heard then what was said to it
    /// before.
    pub(crate) async fn is_served(&self, within: Duration) -> bool {
        if !self.events.is_up() {
            return false;
        }
        let (sender, answer) = oneshot::channel();
        let (_asked, here) = self.asked(Waiting::One(sender));
        let brought = timeout(within, async {
            self.client.publish(here, Bytes::new()).await.map_err(|_| Failure::NotSent)?;
            answer.await.map_err(|_| Failure::Unknown)
        });
        matches!(brought.await, Ok(Ok(_)))
    }

    /// True if the server says that nobody is there, where nobody is. It does not where somebody listens to everything.
    pub(crate) async fn says_nobody(&self, within: Duration) -> bool {
        let nowhere = format!("{}0.0", self.inbox);
        let asked = self.ask(Outbox::Register, nowhere, None, Bytes::new(), within).await;
        matches!(asked, Err(Failure::Nobody))
    }

    /// Makes up for an event that the client library had no room for. Looked at each second.
    pub(crate) fn look_for_lost(&self, looked: &mut Looked) {
        let made = self.client.statistics().connects.load(Ordering::Relaxed);
        let untold = made.saturating_sub(self.events.connects.load(Ordering::Relaxed));
        let is_connected = self.client.connection_state() == ConnectionState::Connected;
        if let Some(lost) = looked.lost(untold, is_connected, self.events.is_up()) {
            self.events.happened(lost);
        }
    }

    /// Leaves the server of this connection, and takes another one.
    pub(crate) async fn leave_server(&self) {
        let _ = timeout(WRITE_MAX, self.client.force_reconnect()).await;
    }
}

fn not_sent(error: &PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Failure::TooLarge,
        _ => Failure::NotSent,
    }
}

/// What was answered, if it is not that nobody is there.
fn by_somebody(message: Message) -> Result<Message, Failure> {
    match message.status {
        Some(StatusCode::NO_RESPONDERS) => Err(Failure::Nobody),
        _ => Ok(message),
    }
}

/// The next message of a subscription.
pub(crate) async fn next(subscriber: &mut Subscriber) -> Option<Message> {
    poll_fn(|context| Pin::new(&mut *subscriber).poll_next(context)).await
}

async fn read_answers(mut subscriber: Subscriber, inbox: String, events: Arc<Events>) {
    while let Some(message) = next(&mut subscriber).await {
        let number = message.subject.strip_prefix(inbox.as_str()).and_then(|number| number.parse().ok());
        let Some(number) = number else { continue };
        let mut waiting = events.waiting.lock();
        match waiting.remove(&number) {
            Some(Waiting::One(sender)) => _ = sender.send(message),
            Some(Waiting::Many(sender)) if sender.try_send(message).is_ok() => {
                waiting.insert(number, Waiting::Many(sender));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However much is missed, those who read again at each epoch have a second, and hear of the last gap too.
    #[tokio::test(start_paused = true)]
    async fn one_gap_a_second_is_told() {
        let events = Events::new();
        let (mut mail, telling) = (events.mail.subscribe(), tokio::spawn(tell_gaps(Arc::clone(&events))));
        let (began, mut epochs) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(3500) {
            events.gap();
            sleep(Duration::from_millis(1)).await;
            epochs += usize::from(mail.has_changed().expect("it is there"));
            mail.mark_unchanged();
        }
        assert_eq!(epochs, 4, "at once, and after each second");
        mail.changed().await.expect("it is there");
        assert!(began.elapsed() < Duration::from_millis(4010), "the last one is told when its second comes");
        telling.abort();
    }

    /// An event that is on its way is no lost one; one that was lost is told at the second look.
    #[test]
    fn events_that_were_lost_are_found() {
        let mut looked = Looked::default();
        assert!(looked.lost(0, true, true).is_none());
        // A reconnect whose two events come a moment later.
        assert!(looked.lost(1, true, true).is_none());
        assert!(looked.lost(0, true, true).is_none());
        // Both were lost: there was a gap.
        assert!(looked.lost(1, true, true).is_none());
        assert!(matches!(looked.lost(1, true, true), Some(Event::Connected)));
        assert!(looked.lost(1, true, true).is_none(), "told once");
        // It is gone, and nobody said so; and the same when it is back.
        assert!(looked.lost(1, false, true).is_none());
        assert!(matches!(looked.lost(1, false, true), Some(Event::Disconnected)));
        assert!(looked.lost(1, false, false).is_none());
        assert!(looked.lost(2, true, false).is_none());
        assert!(matches!(looked.lost(2, true, false), Some(Event::Connected)));
    }
}
