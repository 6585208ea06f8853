//! The messages that wait for the application, in the order of their arrival: how many each server has, and which may
//! be dropped.
//!
//! No step visits every message. A dropped message leaves a hole, and holes are closed once they are half of all.
//!
//! ```text
//!  holes:      [ ][ ]   each with the messages that were dropped there: a gap before the next one that stands
//!  waiting: [a][ ][ ][b][a][b]
//!               server a: 2, server b: 2, and the places of those among them that may be pushed out
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::messages::ServerMessage;

/// Holes that are left alone, however few messages wait.
const HOLES: usize = 64;

/// Messages, and their bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Amount {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Amount {
    fn add(&mut self, bytes: usize) {
        *self = Self { messages: self.messages + 1, bytes: self.bytes + bytes };
    }

    fn take(&mut self, bytes: usize) {
        *self = Self { messages: self.messages - 1, bytes: self.bytes - bytes };
    }

    /// True if so many bytes more are within a bound, or nothing is there yet.
    fn has_room(self, bytes: usize, max: Self) -> bool {
        self.messages == 0 || (self.messages < max.messages && self.bytes.saturating_add(bytes) <= max.bytes)
    }
}

/// What waits of all servers, and of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    all: Amount,
    own: Amount,
    /// Those that bring messages.
    servers: usize,
}

impl Held {
    /// True if one more message of this size may wait.
    ///
    /// Half of the bound is first come, first served. Of the other half each server has an even share, whatever the
    /// others have: so a list that grows can hold more than the bound, and twice of it at most. One message that is
    /// larger than its share may wait alone.
    pub(super) fn has_room(self, bytes: usize, max: Amount) -> bool {
        if self.servers <= 1 {
            return self.all.has_room(bytes, max);
        }
        let part = |of: usize| Amount { messages: (max.messages / of).max(1), bytes: max.bytes / of };
        let of_first = part(2);
        let is_first = self.all.messages < of_first.messages && self.all.bytes.saturating_add(bytes) <= of_first.bytes;
        let twice = Amount { messages: max.messages.saturating_mul(2), bytes: max.bytes.saturating_mul(2) };
        is_first || (self.own.has_room(bytes, part(2 * self.servers)) && self.all.has_room(bytes, twice))
    }

    /// True if it may wait in the place of others of its server, which had so many bytes and have left.
    pub(super) fn has_room_instead(self, bytes: usize, left: usize, max: Amount) -> bool {
        bytes <= left && self.all.has_room(bytes, max)
    }
}

/// One place in the order; without its message it is a hole.
#[derive(Debug)]
struct Slot {
    place: u64,
    server: Server,
    message: Option<ServerMessage>,
    /// Messages that were dropped here.
    gap: u64,
}

/// One of those that bring messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server(usize);

/// What one server has in the queue.
#[derive(Debug, Default)]
struct OfServer {
    brings_more: bool,
    waiting: Amount,
    tracked: Amount,
    /// Places of those that are not tracked, the oldest first, without those that tracked repetitions wait for.
    droppable: VecDeque<u64>,
}

