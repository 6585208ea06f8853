//! The service by which an operator's tools look in and push. Closed unless a token opens it.
//!
//! Service path [`SERVICE_PATH`]; every request carries the admin token under the metadata key
//! `_bw.admin`. The server's own auth hook is not asked: the token is.

use std::{collections::BTreeMap, sync::Weak, time::Duration};

use bothways_proto::Metadata;
use serde::{Deserialize, Serialize};

use super::{Server, Shared};
use crate::{
    connection::{Connection, ConnectionId},
    error::ErrorCode,
    handler::{Context, Reply, Request},
    router::Router,
    session::{Class, Failure, Outcomes, Push, Session, SessionId, Stage, Target},
};

/// The service path of the admin service.
pub const SERVICE_PATH: &str = "_bothways.Admin";

/// The metadata key of the admin token.
pub const TOKEN_KEY: &str = "_bw.admin";

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
    /// True if its client may come back to it.
    pub resumable: bool,
    /// Pushes that wait, or are not handled yet.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
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
    /// At most so many.
    pub max: usize,
}

/// The sessions that an operator asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SessionsListed {
    /// How many there are.
    pub total: usize,
    /// As many as were asked for.
    pub sessions: Vec<SessionView>,
}

/// Sessions that an operator sends away.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminKick {
    /// Whose.
    pub target: PushTarget,
    /// What their clients are told.
    pub why: String,
}

/// Which sessions are meant: those to push to, to list, to explain, to end.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushTarget {
    /// Every session but that of the one who asks.
    Everyone,
    /// The session whose connection has this number, such as `c12`.
    Connection(String),
    /// The session of this number, 32 hexadecimal digits.
    Session(String),
    /// All sessions of this user.
    User(String),
    /// All sessions that subscribe to this topic.
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
    /// What is promised of it.
    #[serde(default)]
    pub class: PushClass,
    /// What names it, so that a session is sent one of several with the same; see
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

/// What became of an [`AdminPush`]: every session that it was for is counted in one place.
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
    /// It was dropped before it was sent whole; explaining the session tells why.
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
        }
    }
}

/// The longest that an [`AdminPush`] waits: an operator who wants to wait longer asks for the story.
const PUSH_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) fn add_routes(router: Router, token: String, shared: Weak<Shared>) -> Router {
    let admin = Admin { token, shared };
    let (connections, sessions, explain) = (admin.clone(), admin.clone(), admin.clone());
    let (kick, push) = (admin.clone(), admin);
    router
        .handler(SERVICE_PATH, "Connections", move |request: Request| {
            let reply = connections.answer(request, |server, asking, (): ()| Ok(view(server, asking)));
            std::future::ready(reply)
        })
        .handler(SERVICE_PATH, "Sessions", move |request: Request| {
            std::future::ready(sessions.answer(request, list_sessions))
        })
        .handler(SERVICE_PATH, "Explain", move |request: Request| {
            std::future::ready(explain.answer(request, |server, asking, asked: PushTarget| {
                // Who ended cannot be looked up any more: no check that it is there.
                server.explain(&target(server, asking, &asked)?).map_err(|error| error.to_string())
            }))
        })
        .handler(SERVICE_PATH, "Kick", move |request: Request| {
            std::future::ready(kick.answer(request, |server, asking, AdminKick { target: asked, why }: AdminKick| {
                server.kick(&target(server, asking, &asked)?, &why).map_err(|error| error.to_string())
            }))
        })
        .handler(SERVICE_PATH, "Push", move |request: Request| {
            let push = push.clone();
            async move {
                match push.check::<AdminPush>(request) {
                    Ok((context, server, args)) => {
                        let asking = context.connection().id();
                        context.into_reply(run_push(&server, asking, args).await)
                    }
                    Err(refusal) => refusal,
                }
            }
        })
}

#[derive(Clone)]
struct Admin {
    token: String,
    shared: Weak<Shared>,
}

impl Admin {
    fn answer<A: crate::Payload, R: crate::Payload>(
        &self,
        request: Request,
        run: impl FnOnce(&Server, ConnectionId, A) -> Result<R, String>,
    ) -> Reply {
        match self.check(request) {
            Ok((context, server, args)) => {
                let asking = context.connection().id();
                context.into_reply(run(&server, asking, args))
            }
            Err(refusal) => refusal,
        }
    }

    /// Lets in who has the token.
    fn check<A: crate::Payload>(&self, request: Request) -> Result<(Context, Server, A), Reply> {
        let metadata = request.metadata();
        let presented = metadata.value(TOKEN_KEY).unwrap_or_default();
        let Some(shared) = self.shared.upgrade().filter(|_| same(presented, self.token.as_bytes())) else {
            return Err(Reply::refused(ErrorCode::Unauthenticated, "the admin token is missing or wrong"));
        };
        let (context, args) = request.into_typed::<A>()?;
        Ok((context, Server { shared }, args))
    }
}

/// Compares without telling by its time how much is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn view(server: &Server, asking: ConnectionId) -> Vec<ConnectionView> {
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
    server.connections().into_iter().map(each).collect()
}

/// Whom an operator means. Never the operator.
fn target(server: &Server, asking: ConnectionId, asked: &PushTarget) -> Result<Target, String> {
    let target = match asked {
        PushTarget::Everyone => Target::everyone(),
        PushTarget::Connection(id) => {
            let id: ConnectionId = id.parse().map_err(|_| format!("`{id}` is no connection: write it as c12"))?;
            server.connection(id).ok_or_else(|| format!("there is no connection {id}"))?;
            Target::connection(id)
        }
        PushTarget::Session(id) => {
            let id = id.parse().map_err(|_| format!("`{id}` is no session: it is written in 32 hexadecimal digits"))?;
            Target::session(id)
        }
        PushTarget::User(name) => Target::user(name),
        PushTarget::Topic(name) => Target::topic(name),
    };
    let own = server.shared.sessions.of_connection(asking);
    Ok(own.iter().fold(target, |target, session| target.except(session.id())))
}

