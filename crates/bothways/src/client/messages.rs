//! Messages that servers push: a bounded queue, with a rule for when it is full, and a counter.
//!
//! The reader of a connection only ever adds to the queue; it never waits for the application.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bothways_proto::{Capabilities, Message, Metadata, SerializeType, keys};
use bytes::Bytes;
use futures_core::Stream;
use parking_lot::Mutex;

use super::{
    repeats::{FirstOfKey, Lost},
    session::Ack,
    waiting::{self, Amount, Waiting},
};
use crate::{
    calm::{Said, tell},
    codec::{CodecError, Payload},
    connection::{Connection, Overflow},
    session::{Failure, Position, TopicPlace},
};

/// A message that a server pushed.
///
/// ```
/// use bothways::ServerMessage;
///
/// fn show(message: ServerMessage) {
///     match message.decode::<String>() {
///         Ok(text) => println!("{}.{}: {text}", message.service_path(), message.service_method()),
///         // The sender's receipt ends as failed, and not as handled.
///         Err(error) => message.fail(error),
///     }
/// } // Dropped here: handled.
/// ```
#[derive(Clone, Debug)]
pub struct ServerMessage {
    pub(super) message: Message,
    pub(super) connection: Connection,
    pub(super) server: Arc<str>,
    pub(super) dropped_before: u64,
    /// A tracked message is handled, and acknowledged as such, when the last clone is dropped.
    pub(super) ack: Option<Arc<Ack>>,
    /// So is one that has an idempotency key, for those that come again.
    pub(super) first: Option<Arc<FirstOfKey>>,
    /// It is the newest value of this, as its server says.
    pub(super) latest_of: Option<Arc<str>>,
}

/// The topic of a message, if its peer is a server that knows of topics: in what others send, this pair is theirs.
fn topic_of(message: &Message, connection: &Connection) -> Option<String> {
    if !message.header().is_oneway() || !connection.brings_topics() {
        return None;
    }
    message.metadata().get(keys::TOPIC).map(str::to_owned)
}

/// The position of a message in its topic. A client with a session believes it of tracked messages only: these alone
/// follow each other without a hole.
fn position_of(message: &Message, connection: &Connection) -> Option<Position> {
    let seq = message.header().seq();
    let is_tracked = seq.is_push() && seq.unmarked() != 0;
    if !is_tracked && connection.peer_can(Capabilities::SESSIONS) {
        return None;
    }
    topic_of(message, connection)?;
    TopicPlace::of(&message.metadata()).map(|place| place.position)
}

impl crate::Request {
    /// The topic that a message was published to; `None` if it was sent in another way, and of a call.
    pub fn topic(&self) -> Option<String> {
        topic_of(&self.message, &self.connection)
    }

    /// Where it stands in its topic, if that has a history; see [`ServerMessage::position`].
    pub fn position(&self) -> Option<Position> {
        position_of(&self.message, &self.connection)
    }
}

impl crate::Context {
    /// The topic that a message was published to; see [`Request::topic`](crate::Request::topic).
    pub fn topic(&self) -> Option<String> {
        self.request().topic()
    }

    /// Where it stands in its topic, if that has a history; see [`ServerMessage::position`].
    pub fn position(&self) -> Option<Position> {
        self.request().position()
    }
}

impl ServerMessage {
    /// The service path that the server named.
    pub fn service_path(&self) -> &str {
        self.message.service_path()
    }

    /// The method that the server named.
    pub fn service_method(&self) -> &str {
        self.message.service_method()
    }

    /// The pairs beside the payload.
    pub fn metadata(&self) -> Metadata {
        self.message.metadata()
    }

    /// The codec of the payload; raw for every push of a Go server.
    pub fn serialize_type(&self) -> SerializeType {
        self.message.header().serialize()
    }

    /// The payload, unpacked if it came compressed.
    ///
    /// # Errors
    /// [`CodecError::Compressed`].
    pub fn payload(&self) -> Result<Bytes, CodecError> {
        Ok(self.message.payload(self.connection.limits())?)
    }