/// Messages that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    slots: VecDeque<Slot>,
    holes: usize,
    next_place: u64,
    all: Amount,
    tracked: Amount,
    servers: Vec<OfServer>,
    /// Those among them that bring more.
    sharing: usize,
    /// Where the newest value of each key waits, by server and key.
    latest: HashMap<(Arc<str>, Arc<str>), u64>,
    /// Dropped after the last of them.
    gap: u64,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.all.messages
    }

    /// One more server brings messages. It takes the place of one that has left and has nothing here.
    pub(super) fn join(&mut self) -> Server {
        let is_free = |of: &OfServer| !of.brings_more && of.waiting.messages == 0;
        let server = self.servers.iter().position(is_free).unwrap_or_else(|| {
            self.servers.push(OfServer::default());
            self.servers.len() - 1
        });
        self.servers[server].brings_more = true;
        self.sharing += 1;
        Server(server)
    }

    /// A server brings no more. What it has brought stays.
    pub(super) fn leave(&mut self, server: Server) {
        self.servers[server.0].brings_more = false;
        self.sharing -= 1;
    }

    /// What waits in all and of this server.
    pub(super) fn held(&self, server: Server) -> Held {
        Held { all: self.all, own: self.servers[server.0].waiting, servers: self.sharing }
    }

    /// The same of tracked messages.
    pub(super) fn held_tracked(&self, server: Server) -> Held {
        Held { all: self.tracked, own: self.servers[server.0].tracked, servers: self.sharing }
    }

    /// Places, with holes.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// All that waits, and what is tracked of it.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (Amount, Amount) {
        (self.all, self.tracked)
    }

    /// So many were dropped after the last one.
    pub(super) fn add_gap(&mut self, messages: u64) {
        self.gap = self.gap.saturating_add(messages);
    }

    /// Puts a message after the others, or in the place of an older value of its key, which is returned.
    pub(super) fn put(&mut self, server: Server, mut message: ServerMessage) -> Option<ServerMessage> {
        let bytes = message.bytes();
        let key = message.latest_of.as_ref().map(|key| (Arc::clone(&message.server), Arc::clone(key)));
        let older = key.as_ref().and_then(|key| self.latest.get(key)).and_then(|place| self.at(*place));

        if let Some(Slot { server: of_older, message: Some(older), .. }) = older.map(|at| &mut self.slots[at]) {
            // The gap in front of this place stays there.
            message.dropped_before = older.dropped_before;
            let older = std::mem::replace(older, message);
            // The server may have left since, and joined again.
            let of_older = std::mem::replace(of_older, server);
            self.count_out(of_older, &older);
            self.count_in(server, bytes, true);
            return Some(older);
        }

        message.dropped_before = std::mem::take(&mut self.gap);
        let place = self.next_place;
        self.next_place += 1;
        let is_tracked = message.ack.is_some();
        let of_server = self.count_in(server, bytes, is_tracked);
        // A tracked one is never pushed out to make room.
        if !is_tracked {
            of_server.droppable.push_back(place);
        }
        if let Some(key) = key {
            self.latest.insert(key, place);
        }
        self.slots.push_back(Slot { place, server, message: Some(message), gap: 0 });
        None
    }

    /// The next one, with what was dropped before it.
    pub(super) fn pop(&mut self) -> Option<ServerMessage> {
        let mut gap = 0_u64;
        while let Some(slot) = self.slots.pop_front() {
            gap = gap.saturating_add(slot.gap);
            let Some(mut message) = slot.message else {
                self.holes -= 1;
                continue;
            };
            message.dropped_before = message.dropped_before.saturating_add(gap);
            if let Some(key) = &message.latest_of {
                self.latest.remove(&(Arc::clone(&message.server), Arc::clone(key)));
            }
            self.servers[slot.server.0].droppable.pop_front_if(|place| *place == slot.place);
            self.count_out(slot.server, &message);
            return Some(message);
        }
        self.add_gap(gap);
        None
    }

    /// Takes out the oldest message of this server that may be pushed out; what follows it is told of the gap.
    pub(super) fn push_out(&mut self, server: Server) -> Option<ServerMessage> {
        let mut dropped = None;
        while dropped.is_none() {
            let place = self.servers[server.0].droppable.pop_front()?;
            let Some(at) = self.at(place) else { continue };
            let slot = &mut self.slots[at];
            // One that tracked repetitions wait for stays, and goes on being one.
            dropped = slot.message.take_if(|message| message.may_be_pushed_out());
            if let Some(dropped) = &dropped {
                slot.gap = dropped.dropped_before.saturating_add(1);
                self.holes += 1;
            }
        }
        if let Some(dropped) = &dropped {
            self.count_out(server, dropped);
        }
        self.close_holes();
        dropped
    }

    /// Takes out all that waits.
    pub(super) fn take(&mut self) -> Vec<ServerMessage> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    fn at(&self, place: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&place, |slot| slot.place).ok()
    }

    fn count_in(&mut self, server: Server, bytes: usize, is_tracked: bool) -> &mut OfServer {
        let of_server = &mut self.servers[server.0];
        self.all.add(bytes);
        of_server.waiting.add(bytes);
        if is_tracked {
            self.tracked.add(bytes);
            of_server.tracked.add(bytes);
        }
        of_server
    }

    fn count_out(&mut self, server: Server, message: &ServerMessage) {
        let (bytes, of_server) = (message.bytes(), &mut self.servers[server.0]);
        self.all.take(bytes);
        of_server.waiting.take(bytes);
        if message.ack.is_some() {
            self.tracked.take(bytes);
            of_server.tracked.take(bytes);
        }
    }

    /// Leaves out holes once they are half of all; what was dropped there was dropped before the next one.
    fn close_holes(&mut self) {
        if self.holes < HOLES || self.holes < self.slots.len() / 2 {
            return;
        }
        let mut gap = 0_u64;
        self.slots.retain_mut(|slot| {
            gap = gap.saturating_add(slot.gap);
            let Some(message) = &mut slot.message else { return false };
            message.dropped_before = message.dropped_before.saturating_add(std::mem::take(&mut gap));
            true
        });
        self.add_gap(gap);
        self.holes = 0;
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Message, Metadata, Role, Seq, SerializeType};
    use proptest::prelude::*;

    use super::*;
    use crate::{client::session::acks, connection::alone::alone};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A message of this server: one that may be pushed out, a tracked one, or the newest value of a key.
        Put(usize, Option<Option<u8>>),
        Pop,
        PushOut(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let kind = prop_oneof![3 => Just(None), 1 => Just(Some(None)), 1 => (0..2_u8).prop_map(|key| Some(Some(key)))];
        prop_oneof![
            4 => (0..2_usize, kind).prop_map(|(server, kind)| Step::Put(server, kind)),
            2 => Just(Step::Pop),
            3 => (0..2_usize).prop_map(Step::PushOut),
        ]
    }

    /// What waits, of which server it is, and what it is.
    type Model = Vec<(u64, usize, Option<Option<u8>>)>;

    fn number_of(message: &ServerMessage) -> u64 {
        message.metadata().get("n").and_then(|number| number.parse().ok()).expect("a number")
    }

    /// The counts of the queue are those of what waits.
    fn check(waiting: &Waiting, model: &Model, bytes: &[usize], servers: &[Server]) {
        let amount = |of: &dyn Fn(usize, bool) -> bool| {
            let those = model.iter().filter(|(_, server, kind)| of(*server, kind.is_some()));
            those.fold(Amount::default(), |sum, (number, ..)| Amount {
                messages: sum.messages + 1,
                bytes: sum.bytes + bytes[*number as usize],
            })
        };
        assert_eq!(waiting.counts(), (amount(&|_, _| true), amount(&|_, tracked| tracked)));
        for (index, server) in servers.iter().enumerate() {
            assert_eq!(waiting.held(*server).own, amount(&|of, _| of == index));
            assert_eq!(waiting.held_tracked(*server).own, amount(&|of, tracked| of == index && tracked));
        }
        let holes = waiting.slots.iter().filter(|slot| slot.message.is_none()).count();
        assert_eq!((waiting.holes, waiting.slots()), (holes, holes + model.len()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes, is taken and is pushed out: the order, the counts and the gaps are those of a plain list.
        #[test]
        fn what_waits_is_as_a_plain_list_has_it(steps in prop::collection::vec(step(), 1..600)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let _in_it = runtime.enter();
            let (connection, _far) = alone(Role::Client);
            let (mut waiting, mut model, mut bytes) = (Waiting::default(), Model::new(), Vec::new());
            let servers = [waiting.join(), waiting.join()];
            let names: [Arc<str>; 2] = ["a".into(), "b".into()];
            let (mut dropped, mut told, mut acks) = (0, 0, acks(600));
            for step in steps {
                match step {
                    Step::Put(server, kind) => {
                        let number = bytes.len() as u64;
                        let pairs = Metadata::new().with("n", number.to_string());
                        let header = Header::oneway(Seq::of_push(1), SerializeType::RAW);
                        let payload = vec![0; bytes.len() % 7];
                        let message = ServerMessage {
                            message: Message::new(header, "T", "News", &pairs, &payload),
                            connection: connection.clone(),
                            server: Arc::clone(&names[server]),
                            dropped_before: 0,
                            ack: kind.and_then(|_| acks.pop()).map(Arc::new),
                            first: None,
                            latest_of: kind.flatten().map(|key| Arc::from(format!("key {key}"))),
                        };
                        bytes.push(message.bytes());
                        let older = waiting.put(servers[server], message);
                        let place = model.iter().position(|(_, of, other)| {
                            kind.flatten().is_some() && (*of, *other) == (server, kind)
                        });
                        prop_assert_eq!(older.as_ref().map(number_of), place.map(|at| model[at].0));
                        match place {
                            Some(at) => model[at].0 = number,
                            None => model.push((number, server, kind)),
                        }
                    }
                    Step::Pop => {
                        let next = waiting.pop();
                        told += next.as_ref().map_or(0, |message| message.dropped_before);
                        let expected = (!model.is_empty()).then(|| model.remove(0).0);
                        prop_assert_eq!(next.as_ref().map(number_of), expected);
                    }
                    Step::PushOut(server) => {
                        let out = waiting.push_out(servers[server]);
                        let place = model.iter().position(|(_, of, kind)| *of == server && kind.is_none());
                        prop_assert_eq!(out.as_ref().map(number_of), place.map(|at| model.remove(at).0));
                        dropped += u64::from(out.is_some());
                        prop_assert!(waiting.holes < HOLES || waiting.holes < waiting.slots() / 2);
                    }
                }
                check(&waiting, &model, &bytes, &servers);
            }
            while let Some(message) = waiting.pop() {
                told += message.dropped_before;
            }
            prop_assert_eq!(told + waiting.gap, dropped);
        }
    }
}
