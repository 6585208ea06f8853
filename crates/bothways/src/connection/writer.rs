//! The rules by which one of several writes to a connection's socket, and another takes over.
//!
//! ```text
//!          begin                          finish
//!  Idle ─────────► Busy ──┬─ all is written ─────────────► Idle
//!   ▲                ▲    ├─ the socket is full ─────────► Blocked     the driver waits for it
//!   │                │    ├─ a caller wrote enough ──────► LeftOff     the driver is woken, and
//!   │                │    │                                  │         yields to others once
//!   │                │    ├─ the driver wrote enough ────► Blocked ◄┘  and goes on
//!   └── it failed ───┼────┘                                  │
//!                    └──────────── the driver ◄──────────────┘
//! ```
//!
//! Nothing here knows of locks, wakers or sockets: what the engine and `tests/writer.rs` run is this file. There a
//! scheduler tries the orders in which callers, the driver and a reader may come.

/// Whether a thread writes, and what the next one does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Writer {
    /// Nobody: the next that adds a frame may write.
    #[default]
    Idle,
    /// Somebody does, outside the lock, and will look again when done.
    Busy,
    /// The socket is full, or enough was written for now: the driver waits for it, or for its turn.
    Blocked,
    /// A caller wrote enough for now: the driver goes on, after others have had their turn.
    LeftOff,
}

/// The caller that wants to write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hand {
    /// The caller that added a frame. It never waits for the socket.
    Caller,
    /// The connection's task, which does.
    Driver,
}

/// May a hand write?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Begin {
    Write,
    /// Others are to have their turn first; the driver has itself woken after them.
    Yield,
    /// Somebody else writes, or will.
    Leave,
}

/// What became of one attempt to write.
#[derive(Debug)]
pub(super) enum Outcome<E> {
    /// There was nothing to write.
    Empty,
    /// All that was taken is written; there may be more.
    Moved,
    /// As much is written as one turn may.
    Enough,
    /// The socket takes no more now.
    Full,
    /// The socket takes nothing any more.
    Failed(E),
}

/// What the hand that wrote does next.
#[derive(Debug)]
pub(super) enum Next<E> {
    Again,
    /// Everything is with the kernel.
    Done,
    /// The rest is the driver's, which has to be woken.
    WakeDriver,
    /// The driver waits for the socket, which wakes it.
    Wait,
    /// The driver goes on when others have had their turn.
    Yield,
    Fail(E),
}

impl Writer {
    /// A hand wants to write.
    pub(super) fn begin(&mut self, hand: Hand) -> Begin {
        match (hand, *self) {
            (_, Self::Idle) | (Hand::Driver, Self::Blocked) => Begin::Write,
            (Hand::Driver, Self::LeftOff) => {
                *self = Self::Blocked;
                Begin::Yield
            }
            _ => Begin::Leave,
        }
    }

    /// The hand that writes is done with what it took.
    pub(super) fn finish<E>(&mut self, hand: Hand, outcome: Outcome<E>) -> Next<E> {
        let (writer, next) = match (outcome, hand) {
            (Outcome::Empty, _) => (Self::Idle, Next::Done),
            (Outcome::Moved, _) => (Self::Idle, Next::Again),
            (Outcome::Enough, Hand::Caller) => (Self::LeftOff, Next::WakeDriver),
            (Outcome::Enough, Hand::Driver) => (Self::Blocked, Next::Yield),
            (Outcome::Full, Hand::Caller) => (Self::Blocked, Next::WakeDriver),
            (Outcome::Full, Hand::Driver) => (Self::Blocked, Next::Wait),
            (Outcome::Failed(error), _) => (Self::Idle, Next::Fail(error)),
        };
        *self = writer;
        next
    }
}

/// What the loop below needs of a connection.
pub(super) trait Desk {
    /// The lock on everything but the socket.
    type Guard<'a>
    where
        Self: 'a;
    /// What one attempt to write is given.
    type Batch;

    fn lock(&self) -> Self::Guard<'_>;

    fn writer<'g>(guard: &'g mut Self::Guard<'_>) -> &'g mut Writer;

    /// Takes what is next to be written.
    fn take<'a>(&'a self, guard: &mut Self::Guard<'a>) -> Option<Self::Batch>;

    /// Puts back what was taken; so many bytes of it are written.
    fn put_back<'a>(&'a self, guard: &mut Self::Guard<'a>, batch: Self::Batch, written: usize);

    fn wake_driver<'a>(&'a self, guard: &mut Self::Guard<'a>);
}

/// How much one hand writes before it leaves the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) hand: Hand,
    /// Attempts that are left.
    pub(super) batches: usize,
    /// Bytes written so far.
    pub(super) written: usize,
    pub(super) bytes_max: usize,
}

impl Turn {
    fn is_over(&self) -> bool {
        self.batches == 0 || self.bytes_max <= self.written
    }
}

/// How a turn of writing ended.
#[derive(Debug)]
pub(super) enum Ended<E> {
    /// Everything is with the kernel.
    Done,
    /// Somebody writes the rest, and needs nobody for it.
    Left,
    /// The driver is to have itself woken when others have had their turn.
    Yield,
    Failed(E),
}

/// Writes until nothing is left, the turn is over or the socket is full. `write` is given what was taken and how much
/// was written in this turn; it returns how many bytes the socket took. The lock is held again at the end.
pub(super) fn write<'a, D: Desk, E>(
    desk: &'a D,
    mut guard: D::Guard<'a>,
    turn: &mut Turn,
    mut write: impl FnMut(&mut D::Batch, usize) -> (usize, Outcome<E>),
) -> (D::Guard<'a>, Ended<E>) {
    match D::writer(&mut guard).begin(turn.hand) {
        Begin::Write => {}
        Begin::Yield => return (guard, Ended::Yield),
        Begin::Leave => return (guard, Ended::Left),
    }

    loop {
        let outcome = match desk.take(&mut guard) {
            None => Outcome::Empty,
            Some(batch) if turn.is_over() => {
                desk.put_back(&mut guard, batch, 0);
                Outcome::Enough
            }
            Some(mut batch) => {
                *D::writer(&mut guard) = Writer::Busy;
                // Let go: others add frames meanwhile, and find that somebody writes.
                drop(guard);
                let (written, outcome) = write(&mut batch, turn.written);
                turn.written += written;
                turn.batches -= 1;

                guard = desk.lock();
                desk.put_back(&mut guard, batch, written);
                outcome
            }
        };

        let ended = match D::writer(&mut guard).finish(turn.hand, outcome) {
            Next::Again => continue,
            Next::Done => Ended::Done,
            Next::WakeDriver => {
                desk.wake_driver(&mut guard);
                Ended::Left
            }
            Next::Wait => Ended::Left,
            Next::Yield => Ended::Yield,
            Next::Fail(error) => Ended::Failed(error),
        };
        return (guard, ended);
    }
}
