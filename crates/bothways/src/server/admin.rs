//! The admin service for operators' tools: it lists, explains, pushes and kicks. It needs a token (`door.rs`).
//!
//! Service path [`SERVICE_PATH`]; every request carries the admin token under the metadata key
//! `_bw.admin`. The server's own auth hook is not asked: the token is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bothways_proto::{Metadata, SerializeType, keys};
use serde::{Deserialize, Serialize};

use super::{Server, Shared, door::Door};
use crate::{
    CallOptions, Caller, Payload,
    calm::Said,
    connection::{Connection, ConnectionId},
    error::{CallError, ErrorCode},
    handler::{Context, Reply, Request},
    router::Router,
    session::{Class, Explanation, Failure, Held, Outcomes, Push, Session, SessionId, Stage, Target},
};

/// The service path of the admin service.
pub const SERVICE_PATH: &str = "_bothways.Admin";

/// The metadata key of the admin token.
pub const TOKEN_KEY: &str = keys::ADMIN_TOKEN;

/// One connection, as the admin service shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ConnectionView {
    /// Its number, such as `c12`.
    pub id: String,
    /// The client's address.
    pub peer: String,
    /// True if the client speaks more than rpcx.
    pub negotiated: bool,
    /// Pushes given to it.
    pub pushes_sent: u64,
    /// Pushes that wait for it.
    pub pushes_waiting: usize,
    /// Pushes that were queued and never left.
    pub pushes_dropped: u64,
    /// Its requests that run.
    pub calls_running: usize,
    /// True for the connection on which this was asked.
    pub is_asking: bool,
}

/// One session, as the admin service shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionView {
    /// Its public number.
    pub id: SessionId,
    /// The user it is bound to.
    pub user: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its connection, such as `c12`; `None` while its client is away.
    pub connection: Option<String>,
    /// How many connections it has had.
    pub generation: u64,
    /// True if the client may come back to this session.
    pub resumable: bool,
    /// Pushes that wait, or are not handled yet.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// The oldest push that its client has received, and not handled.
    #[serde(default)]
    pub held: Option<Held>,
    /// Pushes that were dropped since it began.
    pub dropped: u64,
    /// What it subscribes to.
    pub subscriptions: Vec<String>,
    /// The methods that its client handles, each as `Path.method`; `None`: it has not said.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
}

/// Which sessions an operator wants listed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionsAsked {
    /// Whose.
    pub target: PushTarget,
    /// At most so many; 1,000 at most, and 1 MiB.
    pub max: usize,
    /// Only those after this one, which is the last of the page before. The list ends with an empty page.
    #[serde(default)]
    pub after: Option<SessionPlace>,
}

/// The place of a session in the list: by user, then by number.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionPlace {
    /// Its user.
    pub user: Option<String>,
    /// Its public number.
    pub id: SessionId,
}

/// Which connections an operator wants listed, oldest first. Without it, the first 1,000.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Page {
    /// Only those after this one, such as `c12`, which is the last of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many; 1,000 at most.
    pub max: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { after: None, max: PAGE_MAX }
    }
}

/// The sessions that an operator asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionsListed {
    /// How many there are.
    pub total: usize,
    /// A page of them, by user and number.
    pub sessions: Vec<SessionView>,
}

/// Sessions that an operator sends away.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminKick {
    /// Whose.
    pub target: PushTarget,
    /// The reason that their clients get.
    pub why: String,
}

/// Which sessions are meant: those to push to, to list, to explain, to end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushTarget {
    /// Every session except for that of the operator who asks.
    Everyone,
    /// The session whose connection has this number, such as `c12`.
    Connection(String),
    /// The session of this number, 32 hexadecimal digits.
    Session(String),
    /// All sessions of this user.
    User(String),
    /// All sessions that subscribe to this topic. A push to it is published, and kept in its history.
    Topic(String),
}

/// A push that an operator asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminPush {
    /// To whom.
    pub target: PushTarget,
    /// The service path that the client sees.
    pub service_path: String,
    /// The method that the client sees.
    pub service_method: String,
    /// The pairs that the client sees.
    pub metadata: Vec<(String, String)>,
    /// The payload.
    #[serde(with = "crate::codec::bytes")]
    pub payload: Vec<u8>,
    /// The codec of the payload, by its number on the wire; raw if nothing is said.
    #[serde(default)]
    pub codec: u8,
    /// The class of the push.
    #[serde(default)]
    pub class: PushClass,
    /// The idempotency key: a session is sent only one of several pushes with the same; see
    /// [`Push::idempotency_key`](crate::Push::idempotency_key).
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Wait until it has come so far with every session,
    #[serde(default)]
    pub until: PushUntil,
    /// but answer after so many milliseconds at the latest; 10,000 at most.
    #[serde(default)]
    pub wait_ms: u64,
}

