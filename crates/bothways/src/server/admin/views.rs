//! What operators ask and what they are shown, as it travels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{super::door::AdminRole, lists::PAGE_MAX, push::AdminPushOutcome};
use crate::session::{Event, Explanation, Held, PresenceStatus, SessionId};

/// One connection, as the admin service shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ConnectionView {
    /// Its number, such as `c12`.
    pub id: String,
    /// The client's address.
    pub peer: String,
    /// True if the client speaks more than rpcx.
    pub negotiated: bool,
    /// Pushes given to it.
    pub pushes_sent: u64,
    /// Pushes that wait for it.
    pub pushes_waiting: usize,
    /// Pushes that were queued and never left.
    pub pushes_dropped: u64,
    /// Its requests that run.
    pub calls_running: usize,
    /// True for the connection on which this was asked.
    pub is_asking: bool,
}

/// One session, as the admin service shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionView {
    /// Its public number.
    pub id: SessionId,
    /// The node that it is at, in a list of all nodes of a cluster.
    #[serde(default)]
    pub node: Option<String>,
    /// The user it is bound to.
    pub user: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its connection, such as `c12`; `None` while its client is away.
    pub connection: Option<String>,
    /// The address of its client.
    #[serde(default)]
    pub peer: Option<String>,
    /// How many connections it has had.
    pub generation: u64,
    /// True if the client may come back to this session.
    pub resumable: bool,
    /// Pushes that wait, or are not handled yet.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// The oldest push that its client has received, and not handled.
    #[serde(default)]
    pub held: Option<Held>,
    /// Pushes that were dropped since it began.
    pub dropped: u64,
    /// What it subscribes to.
    pub subscriptions: Vec<String>,
    /// The methods that its client handles, each as `Path.method`; `None`: it has not said.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
}

/// Which sessions an operator wants listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionsAsked {
    /// Whose.
    pub target: PushTarget,
    /// Of everyone, only those whose user's name begins so.
    #[serde(default)]
    pub user_prefix: String,
    /// At most so many; 1,000 at most, and 1 MiB.
    pub max: usize,
    /// Only those after this one, which is the last of the page before. The list ends with an empty page.
    #[serde(default)]
    pub after: Option<SessionPlace>,
    /// Of all nodes: those that have not answered a page before, as it named them. They are not asked again, and named
    /// again: one page waits for them, and not each. Empty for the first page; 1,024 at most.
    #[serde(default)]
    pub silent: Vec<SilentNode>,
}

/// The place of a session in the list: by user, then by number.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionPlace {
    /// Its user.
    pub user: Option<String>,
    /// Its public number.
    pub id: SessionId,
}

/// Which connections an operator wants listed, oldest first. Without it, the first 1,000.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Page {
    /// Only those after this one, such as `c12`, which is the last of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many; 1,000 at most.
    pub max: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { after: None, max: PAGE_MAX }
    }
}

/// The sessions that an operator asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionsListed {
    /// How many there are.
    pub total: usize,
    /// A page of them, by user and number.
    pub sessions: Vec<SessionView>,
    /// Nodes that have not answered: what they have is not in it.
    #[serde(default)]
    pub silent: Vec<SilentNode>,
}

/// A node that has not answered a question to all.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SilentNode {
    /// Its number, 16 hexadecimal digits.
    pub node: String,
    /// Why.
    pub why: String,
}

/// A node of the cluster, as it described itself a second ago; a server alone is the only one.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct AdminNode {
    /// Its number, 16 hexadecimal digits; empty for a server alone, and for one whose own lease has ended.
    pub node: String,
    /// It is the server that was asked.
    pub is_here: bool,
    /// `up`, `draining`, `silent` (it was asked, and has not answered within 3 s) or `gone` (its lease has ended: shown for
    /// 30 s, unless it is a member again before).
    pub state: String,
    /// For so many milliseconds it has answered nothing.
    pub silent_ms: Option<u64>,
    /// Where clients reach it, if it says so.
    pub address: Option<String>,
    /// Of its library.
    pub version: String,
    /// Milliseconds since its process joined; of a server alone, since it was built.
    pub up_ms: u64,
    /// As [`ServerStats`](super::super::ServerStats) has it; so the next ones.
    pub connections: usize,
    /// Sessions that live.
    pub sessions: usize,
    /// Those whose clients are away.
    pub sessions_away: usize,
    /// Requests whose handlers run.
    pub calls_running: usize,
    /// Bytes that wait for clients to read them.
    pub outgoing_bytes: usize,
    /// Bytes that wait at the server that was asked for this node.
    pub mail_bytes: usize,
}

/// The stories of sessions of all nodes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct AdminExplained {
    /// Each with the node it was told by.
    pub explained: Vec<(String, Explanation)>,
    /// Further sessions, for which there was no room.
    pub left_out: usize,
    /// Nodes that have not answered.
    pub silent: Vec<SilentNode>,
}

/// How many sessions of all nodes were ended.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct AdminKicked {
    /// So many.
    pub ended: usize,
    /// Of these, so many at each node that has answered; empty for a server alone.
    pub by_node: Vec<(String, usize)>,
    /// Nodes that have not answered.
    pub silent: Vec<SilentNode>,
}

/// Sessions that an operator sends away.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminKick {
    /// Whose.
    pub target: PushTarget,
    /// The reason that their clients get.
    pub why: String,
}

/// Which sessions are meant: those to push to, to list, to explain, to end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushTarget {
    /// Every session except for that of the operator who asks.
    Everyone,
    /// The session whose connection has this number, such as `c12`.
    Connection(String),
    /// The session of this number, 32 hexadecimal digits.
    Session(String),
    /// All sessions of this user.
    User(String),
    /// All sessions that subscribe to this topic. A push to it is published, and kept in its history.
    Topic(String),
}

