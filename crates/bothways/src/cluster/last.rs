//! The last words of a node that stops: where the sessions went that pushes of others were for.
//!
//! ```text
//!  origin ◄── "7 stands so" ── one, which has the session ──► the other one takes it, or the store
//!  origin ◄── last word: "7 has gone on as (one, 9), there" ── one, which stops
//!  origin ◄── "(one, 9) stands so" ─────────────────────────── the other one, once it has lost that node
//! ```
//!
//! While a node lives to which a session came, the node that has it now tells that one, which tells the origin. Each push
//! that goes along says who comes behind: when the node that is told is gone, the next one of these is told that lives,
//! under the name that the node gave which is gone. So a receipt follows a session over a rolling restart.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    engine::NodeId,
    mail::{Answer, GoneOn, ITEM_BYTES, Item, LastWord, Standing},
    node::{BATCH_OVERHEAD, Node, Queued, State},
    remote::{Name, Owed, Part, State as _},
};
use crate::{
    clock::later,
    session::{Counts, Receipt},
};

/// How long a node waits for a session to be taken out of the store, beyond the time that the session has there.
const SLACK: Duration = Duration::from_secs(10);
/// How long it waits at most.
const IN_STORE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a node that has the session, and is no member yet as far as this node sees, may take to say so.
const NOT_SEEN_MAX: Duration = Duration::from_secs(20);
/// What a part takes in a last word.
const PART_BYTES: usize = 64;
/// Most nodes that come behind one another.
const CHAIN_MAX: usize = 8;

/// A push whose session has gone on, as it stands.
struct Left {
    debt: Name,
    gone: GoneOn,
    stage: usize,
}

impl Node {
    /// Who hears of a push with this name: the one that it is owed to, then those behind it.
    pub(super) fn chain_of(&self, debt: Option<Name>) -> Vec<NodeId> {
        let Some(debt) = debt.filter(|(node, _)| self.me() != Some(*node)) else { return Vec::new() };
        let state = self.state.lock();
        let of_node = state.owed.get(&debt.0).and_then(|owed| owed.behind(debt.1)).map(|behind| (debt.0, behind));
        let of_part = || state.parts_owed.iter().find_map(|(to, owed)| Some((*to, owed.behind(debt)?)));
        let mut chain = match of_node.or_else(of_part) {
            Some((first, behind)) => [&[first], behind].concat(),
            // It is owed in a moment.
            None => vec![debt.0],
        };
        chain.truncate(CHAIN_MAX);
        chain
    }

