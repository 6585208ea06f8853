//! Bursts of pushes: what follows one push at once is written with it, and not each by itself.
//!
//! A push is written at once, unless this thread has pushed within the last [`BURST`], or within an eighth of the time
//! that its last push took to write. What follows another so closely is put off, and written by a task of the same runtime when it has its turn; a thread that goes on pushing writes it
//! itself after [`DELAY`], or after as long as the last flush took. To a [`CROWD`] that task writes in any case.
//!
//! Where there is no runtime of the server's, nothing is put off.

use std::{
    borrow::Borrow,
    cell::RefCell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Handle, Id},
    time::Instant,
};

use super::{
    Session,
    batch::{Batch, Fill},
    flight::FlusherId,
    long_batch::{TURN_TIME, WRITTEN_AT_ONCE},
};
use crate::{clock::Runtimes, guard};

/// A push that follows another of its thread within this time is put off. In tests long enough for a busy machine.
const BURST: Duration = if cfg!(test) { Duration::from_secs(5) } else { Duration::from_micros(50) };

/// Sessions up to which the thread that pushes may write to all of them itself.
pub(super) const CROWD: usize = 4096;

/// What is put off waits no longer than this while its thread goes on pushing, or as long as the last flush took.
const DELAY: Duration = Duration::from_micros(200);

thread_local! {
    /// Of the runtime in which this thread pushed last.
    static FLUSHER: RefCell<Option<Arc<Flusher>>> = const { RefCell::new(None) };
}

/// See the module. A thread has one.
pub(super) struct Flusher {
    id: FlusherId,
    runtime: Id,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Each of them once, unless another thread pushes to it as well: [`State::send`](super::state::State::send).
    sessions: Vec<Session>,
    /// Each of them once.
    batches: Vec<Arc<Batch>>,
    /// To which list of sessions this thread published last. Nothing is read there: another list may have the address by now.
    last: usize,
    /// When the first of them was put off.
    since: Option<Instant>,
    /// When the last push was written or put off.
    pushed: Option<Instant>,
    /// How long the last flush took.
    took: Duration,
    /// How long the last push took that was written at once.
    wrote: Duration,
    /// A task has begun that ends when nothing waits.
    has_task: bool,
}

impl Flusher {
    /// The flusher of this thread, if it is in a runtime of the server's.
    pub(super) fn of_this_thread(runtimes: &Runtimes) -> Option<Arc<Self>> {
        let runtime = runtimes.here()?;
        FLUSHER.with_borrow_mut(|flusher| {
            if flusher.as_ref().is_none_or(|flusher| flusher.runtime != runtime) {
                // What the former one has put off its own task writes.
                *flusher = Some(Arc::new(Self::new(runtime)));
            }
            flusher.clone()
        })
    }

