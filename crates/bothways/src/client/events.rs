//! Connected, lost, restored: always reported, in order, and never for the client's own close.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use parking_lot::Mutex;

pub use crate::error::SessionLost;
use crate::{
    calm::Said,
    discovery::DiscoveryError,
    error::{CallError, CloseReason, ConnectError},
};

/// What happened to a connection of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The first connection to this server is made.
    Connected {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
    },
    /// The connection was lost, and this side did not close it. Pending calls have failed. With
    /// [`CloseReason::Local`], the server has left the list of an [`XClient`](crate::XClient)'s discovery.
    ///
    /// Or the server announced the end: [`CloseReason::Goodbye`], or [`CloseReason::NotAdmitted`] before the client was
    /// let in. Then pending calls may still be answered, and the reason says how long the client waits before it
    /// connects again.
    Lost {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// Why.
        reason: CloseReason,
    },
    /// The client is connected again. A plain rpcx server does not remember the connection before: what it was told there,
    /// such as whom to push to, it must be told again.
    Restored {
        /// The address that the client was made with, in rpcx's form; also when it has come to another node of a cluster
        /// ([`other_addresses`](crate::ClientOptions::other_addresses)). Where that is,
        /// [`Connection::peer_address`](crate::Connection::peer_address) says.
        server: Arc<str>,
        /// How often the connection was lost since the last event that was read: more than once if the reader is slow.
        losses: u64,
    },
    /// The server refused this client, most likely for its token. The client tries again with back-off up to a minute, and
    /// at once when a call is made; [`ClientOptions::credentials`](crate::ClientOptions::credentials) is asked each time.
    /// It gives up after [`ClientOptions::refusals_max`](crate::ClientOptions::refusals_max).
    Refused {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// The server's words.
        reason: String,
    },
    /// The client no longer tries to connect: it was refused too often, or its options say not to
    /// [reconnect](crate::ClientOptions::reconnect). This is the last event of this server, unless an
    /// [`XClient`](crate::XClient#whom-a-server-sends-away) starts with it again.
    GaveUp {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// The error of calls from now on.
        error: ConnectError,
    },
    /// This client's session is lost. Either the server has sent the client away: this is [`SessionLost::Kicked`],
    /// [`SessionLost::Expired`] or [`SessionLost::Revoked`] after a [`Self::Lost`] whose reason is
    /// [`CloseReason::sent_away`]; if the client was away by then, before such a [`Self::Lost`]. Then this client has
    /// ended, and does not come back by itself.
    ///
    /// Or the connection is back, but the server no longer has the session. Its queued pushes are gone, and so are the
    /// subscriptions that the server's application made for it. The client's own subscriptions
    /// ([`Client::subscribe`](crate::Client::subscribe)) are made again: [`Self::Resubscribed`] or
    /// [`Self::SubscriptionLost`] follows for each.
    SessionLost {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// Why.
        why: SessionLost,
    },
    /// The client has subscribed again, by itself and from where it was, because its session was lost. Or, and then
    /// `recovered` is false: the server dropped some of a topic's messages, and they cannot be had any more.
    ///
    /// `recovered` is false, too, if the server was restarted. To get what its new process has kept of the topic, call
    /// [`Client::subscribe`](crate::Client::subscribe) for its position, and
    /// [`Client::subscribe_from`](crate::Client::subscribe_from) with the epoch of that and offset 0.
    Resubscribed {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// The topic, or the pattern.
        topic: Arc<str>,
        /// True if every message published in between was sent or is on its way. If false, some may be missing: get the
        /// state that the messages stand for in another way. If several of these events about one topic wait for a slow
        /// reader, one is left, which is true if all were.
        recovered: bool,
    },
    /// The server refuses to subscribe the client again after its session was lost, or to send dropped messages again.
    /// This is reported once. Unless it is for good, the client asks again, each minute at last, until the application
    /// unsubscribes, and [`Self::Resubscribed`] says when the server lets it.
    ///
    /// A server that is too busy, shuts down, or does not answer in time causes no such event: the client asks it again
    /// soon.
    SubscriptionLost {
        /// The server's address, in rpcx's form.
        server: Arc<str>,
        /// The topic, or the pattern.
        topic: Arc<str>,
        /// Why.
        error: CallError,
        /// The client does not ask again.
        for_good: bool,
    },
    /// The source of the lists of an [`XClient`](crate::XClient) failed. The last list counts until it is back. It is
    /// tried again after 100 ms to 30 s; see [`Lists::watched`](crate::discovery::Lists::watched). If several of these
    /// events wait for a slow reader, the last one is left.
    DiscoveryFailed {
        /// The service whose servers are looked for.
        service: Arc<str>,
        /// Why.
        error: DiscoveryError,
    },
}

