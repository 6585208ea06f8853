//! Calls to the peer: their place in the table, the wait for the reply, and what a dropped future leaves.

use bothways_proto::{
    Capabilities, FrameParts, Header, Limits, Message, MessageKind, Metadata, Names, Role, Seq, keys,
};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Connection, State, after,
    control::compressed,
    outbox::{Lane, Refused},
    within,
};
use crate::{
    caller::{Caller, RawCall, RawReply},
    error::{CallError, ErrorCode, PushError},
};

/// Whoever waits for a reply.
pub(super) enum Waiter {
    Call { reply: oneshot::Sender<Result<Message, CallError>>, number: u64 },
    Hello,
    Ping,
}

/// A call that was sent.
pub(super) struct Begun<'a> {
    pub(super) reply: oneshot::Receiver<Result<Message, CallError>>,
    pub(super) guard: Forget<'a>,
    /// No other call waits for its reply.
    alone: bool,
}

/// Takes a call out of the table when its future is dropped, and tells a peer that understands.
pub(super) struct Forget<'a> {
    pub(super) connection: &'a Connection,
    pub(super) seq: Option<Seq>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let Some(seq) = self.seq else { return };
        let mut state = self.connection.shared.state.lock();
        let Some(Waiter::Call { number, .. }) = state.proto.forget(seq) else { return };
        let by_push = state.called_by_pushes;
        let tell = !state.outbox.forget_call(number)
            && (by_push || state.proto.peer_can(Capabilities::CANCEL))
            && state.outbox.has_room_for_cancels();
        drop(state);
        if tell {
            let number = if by_push { seq.unmarked() } else { seq.get() };
            self.connection.control_request(keys::CANCEL, &Metadata::new().with(keys::CANCEL_SEQ, number.to_string()));
            self.connection.flush_soon();
        }
    }
}

impl Caller for Connection {
    async fn call_raw(&self, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        let mut metadata = std::mem::take(&mut call.options.metadata);
        let timeout = call.options.timeout;
        let deadline = timeout.map(after);
        if let Some(timeout) = timeout {
            // At least one: the peer takes zero for a deadline that has passed.
            metadata.insert(keys::SERVER_TIMEOUT, timeout.as_millis().max(1).to_string());
        }
        let header = Header::request(Seq::default(), call.serialize);
        let (header, payload) = compressed(header, call.payload.clone(), self.shared.settings.compress);
        let hello_pending = self.shared.state.lock().hello_pending;
        if hello_pending {
            within(timeout, deadline, self.hello_answered()).await?;
        }
        let Begun { reply, mut guard, alone } = self.begin_call(&call, &payload, header, &metadata)?;
        if alone {
            self.flush_soon();
        } else {
            self.flush_together().await;
        }
        let reply = within(timeout, deadline, reply).await?;
        guard.seq = None;
        let reply = reply.expect("a waiter is answered before it leaves the table")?;
        raw_reply(reply, self.limits())
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        let RawCall { service_path, service_method, serialize, payload, options } = push;
        let wait = options.timeout.unwrap_or_default();
        self.with_room(wait, || self.push(service_path, service_method, serialize, &options.metadata, &payload))
            .await
            .map(|_| ())
    }
}

/// What a caller makes of the frame that answers its call.
pub(super) fn raw_reply(message: Message, limits: &Limits) -> Result<RawReply, CallError> {
    if let Some(text) = message.error_text() {
        let code = message.metadata().get(keys::ERROR_CODE).and_then(ErrorCode::from_name);
        return Err(CallError::Remote { text, code });
    }
    let (serialize, mut metadata) = (message.header().serialize(), message.metadata());
    if message.header().kind() == MessageKind::Request {
        // A plain client's request that answers: these pairs say that it does, and who asks.
        metadata.remove(keys::CALL_NUMBER);
        metadata.remove(keys::AUTH);
    }
    let payload = message.into_payload(limits).map_err(|error| CallError::Decode(error.into()))?;
    Ok(RawReply { serialize, payload, metadata })
}

impl Connection {
    pub(super) async fn hello_answered(&self) {
        loop {
            let changed = self.shared.changed.notified();
            let pending = |state: &State| state.hello_pending && state.check_open().is_ok();
            if !pending(&self.shared.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn begin_call(
        &self,
        call: &RawCall<'_>,
        payload: &Bytes,
        header: Header,
        metadata: &Metadata,
    ) -> Result<Begun<'_>, CallError> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        if let Err(PushError::Closed(reason)) = state.check_open() {
            return Err(CallError::Closed { written: false, reason });
        }
        let by_push = state.called_by_pushes;
        if state.proto.role() == Role::Server && !by_push && !state.proto.peer_can(Capabilities::CALLS) {
            return Err(CallError::NotSupported);
        }
        if state.methods.as_ref().is_some_and(|methods| !methods.contains(call.service_path, call.service_method)) {
            return Err(CallError::NotSupported);
        }
        let (sender, reply) = oneshot::channel();
        let begun = state.proto.begin_call(Waiter::Call { reply: sender, number: u64::MAX });
        let seq = begun.map_err(|full| CallError::TooManyCalls { max: full.max })?;
        let names = Names::new(call.service_path, call.service_method);
        let payload_len = payload.len();
        let numbered;
        let (header, metadata) = if by_push {
            // A plain client would take a request that wants a reply for the reply to a call of its own.
            numbered = metadata.clone().with(keys::CALL_NUMBER, seq.unmarked().to_string());
            (Header::oneway(Seq::of_push(0), header.serialize()).with_compress(header.compress()), &numbered)
        } else {
            (header.with_seq(seq), metadata)
        };
        let parts = FrameParts { header, names, metadata, payload_len };
        let added = state.outbox.add(Lane::Call, &parts, payload, self.limits(), &shared.settings.bounds());
        match added {
            Ok(number) => {
                if let Some(Waiter::Call { number: of_waiter, .. }) = state.proto.waiter_mut(seq) {
                    *of_waiter = number;
                }
                let alone = state.proto.calls().len() == 1;
                self.write_if_much(state);
                Ok(Begun { reply, guard: Forget { connection: self, seq: Some(seq) }, alone })
            }
            Err(refused) => {
                state.proto.forget(seq);
                Err(match refused {
                    Refused::TooLarge(error) => CallError::TooLarge(error),
                    Refused::Full { .. } | Refused::Disconnect(_) => unreachable!("calls have a lane without a rule"),
                })
            }
        }
    }
}
