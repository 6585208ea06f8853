//! Frames that are not calls or pushes: replies, acks, goodbyes, and the errors for frames that were dropped.

use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
    time::Duration,
};

use bothways_proto as proto;
use bothways_proto::{
    Capabilities, CompressType, DecodeError, FrameParts, Greeting, Header, Limits, Message, MessageKind, Metadata,
    Names, Role, SerializeType, Status, keys,
};
use bytes::Bytes;

use super::{Connection, behind::PushesSoFar, call::Waiter, lanes::Lane, lock::Locked, outbox::Refused};
use crate::{
    error::{CallError, CloseReason, ErrorCode, PushError},
    reply::{Failure, Reply},
    stats::Lost,
};

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

impl Connection {
    /// Tells the server how far this client is with what it was sent.
    pub(crate) fn acknowledge(&self, pairs: &Metadata) {
        self.control_request(keys::ACK, pairs);
        self.flush();
    }

    /// Tells the server that this client leaves its session for good, and how far it was with what it was sent.
    pub(crate) fn leave(&self, acks: &[Metadata]) {
        self.acknowledge_before_leave(acks);
        self.queue_leave(&mut self.shared.state.lock(), acks);
        self.flush();
    }

    /// Queues all but the last of these, which goes with the Leave.
    pub(super) fn acknowledge_before_leave(&self, acks: &[Metadata]) {
        if let Some((_, before)) = acks.split_last()
            && self.is_negotiated()
        {
            before.iter().for_each(|pairs| self.control_request(keys::ACK, pairs));
        }
    }

