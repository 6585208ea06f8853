//! What a server counts while it works, and adds up when somebody asks: [`Server::stats`](crate::Server::stats).
//!
//! What happens for each read or write is counted in one of a few cells, by thread, so that threads rarely meet in
//! one; what is rare has one counter. Clients count none of this.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::error::{CloseReason, ErrorCode};

/// Cells of what is counted often: threads that count side by side, up to so many.
pub(crate) const CELLS: usize = 8;

/// The cell of this thread.
pub(crate) fn cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS;
    }
    MINE.with(|mine| *mine)
}

/// Most names of one [`Counts`].
const NAMES_MAX: usize = 20;

/// How often each of several things has happened, by name. The names never change while a program runs, and suit
/// as values of a label.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Counts {
    names: &'static [&'static str],
    counts: [u64; NAMES_MAX],
}

impl Counts {
    /// As many of each as `count` says, by the place of its name.
    pub(crate) fn of(names: &'static [&'static str], count: impl Fn(usize) -> u64) -> Self {
        let mut counts = [0; NAMES_MAX];
        counts.iter_mut().zip(0..names.len()).for_each(|(place, index)| *place = count(index));
        Self { names, counts }
    }

    /// Those of this name; 0 if there is no such name.
    pub fn get(&self, name: &str) -> u64 {
        self.iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| count)
    }

    /// Every name with its count, also where that is 0.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.names.iter().copied().zip(self.counts)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Those that are not 0.
impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().filter(|(_, count)| *count != 0)).finish()
    }
}

/// Counters of what is rare, by name.
#[derive(Debug)]
pub(crate) struct Counters<const N: usize> {
    names: &'static [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Counters<N> {
    pub(crate) const fn new(names: &'static [&'static str; N]) -> Self {
        assert!(N <= NAMES_MAX);
        Self { names, counts: [const { AtomicU64::new(0) }; N] }
    }

    pub(crate) fn add(&self, index: usize, count: u64) {
        self.counts[index].fetch_add(count, Ordering::Relaxed);
    }

    /// One more of this name.
    pub(crate) fn count(&self, name: &str) {
        match self.names.iter().position(|known| *known == name) {
            Some(index) => self.add(index, 1),
            None => debug_assert!(false, "{name} is none of {:?}", self.names),
        }
    }

    pub(crate) fn read(&self) -> Counts {
        Counts::of(self.names, |index| self.counts[index].load(Ordering::Relaxed))
    }
}

/// What all connections of a server count together.
#[derive(Debug)]
pub(crate) struct Meters {
    cells: [Cell; CELLS],
    /// Replies that were errors, by their codes.
    errors: Counters<{ ERRORS.len() }>,
    /// Connections that ended, by why.
    ends: Counters<{ CloseReason::NAMES.len() }>,
    /// Messages of either direction that were given up, by why.
    drops: Counters<5>,
    drivers: AtomicUsize,
    handlers: AtomicUsize,
    listeners: AtomicUsize,
}

/// Of the threads that have this place. On lines of its own: what one thread counts does not slow another.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Cell {
    frames_in: AtomicU64,
    bytes_in: AtomicU64,
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
}

/// What went over all connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) frames_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) frames_out: u64,
    pub(crate) bytes_out: u64,
}

/// Why a message was given up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lost {
    /// A push without a session: the queue of its connection was full, and the oldest made room.
    QueueFull,
    /// The same, which waited behind a full socket when its connection ended.
    ConnectionEnded,
    /// A request without a reply that was not run.
    OnewayRefused,
    /// A reply whose call was given up before it came.
    LateReply,
    /// A reply that could not be sent: no room, or too large.
    Reply,
}

/// Tasks of one kind, counted for as long as one lives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    Driver,
    Handler,
    Listener,
}

const DROPS: [&str; 5] = ["queue_full", "connection_ended", "oneway_refused", "late_reply", "reply_lost"];
/// What the application says without a code, and then the codes.
const ERRORS: [&str; ErrorCode::ALL.len() + 1] = {
    let mut names = ["application"; ErrorCode::ALL.len() + 1];
    let mut place = 0;
    while place < ErrorCode::ALL.len() {
        names[place + 1] = ErrorCode::ALL[place].name();
        place += 1;
    }
    names
};
const TASKS: [&str; 3] = ["connection", "handler", "listener"];

impl Default for Meters {
    fn default() -> Self {
        Self {
            cells: Default::default(),
            errors: Counters::new(&ERRORS),
            ends: Counters::new(&CloseReason::NAMES),
            drops: Counters::new(&DROPS),
            drivers: AtomicUsize::new(0),
            handlers: AtomicUsize::new(0),
            listeners: AtomicUsize::new(0),
        }
    }
}

