//! What a test and a node say to each other: one line of JSON each.

use std::{collections::BTreeMap, time::Duration};

use bothways::session::{Explanation, SessionId};
use serde::{Deserialize, Serialize};

/// What a node is started with: its only argument, as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[must_use]
pub struct Options {
    /// Where the servers of NATS listen.
    pub brokers: Vec<String>,
    /// How long others count it as a member without a word of it.
    pub lease: Duration,
    /// How long a client may be away.
    pub resume_window: Duration,
    /// The rules of topics, in turn.
    pub topics: Vec<Topic>,
    /// The servers of NATS write to their disks before they acknowledge.
    pub is_synced: bool,
}

/// The rule of some topics, to which every client may subscribe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Topic {
    /// Which.
    pub pattern: String,
    /// So many messages are kept; 0: none.
    pub history: usize,
    /// Who subscribes is seen.
    pub presence: bool,
    /// What the log cannot take goes to the subscribers of this node all the same.
    pub apart: bool,
}

impl Options {
    /// The library's own lease, a minute for clients to come back, and history for `news.>`.
    pub fn new(brokers: Vec<String>) -> Self {
        let news = Topic { pattern: "news.>".to_owned(), history: 10_000, presence: false, apart: false };
        let (lease, resume_window) = (Duration::from_secs(15), Duration::from_secs(60));
        Self { brokers, lease, resume_window, topics: vec![news], is_synced: false }
    }

    /// Another lease.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long a client may be away.
    pub fn resume_window(mut self, window: Duration) -> Self {
        self.resume_window = window;
        self
    }

    /// The servers are those of `Broker::three_synced`.
    pub fn synced(mut self) -> Self {
        self.is_synced = true;
        self
    }

    /// One more rule, which counts before those that are there.
    pub fn topic(mut self, topic: Topic) -> Self {
        self.topics.insert(0, topic);
        self
    }
}

/// What a node says when it serves.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Started {
    /// Its number in the cluster.
    pub node: String,
    /// Where it serves.
    pub address: String,
}

/// One line to a node.
#[derive(Debug, Deserialize, Serialize)]
pub struct Line {
    /// Its number, which the answer has too.
    pub id: u64,
    /// What is to be done.
    pub command: Command,
}

/// One line of a node.
#[derive(Debug, Deserialize, Serialize)]
pub struct Answer {
    /// The number of the line that this answers.
    pub id: u64,
    /// What came of it, or why nothing did.
    pub answer: Result<serde_json::Value, String>,
}

/// What a node is told to do. The numbers of pushes, and of what is published, are one series for each node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Command {
    /// Pushes with the numbers from `first` on. With `key`, each has an idempotency key: this, and its number.
    /// Answered with nothing when they are queued.
    Push {
        /// To whom.
        to: To,
        /// Of which class.
        class: As,
        /// Before the number, in the key.
        key: Option<String>,
        /// The first number.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Pushes that differ, in this order. Answered with nothing when all are queued.
    PushAll {
        /// To whom, and with which number.
        pushes: Vec<(To, u64)>,
        /// Of which class.
        class: As,
    },
    /// Publishes, as `Push`.
    Publish {
        /// Where.
        topic: String,
        /// The first number.
        first: u64,
        /// How many.
        count: u64,
    },
    /// What the receipts of these say now: [`Told`] for each.
    Receipts {
        /// The first number.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Calls `Numbers.Work` with this number, and is answered when that has ended: [`CallEnd`].
    Call {
        /// Whom: a user or a session.
        to: To,
        /// The argument.
        number: u64,
        /// The time limit.
        within: Duration,
    },
    /// Ends sessions, at all nodes: [`Kicked`].
    Kick {
        /// Whose.
        to: To,
        /// The reason.
        why: String,
    },
    /// What all nodes know of sessions: [`SessionSeen`] for each.
    Sessions {
        /// Whose.
        to: To,
    },
    /// Who is present in a topic at this node: their names.
    Presence {
        /// Which topic.
        topic: String,
    },
    /// Who belongs to the cluster: [`Known`].
    Members,
    /// What is under way: [`Stats`].
    Stats,
    /// Drains, and is answered when that is done: [`Drained`]. The process stays, for its receipts.
    Drain {
        /// The time limit.
        within: Duration,
        /// Clients that are sent away in a second.
        per_second: u32,
    },
    /// The process ends, without a word to anybody.
    Exit,
}

/// To whom something goes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum To {
    /// The sessions of a user.
    User(String),
    /// Those of several.
    Users(Vec<String>),
    /// All sessions.
    Everyone,
    /// The sessions of a group: clients whose token is `NAME/GROUP`.
    Group(String),
    /// One session.
    Session(SessionId),
    /// The subscribers of a topic.
    SubscribersOf(String),
}

