//! One push on its way to sessions whose sockets are free: what is the same for all of them, made once.
//!
//! What has a key or a time to live, and what is watched target by target, goes through the queues of each session, with
//! an [`Entry`](super::ledger::Entry) of its own.

use std::{num::NonZeroU32, sync::Arc};

use tokio::time::Instant;

use super::{
    Class, Priority, Push, Stage,
    push::{Encoded, Origin},
    receipt::{Receipt, Tally},
};

/// Tells the flushers of threads apart, which write what was put off.
pub(super) type FlusherId = NonZeroU32;

/// See the module.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) encoded: Encoded,
    /// `Fire` or `Tracked`.
    pub(super) class: Class,
    pub(super) priority: Priority,
    pub(super) origin: Origin,
    /// What event logs call it.
    pub(super) name: Arc<str>,
    /// When it was pushed.
    pub(super) at: Instant,
    pub(super) tally: Arc<Tally>,
}

impl Flight {
    /// `None`: it goes through the queues.
    pub(super) fn of(push: &Push, encoded: &Encoded, receipt: &Receipt, origin: Origin) -> Option<Arc<Self>> {
        let has_key = push.key.is_some() || matches!(push.class, Class::Latest(_));
        if has_key || push.time_to_live.is_some() || origin == Origin::Framework {
            return None;
        }
        let tally = receipt.counts_only()?;
        Some(Arc::new(Self {
            encoded: encoded.clone(),
            class: push.class.clone(),
            priority: push.priority,
            origin,
            name: Arc::clone(push.name()),
            at: Instant::now(),
            tally: Arc::clone(tally),
        }))
    }

    /// A target is none after all: another one stands for it.
    pub(super) fn leave(&self) {
        if self.tally.leave() {
            Tally::tell(&self.tally);
        }
    }

    /// One of its targets moves on.
    pub(super) fn advance(&self, from: Stage, to: Stage) {
        if self.tally.count(from, to) {
            Tally::tell(&self.tally);
        }
    }
}

#[cfg(test)]
impl Flight {
    pub(super) fn for_test(name: &str, at: Instant) -> Self {
        let encoded = Encoded { frame: bytes::Bytes::new(), keyed: None };
        let (class, priority, origin) = (Class::Tracked, Priority::Normal, Origin::Push);
        Self { encoded, class, priority, origin, name: name.into(), at, tally: Arc::default() }
    }
}

/// In which forms it goes to the sessions of a push.
#[derive(Clone, Copy)]
pub(super) enum Flying<'a> {
    Only(&'a Arc<Flight>),
    /// Of a topic: for those who know of topics, and for the others.
    OfTopic {
        with_topic: &'a Arc<Flight>,
        plain: &'a dyn Fn() -> Option<&'a Arc<Flight>>,
    },
}

impl<'a> Flying<'a> {
    /// For a session that knows of topics, or not. `None`: it cannot be encoded.
    pub(super) fn for_one(self, knows_topics: bool) -> Option<&'a Arc<Flight>> {
        match self {
            Self::Only(flight) => Some(flight),
            Self::OfTopic { with_topic, .. } if knows_topics => Some(with_topic),
            Self::OfTopic { plain, .. } => plain(),
        }
    }
}