/// The class of an [`AdminPush`]; see [`Class`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushClass {
    /// As [`Class::Tracked`].
    #[default]
    Tracked,
    /// As [`Class::Fire`].
    Fire,
    /// As [`Class::Latest`], with this key.
    Latest(String),
}

/// A stage to wait for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushUntil {
    /// Do not wait.
    #[default]
    Queued,
    /// The kernel has it.
    Written,
    /// The client's library has it.
    Received,
    /// The client's application has dealt with it.
    Handled,
}

/// How an [`AdminPush`] ended: each target session is counted once.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminPushOutcome {
    /// It waits for the connection, or for the client to come back.
    pub queued: usize,
    /// The kernel has it.
    pub written: usize,
    /// The client's library has it.
    pub received: usize,
    /// The client's application has dealt with it.
    pub handled: usize,
    /// It was too old before it was sent.
    pub expired: usize,
    /// A newer value of its key took its place.
    pub superseded: usize,
    /// It was dropped before it was sent whole; `explain` says why.
    pub dropped: usize,
    /// The client has it, and its application could not deal with it.
    #[serde(default)]
    pub failed: PushFailures,
    /// Its session ended before its client said what became of it.
    #[serde(default)]
    pub unknown: usize,
    /// One of the same idempotency key was sent before.
    #[serde(default)]
    pub duplicate: usize,
    /// The history of its topic keeps it, for later subscribers.
    #[serde(default)]
    pub stored: bool,
}

/// How many clients' applications could not deal with a push, and how they failed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PushFailures {
    /// Nobody there takes messages of this name.
    pub no_handler: usize,
    /// The handler could not decode it.
    pub bad_arguments: usize,
    /// The handler returned an error.
    pub error: usize,
    /// The handler panicked.
    pub panicked: usize,
}

impl PushFailures {
    /// All of them.
    pub fn total(&self) -> usize {
        self.no_handler + self.bad_arguments + self.error + self.panicked
    }
}

impl AdminPushOutcome {
    /// Sessions in all.
    pub fn targets(&self) -> usize {
        self.queued + self.written + self.received + self.handled + self.unknown + self.missed() + self.duplicate
    }

    /// Sessions that it will never reach, or whose application could not deal with it.
    pub fn missed(&self) -> usize {
        self.expired + self.superseded + self.dropped + self.failed.total()
    }
}

impl From<Outcomes> for AdminPushOutcome {
    fn from(outcomes: Outcomes) -> Self {
        Self {
            queued: outcomes.at(Stage::Queued),
            written: outcomes.at(Stage::Written) + outcomes.at(Stage::PlainWritten),
            received: outcomes.at(Stage::Received),
            handled: outcomes.at(Stage::Handled),
            expired: outcomes.at(Stage::Expired),
            superseded: outcomes.at(Stage::Superseded),
            dropped: outcomes.dropped(),
            failed: PushFailures {
                no_handler: outcomes.at(Stage::Failed(Failure::NoHandler)),
                bad_arguments: outcomes.at(Stage::Failed(Failure::BadArguments)),
                error: outcomes.at(Stage::Failed(Failure::Error)),
                panicked: outcomes.at(Stage::Failed(Failure::Panicked)),
            },
            unknown: outcomes.at(Stage::Unknown),
            duplicate: outcomes.at(Stage::Duplicate),
            stored: false,
        }
    }
}

/// The longest that an [`AdminPush`] waits: an operator who wants to wait longer asks for the story.
const PUSH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Sessions and connections in one answer; the next page begins after the last of this one.
pub(super) const PAGE_MAX: usize = 1000;

/// Bytes of the sessions in one answer; the first of them is in it however large it is.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Sessions that are explained at once: 64 events of each are some 600 KiB.
const EXPLAINED_MAX: usize = 100;