    /// Queues the Leave behind all requests: the server reads nothing after it.
    pub(super) fn queue_leave<'a>(&'a self, state: &mut Locked<'a>, acks: &[Metadata]) {
        if let Some(last) = acks.last()
            && state.can_answer()
            && state.proto.is_negotiated()
        {
            self.queue_behind_requests(state, keys::LEAVE, last);
        }
    }

    /// Tells a client that a call to it, which it may know from an earlier connection, is given up.
    pub(crate) fn cancel_call(&self, id: &str) {
        let understands = {
            let state = self.shared.state.lock();
            let by_push = state.is_called_by_pushes();
            (by_push || state.proto.peer_can(Capabilities::CANCEL)) && state.outbox.has_room_for_cancels()
        };
        if understands {
            self.control_request(keys::CANCEL, &Metadata::new().with(keys::CALL_ID, id));
            self.flush();
        }
    }

    /// What the caller is told of a reply that is not sent; `None`: the connection is over.
    #[cold]
    fn why_refused(&self, refused: &Refused) -> Option<String> {
        match refused {
            Refused::TooLarge(error) => Some(error.to_string()),
            Refused::Full { bytes, .. } => {
                Some(format!("{bytes} bytes of replies wait for the peer to read (`reply_bytes_max`)"))
            }
            Refused::AllFull { bytes, .. } => {
                if let Some(left_out) = self.shared.settings.load.told_no_room.due() {
                    tracing::warn!(peer = self.peer_address(), bytes, left_out, "a reply found no room");
                }
                Some(format!("{bytes} bytes wait for all peers to read (`outgoing.all_bytes_max`)"))
            }
            _ => None,
        }
    }

    /// Sends the reply to `request`.
    pub(super) fn reply(&self, request: &Message, reply: Reply, lane: Lane, pushes_before: Option<PushesSoFar>) {
        self.reply_in_line(request, reply, lane, pushes_before);
    }

    /// As [`Self::reply`], for the loop over messages: the reply is not moved once more, which is 50 instructions.
    #[inline(always)]
    pub(super) fn reply_in_line(
        &self,
        request: &Message,
        mut reply: Reply,
        lane: Lane,
        pushes_before: Option<PushesSoFar>,
    ) {
        let shared = &*self.shared;
        let mut header = request.header().reply();
        if let Some(serialize) = reply.serialize {
            header = header.with_serialize(serialize);
        }
        if let Err(failure) = &mut reply.outcome {
            header = header.with_status(Status::ERROR);
            if let Some(meters) = &shared.settings.meters {
                meters.count_error(failure.code);
            }
            self.hide_from_plain_client(failure);
        }

        let (then_welcome, packed) = (reply.then_welcome, reply.packed);
        let then_close = reply.then_close.take();
        // To the end of this: the payload may be made of the bytes that it stands for.
        let _held = reply.held.take();

        let (payload, metadata) = reply.into_wire();
        let (header, payload) = match packed {
            true => (header.with_compress(CompressType::GZIP), payload),
            false => compressed(header, payload, request.header().compress()),
        };

        if pushes_before.is_some() {
            self.catch_up();
        }
        // Only now: packing takes long, and others wait for the lock.
        let mut state = shared.state.lock();
        if !state.can_answer() {
            return;
        }

        let now = state.pushes_so_far();
        // Pushes of its handler that the session still keeps go first.
        let waits = pushes_before.is_some_and(|before| before.kept != now.kept);
        let waits = waits && !then_welcome && state.may_hold_replies();

        let parts = FrameParts { header, names: request.names(), metadata: &metadata, payload_len: payload.len() };
        let mut added = self.add_reply(&mut state, lane, &parts, &payload, waits);
        if added.is_err() {
            added = self.add_why(&mut state, request.header(), &metadata, lane, waits, added);
        }

        if !waits && pushes_before.is_some_and(|before| before.added != now.added) {
            state.outbox.last_reply_behind_pushes();
        }

        let added = self.check_added(&mut state, added);
        if then_welcome {
            state.proto.on_enabled();
        }

        // Lets go of the lock: from here the layer above may send.
        self.write_if_much(state);
        if then_welcome {
            shared.changed.notify_waiters();
            shared.handler.on_welcome_sent(self);
        }
        if waits || then_close.is_some() || added.is_err() {
            self.after_reply(waits, added, then_close);
        }
    }

    /// A plain client's application would find our pairs among the metadata of its reply.
    fn hide_from_plain_client(&self, failure: &mut Failure) {
        let has_more = failure.code.is_some() || failure.said.is_some();
        if has_more && !self.shared.state.lock().proto.is_negotiated() {
            (failure.code, failure.said) = (None, None);
        }
    }

    /// Adds a reply to its lane, or, if it waits, after the pushes of its session.
    #[inline(always)]
    fn add_reply(
        &self,
        state: &mut Locked<'_>,
        lane: Lane,
        parts: &FrameParts<'_>,
        payload: &Bytes,
        waits: bool,
    ) -> Result<u64, Refused> {
        let bounds = self.shared.settings.bounds();
        match state.check_limit_of_peer(parts.body_len()) {
            Ok(()) if waits => state.outbox.hold_reply(parts, payload, self.limits(), &bounds),
            Ok(()) => state.outbox.add(lane, parts, payload, self.limits(), &bounds),
            Err(error) => Err(Refused::TooLarge(error)),
        }
    }

    /// A reply was not added: in its place goes why, if the caller can be told.
    #[cold]
    fn add_why(
        &self,
        state: &mut Locked<'_>,
        request: Header,
        metadata: &Metadata,
        lane: Lane,
        waits: bool,
        refused: Result<u64, Refused>,
    ) -> Result<u64, Refused> {
        let Some(why) = refused.as_ref().err().and_then(|refused| self.why_refused(refused)) else { return refused };

        let metadata = refusal_of(metadata, &why);
        let header = request.reply().with_status(Status::ERROR);
        // Without the names of its request, which may be long: this one fits.
        let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: 0 };
        let (payload, limits, bounds) = (Bytes::new(), Limits::default(), self.shared.settings.bounds());

        match waits {
            false => state.outbox.add(lane, &parts, &payload, &limits, &bounds),
            true => state.outbox.hold_reply(&parts, &payload, &limits, &bounds),
        }
    }

    #[cold]
    fn after_reply(&self, waits: bool, added: Result<u64, PushError>, then_close: Option<Box<CloseReason>>) {
        match added {
            Ok(number) if waits => self.shared.handler.handle_held(self, self.held_reply(number)),
            Ok(_) => {}
            Err(error) => {
                self.shared.settings.count_drops(Lost::Reply, 1);
                if let Some(left_out) = self.shared.settings.load.told_lost.due() {
                    tracing::warn!(connection = %self.id(), %error, left_out, "a reply was lost");
                }
                return;
            }
        }
        if let Some(reason) = then_close {
            self.close_after_flush(*reason);
        }
    }

    /// A frame of the peer is passed over: the caller that waits for it, or for its answer, is told why. `Err`: it ends
    /// the connection.
    pub(super) fn pass_over(&self, header: Option<Header>, error: DecodeError) -> Result<(), CloseReason> {
        let Some(header) = header else { return Err(error.into()) };
        let is_too_large = matches!(error, DecodeError::TooLarge { .. });
        if is_too_large && !self.passes_over_large(header)? {
            return Err(error.into());
        }
        match self.shared.settings.load.told_passed_over.due().filter(|_| is_too_large) {
            Some(left_out) => {
                let peer = self.peer_address();
                tracing::warn!(connection = %self.id(), peer, %error, left_out, "a frame was passed over");
            }
            None => tracing::debug!(connection = %self.id(), %error, "a frame was passed over"),
        }
        self.refuse_frame_of(header, error);
        Ok(())
    }

    /// True if a frame that is too large costs only itself. Not before a token was accepted, and not where such a frame
    /// would end the connection whatever its size.
    fn passes_over_large(&self, header: Header) -> Result<bool, CloseReason> {
        let (role, greeting, takes_calls) = {
            let state = self.shared.state.lock();
            (state.proto.role(), state.proto.greeting(), state.proto.peer_can(Capabilities::CALLS))
        };

        let is_called = header.kind() == MessageKind::Request && !header.is_oneway();
        let is_asked = match role {
            Role::Client => !is_called || takes_calls,
            Role::Server => header.kind() == MessageKind::Request || takes_calls,
        };
        // A plain client wants no answer to its answers to our calls: it could not be told that one was lost.
        let is_untold = role == Role::Server && header.is_oneway() && greeting.agreed().is_none();
        if !self.is_trusted() || header.is_heartbeat() || !is_asked || is_untold {
            return Ok(false);
        }

        // Asked without the lock: the code that admits clients may log, and counts in tables of its own.
        if role == Role::Server && greeting == Greeting::Unknown {
            self.admit(&Message::new(header, "", "", &Metadata::new(), &[]))?;
            self.shared.state.lock().proto.on_passed_over();
        }

        Ok(true)
    }

    fn refuse_frame_of(&self, header: Header, error: DecodeError) {
        match header.kind() {
            MessageKind::Request if header.is_oneway() => {
                self.shared.state.lock().proto.on_oneway_passed_over();
                self.shared.handler.handle_passed_over(self, header.seq());
            }
            MessageKind::Request => self.refuse_by_header(header, ErrorCode::BadArguments, &error.to_string()),
            MessageKind::Response => {
                let waiter = self.shared.state.lock().proto.forget(header.seq());
                match waiter {
                    // Nobody listens if the call's future was dropped this moment.
                    Some(Waiter::Call { reply, .. }) => drop(reply.send(Err(CallError::Decode(error.into())))),
                    // Without an answer to its Hello nothing goes on.
                    Some(Waiter::Hello) => self.close_now(error.into()),
                    Some(Waiter::Ping) | None => {}
                }
            }
        }
    }

    /// Tells a client why its frame, of which the header is known, ends the connection. False: there is nobody to tell.
    pub(super) fn tell_why(&self, header: Option<Header>, reason: &CloseReason) -> bool {
        let (role, greeting) = {
            // Let go at once: the answer takes the lock itself.
            let state = self.shared.state.lock();
            (state.proto.role(), state.proto.greeting())
        };
        if role == Role::Client {
            return false;
        }

        let code = match reason {
            CloseReason::BadFrame(DecodeError::WrongMagic { found }) if greeting == Greeting::Unknown => {
                return self.answer_in_http(*found);
            }
            CloseReason::BadFrame(DecodeError::TooLarge { .. }) => ErrorCode::BadArguments,
            CloseReason::BadFrame(DecodeError::TooLargeUnauthenticated { .. }) => ErrorCode::Unauthenticated,
            CloseReason::NoRoom { .. } => ErrorCode::Overloaded,
            _ => return false,
        };

        let Some(header) = header.filter(|header| header.kind() == MessageKind::Request && !header.is_oneway()) else {
            return false;
        };
        self.refuse_by_header(header, code, &reason.to_string());
        true
    }

    /// What came first is HTTP or TLS: clients of either show this line, or say that it is none of theirs.
    fn answer_in_http(&self, first: u8) -> bool {
        const ANSWER: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
            this is an rpcx port: it speaks neither HTTP nor TLS\n";
        let is_known = first.is_ascii_uppercase() || first == TLS_HANDSHAKE;
        if is_known {
            self.control(&Bytes::from_static(ANSWER));
        }
        is_known
    }

    /// A failed reply to a request of which only the header was looked at.
    pub(super) fn refuse_by_header(&self, header: Header, code: ErrorCode, text: &str) {
        if let Some(meters) = &self.shared.settings.meters {
            meters.count_error(Some(code));
        }
        let mut said = Metadata::new().with(keys::ERROR, cut(text));
        // A Hello is a heartbeat, and no application sees the answer to one.
        if header.is_heartbeat() || self.shared.state.lock().proto.is_negotiated() {
            said.insert(keys::ERROR_CODE, code.name());
        }
        let header = header.reply().with_compress(CompressType::NONE).with_status(Status::ERROR);
        self.control(Message::new(header, "", "", &said, &[]).frame());
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

    /// As [`Self::say_goodbye`], and when to come back. False: the client does not understand it. Of a `why` that is
    /// longer than [`WHY_BYTES_MAX`] the beginning is said.
    pub(crate) fn say_goodbye_for(&self, code: &str, why: &str, reconnect_after: Option<Duration>) -> bool {
        self.catch_up();
        let mut said = goodbye(code, why, reconnect_after);
        // Whom they are named to counts as one that goes there.
        if code == SHUTTING_DOWN
            && self.peer_can(Capabilities::GOODBYE)
            && let Some(others) = self.shared.handler.others()
        {
            said.insert(keys::GOODBYE_OTHERS, others);
        }
        let understands = self.queue_goodbye(&mut self.shared.state.lock(), said);
        if understands {
            self.flush();
        }
        understands
    }

    /// A request of a client that was let in showed this token, and it was refused: the client is told to come again, before
    /// any reply that says so too.
    pub(crate) fn say_token_is_over(&self, token: &[u8], why: &str) -> TokenOver {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let hash = HASHER.hash_one(token);
        let said = goodbye(ErrorCode::Unauthenticated.name(), why, None);

        self.catch_up();
        let understands = {
            let mut state = self.shared.state.lock();
            match state.rare().token_refused.replace(hash) {
                None => {}
                Some(first) => {
                    // The client hears of one token only, the first.
                    state.rare().token_refused = Some(first);
                    return if first == hash { TokenOver::Known } else { TokenOver::Another };
                }
            }

            // What its session owes it waits for the next connection.
            state.release_replies();
            self.queue_goodbye(&mut state, said)
        };

        if !understands {
            return TokenOver::NotTold;
        }
        // The write takes the lock itself.
        self.flush();
        TokenOver::Told
    }

    /// The Goodbye goes behind what is queued, and behind the Welcome, if that is on its way. False: the client does not
    /// understand it.
    fn queue_goodbye<'a>(&'a self, state: &mut Locked<'a>, said: Metadata) -> bool {
        if !state.proto.peer_can(Capabilities::GOODBYE) {
            return false;
        }
        if state.is_welcoming() {
            state.rare().after_welcome.goodbye.get_or_insert(said);
            return true;
        }
        if state.can_answer() {
            let said = self.with_taken(state, said);
            let header = Header::oneway(state.proto.next_push(), SerializeType::RAW);
            let goodbye = Message::new(header, keys::CONTROL_PATH, keys::GOODBYE, &said, &[]);
            let added = state.outbox.add_frame(Lane::Control, goodbye.frame(), &self.shared.settings.bounds());
            // As of any control frame.
            let _ = self.check_added(state, added);
        }
        true
    }

    /// The client whose Hello is being checked is not wanted, whatever comes of that: it is answered now, by a Welcome, a
    /// Goodbye and the end. False: there is no such Hello.
    pub(crate) fn send_away_at_hello(&self, code: &str, why: &str) -> bool {
        let mut state = self.shared.state.lock();
        let is_checked = state.can_answer() && state.proto.greeting() == Greeting::HelloPending;
        if is_checked {
            let after_welcome = &mut state.rare().after_welcome;
            after_welcome.goodbye.get_or_insert_with(|| goodbye(code, why, None));
            after_welcome.end.get_or_insert(CloseReason::Local);
            state.notify(&self.shared.changed);
        }
        is_checked
    }
}

