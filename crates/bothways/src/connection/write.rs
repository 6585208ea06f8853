//! Writes to the socket. The caller that adds a frame to an idle outbox writes it at once, outside the lock.

use std::{
    io::{self, IoSlice},
    task::Poll,
};

use super::{
    Connection,
    end::Phase,
    lock::Locked,
    send::Sent,
    wire::{WRITE_BYTES, Wire},
    writer::{self, Desk, Ended, Hand, Outcome, Turn, Writer},
};

impl Connection {
    /// Writes what is queued, as far as the socket takes it without waiting.
    pub(crate) fn flush(&self) -> Sent {
        if self.write_out() { Sent::Written } else { Sent::Queued }
    }

    /// Ends the use of the state; writes if so much waits that a write pays for itself.
    #[inline(always)]
    pub(super) fn write_if_much(&self, state: Locked<'_>) {
        let much = state.outbox.wants_write();
        drop(state);
        if much {
            self.write_out();
        }
    }

    /// Writes until nothing is left (true), or until the socket is full or somebody else writes (false).
    pub(super) fn write_out(&self) -> bool {
        self.write_out_of(self.shared.state.lock())
    }

    /// Like [`Self::write_out`], for who holds the lock already.
    pub(super) fn write_out_of<'a>(&'a self, state: Locked<'a>) -> bool {
        /// Batches that a caller writes before it leaves the rest to the driver, so that it is not
        /// kept busy with what others add.
        const ROUNDS: usize = 4;

        let mut turn = Turn { hand: Hand::Caller, batches: ROUNDS, written: 0, bytes_max: WRITE_BYTES };
        let (mut state, ended) = writer::write(self, state, &mut turn, |wire, done| {
            move_bytes(wire, done, |slices| match self.shared.socket.try_write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                result => Poll::Ready(result),
            })
        });

        match ended {
            Ended::Done => {
                self.written_out(state);
                true
            }
            Ended::Left | Ended::Yield => false,
            Ended::Failed(error) => {
                self.end(&mut state, error.into());
                false
            }
        }
    }

    /// Everything is with the kernel: the driver, or the layer above, may have waited for that.
    fn written_out(&self, mut state: Locked<'_>) {
        if state.paused || !matches!(state.phase, Phase::Open) {
            self.wake_driver(&mut state);
        }
        let wanted = std::mem::take(&mut state.writable_wanted);
        // The layer above has locks of its own, and sends from there.
        drop(state);
        if wanted {
            self.shared.handler.on_writable(self);
        }
    }
}

impl Desk for Connection {
    type Guard<'a> = Locked<'a>;
    type Batch = Box<Wire>;

    fn lock(&self) -> Locked<'_> {
        self.shared.state.lock()
    }

    fn writer<'g>(state: &'g mut Locked<'_>) -> &'g mut Writer {
        &mut state.outbox.writer
    }

    /// Also tells those who wait for room in the queue of pushes.
    fn take<'a>(&'a self, state: &mut Locked<'a>) -> Option<Box<Wire>> {
        let waiting = state.outbox.pushes_waiting();
        let wire = state.outbox.take();
        if state.outbox.pushes_waiting() != waiting {
            state.notify(&self.shared.changed);
        }
        wire
    }

    fn put_back<'a>(&'a self, state: &mut Locked<'a>, mut wire: Box<Wire>, written: usize) {
        if let Some(meters) = self.shared.settings.meters.as_ref().filter(|_| written != 0) {
            meters.wrote(wire.take_frames(), written);
        }
        state.outbox.put_back(wire, written);
        match state.phase {
            // It ended meanwhile, and a handle on it may be kept for long.
            Phase::Closed(_) => self.forget_outgoing(state, false),
            _ => state.outbox.recount(self.shared.settings.load.outgoing()),
        }
    }

    fn wake_driver<'a>(&'a self, state: &mut Locked<'a>) {
        Connection::wake_driver(self, state);
    }
}

