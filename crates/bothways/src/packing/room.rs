//! Room for unpacked payloads, in bytes, and which connections may have more of it.
//!
//! The first [`OWN_BYTES`] of each connection are its own while it is open, and wait for nobody. Beyond them it may have no
//! more than it leaves for everybody. What is held for connections that are over counts in full; once it is more than
//! half of the room, an owner, which is a user or an address, for whose former connections some of it is held, has no
//! bytes of its own, and no more with them than it leaves for everybody. A payload without room waits, and delays nobody else: the smallest comes first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};

use crate::clock::{after, timeout};

/// The bytes that each connection has beside the common room. 64 KiB: small payloads of a client with few calls.
pub(crate) const OWN_BYTES: usize = 64 << 10;

/// How long a payload waits for room. 10 s, as long as a socket may take nothing: its caller is told, and may come again.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);

/// As how many bytes a small payload counts.
const SMALL: usize = 1 << 10;

/// There was no room within [`WAIT_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NoRoom;

/// See the module. One for all connections of a server or a client.
#[derive(Debug)]
pub(crate) struct Room {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// Bytes held beyond what is each connection's own.
    taken: usize,
    bytes_max: usize,
    of_connection_max: usize,
    /// The connections that hold something, or wait.
    shares: HashMap<u64, Share>,
    /// What is held for connections that are over, in all and by their owners.
    left_behind: usize,
    left_by: HashMap<Arc<str>, usize>,
    /// Those that may have more once there is room: how much of it must be left, and the connection.
    line: BTreeSet<(usize, u64)>,
    /// Numbers those who wait.
    next: u64,
}

/// What one connection holds, and which of its payloads wait: the smallest first.
#[derive(Debug)]
struct Share {
    held: usize,
    /// What of it is the connection's own.
    own: usize,
    /// What its owner holds for connections that are over, where these hold much.
    behind: usize,
    /// The connection is over, and this is whose it was.
    over: Option<Arc<str>>,
    waits: BTreeMap<(usize, u64), oneshot::Sender<Held>>,
    in_line: Option<usize>,
}

impl Default for Share {
    fn default() -> Self {
        let (waits, in_line) = Default::default();
        Self { held: 0, own: OWN_BYTES, behind: 0, over: None, waits, in_line }
    }
}

/// For which connection room is taken.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The number of the connection.
    pub(crate) id: u64,
    pub(crate) is_over: &'a (dyn Fn() -> bool + Sync),
    /// Its user's name, or its address.
    pub(crate) owner: &'a (dyn Fn() -> Arc<str> + Sync),
}

/// Room that an unpacked payload takes, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<Room>,
    of: u64,
    bytes: usize,
}

/// Those who wait and have room now. To be woken when the table is not locked.
type Granted = Vec<(oneshot::Sender<Held>, Held)>;

impl Room {
    /// Room for so many bytes, of which one connection has so many at most. Each is at least `payload_max`: one
    /// payload that is as large as it may be has room when it is alone.
    pub(crate) fn new(bytes_max: usize, of_connection_max: usize, payload_max: usize) -> Self {
        let of_connection_max = of_connection_max.max(payload_max);
        let bytes_max = bytes_max.max(of_connection_max);
        let (shares, line, left_by) = Default::default();
        let (taken, left_behind, next) = (0, 0, 0);
        let table = Table { taken, bytes_max, of_connection_max, shares, left_behind, left_by, line, next };
        Self { table: Mutex::new(table) }
    }

