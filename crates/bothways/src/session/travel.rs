//! Sessions that go on at another node: given away, taken back, parted from, and taken in.
//!
//! ```text
//!        give                depart
//!  here ──────► given away ─────────► gone      its tickets stay here, and follow what becomes of each push there
//!    ▲              │
//!    └── take_back ─┘                 take_in: it waits here for its client, as if that had left this moment
//! ```
//!
//! Given away, it changes no more: it has no connection, nothing expires, and what is pushed to it is held, for it or
//! for where it goes. `cluster/claim.rs` decides when it is given, and to which node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bothways_proto::keys;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::{
    NodeId, Session, SessionId,
    away::{Owner, Waiting},
    came_with::{CameWith, Coming},
    claims::Held,
    elsewhere::{Counts, Known, Watcher},
    endings::{Ending, NotResumed},
    explain::{Event, EventLog},
    handle::Inner,
    history::Position,
    ledger::{Entry, EntryImage, Ledger, LedgerImage},
    lock::Lock,
    push::{Class, Encoded, Origin, Push},
    receipt::{DropReason, Receipt, Stage, Ticket},
    registry::Registry,
    secrets::{self, Secret},
    state::State,
};
use crate::connection::{Connection, Methods};

/// A session as it goes to another node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SessionImage {
    pub(crate) id: SessionId,
    pub(crate) user: Option<String>,
    pub(crate) labels: Vec<(String, String)>,
    /// What it subscribes to, and whether its client asked for that.
    patterns: Vec<(String, bool)>,
    knows_topics: bool,
    methods: Option<String>,
    takes_only_these: bool,
    hash: [u8; 32],
    attempt: u64,
    generation: u64,
    /// In milliseconds: how long its client may still stay away.
    pub(crate) left: u64,
    /// Calls that it is told not to run on with, and how long each may run.
    given_up: Vec<(u64, u64)>,
    ledger: Option<LedgerImage>,
    /// In microseconds, as the times of its events.
    age: u64,
    events: Vec<(u64, Event)>,
    /// The node that has given it; 0: it was left in the store.
    pub(crate) from: u64,
    /// The node that has given it, or left it in the store.
    #[serde(default)]
    pub(crate) giver: u64,
    /// By the number of a push: who hears of it when that node is gone, the first of these that lives.
    #[serde(default)]
    pub(crate) behind: Vec<(u64, Vec<u64>)>,
    /// Up to which number it was given the pushes of each node.
    pub(crate) taken: Vec<(u64, u64)>,
    /// Topics with a history that it has by name, and how far it is with each.
    #[serde(default)]
    topics: Vec<TopicImage>,
}

/// See [`SessionImage`].
#[derive(Clone, Debug, Deserialize, Serialize)]
struct TopicImage {
    name: String,
    epoch: u64,
    offset: u64,
    /// Nothing may overtake what was not sent of it.
    is_ordered: bool,
    /// Something was not sent, and its client asks for it: the position says nothing.
    is_stalled: bool,
}

/// The ticket of a push whose session went on elsewhere: it follows what becomes of the push there. Dropped before
/// that is known, the push is unknown.
pub(crate) struct Relay(Ticket);

impl Relay {
    /// So the push stands there: one target, somewhere.
    pub(crate) fn follow(&mut self, counts: &Counts) {
        let at = counts.0.iter().position(|count| 0 < *count);
        // A node that knows of no such session has dropped it.
        self.0.advance(at.map_or(Stage::Dropped(DropReason::SessionEnded), |at| Stage::of_index(at as u8)));
    }

    /// So it stands, as far as this node knows.
    pub(crate) fn stage(&self) -> u8 {
        self.0.stage().index() as u8
    }

    /// The node that has the session has got the push by itself.
    pub(crate) fn withdraw(mut self) {
        self.0.withdraw();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.advance(Stage::Unknown);
    }
}

/// The node that has made a push, and its number there.
pub(crate) type Address = (NodeId, u64);

/// Gives pushes their numbers, by the name under which another node hears of each.
pub(crate) type Numbers<'a> = dyn FnMut(Option<Address>) -> u64 + 'a;

/// What a session leaves behind that went on elsewhere.
pub(crate) struct Departed {
    /// Of the pushes in its image, in the order in which their numbers were asked for.
    pub(crate) relays: Vec<Relay>,
    /// What was pushed to it since, which follows it.
    pub(crate) late: Vec<(EntryImage, Relay, Option<Address>)>,
    /// The same of topics, which the node that has it sends by itself.
    pub(crate) there: Vec<Relay>,
}