fn list_sessions(server: &Server, asking: ConnectionId, asked: SessionsAsked) -> Result<SessionsListed, String> {
    let found = server.sessions(&target(server, asking, &asked.target)?).map_err(|error| error.to_string())?;
    let each = |session: &Session| {
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
            dropped: session.dropped(),
            subscriptions: session.subscriptions(),
            methods: session.methods(),
        }
    };
    let mut sessions: Vec<_> = found.iter().take(asked.max).map(each).collect();
    sessions.sort_by(|a, b| (&a.user, a.id.to_string()).cmp(&(&b.user, b.id.to_string())));
    Ok(SessionsListed { total: found.len(), sessions })
}

async fn run_push(server: &Server, asking: ConnectionId, push: AdminPush) -> Result<AdminPushOutcome, String> {
    let target = target(server, asking, &push.target)?;
    let metadata: Metadata = push.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let class = match push.class {
        PushClass::Tracked => Class::Tracked,
        PushClass::Fire => Class::Fire,
        PushClass::Latest(key) => Class::Latest(key),
    };
    let mut sent = Push::new(&push.service_path, &push.service_method, push.payload).metadata(metadata).class(class);
    if let Some(key) = &push.idempotency_key {
        sent = sent.idempotency_key(key).map_err(|error| error.to_string())?;
    }
    let receipt = server.push(&target, &sent).map_err(|error| error.to_string())?;
    let wait = Duration::from_millis(push.wait_ms).min(PUSH_WAIT_MAX);
    let reached = async {
        match push.until {
            PushUntil::Queued => receipt.outcomes(),
            PushUntil::Written => receipt.written().await,
            PushUntil::Received => receipt.received().await,
            PushUntil::Handled => receipt.handled().await,
        }
    };
    let outcomes = tokio::time::timeout(wait, reached).await.unwrap_or_else(|_| receipt.outcomes());
    Ok(outcomes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CallError, CallOptions, Client, ClientOptions};

    async fn ask<R: crate::Payload>(
        client: &Client,
        token: &str,
        method: &str,
        args: &(impl crate::Payload + Sync),
    ) -> Result<R, CallError> {
        let options = CallOptions::new().metadata(Metadata::new().with(TOKEN_KEY, token));
        Ok(client.call_with(SERVICE_PATH, method, args, options).await?.value)
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_to_everyone_leaves_out_who_asks() {
        let server = Server::builder().admin("right").build();
        let listening = server.listen("memory@admin-push").await.expect("the name is free");
        let options = || ClientOptions::new();
        let (client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
        let (operator, mut unheard) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
        // Whoever is answered is known to the server.
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");

        let push = AdminPush {
            target: PushTarget::Everyone,
            service_path: "News".into(),
            service_method: "Flash".into(),
            metadata: vec![("k".into(), "v".into())],
            payload: b"\x00\xff".to_vec(),
            class: PushClass::Tracked,
            idempotency_key: Some("flash 1".into()),
            until: PushUntil::Received,
            wait_ms: 1000,
        };
        let outcome: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
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
        let server = Server::builder().admin("right").auth(hook).build();
        let listening = server.listen("memory@admin-sessions").await.expect("the name is free");
        let options = ClientOptions::new().auth("ann").reconnect(false);
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
            class: PushClass::Latest("greeting".into()),
            idempotency_key: None,
            until: PushUntil::Handled,
            wait_ms: 100,
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        let outcome: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
        assert_eq!((outcome.received, outcome.targets()), (1, 1), "its application has it, and is not done");
        messages.next().await.expect("it came");

        let asked = SessionsAsked { target: ann.clone(), max: 10 };
        let listed: SessionsListed = ask(&operator, "right", "Sessions", &asked).await.expect("the token is right");
        assert_eq!((listed.total, listed.sessions.len()), (1, 1));
        let session = &listed.sessions[0];
        assert_eq!((session.user.as_deref(), session.resumable, session.generation), (Some("ann"), true, 1));
        assert_eq!(session.labels.get("device").map(String::as_str), Some("phone"));

        let kick = AdminKick { target: PushTarget::Session(session.id.to_string()), why: "lunch".into() };
        let kicked: usize = ask(&operator, "right", "Kick", &kick).await.expect("the token is right");
        assert_eq!(kicked, 1);
        let told: Vec<crate::Explanation> = ask(&operator, "right", "Explain", &ann).await.expect("the token is right");
        let story = told[0].to_string();
        assert!(story.contains("push Chat.say (latest, offset 1, ") && story.contains("ended: lunch"), "{story}");
        for wrong in [PushTarget::Topic("a.*".into()), PushTarget::Session("x".into())] {
            ask::<Vec<crate::Explanation>>(&operator, "right", "Explain", &wrong).await.expect_err("it names nobody");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_token_nothing_is_told() {
        let server = Server::builder().admin("right").build();
        let listening = server.listen("memory@admin-token").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        for token in ["", "wrong", "right "] {
            let error = ask::<Vec<ConnectionView>>(&client, token, "Connections", &()).await.expect_err("refused");
            assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{token:?}");
        }
    }
}