    /// The payload as a value.
    ///
    /// # Errors
    /// Any [`CodecError`].
    pub fn decode<T: Payload>(&self) -> Result<T, CodecError> {
        T::decode(self.serialize_type(), self.payload()?)
    }

    /// The topic to which it was published, if the server said so. A plain server, which knows of no topics, is not
    /// believed.
    pub fn topic(&self) -> Option<String> {
        topic_of(&self.message, &self.connection)
    }

    /// Its position in its topic, if that has a history:
    /// [`Client::subscribe_from`](crate::Client::subscribe_from) goes on from there. `None` of a message that a client with
    /// a session was sent without being tracked ([`Class::Fire`](crate::Class::Fire)): those before it may be missing.
    pub fn position(&self) -> Option<Position> {
        position_of(&self.message, &self.connection)
    }

    /// The address of the server that it came from, in rpcx's form.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The connection that it came on.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How many messages were dropped right before this one, here or by the server: a gap.
    pub fn dropped_before(&self) -> u64 {
        self.dropped_before
    }

    /// Reports that the application cannot handle it: its sender's receipt ends as
    /// [`Failed(Error)`](crate::session::Failure::Error) once the last clone is dropped, and the message does not come
    /// again. The text goes to this client's log, cut at 1 KiB: as a warning once in ten seconds, else at level debug.
    ///
    /// A message that is dropped without this is [handled](crate::Stage::Handled). Towards a server that does not
    /// understand it (a Bothways server without the capability `outcomes`), this one is, too.
    pub fn fail(self, why: impl std::fmt::Display) {
        let (path, method, error) = (Said(self.service_path()), Said(self.service_method()), Said(why));
        let told = self.connection.told_failed();
        tell!(told, warn, ?path, ?method, %error, "the application failed to handle a server message");
        self.end_as(Failure::Error);
    }

    /// Gives the message up without a word: for an application that hands messages on, and does not learn what became of
    /// this one. A tracked message comes again when the connection does; otherwise its sender's receipt ends as
    /// [`Unknown`](crate::Stage::Unknown), with the session.
    pub fn forget(self) {
        self.lose(Lost::Forgotten);
    }

    /// It was not handled, and will not be.
    pub(super) fn end_as(&self, failure: Failure) {
        self.lose(Lost::Failed(failure));
    }

    /// It was not handled for this reason, which counts for its repetitions too.
    fn lose(&self, why: Lost) {
        if let Some(ack) = &self.ack {
            why.say_of(ack);
        }
        if let Some(first) = &self.first {
            first.lose(why);
        }
    }

    /// What is tracked stays, and what has tracked repetitions that wait for it.
    pub(super) fn may_be_pushed_out(&self) -> bool {
        #[cfg(test)]
        tests::LOOKED_AT.set(tests::LOOKED_AT.get() + 1);
        self.ack.is_none() && !self.first.as_ref().is_some_and(|first| first.has_repetitions())
    }

    pub(super) fn bytes(&self) -> usize {
        self.message.frame().len()
    }
}

/// The messages of one or more servers, in the order in which each sent them.
///
/// A [`Stream`]. It ends after the last message when the client is closed or dropped. If the stream is dropped before that,
/// nobody listens any more: waiting messages, and every tracked push that follows, end as
/// [`Failed(NoHandler)`](crate::session::Failure::NoHandler) for their senders.
///
/// Of several values of one key of class [`Latest`](crate::Class::Latest) only the newest waits; the sender's receipts
/// of the older ones say [`Superseded`](crate::Stage::Superseded).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions, Push, Server, Target};
///
/// let server = Server::builder().build();
/// let listening = server.listen("memu@server messages").await?;
/// let (client, mut messages) = Client::bidirectional(listening.address(), ClientOptions::new()).await?;
/// server.push(&Target::everyone(), &Push::new("News", "Flash", "rain"))?;
/// while let Some(message) = messages.next().await {
///     assert_eq!(message.payload()?, "rain");
///     client.close(); // Ends the stream.
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ServerMessages {
    shared: Arc<Shared>,
}