/// What became of an image that came.
pub(crate) struct TakenIn {
    /// Its pushes whose ends are asked for, and where each stands.
    pub(crate) receipts: Vec<(u64, Receipt)>,
    /// It is to be a subscriber of topics when the copies here are as new as it is: [`Registry::bring_up`] sees to that.
    pub(crate) is_coming: bool,
    /// How old it was when it was given.
    pub(crate) age: Duration,
}

/// Most events that go along.
const EVENTS_MAX: usize = 64;

impl Registry {
    /// What the register is to say of a session to which its client may come back.
    pub(crate) fn known(&self, id: SessionId) -> Option<Known> {
        let session = self.session(id)?;
        let state = session.lock();
        state.is_resumable().then(|| state.known()).flatten()
    }

    /// All sessions to which their clients may come back.
    pub(crate) fn resumable(&self) -> Vec<SessionId> {
        let parts = self.by_id.iter().flat_map(|part| part.read().iter().cloned().collect::<Vec<_>>());
        parts.filter(Session::is_resumable_itself).map(|session| session.id()).collect()
    }

    /// True if it is here, and not given away.
    pub(crate) fn has(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| session.is_resumable_itself() && !session.lock().is_given())
    }

    /// Gives a session away to who shows this hash of its secret: it changes no more until [`Self::take_back`] or
    /// [`Self::depart`]. `number` is asked for each push whose end is open, by the name under which another node hears of
    /// it. `None`: there is no such session.
    pub(crate) fn give(&self, id: SessionId, hash: &[u8; 32], number: &mut Numbers<'_>) -> Option<SessionImage> {
        let session = self.session(id)?;
        // Nobody is told less of what was put off than they would have been of what is written.
        if session.lock().is_put_off() {
            session.write_put_off();
        }
        let (image, connection) = self.hub.between_messages(&session, |positions| {
            let mut state = session.lock();
            if !state.is_resumable() || state.known().is_none_or(|known| known.hash != *hash) {
                return None;
            }
            if let Some(since) = state.away_since() {
                self.away.forget(id, since);
            }
            let (now, event_log) = (session.now(), &session.inner.event_log);
            state.leave_batch(event_log);
            let topics = state.topics(positions);
            let names = topics.iter().map(|topic| topic.name.as_str().into()).collect();
            let connection = state.give(now, &self.bounds, names);
            let image = state.image(id, event_log, self.options.resume_window, number);
            Some((SessionImage { topics, ..image }, connection))
        })?;
        session.inner.changed.notify_waiters();
        if let Some(connection) = connection {
            self.by_connection.of(&connection.id()).write().remove(&connection.id());
            connection.say_goodbye("moved", "the session is on another connection now");
            connection.close();
        }
        Some(image)
    }

    /// A session that was given away stays: it waits for its client.
    pub(crate) fn take_back(&self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        let now = Instant::now();
        let waiting = {
            let mut state = session.lock();
            if !state.take_back(now, session.now()) {
                return;
            }
            self.away.note();
            self.waiting_of(&session, &state)
        };
        session.inner.changed.notify_waiters();
        self.wait_for_client(waiting, now);
    }

    /// A session that was given away has gone on elsewhere.
    pub(crate) fn depart(&self, id: SessionId, number: &mut Numbers<'_>) -> Option<Departed> {
        let session = self.session(id)?;
        let departed = {
            let mut state = session.lock();
            let (tickets, held, topics) = state.depart()?;
            let now = session.now();
            let topics: HashSet<&str> = topics.iter().map(|name| &**name).collect();
            let is_there = |held: &Held| {
                let place = || EntryImage::of(&held.entry, now, 0).place(self.limits());
                !topics.is_empty() && place().is_some_and(|(topic, _)| topics.contains(&*topic))
            };
            let (there, held): (Vec<_>, Vec<_>) = held.into_iter().partition(is_there);
            let late = held.into_iter().map(|Held { entry, .. }| {
                let image = EntryImage::of(&entry, now, number(entry.ticket.owed()));
                let address = entry.ticket.address();
                (image, Relay(entry.ticket), address)
            });
            Departed {
                late: late.collect(),
                relays: tickets.into_iter().map(Relay).collect(),
                there: there.into_iter().map(|held| Relay(held.entry.ticket)).collect(),
            }
        };
        let ending = Ending::new("it went on at another node", NotResumed::Unknown);
        self.remove(&session, ending, None);
        Some(departed)
    }

    /// A session that was given away is in the store. Returns what follows its pushes, as [`Departed`] has it.
    pub(crate) fn let_go(&self, id: SessionId) -> Vec<Relay> {
        let departed = {
            let _alone = self.gate.alone();
            self.depart(id, &mut |_| 0)
        };
        let Some(Departed { relays, late, there }) = departed else { return Vec::new() };
        for (_, mut relay, _) in late {
            relay.follow(&Counts::NONE);
        }
        there.into_iter().for_each(Relay::withdraw);
        relays
    }

    /// Takes in a session that comes from another node. `is_from_node`: that one is there, and sends after it what is
    /// pushed meanwhile. What becomes of its pushes is heard by what `follows` makes for each number. `None`: it is none, or
    /// is here already.
    pub(crate) fn take_in(
        &self,
        image: SessionImage,
        is_from_node: bool,
        follows: &dyn Fn(u64) -> Option<Watcher>,
    ) -> Option<TakenIn> {
        if self.session(image.id).is_some() {
            return None;
        }
        let now = Instant::now();
        let age = Duration::from_micros(image.age);
        let events = image.events.into_iter();
        let event_log =
            Arc::new(EventLog::restored(self.options.events_max, now.checked_sub(age).unwrap_or(now), events));
        let (mut receipts, mut came_with, giver) = (Vec::new(), CameWith::default(), NodeId(image.giver));
        let mut ticket = |entry: &EntryImage| {
            if let Some((topic, place)) = entry.place(self.limits()) {
                came_with.note(&topic, place);
            }
            let watcher = Some(entry.number).filter(|number| *number != 0).and_then(follows);
            let receipt = watcher.map_or_else(Receipt::new, |watcher| {
                let receipt = Receipt::relayed(watcher);
                receipt.owes(giver, entry.number);
                receipts.push((entry.number, receipt.clone()));
                receipt
            });
            let mut ticket = receipt.ticket(image.id);
            ticket.advance(entry.stage());
            ticket
        };
        let ledger = Ledger::import(&self.bounds, image.ledger, event_log.now(), &mut ticket)?;
        let window = self.options.resume_window;
        let left = Duration::from_millis(image.left).min(window);
        let since = now.checked_sub(window - left).unwrap_or(now);
        let given_up = image.given_up.into_iter().map(|(id, left)| (id, now + Duration::from_millis(left)));
        let state = State::arrived(since, image.generation, ledger)
            .knowing(Secret::of(image.hash, image.attempt), image.labels, given_up)
            .coming_with(came_with)
            .handling(image.methods.map(Methods::of_text), image.takes_only_these, image.knows_topics);
        let inner = Inner {
            id: image.id,
            registry: self.me.clone(),
            event_log,
            changed: Notify::new(),
            state: Lock::new(state),
        };
        let session = Session { inner: Arc::new(inner) };

        self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.away.note();
        self.by_id.of(&image.id).write().insert(session.clone());
        if let Some(user) = &image.user {
            self.bind_user(&session, Some(user));
        }
        self.subscribe_as_it_was(&session, &image.patterns, &image.topics, is_from_node);
        let is_coming = !session.lock().all_coming().is_empty();
        let waiting = self.waiting_of(&session, &session.lock());
        self.wait_for_client(waiting, since);
        Some(TakenIn { receipts, is_coming, age })
    }

    /// A session that has come subscribes to what it had.
    fn subscribe_as_it_was(
        &self,
        session: &Session,
        patterns: &[(String, bool)],
        topics: &[TopicImage],
        is_from_node: bool,
    ) {
        let topics: HashMap<&str, &TopicImage> = topics.iter().map(|topic| (&*topic.name, topic)).collect();
        let mut is_missing = false;
        for (pattern, by_client) in patterns {
            let topic = topics.get(&**pattern).copied().filter(|_| self.hub.is_shared(pattern));
            let is_stalled = topic.is_some_and(|topic| topic.is_stalled);
            if let Some(&TopicImage { epoch, offset, is_ordered, .. }) = topic.filter(|_| !is_stalled) {
                let position = Position { epoch, offset };
                let coming = Coming { position, by_client: *by_client, is_ordered };
                self.hub.expect(session, &pattern.as_str().into(), coming);
                continue;
            }
            // What has no room here, or is not allowed, is left out.
            let _ = self.hub.subscribe(session, pattern, None, *by_client);
            if is_stalled {
                let mut state = session.lock();
                state.set_ordered(pattern);
                state.stall(pattern);
            }
            // While it was nowhere nobody kept what was published for it, and a living node sends that after it.
            is_missing |= is_stalled || topic.is_none() && !is_from_node && self.hub.is_shared(pattern);
        }
        if is_missing {
            self.hub.tell_missed(session);
        }
    }

    /// Makes a session that has come a subscriber of all that it is to be. Its client waits for nothing else meanwhile.
    pub(crate) async fn bring_up(&self, id: SessionId) {
        if let Some(session) = self.session(id) {
            Arc::clone(&self.hub).bring_up_all(session).await;
        }
    }

    /// Takes in a push that follows a session which came from there. `None`: it is not here.
    pub(crate) fn take_late(&self, id: SessionId, image: EntryImage, follows: Watcher) -> Option<Receipt> {
        let session = self.session(id)?;
        let receipt = Receipt::relayed(follows);
        let (ticket, place) = (receipt.ticket(id), image.place(self.limits()));
        {
            let mut state = session.lock();
            let now = session.now();
            let entry = image.open(now, ticket)?;
            state.expire_waiting(now);
            if let Some(entry) = state.hold(entry, &"late".into()) {
                let missed = state.ledger().missed();
                state.take_late(entry, now);
                let is_taken = missed == state.ledger().missed();
                if let Some((topic, place)) = place.filter(|_| is_taken) {
                    state.note_came(&topic, place);
                }
            }
        }
        session.pump();
        Some(receipt)
    }

    /// A push to a session that has left, as it is sent after it; `topic`: as a message of that. `None`: it outlives no connection, or is too large.
    pub(crate) fn late_of(
        &self,
        id: SessionId,
        push: &Push,
        topic: Option<&str>,
        receipt: &Receipt,
        number: u64,
    ) -> Option<(EntryImage, Relay)> {
        let mut push = push.clone();
        if let Some(topic) = topic {
            push.metadata.insert(keys::TOPIC, topic);
        }
        let Encoded { frame, keyed } = self.fan_out.encode(&push).ok()?;
        let mut ticket = receipt.ticket(id);
        if push.class == Class::Fire {
            ticket.advance(Stage::Dropped(DropReason::Disconnected));
            return None;
        }
        let (class, priority) = (push.class.clone(), push.priority);
        let entry = Entry { class, priority, frame, keyed, expires: push.time_to_live, origin: Origin::Push, ticket };
        Some((EntryImage::of(&entry, Duration::ZERO, number), Relay(entry.ticket)))
    }

    /// A push that came after a session which has gone on: it follows it, under another number.
    pub(crate) fn late_again(
        &self,
        id: SessionId,
        entry: EntryImage,
        number: u64,
        follows: Watcher,
    ) -> (EntryImage, Relay, Receipt) {
        let receipt = Receipt::relayed(follows);
        let ticket = receipt.ticket(id);
        (entry.numbered(number), Relay(ticket), receipt)
    }

    /// How long a session waits for its client.
    pub(crate) fn window(&self) -> Duration {
        self.options.resume_window
    }

    /// True if it has not ended.
    pub(crate) fn session_lives(&self, id: SessionId) -> bool {
        self.session(id).is_some()
    }

    /// Another node has this session: what is here of it ends, and nobody knows what became of its pushes.
    ///
    /// `is_late`: this push came after that, so that the session was no target of it any more.
    pub(crate) fn end_lost(&self, id: SessionId, is_late: &dyn Fn(Address) -> bool) {
        let why = "another node has it: this one was out of its cluster";
        self.end_fenced(id, why, "the session is at another node now", is_late);
    }

    /// As [`Self::end_lost`]; no node has it.
    pub(crate) fn end_given_up(&self, id: SessionId, is_late: &dyn Fn(Address) -> bool) {
        let why = "it was given up as lost: this node was out of its cluster";
        self.end_fenced(id, why, "the session was given up", is_late);
    }

    fn end_fenced(&self, id: SessionId, why: &str, told: &str, is_late: &dyn Fn(Address) -> bool) {
        let Some(session) = self.session(id) else { return };
        let ending = Ending::new(why, NotResumed::NodeLost);
        if let Some(connection) = self.remove_as_unknown(&session, ending, is_late) {
            connection.say_goodbye("moved", told);
            connection.close();
        }
    }

    /// The node of this client's session is gone: the one that it gets is of the same user, with the same labels, where
    /// the auth hook has not said otherwise.
    pub(crate) fn begin_as(&self, connection: &Connection, known: &Known) {
        let Some(session) = self.of(connection) else { return };
        for (key, value) in &known.labels {
            if session.label(key).is_none() {
                session.set_label(key.clone(), value.clone());
            }
        }
        if let Some(user) = known.user.as_deref().filter(|_| session.user().is_none()) {
            self.bind_user(&session, Some(user));
        }
    }

    /// As [`Self::remove`]: of each push whose end is open nobody knows it. One that is late, and was never sent, does
    /// not count.
    fn remove_as_unknown(
        &self,
        session: &Session,
        ending: Ending<'_>,
        is_late: &dyn Fn(Address) -> bool,
    ) -> Option<Connection> {
        if session.lock().is_put_off() {
            session.write_put_off();
        }
        let tickets = {
            // What is pushed now is counted, or finds the session without anything.
            let _alone = self.gate.alone();
            let mut state = session.lock();
            state.leave_batch(&session.inner.event_log);
            state.ledger_mut().depart()
        };
        for mut ticket in tickets {
            match ticket.stage() == Stage::Queued && ticket.address().is_some_and(is_late) {
                true => ticket.withdraw(),
                false => ticket.advance(Stage::Unknown),
            }
        }
        self.remove(session, ending, None)
    }

    fn waiting_of(&self, session: &Session, state: &State) -> Waiting {
        let owner = match state.user() {
            Some(user) => Owner::User(Arc::clone(user)),
            // Its peer stayed behind.
            None => Owner::Peer("".into()),
        };
        Waiting { session: session.clone(), generation: state.generation(), owner, is_idle: state.is_idle() }
    }

    /// Why a client does not get its session back is known to be this: its node is gone.
    pub(crate) fn note_node_lost(&self, id: SessionId, hash: [u8; 32]) {
        self.endings.note(id, &Secret::of(hash, 0), NotResumed::NodeLost, None);
    }
}