/// Moves what was taken to the socket, beside what was written in this turn already. How many bytes went, also if it
/// failed then.
pub(super) fn move_bytes(
    wire: &mut Wire,
    done: usize,
    mut write: impl FnMut(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
) -> (usize, Outcome<io::Error>) {
    let mut written = 0;
    loop {
        let polled = wire.write_with(done + written, &mut write, |polled| match polled {
            Poll::Ready(Ok(n)) => *n,
            _ => 0,
        });

        match polled {
            Poll::Ready(Ok(0)) => return (written, Outcome::Failed(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => {
                written += n;
                if wire.is_empty() || WRITE_BYTES <= done + written {
                    return (written, Outcome::Moved);
                }
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(Err(error)) => return (written, Outcome::Failed(error)),
            Poll::Pending => {
                wire.keep_alone();
                return (written, Outcome::Full);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bothways_proto::{Header, Message, Metadata, Role, Seq, SerializeType};

    use super::*;
    use crate::connection::{alone::alone, lanes::Lane};

    /// Callers that wait for room in the queue of pushes are woken when a push leaves it, and not when a reply does.
    #[tokio::test(start_paused = true)]
    async fn a_push_that_is_taken_to_be_written_makes_room() {
        let (connection, _far) = alone(Role::Server);
        let header = Header::oneway(Seq::of_push(1), SerializeType::RAW);
        let message = Message::new(header, "T", "m", &Metadata::new(), b"x");
        for (lane, makes_room) in [(Lane::Push, true), (Lane::Reply, false)] {
            let room = connection.shared.changed.notified();
            let mut state = connection.shared.state.lock();
            state.outbox.writer = Writer::Blocked;
            state.outbox.add_frame(lane, message.frame(), &connection.shared.settings.bounds()).expect("room");
            state.outbox.writer = Writer::Idle;
            assert!(Desk::take(&connection, &mut state).is_some());
            drop(state);
            let told = tokio::time::timeout(std::time::Duration::ZERO, room).await.is_ok();
            assert_eq!(told, makes_room, "{lane:?}");
            connection.shared.state.lock().outbox.clear();
        }
    }

    /// What a socket answers, in order.
    type Answers = VecDeque<Poll<io::Result<usize>>>;

    /// Moves so many bytes to a socket that answers like this; answers what it was offered each time as well.
    fn moved(bytes: usize, done: usize, answers: impl Into<Answers>) -> (usize, Outcome<io::Error>, Vec<usize>) {
        let mut answers: Answers = answers.into();
        let mut wire = Wire::default();
        wire.push(vec![7; bytes].into());
        let mut offered = Vec::new();
        let (written, outcome) = move_bytes(&mut wire, done, |slices| {
            offered.push(slices.iter().map(|slice| slice.len()).sum());
            answers.pop_front().expect("it is asked no more often")
        });
        assert!(answers.is_empty(), "it is asked as often");
        assert_eq!(wire.bytes(), bytes - written);
        (written, outcome, offered)
    }

    fn fails(kind: io::ErrorKind) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(kind.into()))
    }

    /// Each answer of a socket has one outcome, and what it took before counts in all of them.
    #[test]
    fn what_a_socket_took_counts_however_it_ends() {
        let took = |n| Poll::Ready(Ok(n));
        assert!(matches!(moved(100, 0, [took(60), took(40)]), (100, Outcome::Moved, _)));
        assert!(matches!(moved(100, 0, [took(60), Poll::Pending]), (60, Outcome::Full, _)));
        let broken = moved(100, 0, [took(60), fails(io::ErrorKind::ConnectionReset)]);
        assert!(matches!(broken, (60, Outcome::Failed(_), _)), "{broken:?}");
        let (written, outcome, offered) = moved(100, 0, [fails(io::ErrorKind::Interrupted), took(100)]);
        assert!(matches!((written, outcome), (100, Outcome::Moved)) && offered == [100, 100]);
    }

    /// A socket that takes nothing and says that it did is broken, and is not asked for ever.
    #[test]
    fn a_socket_that_takes_nothing_is_broken() {
        let (written, outcome, _) = moved(100, 0, [Poll::Ready(Ok(0))]);
        assert!(matches!(outcome, Outcome::Failed(error) if error.kind() == io::ErrorKind::WriteZero) && written == 0);
    }

    /// A turn ends at its share of bytes, and not before.
    #[test]
    fn a_turn_ends_at_its_share() {
        let took = |n| Poll::Ready(Ok(n));
        let (written, outcome, offered) = moved(2 * WRITE_BYTES, 10, [took(WRITE_BYTES - 11), took(1)]);
        assert!(matches!((written, outcome), (n, Outcome::Moved) if n == WRITE_BYTES - 10));
        assert_eq!(offered, [WRITE_BYTES - 10, 1]);
    }
}
