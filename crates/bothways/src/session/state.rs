//! What a server knows of one session, and the events that change it. Nobody else changes it, or sees a field of it.
//!
//! ```text
//!              claim
//!  ───► Plain ◄────► Claiming        Plain      the client is there; as far as is known it speaks plain rpcx
//!         │   unclaim   │ │          Claiming   the client has named an earlier session and is being let in
//!         │ begin       │ │          Resumable  the client is there, and may come back after a lost connection
//!         ├─────────────┘ │          Away       the client left, and may come back
//!         ▼               │          MadeWay    the client came back to an earlier session, which replaces this one
//!     Resumable ◄┐        │          Left       the client left, and cannot come back: its end follows at once
//!      │  ▲    └─┘ resume │          Ended
//! lose │  │ resume        │ make_way (also from Plain)
//!      ▼  │               ▼
//!     Away             MadeWay       lose   Plain, Claiming → Left; Resumable → Left if nobody waits for it
//!      │                  │          end    from each of them to Ended, once
//!      └────► Ended ◄─────┘
//! ```
//!
//! | event | who says so | becomes |
//! |---|---|---|
//! | `claim` | its client names another session that it had, and is being let in | `Claiming`, if it was `Plain` |
//! | `unclaim` | it is known that the client does not get that one | `Plain` |
//! | `begin` | the client is let in and goes on with this session | `Resumable` |
//! | `resume` | the client is let in and comes back to this session, on a new connection | `Resumable` |
//! | `make_way` | the client of this one comes back to another one | `MadeWay` |
//! | `lose` | its connection is over | `Away` if its client may come back, else `Left` |
//! | `give`, `take_back`, `depart` | another node wants it; it stays after all; it has gone | `Given`, `Away`, `Ended` |
//! | `end` | the server, the client or the time that it may be away | `Ended` |
//! | `welcomed`, `ack`, `bind`, `take`, … | the client, the application | as it was |
//!
//! Ended, it keeps the connection that it had until that is over too: what runs on it may still be answered.
//!
//! Each event is one method, called under the session's lock; what it returns the caller does next, when that lock is
//! free. The ledger and the subscriptions keep rules of their own (`ledger.rs`, `topic.rs`); what concerns them and
//! the session's standing at once is an event here.

#[cfg(feature = "cluster")]
use std::collections::HashSet;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Session, SessionId,
    account::Account,
    acks::{Acks, End},
    batch::{Batch, Joins, Noted},
    claims::{Claims, Held as HeldEntry, Settled},
    explain::{EventLog, Held, Standing},
    flight::{Flight, FlusherId, Flying},
    given_up::GivenUp,
    handle::Entered,
    history::Position,
    ledger::{Bounds, Entry, Ledger, Next},
    parts::{Part, Parts},
    push::{Class, Push},
    queues::Counted,
    receipt::{DropReason, Failure, Stage},
    secrets::Secret,
    topic::Patterns,
};
#[cfg(feature = "cluster")]
use super::{
    came_with::{CameWith, Coming},
    history::TopicPlace,
    receipt::Ticket,
    topic::NEVER,
};
use crate::{
    clock::later,
    connection::{Connection, HeldReply, Methods},
};

/// Connections whose tokens have run out, and on which something still runs for their session. Four: each lives for a
/// minute at most.
const FORMER_MAX: usize = 4;

/// Pushes that a connection is given under one lock of it: others wait for less than 20 µs.
const FLOWN_AT_ONCE: usize = 64;

/// See the module.
pub(super) struct State {
    phase: Phase,
    /// Counts connections: what belongs to an earlier one counts for nothing.
    generation: u64,
    user: Option<Arc<str>>,
    /// In how many users' lists of the registry it stands: more than one only while several bind it at once.
    listed: u16,
    /// What it subscribes to, and since when by the clock of the topics: everything from there on was sent.
    patterns: Patterns,
    /// Its client has subscribed by itself, and so knows of the pairs that go with what is published.
    knows_topics: bool,
    ledger: Ledger,
    /// Whose flusher writes soon what its connection has.
    put_off: Option<FlusherId>,
    /// What it has taken of its batch.
    taken: u32,
    /// The newest long batch when it looked whether it is in any.
    seen: u32,
    /// What is pushed to it and to others, and written soon.
    batch: Option<Arc<Batch>>,
    rare: Option<Box<Rare>>,
}

/// Where it stands. See the module.
enum Phase {
    /// Its client is there, and speaks plain rpcx as far as is known.
    Plain {
        connection: Connection,
    },
    /// Its client has named another session that it had, and is being let in: until it is known which of the two it
    /// gets, what is only for this one is held.
    Claiming {
        connection: Connection,
        claims: Box<Claims>,
    },
    /// Its client is there, and may come back after a lost connection.
    Resumable {
        connection: Connection,
    },
    /// Its client left, and may come back.
    Away {
        since: Instant,
    },
    /// It was given to another node, and changes no more: what is pushed to it is held until it is known where it goes
    /// on. See `travel.rs`.
    #[cfg(feature = "cluster")]
    Given {
        since: Instant,
        claims: Box<Claims>,
        /// Topics of which its image says how far it is: the node that has it then sends what is behind.
        topics: Vec<Arc<str>>,
    },
    /// Its client left, and cannot come back: if it was `Resumable`, because nobody waits for it.
    Left {
        claims: Option<Box<Claims>>,
        was_resumable: bool,
    },
    /// Its client came back to this one: what is still on its way here is for that.
    MadeWay {
        into: Session,
    },
    Ended {
        connection: Option<Connection>,
        into: Option<Session>,
    },
}

impl Phase {
    /// Of an instant: an event takes what was before.
    const BETWEEN: Self = Self::Ended { connection: None, into: None };
}

/// What a session without labels, whose client speaks plain rpcx, does not have.
#[derive(Default)]
struct Rare {
    labels: BTreeMap<String, String>,
    secret: Secret,
    /// What its client handled when it was there last.
    methods: Option<Methods>,
    /// The client has said that its handlers take its pushes, and nobody else does.
    takes_only_these: bool,
    /// Calls that a client that comes back is told not to run on with.
    given_up: Option<Box<GivenUp>>,
    /// The oldest push that its client has received and not handled, and since when it is the oldest; 0: none.
    held: Option<Box<(u64, Instant)>>,
    parts: Parts,
    #[cfg(feature = "cluster")]
    travelled: Option<Box<Travelled>>,
    /// Connections that it had before, whose tokens have run out: what runs on them is answered there.
    former: Vec<Connection>,
    /// The session that made way for it last.
    stands_for: Option<SessionId>,
}

/// What a session leaves behind that has gone on elsewhere: see [`State::depart`].
#[cfg(feature = "cluster")]
pub(super) type LeftBehind = (Vec<Ticket>, Vec<HeldEntry>, Vec<Arc<str>>);

/// What a session has that came from another node.
#[cfg(feature = "cluster")]
#[derive(Default)]
struct Travelled {
    came_with: CameWith,
    /// Topics of which it is no subscriber yet.
    coming: BTreeMap<Arc<str>, Coming>,
    /// Keys of which it has got newer values since, and until when they are noted.
    newer: Option<(Instant, HashSet<String>)>,
}

/// For how long values of keys may follow a session.
#[cfg(feature = "cluster")]
const FOLLOWS_MAX: Duration = Duration::from_secs(60);

/// Most keys of which it is known that what follows a session is older. Values of others come as they come.
#[cfg(feature = "cluster")]
const NEWER_MAX: usize = 1024;

