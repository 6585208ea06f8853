//! From a request to its handler: is the server stopping, is the token good, which route.

use std::{
    any::Any,
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bothways_proto::{Capabilities, Message, Metadata, keys};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Shared, admin, admission::Arrival, builder::AuthHook, builder::ErrorHook, control, silence::Silence, token, topics,
};
use crate::{
    calm::{Said, tell},
    clock::after,
    connection::{
        Answer, Connection, ConnectionHandler, HeldReply, NotRun, Readers, TokenOver, deadline, ends_something,
        is_an_end,
    },
    error::{AuthError, CloseReason, ErrorCode},
    extensions::Extensions,
    handler::{BoxHandler, Request},
    peer,
    reply::{BoxFuture, Reply},
    router::{NoRoute, no_route},
    session::{Claim, NotWelcome, RETRY_LATE, Registry, Session, UserCall},
};

/// The request of a client to an auth hook. `Debug` masks the token.
#[derive(Clone)]
#[non_exhaustive]
pub struct AuthRequest {
    /// The token of the request (`__AUTH`); empty if it has none.
    pub token: String,
    /// All pairs of the request.
    pub metadata: Metadata,
    /// The connection that the request came on.
    pub connection: Connection,
    /// `None`: a Hello. Its names are not copied, for the request counts once and a stranger chooses how long they are.
    request: Option<Message>,
    /// For the handler of the request.
    left: Arc<Mutex<Extensions>>,
}

impl AuthRequest {
    /// The service asked for; empty for a Hello. The names lie in the request, which lives as long as this does.
    pub fn service_path(&self) -> &str {
        self.request.as_ref().map_or("", Message::service_path)
    }

    /// The method asked for; empty for a Hello.
    pub fn service_method(&self) -> &str {
        self.request.as_ref().map_or("", Message::service_method)
    }

    /// The session of the client. Bind it to the user that the token stands for, so that
    /// [`Target::user`](crate::session::Target::user) finds it. At the Hello of a client that comes back, it makes way
    /// for the session that the client had: see [`Self::resumes`].
    pub fn session(&self) -> Option<Session> {
        self.connection.owner::<Registry>()?.of(&self.connection)
    }

    /// The session that the client had and is about to get back, by its secret. Once the hook has let the client in,
    /// [`Self::session`] makes way for that one and passes on its user, labels and subscriptions; of a label that both
    /// have, the hook's value stays. `None`: the client gets a new session.
    ///
    /// A hook that counts a user's sessions, or ends all others, must leave this one out: it belongs to this client.
    /// [`Target::except`](crate::Target::except) of [`Self::session`] excepts both. If the client cannot get it after
    /// all, because something that it was sent is missing, it has a new one: an old one that is connected ends then, and
    /// one that is away stays until its resume window is over.
    ///
    /// ```
    /// use std::sync::OnceLock;
    /// use bothways::{Server, Target};
    ///
    /// static SERVER: OnceLock<Server> = OnceLock::new();
    ///
    /// // One session a user: a login sends the user's other sessions away, and never this client's own.
    /// let server = Server::builder().auth(|request| async move {
    ///     let user = request.token.clone();
    ///     let (Some(server), Some(session)) = (SERVER.get(), request.session()) else { return Err("try again") };
    ///     session.bind_user(&user);
    ///     if request.is_hello() {
    ///         let others = Target::user(user).except(session.id());
    ///         server.kick(&others, "logged in elsewhere").expect("no topic");
    ///     }
    ///     Ok(())
    /// });
    /// SERVER.set(server.build()).ok();
    /// ```
    pub fn resumes(&self) -> Option<Session> {
        let registry = self.connection.owner::<Registry>()?;
        registry.wanted_by(&registry.of(&self.connection)?)
    }

