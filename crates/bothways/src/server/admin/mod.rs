//! The admin service for operators' tools: it lists, explains, pushes, kicks and drains. It needs a token (`door.rs`).
//!
//! Service path [`SERVICE_PATH`]; every request carries the admin token under the metadata key `_bw.admin`. The server's
//! own auth hook is not asked: the token is. A tool asks for what it shows, each second if it likes: nothing is sent to it
//! unasked, and the server keeps nothing for one that has stopped asking.
//!
//! | file | what it has |
//! |---|---|
//! | `mod.rs` | the methods, and who may call each |
//! | `views.rs` | what is asked and shown, as it travels |
//! | `lists.rs` | connections, sessions, stories, topics and their members |
//! | `everywhere.rs` | nodes, and the sessions of all nodes of a cluster |
//! | `push.rs` | pushes of operators, and how far they come |
//! | `mail.rs` | mailboxes and dead letters of durable pushes |
//! | `live.rs` | counters, and the feed of events |
//! | `audit.rs` | what operators did, and what was refused |
//! | `client.rs` | [`AdminClient`] |

mod audit;
mod client;
mod everywhere;
mod lists;
mod live;
mod mail;
mod push;
mod views;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bothways_proto::keys;

#[cfg(feature = "cluster")]
pub(super) use self::everywhere::{FarQuestion, answer_far};
pub(super) use self::{audit::Audit, everywhere::sessions_everywhere, push::Receipts};
pub use self::{
    client::AdminClient,
    everywhere::WrongTarget,
    mail::{LetterNamed, LettersAsked, LettersListed, MailboxesAsked},
    push::{AdminPush, AdminPushOutcome, PushClass, PushFailures, PushUntil},
    views::{
        AdminDrain, AdminExplained, AdminKick, AdminKicked, AdminNode, AdminStats, AuditAsked, AuditEntry,
        ConnectionView, EventView, EventsAsked, EventsListed, MembersAsked, MembersListed, OperatorView, Page,
        PushReceipt, PushTarget, ReceiptAsked, SessionPlace, SessionView, SessionsAsked, SessionsListed, SilentNode,
        TopicView, TopicsAsked, TopicsListed,
    },
};
use super::{
    Server, Shared,
    door::{AdminRole, Door, Operator},
};
use crate::{
    Payload,
    connection::ConnectionId,
    error::ErrorCode,
    handler::{Context, Reply, Request},
    router::Router,
    session::Target,
};

/// The service path of the admin service.
pub const SERVICE_PATH: &str = "_bothways.Admin";

/// The metadata key of the admin token.
pub const TOKEN_KEY: &str = keys::ADMIN_TOKEN;

/// The longest that a drain may take.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

