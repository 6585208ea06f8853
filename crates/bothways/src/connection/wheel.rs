//! Which connections of a server are looked at, and when.
//!
//! ```text
//!               locked by anybody                next turn
//!   at rest ──────────────────────────► soon ──────────────► looked at ─┬─ it is not at rest ─────► soon
//!      ▲                                                                │
//!      └──────────── later, or never ◄──────────────────────────────────┘
//!                          │ its turn comes
//!                          └──────────────► looked at
//! ```
//!
//! Whatever happens to a connection happens under its lock: who takes that has it looked at in the next turn, a second
//! later. At rest it is looked at when something is due though nothing happens: in the slot of that turn, or of the last
//! one before it. A plain client that says nothing has no such turn, and costs nothing.
//!
//! A connection is in the list for the next turn once at most, and has one slot that counts. In slots that do not count
//! any more it may still stand: then its turn is passed over.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use super::ConnectionId;

/// Slots, one a turn: as many turns ahead something can be due. What is due later is looked at once a minute.
const SLOTS: usize = 64;

/// Lists of those of the next turn, so that threads seldom wait for each other.
const SHARDS: usize = 16;

/// Connections that were made one after another and are in one list: they lie beside each other in memory, mostly, and are
/// looked at one after another.
const RUN: usize = 64;

/// When a connection is looked at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    /// In the next turn.
    pub(super) soon: bool,
    /// Its slot that counts, and one; 0: it has none.
    slot: u8,
}

impl Place {
    /// The turn of this slot has come. False: the slot does not count any more, or the connection is looked at anyway.
    pub(super) fn takes_turn(&mut self, slot: Option<Slot>) -> bool {
        match slot {
            None => {
                self.soon = false;
                true
            }
            Some(Slot(slot)) if self.slot == slot => {
                self.slot = 0;
                !self.soon
            }
            Some(_) => false,
        }
    }
}

/// One of the slots: its number, and one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(u8);

/// See the module.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// From here the beginnings of connections are counted.
    epoch: Instant,
    /// Somebody turns it, so that lists are worth keeping.
    turns: AtomicBool,
    soon: [Mutex<Vec<ConnectionId>>; SHARDS],
    later: Mutex<Later>,
}

#[derive(Debug)]
struct Later {
    slots: [Vec<ConnectionId>; SLOTS],
    /// The slot of the last turn.
    now: usize,
    turned_at: Option<Instant>,
    /// Those whose turn has come, and who have not been looked at yet. No list is empty.
    due: Vec<(Option<Slot>, Vec<ConnectionId>)>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        let later = Later { slots: std::array::from_fn(|_| Vec::new()), now: 0, turned_at: None, due: Vec::new() };
        Self {
            epoch: Instant::now(),
            turns: AtomicBool::new(false),
            soon: std::array::from_fn(|_| Mutex::default()),
            later: Mutex::new(later),
        }
    }

    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Somebody turns it from here on. To be said before there are connections.
    pub(crate) fn begin(&self) {
        self.turns.store(true, Ordering::Relaxed);
    }

    /// This connection is looked at in the next turn. Its lock is held.
    pub(super) fn look_soon(&self, id: ConnectionId, place: &mut Place) {
        if !place.soon {
            place.soon = true;
            if self.turns.load(Ordering::Relaxed) {
                self.soon[id.get() as usize / RUN % SHARDS].lock().push(id);
            }
        }
    }

    /// It is looked at after so many turns at the latest. Its lock is held.
    pub(super) fn look_later(&self, id: ConnectionId, place: &mut Place, turns: usize) {
        let mut later = self.later.lock();
        let ahead = turns.clamp(1, SLOTS - 1);
        let standing = (place.slot != 0).then(|| (usize::from(place.slot) - 1 + SLOTS - later.now) % SLOTS);
        if standing.is_some_and(|standing| standing <= ahead) {
            // Its turn comes before that, if it has not come this moment.
            return;
        }
        let slot = (later.now + ahead) % SLOTS;
        later.slots[slot].push(id);
        place.slot = slot as u8 + 1;
    }

    /// Notes one as [`Self::look_soon`] does.
    #[cfg(test)]
    pub(crate) fn note(&self, id: ConnectionId) {
        self.look_soon(id, &mut Place::default());
    }

    /// How many are looked at in the next turn, and how many later.
    #[cfg(test)]
    pub(crate) fn standing(&self) -> (usize, usize) {
        let soon = self.soon.iter().map(|soon| soon.lock().len()).sum();
        (soon, self.later.lock().slots.iter().map(Vec::len).sum())
    }

    /// The next turn. After a time in which nobody turned it, that may be several at once.
    pub(crate) fn turn(&self, now: Instant, turn: Duration) {
        let mut later = self.later.lock();
        let since = later.turned_at.map(|at| now.saturating_duration_since(at).as_nanos() / turn.as_nanos().max(1));
        let turns = usize::try_from(since.unwrap_or(1)).unwrap_or(SLOTS).clamp(1, SLOTS);
        // What is left of a turn counts for the next one, also if this one is late each time.
        let through = later.turned_at.and_then(|at| at.checked_add(turn.saturating_mul(turns as u32)));
        later.turned_at = Some(through.filter(|through| *through <= now && turns < SLOTS).unwrap_or(now));
        for _ in 0..turns {
            later.now = (later.now + 1) % SLOTS;
            let slot = later.now;
            let list = std::mem::take(&mut later.slots[slot]);
            later.put(Some(Slot(slot as u8 + 1)), list);
        }
        for soon in &self.soon {
            let list = std::mem::take(&mut *soon.lock());
            later.put(None, list);
        }
    }

    /// Takes some of those whose turn has come: so many at most, and all of them of the same slot, or of none.
    pub(crate) fn take_due(&self, ids: &mut Vec<ConnectionId>, ids_max: usize) -> Option<Option<Slot>> {
        let mut later = self.later.lock();
        let (slot, list) = later.due.last_mut()?;
        let slot = *slot;
        let rest = list.len().saturating_sub(ids_max);
        ids.extend(list.drain(rest..));
        if rest == 0 {
            later.due.pop();
        }
        Some(slot)
    }
}

