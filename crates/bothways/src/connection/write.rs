//! Who writes, and when: whoever adds a frame to an idle outbox, outside the lock.

use std::io;

use parking_lot::MutexGuard;

use super::{
    Connection, Shared, State, driver,
    end::Phase,
    outbox::{WRITE_BYTES, Wire, Writing},
    send::Sent,
};

impl Connection {
    /// Writes what is queued, as far as the socket takes it without waiting.
    pub fn flush(&self) -> Sent {
        if self.write_out() { Sent::Written } else { Sent::Queued }
    }

    /// Writes soon: at once, or, within the handling of a read, when that is done.
    pub(crate) fn flush_soon(&self) -> Sent {
        if driver::put_off_flush(self) { Sent::Queued } else { self.flush() }
    }

    /// Ends the use of the state; writes if so much waits that a write pays for itself.
    pub(super) fn write_if_much(&self, state: MutexGuard<'_, State>) {
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
    pub(super) fn write_out_of<'a>(&'a self, mut state: MutexGuard<'a, State>) -> bool {
        /// Batches that a caller writes before it leaves the rest to the driver, so that it is not
        /// kept busy with what others add.
        const ROUNDS: usize = 4;
        let shared = &*self.shared;
        if state.outbox.writing != Writing::Idle {
            return false;
        }
        let mut total = 0;
        for _ in 0..ROUNDS {
            if WRITE_BYTES <= total {
                break;
            }
            let Some(mut wire) = shared.take(&mut state) else {
                self.written_out(state);
                return true;
            };
            state.outbox.writing = Writing::Busy;
            drop(state);
            let mut written = 0;
            let error = loop {
                let result = wire.write_with(
                    total + written,
                    |slices| shared.socket.try_write(slices),
                    |n| *n.as_ref().unwrap_or(&0),
                );
                match result {
                    Ok(0) => break Some(io::Error::from(io::ErrorKind::WriteZero)),
                    Ok(n) => {
                        written += n;
                        if wire.is_empty() || WRITE_BYTES <= total + written {
                            break None;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Some(error),
                }
            };
            total += written;
            state = shared.state.lock();
            state.outbox.put_back(wire, written);
            match error {
                None => state.outbox.writing = Writing::Idle,
                Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.outbox.writing = Writing::Blocked;
                    self.wake_driver(&mut state);
                    return false;
                }
                Some(error) => {
                    state.outbox.writing = Writing::Idle;
                    self.end(&mut state, error.into());
                    return false;
                }
            }
        }
        if state.outbox.is_empty() {
            self.written_out(state);
            return true;
        }
        state.outbox.writing = Writing::LeftOff;
        self.wake_driver(&mut state);
        false
    }

    /// Everything is with the kernel: the driver, or the layer above, may have waited for that.
    fn written_out(&self, mut state: MutexGuard<'_, State>) {
        if state.paused || !matches!(state.phase, Phase::Open) {
            self.wake_driver(&mut state);
        }
        let wanted = std::mem::take(&mut state.room_wanted);
        drop(state);
        if wanted {
            self.shared.inlet.handle_room(self);
        }
    }
}

impl Shared {
    /// Takes what is next to be written; tells those who wait for room in the queue of pushes.
    pub(super) fn take(&self, state: &mut State) -> Option<Box<Wire>> {
        let waiting = state.outbox.pushes_waiting();
        let wire = state.outbox.take();
        if state.outbox.pushes_waiting() != waiting {
            self.changed.notify_waiters();
        }
        wire
    }
}
