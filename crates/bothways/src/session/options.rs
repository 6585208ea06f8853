//! The bounds and times of sessions.

use std::time::Duration;

use bothways_proto::Limits;

use super::{explain, ledger::Bounds, rules::Rules};
use crate::options::QueueBound;

/// How long a session waits for its client to come back, and how much it keeps for it.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{QueueBound, Server, SessionOptions};
///
/// let sessions = SessionOptions::new()
///     .resume_window(Duration::from_secs(300))
///     .log(QueueBound::messages(2_000).bytes(2 << 20));
/// let server = Server::builder().sessions(sessions).build();
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct SessionOptions {
    #[cfg_attr(feature = "config", serde(with = "humantime_serde"))]
    pub(super) resume_window: Duration,
    pub(super) away_max: usize,
    log: QueueBound,
    user_log_bytes_max: usize,
    fire_queue: QueueBound,
    latest_queue: QueueBound,
    idempotency_keys_max: usize,
    pub(super) events_max: usize,
    pub(super) ended_max: usize,
    pub(super) subscriptions_max: usize,
    pub(super) subscription_bytes_max: usize,
    pub(super) all_subscription_bytes_max: usize,
}

/// What the registry of sessions is made of: the options, and what the builder of the server has beside them.
pub(crate) struct Setup {
    pub(crate) options: SessionOptions,
    /// What topics are like.
    pub(crate) rules: Rules,
    /// Bounds of the frames that are pushed.
    pub(crate) limits: Limits,
    /// The calls of each user are counted.
    pub(crate) counts_user_calls: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let bounds = Bounds::default();
        Self {
            resume_window: Duration::from_secs(120),
            away_max: 100_000,
            log: QueueBound::default(),
            user_log_bytes_max: bounds.user_bytes,
            fire_queue: QueueBound::default(),
            latest_queue: QueueBound::default(),
            idempotency_keys_max: bounds.idempotency_keys,
            events_max: explain::EVENTS_MAX,
            ended_max: explain::ENDED_MAX,
            subscriptions_max: 1000,
            subscription_bytes_max: 512 << 10,
            all_subscription_bytes_max: 1 << 30,
        }
    }
}

impl SessionOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the session of a client that lost its connection waits for it to come back. Default 120 s. Only
    /// Bothways clients that listen have sessions that outlive their connections, and Go applications that asked for
    /// one.
    pub fn resume_window(mut self, window: Duration) -> Self {
        self.resume_window = window;
        self
    }

    /// Most sessions whose clients may be away at the same time. When one more client leaves, one of them ends: its
    /// pushes count as dropped because the session ended, and its client gets a new session if it comes back. Sessions
    /// with empty queues that never subscribed to anything end first. Then the user with the most of them loses the one
    /// that is away longest. Sessions without a user count for the address of their client. Default 100,000, which take
    /// about 150 MiB with empty queues: all the clients of a busy server, when its network fails for a moment.
    pub fn away_max(mut self, sessions: usize) -> Self {
        self.away_max = sessions;
        self
    }

    /// Tracked pushes that a session keeps until its client has handled them. More are refused, and the client is told
    /// of the gap. Default 1,000 pushes, 1 MiB.
    pub fn log(mut self, bound: QueueBound) -> Self {
        self.log = bound;
        self
    }

    /// Bytes in the logs of all sessions of one user. A tracked push beyond it is refused, and the client is told of
    /// the gap, even if the session's own log has room. Default 16 MiB: 16 devices that are all full.
    ///
    /// Values of class `Latest` count from when they are sent until they are handled, and are not refused for it.
    pub fn user_log_bytes_max(mut self, bytes: usize) -> Self {
        self.user_log_bytes_max = bytes;
        self
    }

    /// Pushes of class `Fire` that may wait for one session. Beyond it the oldest is dropped. Default 256 pushes, 256
    /// KiB.
    pub fn fire_queue(mut self, bound: QueueBound) -> Self {
        self.fire_queue = bound;
        self
    }

    /// Values of class `Latest`, one for each key, that may wait for one session; bytes include those of the keys. More
    /// are refused, and the client is told of the gap. Default 1,024 keys, 1 MiB.
    pub fn latest_queue(mut self, bound: QueueBound) -> Self {
        self.latest_queue = bound;
        self
    }

    /// [Idempotency keys](crate::Push::idempotency_key) that a session remembers; beyond it the oldest are forgotten.
    /// Default 1,024: a burst of retries, and at most 64 KiB. Zero turns them off.
    pub fn idempotency_keys_max(mut self, keys: usize) -> Self {
        self.idempotency_keys_max = keys;
        self
    }

    /// Events that [`Server::explain`](crate::Server::explain) keeps of one session. Default 64, some 5 KiB when
    /// they are full, and at most 22 KiB. Zero keeps none, and nothing of sessions that ended.
    pub fn events_max(mut self, events: usize) -> Self {
        self.events_max = events;
        self
    }

    /// How many sessions that ended [`Server::explain`](crate::Server::explain) still knows. Default 4,096; zero for
    /// none. It keeps the last 8 of each user, and prefers those in which something was sent. A quarter may have had no
    /// user. All together take 8 MiB at most. A session that had no user, push, call or subscription is not kept,
    /// unless the server ended it.
    pub fn ended_max(mut self, sessions: usize) -> Self {
        self.ended_max = sessions;
        self
    }

    /// Most topics and patterns to which one client may subscribe by itself; more are refused. Default 1,000.
    pub fn subscriptions_max(mut self, subscriptions: usize) -> Self {
        self.subscriptions_max = subscriptions;
        self
    }

    /// Bytes that the subscriptions of one client may take: for a topic 256 and its name; for a pattern with wildcards
    /// also twice its name and 640 for each segment. Default 512 KiB: 1,000 topics with the longest names, or some 200
    /// patterns.
    pub fn subscription_bytes_max(mut self, bytes: usize) -> Self {
        self.subscription_bytes_max = bytes;
        self
    }

    /// Bytes that all subscriptions at the server may take, before those of clients are refused. The name of a topic
    /// counts once, and each of its subscribers 64 bytes. Default 1 GiB: some three million topics with one subscriber
    /// each.
    pub fn all_subscription_bytes_max(mut self, bytes: usize) -> Self {
        self.all_subscription_bytes_max = bytes;
        self
    }

    /// The bounds of one session's ledger. Each queue takes one push at least.
    pub(super) fn bounds(&self) -> Bounds {
        let mut bounds = Bounds {
            user_bytes: self.user_log_bytes_max,
            idempotency_keys: self.idempotency_keys_max,
            ..Bounds::default()
        };
        self.log.set(&mut bounds.tracked_messages, &mut bounds.tracked_bytes);
        self.fire_queue.set(&mut bounds.fire_messages, &mut bounds.fire_bytes);
        self.latest_queue.set(&mut bounds.latest_keys, &mut bounds.latest_bytes);

        for messages in [&mut bounds.tracked_messages, &mut bounds.fire_messages, &mut bounds.latest_keys] {
            *messages = (*messages).max(1);
        }
        bounds
    }
}
