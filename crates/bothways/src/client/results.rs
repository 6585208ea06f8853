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
    shrink::keep_alone,
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

/// One call. All that wait for it, on whichever connection it was sent, wait for the same run.
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
                    // Made before the look: a call that is given up in between still wakes it.
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

/// A reply that is kept has bounds of its own, and takes no room of calls that run, nor what its payload is a part of.
async fn kept(handler: BoxFuture<Reply>) -> Reply {
    let mut reply = handler.await;
    reply.metadata.compact();
    Reply { held: None, outcome: reply.outcome.as_ref().map(keep_alone).map_err(Clone::clone), ..reply }
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

        // The newest reply stays, however large: it is the likeliest to be asked for again.
        while REPLY_BYTES < self.bytes && self.let_go + 1 < self.over.len() {
            let (id, bytes) = &mut self.over[self.let_go];
            self.bytes -= std::mem::take(bytes);
            if let Some(run) = self.runs.get_mut(id) {
                // Without its reply, it still says that the call has run.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::shrink::COPY_BYTES;

    /// A call that is over, and the bytes of its reply.
    fn over(known: &mut Known, id: &str, bytes: usize) {
        let run = Arc::clone(known.runs.entry(id.to_owned()).or_default());
        assert!(run.reply.set(Reply::ok(Bytes::from(vec![0; bytes]))).is_ok());
        known.end(id, &run);
        // Once.
        known.end(id, &run);
        assert_eq!(known.bytes, known.over.iter().map(|(_, bytes)| bytes).sum::<usize>());
        assert!(known.over.iter().take(known.let_go).all(|(_, bytes)| *bytes == 0));
    }

    fn has_reply(known: &Known, id: &str) -> bool {
        known.runs[id].reply.get().is_some()
    }

    /// A reply that is kept keeps no read alive that it is a slice of.
    #[tokio::test]
    async fn a_reply_that_is_kept_is_a_copy() {
        let read = Bytes::from(vec![1; 2 * COPY_BYTES]);
        for (len, is_copied) in [(1, true), (COPY_BYTES - 1, true), (COPY_BYTES, false)] {
            let payload = read.slice(..len);
            let reply = kept(Box::pin(std::future::ready(Reply::ok(payload.clone())))).await;
            let kept = reply.outcome.expect("it is no failure");
            assert_eq!((kept.as_ptr() != payload.as_ptr(), &kept), (is_copied, &payload), "{len}");
        }
    }

    /// A reply that is kept takes no room of calls that run.
    #[tokio::test]
    async fn a_reply_that_is_kept_gives_room_back() {
        let room = Arc::new(crate::packing::Room::new(4096, 4096, 4096));
        let message = bothways_proto::Message::new(
            bothways_proto::Header::request(bothways_proto::Seq::new(1), bothways_proto::SerializeType::RAW)
                .with_compress(bothways_proto::CompressType::GZIP),
            "T",
            "Echo",
            &bothways_proto::Metadata::new(),
            &bothways_proto::gzip(&[1; 2000]),
        );
        let asker = crate::packing::Asker { id: 1, is_over: &|| false, owner: &|| "".into() };
        let unpacked =
            crate::packing::unpack(&message, &bothways_proto::Limits::default(), &room, asker, || None).await;
        let (payload, held) = unpacked.expect("it is valid");
        let held = Arc::new(held);
        let reply = Reply { held: Some(Arc::clone(&held)), ..Reply::ok(payload) };
        let kept = kept(Box::pin(std::future::ready(reply))).await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(kept.outcome.expect("it is no failure"), [1; 2000][..]);
    }

    /// The oldest let their replies go, and are known: they do not run again. The newest keeps its reply, however large.
    #[test]
    fn replies_are_let_go_beyond_their_bytes() {
        let mut known = Known::default();
        over(&mut known, "a", REPLY_BYTES / 2);
        over(&mut known, "b", REPLY_BYTES / 2);
        assert_eq!((known.bytes, known.let_go), (REPLY_BYTES, 0), "as much as there is room for");
        over(&mut known, "c", 1);
        assert_eq!((known.bytes, known.let_go), (REPLY_BYTES / 2 + 1, 1));
        assert!(!has_reply(&known, "a") && has_reply(&known, "b") && has_reply(&known, "c"));
        let (let_go, known_calls) = (Arc::clone(&known.runs["a"]), known.over.len());
        known.end("a", &let_go);
        assert_eq!(known.over.len(), known_calls, "who comes again ends nothing");
        assert!(known.runs["a"].given_up.load(Ordering::Relaxed) && !known.runs["b"].given_up.load(Ordering::Relaxed));
        over(&mut known, "d", REPLY_BYTES + 1);
        assert_eq!((known.bytes, known.let_go, known.over.len()), (REPLY_BYTES + 1, 3, 4));
        assert!(has_reply(&known, "d"));
    }

    /// So many calls are known; the oldest is forgotten, and with it what its reply takes.
    #[test]
    fn so_many_calls_are_known() {
        let mut known = Known::default();
        over(&mut known, "large", REPLY_BYTES);
        over(&mut known, "another", 1);
        assert_eq!(known.let_go, 1);
        for number in 0..CALLS {
            over(&mut known, &number.to_string(), 2);
        }
        assert_eq!((known.over.len(), known.runs.len(), known.bytes, known.let_go), (CALLS, CALLS, 2 * CALLS, 0));
        assert!(!known.runs.contains_key("large") && !known.runs.contains_key("another"));
        over(&mut known, "last", 3);
        assert_eq!((known.over.len(), known.bytes), (CALLS, 2 * CALLS + 1));
        assert!(!known.runs.contains_key("0") && known.runs.contains_key("1"));
    }

    /// What a server gives up does not run when it comes; ids that no call of ours can have are not remembered.
    #[test]
    fn what_is_given_up_is_known() {
        let results = Results::default();
        let (longest, longer) = ("x".repeat(ID_BYTES), "x".repeat(ID_BYTES + 1));
        for id in ["", "a", &longest, &longer] {
            results.give_up(id);
        }
        let known = results.known.lock();
        assert_eq!((known.runs.len(), known.over.len()), (2, 2));
        assert!(known.runs["a"].given_up.load(Ordering::Relaxed) && known.runs["a"].is_over.load(Ordering::Relaxed));
        assert!(known.runs.contains_key(&longest));
    }
}
