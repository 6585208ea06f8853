//! What arrives from the server: messages go to the queue, calls to the handlers.

use std::{
    any::Any,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bothways_proto::{Message, Metadata, Seq, keys};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    events::{ConnectionEvent, EventSender, SessionLost},
    link::Link,
    messages::{Added, Behind, MessageAdder, ServerMessage, ServerMessages},
    repeats::{Met, ReceivedKeys},
    resubscribe::Resubscriber,
    results::Results,
    returned::{NOT_SENT, NOT_TAKEN, REFUSED, Returned, take_back, wait_for_next},
    session::{Ack, Arrival, Received, SessionMemory},
};
use crate::{
    calm::{Calm, Said, tell},
    connection::{Answer, Connection, ConnectionHandler, deadline},
    error::{AuthError, CloseReason, ErrorCode},
    guard::Guarded,
    handler::Request,
    reply::BoxFuture,
    router::{Router, no_route},
    session::{Failure, Stage},
};

const QUEUE_FULL: &str = "this client's queue of server messages is full";

/// What a client does with what its server sends.
pub(super) struct ClientHandler {
    pub(super) link: Weak<Link>,
    pub(super) runtime: Handle,
    pub(super) client: Weak<super::Handle>,
    pub(super) server: Arc<str>,
    pub(super) handlers: Router,
    pub(super) messages: Option<MessageAdder>,
    pub(super) memory: Arc<SessionMemory>,
    /// The link's, which counts when the link is gone.
    pub(super) returned: Arc<Returned>,
    pub(super) keys: ReceivedKeys,
    pub(super) events: EventSender,
    pub(super) results: Results,
    pub(super) resubscriber: Resubscriber,
    /// Held from the check of a message's number until it is queued: a connection that ends may still be
    /// handing out what it read when the next one is there.
    pub(super) turn: Mutex<()>,
    pub(super) warned: AtomicBool,
    pub(super) repeats: Calm,
}

impl ConnectionHandler for ClientHandler {
    fn handle_request(&self, connection: &Connection, message: Message) -> Answer {
        if message.header().is_oneway() {
            self.handle_message(connection, message);
            return Answer::Nothing;
        }
        let deadline = match deadline(connection, &message) {
            Ok(deadline) => deadline,
            Err(reply) => return Answer::Ready(reply),
        };
        let request = Request::new(message, connection.clone(), deadline);
        match self.handlers.find(&request.message) {
            Ok(handler) => Answer::Later(self.results.once(request, handler), deadline),
            Err(why) => Answer::Ready(no_route(&request, why)),
        }
    }

    fn handle_passed_over(&self, connection: &Connection, seq: Seq) {
        let Some(queue) = &self.messages else {
            connection.count_unheard();
            return;
        };
        let turn = self.turn.lock();
        match self.memory.receive(connection.id(), seq, || true) {
            // Acknowledged now, as it is dropped: to send it again would be of no use.
            Received::New(ack) => ack.end_as(Stage::Failed(Failure::BadArguments)),
            Received::Untracked | Received::NoRoom => {}
            repeated @ (Received::Past | Received::Repeated) => return self.tell_repeated(connection, &repeated, seq),
            Received::False(what) => {
                drop(turn);
                return connection.end_as_misbehaved_by(what);
            }
        }
        queue.add_gap(1);
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), AuthError>> {
        Box::pin(std::future::ready(Err("a client is not greeted".into())))
    }

    fn handle_closed(&self, _: &Connection, _: &CloseReason) {}

    fn sends_again(&self) -> bool {
        true
    }

    fn handle_unsent(&self, connection: &Connection, requests: Vec<Message>, lost: usize, untaken: usize) {
        // In a task: the caller may hold the lock of what waits. Counted before that: a runtime that ends has no tasks.
        if let Some(link) = self.link.upgrade().filter(|link| link.is_waited_for()) {
            let on = connection.id();
            self.runtime.spawn(async move { wait_for_next(&link, on, requests, lost, untaken) });
            return;
        }
        let lost = lost + requests.len();
        let (returned, server) = (Arc::clone(&self.returned), Arc::clone(&self.server));
        returned.count(lost + untaken);
        self.runtime.spawn(async move {
            returned.tell(&server, lost, NOT_SENT);
            returned.tell(&server, untaken, NOT_TAKEN);
        });
    }

    fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.client.upgrade()? as _)
    }

    fn server_keeps_topics(&self) -> bool {
        self.resubscriber.subscriptions.were_answered()
    }

    fn clock(&self) -> Option<&Handle> {
        Some(&self.runtime)
    }

    fn on_welcome_received(&self, connection: &Connection, welcome: Option<&Metadata>) {
        // The first that is told of a connection is that it stands.
        self.stands(connection);

        let resumed = match self.memory.handle_welcome(connection.id(), welcome) {
            Arrival::Resumed => true,
            Arrival::New { lost } => {
                if let Some(why) = lost {
                    let server = Arc::clone(&self.server);
                    self.events.tell(&ConnectionEvent::SessionLost { server, why });
                }
                if let Some(why) = lost.filter(|lost| is_sent_away(*lost, welcome)) {
                    // It was sent away while it was away: it does not begin another session.
                    let acks = self.memory.leave(connection.id());
                    let words = welcome.and_then(|welcome| welcome.get(keys::SESSION_WORDS));
                    // First, so that no request comes behind the Leave.
                    connection.end_as_sent_away(why, words);
                    if let Some(acks) = acks {
                        connection.leave(&acks);
                    }
                    return;
                }
                false
            }
        };

        self.resubscriber.begin(connection, resumed);
    }
}

/// True if the server does not want its client back. Older servers say so only of those they kicked.
fn is_sent_away(lost: SessionLost, welcome: Option<&Metadata>) -> bool {
    let code = welcome.and_then(|welcome| welcome.get(keys::GOODBYE_CODE)).unwrap_or_default();
    lost == SessionLost::Kicked || code == lost.to_string() && CloseReason::is_for_good(lost)
}

impl ClientHandler {
    /// The server has let this client in.
    pub(super) fn stands(&self, connection: &Connection) {
        let Some(link) = self.link.upgrade() else { return };
        link.stands(connection, |again| {
            let server = Arc::clone(&self.server);
            self.events.tell_under_lock(&match again {
                false => ConnectionEvent::Connected { server },
                true => ConnectionEvent::Restored { server, losses: 1 },
            })
        });
    }

    fn handle_message(&self, connection: &Connection, message: Message) {
        let is_control = message.has_service_path(keys::CONTROL_PATH) && connection.is_negotiated();
        if is_control {
            match message.service_method() {
                // By its number it was handled already; this one names a call that may have come on another connection.
                keys::CANCEL => {
                    return self.results.give_up(message.metadata().get(keys::CALL_ID).unwrap_or_default());
                }
                keys::RETURN => return self.handle_return(connection, &message),
                _ => {}
            }
        }

        match &self.messages {
            Some(queue) if is_control && message.service_method() != keys::PRESENCE => {
                self.handle_notice(connection, queue, &message);
            }
            Some(queue) => self.queue(connection, queue, message),
            None => self.pass_over(connection, &message),
        }
    }
}

impl ClientHandler {
    /// A oneway request comes back, for the server has not run it.
    fn handle_return(&self, connection: &Connection, message: &Message) {
        connection.note_returned();
        let request = Message::parse(message.wire_payload(), connection.limits()).ok();
        match self.link.upgrade() {
            Some(link) => take_back(&link, connection, request),
            None => self.returned.lose(&self.server, 1, REFUSED),
        }
    }

    /// The framework of the server says something about its messages.
    fn handle_notice(&self, connection: &Connection, queue: &MessageAdder, message: &Message) {
        match message.service_method() {
            keys::GAP => {
                let missed = message.metadata().get(keys::GAP_MISSED).and_then(|missed| missed.parse().ok());
                let news = self.memory.miss(connection.id(), missed.unwrap_or(0));
                queue.add_gap(news);
                if news != 0 {
                    self.resubscriber.handle_gap(connection);
                }
            }
            // Counted, and acknowledged with that: there is nothing to handle.
            keys::SKIP => {
                let seq = message.header().seq();
                match self.memory.receive(connection.id(), seq, || true) {
                    Received::False(what) => connection.end_as_misbehaved_by(what),
                    repeated @ (Received::Past | Received::Repeated) => {
                        self.tell_repeated(connection, &repeated, seq);
                    }
                    Received::New(_) | Received::Untracked | Received::NoRoom => {}
                }
            }
            method => {
                // Of a later version: it is not for applications.
                tracing::debug!(
                    server = &*self.server,
                    method = ?Said(method),
                    "the server says what this client does not know"
                );
            }
        }
    }