    /// Room for so many bytes of a connection, at once or within [`WAIT_MAX`]. `clock` keeps the time on a thread without
    /// a runtime.
    pub(super) async fn take(
        self: &Arc<Self>,
        asker: Asker<'_>,
        bytes: usize,
        clock: impl FnOnce() -> Option<Handle>,
    ) -> Result<Held, NoRoom> {
        let of = asker.id;
        // The application's locks are not taken under that of the table.
        let is_over = (asker.is_over)();
        let owner = (is_over || self.table.lock().is_much_left_behind()).then(asker.owner);

        let (bytes, (number, told)) = {
            let mut table = self.table.lock();
            if let Some(owner) = owner {
                table.note_owner(of, owner, is_over);
            }
            let bytes = bytes.clamp(SMALL, table.of_connection_max.max(SMALL));
            if table.hold_if_it_fits(of, bytes) {
                return Ok(Held { room: Arc::clone(self), of, bytes });
            }
            (bytes, table.wait(of, bytes))
        };

        // Leaves the table's line also when this future is dropped.
        let _waits = Waits { room: self, of, place: (bytes, number) };
        match timeout(clock, after(WAIT_MAX), told).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(_)) | Err(_) => Err(NoRoom),
        }
    }

    /// A connection is over: what is held for it counts in full.
    pub(crate) fn leave(&self, of: u64, owner: impl FnOnce() -> Arc<str>) {
        let is_known = self.table.lock().shares.contains_key(&of);
        if is_known {
            let owner = owner();
            self.table.lock().leave(of, owner);
        }
    }

    /// A connection holds so many bytes less.
    fn give(self: &Arc<Self>, of: u64, bytes: usize) {
        let granted = {
            let mut table = self.table.lock();
            table.give(of, bytes);
            table.grant(self)
        };
        for (waits, held) in granted {
            // A task that has given up meanwhile gives it back.
            drop(waits.send(held));
        }
    }

    /// All that a connection may have.
    #[cfg(test)]
    pub(crate) async fn take_all(self: &Arc<Self>, of: u64) -> Held {
        let all = self.table.lock().of_connection_max;
        let owner = || Arc::from("");
        self.take(Asker { id: of, is_over: &|| false, owner: &owner }, all, || None).await.expect("it is alone")
    }

    /// Bytes of unpacked payloads that are held now, and how many connections are known.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.shares.values().map(|share| share.held).sum(), table.shares.len())
    }
}

impl Table {
    /// Takes room, if there is enough.
    fn hold_if_it_fits(&mut self, of: u64, bytes: usize) -> bool {
        let share = self.shares.entry(of).or_default();
        let fits = share.may_have(bytes, self.of_connection_max)
            && has_room(self.taken, self.bytes_max, share.must_be_left(bytes));
        if fits {
            self.hold(of, bytes);
        }
        fits
    }

    fn hold(&mut self, of: u64, bytes: usize) {
        self.change(of, |share| share.held += bytes);
        self.line_up(of);
    }

    /// Changes what a connection holds, or what of it is its own; and counts that.
    fn change(&mut self, of: u64, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(of).or_default();
        let (taken, behind) = (share.counted(), share.left_behind());
        change(share);
        self.taken = self.taken - taken + share.counted();
        let now = share.left_behind();
        self.left_behind = self.left_behind - behind + now;
        if behind != now
            && let Some(owner) = &share.over
        {
            let of_owner = self.left_by.entry(Arc::clone(owner)).or_default();
            *of_owner = *of_owner - behind + now;
            if *of_owner == 0 {
                self.left_by.remove(owner);
            }
        }
    }

    fn is_much_left_behind(&self) -> bool {
        self.bytes_max / 2 < self.left_behind
    }

    /// This one asks for room for its owner, who may have left some behind.
    fn note_owner(&mut self, of: u64, owner: Arc<str>, is_over: bool) {
        if is_over {
            self.shares.entry(of).or_default();
            self.leave(of, Arc::clone(&owner));
        }
        let behind = if self.is_much_left_behind() { self.left_by.get(&owner).copied().unwrap_or(0) } else { 0 };
        self.change(of, |share| {
            share.behind = behind.saturating_sub(share.left_behind());
            if behind != 0 {
                share.own = 0;
            }
        });
    }

    /// Nothing is left to note of a connection whose last payload was given back meanwhile.
    fn leave(&mut self, of: u64, owner: Arc<str>) {
        if self.shares.get(&of).is_some_and(|share| share.over.is_none()) {
            self.change(of, |share| (share.own, share.over) = (0, Some(owner)));
        }
    }

    fn give(&mut self, of: u64, bytes: usize) {
        if self.shares.contains_key(&of) {
            self.change(of, |share| share.held = share.held.saturating_sub(bytes));
            self.line_up(of);
        }
    }

    /// One more waits. Returns its number, and where it is told.
    fn wait(&mut self, of: u64, bytes: usize) -> (u64, oneshot::Receiver<Held>) {
        let (teller, told) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.shares.entry(of).or_default().waits.insert((bytes, number), teller);
        self.line_up(of);
        (number, told)
    }

