//! Which other nodes a node that stops names to its clients. No I/O, no clock.
//!
//! Those with the fewest sessions first, by their cards. A card is a second old: whom this node has sent somewhere since
//! counts too, or all clients of one second would go to the same node.

use std::collections::HashMap;

use super::engine::NodeId;

/// How many other nodes a client hears of.
const NODES_MAX: usize = 3;
/// How many addresses of each.
pub(super) const ADDRESSES_MAX: usize = 4;
/// Most bytes of one address; a longer one is left out.
const ADDRESS_BYTES_MAX: usize = 255;

/// A node that takes clients, as its card says.
pub(super) struct Taker {
    pub(super) node: NodeId,
    /// Which of its cards it is: it grows.
    pub(super) card: u64,
    pub(super) sessions: usize,
    pub(super) addresses: Vec<String>,
}

/// Whom this node has sent where.
#[derive(Default)]
pub(super) struct Offers {
    sent: HashMap<NodeId, Sent>,
}

#[derive(Default)]
struct Sent {
    card: u64,
    clients: usize,
}

impl Offers {
    /// What one client is told: addresses, the best first, separated by blanks. `None`: there is no such node.
    pub(super) fn choose(&mut self, mut takers: Vec<Taker>) -> Option<String> {
        for taker in &mut takers {
            taker.addresses.retain(|address| is_sayable(address));
            taker.addresses.truncate(ADDRESSES_MAX);
        }
        takers.retain(|taker| !taker.addresses.is_empty());
        self.sent.retain(|node, _| takers.iter().any(|taker| taker.node == *node));
        for taker in &takers {
            let sent = self.sent.entry(taker.node).or_default();
            if sent.card != taker.card {
                *sent = Sent { card: taker.card, clients: 0 };
            }
        }

        let load = |taker: &Taker| taker.sessions + self.sent.get(&taker.node).map_or(0, |sent| sent.clients);
        takers.sort_by_key(|taker| (load(taker), taker.node));
        takers.truncate(NODES_MAX);
        if let Some(sent) = takers.first().and_then(|best| self.sent.get_mut(&best.node)) {
            sent.clients += 1;
        }
        let addresses: Vec<String> = takers.into_iter().flat_map(|taker| taker.addresses).collect();
        (!addresses.is_empty()).then(|| addresses.join(" "))
    }
}

/// Addresses are separated by blanks.
fn is_sayable(address: &str) -> bool {
    let has_gap = address.contains(|c: char| c.is_whitespace() || c.is_control());
    !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX && !has_gap
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taker(node: u64, card: u64, sessions: usize) -> Taker {
        Taker { node: NodeId(node), card, sessions, addresses: vec![format!("tcp@n{node}:1")] }
    }

    /// The fewest first, and three at most; whom it has sent there counts until the node has counted for itself.
    #[test]
    fn the_node_with_the_fewest_sessions_comes_first() {
        let mut offers = Offers::default();
        let takers = |card| vec![taker(1, card, 9), taker(2, card, 1), taker(3, card, 2), taker(4, card, 30)];
        let mut firsts = Vec::new();
        for _ in 0..4 {
            let said = offers.choose(takers(1)).expect("four take");
            assert_eq!(said.split(' ').count(), 3, "{said}");
            assert!(!said.contains("n4"), "{said}");
            firsts.push(said.split(' ').next().expect("one").to_owned());
        }
        assert_eq!(firsts, ["tcp@n2:1", "tcp@n2:1", "tcp@n3:1", "tcp@n2:1"]);
        assert!(offers.choose(takers(2)).expect("four take").starts_with("tcp@n2:1 tcp@n3:1"), "of new cards");
        assert_eq!(offers.choose(Vec::new()), None);
    }

    #[test]
    fn what_cannot_be_said_is_left_out() {
        let mut one = taker(1, 1, 0);
        let long = "x".repeat(256);
        one.addresses =
            ["", "unix@/a b", &long, "tcp@a:1", "ws@a:2", "tcp@a:3", "tcp@a:4", "tcp@a:5"].map(str::to_owned).into();
        assert_eq!(Offers::default().choose(vec![one]).as_deref(), Some("tcp@a:1 ws@a:2 tcp@a:3 tcp@a:4"));
        let mut none = taker(2, 1, 0);
        none.addresses.clear();
        assert_eq!(Offers::default().choose(vec![none]), None);
    }
}