    /// The first of these that lives, and those behind it.
    fn living<'a>(&self, state: &State, chain: &'a [NodeId]) -> Option<(NodeId, &'a [NodeId])> {
        let me = state.me();
        let lives = |node: &NodeId| me == Some(*node) || state.members.contains_key(node);
        let at = chain.iter().position(lives)?;
        Some((chain[at], &chain[at + 1..]))
    }

    /// True if anybody hears of what came from this node with a session.
    pub(super) fn is_followed(&self, giver: NodeId, behind: &[NodeId]) -> bool {
        let state = self.state.lock();
        self.living(&state, &[&[giver], behind].concat()).is_some()
    }

    /// Pushes that came from this node with their session: those who hear of them do from here on.
    pub(super) fn owe_all<'a>(&self, giver: NodeId, receipts: &[(u64, Receipt)], behind: &dyn Fn(u64) -> &'a [NodeId]) {
        let mut state = self.state.lock();
        for (number, receipt) in receipts {
            let (changes, outcomes) = receipt.standing();
            let standing = Standing { changes, counts: Counts::from(&outcomes) };
            let chain = [&[giver], behind(*number)].concat();
            self.owe_first(&mut state, (giver, *number), standing, &chain);
        }
        drop(state);
        self.settle();
    }

    /// The first of these that lives hears of a push with this name from here on.
    fn owe_first(&self, state: &mut State, name: Name, standing: Standing, chain: &[NodeId]) {
        let Some((to, behind)) = self.living(state, chain) else { return };
        let behind = behind.to_vec();
        if state.me() == Some(to) {
            let moved = state.origin.part_told(name, to, standing);
            return state.note(moved.into_iter().collect());
        }
        state.owing += 1;
        if to == name.0 {
            state.owed.entry(to).or_insert_with(Owed::new).came(name.1, standing, behind);
        } else {
            state.parts_owed.entry(to).or_insert_with(Owed::new).came(name, standing, behind);
        }
        if let Some(link) = state.members.get(&to) {
            link.wake.notify_one();
        }
    }

    /// What was owed to a node that is gone goes to those behind it.
    pub(super) fn owe_behind(&self, state: &mut State, gone: NodeId) {
        let own = state.owed.remove(&gone).map(|owed| (owed.len(), owed.into_rest()));
        let parts = state.parts_owed.remove(&gone).map(|owed| (owed.len(), owed.into_rest()));
        let (owned, own) = own.unwrap_or_default();
        let (of_parts, parts) = parts.unwrap_or_default();
        state.owing = state.owing.saturating_sub(owned + of_parts);
        let own = own.into_iter().map(|(number, standing, behind)| ((gone, number), standing, behind));
        for (name, standing, behind) in own.chain(parts) {
            self.owe_first(state, name, standing, &behind);
        }
    }

    /// A push that came with a session stands elsewhere now, and the node it came from is gone. True if another one is to
    /// be told.
    pub(super) fn part_changed(state: &mut State, name: Name, standing: Standing) -> bool {
        if let Some(me) = state.me()
            && state.origin.has_part(name)
        {
            let moved = state.origin.part_told(name, me, standing);
            state.note(moved.into_iter().collect());
            return true;
        }
        for (to, owed) in &mut state.parts_owed {
            if owed.changed(name, standing) {
                if let Some(link) = state.members.get(to) {
                    link.wake.notify_one();
                }
                return true;
            }
        }
        false
    }

    /// Says of every push of others whose session has gone on where that is: nothing more is heard of it here.
    pub(super) fn say_last_words(&self) {
        let now = Instant::now();
        let left = self.moves.say_last(|number, following| {
            let (debt, stage) = (following.debt?, following.relay.as_ref()?.stage());
            let counts = Counts::of_pairs(&[(stage, 1)]);
            let part = Part { at: following.node, state: Standing { changes: following.changes, counts } };
            let left = following.until.map_or(0, |until| until.saturating_duration_since(now).as_millis() as u64);
            Some(Left { debt, gone: GoneOn { number, part, left }, stage: usize::from(stage) })
        });
        let mut words: BTreeMap<Name, Vec<Left>> = BTreeMap::new();
        for left in left {
            words.entry(left.debt).or_default().push(left);
        }
        let most = self.batch_bytes_max().saturating_sub(BATCH_OVERHEAD);
        let mut state = self.state.lock();
        let mut said: BTreeMap<NodeId, Vec<LastWord>> = BTreeMap::new();
        for (name, left) in words {
            let Some((to, word)) = state.last_word(name, left, most) else { continue };
            said.entry(to).or_default().push(word);
        }
        for (to, words) in said {
            let Some(link) = state.members.get_mut(&to) else { continue };
            let mut words = words.into_iter().peekable();
            while words.peek().is_some() {
                let (mut some, mut bytes) = (Vec::new(), 0);
                while let Some(word) = words.next_if(|word| some.is_empty() || bytes + size_of(word) <= most) {
                    bytes += size_of(&word);
                    some.push(word);
                }
                // What has no room is unknown.
                let _ = link.out.offer(Queued::now(Item::Left(some)), bytes);
            }
            link.wake.notify_one();
        }
    }

    /// A node that stops says where pushes of this node have gone on, or pushes of which it has told this node.
    pub(super) fn hear_last_words(&self, from: NodeId, words: Vec<LastWord>) -> Answer {
        let mut state = self.state.lock();
        let Some(me) = state.me() else { return Answer::NotHeard };
        let (now, mut moved) = (Instant::now(), Vec::new());
        for LastWord { name, rest, mut parts } in words {
            for gone in &mut parts {
                // It is gone already, or is not seen here yet: then it says so itself.
                let is_there = |node: &NodeId| *node == me || state.members.contains_key(node);
                if gone.part.at.is_some_and(|node| !is_there(&node)) {
                    (gone.part.at, gone.left) = (None, NOT_SEEN_MAX.as_millis() as u64);
                }
            }
            for gone in parts.iter().filter(|gone| gone.part.at.is_none()) {
                let wait = Duration::from_millis(gone.left).saturating_add(SLACK).min(IN_STORE_MAX);
                state.overdue.insert((later(now, wait), (from, gone.number)));
            }
            if name.0 == me && !Self::is_relay(name.1) {
                let parts = parts.into_iter().map(|gone| ((from, gone.number), gone.part));
                moved.extend(state.origin.left(name.1, from, rest, parts));
                continue;
            }
            // One that came with its session has one target.
            let Some(GoneOn { number, part, .. }) = parts.into_iter().next() else { continue };
            let to = (from, number);
            let relay = if name.0 == me { Some(name.1) } else { self.moves.alias(name) };
            match relay {
                Some(relay) => self.moves.gone_on(relay, from, to, part.at),
                None => moved.extend(state.origin.part_left(name, from, to, part)),
            }
        }
        state.note(moved);
        drop(state);
        self.settle();
        Answer::Heard
    }

    /// A node that has sessions of such parts says how these stand.
    pub(super) fn hear_parts(&self, from: NodeId, states: Vec<(Name, Standing)>) -> Answer {
        if self.moves.has_said_last() {
            return Answer::NotHeard;
        }
        let mut relayed = Vec::new();
        {
            let mut state = self.state.lock();
            let mut moved = Vec::new();
            for (name, standing) in states {
                if state.origin.has_part(name) {
                    moved.extend(state.origin.part_told(name, from, standing));
                } else if let Some(relay) = self.moves.alias(name) {
                    relayed.push((relay, standing));
                }
            }
            state.note(moved);
        }
        self.settle();
        relayed.iter().for_each(|(relay, standing)| self.moves.told(*relay, from, standing));
        Answer::Heard
    }

    /// How these parts stand here, as another node asks.
    pub(super) fn know_parts(&self, from: NodeId, names: Vec<Name>) -> Answer {
        let mut state = self.state.lock();
        let State { owed, parts_owed, .. } = &mut *state;
        let has_gone = |name: &Name| owed.get(&name.0).is_some_and(|owed| owed.have_gone([name.1].iter()));
        if names.iter().any(has_gone) || parts_owed.get(&from).is_some_and(|owed| owed.have_gone(names.iter())) {
            return Answer::NotHeard;
        }
        let known = names.into_iter().map(|name| {
            // While the node lives that has given the name, that one is told.
            let of_node = owed.get(&name.0).and_then(|owed| owed.state(name.1)).copied();
            of_node.or_else(|| parts_owed.get_mut(&from)?.asked(name))
        });
        Answer::Known(known.collect())
    }

    /// What nobody has taken out of the store in its time is unknown.
    pub(super) fn end_overdue(&self) {
        let now = Instant::now();
        let mut relays = Vec::new();
        {
            let mut state = self.state.lock();
            let mut moved = Vec::new();
            while let Some((at, name)) = state.overdue.first().copied()
                && at <= now
            {
                state.overdue.pop_first();
                moved.extend(state.origin.part_overdue(name));
                relays.extend(self.moves.alias(name));
            }
            state.note(moved);
        }
        self.settle();
        relays.into_iter().for_each(|relay| self.moves.forget_in_store(relay));
    }
}