    /// Puts a connection where it belongs in the line, by what its smallest payload wants; forgets one that has nothing.
    fn line_up(&mut self, of: u64) {
        let Some(share) = self.shares.get_mut(&of) else { return };
        let smallest = share.waits.first_key_value().map(|((bytes, _), _)| *bytes);
        let wants = smallest.filter(|bytes| share.may_have(*bytes, self.of_connection_max));
        let now = wants.map(|bytes| share.must_be_left(bytes));
        let before = std::mem::replace(&mut share.in_line, now);
        if share.held == 0 && smallest.is_none() {
            self.shares.remove(&of);
        }
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.line.remove(&(before, of));
        }
        if let Some(now) = now {
            self.line.insert((now, of));
        }
    }

    /// Gives room to those who wait, as far as it goes.
    fn grant(&mut self, room: &Arc<Room>) -> Granted {
        let mut granted = Granted::new();
        while let Some((must_be_left, of)) = self.line.first().copied()
            && has_room(self.taken, self.bytes_max, must_be_left)
        {
            let first = self.shares.get_mut(&of).and_then(|share| share.waits.pop_first());
            let Some(((bytes, _), waits)) = first else { break };
            self.hold(of, bytes);
            granted.push((waits, Held { room: Arc::clone(room), of, bytes }));
        }
        granted
    }
}

impl Share {
    /// True if it may hold so many bytes more, as far as its own bound goes.
    fn may_have(&self, bytes: usize, max: usize) -> bool {
        self.held == 0 || self.held.saturating_add(bytes) <= max
    }

    /// How much of the room must be left for it to have so many bytes more: these, and as much as it then has.
    fn must_be_left(&self, bytes: usize) -> usize {
        let then = self.held.saturating_add(bytes).saturating_sub(self.own);
        (then - self.counted()).saturating_add(then).saturating_add(self.behind)
    }

    /// What of its bytes is not its own.
    fn counted(&self) -> usize {
        self.held.saturating_sub(self.own)
    }

    /// What it holds, if its connection is over.
    fn left_behind(&self) -> usize {
        if self.over.is_some() { self.held } else { 0 }
    }
}

/// One alone is bounded by what a connection may have.
fn has_room(taken: usize, bytes_max: usize, must_be_left: usize) -> bool {
    taken == 0 || must_be_left <= bytes_max.saturating_sub(taken)
}

/// Takes one who waits out of the table when it is told, or gives up.
struct Waits<'a> {
    room: &'a Arc<Room>,
    of: u64,
    place: (usize, u64),
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut table = self.room.table.lock();
        let given_up = table.shares.get_mut(&self.of).and_then(|share| share.waits.remove(&self.place));
        if given_up.is_some() {
            table.line_up(self.of);
        }
        drop(table);
        // Its waker belongs to the task that waited: it is dropped when nothing is locked.
        drop(given_up);
    }
}

