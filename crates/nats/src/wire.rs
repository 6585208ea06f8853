//! The connection: asks with a bound on each, a bounded outbox, and whether the broker is there.
//!
//! The client library takes messages while there is no connection, and its asks wait for ten seconds; this is where that
//! ends. What is sent holds its place in the outbox until it is answered, or given up.

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

use async_nats::{Client, Event, HeaderMap, Message, ServerError, StatusCode, Subscriber};
use bothways::cluster::engine::EngineState;
use bytes::Bytes;
use futures_core::Stream as _;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, mpsc, oneshot, watch},
    task::AbortHandle,
    time::timeout,
};

/// Most messages that were sent and not answered yet.
pub(crate) const OUTBOX_MESSAGES_MAX: usize = 64 << 10;
/// Their bytes.
pub(crate) const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// How long a message without an answer may take until it is written.
const WRITE_MAX: Duration = Duration::from_secs(2);

/// Why nothing was answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// Nobody listens: it was not taken.
    Nobody,
    /// It was not sent: there is no connection, or no room.
    NotSent,
    /// Nobody knows: no answer in time, or the connection broke.
    Unknown,
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
    /// What the server said last against us, such as a permission that is missing.
    complaint: Mutex<Option<String>>,
}

impl Events {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            mail: watch::Sender::new(EngineState::Up { epoch: rand::random() }),
            waiting: Mutex::default(),
            connected: Notify::new(),
            complaint: Mutex::default(),
        })
    }

    pub(crate) fn happened(&self, event: Event) {
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

    /// Something may have been missed.
    pub(crate) fn gap(&self) {
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

/// See the module.
pub(crate) struct Wire {
    client: Client,
    pub(crate) events: Arc<Events>,
    /// What subjects for answers begin with.
    inbox: String,
    next: AtomicU64,
    messages: Semaphore,
    bytes: Semaphore,
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
            messages: Semaphore::new(OUTBOX_MESSAGES_MAX),
            bytes: Semaphore::new(OUTBOX_BYTES_MAX),
            reader,
        }))
    }

    pub(crate) fn mail_state(&self) -> watch::Receiver<EngineState> {
        self.events.mail.subscribe()
    }

    fn room(&self, bytes: usize) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), Failure> {
        if !self.events.is_up() {
            return Err(Failure::NotSent);
        }
        let bytes = u32::try_from(bytes).map_err(|_| Failure::NotSent)?;
        let message = self.messages.try_acquire().map_err(|_| Failure::NotSent)?;
        Ok((message, self.bytes.try_acquire_many(bytes).map_err(|_| Failure::NotSent)?))
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
        sent.map_err(|_| Failure::NotSent)
    }

    /// Asks, and waits this long.
    pub(crate) async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        bytes: Bytes,
        within: Duration,
    ) -> Result<Message, Failure> {
        let _room = self.room(bytes.len())?;
        let (sender, answer) = oneshot::channel();
        let (_asked, reply) = self.asked(Waiting::One(sender));
        let answered = timeout(within, async {
            self.send(subject, reply, headers, bytes).await?;
            answer.await.map_err(|_| Failure::Unknown)
        });
        let message = answered.await.map_err(|_| Failure::Unknown)??;
        match message.status {
            Some(StatusCode::NO_RESPONDERS) => Err(Failure::Nobody),
            _ => Ok(message),
        }
    }

    /// Asks what is answered by several messages, up to one for which `is_last` holds, which is not among them.
    pub(crate) async fn ask_many(
        &self,
        subject: String,
        bytes: Bytes,
        most: usize,
        is_last: impl Fn(&Message) -> bool,
        within: Duration,
    ) -> Result<Vec<Message>, Failure> {
        let _room = self.room(bytes.len())?;
        let (sender, mut answers) = mpsc::channel(most + 1);
        let (_asked, reply) = self.asked(Waiting::Many(sender));
        let all = timeout(within, async {
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
        let _room = self.room(bytes.len())?;
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

    /// True if the server of this connection answers: it says that nobody listens where nobody can.
    pub(crate) async fn is_served(&self, within: Duration) -> bool {
        let nowhere = format!("{}0.0", self.inbox);
        matches!(self.ask(nowhere, None, Bytes::new(), within).await, Err(Failure::Nobody))
    }

    /// Leaves the server of this connection, and takes another one.
    pub(crate) async fn leave_server(&self) {
        let _ = timeout(WRITE_MAX, self.client.force_reconnect()).await;
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