/// The code of a Goodbye of a server that stops.
pub(crate) const SHUTTING_DOWN: &str = "shutting_down";

/// What a Goodbye says.
fn goodbye(code: &str, why: &str, reconnect_after: Option<Duration>) -> Metadata {
    let mut said = Metadata::new().with(keys::GOODBYE_CODE, code).with(keys::GOODBYE_WHY, cut(why));
    if let Some(wait) = reconnect_after {
        said.insert(keys::GOODBYE_AFTER, wait.as_millis().to_string());
    }
    said
}

/// A token was refused on a connection whose client was let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TokenOver {
    /// The client is told.
    Told,
    /// The client does not understand it.
    NotTold,
    /// It was refused before.
    Known,
    /// Another one was refused before.
    Another,
}

/// Most bytes of a text that goes with a Goodbye or with the refusal of a Hello: what applications say to people, and it
/// must find room in metadata.
const WHY_BYTES_MAX: usize = 4 << 10;

/// Most bytes of the text of a reply that did not fit, as it goes with the refusal that takes its place.
const CUT_TEXT_BYTES: usize = 512;

/// What is said in place of a reply with these pairs that cannot be sent: if it is a failure, what kind of one, and the
/// beginning of its text.
fn refusal_of(reply: &Metadata, why: &str) -> Metadata {
    let Some(text) = reply.get(keys::ERROR) else {
        return Metadata::new().with(keys::ERROR, format!("the reply cannot be sent: {why}"));
    };
    let beginning = &text[..text.floor_char_boundary(CUT_TEXT_BYTES)];
    let cut = if beginning.len() < text.len() { "…" } else { "" };
    let mut refusal = Metadata::new().with(keys::ERROR, format!("{beginning}{cut} (cut: {why})"));
    for key in [keys::ERROR_CODE, keys::APP_CODE] {
        if let Some(code) = reply.get(key) {
            refusal.insert(key, code);
        }
    }
    refusal
}