pub(super) fn add_routes(router: Router, door: Arc<Door>, shared: Weak<Shared>) -> Router {
    let admin = Admin { door, shared };
    let router = admin.add(router, "Connections", |server: Server, asking, page: Option<Page>| async move {
        list_connections(&server, asking, page.unwrap_or_default())
    });
    let router =
        admin.add(router, "Sessions", |server, asking, asked| async move { list_sessions(&server, asking, asked) });
    let router = admin.add(router, "Explain", |server, asking, asked| async move { explain(&server, asking, &asked) });
    let router = admin.add(router, "Kick", |server: Server, asking, AdminKick { target: asked, why }| async move {
        server.kick(&target(&server, asking, &asked)?, &why).map_err(Refused::wrong)
    });
    admin.add(router, "Push", run_push)
}

/// Why an operator gets no answer.
enum Refused {
    /// The request is wrong, whichever sessions are there.
    Wrong(String),
    /// It is not so, now.
    Failed(String),
}

impl Refused {
    fn wrong(error: impl std::fmt::Display) -> Self {
        Self::Wrong(error.to_string())
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Wrong(text) | Self::Failed(text)) = self;
        f.write_str(text)
    }
}

#[derive(Clone)]
struct Admin {
    door: Arc<Door>,
    shared: Weak<Shared>,
}

impl Admin {
    /// Adds a method that only those who have the token reach.
    fn add<A, R, F, Fut>(&self, router: Router, method: &str, run: F) -> Router
    where
        A: Payload + 'static,
        R: Payload + 'static,
        F: Fn(Server, ConnectionId, A) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Refused>> + Send + 'static,
    {
        let admin = self.clone();
        router.own(SERVICE_PATH, method, move |request: Request| {
            let (admin, run) = (admin.clone(), run.clone());
            async move {
                let (context, server, args) = match admin.check(request).await {
                    Ok(parts) => parts,
                    Err(refusal) => return refusal,
                };

                // A list may be long: a task of its own makes it, and not the task that reads the connection.
                tokio::task::yield_now().await;
                let asking = context.connection().id();
                match run(server, asking, args).await {
                    Err(Refused::Wrong(text)) => Reply::refused(ErrorCode::BadArguments, text),
                    outcome => context.into_reply(outcome),
                }
            }
        })
    }

    /// Lets in who has the token.
    async fn check<A: Payload>(&self, request: Request) -> Result<(Context, Server, A), Reply> {
        self.door.check(request.connection(), &request.metadata()).await?;
        let Some(shared) = self.shared.upgrade() else {
            return Err(Reply::refused(ErrorCode::ShuttingDown, "the server is over"));
        };
        let (context, args) = request.into_typed::<A>()?;
        Ok((context, Server { shared }, args))
    }
}

fn list_connections(server: &Server, asking: ConnectionId, page: Page) -> Result<Vec<ConnectionView>, Refused> {
    let parse = |id: String| {
        let wrong = |_| Refused::wrong(format!("`{}` is no connection, such as `c12`", Said(&id)));
        id.parse::<ConnectionId>().map_err(wrong)
    };
    let after = page.after.map(parse).transpose()?;

    let mut connections = server.shared.all_connections();
    connections.retain(|connection| after.is_none_or(|after| after < connection.id()));
    first_of(&mut connections, page.max.clamp(1, PAGE_MAX), Connection::id);

    let each = |connection: Connection| {
        let stats = connection.stats();
        ConnectionView {
            id: connection.id().to_string(),
            peer: connection.peer_address(),
            negotiated: connection.is_negotiated(),
            pushes_sent: stats.pushes_sent,
            pushes_waiting: stats.pushes_waiting,
            pushes_dropped: stats.pushes_dropped,
            calls_running: stats.calls_running,
            is_asking: connection.id() == asking,
        }
    };
    Ok(connections.into_iter().map(each).collect())
}

/// Keeps the first so many by this key, sorted, without sorting the others.
fn first_of<T, K: Ord>(all: &mut Vec<T>, max: usize, key: impl Fn(&T) -> K) {
    if max < all.len() {
        all.select_nth_unstable_by_key(max, &key);
        all.truncate(max);
    }
    all.sort_by_key(key);
}