fn takes_no_such(rare: Option<&Rare>, service_path: &str, service_method: &str) -> bool {
    let Some(rare) = rare.filter(|rare| rare.takes_only_these) else { return false };
    rare.methods.as_ref().is_some_and(|methods| !methods.contains(service_path, service_method))
}

/// What is left of a session when it ends. Dropped when nothing is locked: what it was owed is dropped with it.
pub(super) struct Remains {
    pub(super) user: Option<Arc<str>>,
    pub(super) patterns: Patterns,
    /// What it was owed.
    pub(super) ledger: Ledger,
    /// What was held for it.
    pub(super) claims: Option<Box<Claims>>,
    /// The one that it had then: nothing takes it from there.
    pub(super) connection: Option<Connection>,
    /// Those on which something may still run for it.
    pub(super) former: Vec<Connection>,
}

/// The events.
impl State {
    /// Its first connection is there.
    pub(super) fn connected(connection: Connection, bounds: Arc<Bounds>) -> Self {
        let mut ledger = Ledger::new(bounds);
        ledger.connect(false);
        Self::new(Phase::Plain { connection }, 1, ledger)
    }

    /// Nothing is known of its client.
    fn new(phase: Phase, generation: u64, ledger: Ledger) -> Self {
        Self {
            phase,
            generation,
            user: None,
            listed: 0,
            patterns: Patterns::default(),
            knows_topics: false,
            ledger,
            put_off: None,
            taken: 0,
            seen: 0,
            batch: None,
            rare: None,
        }
    }

    /// Its client has named another session. False: it claims one already, or has one that outlives its connection,
    /// and will be told so.
    pub(super) fn claim(&mut self, claims: Claims) -> bool {
        debug_assert!(self.batch.is_none(), "see `leave_batch`");
        match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Plain { connection } => {
                self.phase = Phase::Claiming { connection, claims: Box::new(claims) };
                true
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// The client gets this session and no other: what was held is its. `None`: it claimed none.
    pub(super) fn unclaim(&mut self, now: Duration) -> Option<Settled> {
        let claims = match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Claiming { connection, claims } => {
                self.phase = Phase::Plain { connection };
                claims
            }
            Phase::Left { claims: Some(claims), was_resumable } => {
                self.phase = Phase::Left { claims: None, was_resumable };
                claims
            }
            other => {
                self.phase = other;
                return None;
            }
        };

        for HeldEntry { entry, .. } in claims.held {
            self.ledger.push(entry, now);
        }
        self.ledger.miss_all(claims.unsent);

        Some(Settled { wanted: claims.wanted, places: claims.places })
    }

    /// The client is let in, and goes on with this session. Returns the secret by which it comes back to it, and what
    /// it claimed. If it has left already, or its session has ended, that stays so.
    pub(super) fn begin(&mut self, now: Duration) -> (String, Option<Settled>) {
        // From here on all it is owed is tracked. The connection lets nothing go before the Welcome, but after it a
        // thread that pushes may be quicker than the call of `welcomed`.
        self.ledger.connect(true);
        let settled = self.unclaim(now);
        self.phase = match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Plain { connection } => Phase::Resumable { connection },
            other => other,
        };
        (self.rare().secret.make(), settled)
    }

    /// What the client handles, as it said when it was let in.
    pub(super) fn introduce(&mut self, methods: Option<Methods>, takes_only_these: bool) {
        let rare = self.rare();
        (rare.methods, rare.takes_only_these) = (methods, takes_only_these);
    }

    /// Its Welcome is on its way on this connection. Returns the calls that the client is told not to run on with;
    /// `None`: another connection has the session by now, and is not welcomed yet.
    pub(super) fn welcomed(&mut self, connection: &Connection) -> Option<Vec<u64>> {
        if !self.is_on(connection) {
            return None;
        }
        self.ledger.connect(true);
        let given_up = self.rare.as_ref().and_then(|rare| rare.given_up.as_ref());
        Some(given_up.map(|calls| calls.ids()).unwrap_or_default())
    }

    /// The client comes back on this connection, and has handled and received so much. Returns the connection that the
    /// session has had until now. `Err`: it claims what was never sent, or has lost what is not kept any more.
    pub(super) fn resume(
        &mut self,
        connection: &Connection,
        attempt: Option<u64>,
        handled: u64,
        received: Option<u64>,
        failed: &[End],
        now: Duration,
    ) -> Result<Option<Connection>, Gap> {
        if let Some(before) = self.connection() {
            // What the kernel took before is not called lost.
            let written = before.pushes_written();
            self.ledger.written_upto(written, now);
        }

        if !self.ledger.settle(failed, now) || !self.ledger.resume(handled, received, now) {
            return Err(Gap);
        }

        self.note_held();
        self.rare().secret.let_in(attempt);
        // Whatever still waits for the client's return sees by this that it has been back.
        self.generation += 1;

        let resumed = Phase::Resumable { connection: connection.clone() };
        match std::mem::replace(&mut self.phase, resumed) {
            Phase::Resumable { connection: before } => Ok(Some(before)),
            _ => Ok(None),
        }
    }

    /// The client comes back to `into`, whose state is `other`: what was held here goes there, with the labels that
    /// were set meanwhile, and what is still on its way here follows it.
    pub(super) fn make_way(&mut self, from: &Session, other: &mut State, into: &Session) {
        other.rare().stands_for = Some(from.id());
        let from = &from.inner.event_log;
        debug_assert!(self.batch.is_none(), "see `leave_batch`");
        let claims = match std::mem::replace(&mut self.phase, Phase::MadeWay { into: into.clone() }) {
            Phase::Claiming { claims, .. } => Some(claims),
            Phase::Left { claims, .. } => claims,
            _ => None,
        };
        let (held, unsent) = claims.map(|claims| (claims.held, claims.unsent)).unwrap_or_default();

        let (event_log, now) = (&into.inner.event_log, into.now());
        for HeldEntry { mut entry, name } in held {
            entry.ticket.follow(event_log, event_log.note_push(&name, &entry.class, entry.frame.len(), now));
            // The two count their time from different moments.
            entry.expires =
                entry.expires.map(|at| later(from.began(), at).saturating_duration_since(event_log.began()));
            other.ledger.push(entry, now);
        }
        other.ledger.miss_all(unsent);

        if let Some(labels) = self.rare.as_ref().map(|rare| &rare.labels).filter(|labels| !labels.is_empty()) {
            other.rare().labels.extend(labels.clone());
        }
    }

