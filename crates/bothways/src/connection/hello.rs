//! The greeting, and who has been let in: Hello and its answer on both sides, the check of tokens, heartbeats.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bothways_proto::{self as proto, Capabilities, DecodeError, Greeting, Hello, Message, Metadata, Status, keys};

use super::{
    Connection, State, call::Waiter, control::cut, dispatch::panicked_text, lanes::Lane, limits::Permit, lock::Locked,
};
use crate::{
    error::{AuthError, CloseReason, ErrorCode},
    guard::{Guarded, Panicked},
};

/// Most bytes of a Hello beside its metadata, which have a bound of their own: ours has nine.
const HELLO_BYTES: usize = 4 << 10;

/// After how long a client whose Hello finds no place is to come again.
const HELLO_RETRY: Duration = Duration::from_secs(1);

/// Most bytes of the server's words in a Welcome.
const WORDS_BYTES: usize = 200;

/// Most bytes that are kept of what a server says of other addresses: those of three nodes, with four each.
const OTHERS_BYTES: usize = 4 << 10;

/// Said to whom a server that stops turns away.
const STOPPING: &str = "the server is shutting down";

impl Connection {
    // At a client: it says Hello, and is answered.

    pub(super) fn say_hello(&self, mut metadata: Metadata) {
        let mut state = self.shared.state.lock();
        proto::Hello { version: proto::VERSION, capabilities: self.shared.settings.capabilities }.put(&mut metadata);
        metadata.insert(keys::BODY_BYTES_MAX, self.limits().body_bytes().to_string());
        state.proto.on_hello_sent();
        self.heartbeat(&mut state, Waiter::Hello, &metadata);
    }

    /// The answer to the Hello of this side came: who the server is, and whether it lets its client in.
    #[cold]
    pub(super) fn hello_is_answered(&self, mut state: Locked<'_>, answer: &Message) {
        let welcomed = state.proto.on_welcome_received(answer).is_some();
        let given_up = state.take_given_up();
        let said = answer.metadata();
        if welcomed {
            state.note_limit_of_peer(&said, self.limits());
        }

        // From here the lock is free: the Cancels take it themselves, and the layer above has locks of its own.
        if let Some(refusal) = refusal_of_hello(answer, &said) {
            Self::hear_others(&mut state, &said);
            state.drain(refusal);
            drop(state);
            self.shared.changed.notify_waiters();
            // No session was given or lost: there will be another Hello.
            return;
        }

        drop(state);
        given_up.iter().for_each(|seq| self.cancel_at_peer(seq.get()));
        self.shared.handler.on_welcome_received(self, welcomed.then_some(&said));
    }

    /// Where else the server says that this client may go.
    fn hear_others(state: &mut Locked<'_>, said: &Metadata) {
        if let Some(others) = said.get(keys::GOODBYE_OTHERS) {
            let others = &others[..others.floor_char_boundary(OTHERS_BYTES)];
            state.rare().others = Some(others.into());
        }
    }

    /// At a client: where else its server has said that it may go, as it was said.
    pub(crate) fn others(&self) -> Option<Box<str>> {
        self.shared.state.lock().rare.as_ref()?.others.clone()
    }