    fn new(runtime: Id) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Of two with one number, after four billion runtimes and threads, one would write what both have put off.
        let id = NonZeroU32::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN);
        Self { id, runtime, waiting: Mutex::default() }
    }

    pub(super) fn id(&self) -> FlusherId {
        self.id
    }

    /// True if this thread has pushed just now. Asked when a push begins: entering it for many takes longer than a burst's
    /// pause.
    pub(super) fn is_in_burst(&self) -> bool {
        let waiting = self.waiting.lock();
        // To go from one push to the next takes longer where each is written to very many: they fill the caches, and
        // those who are woken want the processor.
        let within = BURST.max(waiting.wrote / 8);
        waiting.pushed.is_some_and(|pushed| pushed.elapsed() < within)
    }

    /// True if this thread published last to this list, too.
    pub(super) fn pushes_again_to(&self, sessions: &Arc<[Session]>) -> bool {
        let list = Arc::as_ptr(sessions).cast::<()>() as usize;
        std::mem::replace(&mut self.waiting.lock().last, list) == list
    }

    /// Writes to these, or has them written soon: each has something on its connection, and waits nowhere yet.
    pub(super) fn write(self: &Arc<Self>, sessions: Vec<Session>, is_in_burst: bool) {
        // A crowd takes long: others have their turns meanwhile.
        if is_in_burst || CROWD < sessions.len() {
            return self.put_off(Fill::Some, |waiting| waiting.sessions.extend(sessions));
        }
        let began = Instant::now();
        write_to_each(sessions, Session::write_put_off);
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        (waiting.pushed, waiting.wrote) = (Some(now), now.duration_since(began));
    }

    /// Has these written soon, or now if one is full.
    pub(super) fn write_batches(self: &Arc<Self>, batches: Vec<Arc<Batch>>, fill: Fill) {
        self.put_off(fill, |waiting| {
            for batch in batches {
                if !waiting.batches.iter().any(|known| Arc::ptr_eq(known, &batch)) {
                    waiting.batches.push(batch);
                }
            }
        });
    }

    fn put_off(self: &Arc<Self>, fill: Fill, add: impl FnOnce(&mut Waiting)) {
        let (is_due, had_task);
        {
            let mut waiting = self.waiting.lock();
            add(&mut waiting);
            let now = Instant::now();
            waiting.pushed = Some(now);
            let since = *waiting.since.get_or_insert(now);
            is_due = fill == Fill::Full || DELAY.max(waiting.took) <= now.duration_since(since);
            // On another thread it may have come to its end just now.
            had_task = std::mem::replace(&mut waiting.has_task, true);
        }
        if !had_task {
            Task::spawn(self);
        }
        if is_due {
            self.write_all();
        }
    }

    fn take(&self) -> Unwritten {
        let mut waiting = self.waiting.lock();
        waiting.since = None;
        let (sessions, batches) = (std::mem::take(&mut waiting.sessions), std::mem::take(&mut waiting.batches));
        drop(waiting);
        Unwritten::of(sessions, batches)
    }

    fn write_all(&self) {
        let began = Instant::now();
        self.take().write(usize::MAX);
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        // What the thread pushes next it pushes as soon as it can.
        (waiting.took, waiting.pushed) = (now.duration_since(began), Some(now));
    }
}

/// Writes to each of these, whatever becomes of the others.
pub(super) fn write_to_each(sessions: impl IntoIterator<Item = impl Borrow<Session>>, write: fn(&Session)) {
    for session in sessions {
        guard::one_of_many(|| write(session.borrow()));
    }
}

/// Writes what is put off. Dropped with its runtime, it writes what it still has, and what comes later another task
/// writes.
struct Task(Arc<Flusher>);

impl Task {
    /// On the runtime of this thread, which is the flusher's.
    fn spawn(flusher: &Arc<Flusher>) {
        Handle::current().spawn(Self(Arc::clone(flusher)).run());
    }