pub(super) fn add_routes(router: Router, door: Arc<Door>, shared: Weak<Shared>) -> Router {
    use AdminRole::{Kick, Look, Push};

    let admin = Admin { door, shared };
    let router = admin.add(router, "Me", Look, |asking: Asking, ()| async move { Ok(asking.me()) });
    let router = admin.add(router, "Connections", Look, |asking: Asking, page: Option<Page>| async move {
        lists::connections(&asking, page.unwrap_or_default())
    });
    let router = admin.add(router, "Sessions", Look, lists::sessions);
    let router = admin.add(router, "Explain", Look, |asking, asked| async move { lists::explain(&asking, &asked) });
    let router = admin.add(router, "Nodes", Look, |asking, ()| async move { Ok(everywhere::nodes(asking).await) });
    let router = admin.add(router, "SessionsEverywhere", Look, everywhere::sessions);
    let router = admin.add(router, "ExplainEverywhere", Look, everywhere::explain);
    let router = admin.add(router, "KickEverywhere", Kick, everywhere::kick);
    let router = admin.add(router, "Topics", Look, |asking, asked| async move { Ok(lists::topics(&asking, &asked)) });
    let router = admin.add(router, "Members", Look, |asking, asked| async move { lists::members(&asking, &asked) });
    let router = admin.add(router, "Stats", Look, |asking, ()| async move { Ok(live::stats(&asking)) });
    let router = admin.add(router, "Events", Look, |asking, asked| async move { Ok(live::events(&asking, &asked)) });
    let router = admin.add(router, "Audit", Look, |asking: Asking, asked| async move {
        Ok::<_, Refused>(asking.door.audit.page(&asked))
    });
    let router = admin.add(router, "Push", Push, push::run);
    let router = admin.add(router, "BeginPush", Push, push::begin);
    let router = admin.add(router, "Receipt", Look, push::follow);
    let router = admin.add(router, "Kick", Kick, |asking, kick| async move { run_kick(&asking, kick) });
    let router = admin.add(router, "Mailboxes", Look, mail::mailboxes);
    let router = admin.add(router, "Letters", Look, mail::letters);
    let router = admin.add(router, "DeadLetters", Look, mail::dead_letters);
    let router = admin.add(router, "SendAgain", Push, mail::send_again);
    let router = admin.add(router, "DeleteLetter", Kick, mail::delete);
    admin.add(router, "Drain", Kick, |asking, drain| async move { Ok(begin_drain(asking, &drain)) })
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

/// Who asks, and whom.
struct Asking {
    server: Server,
    door: Arc<Door>,
    connection: ConnectionId,
    peer: String,
    operator: Arc<Operator>,
}

impl Asking {
    fn me(&self) -> OperatorView {
        OperatorView {
            name: self.operator.name.to_string(),
            role: self.operator.role,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            node: everywhere::here(&self.server),
            is_node: everywhere::is_node(&self.server),
            has_mail: self.server.mail().is_some(),
        }
    }

    /// Notes what this operator did, to whom, and how many sessions that concerns.
    fn note(&self, act: &'static str, target: &str, detail: &str, sessions: usize) {
        let operator = &*self.operator.name;
        tracing::info!(operator, peer = self.peer, act, target, detail, sessions, "an operator acted");
        self.door.audit.note_act(operator, &self.peer, act, target, detail, sessions);
    }

    /// Begins what waits for others before it is known how it went. Nothing may be done before this.
    fn act(&self, act: &'static str, target: String, detail: String) -> Acting<'_> {
        let outcome = Err("its end was not waited for".to_owned());
        Acting { asking: self, act, target, detail, outcome }
    }

    /// Whom the operator means. Never the operator.
    fn target(&self, asked: &PushTarget) -> Result<Target, Refused> {
        let target = target_of(&self.server, asked)?;
        Ok(self.own().into_iter().fold(target, Target::except))
    }

    /// The operator's own session.
    fn own(&self) -> Option<crate::session::SessionId> {
        self.server.shared.sessions.of_connection(self.connection).map(|session| session.id())
    }
}

/// An act under way. It is noted when this is dropped: also if the operator waits for no answer, or the connection ends.
struct Acting<'a> {
    asking: &'a Asking,
    act: &'static str,
    target: String,
    detail: String,
    /// How many sessions it concerns, or why nobody knows.
    outcome: Result<usize, String>,
}

impl Acting<'_> {
    /// Notes how it went.
    fn ended(mut self, outcome: Result<usize, impl std::fmt::Display>) {
        self.outcome = outcome.map_err(|error| error.to_string());
    }
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        let Self { asking, act, target, detail, outcome } = self;
        match outcome {
            Ok(sessions) => asking.note(act, target, detail, *sessions),
            // The detail may be cut, and this not.
            Err(why) => asking.note(act, target, &format!("{why}: {detail}"), 0),
        }
    }
}