    /// A message for the application: it is queued, unless the client has had it, or has no room for it.
    fn queue(&self, connection: &Connection, queue: &MessageAdder, message: Message) {
        let mut behind = Behind::default();
        // Held until it is queued: a connection that ends may hand out beside the next one.
        let turn = self.turn.lock();

        let has_room = || queue.has_room_for_tracked(&message);
        let seq = message.header().seq();
        let ack = match self.memory.receive(connection.id(), seq, has_room) {
            Received::Untracked => None,
            Received::New(ack) => Some(ack),
            repeated @ (Received::Past | Received::Repeated) => {
                drop(turn);
                return self.tell_repeated(connection, &repeated, seq);
            }
            // A resume brings it again.
            Received::NoRoom => {
                drop(turn);
                return connection.end_as_slow(QUEUE_FULL);
            }
            Received::False(what) => {
                drop(turn);
                return connection.end_as_misbehaved_by(what);
            }
        };

        if ack.is_some() || !connection.is_negotiated() {
            // Only the framework sends tracked messages: in others these pairs may be an application's. A client
            // without a session is sent no tracked ones, and holds topics of Bothways servers only.
            self.resubscriber.subscriptions.note(|| message.metadata());
        } else if message.metadata_value(keys::TOPIC_OFFSET).is_some() {
            self.resubscriber.subscriptions.note_fired(|| message.metadata());
        }

        let (ack, first) = match self.meet_key(connection, &message, ack) {
            Ok(Met::Again) => return connection.count_repeated(),
            Ok(Met::First(first, ack)) => (ack, Some(first)),
            Err(ack) => (ack, None),
        };

        let added = queue.add_under_lock(message, connection, &self.server, ack, first, &mut behind);
        // Let go before the reader is woken: its waker may be an application's own.
        drop(turn);
        drop(behind);
        match added {
            Added::Taken => {}
            Added::Unheard => connection.count_unheard(),
            Added::Full => connection.end_as_slow(QUEUE_FULL),
        }
    }

    /// Nobody takes the messages of this client.
    fn pass_over(&self, connection: &Connection, message: &Message) {
        connection.count_unheard();
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                server = &*self.server,
                service_path = ?Said(message.service_path()),
                service_method = ?Said(message.service_method()),
                "the server sends messages and this client does not listen: they are dropped"
            );
        }
    }
}

impl ClientHandler {
    /// A message is here already, or will be: it is counted, and not handed on.
    fn tell_repeated(&self, connection: &Connection, repeated: &Received, seq: Seq) {
        connection.count_repeated();
        let (server, offset) = (&*self.server, seq.unmarked());
        if let Received::Past = repeated {
            return tracing::debug!(server, offset, "a message of an earlier connection: it comes again if it is new");
        }
        tell!(self.repeats, warn, server, offset, "the server sent a message that this client has: it is dropped");
    }

    /// What its idempotency key makes of a message; `Err`: it has none.
    fn meet_key(&self, connection: &Connection, message: &Message, ack: Option<Ack>) -> Result<Met, Option<Ack>> {
        let metadata = message.metadata();
        match metadata.get(keys::IDEMPOTENCY_KEY) {
            Some(key) if connection.is_negotiated() => self.keys.meet(&self.server, key, ack),
            _ => Err(ack),
        }
    }
}

/// When it was told last how messages of a server end: each of them could be a line.
#[derive(Default)]
pub(super) struct Told {
    unhandled: Calm,
    failed: Calm,
    panicked: Calm,
}

/// Runs a handler for each message, one after the other, until the queue ends.
pub(crate) fn handle_messages(mut messages: ServerMessages, handlers: Router) {
    messages.give_to_handlers();
    tokio::spawn(async move {
        let told = Told::default();
        while let Some(message) = messages.next().await {
            if let Some(failure) = handle_message(&message, &handlers, &told).await {
                message.end_as(failure);
            }
            // Acknowledged now, as it is dropped.
        }
    });
}

/// Runs the handler of a message. Returns how it failed, if it did.
pub(super) async fn handle_message(message: &ServerMessage, handlers: &Router, told: &Told) -> Option<Failure> {
    let request = Request::new(message.message.clone(), message.connection.clone(), None);
    let (path, method) = (Said(message.service_path()), Said(message.service_method()));
    let Ok(handler) = handlers.find(&request.message) else {
        if message.service_path() == keys::CONTROL_PATH {
            // Presence is sent to all subscribers, whether or not they have a handler for it.
            return None;
        }
        tell!(told.unhandled, warn, ?path, ?method, "no handler takes this server message: it is dropped");
        return Some(Failure::NoHandler);
    };

    // A panic ends this message and no other.
    let reply = match Guarded::new(handler.handle(request)).await {
        Ok(reply) => reply,
        Err(panicked) => {
            let panic = Said(panicked.text());
            tell!(told.panicked, error, ?path, ?method, ?panic, "a handler of server messages panicked");
            return Some(Failure::Panicked);
        }
    };

    let failure = reply.outcome.as_ref().err()?;
    let error = Said(&failure.text);
    tell!(told.failed, warn, ?path, ?method, ?error, "a handler of server messages failed");
    Some(match failure.code {
        Some(ErrorCode::BadArguments) => Failure::BadArguments,
        Some(ErrorCode::NotFound) => Failure::NoHandler,
        _ => Failure::Error,
    })
}