/// Keeps the queue open: the stream ends when the last clone is dropped.
///
/// Connections add through [`MessageAdder`], which does not keep it open: a connection lives for as long
/// as anybody has a handle on it, and each message that waits, or that the application keeps, has one.
#[derive(Clone, Debug)]
pub(crate) struct MessageQueue {
    open: Arc<Open>,
}

/// The end of the queue that the connections to one server add to.
#[derive(Debug)]
pub(super) struct MessageAdder {
    shared: Arc<Shared>,
    server: waiting::Server,
}

impl Drop for MessageAdder {
    fn drop(&mut self) {
        self.shared.state.lock().waiting.leave(self.server);
    }
}

#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    bounds: QueueBounds,
    goes_to_handlers: AtomicBool,
}

/// What may wait for the application. Of several servers each has a share of it: see [`Held::has_room`].
///
/// [`Held::has_room`]: super::waiting::Held::has_room
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueBounds {
    /// Of all that waits, beyond which what is not tracked is dropped by a rule.
    pub(super) messages_max: usize,
    pub(super) bytes_max: usize,
    pub(super) overflow: Overflow,
    /// Of tracked messages, beyond which the connection ends.
    pub(super) tracked_max: usize,
    pub(super) tracked_bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    dropped: u64,
    ended: bool,
    /// The application has dropped its end.
    abandoned: bool,
    reader: Option<Waker>,
}

pub(super) fn queue(bounds: QueueBounds) -> (MessageQueue, ServerMessages) {
    let shared = Arc::new(Shared { state: Mutex::default(), bounds, goes_to_handlers: false.into() });
    (MessageQueue { open: Arc::new(Open(Arc::clone(&shared))) }, ServerMessages { shared })
}

impl MessageQueue {
    /// Handlers take what comes, and nobody else does.
    pub(super) fn goes_to_handlers(&self) -> bool {
        self.open.0.goes_to_handlers.load(Ordering::Relaxed)
    }

    pub(super) fn adder(&self) -> MessageAdder {
        let shared = Arc::clone(&self.open.0);
        let server = shared.state.lock().waiting.join();
        MessageAdder { shared, server }
    }
}

/// Messages that wait as they came, each with all of its read of up to 64 KiB. Later ones are copied out of their reads
/// if they are small parts of these: a queue that is not emptied takes what it counts.
const AS_THEY_CAME: usize = 64;

/// What became of a message that came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Added {
    /// It waits, or was dropped by the rule for a full queue, and counted.
    Taken,
    /// Nobody listens any more.
    Unheard,
    /// The queue is full, and its rule is to end the connection.
    Full,
}