impl State {
    /// What is said last of a push with this name, and to whom.
    fn last_word(&mut self, name: Name, left: Vec<Left>, bytes_max: usize) -> Option<(NodeId, LastWord)> {
        let own = self.owed.get(&name.0).and_then(|owed| owed.state(name.1)).map(|standing| (name.0, *standing));
        let of_part = || self.parts_owed.iter().find_map(|(to, owed)| Some((*to, *owed.state(name)?)));
        let (to, Standing { mut counts, .. }) = own.or_else(of_part)?;
        let mut parts = Vec::new();
        for Left { gone, stage, .. } in left.into_iter().take(bytes_max / PART_BYTES) {
            // Of one that goes further at this moment nobody knows more.
            if let Some(count) = counts.0.get_mut(stage).filter(|count| 0 < **count) {
                *count -= 1;
                parts.push(gone);
            }
        }
        match self.owed.get_mut(&name.0).filter(|_| to == name.0) {
            Some(owed) => owed.said_last(name.1),
            None => self.parts_owed.get_mut(&to)?.said_last(name),
        }
        self.owing = self.owing.saturating_sub(1);
        let rest = Standing { changes: u64::MAX, counts }.to_unknown();
        Some((to, LastWord { name, rest, parts }))
    }
}

fn size_of(word: &LastWord) -> usize {
    ITEM_BYTES + word.parts.len() * PART_BYTES
}