    /// Leaves a value for the layers and the handler of this request. They find it in
    /// [`Request::extensions`](crate::Request::extensions) and [`Context::extensions`](crate::Context::extensions). At
    /// a Hello there is no handler, so the value is dropped.
    ///
    /// ```
    /// use bothways::{Context, Server};
    ///
    /// struct Tenant(String);
    ///
    /// # struct Notes;
    /// #[bothways::service]
    /// impl Notes {
    ///     async fn owner(&self, cx: &mut Context, (): ()) -> Result<String, String> {
    ///         Ok(cx.extensions().get::<Tenant>().ok_or("no tenant")?.0.clone())
    ///     }
    /// }
    ///
    /// let server = Server::builder().service(Notes).auth(|request| async move {
    ///     let (tenant, _) = request.token.split_once(':').ok_or("a token of a tenant, please")?;
    ///     request.attach(Tenant(tenant.to_owned()));
    ///     Ok::<_, &str>(())
    /// });
    /// ```
    pub fn attach<T: Send + Sync + 'static>(&self, value: T) {
        // Dropped behind the lock: what a value does at its end may leave another one here.
        let former = self.left.lock().replace(value);
        drop(former);
    }

    /// True for a Hello: the client says who it is, before its first request.
    pub fn is_hello(&self) -> bool {
        self.service_path().is_empty() && self.service_method().is_empty()
    }
}

impl std::fmt::Debug for AuthRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthRequest")
            .field("token", &if self.token.is_empty() { "" } else { "***" })
            .field("service_path", &self.service_path())
            .field("service_method", &self.service_method())
            .field("metadata", &self.metadata)
            .field("connection", &self.connection)
            .finish()
    }
}

/// After how long a client that says Hello to a server that stops is to come again.
pub(super) const RETRY_ELSEWHERE: Duration = Duration::from_millis(500);

/// What a server does with what comes in at one address, and who reads it, in the runtime that listens there.
pub(super) struct ServerHandler(pub(super) Arc<Shared>, pub(super) Arc<Readers>);

impl ConnectionHandler for ServerHandler {
    fn handle_request(&self, connection: &Connection, message: Message) -> Answer {
        let shared = &*self.0;
        let is_control = message.has_service_path(keys::CONTROL_PATH);
        if is_control && message.header().is_oneway() && connection.is_negotiated() {
            return self.handle_control(connection, &message);
        }

        let ends_something = is_control && is_an_end(message.service_method());
        if !ends_something && let Some(refusal) = self.refuse_at_end(connection, &message) {
            return refusal;
        }

        let deadline = match deadline(connection, &message) {
            Ok(deadline) => deadline,
            Err(reply) => {
                count_if_oneway(connection, &message);
                return Answer::Ready(reply);
            }
        };

        // What ends something of the user's is no call of the user's: a callback holds its place until it is answered.
        let counts = shared.calls_per_user_max.is_some() && !ends_something;
        let place = match counts.then(|| place_of_user(shared, connection, &message)).transpose() {
            Ok(place) => place.flatten(),
            Err(refusal) => return Answer::Ready(refusal),
        };
        let counts_later = counts && place.is_none();

        let on_error = shared.hooks.on_error.as_ref().map(|hook| (Arc::clone(hook), message.clone()));
        let request = Request::new(message, connection.clone(), deadline);
        let claims = is_control && request.service_method() == keys::RESUME;
        let claim = if claims { self.claim(connection, &request.metadata()) } else { None };
        // The place in line is taken now, so that the order is that of the requests.
        let line = is_control.then(|| topics::line_of(&request)).flatten();
        let place_in_line = line.map(|line| shared.topic_lines.join(line));

        let answer = match (self.auth_for(&request.message), shared.router.find(&request.message)) {
            (None, Ok(handler)) => handler.handle(request),
            (None, Err(why)) => {
                count_if_oneway(connection, &request.message);
                shared.counters.no_route.fetch_add(1, Ordering::Relaxed);
                return Answer::Ready(no_route(&request, why));
            }
            (Some(auth), handler) => {
                let (shared, auth, handler) = (Arc::clone(&self.0), Arc::clone(auth), handler.cloned());
                Box::pin(check_and_handle(shared, auth, request, handler, counts_later))
            }
        };

        let answer = match place_in_line {
            None => answer,
            Some(place) => Box::pin(async move {
                place.turn().await;
                answer.await
            }),
        };

        let answer = match (claim, place) {
            (None, None) => answer,
            held => holding(held, answer),
        };
        let answer = match on_error {
            None => answer,
            Some((hook, message)) => rewrite_errors(hook, message, answer),
        };
        Answer::Later(answer, deadline)
    }

    fn finish(&self, connection: &Connection, message: &Message) -> Option<Reply> {
        let is_in_line_anyway = message.header().is_oneway() && connection.is_negotiated();
        // Before its client's token was accepted it is checked as any request is, and what follows waits for that.
        if !ends_something(message) || is_in_line_anyway || !connection.is_trusted() {
            return None;
        }
        Some(control::finish(&Request::new(message.clone(), connection.clone(), None)))
    }