    /// This connection is over. `waits`: the server waits for clients. Returns whether it waits for this one; `None`:
    /// the session is not on this connection any more.
    pub(super) fn lose(&mut self, connection: &Connection, waits: bool, now: Instant, at: Duration) -> Option<bool> {
        if !self.is_on(connection) {
            return None;
        }
        debug_assert!(self.batch.is_none(), "see `leave_batch`");

        // What the kernel took before the end is not called lost.
        let (written, begun) = (connection.pushes_written(), connection.pushes_begun());
        self.ledger.written_upto(written, at);
        self.ledger.disconnect(begun);

        self.phase = match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Resumable { .. } if waits => {
                self.rare().methods = connection.methods();
                Phase::Away { since: now }
            }
            Phase::Resumable { .. } => Phase::Left { claims: None, was_resumable: true },
            Phase::Claiming { claims, .. } => Phase::Left { claims: Some(claims), was_resumable: false },
            Phase::Ended { into, .. } => Phase::Ended { connection: None, into },
            _ => Phase::Left { claims: None, was_resumable: false },
        };
        Some(self.is_away())
    }

    /// Its client has come back from this connection, whose token has run out: what runs there is answered, and goes on
    /// having this session. Returns the oldest of those, if they are too many.
    pub(super) fn keep_former(&mut self, connection: &Connection) -> Option<Connection> {
        let former = &mut self.rare().former;
        former.push(connection.clone());
        if FORMER_MAX < former.len() { Some(former.remove(0)) } else { None }
    }

    /// A connection that it had before is over.
    pub(super) fn forget_former(&mut self, connection: &Connection) {
        if let Some(rare) = self.rare.as_mut() {
            rare.former.retain(|former| former != connection);
        }
    }

    /// It ends. `None`: it has already.
    pub(super) fn end(&mut self, bounds: &Arc<Bounds>) -> Option<Remains> {
        debug_assert!(self.batch.is_none(), "see `leave_batch`");
        let (connection, claims, into) = match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Plain { connection } | Phase::Resumable { connection } => (Some(connection), None, None),
            Phase::Claiming { connection, claims } => (Some(connection), Some(claims), None),
            Phase::Away { .. } => (None, None, None),
            Phase::Left { claims, .. } => (None, claims, None),
            Phase::MadeWay { into } => (None, None, Some(into)),
            #[cfg(feature = "cluster")]
            Phase::Given { claims, .. } => {
                // Nobody here knows what becomes of what was in its image.
                self.ledger.depart().iter_mut().for_each(|ticket| ticket.advance(Stage::Unknown));
                (None, Some(claims), None)
            }
            ended @ Phase::Ended { .. } => {
                self.phase = ended;
                return None;
            }
        };

        self.phase = Phase::Ended { connection: connection.clone(), into };
        // While its event log takes them.
        self.ledger.land();

        Some(Remains {
            user: self.user.take(),
            patterns: std::mem::take(&mut self.patterns),
            former: self.rare.as_mut().map(|rare| std::mem::take(&mut rare.former)).unwrap_or_default(),
            ledger: std::mem::replace(&mut self.ledger, Ledger::new(Arc::clone(bounds))),
            claims,
            connection,
        })
    }

    /// It belongs to this user from now on. Returns to whom it did; `None`: nothing changes.
    pub(super) fn bind(&mut self, user: Option<Arc<str>>) -> Option<Option<Arc<str>>> {
        if self.is_ended() || self.user == user {
            return None;
        }
        Some(std::mem::replace(&mut self.user, user))
    }

    /// The client acknowledges on this connection. Returns whether that may be true; `None`: it is on another one now.
    pub(super) fn ack(&mut self, connection: &Connection, acks: &Acks, now: Duration) -> Option<bool> {
        if !self.is_on(connection) {
            return None;
        }
        // What failed comes first: the offsets that follow count it as handled.
        let is_true = self.ledger.settle(&acks.ends, now) && self.ledger.ack(acks.received, acks.handled, now);
        if is_true {
            self.note_held();
        }
        Some(is_true)
    }
}

/// What a client that comes back has received does not fit what is kept for it.
#[derive(Debug)]
pub(super) struct Gap;

/// Its way to other nodes, and from there.
#[cfg(feature = "cluster")]
impl State {
    /// It came from another node, and its client is away.
    pub(super) fn arrived(since: Instant, generation: u64, ledger: Ledger) -> Self {
        Self::new(Phase::Away { since }, generation, ledger)
    }

    pub(super) fn knowing(
        mut self,
        secret: Secret,
        labels: Vec<(String, String)>,
        given_up: impl Iterator<Item = (u64, Instant)>,
    ) -> Self {
        let rare = self.rare();
        (rare.secret, rare.labels) = (secret, labels.into_iter().collect());
        rare.travelled.get_or_insert_default().newer = Some((Instant::now() + FOLLOWS_MAX, HashSet::new()));
        for (id, until) in given_up {
            rare.given_up.get_or_insert_default().note(id, until);
        }
        self
    }

    /// These messages of topics its ledger has from another node.
    pub(super) fn coming_with(mut self, came_with: CameWith) -> Self {
        if !came_with.is_empty() {
            self.rare().travelled.get_or_insert_default().came_with = came_with;
        }
        self
    }

    pub(super) fn handling(mut self, methods: Option<Methods>, takes_only_these: bool, knows_topics: bool) -> Self {
        self.introduce(methods, takes_only_these);
        self.knows_topics = knows_topics;
        self
    }

    /// Another node wants it: it loses the connection that it has, which is returned, and changes no more.
    pub(super) fn give(&mut self, at: Duration, bounds: &Arc<Bounds>, topics: Vec<Arc<str>>) -> Option<Connection> {
        debug_assert!(self.batch.is_none(), "see `leave_batch`");
        if let Some(connection) = self.connection().cloned() {
            self.lose(&connection, true, Instant::now(), at);
            self.give(at, bounds, topics);
            return Some(connection);
        }
        let since = self.away_since()?;
        let claims = Box::new(Claims::new(SessionId(0), false, Arc::clone(bounds)));
        self.phase = Phase::Given { since, claims, topics };
        None
    }

