//! Who writes: the connection's writer under a scheduler that tries the orders.
//!
//! The rules and the loop are those of `connection/writer.rs`, this very file. What stands around them is a model, with
//! bytes for frames and no lanes: the lock, the waking of the driver as in `connection/rest.rs`, and a socket with
//! little room. `connection/tests/threads.rs` presses the whole with real threads.
//!
//! A run that takes more than [`STEPS_MAX`] steps fails, and so does one in which everybody waits.

#[path = "../src/connection/writer.rs"]
mod writer;

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use shuttle::{
    Config, MaxSteps, Runner, future,
    scheduler::{PctScheduler, RandomScheduler},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
};

use self::writer::{Desk, Ended, Hand, Outcome, Turn, Writer};

/// As in `connection/rest.rs`: who writes when the socket was full.
enum Driving {
    Resting,
    Called,
    Made,
    Task(Waker),
}

struct State {
    waiting: VecDeque<u8>,
    writer: Writer,
    driving: Driving,
    added: u8,
    /// Nothing more is added, and the driver ends when all is written.
    closing: bool,
}

/// A socket with room for few bytes; the reader takes them out.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    taken: Vec<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

const ROOM: usize = 2;
/// Bytes that a hand writes in one turn.
const BYTES: usize = 3;
/// Batches that a caller writes before it leaves the rest to the driver.
const ROUNDS: usize = 2;

struct Shared {
    state: Mutex<State>,
    pipe: Mutex<Pipe>,
    /// Told when a driver has ended the connection.
    ended: mpsc::Sender<()>,
}

/// A handle on the connection.
#[derive(Clone)]
struct Connection(Arc<Shared>);

impl Desk for Connection {
    type Guard<'a> = MutexGuard<'a, State>;
    type Batch = VecDeque<u8>;

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic")
    }

    fn writer<'g>(state: &'g mut MutexGuard<'_, State>) -> &'g mut Writer {
        &mut state.writer
    }

    fn take<'a>(&'a self, state: &mut MutexGuard<'a, State>) -> Option<VecDeque<u8>> {
        Some(std::mem::take(&mut state.waiting)).filter(|waiting| !waiting.is_empty())
    }

    fn put_back<'a>(&'a self, state: &mut MutexGuard<'a, State>, mut batch: VecDeque<u8>, _written: usize) {
        batch.append(&mut state.waiting);
        state.waiting = batch;
    }

    fn wake_driver<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        match &state.driving {
            Driving::Task(driver) => driver.wake_by_ref(),
            Driving::Called | Driving::Made => {}
            Driving::Resting => {
                state.driving = Driving::Called;
                let connection = self.clone();
                thread::spawn(move || connection.make_driver());
            }
        }
    }
}

impl Connection {
    fn new(ended: mpsc::Sender<()>) -> Self {
        let (waiting, writer, driving) = (VecDeque::new(), Writer::Idle, Driving::Resting);
        let state = State { waiting, writer, driving, added: 0, closing: false };
        Self(Arc::new(Shared { state: Mutex::new(state), pipe: Mutex::new(Pipe::default()), ended }))
    }

    /// One attempt to write, as far as the turn goes.
    fn move_bytes(
        &self,
        batch: &mut VecDeque<u8>,
        done: usize,
        waiting: Option<&Waker>,
    ) -> (usize, Outcome<Infallible>) {
        let mut pipe = self.0.pipe.lock().expect("no panic");
        let mut written = 0;
        while pipe.bytes.len() < ROOM
            && done + written < BYTES
            && let Some(byte) = batch.pop_front()
        {
            pipe.bytes.push_back(byte);
            written += 1;
        }
        let is_moved = batch.is_empty() || BYTES <= done + written;
        if !is_moved && let Some(waker) = waiting {
            pipe.writer = Some(waker.clone());
        }
        let reader = pipe.reader.take();
        drop(pipe);
        if let Some(reader) = reader {
            reader.wake();
        }
        (written, if is_moved { Outcome::Moved } else { Outcome::Full })
    }

    /// As `Connection::close_after_flush`.
    fn close<'a>(&'a self, state: &mut MutexGuard<'a, State>) {
        state.closing = true;
        self.wake_driver(state);
    }

    fn make_driver(self) {
        let mut state = self.lock();
        if !matches!(state.driving, Driving::Resting | Driving::Called) {
            return;
        }
        state.driving = Driving::Made;
        drop(state);
        thread::spawn(move || future::block_on(poll_fn(|cx| self.poll_driver(cx))));
    }

    /// As `Connection::write_out`.
    fn write_out(&self) {
        let mut turn = Turn { hand: Hand::Caller, batches: ROUNDS, written: 0, bytes_max: BYTES };
        let (mut state, ended) =
            writer::write(self, self.lock(), &mut turn, |batch, done| self.move_bytes(batch, done, None));
        if matches!(ended, Ended::Done) && state.closing {
            self.wake_driver(&mut state);
        }
    }

    /// As `Driver::poll_writes`.
    fn poll_writes(&self, cx: &Context<'_>) {
        let mut turn = Turn { hand: Hand::Driver, batches: usize::MAX, written: 0, bytes_max: BYTES };
        let (_, ended) =
            writer::write(self, self.lock(), &mut turn, |batch, done| self.move_bytes(batch, done, Some(cx.waker())));
        if matches!(ended, Ended::Yield) {
            cx.waker().wake_by_ref();
        }
    }

    /// As `Driver::poll`: the waker first, then the writes, then the end, or the rest.
    fn poll_driver(&self, cx: &Context<'_>) -> Poll<()> {
        self.lock().driving = Driving::Task(cx.waker().clone());
        self.poll_writes(cx);
        let mut state = self.lock();
        if !state.waiting.is_empty() || state.writer != Writer::Idle {
            return Poll::Pending;
        }
        if state.closing {
            self.0.ended.send(()).expect("it is waited for");
        } else {
            state.driving = Driving::Resting;
        }
        Poll::Ready(())
    }

    fn poll_read(&self, cx: &Context<'_>, count: usize) -> Poll<()> {
        let mut pipe = self.0.pipe.lock().expect("no panic");
        let bytes: Vec<u8> = pipe.bytes.drain(..).collect();
        pipe.taken.extend(bytes);
        if pipe.taken.len() == count {
            return Poll::Ready(());
        }
        pipe.reader = Some(cx.waker().clone());
        let writer = pipe.writer.take();
        drop(pipe);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Pending
    }
}