impl ConnectionEvent {
    /// The life of a client in the log: what went as it should at level info, what was lost as a warning.
    fn log(&self) {
        let server = self.server().map_or("", |server| &**server);

        match self {
            Self::Connected { .. } => tracing::info!(server, "connected"),
            Self::Lost { reason, .. } => {
                tracing::info!(server, reason = %Said(reason), "the connection was lost");
            }
            Self::Restored { .. } => tracing::info!(server, "connected again"),
            Self::SessionLost { why, .. } => tracing::warn!(server, ?why, "the session was lost"),
            Self::Resubscribed { topic, recovered, .. } => {
                tracing::info!(server, topic = &**topic, recovered, "subscribed again");
            }
            Self::SubscriptionLost { topic, error, for_good, .. } => {
                tracing::warn!(server, topic = &**topic, error = %Said(error), for_good, "could not subscribe again");
            }
            Self::Refused { reason, .. } => {
                tracing::warn!(server, reason = %Said(reason), "the server refused this client");
            }
            // The discovery has a line for it, of which at most one in ten seconds is told.
            Self::DiscoveryFailed { service, error } => {
                tracing::debug!(service = &**service, error = %Said(error), "a discovery failed");
            }
            Self::GaveUp { error, .. } => tracing::warn!(server, error = %Said(error), "gave up connecting"),
            #[allow(unreachable_patterns, reason = "an event that has no line of its own is not silent")]
            other => tracing::warn!(server, event = ?other, "a connection changed"),
        }
    }

    /// The server it is about; `None` if it is about a discovery.
    pub fn server(&self) -> Option<&Arc<str>> {
        match self {
            Self::Connected { server }
            | Self::Lost { server, .. }
            | Self::Restored { server, .. }
            | Self::Refused { server, .. }
            | Self::GaveUp { server, .. }
            | Self::SessionLost { server, .. }
            | Self::Resubscribed { server, .. }
            | Self::SubscriptionLost { server, .. } => Some(server),
            Self::DiscoveryFailed { .. } => None,
        }
    }

    /// True if one of its kind says all that several would.
    fn stands_alone(&self) -> bool {
        matches!(self, Self::SessionLost { .. } | Self::Refused { .. } | Self::DiscoveryFailed { .. })
    }

    /// The topic of an event about one.
    fn topic(&self) -> Option<&Arc<str>> {
        match self {
            Self::Resubscribed { topic, .. } | Self::SubscriptionLost { topic, .. } => Some(topic),
            _ => None,
        }
    }
}

/// The events of a client's connections. A [`Stream`]; ends when the client is closed or dropped.
///
/// The queue has room for four events per server about connections, one about a lost session, one about a refusal, two
/// per topic, and one about a failed discovery. For a slow reader, a loss and a restoration become one restoration that
/// says how many losses it stands for.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions, ConnectionEvent, Server};
///
/// let server = Server::builder().build();
/// let listening = server.listen("memu@connection events").await?;
/// let client = Client::connect(listening.address(), ClientOptions::new()).await?;
/// let mut events = client.events();
///
/// client.connection()?.close(); // As a network that breaks.
/// while let Some(event) = events.next().await {
///     match event {
///         ConnectionEvent::Restored { server, .. } => {
///             println!("connected to {server} again");
///             break;
///         }
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConnectionEvents {
    shared: Arc<Mutex<State>>,
}

/// Where events are told.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventSender {
    shared: Arc<Subscribers>,
    is_quiet: bool,
}

/// Who waits for an event that was told. Woken when this is dropped and all locks are free: a waker may look at the client.
pub(crate) struct Readers(Vec<Waker>);

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