    async fn run(self) {
        loop {
            // Those that are ready push first.
            tokio::task::yield_now().await;
            let began = Instant::now();
            self.0.take().write_in_turns().await;
            let mut waiting = self.0.waiting.lock();
            waiting.took = began.elapsed();
            if waiting.sessions.is_empty() && waiting.batches.is_empty() {
                waiting.has_task = false;
                return;
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let is_cut_off = std::mem::take(&mut self.0.waiting.lock().has_task);
        if is_cut_off {
            self.0.write_all();
        }
    }
}

/// Sessions that are still to be written to. Dropped with the runtime that was to do so, it writes to them.
pub(super) struct Unwritten {
    batches: Vec<Walk>,
    sessions: std::vec::IntoIter<Session>,
    write: fn(&Session),
}

impl Unwritten {
    pub(super) fn new(sessions: Vec<Session>, write: fn(&Session)) -> Self {
        Self { batches: Vec::new(), sessions: sessions.into_iter(), write }
    }

    /// What was put off.
    fn of(sessions: Vec<Session>, batches: Vec<Arc<Batch>>) -> Self {
        // The oldest is the last: it is taken first.
        let batches = batches.into_iter().rev().map(Walk::begin).collect();
        Self { batches, sessions: sessions.into_iter(), write: Session::write_put_off }
    }

    /// Writes to all of them, and lets others run in between.
    pub(super) async fn write_in_turns(mut self) {
        while self.write_a_turn(TURN_TIME) {
            tokio::task::yield_now().await;
        }
    }

    /// Writes until others are to have their turn, after so long. False: there are no more.
    fn write_a_turn(&mut self, turn: Duration) -> bool {
        // By the real clock: what it bounds is the time of a thread.
        let began = std::time::Instant::now();
        while self.write(WRITTEN_AT_ONCE) {
            if turn <= began.elapsed() {
                return true;
            }
        }
        false
    }

    /// Writes to so many of them. False: there are no more.
    fn write(&mut self, sessions_max: usize) -> bool {
        let mut left = sessions_max;
        while let Some(walk) = self.batches.last_mut() {
            left -= walk.write(left);
            if !walk.is_over() {
                return true;
            }
            self.batches.pop();
        }
        write_to_each(self.sessions.by_ref().take(left), self.write);
        0 < self.sessions.len()
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.write(usize::MAX);
    }
}

/// A batch that is being written.
struct Walk {
    batch: Arc<Batch>,
    written: usize,
}

impl Walk {
    fn begin(batch: Arc<Batch>) -> Self {
        batch.close();
        Self { batch, written: 0 }
    }

    /// Writes to so many of its sessions at most. Returns to how many.
    fn write(&mut self, sessions_max: usize) -> usize {
        let Self { batch, written } = self;
        let sessions = &batch.sessions()[*written..];
        let sessions = &sessions[..sessions.len().min(sessions_max)];
        for session in sessions {
            // Counted first: one that panics is not written to again.
            *written += 1;
            guard::one_of_many(|| session.write_batch(batch));
        }
        sessions.len()
    }

    fn is_over(&self) -> bool {
        self.written == self.batch.sessions().len()
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.batch.end();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Class, Push, Receipt, Stage, fixtures::plain_connections, registry::Registry},
        *,
    };

    fn push(registry: &Registry, sessions: &[Session], text: &'static str) -> Receipt {
        let (push, receipt) = (Push::new("Chat", "say", text).class(Class::Fire), Receipt::new());
        registry.fan_out.push_to(sessions, &push, &receipt).expect("small");
        receipt
    }

    fn written(receipt: &Receipt) -> usize {
        receipt.outcomes().at(Stage::PlainWritten)
    }

    /// Lets all tasks that are ready have their turn, and those that they wake.
    async fn turn() {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    /// The first push is written at once. Those that follow it closely leave together, when others have had a turn.
    #[tokio::test(start_paused = true)]
    async fn what_follows_closely_leaves_together() {
        let (_server, _clients, registry, connections) = plain_connections::<2>("together").await;
        let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
        turn().await;
        let first = push(&registry, &sessions, "1");
        assert_eq!(written(&first), 2, "at once");
        let before = connections[0].stats().written_bytes;
        let more = ["2", "3", "4"].map(|text| push(&registry, &sessions, text));
        assert!(more.iter().all(|receipt| receipt.outcomes().at(Stage::Queued) == 2), "they wait: {more:?}");
        assert_eq!(connections[0].stats().written_bytes, before);
        turn().await;
        assert!(more.iter().all(|receipt| written(receipt) == 2), "all are written: {more:?}");
    }

    /// A thread that goes on pushing does not hold back what it pushed first.
    #[tokio::test(start_paused = true)]
    async fn a_thread_that_goes_on_pushing_holds_nothing_back() {
        let (_server, _clients, registry, connections) = plain_connections::<1>("busy").await;
        let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
        push(&registry, &sessions, "1");
        let second = push(&registry, &sessions, "2");
        let began = Instant::now();
        while written(&second) == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "it waits for ever");
            push(&registry, &sessions, "more");
        }
    }