/// Three callers add frames and write, a reader takes them slowly, and the connection is closed, while the
/// last are on their way or when all have arrived: whatever the order, every frame arrives once and in its
/// caller's order, nobody waits for ever, and the driver ends.
fn run(close_at_once: bool) {
    const CALLERS: u8 = 3;
    const FRAMES: u8 = 3;
    let (ended, has_ended) = mpsc::channel();
    let connection = Connection::new(ended);
    connection.clone().make_driver();
    let reader = {
        let connection = connection.clone();
        let count = usize::from(CALLERS * FRAMES);
        thread::spawn(move || future::block_on(poll_fn(|cx| connection.poll_read(cx, count))))
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let connection = connection.clone();
            thread::spawn(move || {
                for n in 0..FRAMES {
                    let mut state = connection.lock();
                    state.waiting.push_back(caller * FRAMES + n);
                    state.added += 1;
                    if close_at_once && state.added == CALLERS * FRAMES {
                        connection.close(&mut state);
                    }
                    drop(state);
                    connection.write_out();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.join().expect("no panic");
    }
    // A close wakes the driver, and would hide a wake-up that was lost before it.
    reader.join().expect("no panic");
    if !close_at_once {
        connection.close(&mut connection.lock());
    }
    has_ended.recv().expect("a driver ends");
    let mut taken = std::mem::take(&mut connection.0.pipe.lock().expect("no panic").taken);
    for caller in 0..CALLERS {
        let own = taken.iter().copied().filter(|byte| byte / FRAMES == caller);
        assert!(own.is_sorted(), "{taken:?}");
    }
    taken.sort_unstable();
    assert!(taken.into_iter().eq(0..CALLERS * FRAMES));
}

/// Steps of one run, a hundred times as many as it needs: a run that turns in a circle fails.
const STEPS_MAX: usize = 100_000;

/// Orders drawn at random, and orders with few, well placed changes of thread: those in which a wake-up
/// is lost, if one can be.
fn check(run: fn()) {
    let config = || {
        let mut config = Config::new();
        config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
        config
    };
    Runner::new(RandomScheduler::new(1_000), config()).run(run);
    Runner::new(PctScheduler::new(4, 1_000), config()).run(run);
}

#[test]
fn every_frame_is_written_without_a_close() {
    check(|| run(false));
}

#[test]
fn every_frame_is_written_before_a_close() {
    check(|| run(true));
}

/// How each attempt ends decides who goes on, and whether somebody has to be woken for it.
#[test]
fn the_end_of_an_attempt_says_who_goes_on() {
    use writer::Next::{self, Again, Done, Fail, Wait, WakeDriver, Yield};
    let finish = |hand, outcome: Outcome<&'static str>| {
        let mut writer = Writer::Busy;
        let next: Next<&'static str> = writer.finish(hand, outcome);
        (next, writer)
    };
    for hand in [Hand::Caller, Hand::Driver] {
        assert!(matches!(finish(hand, Outcome::Empty), (Done, Writer::Idle)));
        assert!(matches!(finish(hand, Outcome::Moved), (Again, Writer::Idle)));
        assert!(matches!(finish(hand, Outcome::Failed("broken")), (Fail("broken"), Writer::Idle)));
    }
    assert!(matches!(finish(Hand::Caller, Outcome::Enough), (WakeDriver, Writer::LeftOff)));
    assert!(matches!(finish(Hand::Driver, Outcome::Enough), (Yield, Writer::Blocked)));
    assert!(matches!(finish(Hand::Caller, Outcome::Full), (WakeDriver, Writer::Blocked)));
    assert!(matches!(finish(Hand::Driver, Outcome::Full), (Wait, Writer::Blocked)));
}

/// Each state lets in whom it should: a caller only when nobody writes, the driver also when it waits.
#[test]
fn a_hand_writes_when_it_is_its_turn() {
    use writer::Begin::{Leave, Write, Yield};
    let states = [Writer::Idle, Writer::Busy, Writer::Blocked, Writer::LeftOff];
    let begin = |hand| {
        states.map(|mut writer| {
            let begin = writer.begin(hand);
            (begin, writer)
        })
    };
    let caller = [Write, Leave, Leave, Leave];
    assert_eq!(begin(Hand::Caller), std::array::from_fn(|at| (caller[at], states[at])));
    let driver = [(Write, Writer::Idle), (Leave, Writer::Busy), (Write, Writer::Blocked), (Yield, Writer::Blocked)];
    assert_eq!(begin(Hand::Driver), driver);
}
