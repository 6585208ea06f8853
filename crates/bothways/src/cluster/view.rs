//! What a node shows of itself and of its cluster, and what it asks its server for.

use std::{sync::Arc, time::Duration};

use bothways_proto::SerializeType;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::node::{Card, Node};
use crate::{codec::Payload, reply::BoxFuture, session::NodeId};

/// The server that a node belongs to.
pub(crate) trait Home: Send + Sync {
    /// What it has, as the other nodes may show it. Cheap: asked each second.
    fn load(&self) -> Load;

    /// Answers a question of another node's server, in so many bytes at most. `None`: it is none.
    fn answer(self: Arc<Self>, question: Bytes, bytes_max: usize) -> BoxFuture<Option<Bytes>>;
}

/// How busy a server is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) version: String,
    pub(crate) is_draining: bool,
    pub(crate) sessions: usize,
    pub(crate) sessions_away: usize,
    pub(crate) connections: usize,
    pub(crate) calls_running: usize,
    pub(crate) outgoing_bytes: usize,
}

/// A node of the cluster, as it described itself a second ago. From [`Server::members`](crate::Server::members).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NodeView {
    /// Its number.
    pub node: NodeId,
    /// It is this server.
    pub is_here: bool,
    /// Its lease is not in the list, and nobody has buried it yet.
    pub is_missing: bool,
    /// For so long it has answered nothing that this node sent. `None` also while nothing was sent: it is not asked for this.
    pub silent: Option<Duration>,
    /// Where clients reach it, if it says so: its [`Cluster::address`](super::Cluster::address).
    pub address: Option<String>,
    /// Of its library.
    pub version: String,
    /// It stops, and takes nobody new.
    pub is_draining: bool,
    /// Since its process joined.
    pub up: Duration,
    /// As [`ServerStats`](crate::server::ServerStats) has it; so the next ones.
    pub sessions: usize,
    /// Those whose clients are away.
    pub sessions_away: usize,
    /// Connections that are open.
    pub connections: usize,
    /// Requests whose handlers run.
    pub calls_running: usize,
    /// Bytes that wait for clients to read them.
    pub outgoing_bytes: usize,
    /// Bytes of this node that wait for it.
    pub mail_bytes: usize,
}

/// What is under way between the nodes. From [`Server::cluster_stats`](crate::Server::cluster_stats).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Other members.
    pub members: usize,
    /// Pushes of this node that others answer for: some of their targets are not handled yet.
    pub pushes_out: usize,
    /// Pushes of others that this node answers for.
    pub pushes_here: usize,
    /// Items that wait for other nodes, and their bytes.
    pub waiting: usize,
    /// See [`Self::waiting`].
    pub waiting_bytes: usize,
    /// Calls of this node that other nodes run.
    pub calls_out: usize,
    /// The bytes of their arguments.
    pub call_bytes_out: usize,
    /// Calls of others that this node runs, or has not told the end of.
    pub calls_here: usize,
    /// The bytes of their arguments, or of what they ended with.
    pub call_bytes_here: usize,
    /// Messages of this node that wait for the logs of their topics.
    pub publishes_waiting: usize,
    /// Their bytes.
    pub publish_bytes_waiting: usize,
    /// Topics with history, and patterns of such, that this node follows.
    pub patterns_followed: usize,
}

impl NodeView {
    fn of(node: NodeId, card: Card) -> Self {
        let Card { address, load, up_ms, .. } = card;
        Self {
            node,
            is_here: false,
            is_missing: false,
            silent: None,
            address,
            version: load.version,
            is_draining: load.is_draining,
            up: Duration::from_millis(up_ms),
            sessions: load.sessions,
            sessions_away: load.sessions_away,
            connections: load.connections,
            calls_running: load.calls_running,
            outgoing_bytes: load.outgoing_bytes,
            mail_bytes: 0,
        }
    }
}

impl Node {
    /// All members, this node first.
    pub(crate) fn views(&self) -> Vec<NodeView> {
        let me = self.me();
        let here = me.map(|me| NodeView { is_here: true, ..NodeView::of(me, self.card_now()) });
        let listed = self.engine.members();
        let listed = listed.borrow();
        let state = self.state.lock();
        let others = state.members.iter().map(|(node, link)| {
            let card = listed.get(node).and_then(|member| read_card(&member.card));
            NodeView {
                is_missing: link.is_missing,
                silent: link.silent_since.map(|since| since.elapsed()),
                mail_bytes: link.out.waiting().1,
                ..NodeView::of(*node, card.unwrap_or_default())
            }
        });
        here.into_iter().chain(others).collect()
    }

    /// As [`Self::views`], after each member was asked whether it is there; and the nodes whose leases have ended lately.
    pub(crate) async fn views_asked(&self) -> Vec<NodeView> {
        let (silent, within) = self.ask_whether_there().await;
        let mut views = self.views();
        for view in &mut views {
            if silent.contains(&view.node) {
                view.silent = view.silent.max(Some(within));
            }
        }

        let absent = {
            let state = self.state.lock();
            state.absent.addresses(state.life.is_some(), Instant::now())
        };
        for (node, address) in absent {
            // Its lease may have ended after the list was made.
            views.retain(|view| view.node != node);
            views.push(NodeView { is_missing: true, address, ..NodeView::of(node, Card::default()) });
        }
        views
    }

    /// Cheap: no list is walked but that of the members.
    pub(crate) fn stats(&self) -> ClusterStats {
        let state = self.state.lock();
        let mut stats = ClusterStats { members: state.members.len(), ..state.counts() };
        for link in state.members.values() {
            let (items, bytes) = link.out.waiting();
            stats.waiting += items;
            stats.waiting_bytes += bytes;
        }
        state.calls.count(&mut stats);
        drop(state);
        self.topics.count(&mut stats);
        stats
    }
}

/// Of a newer version, it says what this one understands.
pub(super) fn read_card(card: &Bytes) -> Option<Card> {
    Card::decode(SerializeType::MSGPACK, card.clone()).ok()
}
