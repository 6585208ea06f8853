//! Runs handlers: in line while they are ready at once, else in tasks of their own.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use bothways_proto::{Capabilities, CompressType, Message, Seq, keys};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Connection, after,
    behind::PushesSoFar,
    handler::Answer,
    lanes::Lane,
    limits::{Permit, Place},
};
use crate::{
    calm::{Calm, Said, tell},
    error::ErrorCode,
    guard::{Guarded, Panicked},
    packing,
    reply::Reply,
};

/// A refusal because of the caller's deadline leaves this long after it. The caller sent whole milliseconds,
/// rounded down: at the deadline itself the refusal would arrive before the caller's own clock is there,
/// and be the outcome of the call in place of its deadline.
const LATE_REFUSAL: Duration = Duration::from_millis(250);

/// When the caller of a request gives up. A text that is no number is ignored, as in Go. A time that is over means that
/// nobody waits for the handler; from a plain caller it means nothing, for Go's server runs such a call.
#[inline]
pub(crate) fn deadline(connection: &Connection, message: &Message) -> Result<Option<Instant>, Reply> {
    match message.metadata_value(keys::SERVER_TIMEOUT) {
        None => Ok(None),
        Some(text) => stated_deadline(connection, text),
    }
}

fn stated_deadline(connection: &Connection, text: &[u8]) -> Result<Option<Instant>, Reply> {
    let Some(left) = str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()) else { return Ok(None) };
    match u64::try_from(left) {
        Ok(left) if 0 < left => Ok(Some(after(Duration::from_millis(left)))),
        _ if !connection.is_negotiated() => Ok(None),
        _ => Err(Reply::refused(ErrorCode::Timeout, "the caller's deadline passed before the handler began")),
    }
}

impl Connection {
    /// Answers a request that wants a reply. `pushes_before` says where pushes stood when it was read: its reply does not
    /// overtake those that are made while its handler runs.
    #[inline(always)]
    pub(super) fn run_call(&self, mut message: Message, pushes_before: PushesSoFar, place: &mut Place) {
        if let Some(reply) = self.finish(&mut message) {
            return self.reply(&message, reply, Lane::Reply, Some(pushes_before));
        }

        let permit = match place.take(self, &message) {
            Ok(permit) => permit,
            Err(text) => return self.refuse_call(&message, text),
        };

        self.copy_if_many_run(&mut message);
        let reply = match self.shared.handler.handle_request(self, message.clone()) {
            Answer::Ready(reply) => reply,
            Answer::Nothing => return place.keep(permit),
            Answer::Later(handler, deadline) => {
                let mut handler = Guarded::new(handler);
                match poll_first(&mut handler, &message) {
                    Poll::Ready(reply) => reply,
                    Poll::Pending => return self.spawn_call(handler, deadline, message, permit, pushes_before),
                }
            }
        };

        if takes_long_to_pack(&message, &reply) {
            // Packing it here would hold up the messages behind it.
            let ready = Guarded::new(Box::pin(std::future::ready(reply)));
            return self.spawn_call(ready, None, message, permit, pushes_before);
        }

        self.reply_in_line(&message, reply, Lane::Reply, Some(pushes_before));
        place.keep(permit);
    }

    /// Does what finishes something, if it is that. Nearly always it is not, which the path says.
    fn finish(&self, message: &mut Message) -> Option<Reply> {
        if !message.has_service_path(keys::CONTROL_PATH) {
            return None;
        }
        self.copy_if_many_run(message);
        self.shared.handler.finish(self, message)
    }

    /// Handles a request that wants no reply.
    pub(super) fn run_oneway(&self, mut message: Message, place: &mut Place) {
        if self.finish(&mut message).is_some() {
            return;
        }

        self.copy_if_many_run(&mut message);
        // A client's handler queues what the server sends unasked and answers that there is nothing to
        // run: only what runs needs a place. Its caller's deadline ends nothing: nobody waits for it anyhow.
        let Answer::Later(handler, _) = self.shared.handler.handle_request(self, message.clone()) else {
            return;
        };

        let mut handler = Guarded::new(handler);
        let Ok(mut permit) = place.take(self, &message) else {
            self.count_refused_oneway();
            return;
        };

        match poll_first(&mut handler, &message) {
            Poll::Ready(reply) => {
                place.keep(permit);
                self.finish_oneway(reply);
            }
            Poll::Pending => {
                let connection = self.clone();
                permit.keep(&message);
                tokio::spawn(async move {
                    if let Some(reply) = connection.run_while_wanted(handler, None, &message, &mut permit).await {
                        connection.finish_oneway(reply);
                    }
                });
            }
        }
    }

    /// A oneway request whose token was refused ends the connection without a frame, as in Go.
    fn finish_oneway(&self, reply: Reply) {
        if let Some(reason) = reply.then_close {
            self.close_after_flush(*reason);
        }
    }

    /// The peer gave up a call: its handler is dropped at its next `await`.
    pub(super) fn cancel(&self, seq: Seq) {
        let handler = self.shared.state.lock().take_running(seq);
        if let Some(Some(handler)) = handler {
            handler.abort();
        }
    }