    /// The server says that it is about to end the connection.
    #[cold]
    pub(super) fn handle_goodbye<'a>(&'a self, mut state: Locked<'a>, message: &Message) {
        let said = message.metadata();
        let text = |key| said.get(key).unwrap_or_default().to_owned();
        let (code, why) = (text(keys::GOODBYE_CODE), text(keys::GOODBYE_WHY));
        let reconnect_after = wait_asked_for(&said, keys::GOODBYE_AFTER);
        Self::hear_taken(&mut state, &said);
        Self::hear_others(&mut state, &said);
        state.drain(CloseReason::Goodbye { code, why, reconnect_after });
        self.say_last(&mut state);
        // Those who wait for it are woken without the lock, which they take.
        drop(state);
        self.shared.changed.notify_waiters();
    }

    // At a server: a Hello is checked and answered.

    /// Asks whether a client may come, by its first frame. `Err`: it may not, and the connection is to end at once; a
    /// client that said Hello is told when to try again, and its connection ends after that.
    pub(super) fn admit(&self, first: &Message) -> Result<(), CloseReason> {
        let Err(retry_after) = self.shared.handler.admit(first) else { return Ok(()) };
        let retry_after = in_whole_millis(retry_after);
        let why = "too many clients come at once";
        if !first.header().is_heartbeat() || Hello::from_metadata(&first.metadata()).is_none() {
            return Err(CloseReason::NotAdmitted { why: why.to_owned(), retry_after });
        }
        self.refuse_for_now(first, why, retry_after);
        Ok(())
    }

    /// Refuses a Hello with "not now". The connection ends after that.
    fn refuse_for_now(&self, hello: &Message, why: &str, retry_after: Duration) {
        let mut refusal = Metadata::new()
            .with(keys::ERROR, cut(why))
            .with(keys::ERROR_CODE, ErrorCode::Overloaded.name())
            .with(keys::RETRY_AFTER, retry_after.as_millis().to_string());
        if let Some(others) = self.shared.handler.others() {
            refusal.insert(keys::GOODBYE_OTHERS, others);
        }
        let header = hello.header().reply().with_status(Status::ERROR);
        self.control(Message::new(header, "", "", &refusal, &[]).frame());
        self.close_unwelcomed(CloseReason::NotAdmitted { why: why.to_owned(), retry_after });
    }

    /// Checks and answers a Hello. One that is not answered at once counts as a request, without its payload.
    pub(super) fn run_hello(&self, hello: Hello, message: Message) {
        let came = message.frame().len();
        // The hook keeps the metadata, and nothing else of what was read.
        let message = Message::new(message.header(), "", "", &message.metadata(), &[]);

        let max = message.frame().len() + HELLO_BYTES;
        if max < came {
            let error = DecodeError::TooLarge { len: came, max };
            self.refuse_by_header(message.header(), ErrorCode::BadArguments, &format!("a Hello: {error}"));
            return self.close_after_flush(CloseReason::BadFrame(error));
        }

        let check = Guarded::begin(|| self.shared.handler.handle_hello(self, message.metadata()));
        let mut check = match check {
            Ok(check) => check,
            Err(panicked) => return self.finish_hello(&hello, &message, checked(Err(panicked))),
        };

        // A check that is ready at once needs no task.
        match Pin::new(&mut check).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => self.finish_hello(&hello, &message, checked(outcome)),
            Poll::Pending => self.spawn_check(check, hello, message),
        }
    }

    fn spawn_check(&self, check: Guarded<Result<(), AuthError>>, hello: Hello, message: Message) {
        let mut permit = match Permit::acquire_for_hello(self, &message) {
            Ok(permit) => permit,
            Err(refused) => return self.refuse_for_now(&message, &self.note_no_place(refused), HELLO_RETRY),
        };

        permit.keep(&message);
        let connection = self.clone();
        tokio::spawn(async move {
            let mut permit = permit;
            let outcome = tokio::select! {
                outcome = check => checked(outcome),
                why = connection.hello_unwanted() => match why {
                    Unwanted::ForNow(retry_after) => Err(NotLetIn::NotNow { text: STOPPING.to_owned(), retry_after }),
                    Unwanted::ForGood => Err(NotLetIn::SentAway),
                    Unwanted::Over => return,
                },
            };

            // What is next may be checked from here on.
            permit.is_check = false;
            connection.finish_hello(&hello, &message, outcome);
            connection.flush();
        });
    }

    fn finish_hello(&self, hello: &Hello, message: &Message, outcome: Result<(), NotLetIn>) {
        match outcome {
            // It was sent away while its check ended.
            Ok(()) if self.shared.state.lock().is_sent_away() => self.send_away(hello, message),
            Ok(()) => self.let_in(hello, message),
            Err(NotLetIn::SentAway) => self.send_away(hello, message),
            // Either closes first: the check of what comes after the Hello begins when this one ends, and nothing of that
            // may run.
            Err(NotLetIn::Refused(text)) => {
                self.refuse_hello(message, text);
                self.hello_is_refused();
                self.end_check();
            }
            Err(NotLetIn::NotNow { text, retry_after }) => {
                self.refuse_for_now(message, &text, retry_after);
                self.hello_is_refused();
                self.end_check();
            }
        }
    }

    fn let_in(&self, hello: &Hello, message: &Message) {
        let said = message.metadata();
        let methods = self.shared.settings.announced.take(said.get(keys::METHODS));
        let welcome = {
            let mut state = self.shared.state.lock();
            state.set_methods(methods);
            state.note_limit_of_peer(&said, self.limits());
            state.proto.on_hello_accepted(hello, self.shared.settings.capabilities)
        };

        // Not under the lock: the layer above has locks of its own, and may say goodbye to whom it has just let in.
        let sessions = welcome.capabilities.contains(Capabilities::SESSIONS);
        let pairs = if sessions { self.shared.handler.welcome_pairs(self, &said) } else { Ok(Metadata::new()) };
        let mut pairs = match pairs {
            Ok(pairs) => pairs,
            Err(retry_after) => {
                return self.refuse_for_now(message, "a later attempt of this client was let in before", retry_after);
            }
        };

        welcome.put(&mut pairs);
        pairs.insert(keys::BODY_BYTES_MAX, self.limits().body_bytes().to_string());
        self.control(Message::new(message.header().reply(), "", "", &pairs, &[]).frame());
        self.welcome_is_queued();

        match self.shared.handler.hello_shows_token() {
            true => self.trust(),
            false => self.end_check(),
        }

        match sessions {
            true => self.shared.handler.on_welcome_sent(self),
            // What waited for the answer goes on its way.
            false => self.shared.handler.on_writable(self),
        }
    }

    /// Answers the Hello of a client that is not wanted: a Welcome without a session, since a client knows no Goodbye
    /// before that, the Goodbye and the end.
    fn send_away(&self, hello: &Hello, message: &Message) {
        let (welcome, said) = {
            let mut state = self.shared.state.lock();
            let said = state.rare().after_welcome.goodbye.clone().unwrap_or_default();
            (state.proto.on_hello_accepted(hello, self.shared.settings.capabilities), said)
        };
        let mut pairs = Metadata::new();
        // For one that had a session: it hears by the Welcome that this is lost.
        for (key, of_goodbye) in [(keys::SESSION_WHY, keys::GOODBYE_CODE), (keys::SESSION_WORDS, keys::GOODBYE_WHY)] {
            let said = said.get(of_goodbye).unwrap_or_default();
            pairs.insert(key, &said[..said.floor_char_boundary(WORDS_BYTES)]);
        }
        welcome.put(&mut pairs);
        self.control(Message::new(message.header().reply(), "", "", &pairs, &[]).frame());
        self.welcome_is_queued();
        self.end_check();
    }

    /// Refuses a Hello for its token. The connection ends after that.
    fn refuse_hello(&self, hello: &Message, text: String) {
        let code = ErrorCode::Unauthenticated.name();
        let refusal = Metadata::new().with(keys::ERROR, cut(&text)).with(keys::ERROR_CODE, code);
        let header = hello.header().reply().with_status(Status::ERROR);
        self.control(Message::new(header, "", "", &refusal, &[]).frame());
        self.close_unwelcomed(CloseReason::Unauthenticated(text));
    }

    /// The Welcome is queued: what waited for it follows.
    pub(super) fn welcome_is_queued(&self) {
        let (AfterWelcome { goodbye, end }, understands) = {
            let mut state = self.shared.state.lock();
            state.proto.on_welcome_sent();
            let after_welcome = state.rare.as_mut().map(|rare| std::mem::take(&mut rare.after_welcome));
            (after_welcome.unwrap_or_default(), state.proto.peer_can(Capabilities::GOODBYE))
        };
        if let Some(said) = goodbye.filter(|_| understands) {
            self.control_request(keys::GOODBYE, &said);
        }
        if let Some(reason) = end {
            self.close_after_flush(reason);
        }
        self.shared.changed.notify_waiters();
    }

    /// The refusal of a Hello is queued.
    pub(super) fn hello_is_refused(&self) {
        self.shared.state.lock().proto.on_hello_refused();
        self.shared.changed.notify_waiters();
    }

    // Until a client is let in, and when it is.

    /// Has the client whose Hello is being checked told to come again after so long. False: there is no such Hello.
    pub(crate) fn turn_away(&self, retry_after: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let is_checking = self.shared.is_checking.load(Ordering::Relaxed);
        let is_pending = state.proto.greeting() == Greeting::HelloPending;
        let is_checked = is_checking && is_pending && state.can_answer();
        if is_checked {
            state.rare().turned_away = Some(in_whole_millis(retry_after));
            state.notify(&self.shared.changed);
        }
        is_checked
    }

    /// Waits until nobody needs the check of a Hello.
    async fn hello_unwanted(&self) -> Unwanted {
        loop {
            let changed = self.shared.changed.notified();
            {
                // Let go before the wait, which the code that refuses the client ends under the lock.
                let state = self.shared.state.lock();
                if !state.can_answer() {
                    return Unwanted::Over;
                }
                if state.is_sent_away() {
                    return Unwanted::ForGood;
                }
                if let Some(retry_after) = state.rare.as_ref().and_then(|rare| rare.turned_away) {
                    return Unwanted::ForNow(retry_after);
                }
            }
            changed.await;
        }
    }

    /// Waits until a client whose token was not accepted yet takes no answer any more; for ever once it is.
    pub(super) async fn stranger_left(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.is_trusted.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            if !self.shared.state.lock().can_answer() {
                return;
            }
            changed.await;
        }
    }

    /// The auth hook has let this client in: from here on its requests are handled side by side, and may be as large
    /// as any.
    pub(crate) fn trust(&self) {
        if !self.shared.is_trusted.load(Ordering::Relaxed) {
            self.shared.is_trusted.store(true, Ordering::Relaxed);
            self.end_check();
        }
    }

    /// As [`Self::trust`], by a request: what waited for its client's first one may go.
    pub(crate) fn trust_by_request(&self) {
        self.trust();
        self.tell_waiting_pushes();
    }

    /// False while nothing that the client sent has passed the auth hook, if there is one.
    pub(crate) fn is_trusted(&self) -> bool {
        self.shared.is_trusted.load(Ordering::Relaxed)
    }

    /// The request that was checked is over: the next one is.
    pub(super) fn end_check(&self) {
        let mut state = self.shared.state.lock();
        if self.shared.is_checking.swap(false, Ordering::Relaxed) {
            self.wake_driver(&mut state);
        }
    }

    /// Adds a heartbeat request; its answer comes back as a reply to `waiter`.
    pub(super) fn heartbeat<'a>(&'a self, state: &mut Locked<'a>, waiter: Waiter, metadata: &Metadata) {
        let is_ping = matches!(waiter, Waiter::Ping);
        if let Some(unanswered) = state.rare.as_mut().and_then(|rare| rare.ping.take_if(|_| is_ping)) {
            // Whatever came since was a sign of life; its answer is not waited for any more.
            state.proto.forget(unanswered);
        }
        if let Ok(seq) = state.proto.begin_heartbeat(waiter) {
            if is_ping {
                state.rare().ping = Some(seq);
            }
            // Go's heartbeat carries the clock as a MessagePack int64; nobody reads it.
            let ping = Message::ping(seq, metadata, &[0xd3, 0, 0, 0, 0, 0, 0, 0, 0]);
            let added = state.outbox.add_frame(Lane::Control, ping.frame(), &self.shared.settings.bounds());
            let _ = self.check_added(state, added);
        }
    }
}