/// As much of a text as goes with a control frame.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(WHY_BYTES_MAX)]
}

/// Payloads of more than this many bytes are worth compressing. Source: Go `share`, 1024.
pub(super) const COMPRESS_ABOVE: usize = 1024;

/// Packs a payload worth packing in the way asked for.
#[inline(always)]
pub(super) fn compressed(header: Header, payload: Bytes, compress: CompressType) -> (Header, Bytes) {
    if compress == CompressType::GZIP && COMPRESS_ABOVE < payload.len() {
        return (header.with_compress(compress), proto::gzip(&payload).into());
    }
    (header, payload)
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Capabilities, Greeting, Header, Hello, Role, Seq, SerializeType};

    use super::{CUT_TEXT_BYTES, refusal_of};
    use crate::connection::alone::{alone, enable};

    /// Which frames are passed over, and their senders told, if they are too large: those that somebody waits for, or
    /// that lose only themselves. All others end the connection.
    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_too_large_is_passed_over_if_its_sender_can_know() {
        let request = Header::request(Seq::new(1), SerializeType::RAW);
        let oneway = Header::oneway(Seq::new(1), SerializeType::RAW);
        let headers = [request, oneway, request.reply(), Header::heartbeat(Seq::new(1), SerializeType::RAW)];
        let negotiated = |capabilities| Some(Hello { version: bothways_proto::VERSION, capabilities });
        for (role, hello, expected) in [
            (Role::Client, None, [false, true, true, false]),
            (Role::Server, None, [true, false, false, false]),
            (Role::Server, negotiated(Capabilities::SESSIONS), [true, true, false, false]),
            (Role::Server, negotiated(Capabilities::CALLS), [true, true, true, false]),
        ] {
            let (connection, _far) = alone(role);
            if let Some(hello) = &hello {
                connection.shared.state.lock().proto.on_hello_accepted(hello, hello.capabilities);
            }
            let passed = headers.map(|header| connection.passes_over_large(header).is_ok_and(|passes| passes));
            assert_eq!(passed, expected, "{role:?} {hello:?}");
            let (connection, _far) = alone(role);
            for header in headers.into_iter().rev() {
                let passes = connection.passes_over_large(header).is_ok_and(|passes| passes);
                let greeting = connection.shared.state.lock().proto.greeting();
                let is_plain = role == Role::Server && passes;
                let expected = if is_plain { Greeting::Plain { listens: false } } else { Greeting::Unknown };
                assert_eq!(greeting, expected, "{header:?}");
            }
        }
    }

    /// Only a client that understands it is told that a call is given up, and one that is called by pushes.
    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_towards_those_who_understand_it() {
        let (connection, _far) = alone(Role::Server);
        for by_push in [false, true] {
            if by_push {
                enable(&connection);
            }
            let before = connection.shared.state.lock().outbox.written_bytes();
            connection.cancel_call("0123456789abcdef");
            let after = connection.shared.state.lock().outbox.written_bytes();
            assert_eq!(before != after, by_push);
        }
    }

    /// A text that fits goes as it is, and of a longer one its beginning.
    #[test]
    fn a_long_text_is_cut_in_the_refusal_that_takes_its_place() {
        use bothways_proto::{Metadata, keys};
        for (len, cut) in [(CUT_TEXT_BYTES - 1, ""), (CUT_TEXT_BYTES, ""), (CUT_TEXT_BYTES + 1, "…")] {
            let said = Metadata::new().with(keys::ERROR, "x".repeat(len)).with(keys::ERROR_CODE, "internal");
            let refusal = refusal_of(&said, "too long");
            let text = format!("{}{cut} (cut: too long)", "x".repeat(len.min(CUT_TEXT_BYTES)));
            assert_eq!(refusal.get(keys::ERROR), Some(&*text), "{len}");
            assert_eq!(refusal.get(keys::ERROR_CODE), Some("internal"));
        }
        let refusal = refusal_of(&Metadata::new(), "too long");
        assert_eq!(refusal.get(keys::ERROR), Some("the reply cannot be sent: too long"));
    }
}