/// What is done when a message was added and no lock is held: the reader is woken, and messages are dropped that made room.
#[derive(Default)]
pub(super) struct Behind {
    reader: Option<Waker>,
    dropped: Vec<ServerMessage>,
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.dropped.clear();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl MessageAdder {
    /// Adds a message; to a queue that has ended, nothing.
    ///
    /// A tracked message is always taken, as [`Self::has_room_for_tracked`] was asked before it was counted as
    /// received: to drop one here would lose it.
    ///
    /// The caller holds a lock: what is to be done without one is in `behind`.
    pub(super) fn add_under_lock(
        &self,
        message: Message,
        connection: &Connection,
        server: &Arc<str>,
        ack: Option<Ack>,
        first: Option<FirstOfKey>,
        behind: &mut Behind,
    ) -> Added {
        let shared = &*self.shared;
        let (connection, server) = (connection.clone(), Arc::clone(server));
        let (ack, first) = (ack.map(Arc::new), first.map(Arc::new));
        let latest_of = latest_of(&message, ack.is_some(), &connection);
        let mut message = ServerMessage { message, connection, server, dropped_before: 0, ack, first, latest_of };

        // The message itself is dropped behind the lock: what it holds takes locks of its own.
        let mut state = shared.state.lock();
        if state.ended {
            match state.abandoned {
                true => message.lose(Lost::Abandoned),
                false => message.lose(Lost::Forgotten),
            }
            return Added::Unheard;
        }

        let bounds = &shared.bounds;
        let max = Amount { messages: bounds.messages_max, bytes: bounds.bytes_max };
        let (bytes, mut left) = (message.bytes(), 0);
        while message.ack.is_none() {
            let held = state.waiting.held(self.server);
            if held.has_room(bytes, max) || held.has_room_instead(bytes, left, max) {
                break;
            }

            state.dropped = state.dropped.saturating_add(1);
            let oldest = match bounds.overflow {
                Overflow::Disconnect => {
                    message.lose(Lost::PushedOut);
                    return Added::Full;
                }
                Overflow::RefuseNewest => None,
                // None: only those wait that stay.
                Overflow::DropOldest => state.waiting.push_out(self.server),
            };

            let Some(oldest) = oldest else {
                state.waiting.add_gap(1);
                message.lose(Lost::PushedOut);
                return Added::Taken;
            };
            oldest.lose(Lost::PushedOut);
            // What left makes room for this one, even where its server is beyond its share.
            left += oldest.bytes();
            behind.dropped.push(oldest);
        }

        if AS_THEY_CAME <= state.waiting.len() {
            message.message.compact();
        }
        let older = state.waiting.put(self.server, message);
        behind.reader = state.reader.take().or(behind.reader.take());
        drop(state);
        if let Some(older) = older {
            older.lose(Lost::Superseded);
            behind.dropped.push(older);
        }
        Added::Taken
    }
}

/// The key of a message that is the newest value of something, if its server is to be told what became of an older one.
fn latest_of(message: &Message, is_tracked: bool, connection: &Connection) -> Option<Arc<str>> {
    if !is_tracked {
        return None;
    }
    let metadata = message.metadata();
    let key = metadata.get(keys::LATEST_KEY)?;
    connection.peer_can(Capabilities::OUTCOMES).then(|| key.into())
}

impl MessageAdder {
    /// True if one more tracked message of this size may wait, and where nobody takes any more. One that is larger
    /// than the bound may if no other of its server waits.
    pub(super) fn has_room_for_tracked(&self, message: &Message) -> bool {
        let QueueBounds { tracked_max, tracked_bytes_max, .. } = self.shared.bounds;
        let max = Amount { messages: tracked_max, bytes: tracked_bytes_max };
        let state = self.shared.state.lock();
        state.ended || state.waiting.held_tracked(self.server).has_room(message.frame().len(), max)
    }

    /// The server says that it dropped this many messages.
    pub(super) fn add_gap(&self, missed: u64) {
        let mut state = self.shared.state.lock();
        state.dropped = state.dropped.saturating_add(missed);
        state.waiting.add_gap(missed);
    }
}

impl ServerMessages {
    /// From here on handlers take what comes.
    pub(super) fn give_to_handlers(&self) {
        self.shared.goes_to_handlers.store(true, Ordering::Relaxed);
    }

    /// The next message; `None` when the client is closed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<ServerMessage> {
        std::future::poll_fn(|cx| self.poll_take(Some(cx))).await
    }

    /// The next message, if one waits.
    pub fn try_next(&mut self) -> Option<ServerMessage> {
        match self.poll_take(None) {
            Poll::Ready(next) => next,
            Poll::Pending => None,
        }
    }

    /// Messages that were dropped since the beginning, by the rule for a full queue here or by the server.
    pub fn dropped(&self) -> u64 {
        self.shared.state.lock().dropped
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.shared.state.lock().waiting.len()
    }