    fn asks_for_token(&self) -> bool {
        self.0.hooks.auth.is_some()
    }

    fn readers(&self) -> Option<&Arc<Readers>> {
        Some(&self.1)
    }

    fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::clone(&self.0.sessions) as _)
    }

    fn server(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::clone(&self.0) as _)
    }

    fn shares_as(&self, connection: &Connection) -> Option<Arc<str>> {
        let user = self.0.sessions.made_of(connection).and_then(|session| session.user());
        Some(match user {
            Some(user) => format!("user {user}").into(),
            None => format!("address {}", peer::group(&connection.peer_address())).into(),
        })
    }

    #[cfg(feature = "cluster")]
    fn others(&self) -> Option<String> {
        let node = self.0.node.get().filter(|_| self.0.is_stopping())?;
        node.others_for_client()
    }

    fn admit(&self, first: &Message) -> Result<(), Duration> {
        let shared = &*self.0;
        // In any other frame these pairs mean nothing.
        let names_session = first.header().is_heartbeat() || first.has_service_path(keys::CONTROL_PATH);
        let arrival = match names_session && shared.sessions.waits_for(&first.metadata()) {
            true => Arrival::Resume,
            false => Arrival::New,
        };

        shared.admission.admit(arrival).inspect_err(|retry_after| {
            shared.counters.not_admitted.fetch_add(1, Ordering::Relaxed);
            match shared.calm.admissions.due() {
                Some(left_out) => {
                    tracing::warn!(
                        ?arrival,
                        ?retry_after,
                        left_out,
                        "a client was not admitted: too many come at once"
                    );
                }
                None => tracing::debug!(?arrival, ?retry_after, "a client was not admitted: too many come at once"),
            }
        })
    }

    fn handle_hello(&self, connection: &Connection, metadata: Metadata) -> BoxFuture<Result<(), AuthError>> {
        if self.0.refuses_calls_of(connection) {
            // Its goodbye is said already to everybody else.
            let (text, retry_after) = ("the server is shutting down".to_owned(), RETRY_ELSEWHERE);
            return Box::pin(std::future::ready(Err(AuthError::NotNow { text, retry_after })));
        }

        match &self.0.hooks.auth {
            None => match self.0.sessions.bring(connection, &metadata) {
                None => Box::pin(std::future::ready(Ok(()))),
                Some(bringing) => {
                    let claim = self.claim(connection, &metadata);
                    Box::pin(async move { brought(bringing.await, claim) })
                }
            },
            Some(auth) => {
                let claim = self.claim(connection, &metadata);
                let again = self.0.sessions.may_bring(&metadata).then(|| metadata.clone());
                let decision = auth(AuthRequest {
                    token: token(&metadata),
                    metadata,
                    connection: connection.clone(),
                    request: None,
                    left: Arc::default(),
                });

                let (shared, connection) = (Arc::clone(&self.0), connection.clone());
                Box::pin(async move {
                    decision.await.inspect_err(|error| shared.note_not_let_in(&connection, error))?;
                    // Only for who is let in another node is asked for anything.
                    let bringing = again.and_then(|hello| shared.sessions.bring(&connection, &hello));
                    let outcome = match bringing {
                        Some(bringing) => bringing.await,
                        None => Ok(()),
                    };
                    brought(outcome, claim)
                })
            }
        }
    }

    fn handle_closed(&self, connection: &Connection, reason: &CloseReason) {
        if self.0.hooks.on_disconnect.is_some() {
            // It may ask for the session.
            self.0.sessions.of(connection);
        }
        self.0.forget(connection, reason);
        if let Some(door) = &self.0.door {
            door.forget(connection.id());
        }
        self.0.sessions.leave(connection);
    }

    fn welcome_pairs(&self, connection: &Connection, hello: &Metadata) -> Result<Metadata, Duration> {
        match self.0.sessions.arrive(connection, hello) {
            Ok(pairs) => Ok(pairs),
            Err(NotWelcome::Over) => Ok(Metadata::new()),
            Err(NotWelcome::Late) => Err(RETRY_LATE),
        }
    }

    fn on_welcome_sent(&self, connection: &Connection) {
        self.0.sessions.welcomed(connection);
    }

    fn catch_up(&self, connection: &Connection) {
        self.0.sessions.catch_up(connection);
    }

    fn on_writable(&self, connection: &Connection) {
        if let Some(session) = self.0.sessions.made_of(connection) {
            session.pump();
        }
    }

    fn handle_held(&self, connection: &Connection, reply: HeldReply) {
        self.0.sessions.put_behind(connection, reply);
    }
}