impl std::fmt::Display for PushTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everyone => f.write_str("everyone"),
            Self::Connection(id) => write!(f, "connection {id}"),
            Self::Session(id) => write!(f, "session {id}"),
            Self::User(name) => write!(f, "user {name}"),
            Self::Topic(name) => write!(f, "topic {name}"),
        }
    }
}

/// Who asks, as the server sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OperatorView {
    /// The name that the server has for this token.
    pub name: String,
    /// What the token allows.
    pub role: AdminRole,
    /// The version of the server's library.
    pub server_version: String,
    /// The number of the server's node, 16 hexadecimal digits; `None`: it is in no cluster, or joins one just now.
    #[serde(default)]
    pub node: Option<String>,
    /// The server is in a cluster.
    #[serde(default)]
    pub is_node: bool,
    /// The server has mailboxes: a store for durable pushes.
    #[serde(default)]
    pub has_mail: bool,
}

/// A server's counters at one moment, for an operator.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdminStats {
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: u64,
    /// Milliseconds since the server was built.
    pub up_ms: u64,
    /// True once a shutdown or a drain has begun.
    pub is_stopping: bool,
    /// As [`ServerStats`](super::super::ServerStats) has it; so the next ones.
    pub connections: usize,
    /// Sessions that live.
    pub sessions: usize,
    /// Those whose clients are away.
    pub sessions_away: usize,
    /// Requests whose handlers run.
    pub calls_running: usize,
    /// Bytes that wait for clients to read them.
    pub outgoing_bytes: usize,
    /// Bytes of memory that the process keeps; `None` where the system does not say.
    pub memory_bytes: Option<u64>,
    /// What only grows, by name. Names may be added.
    pub counters: BTreeMap<String, u64>,
}

/// A look at the feed of events. The server keeps events while somebody looks, and for 30 s after the last look.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EventsAsked {
    /// Where the last look ended ([`EventsListed::next`]); `None`: begin now.
    #[serde(default)]
    pub from: Option<u64>,
    /// At most so many; 200 at most.
    pub max: usize,
}

/// Events of all sessions, oldest first: connections, users, subscriptions, ends. Pushes and calls are not among them;
/// the story of their session has those.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EventsListed {
    /// Where the next look begins.
    pub next: u64,
    /// Events before these that are not kept any more: 1,024 are.
    pub missed: u64,
    /// The events.
    pub events: Vec<EventView>,
}

/// One event of the feed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EventView {
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: u64,
    /// Whose it is.
    pub session: SessionId,
    /// The user of that session, now or last.
    pub user: Option<String>,
    /// The event in words, on one line.
    pub text: String,
    /// The event.
    pub event: Event,
}

/// Which topics and patterns an operator wants listed, by name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TopicsAsked {
    /// Only those whose names begin so.
    #[serde(default)]
    pub prefix: String,
    /// Only those after this one, which is the last of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many; 1,000 at most.
    pub max: usize,
}

/// A page of topics.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TopicsListed {
    /// How many there are of that prefix.
    pub total: usize,
    /// A page of them, by name.
    pub topics: Vec<TopicView>,
}

/// A topic, or a pattern of several.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TopicView {
    /// Its name.
    pub name: String,
    /// Sessions that subscribe to exactly this.
    pub subscribers: usize,
    /// Of a topic with history: the offset of its newest message.
    pub newest: Option<u64>,
    /// Of a topic with presence: its members.
    pub members: Option<usize>,
}

/// Of which topic an operator wants to see the members.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MembersAsked {
    /// Its name.
    pub topic: String,
    /// At most so many; 1,000 at most.
    pub max: usize,
}

/// The members of a topic with presence.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MembersListed {
    /// True if there are more than these.
    pub more: bool,
    /// Each: the user, or the session without one, and `online` or `reconnecting`.
    pub members: Vec<(String, PresenceStatus)>,
}

/// A drain that an operator begins: see [`Server::drain`](crate::Server::drain).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminDrain {
    /// The longest that it may take, in milliseconds; one hour at most.
    pub deadline_ms: u64,
    /// Clients that may come back in a second.
    pub reconnects_per_second: u32,
}

/// Which entries of the audit an operator wants to see, newest first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditAsked {
    /// Only those before this one, which is the last of the page before.
    #[serde(default)]
    pub before: Option<u64>,
    /// At most so many; 200 at most.
    pub max: usize,
}

/// What an operator did, or was refused. The server keeps the last 1,000 and, apart from those, 200 refusals.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number; they count from 1.
    pub number: u64,
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: u64,
    /// Who; empty: not known.
    pub operator: String,
    /// From where.
    pub peer: String,
    /// `push`, `kick`, `drain` or `refused`.
    pub act: String,
    /// To whom, such as `user ann`.
    pub target: String,
    /// What, such as the name of the push, or why.
    pub detail: String,
    /// How many sessions it was for.
    pub sessions: usize,
}

/// A look at how far a push has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReceiptAsked {
    /// Its number, from [`PushReceipt::number`].
    pub number: u64,
    /// Return when it is not so any more,
    #[serde(default)]
    pub seen: Option<AdminPushOutcome>,
    /// but after so many milliseconds at the latest; 10,000 at most.
    #[serde(default)]
    pub wait_ms: u64,
}

/// How far a push of an operator has come. The server keeps the last 64 of these.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PushReceipt {
    /// Its number.
    pub number: u64,
    /// How many sessions are where.
    pub outcome: AdminPushOutcome,
    /// Nodes of the cluster that it has not reached, as far as is known.
    #[serde(default)]
    pub unreached: Vec<SilentNode>,
    /// True once nothing of this can change.
    pub is_final: bool,
}