    /// True if no message waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn poll_take(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Option<ServerMessage>> {
        let mut state = self.shared.state.lock();
        match state.waiting.pop() {
            Some(message) => Poll::Ready(Some(message)),
            None if state.ended => Poll::Ready(None),
            None => {
                let before = cx.and_then(|cx| state.reader.replace(cx.waker().clone()));
                drop(state);
                // An executor's own: not under the lock.
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Drop for ServerMessages {
    /// Messages that wait are dropped with their reader: otherwise they would keep the memory of their connections
    /// alive, and these the queue's. Their senders are told that nobody listens, unless the client is closed.
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let was_closed = std::mem::replace(&mut state.ended, true);
        state.abandoned = !was_closed;
        let waiting = state.waiting.take();
        drop(state);
        let why = if was_closed { Lost::Forgotten } else { Lost::Abandoned };
        waiting.iter().for_each(|message| message.lose(why));
    }
}

impl Stream for ServerMessages {
    type Item = ServerMessage;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ServerMessage>> {
        self.poll_take(Some(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        time::{Duration, Instant},
    };

    use bothways_proto::{Header, Role, Seq};

    use super::*;
    use crate::{
        client::{
            repeats::{Met, ReceivedKeys},
            session::acks,
        },
        connection::alone::alone,
    };

    thread_local! {
        /// Messages that were asked whether they may be pushed out.
        pub(super) static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
    }

    impl MessageAdder {
        fn add(
            &self,
            message: Message,
            connection: &Connection,
            server: &Arc<str>,
            ack: Option<Ack>,
            first: Option<FirstOfKey>,
        ) -> Added {
            self.add_under_lock(message, connection, server, ack, first, &mut Behind::default())
        }
    }

    fn message() -> Message {
        Message::new(Header::oneway(Seq::of_push(1), SerializeType::RAW), "T", "News", &Metadata::new(), b"x")
    }

    /// What a message that is pushed out holds takes locks of its own, behind which others may ask the queue for room.
    #[tokio::test]
    async fn what_is_pushed_out_is_dropped_without_a_lock() {
        let (connection, _far) = alone(Role::Client);
        let bounds = QueueBounds {
            messages_max: 1,
            bytes_max: usize::MAX,
            overflow: Overflow::DropOldest,
            tracked_max: 1,
            tracked_bytes_max: usize::MAX,
        };
        let (queue, messages) = queue(bounds);
        let (adder, keys, server) = (queue.adder(), ReceivedKeys::default(), Arc::from("memory@x"));
        let Ok(Met::First(first, _)) = keys.meet(&server, "a", None) else { panic!("it is the first") };
        assert_eq!(adder.add(message(), &connection, &server, None, Some(first)), Added::Taken);

        let held = keys.hold();
        let adding = std::thread::spawn(move || adder.add(message(), &connection, &server, None, None));
        let until = Instant::now() + Duration::from_secs(20);
        let is_free = || {
            let state = messages.shared.state.try_lock()?;
            (state.dropped == 1 && state.waiting.len() == 1).then_some(())
        };
        while is_free().is_none() {
            assert!(Instant::now() < until, "it drops the message with the queue locked");
            std::thread::yield_now();
        }
        drop(held);
        assert_eq!(adding.join().expect("no panic"), Added::Taken);
    }

    fn connection() -> Connection {
        alone(Role::Client).0
    }

    /// What waits is counted, and what is tracked of it for itself, until it is taken or pushed out.
    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_taken() {
        let (connection, len) = (connection(), message().frame().len());
        let bounds = QueueBounds {
            messages_max: 4,
            bytes_max: 4 * len,
            overflow: Overflow::DropOldest,
            tracked_max: 3,
            tracked_bytes_max: 2 * len,
        };
        let (queue, mut messages) = queue(bounds);
        let (adder, server) = (queue.adder(), Arc::from("memory@x"));
        let counts = |messages: &ServerMessages| {
            let (all, tracked) = messages.shared.state.lock().waiting.counts();
            (all.messages, all.bytes / len, tracked.messages, tracked.bytes / len)
        };
        let mut acks = acks(2).into_iter();
        for is_tracked in [true, false, true, false] {
            let ack = if is_tracked { acks.next() } else { None };
            assert!(!is_tracked || adder.has_room_for_tracked(&message()));
            assert_eq!(adder.add(message(), &connection, &server, ack, None), Added::Taken);
        }
        assert_eq!(counts(&messages), (4, 4, 2, 2));
        assert!(!adder.has_room_for_tracked(&message()), "two of three, and all bytes");

        assert_eq!(adder.add(message(), &connection, &server, None, None), Added::Taken);
        assert_eq!((counts(&messages), messages.dropped()), ((4, 4, 2, 2), 1), "the older one gave way");
        assert!(messages.try_next().is_some_and(|first| first.ack.is_some()));
        assert_eq!(counts(&messages), (3, 3, 1, 1));
        assert!(adder.has_room_for_tracked(&message()));
        while messages.try_next().is_some() {}
        assert_eq!((counts(&messages), messages.len(), messages.is_empty()), ((0, 0, 0, 0), 0, true));
    }

    /// One that is larger than all of the bound is taken if no other waits.
    #[tokio::test]
    async fn a_tracked_message_larger_than_the_bound_waits_alone() {
        let connection = connection();
        let bounds = QueueBounds {
            messages_max: 9,
            bytes_max: 1,
            overflow: Overflow::RefuseNewest,
            tracked_max: 2,
            tracked_bytes_max: 1,
        };
        let (queue, mut messages) = queue(bounds);
        let (adder, server) = (queue.adder(), Arc::from("memory@x"));
        let mut acks = acks(1);
        assert!(adder.has_room_for_tracked(&message()));
        assert_eq!(adder.add(message(), &connection, &server, acks.pop(), None), Added::Taken);
        assert!(!adder.has_room_for_tracked(&message()));
        assert_eq!(
            adder.add(message(), &connection, &server, None, None),
            Added::Taken,
            "it is refused, and the connection goes on"
        );
        assert_eq!((messages.len(), messages.dropped()), (1, 1));
        drop(messages.try_next());
        assert_eq!(
            adder.add(message(), &connection, &server, None, None),
            Added::Taken,
            "alone it is taken, however large"
        );
        assert_eq!(messages.try_next().map(|next| next.dropped_before()), Some(1));
        drop(messages);
        assert!(adder.has_room_for_tracked(&message()), "nobody takes any more");
    }

    /// A reader is woken, and what gave way is dropped, when the caller's lock is free.
    #[tokio::test]
    async fn nobody_is_woken_under_the_lock_of_the_caller() {
        use std::sync::atomic::AtomicUsize;

        #[derive(Default)]
        struct Counts(AtomicUsize);
        impl std::task::Wake for Counts {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let connection = connection();
        let bounds = QueueBounds {
            messages_max: 1,
            bytes_max: usize::MAX,
            overflow: Overflow::DropOldest,
            tracked_max: 9,
            tracked_bytes_max: usize::MAX,
        };
        let (queue, mut messages) = queue(bounds);
        let (adder, server) = (queue.adder(), Arc::from("memory@x"));
        let counts = Arc::<Counts>::default();
        let waker = Waker::from(Arc::clone(&counts));
        assert!(messages.poll_take(Some(&mut Context::from_waker(&waker))).is_pending());
        let mut behind = Behind::default();
        for _ in 0..2 {
            let added = adder.add_under_lock(message(), &connection, &server, None, None, &mut behind);
            assert_eq!(added, Added::Taken);
        }
        // The second one finds nobody who waits, and must not forget the first one's reader.
        assert_eq!((counts.0.load(Ordering::Relaxed), behind.dropped.len()), (0, 1));
        drop(behind);
        assert_eq!((counts.0.load(Ordering::Relaxed), messages.len()), (1, 1));
    }

    /// The outcome of a message in its handler, as its sender is told; presence needs no handler.
    #[tokio::test]
    async fn each_end_of_a_handler_is_told() {
        use crate::{
            client::handler::{Told, handle_message},
            error::ErrorCode,
            reply::Reply,
            router::Router,
            session::Failure::{BadArguments, NoHandler},
        };

        let connection = connection();
        let answers = |reply: fn() -> Reply| move |_| std::future::ready(reply());
        let handlers = Router::new()
            .handler("T", "ok", answers(|| Reply::ok("")))
            .handler("T", "fails", answers(|| Reply::error("no")))
            .handler("T", "no-such", answers(|| Reply::refused(ErrorCode::NotFound, "no")))
            .handler("T", "bad", answers(|| Reply::refused(ErrorCode::BadArguments, "no")))
            .handler("T", "panics", |_| async { panic!("on purpose") });
        let (queue, mut messages) = queue(QueueBounds {
            messages_max: 9,
            bytes_max: 1 << 20,
            overflow: Overflow::DropOldest,
            tracked_max: 1,
            tracked_bytes_max: 1,
        });
        for (path, method, expected) in [
            ("T", "ok", None),
            ("T", "fails", Some(Failure::Error)),
            ("T", "no-such", Some(NoHandler)),
            ("T", "bad", Some(BadArguments)),
            ("T", "panics", Some(Failure::Panicked)),
            ("T", "nothing", Some(NoHandler)),
            ("U", "ok", Some(NoHandler)),
            (keys::CONTROL_PATH, keys::PRESENCE, None),
        ] {
            let header = Header::oneway(Seq::of_push(1), SerializeType::RAW);
            let message = Message::new(header, path, method, &Metadata::new(), b"");
            assert_eq!(queue.adder().add(message, &connection, &Arc::from("memory@x"), None, None), Added::Taken);
            let message = messages.try_next().expect("it was added");
            assert_eq!(handle_message(&message, &handlers, &Told::default()).await, expected, "{path}.{method}");
        }
    }

    /// A newer value of a key takes the place of the older one, and its bytes instead of that one's.
    #[tokio::test]
    async fn a_newer_value_takes_the_place_of_the_older() {
        let connection = connection();
        let value = |key: &str, bytes: usize| {
            let header = Header::oneway(Seq::of_push(1), SerializeType::RAW);
            ServerMessage {
                message: Message::new(header, "T", "News", &Metadata::new(), &vec![7; bytes]),
                connection: connection.clone(),
                server: Arc::from("memory@x"),
                dropped_before: 0,
                ack: acks(1).pop().map(Arc::new),
                first: None,
                latest_of: Some(Arc::from(key)),
            }
        };
        let mut waiting = Waiting::default();
        // It left and joined again: an earlier value is its own still.
        let (before, server) = (waiting.join(), waiting.join());
        let (mut of_a, mut of_b) = (0, 0);
        for (key, bytes, replaces) in [("a", 100, false), ("b", 10, false), ("a", 30, true), ("b", 70, true)] {
            let value = value(key, bytes);
            *(if key == "a" { &mut of_a } else { &mut of_b }) = value.bytes();
            let older = waiting.put(if replaces { server } else { before }, value);
            assert_eq!(older.is_some(), replaces, "{key}");
            let (all, tracked) = waiting.counts();
            assert_eq!((all, all.bytes), (tracked, of_a + of_b), "{key}");
        }
        assert_eq!((of_b - of_a, waiting.len()), (40, 2));
        let keys: Vec<_> = std::iter::from_fn(|| waiting.pop()).filter_map(|taken| taken.latest_of).collect();
        assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(waiting.counts(), Default::default());
        waiting.leave(before);
        assert!(waiting.put(server, value("a", 1)).is_none(), "no place of an older value is left");
    }

    fn bounds(messages: usize, tracked: usize) -> QueueBounds {
        QueueBounds {
            messages_max: messages,
            bytes_max: usize::MAX,
            overflow: Overflow::DropOldest,
            tracked_max: tracked,
            tracked_bytes_max: usize::MAX,
        }
    }

    /// One that pushes more than the application takes is dropped from, and is cut; the others have their share.
    #[tokio::test]
    async fn a_server_shuts_no_other_out_of_the_queue() {
        let (connection, [a, b]) = (connection(), ["a", "b"].map(Arc::from));
        let (queue, mut messages) = queue(bounds(40, 40));
        let (of_a, of_b) = (queue.adder(), queue.adder());
        let mut acks = acks(100).into_iter();
        let mut add_tracked = |adder: &MessageAdder, server: &Arc<str>| {
            let has_room = adder.has_room_for_tracked(&message());
            if has_room {
                assert_eq!(adder.add(message(), &connection, server, acks.next(), None), Added::Taken);
            }
            has_room
        };
        assert_eq!((0..50).filter(|_| add_tracked(&of_b, &b)).count(), 20, "half is first come, first served");
        assert_eq!((0..50).filter(|_| add_tracked(&of_a, &a)).count(), 10, "and a share of the rest for each");
        assert!(!add_tracked(&of_b, &b), "it is over its share");
        while messages.try_next().is_some() {}

        for _ in 0..50 {
            of_b.add(message(), &connection, &b, None, None);
        }
        for _ in 0..10 {
            of_a.add(message(), &connection, &a, None, None);
        }
        for _ in 0..50 {
            of_b.add(message(), &connection, &b, None, None);
        }
        let of: Vec<_> = std::iter::from_fn(|| messages.try_next()).map(|message| message.server.clone()).collect();
        assert_eq!((of.len(), of.iter().filter(|server| **server == a).count()), (30, 10), "none of its own are gone");
        assert_eq!(messages.dropped(), 80);

        // With a server that has left nothing is shared.
        drop(of_a);
        assert_eq!((0..50).filter(|_| add_tracked(&of_b, &b)).count(), 40);
        assert_eq!(format!("{:?}", queue.adder().server), "Server(0)", "its place is free");
    }

    /// Each that comes to the list finds its share, and those that left before their messages were taken keep theirs;
    /// one that is larger than its share is taken alone, and so twice the bound is the most.
    #[tokio::test]
    async fn servers_that_come_and_go_fill_twice_the_bound_at_most() {
        let (connection, server) = (connection(), Arc::from("a"));
        let (queue, mut messages) = queue(bounds(40, 40));
        let mut adders = vec![];
        for _ in 0..300 {
            let adder = queue.adder();
            (0..50).for_each(|_| assert_eq!(adder.add(message(), &connection, &server, None, None), Added::Taken));
            adders.push(adder);
            if adders.len() == 3 {
                drop(adders.remove(0));
            }
        }
        assert_eq!(messages.len(), 80);
        while messages.try_next().is_some() {}
        let of_last = adders.pop().expect("it is the last");
        drop(adders);
        assert!(of_last.has_room_for_tracked(&message()));
        (0..50).for_each(|_| assert_eq!(of_last.add(message(), &connection, &server, None, None), Added::Taken));
        assert_eq!(messages.len(), 40, "with those that have left nothing is shared");
    }

    /// Behind a full queue of tracked messages none of them is looked at to push out one that is not, and each gap is
    /// told once, with the message that follows it.
    #[tokio::test]
    async fn what_is_pushed_out_leaves_a_gap_and_no_room() {
        let (connection, server) = (connection(), Arc::from("a"));
        let (queue, mut messages) = queue(bounds(100, 1000));
        let adder = queue.adder();
        let mut acks = acks(150).into_iter();
        let mut add = |is_tracked: bool| {
            let ack = is_tracked.then(|| acks.next().expect("enough"));
            assert_eq!(adder.add(message(), &connection, &server, ack, None), Added::Taken);
        };
        (0..90).for_each(|_| add(true));
        (0..2_000).for_each(|_| add(false));
        assert_eq!(LOOKED_AT.get(), 1_990, "one for each that was pushed out");
        let slots = messages.shared.state.lock().waiting.slots();
        assert!((100..300).contains(&slots), "{slots}: what was pushed out leaves no place for ever");
        (0..20).for_each(|_| add(true));
        (0..5).for_each(|_| add(false));
        let gaps: Vec<_> = std::iter::from_fn(|| messages.try_next()).map(|message| message.dropped_before()).collect();
        assert_eq!((gaps.len(), gaps.iter().sum::<u64>()), (110, 2_000), "{gaps:?}");
        assert_eq!(messages.dropped(), 2_005, "the last five found no place, and none has followed them");
        assert_eq!(messages.len(), 0);
    }

    /// The queue is a stream.
    #[tokio::test]
    async fn messages_come_as_a_stream() {
        let (queue, mut messages) = crate::ClientOptions::new().new_queue();
        let (adder, server) = (queue.adder(), Arc::from("memory@x"));
        assert_eq!(adder.add(message(), &connection(), &server, None, None), Added::Taken);
        let mut next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut messages).poll_next(cx));
        let next = tokio::time::timeout(Duration::from_secs(60), &mut next).await.expect("it is there");
        assert_eq!(next.map(|message| message.service_method().to_owned()).as_deref(), Some("News"));
    }
}
