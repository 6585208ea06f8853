//! The service `_bothways`, through which an application on an unmodified rpcx library gets sessions, acks and calls.
//!
//! Its methods are ordinary calls: they pass the auth hook, and may come in any codec, because all that they
//! say is metadata. Only the payload of `Reply` counts: it is the application's own answer.
//!
//! What finishes something ([`ends_something`](crate::connection::ends_something)) is done in line, in the order in which
//! it came, and counts among no calls: [`finish`]. The auth hook is not asked again on a connection that it has let in.
//!
//! | method | says | answers |
//! |---|---|---|
//! | `Enable` | `_bw.fns` | `_bw.sid`, `_bw.key`, `_bw.off`, as a Welcome does |
//! | `Resume` | `_bw.sid`, `_bw.key`, `_bw.off`; `_bw.rcv`, `_bw.fns` | the same, with `_bw.res` or `_bw.why` |
//! | `Ack` | `_bw.ack` | nothing |
//! | `Leave` | `_bw.ack`, if there is something to acknowledge | nothing |
//! | `Reply` | `_bw.call`, and `__rpcx_error__` if the call failed; the payload | nothing |
//!
//! Layers do not see them. A Bothways client says the same in its own frames, and needs none of this.

use std::future::ready;

use bothways_proto::{Metadata, keys};

use crate::{
    calm::{Calm, Said, tell},
    error::{Beside, CallError, CloseReason, ErrorCode},
    guard,
    handler::{Reply, Request},
    router::Router,
    session::{NotWelcome, Registry},
};

/// Answers one method at once.
type Method = fn(&Request) -> Reply;

const METHODS: [(&str, Method); 5] = [
    (keys::ENABLE, enable),
    (keys::RESUME, resume),
    (keys::ACK, acknowledge),
    (keys::LEAVE, leave),
    (keys::REPLY, answer_call),
];

/// Adds the methods to what is served.
pub(super) fn add_routes(router: Router) -> Router {
    let at_once = METHODS.into_iter().filter(|(name, _)| *name != keys::RESUME);
    let router = at_once.fold(router, |router, (name, method)| {
        router.own(keys::CONTROL_PATH, name, move |request: Request| ready(method(&request)))
    });
    router.own(keys::CONTROL_PATH, keys::RESUME, resume_from_anywhere)
}

/// As [`resume`]: another node may have the session.
async fn resume_from_anywhere(request: Request) -> Reply {
    let registry = request.connection().owner::<Registry>();
    let bringing = registry.and_then(|registry| registry.bring(request.connection(), &request.metadata()));
    if let Some(bringing) = bringing
        && bringing.await.is_err()
    {
        return Reply::refused(
            ErrorCode::Overloaded,
            "the session is at another node, and cannot be had now: try again",
        );
    }
    resume(&request)
}

/// Does one of the methods at once.
pub(super) fn finish(request: &Request) -> Reply {
    let Some((_, method)) = METHODS.iter().find(|(name, _)| *name == request.service_method()) else {
        return bad("there is no such method");
    };
    // The code that waits for the end of these is the application's.
    guard::call(|| method(request)).unwrap_or_else(|panicked| {
        static TOLD: Calm = Calm::new(1);
        tell!(TOLD, error, panic = ?Said(panicked.text()), "what a client finished panicked");
        Reply::refused(ErrorCode::Internal, "internal error: the server's log has more")
    })
}

/// The client's session becomes one that can be acknowledged, called and resumed.
fn enable(request: &Request) -> Reply {
    let said = request.metadata();
    let device = said.get(keys::DEVICE).map(|device| Metadata::new().with(keys::DEVICE, device));
    welcome(request, &device.unwrap_or_default())
}

/// The client takes its session from the connection that it lost to this one.
fn resume(request: &Request) -> Reply {
    let said = request.metadata();
    if [keys::SESSION_ID, keys::SESSION_KEY, keys::SESSION_OFFSET].iter().any(|key| said.get(key).is_none()) {
        return bad("Resume needs the metadata _bw.sid, _bw.key and _bw.off");
    }
    welcome(request, &said)
}

/// What the session owes the client follows the reply, so that the client knows by then where it stands.
fn welcome(request: &Request, said: &Metadata) -> Reply {
    let connection = request.connection();
    if request.is_oneway() {
        return bad("the answer tells the session: ask for a reply");
    }
    let Some(registry) = connection.owner::<Registry>() else {
        return Reply::refused(ErrorCode::Internal, "this server keeps no sessions");
    };
    if !connection.on_enable(request.metadata().get(keys::METHODS)) {
        return bad("this connection has its session already");
    }

    match registry.arrive(connection, said) {
        Ok(pairs) => Reply { then_welcome: true, ..Reply::ok("").with_metadata(pairs) },
        Err(NotWelcome::Over) => Reply::refused(ErrorCode::Internal, "the connection is over"),
        Err(NotWelcome::Late) => {
            connection.on_enable_refused();
            Reply::refused(ErrorCode::Overloaded, "a later attempt of this client was let in before: try again")
        }
    }
}

/// The client says how far it is with what it was sent.
fn acknowledge(request: &Request) -> Reply {
    let connection = request.connection();
    if !connection.takes_calls() && !connection.is_negotiated() {
        return bad("Ack comes after Enable or Resume");
    }
    let is_true = connection.owner::<Registry>().is_none_or(|all| all.ack(connection, &request.metadata()));
    if !is_true {
        connection.end_as_misbehaved();
    }
    Reply::ok("")
}

/// The client is done with its session, and does not come back to it.
fn leave(request: &Request) -> Reply {
    let connection = request.connection();
    let is_true = connection.owner::<Registry>().is_none_or(|all| all.end_by_client(connection, &request.metadata()));
    match is_true {
        true => connection.answer_and_end(CloseReason::PeerClosed),
        false => connection.end_as_misbehaved(),
    }
    Reply::ok("")
}

/// The client answers a call.
fn answer_call(request: &Request) -> Reply {
    let said = request.metadata();
    let Some(number) = said.get(keys::CALL_NUMBER).and_then(|number| number.parse().ok()) else {
        return bad("Reply needs the metadata _bw.call, as it came with the call");
    };
    let answer = match said.value(keys::ERROR) {
        None => Ok(request.message.clone()),
        Some(text) => {
            let text = String::from_utf8_lossy(text).into_owned();
            let beside = Beside::of_pairs(said.clone().without_reserved());
            Err(CallError::Remote { text, code: None, beside })
        }
    };
    match request.connection().answer_call(number, answer) {
        true => Reply::ok(""),
        false => Reply::refused(ErrorCode::NotFound, format!("nobody waits for the reply to call {number}")),
    }
}

fn bad(text: &str) -> Reply {
    Reply::refused(ErrorCode::BadArguments, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{CallOptions, Caller, Client, ClientOptions, Server};

    /// Between the taking over of a session and the reply that says so, on another thread, a call may find the new
    /// connection: it waits for the reply, and is not refused as if the client took no calls.
    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_the_welcome() {
        let server = Server::builder().build();
        let listening = server.listen("memory@control-welcome").await.expect("the name is free");
        let options = ClientOptions::new().negotiate(false);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let connection = server.connections().remove(0);
        let ask = async || {
            let options = CallOptions::new().timeout(Duration::from_secs(1));
            connection.call_typed::<(), ()>("T", "Ask", &(), options).await.map(|_| ())
        };
        assert!(matches!(ask().await, Err(CallError::NotSupported)));
        assert!(connection.on_enable(None));
        assert!(!connection.on_enable(None), "one at a time");
        assert!(matches!(ask().await, Err(CallError::TimedOut(_))));
    }
}
