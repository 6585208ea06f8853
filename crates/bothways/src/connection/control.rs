//! What a connection says besides messages and calls: replies, heartbeats, Hello, acks, goodbyes.

use std::time::Duration;

use bothways_proto as proto;
use bothways_proto::{
    Capabilities, CompressType, FrameParts, Header, Limits, Message, Metadata, Names, Peer, SerializeType, Status, keys,
};
use bytes::Bytes;

use super::{Connection, call::Waiter, lanes::Lane, lock::Locked, outbox::Refused};
use crate::{error::CloseReason, reply::Reply};

impl Connection {
    /// Tells the server how far this client is with what it was sent.
    pub(crate) fn acknowledge(&self, pairs: &Metadata) {
        self.control_request(keys::ACK, pairs);
        self.flush();
    }

    /// Sends the reply to `request`.
    pub(super) fn reply(&self, request: &Message, mut reply: Reply, lane: Lane, pushes_before: Option<u64>) {
        let shared = &*self.shared;
        let mut header = request.header().reply();
        if let Some(serialize) = reply.serialize {
            header = header.with_serialize(serialize);
        }
        if let Err(failure) = &mut reply.outcome {
            header = header.with_status(Status::ERROR);
            if failure.code.is_some() && !matches!(shared.state.lock().proto.peer(), Peer::Negotiated(_)) {
                // A plain client's application would find it among the metadata of its reply.
                failure.code = None;
            }
        }
        let (then_welcome, then_close, packed) = (reply.then_welcome, reply.then_close, reply.packed);
        let (payload, metadata) = reply.into_wire();
        let (header, payload) = match packed {
            true => (header.with_compress(CompressType::GZIP), payload),
            false => compressed(header, payload, request.header().compress()),
        };
        let mut state = shared.state.lock();
        if !state.can_answer() {
            return;
        }
        let names = request.names();
        let parts = FrameParts { header, names, metadata: &metadata, payload_len: payload.len() };
        let mut added = state.outbox.add(lane, &parts, &payload, self.limits(), &shared.settings.bounds());
        let failure = match &added {
            Err(Refused::TooLarge(error)) => Some((error.to_string(), names)),
            // Without the names of its request, which may be long.
            Err(Refused::Full { bytes, .. }) => {
                let why = format!("{bytes} bytes of replies wait for the peer to read (`reply_bytes_max`)");
                Some((why, Names::new("", "")))
            }
            _ => None,
        };
        if let Some((why, names)) = failure {
            let metadata = Metadata::new().with(keys::ERROR, format!("the reply cannot be sent: {why}"));
            let header = request.header().reply().with_status(Status::ERROR);
            let parts = FrameParts { header, names, metadata: &metadata, payload_len: 0 };
            added = state.outbox.add(lane, &parts, &Bytes::new(), self.limits(), &shared.settings.bounds());
        }
        if pushes_before.is_some_and(|before| before != state.outbox.pushes_added()) {
            state.outbox.last_reply_behind_pushes();
        }
        let failed = self.check_added(&mut state, added).err();
        if then_welcome {
            state.hello_pending = false;
            state.called_by_pushes = true;
        }
        self.write_if_much(state);
        if then_welcome {
            shared.changed.notify_waiters();
            shared.inlet.handle_welcomed(self);
        }
        if let Some(error) = failed {
            tracing::warn!(connection = %self.id(), %error, "a reply was lost");
        } else if then_close {
            let why = metadata.get(keys::ERROR).unwrap_or_default().to_owned();
            self.close_after_flush(CloseReason::Unauthenticated(why));
        }
    }

    /// Sends a frame of the small lane: a heartbeat or its answer, a cancel, a goodbye.
    pub(super) fn control(&self, frame: &Bytes) {
        let mut state = self.shared.state.lock();
        if state.can_answer() {
            let added = state.outbox.add_frame(Lane::Control, frame, &self.shared.settings.bounds());
            // Control frames are small; the only refusal ends the connection, and says so itself.
            let _ = self.check_added(&mut state, added);
        }
    }

    pub(super) fn control_request(&self, service_method: &str, metadata: &Metadata) {
        let seq = self.shared.state.lock().proto.next_push();
        let header = Header::oneway(seq, SerializeType::RAW);
        let frame = proto::frame(header, keys::CONTROL_PATH, service_method, metadata, &[], &Limits::default());
        self.control(&frame.expect("a control frame is small"));
    }

    /// Tells a client that the server is about to close the connection, if it understands that.
    /// `code` is for programs, `why` for people.
    pub(crate) fn say_goodbye(&self, code: &str, why: &str) {
        self.say_goodbye_for(code, why, None);
    }

    /// As [`Self::say_goodbye`], and when to come back. False: the client does not understand it.
    pub(crate) fn say_goodbye_for(&self, code: &str, why: &str, reconnect_after: Option<Duration>) -> bool {
        let understands = self.shared.state.lock().proto.peer_can(Capabilities::GOODBYE);
        if understands {
            let mut said = Metadata::new().with(keys::GOODBYE_CODE, code).with(keys::GOODBYE_WHY, why);
            if let Some(wait) = reconnect_after {
                said.insert(keys::GOODBYE_AFTER, wait.as_millis().to_string());
            }
            self.control_request(keys::GOODBYE, &said);
            self.flush_soon();
        }
        understands
    }

    pub(super) fn say_hello(&self, mut metadata: Metadata) {
        let mut state = self.shared.state.lock();
        proto::Hello { version: proto::VERSION, capabilities: self.shared.settings.capabilities }.put(&mut metadata);
        self.heartbeat(&mut state, Waiter::Hello, &metadata);
    }

    /// Adds a heartbeat request; its answer comes back as a reply to `waiter`.
    pub(super) fn heartbeat<'a>(&'a self, state: &mut Locked<'a>, waiter: Waiter, metadata: &Metadata) {
        let is_ping = matches!(waiter, Waiter::Ping);
        if let Some(unanswered) = state.seldom.as_mut().and_then(|seldom| seldom.ping.take_if(|_| is_ping)) {
            // Whatever came since was a sign of life; its answer is not waited for any more.
            state.proto.forget(unanswered);
        }
        if let Ok(seq) = state.proto.begin_heartbeat(waiter) {
            if is_ping {
                state.seldom().ping = Some(seq);
            }
            // Go's heartbeat carries the clock as a MessagePack int64; nobody reads it.
            let ping = Message::ping(seq, metadata, &[0xd3, 0, 0, 0, 0, 0, 0, 0, 0]);
            let added = state.outbox.add_frame(Lane::Control, ping.frame(), &self.shared.settings.bounds());
            let _ = self.check_added(state, added);
        }
    }
}

/// Payloads of more than this many bytes are worth compressing. Source: Go `share`, 1024.
pub(super) const COMPRESS_ABOVE: usize = 1024;

/// Packs a payload worth packing in the way asked for.
pub(super) fn compressed(header: Header, payload: Bytes, compress: CompressType) -> (Header, Bytes) {
    if compress == CompressType::GZIP && COMPRESS_ABOVE < payload.len() {
        return (header.with_compress(compress), proto::gzip(&payload).into());
    }
    (header, payload)
}