impl To {
    /// The sessions of this user.
    pub fn user(name: &str) -> Self {
        Self::User(name.to_owned())
    }
}

/// The class of a push.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum As {
    /// Once at most.
    Fire,
    /// Until it is handled, in its session.
    Tracked,
    /// Into the mailbox, for an hour.
    Durable,
}

/// What a receipt says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// Of which push.
    pub number: u64,
    /// Nodes that have not said how many targets they have.
    pub routing: usize,
    /// Nodes that it has not reached.
    pub unreached: Vec<Missed>,
    /// How many targets stand where, by the names of the stages.
    pub stages: BTreeMap<String, usize>,
    /// Targets that may move on.
    pub open: usize,
    /// Whether a store has it.
    pub stored: Stored,
    /// Where it says that it has not, it may have it all the same.
    pub may_be_stored: bool,
    /// The push was refused, for this reason, and there is no receipt.
    pub refused: Option<String>,
}

impl Told {
    /// How many targets stand at this stage, such as `handled`.
    pub fn at(&self, stage: &str) -> usize {
        self.stages.get(stage).copied().unwrap_or(0)
    }

    /// How many targets there are.
    pub fn targets(&self) -> usize {
        self.stages.values().sum()
    }

    /// True if nothing will change any more.
    pub fn is_over(&self) -> bool {
        self.routing == 0 && self.open == 0 && self.stored != Stored::Waits
    }
}

/// A node that a push has not reached.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Missed {
    /// Which.
    pub node: String,
    /// Why, by the name of the reason, such as `NodeLost`.
    pub why: String,
    /// It may have it all the same.
    pub maybe: bool,
}

/// Whether a store has a push.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Stored {
    /// None is asked.
    Nowhere,
    /// It has not answered.
    Waits,
    /// It has it in so many logs, at this level.
    In(usize, String),
    /// Not in all, for this reason.
    Not(String),
}

/// How a call has ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum CallEnd {
    /// With this reply.
    Reply(u64),
    /// No client was called.
    NoClient(String),
    /// It may have run, or was not sent.
    Closed {
        /// It may have run.
        written: bool,
    },
    /// In any other way.
    Failed(String),
}

/// What became of a kick.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Kicked {
    /// Sessions that have ended.
    pub ended: usize,
    /// Nodes that have not answered.
    pub silent: Vec<String>,
}

/// A session, where it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionSeen {
    /// At which node.
    pub node: String,
    /// What that one knows.
    pub told: Explanation,
}

/// Who belongs to the cluster, as one node knows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Known {
    /// Itself; `None` while its lease has ended.
    pub me: Option<String>,
    /// The others, in order.
    pub others: Vec<String>,
}

/// What is under way at a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stats {
    /// Sessions here.
    pub sessions: usize,
    /// Pushes of this node that others answer for.
    pub pushes_out: usize,
    /// Pushes of others that this node answers for.
    pub pushes_here: usize,
    /// Calls of this node that others run.
    pub calls_out: usize,
    /// Calls of others that this node runs.
    pub calls_here: usize,
    /// Items that wait for other nodes.
    pub waiting: usize,
    /// Messages that wait for the logs of their topics.
    pub publishes_waiting: usize,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Drained {
    /// Sessions that went on elsewhere.
    pub handed_over: usize,
    /// Sessions that wait in the store.
    pub parked: usize,
    /// Sessions that have ended.
    pub left: usize,
    /// Requests whose handlers still ran, and calls without a reply.
    pub calls_unfinished: usize,
}
