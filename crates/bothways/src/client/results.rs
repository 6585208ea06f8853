//! Replies to the server's calls, so that a call that is sent again after a lost connection runs once.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bothways_proto::keys;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use crate::{
    error::ErrorCode,
    handler::{BoxHandler, Request},
    reply::{BoxFuture, Reply},
};

/// Most calls that are remembered, those that run not counted. A server sends a call again right after a resume
/// and only while it waits for it, so that these are the calls whose replies one lost connection can swallow.
const CALLS: usize = 1024;

/// Most bytes of their replies. Older ones are let go: such a call is known and not run again, but a reply that
/// was lost on its way is lost.
const REPLY_BYTES: usize = 4 << 20;

/// Most bytes of the id of a call: ours have 16. A call with a longer one runs each time it comes.
const ID_BYTES: usize = 64;

/// Calls that run or have run, by the id that their server gave them.
#[derive(Clone, Debug, Default)]
pub(super) struct Results {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    runs: HashMap<String, Arc<Run>>,
    /// Those that are over, oldest first, with the bytes of their replies.
    over: VecDeque<(String, usize)>,
    bytes: usize,
    /// How many of `over`, from the front, have let their replies go.
    let_go: usize,
}

/// One call. Whoever waits for it, on whatever connection it was sent, waits for the same run.
#[derive(Debug, Default)]
struct Run {
    reply: OnceCell<Reply>,
    /// Nobody wants the reply any more, and nothing of it may run on.
    given_up: AtomicBool,
    is_over: AtomicBool,
    changed: Notify,
}

impl Results {
    /// Runs a handler, or waits for the one that runs already, or gives its reply once more.
    ///
    /// Dropping the future gives the call up, wherever it runs: its server cancelled it, or its time is over.
    pub(super) fn once(&self, request: Request, handler: &BoxHandler) -> BoxFuture<Reply> {
        let metadata = request.metadata();
        let Some(id) = metadata.get(keys::CALL_ID).filter(|id| id.len() <= ID_BYTES) else {
            return handler.handle(request);
        };
        let run = Arc::clone(self.known.lock().runs.entry(id.to_owned()).or_default());
        let wait = Wait { results: self.clone(), id: id.to_owned(), run, is_over: false };
        wait.reply(handler.handle(request))
    }

    /// Its server gave a call up that may have come on an earlier connection: it stops, or never runs.
    pub(super) fn give_up(&self, id: &str) {
        if id.is_empty() || ID_BYTES < id.len() {
            return;
        }
        let mut known = self.known.lock();
        let run = Arc::clone(known.runs.entry(id.to_owned()).or_default());
        run.given_up.store(true, Ordering::Release);
        known.end(id, &run);
        drop(known);
        run.changed.notify_waiters();
    }
}

impl Run {
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

/// One who waits for a run.
struct Wait {
    results: Results,
    id: String,
    run: Arc<Run>,
    is_over: bool,
}

impl Wait {
    fn reply(mut self, handler: BoxFuture<Reply>) -> BoxFuture<Reply> {
        Box::pin(async move {
            let run = Arc::clone(&self.run);
            let given_up = async {
                loop {
                    let changed = run.changed.notified();
                    if run.given_up.load(Ordering::Acquire) {
                        return;
                    }
                    changed.await;
                }
            };
            let reply = tokio::select! {
                biased;
                () = given_up => Reply::refused(ErrorCode::Timeout, "the call was given up, and does not run again"),
                reply = run.reply.get_or_init(|| kept(handler)) => reply.clone(),
            };
            self.is_over = true;
            self.results.known.lock().end(&self.id, &run);
            reply
        })
    }
}

/// A reply that is kept has bounds of its own, and takes no room of calls that run.
async fn kept(handler: BoxFuture<Reply>) -> Reply {
    Reply { held: None, ..handler.await }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.is_over {
            self.run.give_up();
            self.results.known.lock().end(&self.id, &self.run);
        }
    }
}

impl Known {
    /// Notes that a run is over, once, and forgets what is beyond the bounds.
    fn end(&mut self, id: &str, run: &Arc<Run>) {
        if run.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let bytes = run.reply.get().map_or(0, Reply::payload_bytes);
        self.over.push_back((id.to_owned(), bytes));
        self.bytes += bytes;
        while REPLY_BYTES < self.bytes && self.let_go + 1 < self.over.len() {
            let (id, bytes) = &mut self.over[self.let_go];
            self.bytes -= std::mem::take(bytes);
            if let Some(run) = self.runs.get_mut(id) {
                *run = Arc::new(Run { given_up: true.into(), is_over: true.into(), ..Run::default() });
            }
            self.let_go += 1;
        }
        if CALLS < self.over.len()
            && let Some((oldest, bytes)) = self.over.pop_front()
        {
            self.bytes -= bytes;
            self.let_go = self.let_go.saturating_sub(1);
            self.runs.remove(&oldest);
        }
    }
}
