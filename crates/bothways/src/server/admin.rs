//! The service by which an operator's tools look in and push. Closed unless a token opens it.
//!
//! Service path [`SERVICE_PATH`]; every request carries the admin token under the metadata key
//! `_bw.admin`. The server's own auth hook is not asked: the token is.

use std::sync::Weak;

use bothways_proto::Metadata;
use serde::{Deserialize, Serialize};

use super::{Server, Shared};
use crate::{
    connection::{ConnectionId, FanOut},
    error::{ErrorCode, PushError},
    handler::{Context, Reply, Request},
    router::Router,
};

/// The service path of the admin service.
pub(super) const SERVICE_PATH: &str = "_bothways.Admin";

/// The metadata key of the admin token.
const TOKEN_KEY: &str = "_bw.admin";

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
}

/// To whom an [`AdminPush`] goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushTarget {
    /// Every connection.
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
    /// The payload, as text.
    pub payload: String,
}

pub(super) fn add_routes(router: Router, token: String, shared: Weak<Shared>) -> Router {
    let admin = Admin { token, shared };
    let (connections, push) = (admin.clone(), admin);
    router
        .handler(SERVICE_PATH, "Connections", move |request: Request| {
            let reply = connections.answer(request, |server, (): ()| Ok(view(server)));
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
        run: impl FnOnce(&Server, A) -> Result<R, String>,
    ) -> Reply {
        let metadata = request.metadata();
        let presented = metadata.value(TOKEN_KEY).unwrap_or_default();
        let Some(shared) = self.shared.upgrade().filter(|_| same(presented, self.token.as_bytes())) else {
            return Reply::refused(ErrorCode::Unauthenticated, "the admin token is missing or wrong");
        };
        match request.into_typed::<A>() {
            Ok((context, args)) => Context::into_reply(context, run(&Server { shared }, args)),
            Err(refusal) => refusal,
        }
    }
}

/// Compares without telling by its time how much is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn view(server: &Server) -> Vec<ConnectionView> {
    let each = |connection: crate::Connection| {
        let stats = connection.stats();
        ConnectionView {
            id: connection.id().to_string(),
            peer: connection.peer_address(),
            negotiated: connection.is_negotiated(),
            pushes_sent: stats.pushes_sent,
            pushes_waiting: stats.pushes_waiting,
            pushes_dropped: stats.pushes_dropped,
            calls_running: stats.calls_running,
        }
    };
    server.connections().into_iter().map(each).collect()
}

fn run_push(server: &Server, push: AdminPush) -> Result<(usize, usize, usize), String> {
    let metadata: Metadata = push.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let (path, method) = (push.service_path.as_str(), push.service_method.as_str());
    let outcome = match &push.target {
        PushTarget::Everyone => server.broadcast(path, method, &metadata, push.payload.as_bytes()),
        PushTarget::Connection(id) => {
            let id: ConnectionId = id.parse().map_err(|_| format!("`{id}` is no connection: write it as c12"))?;
            let connection = server.connection(id).ok_or(format!("there is no connection {id}"))?;
            match connection.send_message(path, method, &metadata, push.payload.into_bytes()) {
                Ok(_) => Ok(FanOut { queued: 1, ..FanOut::default() }),
                Err(PushError::Full { .. }) => Ok(FanOut { full: 1, ..FanOut::default() }),
                Err(error) => Err(error),
            }
        }
    };
    outcome.map(|outcome| (outcome.queued, outcome.full, outcome.closed)).map_err(|error| error.to_string())
}