    /// It stays: what was held is its. False: it was not given away.
    pub(super) fn take_back(&mut self, now: Instant, at: Duration) -> bool {
        match std::mem::replace(&mut self.phase, Phase::BETWEEN) {
            Phase::Given { claims, .. } => {
                self.phase = Phase::Away { since: now };
                for HeldEntry { entry, .. } in claims.held {
                    self.ledger.push(entry, at);
                }
                self.ledger.miss_all(claims.unsent);
                true
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// It has gone: the tickets of what was in its image, what was held since, and the topics of which the node that has it
    /// sends that. It is to be removed.
    pub(super) fn depart(&mut self) -> Option<LeftBehind> {
        match &mut self.phase {
            Phase::Given { claims, topics, .. } => {
                Some((self.ledger.depart(), std::mem::take(&mut claims.held), std::mem::take(topics)))
            }
            _ => None,
        }
    }

    /// Since when its client was away when it was given.
    pub(super) fn given_since(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Given { since, .. } => Some(*since),
            _ => None,
        }
    }

    pub(super) fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    pub(super) fn takes_only_these(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.takes_only_these)
    }

    /// Its client has subscribed by itself.
    pub(super) fn knows_topics_itself(&self) -> bool {
        self.knows_topics
    }

    /// Calls that were given up, and how many milliseconds each may still run.
    pub(super) fn given_up_calls(&self) -> Vec<(u64, u64)> {
        self.rare.as_ref().and_then(|rare| rare.given_up.as_ref()).map(|calls| calls.left()).unwrap_or_default()
    }
}

/// Where it stands.
impl State {
    /// The connection that it has; after its end the one that it had, until that is over.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match &self.phase {
            Phase::Plain { connection } | Phase::Claiming { connection, .. } | Phase::Resumable { connection } => {
                Some(connection)
            }
            Phase::Ended { connection, .. } => connection.as_ref(),
            Phase::Away { .. } | Phase::Left { .. } | Phase::MadeWay { .. } => None,
            #[cfg(feature = "cluster")]
            Phase::Given { .. } => None,
        }
    }

    /// True if this is its connection.
    pub(super) fn is_on(&self, connection: &Connection) -> bool {
        self.connection() == Some(connection)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The client speaks sessions, or a plain one asked for one, and may come back.
    pub(super) fn is_resumable(&self) -> bool {
        match &self.phase {
            Phase::Resumable { .. } | Phase::Away { .. } => true,
            Phase::Left { was_resumable, .. } => *was_resumable,
            #[cfg(feature = "cluster")]
            Phase::Given { .. } => true,
            Phase::Plain { .. } | Phase::Claiming { .. } | Phase::MadeWay { .. } | Phase::Ended { .. } => false,
        }
    }

    /// Where it stands, as it is counted.
    pub(super) fn counted_as(&self) -> Counted {
        match &self.phase {
            Phase::Away { .. } => Counted::Away,
            #[cfg(feature = "cluster")]
            Phase::Given { .. } => Counted::Away,
            Phase::Resumable { .. } => Counted::Resumable,
            _ => Counted::Plain,
        }
    }

    /// True while it is given away: nothing may change it.
    pub(super) fn is_given(&self) -> bool {
        #[cfg(feature = "cluster")]
        let is_given = matches!(self.phase, Phase::Given { .. });
        #[cfg(not(feature = "cluster"))]
        let is_given = false;
        is_given
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// True while it waits for its client.
    pub(super) fn is_away(&self) -> bool {
        self.away_since().is_some()
    }

    /// Since when it waits for its client.
    pub(super) fn away_since(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Away { since } => Some(*since),
            _ => None,
        }
    }

    /// True if its client has stayed away for as long as it might: it ends in a moment.
    pub(super) fn is_past(&self, window: Duration) -> bool {
        match &self.phase {
            Phase::Away { since } => window <= since.elapsed(),
            Phase::Left { .. } => true,
            _ => false,
        }
    }

    /// True if another session may stand for it: its client is not told of one that it may come back to.
    pub(super) fn may_make_way(&self) -> bool {
        let has_begun = self.is_resumable() || matches!(self.phase, Phase::MadeWay { .. });
        !has_begun && !self.is_ended()
    }

    /// The session that its client came back to, once this one has made way for it.
    pub(super) fn made_way_for(&self) -> Option<&Session> {
        match &self.phase {
            Phase::MadeWay { into } => Some(into),
            Phase::Ended { into, .. } => into.as_ref(),
            _ => None,
        }
    }

    /// The session that its client has named, until it is known which of the two it gets.
    pub(super) fn wanted(&self) -> Option<SessionId> {
        self.claims().map(|claims| claims.wanted)
    }

    /// As [`Self::wanted`], if this one is not listed beside it.
    pub(super) fn hidden_by(&self) -> Option<SessionId> {
        self.claims().and_then(Claims::hidden_by)
    }

    fn claims(&self) -> Option<&Claims> {
        match &self.phase {
            Phase::Claiming { claims, .. } => Some(claims),
            Phase::Left { claims, .. } => claims.as_deref(),
            _ => None,
        }
    }

    fn claims_mut(&mut self) -> Option<&mut Claims> {
        match &mut self.phase {
            Phase::Claiming { claims, .. } => Some(claims),
            Phase::Left { claims, .. } => claims.as_deref_mut(),
            #[cfg(feature = "cluster")]
            Phase::Given { claims, .. } => Some(claims),
            _ => None,
        }
    }

    /// How it is told where it stands.
    pub(super) fn standing(&self) -> Standing {
        match self.connection() {
            _ if self.is_ended() => Standing::Ended,
            Some(connection) if self.hidden_by().is_some() => Standing::Arriving(connection.id().to_string()),
            Some(connection) => Standing::Connected(connection.id().to_string()),
            None => Standing::Away,
        }
    }

    /// What its client shows to come back, if it has ever been told of that.
    pub(super) fn secret(&self) -> Option<&Secret> {
        self.rare.as_ref().map(|rare| &rare.secret)
    }

    /// True if this is the secret by which its client comes back.
    pub(super) fn admits(&self, secret: &str) -> bool {
        self.secret().is_some_and(|own| own.admits(secret))
    }
}

/// What is known of its client.
impl State {
    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn label(&self, key: &str) -> Option<&String> {
        self.rare.as_ref()?.labels.get(key)
    }

    pub(super) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.rare.as_ref().map(|rare| &rare.labels)
    }

    pub(super) fn set_label(&mut self, key: String, value: String) {
        self.rare().labels.insert(key, value);
    }

    /// What its client handles, as it says now, or said when it was there last.
    pub(super) fn methods(&self) -> Option<Methods> {
        match self.connection() {
            Some(connection) => connection.methods(),
            None => self.rare.as_ref()?.methods.clone(),
        }
    }

    /// True if nobody at the client takes a push of this name.
    pub(super) fn takes_no_such(&self, service_path: &str, service_method: &str) -> bool {
        takes_no_such(self.rare.as_deref(), service_path, service_method)
    }

    /// True if a call can reach its client, now or when the client is back.
    pub(super) fn takes_calls(&self) -> bool {
        let takes = |connection: &Connection| !connection.is_being_let_in() && connection.takes_calls();
        self.is_resumable() || self.connection().is_some_and(takes)
    }

    /// True if the pairs that go with what is published mean something to the client.
    pub(super) fn knows_topics(&self) -> bool {
        self.is_resumable() || self.knows_topics
    }

    /// A call was given up. Returns whether the client may still be told; if so, it is told when it comes back, too.
    pub(super) fn give_up_call(&mut self, id: u64, until: Instant) -> bool {
        let may_return = self.is_resumable();
        if may_return {
            self.rare().given_up.get_or_insert_default().note(id, until);
        }
        may_return
    }

    /// The client has said how far it is: notes what it holds.
    fn note_held(&mut self) {
        let oldest = self.ledger.oldest_held();
        if oldest.is_none() && self.held().is_none() {
            return;
        }
        let held = self.rare().held.get_or_insert_with(|| Box::new((0, Instant::now())));
        if held.0 != oldest.unwrap_or(0) {
            **held = (oldest.unwrap_or(0), Instant::now());
        }
    }

    /// The oldest push that its client has received and that its application is not done with.
    pub(super) fn held(&self) -> Option<Held> {
        let (offset, since) = **self.rare.as_ref()?.held.as_ref()?;
        let for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        (offset != 0 && !self.is_ended()).then_some(Held { offset, for_ms })
    }
}

/// Its user.
impl State {
    pub(super) fn user(&self) -> Option<&Arc<str>> {
        self.user.as_ref()
    }

    /// True if it lives and belongs to this user.
    pub(super) fn is_of(&self, user: &Arc<str>) -> bool {
        !self.is_ended() && self.user.as_ref() == Some(user)
    }

    /// True if it is in the list of any user.
    pub(super) fn is_listed(&self) -> bool {
        0 < self.listed
    }

    /// It has entered the list of its user.
    pub(super) fn list(&mut self) {
        self.listed += 1;
    }

    /// It has left the list of a user who has this account: what it holds is not charged there any more.
    pub(super) fn unlist(&mut self, account: Option<&Arc<Account>>) {
        let has_user = self.user.is_some();
        match (self.ledger.account(), account) {
            // Another user is charged already.
            (Some(charged), account) if account.is_none_or(|account| !Arc::ptr_eq(charged, account)) => {}
            _ => self.ledger.charge(has_user, None),
        }
        self.listed -= 1;
    }

    /// What it holds is charged to its user.
    pub(super) fn charge(&mut self, account: Option<Arc<Account>>) {
        self.ledger.charge(true, account);
    }
}

/// What it is owed.
impl State {
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Drops what has waited too long. Times are since the session began.
    pub(super) fn expire_waiting(&mut self, now: Duration) {
        if !self.is_given() {
            self.ledger.expire_waiting(now);
        }
    }

    /// What goes to its connection next.
    pub(super) fn next(&mut self, now: Duration) -> Option<Next> {
        self.ledger.next(now)
    }

