//! Who writes: a model of the connection's writer protocol under a scheduler that tries the orders.
//!
//! The real code lives in `connection/write.rs` (`write_out`), `connection/driver.rs` (`poll_writes`, the start and
//! the end of `poll`) and `connection/rest.rs` (`make_driver`, `wake_driver`, `poll_rest`), on locks and wakers that
//! such a scheduler cannot steer. This is the same protocol line by line, with bytes for frames and no lanes: a
//! change there is a change here.
//! `connection/tests/threads.rs` presses the real one with real threads.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use shuttle::{
    future,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Writing {
    Idle,
    Busy,
    Blocked,
}

/// As there: who writes when the socket was full.
enum Driving {
    Resting,
    Called,
    Made,
    Task(Waker),
}

struct State {
    waiting: VecDeque<u8>,
    writing: Writing,
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
/// As `ROUNDS` there: batches that a caller writes before it leaves the rest to the driver.
const ROUNDS: usize = 2;

struct Shared {
    state: Mutex<State>,
    pipe: Mutex<Pipe>,
    /// Told when a driver has ended the connection.
    ended: mpsc::Sender<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn try_write(&self, bytes: &mut VecDeque<u8>, waiting: Option<&Waker>) -> bool {
        let mut pipe = self.pipe.lock().expect("no panic");
        while pipe.bytes.len() < ROOM
            && let Some(byte) = bytes.pop_front()
        {
            pipe.bytes.push_back(byte);
        }
        if !bytes.is_empty()
            && let Some(waker) = waiting
        {
            pipe.writer = Some(waker.clone());
        }
        let reader = pipe.reader.take();
        drop(pipe);
        if let Some(reader) = reader {
            reader.wake();
        }
        bytes.is_empty()
    }

    /// As `Connection::close_after_flush`.
    fn close(self: &Arc<Self>, state: &mut State) {
        state.closing = true;
        self.wake_driver(state);
    }

    fn wake_driver(self: &Arc<Self>, state: &mut State) {
        match &state.driving {
            Driving::Task(driver) => driver.wake_by_ref(),
            Driving::Called | Driving::Made => {}
            Driving::Resting => {
                state.driving = Driving::Called;
                let shared = Arc::clone(self);
                thread::spawn(move || shared.make_driver());
            }
        }
    }

    fn make_driver(self: Arc<Self>) {
        let mut state = self.lock();
        if !matches!(state.driving, Driving::Resting | Driving::Called) {
            return;
        }
        state.driving = Driving::Made;
        drop(state);
        thread::spawn(move || future::block_on(poll_fn(|cx| self.poll_driver(cx))));
    }

    fn written_out(self: &Arc<Self>, state: &mut State) {
        if state.closing {
            self.wake_driver(state);
        }
    }

    /// As `Connection::write_out`.
    fn write_out(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.writing != Writing::Idle {
            return;
        }
        for _ in 0..ROUNDS {
            if state.waiting.is_empty() {
                self.written_out(&mut state);
                return;
            }
            let mut wire = std::mem::take(&mut state.waiting);
            state.writing = Writing::Busy;
            drop(state);
            let done = self.try_write(&mut wire, None);
            state = self.lock();
            wire.extend(state.waiting.drain(..));
            state.waiting = wire;
            if !done {
                state.writing = Writing::Blocked;
                self.wake_driver(&mut state);
                return;
            }
            state.writing = Writing::Idle;
        }
        if state.waiting.is_empty() {
            self.written_out(&mut state);
            return;
        }
        state.writing = Writing::Blocked;
        self.wake_driver(&mut state);
    }

    /// As `Driver::poll_writes`.
    fn poll_writes(&self, cx: &Context<'_>) {
        let mut state = self.lock();
        if state.writing == Writing::Busy {
            return;
        }
        loop {
            if state.waiting.is_empty() {
                state.writing = Writing::Idle;
                return;
            }
            let mut wire = std::mem::take(&mut state.waiting);
            state.writing = Writing::Busy;
            drop(state);
            let done = self.try_write(&mut wire, Some(cx.waker()));
            state = self.lock();
            wire.extend(state.waiting.drain(..));
            state.waiting = wire;
            if !done {
                state.writing = Writing::Blocked;
                return;
            }
            state.writing = Writing::Idle;
        }
    }

    /// As `Driver::poll`: the waker first, then the writes, then the end, or the rest.
    fn poll_driver(&self, cx: &Context<'_>) -> Poll<()> {
        self.lock().driving = Driving::Task(cx.waker().clone());
        self.poll_writes(cx);
        let mut state = self.lock();
        if !state.waiting.is_empty() || state.writing != Writing::Idle {
            return Poll::Pending;
        }
        if state.closing {
            self.ended.send(()).expect("it is waited for");
        } else {
            state.driving = Driving::Resting;
        }
        Poll::Ready(())
    }

    fn poll_read(&self, cx: &Context<'_>, count: usize) -> Poll<()> {
        let mut pipe = self.pipe.lock().expect("no panic");
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
    let (waiting, writing, driving) = (VecDeque::new(), Writing::Idle, Driving::Resting);
    let state = State { waiting, writing, driving, added: 0, closing: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), pipe: Mutex::new(Pipe::default()), ended });
    Arc::clone(&shared).make_driver();
    let reader = {
        let shared = Arc::clone(&shared);
        let count = usize::from(CALLERS * FRAMES);
        thread::spawn(move || future::block_on(poll_fn(|cx| shared.poll_read(cx, count))))
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for n in 0..FRAMES {
                    let mut state = shared.lock();
                    state.waiting.push_back(caller * FRAMES + n);
                    state.added += 1;
                    if close_at_once && state.added == CALLERS * FRAMES {
                        shared.close(&mut state);
                    }
                    drop(state);
                    shared.write_out();
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
        shared.close(&mut shared.lock());
    }
    has_ended.recv().expect("a driver ends");
    let mut taken = std::mem::take(&mut shared.pipe.lock().expect("no panic").taken);
    for caller in 0..CALLERS {
        let own = taken.iter().copied().filter(|byte| byte / FRAMES == caller);
        assert!(own.is_sorted(), "{taken:?}");
    }
    taken.sort_unstable();
    assert!(taken.into_iter().eq(0..CALLERS * FRAMES));
}

/// Orders drawn at random, and orders with few, well placed changes of thread: those in which a wake-up
/// is lost, if one can be.
fn check(run: fn()) {
    shuttle::check_random(run, 1_000);
    shuttle::check_pct(run, 1_000, 4);
}

#[test]
fn every_frame_is_written_without_a_close() {
    check(|| run(false));
}

#[test]
fn every_frame_is_written_before_a_close() {
    check(|| run(true));
}
