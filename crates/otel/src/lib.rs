#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
//! # Who is whose parent
//!
//! | what | kind | parent |
//! |---|---|---|
//! | a call or oneway request that a client makes | CLIENT, PRODUCER | the span of now, or else what its metadata names |
//! | the handler of a call, on either side | SERVER | the caller's span |
//! | the handler of a oneway request, at a server | CONSUMER | the sender's span |
//! | a call from a server to a client, by [`Traces::caller`] | CLIENT | the span of now |
//! | a push, by [`TracedPush::traced`] | PRODUCER | the span of now |
//! | the handler of a push, or [`span_of`] a message, at a client | CONSUMER | none: a *link* to the push's span |
//!
//! A push may arrive long after it was made, and again after a lost connection or from the history of a topic. Its context
//! is kept with it, so each arrival links to the same span.
//!
//! | file | what it does |
//! |---|---|
//! | `lib.rs` | [`traces`], and what the spans are |
//! | `context.rs` | contexts in metadata |
//! | `handled.rs` | around handlers |
//! | `made.rs` | around calls of clients, and of a server to clients |
//! | `pushes.rs` | pushes and messages |

mod context;
mod handled;
mod made;
mod pushes;

use tracing::{Span, field};

pub use self::{
    context::{context_of, put_context},
    made::Traced,
    pushes::{TracedPush, span_of},
};

/// A layer that makes a span for each request: around the handlers of a server
/// ([`ServerBuilder::layer`](bothways::ServerBuilder::layer)) or of a client ([`Router::layer`](bothways::Router::layer)),
/// and around the calls of a client ([`ClientOptions::layer`](bothways::ClientOptions::layer)). With an
/// [`XClient`](bothways::XClient), [`layer`](bothways::XClientOptions::layer) makes one span for a call with all its tries,
/// and [`try_layer`](bothways::XClientOptions::try_layer) one for each try.
pub fn traces() -> Traces {
    Traces
}

/// See [`traces`].
#[derive(Clone, Copy, Debug)]
pub struct Traces;

/// What a span is, as OpenTelemetry calls it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Client,
    Server,
    Producer,
    Consumer,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }

    /// How rpcx's plugin calls the two ends.
    fn end(self) -> &'static str {
        match self {
            Self::Client | Self::Producer => "client",
            Self::Server | Self::Consumer => "service",
        }
    }
}

/// The text before which a name is cut: a client may name a service as it likes.
const NAME_BYTES_MAX: usize = 256;

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

/// A span of this kind for this method: `rpcx.client.P.M` or `rpcx.service.P.M`.
fn new_span(kind: Kind, service_path: &str, service_method: &str) -> Span {
    let (path, method) = (cut(service_path), cut(service_method));
    tracing::info_span!(
        target: "bothways_otel",
        "rpcx",
        otel.name = format_args!("rpcx.{}.{path}.{method}", kind.end()),
        otel.kind = kind.name(),
        otel.status_code = field::Empty,
        rpc.system = "rpcx",
        rpc.service = path,
        rpc.method = method,
        error.r#type = field::Empty,
    )
}

/// How what the span stands for ended: well, or by an error of this type.
fn note_end(span: &Span, error: Option<&str>) {
    if let Some(error) = error {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", error);
    }
}