impl Later {
    fn put(&mut self, slot: Option<Slot>, list: Vec<ConnectionId>) {
        if !list.is_empty() {
            self.due.push((slot, list));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TURN: Duration = Duration::from_secs(1);

    fn turned() -> Wheel {
        let wheel = Wheel::new();
        wheel.begin();
        wheel
    }

    /// Where the wheel is turned late each time, nothing is due much later for it.
    #[test]
    fn turns_that_are_late_do_not_add_up() {
        let wheel = turned();
        let (mut now, began) = (Instant::now(), Instant::now());
        wheel.turn(now, TURN);
        wheel.look_later(ConnectionId::new(1), &mut Place::default(), 10);
        let mut ids = Vec::new();
        while ids.is_empty() {
            now += TURN * 19 / 10;
            wheel.turn(now, TURN);
            while wheel.take_due(&mut ids, 10).is_some() {}
        }
        assert!(now - began < TURN * 12, "{:?}", now - began);
    }

    /// Turns so often at once; whose turn has come, in order of their ids.
    fn turn(wheel: &Wheel, places: &mut [Place], now: &mut Instant, turns: u32) -> Vec<u64> {
        *now += TURN * turns;
        wheel.turn(*now, TURN);
        let (mut ids, mut looked_at) = (Vec::new(), Vec::new());
        while let Some(slot) = wheel.take_due(&mut ids, 2) {
            for id in ids.drain(..).map(ConnectionId::get) {
                if places[id as usize].takes_turn(slot) {
                    looked_at.push(id);
                }
            }
        }
        looked_at.sort_unstable();
        looked_at.dedup();
        looked_at
    }

    /// What nothing turns keeps nothing.
    #[test]
    fn a_wheel_that_nobody_turns_keeps_nothing() {
        let (wheel, mut place) = (Wheel::new(), Place::default());
        wheel.look_soon(ConnectionId::new(0), &mut place);
        assert!(place.soon && wheel.soon.iter().all(|soon| soon.lock().is_empty()));
    }

    /// Who is at rest, and for whom nothing is due, has no turn.
    #[test]
    fn who_is_at_rest_has_no_turn() {
        let (wheel, mut places, mut now) = (turned(), [Place::default()], Instant::now());
        wheel.look_soon(ConnectionId::new(0), &mut places[0]);
        assert_eq!(turn(&wheel, &mut places, &mut now, 1), [0]);
        for _ in 0..200 {
            assert!(turn(&wheel, &mut places, &mut now, 1).is_empty());
        }
    }

    /// After a standstill of an hour everybody has a turn who was due meanwhile.
    #[test]
    fn after_a_standstill_all_have_their_turns() {
        let (wheel, mut places, mut now) = (turned(), [Place::default(); 70], Instant::now());
        turn(&wheel, &mut places, &mut now, 1);
        for (id, place) in places.iter_mut().enumerate() {
            wheel.look_later(ConnectionId::new(id as u64), place, id);
        }
        assert_eq!(turn(&wheel, &mut places, &mut now, 3600).len(), places.len());
    }

    proptest! {
        /// Who is due has a turn, and nobody else; in a list nobody stands more often than it was put there.
        #[test]
        fn who_is_due_has_a_turn(steps in prop::collection::vec((0..4_u8, 0..5_usize, 0..90_usize), 0..300)) {
            let (wheel, mut now) = (turned(), Instant::now());
            let (mut places, mut turns) = ([Place::default(); 5], 0);
            turn(&wheel, &mut places, &mut now, 1);
            // Of each: in the next turn, and in that one at the latest.
            let mut model = [(false, None::<usize>); 5];
            for (step, id, number) in steps {
                match step {
                    0 => {
                        wheel.look_soon(ConnectionId::new(id as u64), &mut places[id]);
                        model[id].0 = true;
                    }
                    1 => {
                        wheel.look_later(ConnectionId::new(id as u64), &mut places[id], number);
                        let due = turns + number.clamp(1, SLOTS - 1);
                        model[id].1 = Some(model[id].1.map_or(due, |before| before.min(due)));
                    }
                    _ => {
                        let at_once = if number == 0 { 5 } else { 1 };
                        turns += at_once;
                        let looked_at = turn(&wheel, &mut places, &mut now, at_once as u32);
                        for (id, (soon, due)) in model.iter_mut().enumerate() {
                            let is_due = std::mem::take(soon) | due.take_if(|due| *due <= turns).is_some();
                            prop_assert_eq!(looked_at.contains(&(id as u64)), is_due, "{} in turn {}", id, turns);
                        }
                    }
                }
                let standing = wheel.later.lock().slots.iter().map(Vec::len).sum::<usize>();
                prop_assert!(standing <= 5 * SLOTS, "{standing}");
            }
        }
    }
}
