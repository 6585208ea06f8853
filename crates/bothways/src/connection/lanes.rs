//! The lanes in which frames wait while the socket is full, and which lane is next.
//!
//! Control frames are first. The other lanes share what the socket takes, by weight in bytes:
//!
//! | lane | weight | waits in it |
//! |---|---:|---|
//! | replies | 8 | replies of handlers |
//! | calls | 4 | a server's calls |
//! | pushes | 4 | pushes, the replies of handlers that pushed first, and a client's calls |
//!
//! A client's calls and pushes leave in the order in which they were made: they share a lane, with the weight of
//! both. A lane that is alone has everything.

use std::collections::VecDeque;

use bytes::Bytes;

use super::outgoing::ENTRY_BYTES;

/// What a frame is, for the order in which frames leave and for what may be dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    /// Heartbeats and their answers, refusals, goodbyes.
    Control,
    /// Replies of handlers.
    Reply,
    /// Calls that wait for a reply. A client's go with its pushes, in order.
    Call,
    /// Requests that want no reply.
    Push,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) lane: Lane,
    /// Its bytes are this connection's alone, and not a push that was encoded for many.
    pub(super) owned: bool,
    /// Of a call its number, of anything else that of the last call before it: within a lane these numbers
    /// never fall.
    pub(super) call: u64,
    /// Of a push its number, likewise.
    pub(super) push: u64,
    /// A session has given this push away, and says by its receipt whether it has left: it is never dropped.
    pub(super) owed: bool,
    pub(super) head: Bytes,
    /// A shared payload after the head.
    pub(super) body: Bytes,
}

impl Entry {
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// What it holds of the room that all connections share.
    pub(super) fn cost(&self) -> usize {
        if self.owned { ENTRY_BYTES + self.len() } else { 0 }
    }
}

/// How many frames of one kind wait, and their bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Waiting {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

/// Bytes that a turn is worth, for each unit of weight.
const TURN_BYTES: i64 = 2 << 10;

/// Weights of replies, calls and pushes, for a server and for a client.
const WEIGHTS: [[i64; 3]; 2] = [[8, 4, 4], [8, 0, 8]];

/// The places of the lanes among those that share.
const REPLIES: usize = 0;
const CALLS: usize = 1;
const PUSHES: usize = 2;

/// One lane among those that share what the socket takes.
#[derive(Debug, Default)]
struct Share {
    entries: VecDeque<Entry>,
    /// Bytes that it may send in this turn. Below zero after a frame that was larger: it waits until the others
    /// have had as much, by weight.
    credit: i64,
}

impl Share {
    /// A call that was given up leaves an empty entry, to keep the place of those after it; at either end it goes.
    fn trim(&mut self) {
        while self.entries.pop_front_if(|entry| entry.len() == 0).is_some() {}
        while self.entries.pop_back_if(|entry| entry.len() == 0).is_some() {}
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.trim();
        Some(entry)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lanes {
    control: VecDeque<Entry>,
    shares: [Share; 3],
    weights: &'static [i64; 3],
    /// Whose turn it is. After that of pushes comes that of replies, and so it is at first.
    turn: usize,
    /// By kind, wherever they wait.
    waiting: [Waiting; 4],
    /// What of it counts for all connections together.
    cost: usize,
    /// Replies, by number, that wait for what a session keeps of the pushes of their handlers. They count as replies
    /// that wait.
    held: VecDeque<(u64, Entry)>,
    /// Payloads of pushes that were dropped, until the lock is free: they may be an application's own.
    dropped: Vec<Bytes>,
}

impl Lanes {
    /// `in_order`: calls leave in the order in which they and the pushes were made.
    pub(super) fn new(in_order: bool) -> Self {
        let weights = &WEIGHTS[usize::from(in_order)];
        Self {
            control: VecDeque::new(),
            shares: Default::default(),
            weights,
            turn: PUSHES,
            waiting: Default::default(),
            cost: 0,
            held: VecDeque::new(),
            dropped: Vec::new(),
        }
    }

    /// Keeps this until [`Self::take_dropped`].
    pub(super) fn drop_later(&mut self, entry: Entry) {
        self.dropped.extend([entry.head, entry.body].into_iter().filter(|part| !part.is_empty()));
    }

    pub(super) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// What is to be dropped once the lock is free.
    pub(super) fn take_dropped(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.dropped)
    }

    /// True if nothing waits for the socket. What is held waits for something else.
    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.shares.iter().all(|share| share.entries.is_empty())
    }

    /// What waits of this kind.
    pub(super) fn waiting(&self, lane: Lane) -> Waiting {
        self.waiting[lane as usize]
    }