/// Its session is here now, or nowhere, or it is to come again.
fn brought(outcome: Result<(), Duration>, claim: Option<Claim>) -> Result<(), AuthError> {
    if let Some(claim) = claim {
        // Also if it is refused: until its connection is over the session that it had stands for it.
        claim.granted();
    }
    outcome.map_err(not_brought)
}

/// A client whose session cannot be had now keeps it.
fn not_brought(retry_after: Duration) -> AuthError {
    AuthError::NotNow { text: "its session is at another node, and cannot be had now".to_owned(), retry_after }
}

impl ServerHandler {
    /// The hook that a request has to pass.
    fn auth_for(&self, message: &Message) -> Option<&AuthHook> {
        let shared = &*self.0;
        // The admin service has a token of its own; where it does not answer, its path is one like others.
        let is_admin = shared.door.as_ref().is_some_and(|door| door.is_on_service_addresses())
            && message.has_service_path(admin::SERVICE_PATH);
        shared.hooks.auth.as_ref().filter(|_| !is_admin)
    }

    /// The answer to a request of a client that is to call another server, or no server any more.
    fn refuse_at_end(&self, connection: &Connection, message: &Message) -> Option<Answer> {
        if self.0.refuses_calls_of(connection) {
            count_if_oneway(connection, message);
            if !connection.is_negotiated() {
                // Go calls another server after the end of a connection, and after no answer that says so.
                connection.end_once_answered();
                return Some(Answer::Nothing);
            }
            if message.header().is_oneway() {
                connection.hand_back(message, NotRun::Shutdown);
            }
            return Some(Answer::Ready(Reply::refused(ErrorCode::ShuttingDown, "the server is shutting down")));
        }
        connection.takes_no_calls().then(|| Answer::Ready(refuse_moved(connection, message)))
    }

    /// If this client names a session that it had.
    fn claim(&self, connection: &Connection, said: &Metadata) -> Option<Claim> {
        let is_let_in = self.asks_for_token() && connection.is_trusted();
        self.0.sessions.claim(connection, said, is_let_in)
    }

    /// What Bothways clients tell the framework itself; what plain ones do is a service (`control.rs`).
    fn handle_control(&self, connection: &Connection, message: &Message) -> Answer {
        let said = || message.metadata();
        let is_true = match message.service_method() {
            keys::ACK => self.0.sessions.ack(connection, &said()),
            keys::LEAVE => {
                let is_true = self.0.sessions.end_by_client(connection, &said());
                if is_true {
                    // It reads no reply from here on.
                    connection.end_as_left();
                }
                is_true
            }
            keys::LAST => {
                connection.note_last();
                true
            }
            _ => true,
        };

        if !is_true {
            connection.end_as_misbehaved();
        }
        Answer::Nothing
    }
}

/// The place of a request among those of its user, if these are counted and there is a user.
fn place_of_user(shared: &Shared, connection: &Connection, message: &Message) -> Result<Option<UserCall>, Reply> {
    let Some(max) = shared.calls_per_user_max else { return Ok(None) };
    let Some(session) = shared.sessions.of_connection(connection.id()) else { return Ok(None) };
    session.begin_user_call(max).map_err(|running| {
        count_if_oneway(connection, message);
        Reply::refused(ErrorCode::Overloaded, format!("overloaded: {running} calls of this user run already"))
    })
}

impl Shared {
    /// The auth hook did not let a client in.
    fn note_not_let_in(&self, connection: &Connection, error: &AuthError) {
        match error {
            AuthError::Refused(text) => self.note_refused_token(connection, text),
            AuthError::NotNow { text, retry_after } => {
                self.counters.not_admitted.fetch_add(1, Ordering::Relaxed);
                let (peer, why) = (connection.peer_address(), Said(text));
                tell!(self.calm.admissions, warn, peer, %why, ?retry_after, "a token cannot be checked now");
            }
        }
    }