    /// What went last, under this offset, is larger than its client takes.
    pub(super) fn fail_last(&mut self, offset: u64) {
        self.ledger.fail_last(offset);
    }

    /// What went last is written once the connection's counter of pushes stands here.
    pub(super) fn mark(&mut self, mark: u64) {
        self.ledger.mark(mark);
    }

    /// The connection's counter of pushes stands here. True if something is still to be written.
    pub(super) fn written_upto(&mut self, mark: u64, now: Duration) -> bool {
        self.ledger.written_upto(mark, now)
    }

    /// A reply goes after what it is owed now.
    pub(super) fn put_behind(&mut self, reply: HeldReply) {
        self.ledger.put_behind(Arc::new(reply));
    }

    /// Claims room in its log for so many messages of a topic. False: there is not enough, and none is claimed.
    pub(super) fn claim_room(&mut self, messages: usize, bytes: usize) -> bool {
        self.ledger.claim_room(messages, bytes)
    }

    /// Takes a message of a topic for which room was claimed.
    pub(super) fn take_claimed(&mut self, entry: Entry, now: Duration) {
        self.ledger.push_claimed(entry, now);
    }

    /// Takes the newest value of a topic. False: there is no room for it.
    pub(super) fn take_latest(&mut self, entry: Entry, now: Duration) -> bool {
        self.ledger.push(entry, now)
    }

    /// It does not get the message of a topic with this stamp.
    pub(super) fn miss(&mut self, stamp: u64) {
        self.ledger.miss(stamp);
    }

    /// Messages of a topic are missing, and nobody has them any more: its client is told.
    pub(super) fn miss_and_tell(&mut self, stamp: u64) {
        self.ledger.miss_and_tell(stamp);
    }

    /// Holds a push of this name until it is known which session the client gets. Returns it if that is known.
    pub(super) fn hold(&mut self, mut entry: Entry, name: &Arc<str>) -> Option<Entry> {
        if self.is_given() && entry.class == Class::Fire {
            entry.ticket.advance(Stage::Dropped(DropReason::Disconnected));
            return None;
        }
        match self.claims_mut() {
            Some(claims) => {
                claims.hold(entry, name);
                None
            }
            None => Some(entry),
        }
    }

    pub(super) fn is_put_off(&self) -> bool {
        self.put_off.is_some() || self.batch.is_some()
    }

    /// It is written now, if it was put off.
    pub(super) fn end_put_off(&mut self) {
        self.put_off = None;
    }

    /// Hands a push to the connection, if nothing is before it and the socket is free. `None`: it goes through the
    /// ledger. `flusher`: of the thread that pushes, if it has one.
    pub(super) fn send(
        &mut self,
        push: &Push,
        flying: Flying<'_>,
        topic: Option<&str>,
        flusher: Option<FlusherId>,
        event_log: &Arc<EventLog>,
    ) -> Option<Entered> {
        if self.takes_no_such(&push.service_path, &push.service_method) {
            return None;
        }
        let flight = flying.for_one(self.is_away() && push.class == Class::Fire || self.knows_topics())?;
        let entered = self.fly(flight, topic, event_log)?;
        if entered != Entered::Sent {
            return Some(entered);
        }

        if flusher.is_some() && self.put_off == flusher {
            // This thread's flusher has it already. That of another thread may be held up for longer than this one.
            return Some(Entered::Nothing);
        }
        self.put_off = flusher.or(self.put_off);
        Some(Entered::Sent)
    }

    /// As [`Self::send`], in the form that is for this session.
    fn fly(&mut self, flight: &Arc<Flight>, topic: Option<&str>, event_log: &Arc<EventLog>) -> Option<Entered> {
        let connection = match &self.phase {
            Phase::Plain { connection } | Phase::Resumable { connection } => connection,
            Phase::Away { .. } if flight.class == Class::Fire => {
                self.ledger.miss_flight(flight, event_log);
                return Some(Entered::Nothing);
            }
            Phase::Away { .. } => return self.keep(flight, topic, event_log),
            _ => return None,
        };
        if topic.is_some_and(|topic| self.patterns.is_stalled(topic)) {
            return None;
        }

        let mut is_much = false;
        let is_sent = self.ledger.send(flight, event_log, |frame, seq| {
            let (mark, much) = connection.take_push(frame, seq)?;
            is_much = much;
            Some(mark)
        });
        is_sent.then_some(if is_much { Entered::SentMuch } else { Entered::Sent })
    }

    /// Keeps a tracked push for a client that is away. `None`: it goes through the ledger.
    fn keep(&mut self, flight: &Arc<Flight>, topic: Option<&str>, event_log: &Arc<EventLog>) -> Option<Entered> {
        match topic {
            Some(topic) if self.patterns.is_stalled(topic) => self.ledger.refuse_flight(flight, event_log),
            _ => {
                let is_kept = self.ledger.keep(flight, event_log)?;
                if let Some(topic) = topic.filter(|_| !is_kept) {
                    self.patterns.stall(topic);
                }
            }
        }
        Some(Entered::Nothing)
    }

    /// What was handed to the connection is told of from here on as all else is.
    pub(super) fn land(&mut self) {
        self.ledger.land();
    }

    /// The session has got a newer value of this key than one that comes after it from the node that had it.
    #[cfg(feature = "cluster")]
    fn is_passed(&self, class: &Class) -> bool {
        let Class::Latest(key) = class else { return false };
        let newer = self.travelled().and_then(|travelled| travelled.newer.as_ref());
        newer.is_some_and(|(_, keys)| keys.contains(key))
    }

    #[cfg(feature = "cluster")]
    fn note_newer(&mut self, class: &Class) {
        let Class::Latest(key) = class else { return };
        let Some(travelled) = self.travelled_mut() else { return };
        travelled.newer.take_if(|(until, _)| *until <= Instant::now());
        if let Some((_, keys)) = &mut travelled.newer
            && keys.len() < NEWER_MAX
        {
            keys.insert(key.clone());
        }
    }

    /// Takes what comes after it from the node that had it.
    #[cfg(feature = "cluster")]
    pub(super) fn take_late(&mut self, mut entry: Entry, now: Duration) {
        match self.is_passed(&entry.class) {
            true => entry.ticket.advance(Stage::Superseded),
            false => _ = self.ledger.push(entry, now),
        }
    }

    /// Takes a push into the ledger: of a topic whose client asks for what it was not sent, nothing overtakes that.
    pub(super) fn take(&mut self, entry: Entry, topic: Option<&str>, now: Duration) {
        #[cfg(feature = "cluster")]
        self.note_newer(&entry.class);
        let is_tracked = entry.class == Class::Tracked;
        match topic {
            Some(topic) if self.patterns.is_stalled(topic) => self.ledger.refuse(entry),
            Some(topic) => {
                let missed = self.ledger.missed();
                self.ledger.push(entry, now);
                if is_tracked && missed < self.ledger.missed() {
                    self.patterns.stall(topic);
                }
            }
            None => _ = self.ledger.push(entry, now),
        }
    }

    /// True if its end costs its client nothing: it is owed nothing, never was, and subscribes to nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.patterns.len() == 0 && self.ledger.last_offset() == 0 && self.ledger.waiting().0 == 0
    }
}