#[derive(Debug, Default)]
struct Subscribers {
    /// Those that were dropped leave it with the next event, or when it is full: it has room for twice as many as were
    /// alive then, and for four at least.
    list: Mutex<Vec<Weak<Mutex<State>>>>,
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        for subscriber in self.list.get_mut().iter().filter_map(Weak::upgrade) {
            let mut state = subscriber.lock();
            state.ended = true;
            let reader = state.reader.take();
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<ConnectionEvent>,
    ended: bool,
    reader: Option<Waker>,
}

impl State {
    fn add(&mut self, event: ConnectionEvent) {
        if event.topic().is_some() {
            return self.add_of_topic(event);
        }

        let of_same: Vec<usize> = (0..self.waiting.len())
            .filter(|at| self.waiting[*at].server() == event.server())
            .filter(|at| !self.waiting[*at].stands_alone())
            .filter(|at| self.waiting[*at].topic().is_none())
            .collect();

        if event.stands_alone() {
            // One that waits already says the same.
            let kind = std::mem::discriminant(&event);
            self.waiting
                .retain(|waiting| std::mem::discriminant(waiting) != kind || waiting.server() != event.server());
            self.waiting.push_back(event);
            return;
        }

        let event = match (event, of_same.as_slice()) {
            // Not admitted, again and again: the last word counts.
            (event @ ConnectionEvent::Lost { .. }, [.., last])
                if matches!(self.waiting[*last], ConnectionEvent::Lost { .. }) =>
            {
                self.waiting.remove(*last);
                event
            }
            // Lost and restored again before anybody read the loss: one event for both.
            (ConnectionEvent::Restored { server, mut losses }, [.., last])
                if matches!(self.waiting[*last], ConnectionEvent::Lost { .. }) && 1 < of_same.len() =>
            {
                self.waiting.remove(*last);
                let before = of_same[of_same.len() - 2];
                if let ConnectionEvent::Restored { losses: earlier, .. } = self.waiting[before] {
                    losses += earlier;
                    self.waiting.remove(before);
                }
                ConnectionEvent::Restored { server, losses }
            }
            (event, _) => event,
        };

        self.waiting.push_back(event);
    }
}

impl State {
    /// In place of the waiting event of the same topic; after it, if that says that something was missed and this is a
    /// refusal.
    fn add_of_topic(&mut self, mut event: ConnectionEvent) {
        let is_same =
            |waiting: &ConnectionEvent| waiting.topic() == event.topic() && waiting.server() == event.server();
        let (before, others) = std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(is_same);
        self.waiting = others;

        let missed = before.iter().any(|before| match before {
            ConnectionEvent::Resubscribed { recovered, .. } => !recovered,
            ConnectionEvent::SubscriptionLost { for_good, .. } => *for_good,
            _ => false,
        });

        match &mut event {
            ConnectionEvent::Resubscribed { recovered, .. } => *recovered &= !missed,
            // That some was missed is not forgotten.
            ConnectionEvent::SubscriptionLost { for_good: false, .. } if missed => {
                let worst = before.into_iter().find(|before| matches!(before, ConnectionEvent::Resubscribed { .. }));
                self.waiting.extend(worst);
            }
            _ => {}
        }
        self.waiting.push_back(event);
    }
}

impl EventSender {
    /// The same, which logs at level debug only.
    pub(crate) fn quiet(self, is_quiet: bool) -> Self {
        Self { is_quiet, ..self }
    }

    pub(crate) fn tell(&self, event: &ConnectionEvent) {
        drop(self.tell_under_lock(event));
    }

    /// As [`Self::tell`], for a caller that holds a lock: readers are woken when the answer is dropped.
    #[must_use]
    pub(crate) fn tell_under_lock(&self, event: &ConnectionEvent) -> Readers {
        let mut readers = Vec::new();
        match self.is_quiet {
            true => tracing::debug!(?event, "a connection changed"),
            false => event.log(),
        }
        self.shared.list.lock().retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            let mut state = subscriber.lock();
            state.add(event.clone());
            readers.extend(state.reader.take());
            true
        });
        Readers(readers)
    }

    pub(crate) fn subscribe(&self) -> ConnectionEvents {
        let shared = Arc::default();
        let mut list = self.shared.list.lock();
        if list.len() == list.capacity() {
            list.retain(|subscriber| 0 < subscriber.strong_count());
            // So many may come before anybody looks again.
            let alive = list.len();
            list.reserve_exact(alive.max(4));
        }
        list.push(Arc::downgrade(&shared));
        drop(list);
        ConnectionEvents { shared }
    }
}