/// Whom an operator means. Never the operator.
fn target(server: &Server, asking: ConnectionId, asked: &PushTarget) -> Result<Target, Refused> {
    let target = match asked {
        PushTarget::Everyone => Target::everyone(),
        PushTarget::Connection(id) => {
            let id: ConnectionId =
                id.parse().map_err(|_| Refused::Wrong(format!("`{id}` is no connection: write it as c12")))?;
            server.connection(id).ok_or_else(|| Refused::Failed(format!("there is no connection {id}")))?;
            Target::connection(id)
        }
        PushTarget::Session(id) => {
            let no_session =
                |_| Refused::Wrong(format!("`{id}` is no session: it is written in 32 hexadecimal digits"));
            let id = id.parse().map_err(no_session)?;
            Target::session(id)
        }
        PushTarget::User(name) => Target::user(name),
        PushTarget::Topic(name) => Target::subscribers_of(name),
    };

    let own = server.shared.sessions.of_connection(asking);
    Ok(own.iter().fold(target, |target, session| target.except(session.id())))
}

fn list_sessions(server: &Server, asking: ConnectionId, asked: SessionsAsked) -> Result<SessionsListed, Refused> {
    let found = server.sessions(&target(server, asking, &asked.target)?).map_err(Refused::wrong)?;
    let total = found.len();

    // Looked at once: whose a session is may change meanwhile.
    let place = |session: Session| (session.user(), session.id(), session);
    let mut placed: Vec<_> = found.into_iter().map(place).collect();
    if let Some(SessionPlace { user, id }) = &asked.after {
        placed.retain(|(of, session, _)| (user.as_deref(), id) < (of.as_deref(), session));
    }
    first_of(&mut placed, asked.max.clamp(1, PAGE_MAX), |(user, id, _)| (user.clone(), *id));

    let (mut sessions, mut bytes) = (Vec::new(), 0);
    for (_, _, session) in &placed {
        let view = view(session);
        bytes += bytes_of(&view);
        // The first one goes in whatever its size: after an empty page there is no next one.
        if !sessions.is_empty() && PAGE_BYTES_MAX < bytes {
            break;
        }
        sessions.push(view);
    }
    Ok(SessionsListed { total, sessions })
}

/// What a session takes in an answer, about.
fn bytes_of(view: &SessionView) -> usize {
    let texts = view.subscriptions.iter().chain(view.methods.iter().flatten()).chain(&view.user);
    let labels = view.labels.iter().map(|(key, value)| key.len() + value.len() + 8);
    512 + texts.map(|text| text.len() + 8).sum::<usize>() + labels.sum::<usize>()
}

fn view(session: &Session) -> SessionView {
    let (waiting, waiting_bytes) = session.waiting();
    SessionView {
        id: session.id(),
        user: session.user().map(|user| user.to_string()),
        labels: session.labels(),
        connection: session.connection().map(|connection| connection.id().to_string()),
        generation: session.generation(),
        resumable: session.is_resumable(),
        waiting,
        waiting_bytes,
        held: session.held(),
        dropped: session.dropped(),
        subscriptions: session.subscriptions(),
        methods: session.methods(),
    }
}

fn explain(server: &Server, asking: ConnectionId, asked: &PushTarget) -> Result<Vec<Explanation>, Refused> {
    // A session that ended cannot be looked up any more: no check that it is there.
    let target = target(server, asking, asked)?;
    let live = server.sessions(&target).map_err(Refused::wrong)?.len();
    if EXPLAINED_MAX < live {
        return Err(Refused::Wrong(format!(
            "{live} sessions are meant, and {EXPLAINED_MAX} at most are explained at once: name a user or a session"
        )));
    }
    let mut told = server.explain(&target).map_err(Refused::wrong)?;
    // Those that ended come first, oldest first.
    told.drain(..told.len().saturating_sub(EXPLAINED_MAX));
    Ok(told)
}

async fn run_push(server: Server, asking: ConnectionId, push: AdminPush) -> Result<AdminPushOutcome, Refused> {
    let target = target(&server, asking, &push.target)?;
    let metadata: Metadata = push.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let class = match push.class {
        PushClass::Tracked => Class::Tracked,
        PushClass::Fire => Class::Fire,
        PushClass::Latest(key) => Class::Latest(key),
    };
    let no_codec = || Refused::Wrong(format!("there is no codec {}", push.codec));
    let serialize = SerializeType::new(push.codec).ok_or_else(no_codec)?;

    let sent = Push::new(&push.service_path, &push.service_method, push.payload);
    let mut sent = sent.metadata(metadata).class(class).serialize_type(serialize);
    if let Some(key) = &push.idempotency_key {
        sent = sent.idempotency_key(key).map_err(Refused::wrong)?;
    }

    let receipt = match &push.target {
        // Not past the topic's history.
        PushTarget::Topic(topic) => server.publish(topic, &sent),
        _ => server.push(&target, &sent),
    };
    let receipt = receipt.map_err(Refused::wrong)?;

    let wait = Duration::from_millis(push.wait_ms).min(PUSH_WAIT_MAX);
    let reached = async {
        match push.until {
            PushUntil::Queued => receipt.outcomes(),
            PushUntil::Written => receipt.written().await,
            PushUntil::Received => receipt.received().await,
            PushUntil::Handled => receipt.handled().await,
        }
    };
    // A timeout is no failure: the operator learns how far the push has come.
    let outcomes = tokio::time::timeout(wait, reached).await.unwrap_or_else(|_| receipt.outcomes());
    Ok(AdminPushOutcome { stored: receipt.stored().is_some(), ..outcomes.into() })
}