/// What it has to take of its batch.
impl State {
    /// It takes from now on what is noted there. `None`: it takes no part.
    pub(super) fn join(&mut self, batch: &Arc<Batch>, event_log: &Arc<EventLog>) -> Option<Joins> {
        match self.phase {
            Phase::Plain { .. } | Phase::Resumable { .. } | Phase::Away { .. } => {}
            Phase::Claiming { .. } | Phase::Left { .. } | Phase::MadeWay { .. } | Phase::Ended { .. } => return None,
            #[cfg(feature = "cluster")]
            Phase::Given { .. } => return None,
        }
        let mut has_much = false;
        if let Some(before) = self.batch.take() {
            before.close_for(batch);
            self.take_noted(&before, event_log);
            has_much = self.connection().is_some_and(Connection::has_much_to_write);
        }
        (self.batch, self.taken) = (Some(Arc::clone(batch)), 0);
        Some(Joins { knows_topics: self.knows_topics(), has_much })
    }

    pub(super) fn has_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// True if it takes what is noted there.
    pub(super) fn is_in(&self, batch: &Arc<Batch>) -> bool {
        self.batch.as_ref().is_some_and(|own| Arc::ptr_eq(own, batch))
    }

    /// True if it has not looked since this long batch began, which is the newest: it does now.
    pub(super) fn has_not_seen(&mut self, newest: u32) -> bool {
        std::mem::replace(&mut self.seen, newest) != newest
    }

    /// It has taken what is noted for it in all long batches up to this one.
    pub(super) fn has_seen(&mut self, number: u32) {
        self.seen = number;
    }

    /// The session that made way for it last.
    pub(super) fn stands_for(&self) -> Option<SessionId> {
        self.rare.as_ref()?.stands_for
    }

    /// Takes all that is noted there as one that can be in no batch now. `is_listed`: it is for that session as well.
    pub(super) fn take_outside(
        &mut self,
        batch: &Batch,
        is_listed: impl FnOnce(SessionId) -> bool,
        event_log: &Arc<EventLog>,
    ) {
        // The session that the client wants gets it, and a client that does not get that one was not meant.
        let is_told_twice = self.wanted().is_some_and(is_listed);
        for noted in batch.noted().iter() {
            let flight = noted.for_one(self.knows_topics());
            if is_told_twice {
                flight.leave();
                continue;
            }
            let mut entry = self.ledger.entry_of(flight, event_log);
            if self.is_ended() {
                // The ticket counts as dropped with its session.
                continue;
            }
            if self.takes_no_such(&noted.service_path, &noted.service_method) {
                entry.ticket.advance(Stage::Failed(Failure::NoHandler));
                continue;
            }
            if let Some(entry) = self.hold(entry, &flight.name) {
                self.take(entry, noted.topic.as_deref(), event_log.now());
            }
        }
    }

    /// Takes what was noted until now, whenever it is locked.
    pub(super) fn catch_up(&mut self, event_log: &Arc<EventLog>) {
        if let Some(batch) = self.batch.take() {
            self.take_noted(&batch, event_log);
            self.batch = Some(batch);
        }
    }

    /// Before what it gets is for another session, or for nobody: it takes what was noted, and nothing more is.
    pub(super) fn leave_batch(&mut self, event_log: &Arc<EventLog>) {
        if let Some(batch) = self.batch.take() {
            batch.close();
            self.take_noted(&batch, event_log);
        }
    }

    /// This batch is written, and closed. The session may be in another one by now.
    pub(super) fn end_batch(&mut self, batch: &Arc<Batch>) {
        self.batch.take_if(|own| Arc::ptr_eq(own, batch));
    }

    fn take_noted(&mut self, batch: &Batch, event_log: &Arc<EventLog>) {
        let noted = batch.noted();
        let from = std::mem::replace(&mut self.taken, noted.len() as u32);
        let mut left = noted.get(from as usize..).unwrap_or_default();
        loop {
            let flown = self.fly_some(left, event_log);
            if flown == 0 {
                break;
            }
            left = &left[flown..];
        }
        left.iter().for_each(|noted| self.take_one(noted, event_log));
    }

    /// Gives the first of these to the connection, as [`Self::fly`] does, under one lock of it. Answers how many; it may take
    /// more. 0: what is next, if anything, does not go straight to a connection.
    fn fly_some(&mut self, noted: &[Noted], event_log: &Arc<EventLog>) -> usize {
        let knows_topics = self.knows_topics();
        let (Phase::Plain { connection } | Phase::Resumable { connection }) = &self.phase else { return 0 };
        if noted.is_empty() {
            return 0;
        }
        let mut taking = connection.take_pushes();
        let mut flies = |noted: &Noted| {
            let is_stalled = noted.topic.as_deref().is_some_and(|topic| self.patterns.is_stalled(topic));
            !is_stalled
                && !takes_no_such(self.rare.as_deref(), &noted.service_path, &noted.service_method)
                && self.ledger.send(noted.for_one(knows_topics), event_log, |frame, seq| {
                    taking.take(frame, seq).map(|(mark, _)| mark)
                })
        };
        noted.iter().take(FLOWN_AT_ONCE).take_while(|noted| flies(noted)).count()
    }

    fn take_one(&mut self, noted: &Noted, event_log: &Arc<EventLog>) {
        let (flight, topic) = (noted.for_one(self.knows_topics()), noted.topic.as_deref());
        let takes_no_such = self.takes_no_such(&noted.service_path, &noted.service_method);
        if !takes_no_such && self.fly(flight, topic, event_log).is_some() {
            return;
        }
        if !takes_no_such && flight.class == Class::Fire && self.connection().is_some_and(Connection::is_closed) {
            // It is away: its end is on its way here.
            return self.ledger.miss_flight(flight, event_log);
        }

        let mut entry = self.ledger.entry_of(flight, event_log);
        if takes_no_such {
            return entry.ticket.advance(Stage::Failed(Failure::NoHandler));
        }
        let now = event_log.now();
        self.expire_waiting(now);
        self.take(entry, topic, now);
        if let Some(connection) = self.connection() {
            connection.note_kept_push();
        }
    }
}

/// What it subscribes to.
impl State {
    pub(super) fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    #[cfg(test)]
    pub(super) fn patterns_mut(&mut self) -> &mut Patterns {
        &mut self.patterns
    }

    /// It has subscribed to this, and was sent everything since then. `by_client`: its client asked for it.
    pub(super) fn subscribe(&mut self, pattern: Arc<str>, since: u64, by_client: bool) {
        #[cfg(feature = "cluster")]
        if let Some(travelled) = self.travelled_mut() {
            travelled.coming.remove(&pattern);
        }
        self.patterns.insert(Arc::clone(&pattern), since);
        if by_client {
            self.patterns.set_by_client(&pattern);
        }
    }

    /// Its client has asked for something, and so knows of topics.
    pub(super) fn note_knows_topics(&mut self) {
        self.knows_topics = true;
    }

    /// Its client asks for what it was not sent of this topic: nothing of it is to overtake that.
    pub(super) fn set_ordered(&mut self, topic: &str) {
        self.patterns.set_ordered(topic);
    }

    /// It has got all of this topic that it asked for and was not sent, or knows that it does not get it: what it gets
    /// from here on it gets as a subscriber. `since`: from that stamp on it was sent everything.
    pub(super) fn caught_up(&mut self, topic: &str, since: u64) {
        self.patterns.go_on(topic);
        // A part that lies before that is known by nothing else.
        if self.part_of(topic).is_some_and(|part| since <= part.first) {
            self.forget_parts(topic);
        }
    }

    /// The client asks for what it missed of this topic in parts: nothing of it is sent before the last one.
    pub(super) fn stall(&mut self, topic: &str) {
        self.patterns.stall(topic);
    }