    /// Runs a handler to its end, or to that of the connection if nobody wants the reply then.
    async fn run_while_wanted(
        &self,
        handler: Guarded<Reply>,
        deadline: Option<Instant>,
        message: &Message,
        permit: &mut Permit,
    ) -> Option<Reply> {
        let is_check = permit.is_check;
        let reply = run(handler, deadline, message, permit);

        if !self.shared.settings.cancel_on_disconnect {
            if !is_check {
                return Some(reply.await);
            }
            // The hook of a stranger who is gone ends with it, or strangers who come and go fill the room of others.
            return tokio::select! {
                reply = reply => Some(reply),
                () = self.stranger_left() => None,
            };
        }

        tokio::select! {
            reply = reply => Some(reply),
            _ = self.closed() => None,
        }
    }

    fn spawn_call(
        &self,
        handler: Guarded<Reply>,
        deadline: Option<Instant>,
        message: Message,
        mut permit: Permit,
        pushes_before: PushesSoFar,
    ) {
        let seq = message.header().seq();
        permit.keep(&message);

        let mut state = self.shared.state.lock();
        // A number that a peer uses twice at once finds its first call only.
        let remember = state.proto.peer_can(Capabilities::CANCEL)
            && !state.running.as_ref().is_some_and(|running| running.contains_key(&seq));
        if remember {
            state.running.get_or_insert_default().insert(seq, None);
        }
        // Not under the lock: a runtime that is shutting down drops the handler on the spot, and with
        // it perhaps a call of its own on this connection.
        drop(state);

        let task = tokio::spawn(async move {
            let connection = permit.connection.clone();
            let mut reply = connection.run_while_wanted(handler, deadline, &message, &mut permit).await;
            if let Some(reply) = reply.as_mut().filter(|reply| takes_long_to_pack(&message, reply))
                && let Ok(payload) = &mut reply.outcome
            {
                permit.charge(payload.len());
                *payload = packing::pack(std::mem::take(payload), connection.id().get()).await;
                reply.packed = true;
                reply.held = None;
            }

            if remember {
                // The first that takes it out of the table, the handler's end or a Cancel, decides.
                let mut state = connection.shared.state.lock();
                if state.take_running(seq).is_none() {
                    return;
                }
            }

            if let Some(reply) = reply {
                connection.reply(&message, reply, Lane::Reply, Some(pushes_before));
                connection.flush();
            }
        });

        if remember {
            // The table gets the handle only now: the task was made without the lock.
            match self.shared.state.lock().running.as_mut().and_then(|running| running.get_mut(&seq)) {
                Some(entry) => *entry = Some(task.abort_handle()),
                // Done already, or cancelled: then it stops at its next `await`.
                None => task.abort(),
            }
        }
    }
}

/// True if packing this reply as its request was packed would take a thread long.
fn takes_long_to_pack(request: &Message, reply: &Reply) -> bool {
    let is_large = |payload: &Bytes| packing::IN_LINE_BYTES < payload.len();
    request.header().compress() == CompressType::GZIP && reply.outcome.as_ref().is_ok_and(is_large)
}

/// Polls a handler for the first time, without a task; one whose arguments may take long to decode is not polled.
#[inline(always)]
fn poll_first(handler: &mut Guarded<Reply>, message: &Message) -> Poll<Reply> {
    if packing::IN_LINE_BYTES < message.frame().len() {
        return Poll::Pending;
    }
    // Polled again by its task if it is not ready, so that the waker of this poll is never needed.
    let mut cx = Context::from_waker(Waker::noop());
    handler.poll_or(&mut cx, |panic| panicked(&panic, message))
}

/// Runs a handler to its end, its panic or its caller's deadline.
async fn run(mut handler: Guarded<Reply>, deadline: Option<Instant>, message: &Message, permit: &mut Permit) -> Reply {
    let done = |outcome: Result<Reply, Panicked>| outcome.unwrap_or_else(|panic| panicked(&panic, message));
    match deadline {
        None => done(handler.await),
        Some(deadline) => match tokio::time::timeout_at(deadline, &mut handler).await {
            Ok(outcome) => done(outcome),
            Err(_) => {
                drop(handler);
                if permit.retire() {
                    tokio::time::sleep(LATE_REFUSAL).await;
                }
                Reply::refused(ErrorCode::Timeout, "the caller's deadline passed before the handler was done")
            }
        },
    }
}

/// Panics that the log of a process has in ten seconds as errors; of more it has the ids at level debug.
const PANICS_TOLD: u32 = 16;

/// The reply of a handler that panicked: an id for the caller, everything else for the log.
///
/// Go sends the arguments and a stack to the caller.
fn panicked(panic: &Panicked, message: &Message) -> Reply {
    Reply::refused(ErrorCode::Internal, panicked_text(panic, message.service_path(), message.service_method()))
}

pub(super) fn panicked_text(panic: &Panicked, service_path: &str, service_method: &str) -> String {
    /// The caller is told to look for its id: not only one in a while is there.
    static TOLD: Calm = Calm::new(PANICS_TOLD);
    let id = format!("{:016x}", rand::random::<u64>());
    let (service_path, service_method, panic) = (Said(service_path), Said(service_method), Said(panic.text()));
    tell!(TOLD, error, %id, ?service_path, ?service_method, ?panic, "a handler panicked");
    format!("internal error, id {id}: the server's log has more")
}

#[cfg(test)]
mod tests;