/// A client of a server's admin service, over a [`Client`](crate::Client) that is connected to an
/// address where it answers ([`Server::listen_admin`]).
///
/// The client need not negotiate, and no auth hook is asked. `Debug` shows no token.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{
///     Client, ClientOptions, Server,
///     server::{AdminClient, AdminOptions, Page},
/// };
///
/// let server = Server::builder().admin(AdminOptions::token("a long secret")?).build();
/// let listening = server.listen_admin("memory@operators").await?;
/// let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await?;
/// let operator = AdminClient::new(client, "a long secret");
/// assert!(operator.connections(Page::default()).await?.is_empty());
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct AdminClient<C> {
    caller: C,
    token: String,
    timeout: Duration,
}

impl<C: Caller> AdminClient<C> {
    /// Presents this token with each question. Each answer is waited for 5 s, beyond what the question itself asks
    /// to wait.
    pub fn new(caller: C, token: impl Into<String>) -> Self {
        Self { caller, token: token.into(), timeout: Duration::from_secs(5) }
    }

    /// Waits this long for each answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A page of the open connections, oldest first.
    ///
    /// # Errors
    /// Any [`CallError`]; after a wrong token the server closes the connection.
    pub async fn connections(&self, page: Page) -> Result<Vec<ConnectionView>, CallError> {
        self.ask("Connections", &Some(page), Duration::ZERO).await
    }

    /// A page of sessions, by user and number.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn sessions(&self, asked: &SessionsAsked) -> Result<SessionsListed, CallError> {
        self.ask("Sessions", asked, Duration::ZERO).await
    }

    /// The recent events of sessions: 100 at most.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn explain(&self, target: &PushTarget) -> Result<Vec<Explanation>, CallError> {
        self.ask("Explain", target, Duration::ZERO).await
    }

    /// Ends sessions, and returns how many.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn kick(&self, kick: &AdminKick) -> Result<usize, CallError> {
        self.ask("Kick", kick, Duration::ZERO).await
    }

    /// Pushes, and returns what became of it.
    ///
    /// # Errors
    /// As [`Self::connections`].
    pub async fn push(&self, push: &AdminPush) -> Result<AdminPushOutcome, CallError> {
        let more = Duration::from_millis(push.wait_ms).min(PUSH_WAIT_MAX);
        self.ask("Push", push, more).await
    }

    async fn ask<R: Payload>(
        &self,
        method: &str,
        args: &(impl Payload + Sync),
        more: Duration,
    ) -> Result<R, CallError> {
        let metadata = Metadata::new().with(TOKEN_KEY, &self.token);
        let mut options = CallOptions::new().metadata(metadata).timeout(self.timeout.saturating_add(more));
        options.is_own = true;
        Ok(self.caller.call_typed(SERVICE_PATH, method, args, options).await?.value)
    }
}