/// What is to be said and done once the Welcome of a client is queued, which knows no Goodbye before it.
#[derive(Default)]
pub(super) struct AfterWelcome {
    pub(super) goodbye: Option<Metadata>,
    pub(super) end: Option<CloseReason>,
}

impl State {
    /// True if the client whose Hello is being checked is not wanted: see [`Connection::send_away_at_hello`].
    fn is_sent_away(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.after_welcome.end.is_some())
    }
}

/// Why a Hello is not checked any more.
enum Unwanted {
    /// The connection takes no answer.
    Over,
    /// Its client was turned away, and is to come again after so long.
    ForNow(Duration),
    /// Its session was ended for good.
    ForGood,
}

/// Why a Hello is not welcomed.
enum NotLetIn {
    /// Its token is refused.
    Refused(String),
    /// Its session was ended for good.
    SentAway,
    /// It may be later.
    NotNow { text: String, retry_after: Duration },
}

/// Whole milliseconds travel, and a moment too early is in vain.
fn in_whole_millis(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

/// What the auth hook makes of a Hello. A hook that panics has not said that the token is wrong: the client may come
/// again. It does not stay, for a client takes any refusal for the end of its connection.
fn checked(outcome: Result<Result<(), AuthError>, Panicked>) -> Result<(), NotLetIn> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(AuthError::Refused(text))) => Err(NotLetIn::Refused(text)),
        Ok(Err(AuthError::NotNow { text, retry_after })) => {
            Err(NotLetIn::NotNow { text, retry_after: in_whole_millis(retry_after) })
        }
        Err(panicked) => Err(NotLetIn::NotNow { text: panicked_text(&panicked, "", "auth"), retry_after: HELLO_RETRY }),
    }
}

