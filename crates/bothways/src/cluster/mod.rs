//! Many nodes: servers that reach each other's clients, over an engine between them.
//!
//! | file | what it does |
//! |---|---|
//! | `engine.rs` | the seam: what a cluster needs of the system between its nodes |
//! | `memory.rs` | an engine for nodes of one process |
//! | `options.rs` | [`Cluster`], how a server belongs to one |
//! | `node.rs` | one node at work: its lease, a link to every other member, the mail of the others |
//! | `link.rs` | mail from one node to another: batches, one in flight, each run once; no I/O, no clock |
//! | `remote.rs` | pushes to sessions of other nodes, and their receipts; no I/O, no clock |
//! | `calls.rs` | calls to clients of other nodes: which are under way; no I/O, no clock |
//! | `calling.rs` | such calls at work |
//! | `doorbell.rs` | rings for what other nodes put into mailboxes |
//! | `topics.rs` | topics whose history the nodes share |
//! | `ask.rs` | questions that every node answers |
//! | `kicking.rs` | ends sessions: at every node, in the store, and where their node is gone |
//! | `kicks.rs` | who was kicked lately, and was on the way |
//! | `view.rs` | what a node shows of itself |
//! | `claim.rs` | who has a session whose client comes to another node; no I/O, no clock |
//! | `counted.rs` | whether the other members count this node as one |
//! | `bring.rs` | brings a session here whose client has come: claims at work |
//! | `moves.rs` | the sessions of a node in the register, and those that leave it or came lately |
//! | `offers.rs` | which other nodes a node that stops names to its clients; no I/O, no clock |
//! | `park.rs` | leaves sessions in the store whose node stops |
//! | `last.rs` | the last words of a node that stops: where sessions went, and who is told of their pushes from there on |
//! | `record.rs`, `snapshot.rs` | what the register has of a session, and a session as bytes |
//! | `mail.rs` | what nodes write to each other |
//! | `worlds.rs`, `worlds/` | searches all that can happen to these machines |
//!
//! `docs/cluster.md` in the repository says what is promised, and what becomes of it when something fails.

mod absent;
mod ask;
mod bring;
mod calling;
mod calls;
mod claim;
mod counted;
mod cuts;
mod doorbell;
pub mod engine;
mod kicking;
mod kicks;
mod last;
mod link;
mod mail;
#[cfg(feature = "cluster-memory")]
pub mod memory;
mod moves;
mod node;
mod offers;
mod options;
mod owned;
mod park;
mod record;
mod remote;
mod snapshot;
mod topics;
mod view;
#[cfg(test)]
mod worlds;

pub use self::{
    ask::{Answers, Explained},
    engine::{Engine, NodeId, Store},
    node::JoinError,
    options::Cluster,
    view::{ClusterStats, NodeView},
};
pub(crate) use self::{
    doorbell::Doorbell,
    node::Node,
    view::{Home, Load},
};