impl<C> std::fmt::Debug for AdminClient<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminClient").field("token", &"***").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientOptions, Reconnect, codec::Encode, server::AdminOptions};

    fn token() -> AdminOptions {
        AdminOptions::token("right").expect("it has characters").on_service_addresses()
    }

    async fn ask<R: Payload>(
        client: &Client,
        token: &str,
        method: &str,
        args: &(impl Payload + Sync),
    ) -> Result<R, CallError> {
        AdminClient::new(client, token).ask(method, args, Duration::ZERO).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_to_everyone_leaves_out_who_asks() {
        let server = Server::builder().admin(token()).build();
        let listening = server.listen("memory@admin-push").await.expect("the name is free");
        let options = || ClientOptions::new();
        let (client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
        let (operator, mut unheard) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
        // A client that is answered is known to the server.
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");

        let push = AdminPush {
            target: PushTarget::Everyone,
            service_path: "News".into(),
            service_method: "Flash".into(),
            metadata: vec![("k".into(), "v".into())],
            payload: b"\x00\xff".to_vec(),
            codec: 0,
            class: PushClass::Tracked,
            idempotency_key: Some("flash 1".into()),
            until: PushUntil::Received,
            wait_ms: 1000,
        };
        let outcome = AdminClient::new(&operator, "right").push(&push).await.expect("the token is right");
        assert_eq!(outcome, AdminPushOutcome { received: 1, ..AdminPushOutcome::default() });
        let message = messages.next().await.expect("it is connected");
        assert_eq!((message.service_path(), message.metadata().get("k")), ("News", Some("v")));
        assert_eq!(message.payload().expect("not compressed"), b"\x00\xff"[..]);
        assert!(unheard.try_next().is_none());
        drop(message);
        let push = AdminPush { until: PushUntil::Handled, ..push };
        let again: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
        assert_eq!(again, AdminPushOutcome { duplicate: 1, ..AdminPushOutcome::default() });
        assert_eq!((again.targets(), again.missed()), (1, 0));
        let push = AdminPush { idempotency_key: Some(String::new()), ..push };
        ask::<AdminPushOutcome>(&operator, "right", "Push", &push).await.expect_err("a key has a length");

        let views: Vec<ConnectionView> = ask(&operator, "right", "Connections", &()).await.expect("the token is right");
        let page = Some(Page { after: Some("nonsense".to_owned()), ..Page::default() });
        let wrong = ask::<Vec<ConnectionView>>(&operator, "right", "Connections", &page).await;
        let error = wrong.expect_err("it is no connection").to_string();
        assert!(error.contains("`nonsense` is no connection, such as `c12`"), "{error}");
        let asking: Vec<bool> = views.iter().map(|view| view.is_asking).collect();
        assert_eq!(asking, [false, true]);
        assert_eq!((views[0].pushes_sent, views[1].pushes_sent), (1, 0));
    }

    /// An operator finds a session by its user, sees what it was sent, sends it away, and is told of its end.
    #[tokio::test(start_paused = true)]
    async fn sessions_are_listed_explained_and_kicked() {
        let hook = |request: crate::server::AuthRequest| async move {
            if let Some(session) = request.session() {
                session.bind_user(&request.token);
                session.set_label("device", "phone");
            }
            Ok::<_, String>(())
        };
        let server = Server::builder().admin(token()).auth(hook).build();
        let listening = server.listen("memory@admin-sessions").await.expect("the name is free");
        let options = ClientOptions::new().auth("ann").reconnect(Reconnect::Never);
        let (_client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
        let options = ClientOptions::new().negotiate(false);
        let operator = Client::connect(listening.address(), options).await.expect("it listens");
        let ann = PushTarget::User("ann".into());
        let push = AdminPush {
            target: ann.clone(),
            service_path: "Chat".into(),
            service_method: "say".into(),
            metadata: Vec::new(),
            payload: b"hi".to_vec(),
            codec: 0,
            class: PushClass::Latest("greeting".into()),
            idempotency_key: None,
            until: PushUntil::Handled,
            wait_ms: 100,
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        let outcome: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
        assert_eq!((outcome.received, outcome.targets()), (1, 1), "its application has it, and is not done");
        messages.next().await.expect("it came");

        let asked = SessionsAsked { target: ann.clone(), max: 10, after: None };
        let listed: SessionsListed = ask(&operator, "right", "Sessions", &asked).await.expect("the token is right");
        assert_eq!((listed.total, listed.sessions.len()), (1, 1));
        let session = &listed.sessions[0];
        assert_eq!((session.user.as_deref(), session.resumable, session.generation), (Some("ann"), true, 1));
        assert_eq!(session.labels.get("device").map(String::as_str), Some("phone"));

        let kick = AdminKick { target: PushTarget::Session(session.id.to_string()), why: "lunch".into() };
        let by_token = AdminClient::new(&operator, "right");
        assert!(!format!("{by_token:?}").contains("right"), "the token is a secret");
        assert!(format!("{by_token:?}").contains("AdminClient"));
        assert_eq!(by_token.kick(&kick).await.expect("the token is right"), 1);
        assert_eq!(by_token.kick(&kick).await.expect("the token is right"), 0, "it is gone");
        let everyone = AdminKick { target: PushTarget::Everyone, why: "lunch".into() };
        assert_eq!(by_token.kick(&everyone).await.expect("the token is right"), 0, "except for the one that asks");
        let told: Vec<crate::Explanation> = ask(&operator, "right", "Explain", &ann).await.expect("the token is right");
        let story = told[0].to_string();
        assert!(story.contains("push Chat.say (latest, offset 1, ") && story.contains("ended: lunch"), "{story}");
        for wrong in [PushTarget::Topic("a.*".into()), PushTarget::Session("x".into())] {
            ask::<Vec<crate::Explanation>>(&operator, "right", "Explain", &wrong).await.expect_err("it names nobody");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_token_nothing_is_told() {
        let server = Server::builder().admin(token()).build();
        let listening = server.listen("memory@admin-token").await.expect("the name is free");
        for token in ["", "wrong", "right "] {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            let error = ask::<Vec<ConnectionView>>(&client, token, "Connections", &()).await.expect_err("refused");
            assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{token:?}");
        }
    }

    /// Lists come in pages, each in order and each session once, however many there are.
    #[tokio::test(start_paused = true)]
    async fn lists_come_in_pages() {
        let server = Server::builder().admin(token()).build();
        let listening = server.listen("memory@admin-pages").await.expect("the name is free");
        let mut clients = Vec::new();
        for number in 0..7 {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            let connection = server.connections().pop().expect("it is open");
            let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
            if number != 3 {
                session.bind_user(&format!("user {}", number / 2));
            }
            clients.push(client);
        }
        let admin = server.listen_admin("memory@admin-pages-door").await.expect("the name is free");
        let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
        let operator = AdminClient::new(operator, "right");
        let (mut after, mut users, mut ids) = (None, Vec::new(), std::collections::BTreeSet::new());
        loop {
            let asked = SessionsAsked { target: PushTarget::Everyone, max: 2, after };
            let listed = operator.sessions(&asked).await.expect("the token is right");
            assert!(listed.total == 7 && listed.sessions.len() <= 2);
            let Some(last) = listed.sessions.last() else { break };
            after = Some(SessionPlace { user: last.user.clone(), id: last.id });
            ids.extend(listed.sessions.iter().map(|session| session.id));
            users.extend(listed.sessions.into_iter().map(|session| session.user));
        }
        assert!(users.is_sorted() && users.len() == 7 && ids.len() == 7, "{users:?}");
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let views = operator.connections(Page { after, max: 3 }).await.expect("the token is right");
            let Some(last) = views.last() else { break };
            assert!(views.len() <= 3 && views.iter().all(|view| !view.is_asking));
            after = Some(last.id.clone());
            seen.extend(views.into_iter().map(|view| view.id));
        }
        let open: Vec<_> = server.connections().iter().map(|connection| connection.id().to_string()).collect();
        assert_eq!(seen, open, "an operator's own connection is none of them");
    }

    /// U14. However large the sessions are, a page of them fits into an answer, and none is left out.
    #[tokio::test(start_paused = true)]
    async fn pages_have_a_bound_in_bytes() {
        let server = Server::builder().admin(token()).build();
        let listening = server.listen("memory@admin-bytes").await.expect("the name is free");
        let mut clients = Vec::new();
        for number in 0..20 {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            let connection = server.connections().pop().expect("it is open");
            let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
            // As many as fit just fill a page.
            session.bind_user(&format!("{number:02}"));
            session.set_label("note", "x".repeat(PAGE_BYTES_MAX / 8 - 512 - (2 + 8) - ("note".len() + 8)));
            clients.push(client);
        }
        let admin = server.listen_admin("memory@admin-bytes-door").await.expect("the name is free");
        let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
        let operator = AdminClient::new(operator, "right");
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let asked = SessionsAsked { target: PushTarget::Everyone, max: PAGE_MAX, after };
            let listed = operator.sessions(&asked).await.expect("it fits");
            let Some(last) = listed.sessions.last() else { break };
            assert_eq!(listed.sessions.len(), if seen.len() < 16 { 8 } else { 4 });
            after = Some(SessionPlace { user: last.user.clone(), id: last.id });
            seen.extend(listed.sessions.into_iter().map(|session| session.id));
        }
        assert_eq!(seen.len(), 20);
    }

    /// What is explained at once has a bound.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_not_explained_at_once() {
        let server = Server::builder().admin(token()).build();
        let listening = server.listen("memory@admin-crowd").await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..=EXPLAINED_MAX {
            clients.push(Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens"));
        }
        let admin = server.listen_admin("memory@admin-crowd-door").await.expect("the name is free");
        let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
        let operator = AdminClient::new(operator, "right");
        let error = operator.explain(&PushTarget::Everyone).await.expect_err("too many");
        assert!(error.to_string().contains("101 sessions are meant"), "{error}");
        clients.pop();
        until(|| server.connections().len() == EXPLAINED_MAX).await;
        operator.explain(&PushTarget::Everyone).await.expect("as many as may");
    }

    async fn until(mut is_true: impl FnMut() -> bool) {
        let waiting = async {
            while !is_true() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it comes true");
    }

    /// Each number counts once, and what is missed is what will never arrive or was not dealt with.
    #[test]
    fn an_outcome_adds_up() {
        let failed = PushFailures { no_handler: 1, bad_arguments: 2, error: 4, panicked: 8 };
        assert_eq!(failed.total(), 15);
        let outcome = AdminPushOutcome {
            queued: 16,
            written: 32,
            received: 64,
            handled: 128,
            expired: 256,
            superseded: 512,
            dropped: 1024,
            failed,
            unknown: 2048,
            duplicate: 4096,
            stored: true,
        };
        assert_eq!(outcome.missed(), 256 + 512 + 1024 + 15);
        assert_eq!(outcome.targets(), 8191);
    }

    #[test]
    fn the_first_are_kept_sorted() {
        for (max, expected) in [(0, &[][..]), (2, &[1, 2]), (4, &[1, 2, 3, 4]), (5, &[1, 2, 3, 4])] {
            let mut all = vec![3, 1, 4, 2];
            first_of(&mut all, max, |number| *number);
            assert_eq!(all, expected, "{max}");
        }
    }

    /// A page is as large as it is said to be: what a session counts for is what it takes, and little more.
    #[test]
    fn a_session_counts_for_what_it_takes() {
        let texts =
            |count: usize| (0..count).map(|number| format!("topic.of.some.length.{number}")).collect::<Vec<_>>();
        for (labels, subscriptions, methods, user) in
            [(0, 0, None, None), (100, 0, None, None), (0, 100, None, Some(5000)), (3, 7, Some(100), Some(3))]
        {
            let view = SessionView {
                id: "0123456789abcdef0123456789abcdef".parse().expect("a session"),
                user: user.map(|len| "u".repeat(len)),
                labels: texts(labels).into_iter().map(|key| (key, "value".repeat(20))).collect(),
                connection: Some("c12".into()),
                generation: u64::MAX,
                resumable: true,
                waiting: usize::MAX,
                waiting_bytes: usize::MAX,
                held: None,
                dropped: u64::MAX,
                subscriptions: texts(subscriptions),
                methods: methods.map(texts),
            };
            let pairs = labels + subscriptions + methods.unwrap_or(0);
            let takes = view.encode(SerializeType::MSGPACK).expect("plain data").len();
            let counted = bytes_of(&view);
            assert!(takes <= counted && counted <= takes + 512 + 8 * pairs, "{counted} for {takes}");
        }
    }

    /// A push to a topic goes past its history, and is told as kept; one to a connection that is gone is refused.
    #[tokio::test(start_paused = true)]
    async fn a_push_to_a_topic_is_kept_by_it() {
        let history = crate::session::TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder().admin(token()).topic("news", history).expect("a pattern").build();
        let listening = server.listen("memory@admin-topic").await.expect("the name is free");
        let operator = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let operator = AdminClient::new(operator, "right");
        let push = |target| AdminPush {
            target,
            service_path: "News".into(),
            service_method: "say".into(),
            metadata: Vec::new(),
            payload: b"x".to_vec(),
            codec: 0,
            class: PushClass::Tracked,
            idempotency_key: None,
            until: PushUntil::Queued,
            wait_ms: 0,
        };
        let told = operator.push(&push(PushTarget::Topic("news".into()))).await.expect("the token is right");
        assert_eq!(told, AdminPushOutcome { stored: true, ..AdminPushOutcome::default() });
        let told = operator.push(&push(PushTarget::User("ann".into()))).await.expect("the token is right");
        assert!(!told.stored);
        let error = operator.push(&push(PushTarget::Connection("c999999".into()))).await.expect_err("it is not there");
        assert!(error.to_string().contains("there is no connection c999999"), "{error}");
    }
}
