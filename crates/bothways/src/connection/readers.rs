//! What comes to idle connections, read by a few tasks.
//!
//! A connection [at rest](super::rest) has no task. Often very many of them get something at once: all clients call when
//! they are connected, or acknowledge what was published to them. A task made for each would take some 400 bytes, all of
//! them before the first one runs, and when they are gone the allocator keeps most of that.
//!
//! So connections that wake wait in a queue, each once, and up to [`WAITING_MAX`] tasks take one after another from it
//! and give its driver one turn. A driver that is not done with that goes on in a task of its own. A handler that blocks
//! its thread holds up nobody else: while anything is in the queue some task waits for a thread that takes it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{Connection, driver::Driver};
use crate::guard;

/// Tasks that are made for what is in the queue; those that run do not count.
const WAITING_MAX: usize = 16;

/// One that runs makes another if fewer than these wait, as it may be long.
const WAITING_MIN: usize = 4;

/// A queue that is empty again keeps room for so many.
const KEPT: usize = 1024;

/// The idle connections of one address that something has come to, and the runtime that reads it.
pub(crate) struct Readers {
    runtime: Handle,
    woken: Mutex<Woken>,
}

#[derive(Default)]
struct Woken {
    /// Each once, for its state says so: no more than there are connections.
    connections: VecDeque<Connection>,
    /// Tasks that are about to take one. At least one, while there are any.
    waiting: usize,
}

impl Woken {
    /// True if one more task is to be made, which counts as waiting from here on.
    fn wants_another(&mut self, waiting_max: usize) -> bool {
        let wants = self.waiting < waiting_max.min(self.connections.len());
        self.waiting += usize::from(wants);
        wants
    }

    fn take(&mut self) -> Option<Connection> {
        let connection = self.connections.pop_front();
        if self.connections.is_empty() && KEPT < self.connections.capacity() {
            self.connections = VecDeque::new();
        }
        connection
    }
}

impl Readers {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { runtime, woken: Mutex::default() })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has the driver of this connection made, which has none. Not to be called under its lock: if the runtime has ended,
    /// the connection ends here.
    pub(super) fn take(self: &Arc<Self>, connection: Connection) {
        let wants_another = {
            let mut woken = self.woken.lock();
            woken.connections.push_back(connection);
            woken.wants_another(WAITING_MAX)
        };
        if wants_another {
            self.make_one();
        }
    }

    fn make_one(self: &Arc<Self>) {
        self.runtime.spawn(Reader { readers: Arc::clone(self), is_done: false });
    }
}

/// One of the tasks.
struct Reader {
    readers: Arc<Readers>,
    is_done: bool,
}

impl Reader {
    /// The next connection, if there is one.
    fn next(&self) -> Option<Connection> {
        let (connection, wants_another) = {
            let mut woken = self.readers.woken.lock();
            woken.waiting -= 1;
            (woken.take(), woken.wants_another(WAITING_MIN))
        };
        if wants_another {
            self.readers.make_one();
        }
        connection
    }

    /// True if this one is to take another connection.
    fn goes_on(&self) -> bool {
        self.readers.woken.lock().wants_another(WAITING_MAX)
    }
}

impl Future for Reader {
    type Output = ();

    /// Takes one connection: others have their turn between two of them, as between two tasks.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = self.next() {
            guard::one_of_many(|| {
                let mut driver = Driver::new(connection);
                // Polled again in a task of its own, it sees what this one was woken for meanwhile.
                if Pin::new(&mut driver).poll(cx).is_pending() {
                    driver.note_moved();
                    self.readers.runtime.spawn(driver);
                }
            });
            if self.goes_on() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.is_done = true;
        Poll::Ready(())
    }
}

impl Drop for Reader {
    /// With its runtime: nobody reads what is in the queue, and its connections end.
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let left = {
            let mut woken = self.readers.woken.lock();
            woken.waiting -= 1;
            std::mem::take(&mut woken.connections)
        };
        left.into_iter().for_each(|connection| guard::one_of_many(|| drop(Driver::new(connection))));
    }
}