    /// What was put off counts as written where its session is ended in the same turn, as if it had been written at once.
    #[tokio::test(start_paused = true)]
    async fn what_was_put_off_leaves_before_its_session_ends() {
        let (server, _clients, registry, connections) = plain_connections::<1>("ended").await;
        let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
        turn().await;
        let receipts = ["1", "2"].map(|text| push(&registry, &sessions, text));
        sessions[0].end("for a test");
        assert!(receipts.iter().all(|receipt| written(receipt) == 1), "{receipts:?}");
        drop(server);
    }

    /// Where a runtime ends before its flusher had a turn, what was put off is written all the same.
    #[test]
    fn what_was_put_off_leaves_though_its_runtime_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (server, clients, receipts) = runtime.block_on(async {
            let (server, clients, registry, connections) = plain_connections::<1>("runtime").await;
            let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
            turn().await;
            (server, clients, ["1", "2"].map(|text| push(&registry, &sessions, text)))
        });
        assert_eq!(receipts[1].outcomes().at(Stage::Queued), 1, "{receipts:?}");
        drop(runtime);
        assert_ne!(receipts[1].outcomes().at(Stage::Queued), 1, "{receipts:?}");
        drop((server, clients));
    }

    /// A thread without a runtime of the server's puts nothing off.
    #[tokio::test(start_paused = true)]
    async fn a_thread_without_a_runtime_writes_at_once() {
        let (_server, _clients, registry, connections) = plain_connections::<1>("outside").await;
        let sessions = connections.map(|connection| registry.of(&connection).expect("it is made"));
        let outside =
            std::thread::spawn(move || ["1", "2", "3"].map(|text| written(&push(&registry, &sessions, text))));
        assert_eq!(outside.join().expect("no panic"), [1, 1, 1]);
    }

    /// What a thread pushes does not wait for another thread that has put off something to the same session, and has no
    /// turn for its task.
    #[test]
    fn what_another_thread_has_put_off_holds_nothing_back() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (busy, other) = (runtime(), runtime());
        let (_server, _clients, registry, sessions, put_off) = busy.block_on(async {
            let (server, clients, registry, connections) = plain_connections::<1>("other").await;
            let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
            turn().await;
            let receipts = ["1", "2"].map(|text| push(&registry, &sessions, text));
            (server, clients, registry, sessions, receipts)
        });
        assert_eq!(written(&put_off[1]), 0, "it waits for a turn of its runtime");
        let receipts = other.block_on(async {
            registry.runtimes.add(Handle::current());
            let receipts = ["3", "4"].map(|text| push(&registry, &sessions, text));
            turn().await;
            receipts
        });
        assert!(receipts.iter().all(|receipt| written(receipt) == 1), "{receipts:?}");
        assert_eq!(written(&put_off[1]), 1, "and what was put off left before");
    }

    /// Sessions are written to so many at a time, until all were.
    #[tokio::test(start_paused = true)]
    async fn what_is_unwritten_is_written_part_by_part() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("unwritten").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let mut unwritten = Unwritten::new(sessions, Session::pump);
        assert!(unwritten.write(2), "one is left");
        assert!(!unwritten.write(2));
        assert!(!unwritten.write(2));
    }

    /// Others have their turn after a time, however many are left; and none is left out for it.
    #[tokio::test(start_paused = true)]
    async fn a_turn_of_writing_ends_by_the_clock() {
        let (_server, _clients, registry, [connection]) = plain_connections::<1>("clock").await;
        let session = registry.of(&connection).expect("it is made");
        let unwritten = || Unwritten::new(vec![session.clone(); 2 * WRITTEN_AT_ONCE + 1], Session::pump);
        let mut slow = unwritten();
        assert_eq!(std::iter::repeat_with(|| slow.write_a_turn(Duration::ZERO)).take_while(|more| *more).count(), 2);
        assert!(!unwritten().write_a_turn(Duration::MAX), "all within the time");
    }
}
