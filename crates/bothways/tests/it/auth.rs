//! Who may call: the token on requests and on the Hello.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallOptions, Client, ClientOptions, ConnectError, ErrorCode, Metadata, Reply, Server, server::AuthRequest,
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, keys};

use crate::{
    scripted::{Scripted, hello, ping, request, request_with},
    support::{address, call, call_with, connections, echoing, settle},
};

async fn check(request: AuthRequest) -> Result<(), String> {
    match &*request.token {
        "bearer good" => Ok(()),
        "bearer slow" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(())
        }
        "bearer slow and bad" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err("it was bad after all".to_owned())
        }
        "bearer panics" => panic!("a secret"),
        token => Err(format!("no: {token}")),
    }
}

/// A server that counts what acts.
fn guarded() -> (Server, Arc<AtomicUsize>) {
    let acted = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&acted);
    let server = echoing()
        .handler("T", "Act", move |_| {
            counts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Reply::ok("acted"))
        })
        .auth(check)
        .build();
    (server, acted)
}

/// The token goes with the Hello and every request; the server's hook sees it.
#[tokio::test(start_paused = true)]
async fn a_good_token_opens() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["bearer good", "bearer slow"] {
        let options = ClientOptions::new().auth(token);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        assert_eq!(call(&client, "Act", "").await.expect("answered"), "acted");
    }
    assert_eq!(acted.load(Ordering::Relaxed), 2);
}

/// 1.7. A refused request is answered with the hook's words, then the connection is closed; what was
/// right behind it does not run.
#[tokio::test(start_paused = true)]
async fn a_refused_request_is_answered_and_the_connection_closed() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let good = Metadata::new().with(keys::AUTH, "bearer good");
    client.say([request(5, "Act", b""), request_with(6, "Act", &good, b"")].concat()).await;
    let answer = client.next().await;
    assert_eq!((answer.header().seq(), answer.error_text().as_deref()), (Seq::new(5), Some("no: ")));
    client.hears_the_end().await;
    assert_eq!(acted.load(Ordering::Relaxed), 0);
    drop(client);
    connections(&server, 0).await;
}

/// 1.7. A refused oneway request closes the connection without a frame.
#[tokio::test(start_paused = true)]
async fn a_refused_oneway_request_closes_without_a_frame() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["", "bearer slow and bad"] {
        let mut client = Scripted::connect(listening.address()).await;
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let metadata = Metadata::new().with(keys::AUTH, token);
        client.say(Message::new(header, "T", "Act", &metadata, b"").frame()).await;
        client.hears_the_end().await;
    }
    assert_eq!(acted.load(Ordering::Relaxed), 0);
}

/// Even what nobody serves is not told to strangers.
#[tokio::test(start_paused = true)]
async fn a_stranger_does_not_learn_what_is_served() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(0, "None", b"")).await;
    assert_eq!(client.next().await.error_text().as_deref(), Some("no: "));
}

/// S9. A Hello is authenticated, unlike a plain heartbeat: a refused one is told why, then closed, and
/// nothing behind it acts.
#[tokio::test(start_paused = true)]
async fn a_hello_is_authenticated() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["bearer bad", "bearer slow and bad"] {
        let mut client = Scripted::connect(listening.address()).await;
        let bad = Metadata::new().with(keys::AUTH, token);
        client.say([hello(0, Capabilities::ALL, &bad), request_with(1, "Act", &bad, b"")].concat()).await;
        let answer = client.next().await;
        assert!(answer.header().is_heartbeat(), "{answer:?}");
        assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Unauthenticated.name()));
        assert!(answer.error_text().is_some_and(|text| !text.is_empty()));
        while let Some(message) = client.try_next().await {
            assert!(message.error_text().is_some(), "{message:?}");
        }
    }
    assert_eq!(acted.load(Ordering::Relaxed), 0);
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(ping(0)).await;
    assert!(plain.next().await.error_text().is_none());
}

/// A client whose token is refused is told so, and does not come back on its own.
#[tokio::test(start_paused = true)]
async fn a_refused_client_does_not_come_back() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let error = Client::connect(listening.address(), ClientOptions::new().auth("bearer bad")).await;
    let error = error.expect_err("its Hello is refused");
    assert!(matches!(&error, ConnectError::Refused { reason, .. } if reason == "no: bearer bad"), "{error}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.stats().connections_accepted, 1);
}

/// S6. A hook that panics refuses nobody for good and lets nobody in.
#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_lets_nobody_in() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let panics = Metadata::new().with(keys::AUTH, "bearer panics");
    client.say([hello(0, Capabilities::ALL, &panics), request_with(1, "Act", &panics, b"")].concat()).await;
    for _ in 0..2 {
        let answer = client.next().await;
        let text = answer.error_text().expect("an error");
        assert!(text.starts_with("internal error") && !text.contains("secret"), "{text}");
    }
    settle().await;
    assert!(!connections(&server, 1).await[0].is_negotiated());
    assert_eq!(acted.load(Ordering::Relaxed), 0);
}

/// A token of one's own, on one call.
#[tokio::test(start_paused = true)]
async fn the_clients_token_replaces_that_of_a_call() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().auth("bearer good");
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let mine = Metadata::new().with(keys::AUTH, "bearer bad").with("k", "v");
    let reply = call_with(&client, "Act", "", CallOptions::new().metadata(mine)).await;
    assert_eq!(reply.expect("the client's own token counts").payload, "acted");
}