    /// What of it counts for all connections together.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.count_in(&entry);
        match self.place(entry.lane) {
            None => self.control.push_back(entry),
            Some(place) => self.shares[place].entries.push_back(entry),
        }
    }

    /// Keeps a reply back under this number until [`Self::release`].
    pub(super) fn hold(&mut self, number: u64, entry: Entry) {
        self.count_in(&entry);
        self.held.push_back((number, entry));
    }

    /// True if a reply is kept back.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// The oldest reply that is kept back, or the one of this number.
    pub(super) fn release(&mut self, number: Option<u64>) -> Option<Entry> {
        let at = self.held.iter().position(|(held, _)| number.is_none_or(|number| number == *held))?;
        let (_, entry) = self.held.remove(at)?;
        self.count_out(&entry);
        Some(entry)
    }

    /// What leaves next.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = match self.control.pop_front() {
            Some(entry) => entry,
            None => self.pop_by_weight()?,
        };
        self.count_out(&entry);
        Some(entry)
    }

    /// Takes out the call of this number.
    pub(super) fn forget_call(&mut self, number: u64) -> Option<Entry> {
        let share = &mut self.shares[self.place(Lane::Call)?];
        let at = share.entries.partition_point(|entry| entry.call < number);
        let entry = share.entries.get_mut(at)?;
        if entry.lane != Lane::Call || entry.call != number || entry.len() == 0 {
            return None;
        }
        let (head, body) = (std::mem::take(&mut entry.head), std::mem::take(&mut entry.body));
        let forgotten =
            Entry { lane: Lane::Call, owned: entry.owned, call: number, push: entry.push, owed: false, head, body };
        share.trim();
        self.count_out(&forgotten);
        Some(forgotten)
    }

    /// The pushes that wait, each with its head and its body.
    pub(super) fn into_pushes(self) -> impl Iterator<Item = (Bytes, Bytes)> {
        let [_, _, pushes] = self.shares;
        let pushes = pushes.entries.into_iter().filter(|entry| entry.lane == Lane::Push);
        pushes.map(|entry| (entry.head, entry.body))
    }

    /// Pushes that wait and that are no session's.
    pub(super) fn lost_pushes(&self) -> u64 {
        let pushes = self.shares[PUSHES].entries.iter();
        pushes.filter(|entry| entry.lane == Lane::Push && !entry.owed).count() as u64
    }

    /// Takes out the pushes that wait, except the last ones: so many. `None`: there are no others.
    pub(super) fn take_pushes(&mut self, except: usize) -> Option<Self> {
        let count = self.waiting(Lane::Push).frames.checked_sub(except).filter(|count| *count != 0)?;
        let mut taken = Self { weights: self.weights, ..Self::new(false) };
        while taken.waiting(Lane::Push).frames < count {
            let share = &mut self.shares[PUSHES];
            let at = share.entries.iter().position(|entry| entry.lane == Lane::Push)?;
            let entry = share.entries.remove(at)?;
            share.trim();
            self.count_out(&entry);
            taken.push(entry);
        }
        Some(taken)
    }

    /// Takes out the push that waits longest, of those that may be dropped.
    pub(super) fn drop_oldest_push(&mut self) -> Option<Entry> {
        let share = &mut self.shares[PUSHES];
        let at = share.entries.iter().position(|entry| entry.lane == Lane::Push && !entry.owed)?;
        let dropped = share.entries.remove(at)?;
        share.trim();
        self.count_out(&dropped);
        Some(dropped)
    }

    /// Moves the reply that was just added after the pushes that wait: its handler pushed first.
    pub(super) fn last_reply_behind_pushes(&mut self) {
        let [replies, _, pushes] = &mut self.shares;
        if pushes.entries.is_empty() {
            return;
        }
        if let Some(entry) = replies.entries.pop_back_if(|entry| entry.lane == Lane::Reply) {
            pushes.entries.push_back(entry);
        }
    }

    /// Where frames of this kind wait; `None`: with the control frames.
    fn place(&self, lane: Lane) -> Option<usize> {
        match lane {
            Lane::Control => None,
            Lane::Reply => Some(REPLIES),
            Lane::Call if self.weights[CALLS] == 0 => Some(PUSHES),
            Lane::Call => Some(CALLS),
            Lane::Push => Some(PUSHES),
        }
    }

    fn pop_by_weight(&mut self) -> Option<Entry> {
        let mut waiting = self.shares.iter_mut().filter(|share| !share.entries.is_empty());
        let first = waiting.next()?;
        if waiting.next().is_none() {
            // Alone it owes nobody.
            first.credit = 0;
            return first.pop();
        }

        loop {
            let share = &mut self.shares[self.turn];
            if share.entries.is_empty() {
                // A lane with nothing to send saves nothing up.
                share.credit = share.credit.min(0);
            } else if 0 < share.credit {
                let entry = share.pop()?;
                share.credit -= entry.len() as i64;
                return Some(entry);
            }

            // Its credit is used up, or nothing waits in it: the next lane has its turn.
            self.turn = (self.turn + 1) % self.shares.len();
            self.shares[self.turn].credit += self.weights[self.turn] * TURN_BYTES;
        }
    }

    fn count_in(&mut self, entry: &Entry) {
        self.cost += entry.cost();
        let waiting = &mut self.waiting[entry.lane as usize];
        waiting.frames += 1;
        waiting.bytes += entry.len();
    }

    fn count_out(&mut self, entry: &Entry) {
        self.cost -= entry.cost();
        let waiting = &mut self.waiting[entry.lane as usize];
        waiting.frames -= 1;
        waiting.bytes -= entry.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(lane: Lane, len: usize) -> Entry {
        let (head, body) = (vec![0; len].into(), Bytes::new());
        Entry { lane, owned: lane != Lane::Push, call: 0, push: 0, owed: false, head, body }
    }

    /// Bytes of each kind among the first so many, while all go on waiting.
    fn shares(in_order: bool, sizes: [usize; 3], total: usize) -> [usize; 3] {
        const KINDS: [Lane; 3] = [Lane::Reply, Lane::Call, Lane::Push];
        let mut lanes = Lanes::new(in_order);
        let (mut sent, mut sum) = ([0; 3], 0);
        while sum < total {
            for (lane, len) in KINDS.into_iter().zip(sizes) {
                while 0 < len && lanes.waiting(lane).frames < 2 {
                    lanes.push(entry(lane, len));
                }
            }
            let next = lanes.pop().expect("all wait");
            sent[next.lane as usize - 1] += next.len();
            sum += next.len();
        }
        sent
    }

    /// Lanes share by weight in bytes, whatever the size of their frames, and nobody starves.
    #[test]
    fn lanes_share_by_weight() {
        const TOTAL: usize = 64 << 20;
        for sizes in [[100, 100, 100], [3000, 100, 20_000], [1 << 20, 50, 300]] {
            let [replies, calls, pushes] = shares(false, sizes, TOTAL);
            for (bytes, share) in [(replies, TOTAL / 2), (calls, TOTAL / 4), (pushes, TOTAL / 4)] {
                assert!(bytes.abs_diff(share) <= 2 << 20, "{sizes:?}: {replies} {calls} {pushes}");
            }
        }
    }

    /// A client's calls and pushes have the weight of both together.
    #[test]
    fn a_clients_requests_share_one_lane() {
        const TOTAL: usize = 8 << 20;
        let [replies, calls, pushes] = shares(true, [500, 500, 500], TOTAL);
        assert!(replies.abs_diff(TOTAL / 2) <= 1 << 20, "{replies}");
        assert!(calls.abs_diff(pushes) <= 1 << 20, "{calls} {pushes}");
    }

    /// Pushes leave though replies never end, one turn after another.
    #[test]
    fn a_push_waits_for_one_turn_of_replies() {
        let mut lanes = Lanes::new(false);
        lanes.push(entry(Lane::Push, 100));
        let mut replies = 0;
        loop {
            while lanes.waiting(Lane::Reply).frames < 2 {
                lanes.push(entry(Lane::Reply, 100));
            }
            match lanes.pop().expect("both wait").lane {
                Lane::Push => break,
                _ => replies += 100,
            }
        }
        assert!(replies <= 8 * TURN_BYTES as usize + 100, "{replies} bytes of replies went first");
    }

    /// A lane that had everything for itself owes nothing when others come.
    #[test]
    fn a_lane_that_was_alone_owes_nothing() {
        let mut lanes = Lanes::new(false);
        for _ in 0..100 {
            lanes.push(entry(Lane::Reply, 1 << 20));
            lanes.pop().expect("it waits");
        }
        lanes.push(entry(Lane::Reply, 100));
        for _ in 0..1000 {
            lanes.push(entry(Lane::Push, 1000));
        }
        let before = std::iter::from_fn(|| lanes.pop()).take_while(|entry| entry.lane == Lane::Push).count();
        assert!(before < 10, "{before}");
    }

    /// What waits is counted by kind, also where kinds share a lane, and nothing is left over.
    #[test]
    fn what_waits_is_counted_by_kind() {
        let mut lanes = Lanes::new(true);
        for (lane, len) in [(Lane::Control, 1), (Lane::Reply, 2), (Lane::Call, 4), (Lane::Push, 8), (Lane::Push, 16)] {
            lanes.push(Entry { call: 1, ..entry(lane, len) });
        }
        let counts = |lanes: &Lanes| {
            [Lane::Control, Lane::Reply, Lane::Call, Lane::Push].map(|lane| {
                let Waiting { frames, bytes } = lanes.waiting(lane);
                (frames, bytes)
            })
        };
        assert_eq!(counts(&lanes), [(1, 1), (1, 2), (1, 4), (2, 24)]);
        assert_eq!(lanes.cost(), 3 * ENTRY_BYTES + 7, "pushes that were encoded for many count for none");
        assert_eq!(lanes.drop_oldest_push().map(|entry| entry.len()), Some(8));
        assert_eq!(lanes.forget_call(1).map(|entry| entry.len()), Some(4));
        assert_eq!(counts(&lanes), [(1, 1), (1, 2), (0, 0), (1, 16)]);
        while lanes.pop().is_some() {}
        assert_eq!((counts(&lanes), lanes.cost()), ([(0, 0); 4], 0));
        assert!(lanes.is_empty());
    }
}