/// Whom an operator means.
fn target_of(server: &Server, asked: &PushTarget) -> Result<Target, Refused> {
    Ok(match asked {
        PushTarget::Everyone => Target::everyone(),
        PushTarget::Connection(id) => {
            let id: ConnectionId =
                id.parse().map_err(|_| Refused::Wrong(format!("`{id}` is no connection: write it as c12")))?;
            let is_there = server.connection(id).is_some();
            is_there.then(|| Target::connection(id)).ok_or(Refused::Failed(format!("there is no connection {id}")))?
        }
        PushTarget::Session(id) => {
            let no_session =
                |_| Refused::Wrong(format!("`{id}` is no session: it is written in 32 hexadecimal digits"));
            Target::session(id.parse().map_err(no_session)?)
        }
        PushTarget::User(name) => Target::user(name),
        PushTarget::Topic(name) => Target::subscribers_of(name),
    })
}

#[derive(Clone)]
struct Admin {
    door: Arc<Door>,
    shared: Weak<Shared>,
}

impl Admin {
    /// Adds a method that only those reach whose token has this role, or a greater one.
    fn add<A, R, F, Fut>(&self, router: Router, method: &'static str, needs: AdminRole, run: F) -> Router
    where
        A: Payload + 'static,
        R: Payload + 'static,
        F: Fn(Asking, A) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Refused>> + Send + 'static,
    {
        let admin = self.clone();
        router.own(SERVICE_PATH, method, move |request: Request| {
            let (admin, run) = (admin.clone(), run.clone());
            async move {
                let (context, asking, args) = match admin.check(request, method, needs).await {
                    Ok(parts) => parts,
                    Err(refusal) => return refusal,
                };

                // A list may be long: a task of its own makes it, and not the task that reads the connection.
                tokio::task::yield_now().await;
                match run(asking, args).await {
                    Err(Refused::Wrong(text)) => Reply::refused(ErrorCode::BadArguments, text),
                    outcome => context.into_reply(outcome),
                }
            }
        })
    }

    /// Lets in an operator whose role is enough.
    async fn check<A: Payload>(
        &self,
        request: Request,
        method: &'static str,
        needs: AdminRole,
    ) -> Result<(Context, Asking, A), Reply> {
        let operator = self.door.check(request.connection(), &request.metadata()).await?;
        let peer = request.connection().peer_address();
        if operator.role < needs {
            self.door.audit.note_refusal(&operator.name, &peer, &format!("{method} needs the role {}", needs.name()));
            let text = format!("your token's role is {}: {method} needs {}", operator.role.name(), needs.name());
            return Err(Reply::error(text));
        }
        let Some(shared) = self.shared.upgrade() else {
            return Err(Reply::refused(ErrorCode::ShuttingDown, "the server is over"));
        };

        let connection = request.connection().id();
        let (context, args) = request.into_typed::<A>()?;
        let asking = Asking { server: Server { shared }, door: Arc::clone(&self.door), connection, peer, operator };
        Ok((context, asking, args))
    }
}

fn run_kick(asking: &Asking, AdminKick { target, why }: AdminKick) -> Result<usize, Refused> {
    let ended = asking.server.kick(&asking.target(&target)?, &why).map_err(Refused::wrong)?;
    asking.note("kick", &target.to_string(), &why, ended);
    Ok(ended)
}

/// Begins to drain the server, which goes on by itself. Returns how many clients were connected.
fn begin_drain(asking: Asking, drain: &AdminDrain) -> usize {
    let deadline = Duration::from_millis(drain.deadline_ms).min(DRAIN_MAX);
    let connections = asking.server.stats().connections;
    let detail = format!("within {} s, {} a second", deadline.as_secs(), drain.reconnects_per_second);
    asking.note("drain", "the server", &detail, connections);

    let (server, rate) = (asking.server, drain.reconnects_per_second);
    // It outlives the operator's connection: the server stops even if the operator is gone.
    drop(tokio::spawn(async move { server.drain(deadline, rate).await }));
    connections
}

#[cfg(test)]
mod tests;