impl Session {
    fn is_resumable_itself(&self) -> bool {
        self.lock().is_resumable()
    }
}

impl State {
    /// What is known of it elsewhere.
    fn known(&self) -> Option<Known> {
        let hash = self.secret()?.hash()?;
        let labels = self.labels().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        let patterns = self.patterns().names().cloned().collect();
        Some(Known { user: self.user().cloned(), labels: labels.collect(), hash, patterns })
    }

    /// See [`SessionImage`]. It was given away.
    fn image(
        &mut self,
        id: SessionId,
        event_log: &EventLog,
        window: Duration,
        number: &mut Numbers<'_>,
    ) -> SessionImage {
        let now = event_log.now();
        let (hash, attempt) =
            self.secret().map_or(([0; 32], 0), |secret| (secret.hash().unwrap_or([0; 32]), secret.attempt()));
        let away = self.given_since().map_or(Duration::ZERO, |since| since.elapsed());
        let known = self.known();
        SessionImage {
            id,
            user: self.user().map(|user| user.to_string()),
            labels: known.map(|known| known.labels).unwrap_or_default(),
            patterns: self.patterns().asked().map(|(name, by_client)| (name.to_string(), by_client)).collect(),
            knows_topics: self.knows_topics_itself(),
            methods: self.methods().map(|methods| methods.text().to_owned()),
            takes_only_these: self.takes_only_these(),
            hash,
            attempt,
            generation: self.generation(),
            left: window.saturating_sub(away).as_millis() as u64,
            given_up: self.given_up_calls(),
            ledger: self.ledger_mut().export(now, &mut |ticket| number(ticket.owed())),
            age: now.as_micros() as u64,
            events: event_log.last_events(EVENTS_MAX),
            from: 0,
            giver: 0,
            behind: Vec::new(),
            taken: Vec::new(),
            topics: Vec::new(),
        }
    }

    /// How far it is with topics: so far, unless it is no subscriber here yet.
    fn topics(&self, positions: &[(Arc<str>, Position)]) -> Vec<TopicImage> {
        let mut all: BTreeMap<Arc<str>, Position> = positions.iter().cloned().collect();
        all.extend(self.all_coming());
        all.retain(|name, _| self.patterns().contains(name));
        let image = |(name, position): (Arc<str>, Position)| TopicImage {
            name: name.to_string(),
            epoch: position.epoch,
            offset: position.offset,
            is_ordered: self.patterns().is_ordered(&name),
            is_stalled: self.patterns().is_stalled(&name),
        };
        all.into_iter().map(image).collect()
    }
}

/// The hash of a secret, as a client shows it.
pub(crate) fn hash_of(secret: &str) -> [u8; 32] {
    secrets::hash(secret)
}
