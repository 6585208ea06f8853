//! A name for the peer of a socket, where the system has none.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The name of a peer that came or was found under the address of a listener.
#[derive(Clone, Debug)]
pub enum Peer {
    /// The listener itself, seen from a client.
    Listener(Arc<str>),
    /// A client of the listener. Clients are numbered in the order of their coming, from 1, over all
    /// listeners of this process.
    Client(Arc<str>, u64),
}

impl Peer {
    pub(super) fn next_client(listener: Arc<str>) -> Self {
        static CLIENTS: AtomicU64 = AtomicU64::new(1);
        Self::Client(listener, CLIENTS.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(address) => f.write_str(address),
            Self::Client(address, number) => write!(f, "{address}#{number}"),
        }
    }
}