    /// True if it was subscribed.
    pub(super) fn unsubscribe(&mut self, pattern: &str) -> bool {
        self.forget_parts(pattern);
        #[cfg(feature = "cluster")]
        if let Some(travelled) = self.travelled_mut() {
            travelled.came_with.forget(pattern);
            travelled.coming.remove(pattern);
        }
        self.patterns.remove(pattern)
    }

    fn forget_parts(&mut self, topic: &str) {
        if let Some(rare) = &mut self.rare {
            rare.parts.forget(topic);
        }
    }

    /// What it was sent of this topic before it subscribes to it.
    pub(super) fn part_of(&self, topic: &str) -> Option<Part> {
        self.rare.as_ref().and_then(|rare| rare.parts.of(topic))
    }

    /// True if the message that stands here in a topic has come with this session from another node.
    #[cfg(feature = "cluster")]
    pub(super) fn came_with(&self, topic: &str, position: Position) -> bool {
        self.travelled().is_some_and(|travelled| travelled.came_with.has(topic, position))
    }

    /// Without a cluster it has come from nowhere.
    #[cfg(not(feature = "cluster"))]
    pub(super) fn came_with(&self, _topic: &str, _position: Position) -> bool {
        false
    }

    /// This has come after it from the node that had it.
    #[cfg(feature = "cluster")]
    pub(super) fn note_came(&mut self, topic: &str, place: TopicPlace) {
        self.rare().travelled.get_or_insert_default().came_with.note(topic, place);
    }

    /// It was sent all of this topic up to some position, and is to be a subscriber again, from there.
    #[cfg(feature = "cluster")]
    pub(super) fn expect(&mut self, topic: &Arc<str>, coming: Coming) {
        self.subscribe(Arc::clone(topic), NEVER, coming.by_client);
        if coming.is_ordered {
            self.set_ordered(topic);
        }
        self.rare().travelled.get_or_insert_default().coming.insert(Arc::clone(topic), coming);
    }

    /// How far it is with this topic, if it is to be a subscriber of it.
    #[cfg(feature = "cluster")]
    pub(super) fn coming(&self, topic: &str) -> Option<Coming> {
        self.travelled()?.coming.get(topic).copied()
    }

    /// As [`Self::coming`], only the position.
    #[cfg(feature = "cluster")]
    pub(super) fn coming_from(&self, topic: &str) -> Option<Position> {
        Some(self.coming(topic)?.position)
    }

    /// Without a cluster it comes from nowhere.
    #[cfg(not(feature = "cluster"))]
    pub(super) fn coming_from(&self, _topic: &str) -> Option<Position> {
        None
    }

    /// All that [`Self::coming`] knows.
    #[cfg(feature = "cluster")]
    pub(super) fn all_coming(&self) -> Vec<(Arc<str>, Position)> {
        let coming = self.travelled().into_iter().flat_map(|travelled| &travelled.coming);
        coming.map(|(topic, coming)| (Arc::clone(topic), coming.position)).collect()
    }

    /// True if it has this topic, and is no subscriber of it yet.
    #[cfg(feature = "cluster")]
    pub(super) fn is_coming(&self, topic: &str) -> bool {
        self.travelled().is_some_and(|travelled| travelled.coming.contains_key(topic))
    }

    /// Without a cluster it comes from nowhere.
    #[cfg(not(feature = "cluster"))]
    pub(super) fn is_coming(&self, _topic: &str) -> bool {
        false
    }

    #[cfg(feature = "cluster")]
    fn travelled(&self) -> Option<&Travelled> {
        self.rare.as_ref()?.travelled.as_deref()
    }

    #[cfg(feature = "cluster")]
    fn travelled_mut(&mut self) -> Option<&mut Travelled> {
        self.rare.as_mut()?.travelled.as_deref_mut()
    }

    /// It was sent this part of a topic, which follows that position.
    pub(super) fn note_part(&mut self, topic: &str, from: Position, part: Part) {
        self.rare().parts.note(topic, from, part);
    }

    /// While its client is being let in, it stands in this topic in the place of the session that is wanted.
    pub(super) fn share_place(&mut self, pattern: &Arc<str>) {
        if let Some(claims) = self.claims_mut() {
            claims.share_place(pattern);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestRunner};

    use super::{super::fixtures::plain_connections, *};

    /// Sessions, each with a connection of its own to begin with.
    const SESSIONS: usize = 4;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The client of this one names that one.
        Claim(usize, usize),
        Unclaim(usize),
        Begin(usize),
        /// The client on the connection of the second comes back to the first.
        Resume(usize, usize),
        /// This one loses that connection; the server waits for clients, or does not.
        Lose(usize, usize, bool),
        End(usize),
        Bind(usize, u8),
        Welcomed(usize, usize),
        Ack(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = || 0..SESSIONS;
        prop_oneof![
            2 => (at(), at()).prop_map(|(this, that)| Step::Claim(this, that)),
            1 => at().prop_map(Step::Unclaim),
            3 => at().prop_map(Step::Begin),
            4 => (at(), at()).prop_map(|(this, that)| Step::Resume(this, that)),
            2 => (at(), at(), any::<bool>()).prop_map(|(this, on, waits)| Step::Lose(this, on, waits)),
            2 => (at(), any::<bool>()).prop_map(|(this, waits)| Step::Lose(this, this, waits)),
            1 => at().prop_map(Step::End),
            1 => (at(), 0_u8..3).prop_map(|(this, user)| Step::Bind(this, user)),
            1 => (at(), at()).prop_map(|(this, on)| Step::Welcomed(this, on)),
            1 => (at(), at()).prop_map(|(this, on)| Step::Ack(this, on)),
        ]
    }

    /// What is true of one session, each fact by itself.
    #[derive(Clone, Debug, Default)]
    struct Model {
        connection: Option<usize>,
        generation: u64,
        resumable: bool,
        /// The session that its client has named.
        claims: Option<usize>,
        away: bool,
        ended: bool,
        made_way_for: Option<usize>,
        user: Option<u8>,
    }

    /// The sessions, and what they are held against.
    struct Pair<'a> {
        connections: &'a [Connection; SESSIONS],
        named: &'a [Session; SESSIONS],
        states: Vec<State>,
        models: Vec<Model>,
        bounds: Arc<Bounds>,
    }

    impl<'a> Pair<'a> {
        fn new(connections: &'a [Connection; SESSIONS], named: &'a [Session; SESSIONS]) -> Self {
            let bounds = Arc::<Bounds>::default();
            let state = |connection: &Connection| State::connected(connection.clone(), Arc::clone(&bounds));
            let states = connections.iter().map(state).collect();
            let model = |at| Model { connection: Some(at), generation: 1, ..Model::default() };
            Self { connections, named, states, models: (0..SESSIONS).map(model).collect(), bounds }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Claim(this, that) => self.claim(this, that),
                Step::Unclaim(this) => {
                    let settled = self.states[this].unclaim(Duration::ZERO);
                    let wanted = self.models[this].claims.take().map(|that| self.named[that].id());
                    assert_eq!(settled.map(|settled| settled.wanted), wanted);
                }
                Step::Begin(this) => self.begin(this),
                Step::Resume(this, that) => self.resume(this, that),
                Step::Lose(this, on, waits) => self.lose(this, on, waits),
                Step::End(this) => self.end(this),
                Step::Bind(this, user) => {
                    let name = |user: u8| Arc::<str>::from(format!("user {user}"));
                    let (state, model) = (&mut self.states[this], &mut self.models[this]);
                    let changes = !model.ended && model.user != Some(user);
                    let before = changes.then(|| model.user.replace(user).map(name));
                    assert_eq!(state.bind(Some(name(user))), before);
                }
                Step::Welcomed(this, on) => {
                    let welcomed = self.states[this].welcomed(&self.connections[on]);
                    assert_eq!(welcomed.is_some(), self.models[this].connection == Some(on));
                }
                Step::Ack(this, on) => {
                    let is_on = self.models[this].connection == Some(on);
                    let connection = &self.connections[on];
                    let nothing = self.states[this].ack(connection, &Acks::default(), Duration::ZERO);
                    assert_eq!(nothing, is_on.then_some(true), "nothing was sent");
                    let acks = Acks { received: 1, handled: 1, ends: Vec::new() };
                    assert_eq!(
                        self.states[this].ack(connection, &acks, Duration::ZERO),
                        is_on.then_some(false),
                        "nor is more true"
                    );
                }
            }
        }

