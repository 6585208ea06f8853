//! HTTP in front of a Bothways server.
//!
//! A [`Front`] serves, on one port or mounted in an application's own router:
//!
//! | request | what it is |
//! |---|---|
//! | any path with `X-RPCX-*` headers | the gateway of Go's rpcx: same statuses, headers and texts |
//! | any path with `X-JSONRPC-2.0: true` | JSON-RPC 2.0 as in Go's rpcx, and batches |
//! | `POST /rpc/Service/Method` | the arguments as body, the reply as body, plain statuses |
//! | `GET /events?topics=a,b` | pushes as server-sent events, resumed by `Last-Event-ID` |
//! | `POST /events/ticket` | a ticket for one `GET /events`, for browsers, which cannot send a token there |
//! | `GET` of a path that was given a file | that file: [`FrontOptions::file`] |
//! | `GET /healthz`, `GET /readyz` | alive; takes new clients |
//! | `GET /metrics` | OpenMetrics text, if `FrontOptions::metrics` is set (feature `metrics`) |
//! | `GET /debug/vars` | tasks, connections and queues, if [`FrontOptions::debug`] is on |
//!
//! Each HTTP connection is one client of the server, over a connection within the process whose peer is called
//! `http@ip:port`. So the auth hook, limits, admission, layers and counters of the server hold for HTTP as for any other
//! client. The token is the header `Authorization`.
//!
//! `docs/http.md` in the repository has every request with an example.

#[cfg(feature = "admin")]
mod admin;
mod body;
mod codecs;
mod cors;
mod events;
mod fault;
mod files;
mod form;
mod front;
mod gateway;
mod health;
mod inside;
mod jsonrpc;
#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod peer;
#[cfg(feature = "port")]
mod port;
mod rpc;
mod serve;

#[cfg(feature = "admin")]
pub use self::admin::{ADMIN_PAGE_PATH, AdminPage};
#[cfg(feature = "port")]
pub use self::port::PortFront;
pub use self::{
    body::{Body, Response},
    cors::Cors,
    front::{Front, FrontStats, HttpPeer},
    options::FrontOptions,
    peer::{Network, NetworkError},
    serve::HttpListening,
};