    /// The auth hook refused a client: it is counted, and told, and its token is not.
    fn note_refused_token(&self, connection: &Connection, text: &str) {
        let refused = 1 + self.counters.tokens_refused.fetch_add(1, Ordering::Relaxed);
        let (peer, why) = (connection.peer_address(), Said(text));
        tell!(self.calm.tokens, warn, peer, %why, refused, "a client was not authenticated");
    }
}

/// This request is not run: of a oneway request only the counter says so.
fn count_if_oneway(connection: &Connection, message: &Message) {
    if message.header().is_oneway() {
        connection.count_refused_oneway();
    }
}

/// The client has gone on with its session over another connection, for its token has run out here: what it has sent
/// here before it knew of that is made once more there, and not run here.
#[cold]
fn refuse_moved(connection: &Connection, message: &Message) -> Reply {
    if message.header().is_oneway() {
        connection.count_refused_oneway();
        connection.hand_back(message, NotRun::Token);
    }
    Reply::refused(ErrorCode::Unauthenticated, "the session is on another connection now")
}

/// How often a connection whose token was refused is looked at: it ends when no call runs on it any more, and the last
/// request of its client was read. Of a client that does not say which that is, when nothing has come for so long.
const TOKEN_LOOK: Duration = Duration::from_secs(1);

/// How long nothing may come of a client that says which request is its last, and has not.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// After how long it ends in any case: what runs then is answered within `close_timeout`.
const TOKEN_END: Duration = Duration::from_secs(60);

/// The token of a request was refused, and that of the Hello was not: it has run out. The client is told to come again
/// with another one. What was let in before is still answered, and what comes still has to show its token. False: this
/// is another token than the first one that was refused here: tokens are tried, and the connection ends at once.
fn end_for_token(connection: &Connection, why: &str, token: &[u8]) -> bool {
    let reason = CloseReason::Unauthenticated(why.to_owned());
    match connection.say_token_is_over(token, why) {
        TokenOver::Known => return true,
        TokenOver::Another => return false,
        TokenOver::NotTold => {
            connection.answer_and_end(reason);
            return true;
        }
        TokenOver::Told => {}
    }

    let connection = connection.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = all_is_read(&connection) => connection.answer_and_end(reason),
            _ = connection.closed() => {}
        }
    });
    true
}

/// Waits until a client that is to come again has nothing here any more: what it had sent was read, and is answered.
async fn all_is_read(connection: &Connection) {
    let until = after(TOKEN_END);
    let silence_max = if connection.peer_can(Capabilities::LAST) { LAST_WAIT } else { TOKEN_LOOK };
    let mut silence = Silence::begin(connection);
    loop {
        tokio::time::sleep(TOKEN_LOOK).await;
        if until <= Instant::now() {
            return;
        }

        if connection.is_busy() || connection.is_owed() {
            silence = Silence::begin(connection);
        }
        let is_done = connection.has_read_last() && !connection.is_busy();
        if is_done || silence_max <= silence.lasts(connection) {
            return;
        }
    }
}

/// Holds this to the end of the handler, also if nobody waits for that.
fn holding<T: Send + 'static>(held: T, answer: BoxFuture<Reply>) -> BoxFuture<Reply> {
    Box::pin(async move {
        let _held = held;
        answer.await
    })
}

/// Runs the handler of a request once the hook has accepted its token. `counts`: as a call of the user's.
async fn check_and_handle(
    shared: Arc<Shared>,
    auth: AuthHook,
    mut request: Request,
    handler: Result<BoxHandler, NoRoute>,
    counts: bool,
) -> Reply {
    if let Err(refusal) = authenticate(&shared, &auth, &mut request).await {
        return refusal;
    }

    // Whom the hook has bound just now is counted from this call on.
    let place = counts.then(|| place_of_user(&shared, request.connection(), &request.message));
    let _place = match place.transpose() {
        Ok(place) => place,
        Err(refusal) => return refusal,
    };

    match handler {
        Ok(handler) => handler.handle(request).await,
        Err(why) => {
            count_if_oneway(request.connection(), &request.message);
            shared.counters.no_route.fetch_add(1, Ordering::Relaxed);
            no_route(&request, why)
        }
    }
}