        fn claim(&mut self, this: usize, that: usize) {
            let model = &mut self.models[this];
            let may_claim = model.connection.is_some() && !model.resumable && !model.ended && model.claims.is_none();
            let claims = Claims::new(self.named[that].id(), false, Arc::clone(&self.bounds));
            assert_eq!(self.states[this].claim(claims), may_claim);
            if may_claim {
                model.claims = Some(that);
            }
        }

        fn begin(&mut self, this: usize) {
            let (state, model) = (&mut self.states[this], &mut self.models[this]);
            let (secret, settled) = state.begin(Duration::ZERO);
            let wanted = model.claims.take().map(|that| self.named[that].id());
            assert_eq!(settled.map(|settled| settled.wanted), wanted);
            assert!(state.admits(&secret) && !state.admits("guessed"));
            model.resumable |= model.connection.is_some() && !model.ended;
        }

        /// As `resume.rs` does it: only a session that may be had is, and only by one that may make way for it.
        fn resume(&mut self, this: usize, that: usize) {
            let (model, fresh) = (self.models[this].clone(), self.models[that].clone());
            let may_make_way = !fresh.resumable && !fresh.ended && fresh.made_way_for.is_none();
            assert_eq!(self.states[that].may_make_way(), may_make_way);
            let is_there = self.states[this].is_resumable() && !self.states[this].is_past(Duration::MAX);
            assert_eq!(is_there, model.resumable && (model.away || model.connection.is_some()));
            let Some(on) = fresh.connection.filter(|_| this != that && may_make_way && is_there) else { return };

            let [state, making_way] = self.states.get_disjoint_mut([this, that]).expect("two of them");
            let lies = state.resume(&self.connections[on], None, 1, None, &[], Duration::ZERO);
            assert!(lies.is_err() && state.generation() == model.generation, "nothing was sent, and nothing changes");
            let before =
                state.resume(&self.connections[on], None, 0, None, &[], Duration::ZERO).expect("nothing was sent");
            assert_eq!(before.as_ref(), model.connection.map(|on| &self.connections[on]));
            making_way.make_way(&self.named[that], state, &self.named[this]);

            let model = &mut self.models[this];
            (model.connection, model.away) = (Some(on), false);
            model.generation += 1;
            let fresh = &mut self.models[that];
            (fresh.connection, fresh.claims, fresh.made_way_for) = (None, None, Some(this));
        }

        fn lose(&mut self, this: usize, on: usize, waits: bool) {
            let model = &mut self.models[this];
            let is_on = model.connection == Some(on);
            if is_on {
                model.connection = None;
                model.away = model.resumable && waits;
            }
            let lost = self.states[this].lose(&self.connections[on], waits, Instant::now(), Duration::ZERO);
            assert_eq!(lost, is_on.then_some(model.away));
        }

        fn end(&mut self, this: usize) {
            let remains = self.states[this].end(&self.bounds);
            let model = &mut self.models[this];
            assert_eq!(remains.is_some(), !model.ended, "it ends once");
            let Some(remains) = remains else { return };
            assert_eq!(remains.connection.as_ref(), model.connection.map(|on| &self.connections[on]));
            assert_eq!(remains.claims.is_some(), model.claims.is_some());
            assert_eq!(remains.user.is_some(), model.user.is_some());
            let Model { connection, generation, made_way_for, .. } = *model;
            *model = Model { connection, generation, made_way_for, ended: true, ..Model::default() };
        }

        fn check(&self) {
            for (state, model) in self.states.iter().zip(&self.models) {
                let Model { connection, generation, resumable, claims, away, ended, made_way_for, user } = model;
                assert_eq!(state.connection(), connection.map(|on| &self.connections[on]), "{model:?}");
                assert_eq!((state.generation(), state.is_resumable()), (*generation, *resumable), "{model:?}");
                assert_eq!(state.wanted(), claims.map(|that| self.named[that].id()), "{model:?}");
                assert_eq!((state.is_away(), state.is_ended()), (*away, *ended), "{model:?}");
                assert_eq!(state.made_way_for(), made_way_for.map(|that| &self.named[that]), "{model:?}");
                assert_eq!(state.user().is_some(), user.is_some(), "{model:?}");
                // What no session may be, whatever happened.
                assert!(!state.is_away() || (state.connection().is_none() && state.is_resumable()), "{model:?}");
                assert!(state.wanted().is_none() || (!state.is_resumable() && !state.is_ended()), "{model:?}");
                assert!(!state.is_ended() || (state.user().is_none() && !state.is_resumable()), "{model:?}");
                assert!(state.made_way_for().is_none() || state.connection().is_none(), "{model:?}");
                assert_eq!(state.is_past(Duration::ZERO), state.is_away() || state.is_left(), "{model:?}");
            }
            // A connection has one session that lives at most.
            for connection in self.connections {
                let living = self.states.iter().filter(|state| state.is_on(connection) && !state.is_ended());
                assert!(living.count() <= 1);
            }
        }
    }

    impl State {
        fn is_left(&self) -> bool {
            matches!(self.phase, Phase::Left { .. })
        }
    }

    /// Whatever happens to sessions, and in whatever order: each event does what it may and no more, and none is ever
    /// in a state that is none.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_in_one_state_whatever_happens() {
        let (_server, _clients, registry, connections) = plain_connections::<SESSIONS>("one-state").await;
        let named = std::array::from_fn(|at| registry.of(&connections[at]).expect("it is made"));
        let steps = prop::collection::vec(step(), 1..60);
        let outcome = TestRunner::default().run(&steps, |steps| {
            let mut pair = Pair::new(&connections, &named);
            for step in steps {
                pair.take(step);
                pair.check();
            }
            Ok(())
        });
        outcome.expect("it holds");
    }

    /// A client may come back as long as its window is open, and not to a session that nobody waits for.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_past_when_its_window_is_over() {
        let (_server, _clients, _registry, [connection]) = plain_connections("past").await;
        let window = Duration::from_secs(2);
        let mut state = State::connected(connection.clone(), Arc::default());
        _ = state.begin(Duration::ZERO);
        assert!(!state.is_past(Duration::ZERO), "it is there");
        assert_eq!(state.lose(&connection, true, Instant::now(), Duration::ZERO), Some(true));
        tokio::time::advance(window - Duration::from_millis(1)).await;
        assert!(!state.is_past(window));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(state.is_past(window));

        let mut state = State::connected(connection.clone(), Arc::default());
        _ = state.begin(Duration::ZERO);
        assert_eq!(state.lose(&connection, false, Instant::now(), Duration::ZERO), Some(false));
        assert!(state.is_past(Duration::MAX) && state.is_resumable(), "nobody waits");
    }
}
