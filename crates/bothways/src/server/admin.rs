//! The service by which an operator's tools look in and push. Closed unless a token opens it.
//!
//! Service path [`SERVICE_PATH`]; every request carries the admin token under the metadata key
//! `_bw.admin`. The server's own auth hook is not asked: the token is.

use std::sync::Weak;

use bothways_proto::Metadata;
use serde::{Deserialize, Serialize};

use super::{Server, Shared};
use crate::{
    connection::{Connection, ConnectionId, FanOut, PushFrame, fan_out},
    error::ErrorCode,
    handler::{Reply, Request},
    router::Router,
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

/// To whom an [`AdminPush`] goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushTarget {
    /// Every connection but the one that asks.
    Everyone,
    /// The connection of this number, such as `c12`.
    Connection(String),
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
}

/// What became of an [`AdminPush`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminPushOutcome {
    /// Connections that took it.
    pub queued: usize,
    /// Connections whose queue was full.
    pub full: usize,
    /// Connections that were over.
    pub closed: usize,
}

pub(super) fn add_routes(router: Router, token: String, shared: Weak<Shared>) -> Router {
    let admin = Admin { token, shared };
    let (connections, push) = (admin.clone(), admin);
    router
        .handler(SERVICE_PATH, "Connections", move |request: Request| {
            let reply = connections.answer(request, |server, asking, (): ()| Ok(view(server, asking)));
            std::future::ready(reply)
        })
        .handler(SERVICE_PATH, "Push", move |request: Request| std::future::ready(push.answer(request, run_push)))
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
        let metadata = request.metadata();
        let presented = metadata.value(TOKEN_KEY).unwrap_or_default();
        let Some(shared) = self.shared.upgrade().filter(|_| same(presented, self.token.as_bytes())) else {
            return Reply::refused(ErrorCode::Unauthenticated, "the admin token is missing or wrong");
        };
        match request.into_typed::<A>() {
            Ok((context, args)) => {
                let asking = context.connection().id();
                context.into_reply(run(&Server { shared }, asking, args))
            }
            Err(refusal) => refusal,
        }
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

fn run_push(server: &Server, asking: ConnectionId, push: AdminPush) -> Result<AdminPushOutcome, String> {
    let to: Vec<Connection> = match &push.target {
        PushTarget::Everyone => server.connections().into_iter().filter(|to| to.id() != asking).collect(),
        PushTarget::Connection(id) => {
            let id: ConnectionId = id.parse().map_err(|_| format!("`{id}` is no connection: write it as c12"))?;
            vec![server.connection(id).ok_or_else(|| format!("there is no connection {id}"))?]
        }
    };
    let metadata: Metadata = push.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let limits = &server.shared.settings.limits;
    let frame = PushFrame::new(&push.service_path, &push.service_method, &metadata, &push.payload, limits)
        .map_err(|error| error.to_string())?;
    let FanOut { queued, full, closed } = fan_out(&to, &[frame]);
    Ok(AdminPushOutcome { queued, full, closed })
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
        };
        let outcome: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
        assert_eq!(outcome, AdminPushOutcome { queued: 1, full: 0, closed: 0 });
        let message = messages.next().await.expect("it is connected");
        assert_eq!((message.service_path(), message.metadata().get("k")), ("News", Some("v")));
        assert_eq!(message.payload().expect("not compressed"), b"\x00\xff"[..]);
        assert!(unheard.try_next().is_none());

        let views: Vec<ConnectionView> = ask(&operator, "right", "Connections", &()).await.expect("the token is right");
        let asking: Vec<bool> = views.iter().map(|view| view.is_asking).collect();
        assert_eq!(asking, [false, true]);
        assert_eq!((views[0].pushes_sent, views[1].pushes_sent), (1, 0));
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