impl ConnectionEvents {
    /// The next event; `None` when the client is closed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<ConnectionEvent> {
        std::future::poll_fn(|cx| self.poll_take(cx)).await
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<ConnectionEvent>> {
        let mut state = self.shared.lock();
        match state.waiting.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if state.ended => Poll::Ready(None),
            None => {
                let before = state.reader.replace(cx.waker().clone());
                drop(state);
                // An executor's own: not under the lock.
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Stream for ConnectionEvents {
    type Item = ConnectionEvent;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ConnectionEvent>> {
        self.poll_take(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(server: &Arc<str>) -> ConnectionEvent {
        ConnectionEvent::Lost { server: Arc::clone(server), reason: CloseReason::PeerClosed }
    }

    fn restored(server: &Arc<str>) -> ConnectionEvent {
        ConnectionEvent::Restored { server: Arc::clone(server), losses: 1 }
    }

    /// What waits, as letters: C, L, and R with its number of losses.
    fn letters(events: &ConnectionEvents) -> String {
        let letter = |event: &ConnectionEvent| match event {
            ConnectionEvent::Connected { .. } => "C".to_owned(),
            ConnectionEvent::Lost { .. } => "L".to_owned(),
            ConnectionEvent::Restored { losses, .. } => format!("R{losses}"),
            ConnectionEvent::DiscoveryFailed { .. } => "D".to_owned(),
            ConnectionEvent::SessionLost { .. } => "S".to_owned(),
            ConnectionEvent::Refused { reason, .. } => format!("({reason})"),
            ConnectionEvent::GaveUp { .. } => "G".to_owned(),
            ConnectionEvent::Resubscribed { topic, recovered, .. } => format!("[{topic} {recovered}]"),
            ConnectionEvent::SubscriptionLost { topic, .. } => format!("[{topic} lost]"),
        };
        events.shared.lock().waiting.iter().map(letter).collect()
    }

    /// A reader that keeps up sees each event; one that does not sees how many losses it missed.
    #[test]
    fn a_slow_reader_learns_how_many_losses_it_missed() {
        let (sender, server) = (EventSender::default(), Arc::from("tcp@a:1"));
        let events = sender.subscribe();
        sender.tell(&ConnectionEvent::Connected { server: Arc::clone(&server) });
        for _ in 0..1000 {
            sender.tell(&lost(&server));
            sender.tell(&restored(&server));
        }
        assert_eq!(letters(&events), "CR1000");
        sender.tell(&lost(&server));
        assert_eq!(letters(&events), "CR1000L");
    }

    /// However often a server refuses a client, or does not admit it, few events wait.
    #[test]
    fn of_many_refusals_the_last_is_told() {
        let (sender, server): (_, Arc<str>) = (EventSender::default(), Arc::from("tcp@a:1"));
        let events = sender.subscribe();
        for n in 0..1000 {
            sender.tell(&lost(&server));
            sender.tell(&ConnectionEvent::Refused { server: Arc::clone(&server), reason: n.to_string() });
        }
        assert_eq!(letters(&events), "L(999)");
        sender.tell(&restored(&server));
        assert_eq!(letters(&events), "L(999)R1");
    }

    /// Of one topic one event waits, and it claims no more than all that it stands for.
    #[test]
    fn of_a_topic_the_worst_is_told() {
        let (sender, server): (_, Arc<str>) = (EventSender::default(), Arc::from("tcp@a:1"));
        let events = sender.subscribe();
        let again = |topic: &str, recovered| {
            let (server, topic) = (Arc::clone(&server), Arc::from(topic));
            sender.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
        };
        again("a", true);
        again("b", false);
        sender.tell(&lost(&server));
        again("a", true);
        again("b", true);
        assert_eq!(letters(&events), "L[a true][b false]");
        let (error, topic) =
            (CallError::Remote { text: "no".to_owned(), code: None, beside: Default::default() }, Arc::from("a"));
        let server = Arc::clone(&server);
        sender.tell(&ConnectionEvent::SubscriptionLost { server, topic, error, for_good: true });
        assert_eq!(letters(&events), "L[b false][a lost]");
    }

    /// A reader's waker may look at the events, and listen to more of them.
    #[test]
    fn a_waker_may_look_at_the_events() {
        struct Looks(EventSender, Arc<Mutex<State>>, std::sync::mpsc::Sender<bool>);
        impl std::task::Wake for Looks {
            fn wake(self: Arc<Self>) {
                let is_free = self.1.try_lock().is_some() && self.0.shared.list.try_lock().is_some();
                let _ = self.2.send(is_free);
            }
        }
        let (sender, server) = (EventSender::default(), Arc::from("tcp@a:1"));
        let mut events = sender.subscribe();
        let (woken, wakes) = std::sync::mpsc::channel();
        let looks = Looks(sender.clone(), Arc::clone(&events.shared), woken);
        let waker = Waker::from(Arc::new(looks));
        assert!(events.poll_take(&mut Context::from_waker(&waker)).is_pending());
        sender.tell(&lost(&server));
        assert_eq!(wakes.try_recv(), Ok(true), "a lock is held");
    }

    /// Dropping a stream gives its memory back, also while no event comes.
    #[test]
    fn dropped_streams_leave_nothing_behind() {
        let sender = EventSender::default();
        let kept: Vec<_> = (0..10).map(|_| sender.subscribe()).collect();
        for _ in 0..10_000 {
            drop(sender.subscribe());
        }
        let list = sender.shared.list.lock();
        assert!(list.capacity() <= 2 * kept.len() + 4, "{}", list.capacity());
        assert_eq!(list.iter().filter(|subscriber| 0 < subscriber.strong_count()).count(), kept.len());
    }

    /// Events of different servers do not hide each other.
    #[test]
    fn servers_are_told_apart() {
        let (sender, a, b) = (EventSender::default(), Arc::from("tcp@a:1"), Arc::from("tcp@b:1"));
        let events = sender.subscribe();
        for event in [lost(&a), lost(&b), restored(&a)] {
            sender.tell(&event);
        }
        assert_eq!(letters(&events), "LLR1");
    }

    /// As a stream they are the same events.
    #[test]
    fn events_are_a_stream() {
        let (sender, server) = (EventSender::default(), Arc::from("tcp@a:1"));
        let mut events = sender.subscribe();
        let mut next = || {
            let mut cx = Context::from_waker(Waker::noop());
            std::pin::Pin::new(&mut events).poll_next(&mut cx)
        };
        assert!(next().is_pending());
        sender.tell(&lost(&server));
        assert!(matches!(next(), Poll::Ready(Some(ConnectionEvent::Lost { .. }))));
        assert!(next().is_pending());
    }

    mod model {
        use proptest::prelude::*;

        use super::*;

        fn event() -> impl Strategy<Value = ConnectionEvent> {
            let name = |name: &str| Arc::<str>::from(name);
            let server = prop::sample::select(vec![name("tcp@a:1"), name("tcp@b:1")]);
            let topic = prop::sample::select(vec![name("news"), name("prices")]);
            (server, topic, any::<bool>(), 0..8_u8).prop_map(|(server, topic, flag, kind)| match kind {
                0 => ConnectionEvent::Connected { server },
                1 | 2 => ConnectionEvent::Lost { server, reason: CloseReason::PeerClosed },
                3 => ConnectionEvent::Restored { server, losses: 1 },
                4 => ConnectionEvent::Refused { server, reason: flag.to_string() },
                5 => ConnectionEvent::SubscriptionLost {
                    server,
                    topic,
                    error: CallError::Remote {
                        text: "no".to_owned(),
                        code: None,
                        beside: crate::error::Beside::default(),
                    },
                    for_good: flag,
                },
                _ => ConnectionEvent::Resubscribed { server, topic, recovered: flag },
            })
        }

        /// What waits once all of these were told.
        fn waiting<'a>(events: impl IntoIterator<Item = &'a ConnectionEvent>) -> Vec<String> {
            let sender = EventSender::default();
            let told = sender.subscribe();
            events.into_iter().for_each(|event| sender.tell(event));
            told.shared.lock().waiting.iter().map(|event| format!("{event:?}")).collect()
        }

        proptest! {
            #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

            /// What is told of one server, of one topic, and of connections, is as if nothing else were told.
            #[test]
            fn each_matter_is_told_for_itself(events in prop::collection::vec(event(), 0..40)) {
                let all = waiting(&events);
                for server in ["tcp@a:1", "tcp@b:1"] {
                    for topic in [None, Some("news"), Some("prices")] {
                        let is_of = |event: &&ConnectionEvent| {
                            event.server().is_some_and(|of| &**of == server) && event.topic().map(|topic| &**topic) == topic
                        };
                        let alone = waiting(events.iter().filter(is_of));
                        let named = |text: &&String| {
                            text.contains(server)
                                && match topic {
                                    Some(topic) => text.contains(topic),
                                    None => !text.contains("news") && !text.contains("prices"),
                                }
                        };
                        let among: Vec<String> = all.iter().filter(named).cloned().collect();
                        prop_assert_eq!(among, alone);
                    }
                }
                // Each loss is told, alone or in a number.
                for server in ["tcp@a:1", "tcp@b:1"] {
                    let restored = |event: &&ConnectionEvent| {
                        event.server().is_some_and(|of| &**of == server) && matches!(event, ConnectionEvent::Restored { .. })
                    };
                    let sum: u64 = events.iter().filter(restored).count() as u64;
                    let of = |text: &String| -> u64 {
                        let losses = text.split("losses: ").nth(1).map(|rest| rest.trim_end_matches([' ', '}']));
                        losses.and_then(|losses| losses.parse().ok()).unwrap_or(0)
                    };
                    prop_assert_eq!(all.iter().filter(|text| text.contains(server)).map(of).sum::<u64>(), sum);
                }
            }
        }
    }
}