impl Held {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what so many bytes do not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes.max(SMALL));
        if spare != 0 {
            self.bytes -= spare;
            self.room.give(self.of, spare);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.give(self.of, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn room(bytes_max: usize, of_connection_max: usize) -> Arc<Room> {
        Arc::new(Room::new(bytes_max, of_connection_max, 0))
    }

    fn asker<'a>(id: u64) -> Asker<'a> {
        Asker { id, is_over: &|| false, owner: &|| Arc::from("") }
    }

    async fn take(room: &Arc<Room>, of: u64, bytes: usize) -> Result<Held, NoRoom> {
        room.take(asker(of), bytes, || None).await
    }

    /// A connection whose last payload is given back while it ends leaves nothing behind.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_at_the_end_leaves_no_place() {
        let room = room(64 * MIB, 64 * MIB);
        let held = take(&room, 7, MIB).await.expect("there is room");
        room.leave(7, || {
            drop(held);
            Arc::from("ann")
        });
        assert_eq!(room.held(), (0, 0));
    }

    /// However many take all that they get, each leaves as much as it has: what is small finds room, what is their own
    /// waits for nobody, and what is large waits for so long and no longer.
    #[tokio::test(start_paused = true)]
    async fn those_who_hold_most_leave_room_for_others() {
        for greedy in [1, 3, 50] {
            let room = room(64 * MIB, 64 * MIB);
            let mut held = Vec::new();
            for of in (0..greedy).cycle() {
                let before = held.len();
                let taken = tokio::time::timeout(Duration::ZERO, take(&room, of, MIB / 4)).await;
                held.extend(taken.into_iter().flatten());
                if of + 1 == greedy && before == held.len() {
                    break;
                }
            }
            let fair = 64 * MIB / (usize::try_from(greedy).expect("small") + 1);
            let small = tokio::time::timeout(Duration::ZERO, take(&room, 100, fair / 4)).await;
            assert!(small.is_ok(), "{greedy}: a quarter of what is fair is there at once");
            let own = tokio::time::timeout(Duration::ZERO, take(&room, 101, OWN_BYTES)).await;
            assert!(own.is_ok(), "its own waits for nobody");
            let began = tokio::time::Instant::now();
            assert_eq!(take(&room, 102, 60 * MIB).await.map(|_| ()), Err(NoRoom));
            assert_eq!(began.elapsed(), WAIT_MAX);
            drop((held, small, own));
            assert_eq!(room.held(), (0, 0), "nothing is kept of a connection that has nothing");
        }
    }

    /// What is held for connections that are over is bounded with all else: a client that comes, has a payload unpacked
    /// and leaves has no new bytes of its own each time. Others have theirs.
    #[tokio::test(start_paused = true)]
    async fn connections_that_are_over_have_no_bytes_of_their_own() {
        let room = room(2 * MIB, 2 * MIB);
        let eve = || Arc::from("eve");
        for leaves_first in [false, true] {
            let mut held = Vec::new();
            for id in 0..100 {
                let asker = Asker { id, is_over: &|| leaves_first, owner: &eve };
                let taken = tokio::time::timeout(Duration::ZERO, room.take(asker, OWN_BYTES, || None)).await;
                held.extend(taken.into_iter().flatten());
                room.leave(id, eve);
            }
            let all = room.held().0;
            assert!((MIB..=2 * MIB - OWN_BYTES).contains(&all), "{all} for those who left");
            let others = (2000..2100).map(|of| (of, Arc::<str>::from(format!("{of}"))));
            for (id, owner) in others {
                let owner = || Arc::clone(&owner);
                let asker = Asker { id, is_over: &|| false, owner: &owner };
                let own = tokio::time::timeout(Duration::ZERO, room.take(asker, OWN_BYTES, || None)).await;
                held.extend(own.expect("its own waits for nobody"));
            }
            drop(held);
            let table = room.table.lock();
            assert_eq!((table.taken, table.left_behind, table.left_by.len(), table.shares.len()), (0, 0, 0, 0));
        }
    }

    /// What waits for much holds up nothing that is smaller, of its connection or another; it has room when that is there.
    #[tokio::test(start_paused = true)]
    async fn what_is_small_passes_what_is_large() {
        let room = room(10 * MIB, 10 * MIB);
        let first = take(&room, 1, 6 * MIB).await.expect("it is alone");
        let mut large = std::pin::pin!(take(&room, 2, 5 * MIB));
        let mut smaller = std::pin::pin!(take(&room, 3, 3 * MIB));
        for waits in [&mut large, &mut smaller] {
            assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err(), "there is no room");
        }
        for of in [2, 3, 4] {
            let small = tokio::time::timeout(Duration::ZERO, take(&room, of, OWN_BYTES / 2)).await;
            drop(small.expect("it passes").expect("room"));
        }
        drop(first);
        let soon = Duration::from_millis(1);
        let held = tokio::time::timeout(soon, smaller).await.expect("it wants least").expect("room");
        assert!(tokio::time::timeout(soon, &mut large).await.is_err(), "5 MiB of the 7 that are left leave less");
        drop(held);
        tokio::time::timeout(soon, large).await.expect("it is alone").expect("room");
        assert_eq!(room.held(), (0, 0));
    }

    /// A task that gives up leaves no place behind, whether it was woken or not.
    #[tokio::test(start_paused = true)]
    async fn who_gives_up_holds_nobody_up() {
        let room = room(4 * MIB, 4 * MIB);
        let first = take(&room, 1, 4 * MIB).await.expect("it is alone");
        let mut told = Box::pin(take(&room, 2, MIB));
        let mut waits = Box::pin(take(&room, 3, MIB));
        for waits in [&mut told, &mut waits] {
            assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err());
        }
        drop(waits);
        drop(first);
        assert_eq!(room.held(), (MIB, 1), "it has been told");
        drop(told);
        assert_eq!(room.held(), (0, 0));
    }

    /// A share is never too small for one payload, and no number is too large for a room.
    #[tokio::test]
    async fn a_room_has_room_for_one() {
        let small = Arc::new(Room::new(0, 0, 32 * MIB));
        drop(take(&small, 1, 32 * MIB).await.expect("it is alone"));
        let vast = Arc::new(Room::new(usize::MAX, usize::MAX, usize::MAX));
        let all = take(&vast, 1, usize::MAX).await.expect("it is alone");
        drop(take(&vast, 2, OWN_BYTES).await.expect("its own"));
        drop(all);
        assert_eq!(vast.held(), (0, 0));
    }
}