async fn authenticate(shared: &Shared, auth: &AuthHook, request: &mut Request) -> Result<(), Reply> {
    let (metadata, left) = (request.metadata(), Arc::<Mutex<Extensions>>::default());
    let asked = AuthRequest {
        token: token(&metadata),
        metadata,
        connection: request.connection().clone(),
        request: Some(request.message.clone()),
        left: Arc::clone(&left),
    };

    let is_oneway = request.message.header().is_oneway();
    let mut decision = auth(asked);
    // Until it is decided, and handed back if it is refused.
    let mut undecided = None;
    let decision = poll_fn(|cx| {
        let polled = decision.as_mut().poll(cx);
        if polled.is_pending() && is_oneway && undecided.is_none() {
            undecided = Some(request.connection().begin_check_of_oneway());
        }
        polled
    });

    match decision.await {
        Ok(()) => {
            if undecided.is_some_and(|undecided| !undecided.take()) {
                request.connection().count_refused_oneway();
                return Err(Reply::refused(ErrorCode::ShuttingDown, "the connection has ended"));
            }
            let left = std::mem::take(&mut *left.lock());
            request.extensions_mut().extend(left);
            request.connection().trust_by_request();
            Ok(())
        }
        Err(error) => {
            let connection = request.connection();
            shared.note_not_let_in(connection, &error);
            if is_oneway {
                connection.count_refused_oneway();
            }

            Err(match error {
                AuthError::Refused(text) if connection.is_negotiated() => {
                    if is_oneway {
                        connection.hand_back(&request.message, NotRun::Token);
                    }
                    // The Goodbye says how many are decided.
                    drop(undecided);
                    if !end_for_token(connection, &text, request.metadata().value(keys::AUTH).unwrap_or_default()) {
                        return Err(Reply::refused_for_good(text));
                    }
                    Reply::refused(ErrorCode::Unauthenticated, text)
                }
                AuthError::Refused(text) => Reply::refused_for_good(text),
                // Its Hello was let in, and its session stays: the call alone is to be tried again.
                AuthError::NotNow { text, .. } if connection.is_negotiated() => {
                    Reply::refused(ErrorCode::Overloaded, text)
                }
                AuthError::NotNow { text, retry_after } => {
                    let reason = CloseReason::NotAdmitted { why: text.clone(), retry_after };
                    Reply::refused(ErrorCode::Overloaded, text).closing(reason)
                }
            })
        }
    }
}

/// Gives the text of a handler's error to the hook. Refusals have a code, and stay as they are. What the hook hides in
/// the text does not leave beside it.
fn rewrite_errors(hook: ErrorHook, request: Message, answer: BoxFuture<Reply>) -> BoxFuture<Reply> {
    Box::pin(async move {
        let mut reply = answer.await;
        if let Err(failure) = &mut reply.outcome
            && failure.code.is_none()
        {
            let text = hook(request.service_path(), request.service_method(), failure.text.clone());
            if text != failure.text {
                failure.said = None;
                failure.text = text;
            }
        }
        reply
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use crate::{Client, ClientOptions, Reply, Request, Server, server::AuthRequest};

    /// A name may be as long as a frame, and the frame is what counts: the hook sees it where it lies.
    #[tokio::test]
    async fn a_hook_sees_the_names_where_they_lie() {
        let seen = std::sync::Arc::<Mutex<Vec<usize>>>::default();
        let [of_hook, of_handler] = [seen.clone(), seen.clone()];
        let note = |seen: &Mutex<Vec<usize>>, name: &str| {
            assert!(name.is_empty() || name == "Names" || name == "See");
            seen.lock().expect("no panic").push(name.as_ptr() as usize);
        };
        let server = Server::builder()
            .auth(move |request: AuthRequest| {
                if !request.is_hello() {
                    note(&of_hook, request.service_path());
                    note(&of_hook, request.service_method());
                }
                std::future::ready(Ok::<_, String>(()))
            })
            .handler("Names", "See", move |request: Request| {
                note(&of_handler, request.service_path());
                note(&of_handler, request.service_method());
                std::future::ready(Reply::ok(""))
            })
            .build();
        let listening = server.listen("memory@names").await.expect("the name is free");

        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
        client.oneshot("Names", "See", &()).await.expect("sent");
        let calls = client.call::<()>("Names", "See", &());
        _ = tokio::time::timeout(std::time::Duration::from_secs(60), calls).await.expect("answered");
        let seen = seen.lock().expect("no panic");
        assert_eq!(seen.len(), 8);
        assert!(seen.chunks(4).all(|request| request[..2] == request[2..]), "{seen:?}");
    }
}