impl Meters {
    /// So much was read in one turn of a connection.
    #[inline]
    pub(crate) fn read(&self, frames: u32, bytes: usize) {
        let cell = &self.cells[cell()];
        cell.frames_in.fetch_add(u64::from(frames), Ordering::Relaxed);
        cell.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So much was written at once.
    #[inline]
    pub(crate) fn wrote(&self, frames: u32, bytes: usize) {
        let cell = &self.cells[cell()];
        cell.frames_out.fetch_add(u64::from(frames), Ordering::Relaxed);
        cell.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A reply is an error: of the application, if it has no code.
    #[cold]
    pub(crate) fn count_error(&self, code: Option<ErrorCode>) {
        self.errors.count(code.map_or("application", ErrorCode::name));
    }

    pub(crate) fn count_end(&self, reason: &CloseReason) {
        self.ends.add(reason.index(), 1);
    }

    #[cold]
    pub(crate) fn count_drops(&self, why: Lost, messages: u64) {
        self.drops.add(why as usize, messages);
    }

    fn tasks_of(&self, kind: Task) -> &AtomicUsize {
        match kind {
            Task::Driver => &self.drivers,
            Task::Handler => &self.handlers,
            Task::Listener => &self.listeners,
        }
    }

    pub(crate) fn begin_task(&self, kind: Task) {
        self.tasks_of(kind).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_task(&self, kind: Task) {
        self.tasks_of(kind).fetch_sub(1, Ordering::Relaxed);
    }

    /// A task of this kind, for as long as the answer is kept.
    pub(crate) fn counted(self: &Arc<Self>, kind: Task) -> Counted {
        self.begin_task(kind);
        Counted { meters: Arc::clone(self), kind }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let sum = |of: fn(&Cell) -> &AtomicU64| self.cells.iter().map(|cell| of(cell).load(Ordering::Relaxed)).sum();
        Traffic {
            frames_in: sum(|cell| &cell.frames_in),
            bytes_in: sum(|cell| &cell.bytes_in),
            frames_out: sum(|cell| &cell.frames_out),
            bytes_out: sum(|cell| &cell.bytes_out),
        }
    }

    pub(crate) fn errors(&self) -> Counts {
        self.errors.read()
    }

    pub(crate) fn ends(&self) -> Counts {
        self.ends.read()
    }

    pub(crate) fn drops(&self) -> Counts {
        self.drops.read()
    }

    /// Tasks that live now.
    pub(crate) fn tasks(&self) -> Counts {
        let kinds = [Task::Driver, Task::Handler, Task::Listener];
        Counts::of(&TASKS, |index| self.tasks_of(kinds[index]).load(Ordering::Relaxed) as u64)
    }
}

/// See [`Meters::counted`].
pub(crate) struct Counted {
    meters: Arc<Meters>,
    kind: Task,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meters.end_task(self.kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads count side by side, and nothing is lost.
    #[test]
    fn what_threads_count_adds_up() {
        let meters = Meters::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * CELLS {
                scope.spawn(|| {
                    for _ in 0..100 {
                        meters.read(2, 30);
                        meters.wrote(1, 7);
                    }
                });
            }
        });
        let Traffic { frames_in, bytes_in, frames_out, bytes_out } = meters.traffic();
        let runs = 200 * CELLS as u64;
        assert_eq!([frames_in, bytes_in, frames_out, bytes_out], [2 * runs, 30 * runs, runs, 7 * runs]);
    }

    /// Each name has its own count, and each kind of what is counted a name.
    #[test]
    fn each_name_has_its_count() {
        let meters = Meters::default();
        meters.count_error(None);
        for &code in ErrorCode::ALL {
            assert_eq!(meters.errors().get(code.name()), 0);
            meters.count_error(Some(code));
            assert_eq!(meters.errors().get(code.name()), 1, "{code:?}");
        }
        assert!(meters.errors().iter().all(|(_, count)| count == 1), "{:?}", meters.errors());
        assert_eq!((meters.errors().total(), meters.errors().get("nonsense")), (8, 0));
        meters.count_drops(Lost::Reply, 3);
        meters.count_end(&CloseReason::PeerClosed);
        meters.begin_task(Task::Handler);
        assert_eq!(format!("{:?} {:?}", meters.drops(), meters.ends()), r#"{"reply_lost": 3} {"peer_closed": 1}"#);
        assert_eq!((meters.tasks().get("handler"), meters.tasks().total()), (1, 1));
        meters.end_task(Task::Handler);
        assert_eq!(meters.tasks().total(), 0);
    }
}
