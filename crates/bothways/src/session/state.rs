//! What a server knows of one session: its connection, its client, and what that is owed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Session,
    claims::{Claims, Held as HeldEntry, Settled},
    explain::{Held, Trail},
    given_up::GivenUp,
    ledger::{Entry, Ledger},
    parts::Parts,
    push::{Class, Push},
    secrets::Secret,
    topic::Patterns,
};
use crate::{
    clock::later,
    connection::{Connection, Methods},
};

pub(super) struct State {
    pub(super) connection: Option<Connection>,
    /// Counts connections: what belongs to an earlier one counts for nothing.
    pub(super) generation: u64,
    /// The client speaks sessions, or a plain one asked for one, and may come back.
    pub(super) resumable: bool,
    /// The client has named another session that it had, and is being let in: until it is known which of the two it
    /// gets, what is only for this one is held.
    pub(super) claims: Option<Box<Claims>>,
    pub(super) ended: bool,
    pub(super) user: Option<Arc<str>>,
    /// In how many users' lists of the registry it stands: more than one only while several bind it at once.
    pub(super) listed: u16,
    /// What it subscribes to, and since when by the clock of the topics: everything from there on was sent.
    pub(super) patterns: Patterns,
    /// Its client has subscribed by itself, and so knows of the pairs that go with what is published.
    pub(super) knows_topics: bool,
    pub(super) ledger: Ledger,
    pub(super) seldom: Option<Box<Seldom>>,
}

/// What a session without labels, whose client speaks plain rpcx, does not have.
#[derive(Default)]
pub(super) struct Seldom {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) secret: Secret,
    /// When its client left.
    pub(super) lost_at: Option<Instant>,
    /// What its client handled when it was there last.
    pub(super) methods: Option<Methods>,
    /// The session that its client came back to: what is still on its way to this one is for that.
    pub(super) merged_into: Option<Session>,
    /// The client has said that its handlers take its pushes, and nobody else does.
    pub(super) takes_only_these: bool,
    /// Calls that a client that comes back is told not to run on with.
    pub(super) given_up: Option<Box<GivenUp>>,
    /// The oldest push that its client has received and not handled, and since when it is the oldest; 0: none.
    pub(super) held: Option<Box<(u64, Instant)>>,
    pub(super) parts: Parts,
}

impl State {
    pub(super) fn seldom(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    /// What the session gets of this topic, it gets from here on as a subscriber, or not at all.
    pub(super) fn forget_parts(&mut self, topic: &str) {
        if let Some(seldom) = &mut self.seldom {
            seldom.parts.forget(topic);
        }
    }

    pub(super) fn label(&self, key: &str) -> Option<&String> {
        self.seldom.as_ref()?.labels.get(key)
    }

    pub(super) fn lost_at(&self) -> Option<Instant> {
        self.seldom.as_ref()?.lost_at
    }

    /// True if nobody at the client takes a push of this name.
    pub(super) fn takes_no_such(&self, push: &Push) -> bool {
        let Some(seldom) = self.seldom.as_ref().filter(|seldom| seldom.takes_only_these) else { return false };
        seldom.methods.as_ref().is_some_and(|methods| !methods.contains(&push.service_path, &push.service_method))
    }

    /// Takes a push into the ledger: of a topic whose client asks for what it was not sent, nothing overtakes that.
    pub(super) fn take(&mut self, entry: Entry, topic: Option<&str>, now: Duration) {
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

    /// The client has said how far it is: notes what it holds.
    pub(super) fn note_held(&mut self) {
        let oldest = self.ledger.oldest_held();
        if oldest.is_none() && self.held().is_none() {
            return;
        }
        let held = self.seldom().held.get_or_insert_with(|| Box::new((0, Instant::now())));
        if held.0 != oldest.unwrap_or(0) {
            **held = (oldest.unwrap_or(0), Instant::now());
        }
    }

    pub(super) fn held(&self) -> Option<Held> {
        let (offset, since) = **self.seldom.as_ref()?.held.as_ref()?;
        let for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        (offset != 0 && !self.ended).then_some(Held { offset, for_ms })
    }

    /// True if this is the secret by which its client comes back.
    pub(super) fn admits(&self, secret: &str) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| seldom.secret.admits(secret))
    }

    /// The session that its client came back to, once this one has made way for it.
    pub(super) fn merged_into(&self) -> Option<&Session> {
        self.seldom.as_ref()?.merged_into.as_ref()
    }

    /// True while it waits for its client.
    pub(super) fn is_away(&self) -> bool {
        self.connection.is_none() && self.lost_at().is_some() && self.resumable && !self.ended
    }

    /// True if its end costs its client nothing: it is owed nothing, never was, and subscribes to nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.patterns.len() == 0 && self.ledger.last_offset() == 0 && self.ledger.waiting().0 == 0
    }

    /// True if its client has stayed away for as long as it might: the next sweep ends it.
    pub(super) fn is_past(&self, window: Duration) -> bool {
        self.is_away() && self.lost_at().is_some_and(|lost_at| window <= lost_at.elapsed())
    }

    /// The client gets this session and no other: what was held is its.
    pub(super) fn settle(&mut self, session: &Session) -> Option<Settled> {
        let claims = self.claims.take()?;
        let now = session.now();
        for HeldEntry { entry, .. } in claims.held {
            self.ledger.push(entry, now);
        }
        self.ledger.miss_all(claims.unsent);
        Some(Settled { wanted: claims.wanted, places: claims.places })
    }

    /// The client gets `into`, whose state is `other`: what was held here goes there, with the labels that were set
    /// meanwhile, and what is still on its way here follows it.
    pub(super) fn merge(&mut self, from: &Trail, other: &mut State, into: &Session) {
        let (held, unsent) = self.claims.take().map(|claims| (claims.held, claims.unsent)).unwrap_or_default();
        let (trail, now) = (&into.inner.trail, into.now());
        for HeldEntry { mut entry, name } in held {
            entry.ticket.follow(trail, trail.note_push(&name, &entry.class, entry.frame.len()));
            // The two count their time from different moments.
            entry.expires = entry.expires.map(|at| later(from.began(), at).saturating_duration_since(trail.began()));
            other.ledger.push(entry, now);
        }
        other.ledger.miss_all(unsent);
        if let Some(labels) = self.seldom.as_ref().map(|seldom| &seldom.labels).filter(|labels| !labels.is_empty()) {
            other.seldom().labels.extend(labels.clone());
        }
        self.seldom().merged_into = Some(into.clone());
    }
}