/// Why the answer to a Hello is a refusal, if it is one. A plain server echoes the Hello, and refuses nobody: one that
/// answers it with an error, as Go's does while requests come too fast, goes on reading, and answers what follows.
fn refusal_of_hello(answer: &Message, said: &Metadata) -> Option<CloseReason> {
    let why = || answer.error_text().unwrap_or_default();
    match said.get(keys::ERROR_CODE).map(ErrorCode::from_name) {
        Some(Some(ErrorCode::Unauthenticated)) => Some(CloseReason::Unauthenticated(why())),
        Some(Some(ErrorCode::Overloaded)) => {
            let retry_after = wait_asked_for(said, keys::RETRY_AFTER).unwrap_or_default();
            Some(CloseReason::NotAdmitted { why: why(), retry_after })
        }
        Some(_) => Some(CloseReason::HelloRefused(why())),
        None => None,
    }
}

/// How long a server asks its client to wait before the next connection. An hour at most: it must not send its clients
/// away for good.
fn wait_asked_for(said: &Metadata, key: &str) -> Option<Duration> {
    let millis: u64 = said.get(key)?.parse().ok()?;
    Some(Duration::from_millis(millis.min(3_600_000)))
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Role, Seq, SerializeType};

    use super::*;
    use crate::connection::alone::alone;

    /// A plain server echoes the Hello, or answers it with an error that has no code: either way it goes on. A Bothways
    /// server says by a code that it refuses.
    #[test]
    fn a_hello_is_refused_by_a_code_and_by_nothing_else() {
        let refusal = |status, pairs: Metadata| {
            let header = Header::request(Seq::new(0), SerializeType::RAW).reply().with_status(status);
            let said = pairs.with("__rpcx_error__", "no");
            refusal_of_hello(&Message::new(header, "", "", &said, &[]), &said)
        };
        let code = |code| Metadata::new().with(keys::ERROR_CODE, code);
        let refused = |outcome| matches!(outcome, Some(CloseReason::HelloRefused(_)));
        for status in [Status::NORMAL, Status::ERROR] {
            assert!(refusal(status, Metadata::new()).is_none());
            assert!(refused(refusal(status, code("internal"))) && refused(refusal(status, code("no such code"))));
            let outcome = refusal(status, code(ErrorCode::Unauthenticated.name()));
            assert!(matches!(outcome, Some(CloseReason::Unauthenticated(_))));
            for (asked, expected) in [("", 0), ("x", 0), ("1500", 1500), ("3600000", 3_600_000), ("3600001", 3_600_000)]
            {
                let outcome = refusal(status, code(ErrorCode::Overloaded.name()).with(keys::RETRY_AFTER, asked));
                let Some(CloseReason::NotAdmitted { retry_after, .. }) = outcome else { panic!("{outcome:?}") };
                assert_eq!(retry_after, Duration::from_millis(expected), "{asked}");
            }
        }
    }

    /// A client is turned away only while its Hello is being checked. One that has been let in since hears the Goodbye
    /// behind its Welcome.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_been_let_in_is_not_turned_away() {
        let (server, _far) = alone(Role::Server);
        let hello = Hello { version: proto::VERSION, capabilities: Capabilities::ALL };
        let mut said = Metadata::new();
        hello.put(&mut said);
        let first = Message::ping(Seq::new(0), &said, &[]);
        server.shared.state.lock().proto.handle_message(first).expect("it is the first");
        server.shared.is_checking.store(true, Ordering::Relaxed);
        let wait = Duration::from_millis(1);
        assert!(server.turn_away(wait), "it is being checked");

        server.shared.state.lock().proto.on_hello_accepted(&hello, Capabilities::ALL);
        assert!(!server.turn_away(wait) && server.say_goodbye_for("drain", "", Some(wait)));
        assert!(server.shared.state.lock().rare().after_welcome.goodbye.is_some());
    }

    #[test]
    fn a_wait_is_said_in_whole_milliseconds_and_never_too_short() {
        for (micros, millis) in [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)] {
            assert_eq!(in_whole_millis(Duration::from_micros(micros)), Duration::from_millis(millis), "{micros}");
        }
        assert_eq!(in_whole_millis(Duration::MAX), Duration::from_millis(u64::MAX));
    }
}
