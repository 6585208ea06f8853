//! Oneway requests that a server does not run, for their token has run out, or it is shutting down: it hands them back, and
//! the client sends them once more over its next connection.

use bothways_proto::{Capabilities, FrameParts, Header, Message, Metadata, Names, Seq, SerializeType, keys};
use bytes::Bytes;

use super::{Connection, call::with_more, lanes::Lane, outbox::Refused};
use crate::error::PushError;

/// Why a request is handed back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotRun {
    /// Its token was refused.
    Token,
    /// The server is shutting down.
    Shutdown,
}

impl Connection {
    /// A oneway request is not run: its client gets it back, if it understands that. Where that finds no room, or would be
    /// larger than a frame may be, the client is told which one it was.
    pub(crate) fn hand_back(&self, request: &Message, why: NotRun) {
        let understands = match why {
            NotRun::Token => Capabilities::RETURNS,
            NotRun::Shutdown => Capabilities::LAST,
        };
        if !self.shared.state.lock().proto.peer_can(understands) {
            return;
        }
        if !self.queue_return(request.header().seq(), request.frame()) {
            self.queue_return(request.header().seq(), &Bytes::new());
        }
        self.flush();
    }

    /// False: there is no room for it. True also if nobody can be answered any more.
    fn queue_return(&self, seq: Seq, frame: &Bytes) -> bool {
        let shared = &*self.shared;
        let said = Metadata::new().with(keys::CANCEL_SEQ, seq.get().to_string());
        let mut state = shared.state.lock();
        if !state.can_answer() {
            return true;
        }

        let header = Header::oneway(state.proto.next_push(), SerializeType::RAW);
        let names = Names::new(keys::CONTROL_PATH, keys::RETURN);
        let parts = FrameParts { header, names, metadata: &said, payload_len: frame.len() };

        // With the replies, and within their bounds: it is the answer to a request.
        let added = match state.check_limit_of_peer(parts.body_len()) {
            Ok(()) => state.outbox.add(Lane::Reply, &parts, frame, self.limits(), &shared.settings.bounds()),
            Err(error) => Err(Refused::TooLarge(error)),
        };

        let is_queued = self.check_added(&mut state, added).is_ok();
        state.rare().taken.returned += u64::from(is_queued);

        // Lets go of the lock before it writes.
        self.write_if_much(state);
        is_queued
    }

    /// True if this is the number of a oneway request that this client made on this connection.
    pub(crate) fn has_made_push(&self, seq: Seq) -> bool {
        self.shared.state.lock().proto.has_made_push(seq)
    }

    /// Queues a oneway request once more that was handed back on another connection, with the token of this one. Answers
    /// with its number here.
    pub(crate) fn push_again(&self, request: &Message) -> Result<Seq, PushError> {
        let shared = &*self.shared;
        let metadata = request.metadata();
        let more = with_more(&metadata, shared.settings.token.as_deref(), None);
        let metadata = more.as_ref().unwrap_or(&metadata);
        let payload = request.wire_payload();
        let mut state = shared.state.lock();
        state.check_open()?;
        let seq = state.proto.next_push();
        let was = request.header();
        let header = Header::oneway(seq, was.serialize()).with_compress(was.compress());
        let parts = FrameParts { header, names: request.names(), metadata, payload_len: payload.len() };
        state.check_limit_of_peer(parts.body_len())?;
        let added = state.outbox.add(Lane::Push, &parts, &payload, self.limits(), &shared.settings.bounds());
        self.check_added(&mut state, added)?;
        self.write_if_much(state);
        self.flush();
        Ok(seq)
    }
}
