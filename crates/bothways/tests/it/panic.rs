//! Handlers that panic.

use std::time::Duration;

use bothways::{Client, ClientOptions, CloseReason, ErrorCode, Metadata, Reply, Request};
use bytes::Bytes;

use crate::{
    scripted::Scripted,
    support::{address, call, connections, echoing, oneshot_to, until},
};

async fn panics(request: Request) -> Reply {
    let payload = request.payload().expect("plain");
    if payload.starts_with(b"later") {
        tokio::task::yield_now().await;
    }
    panic!("the arguments were {payload:?}");
}

/// S7. A panic becomes an error with an id, and with no word of the arguments, of the place or of the
/// stack. It ends its own call only, whether the handler panics in line or in its task.
#[tokio::test(start_paused = true)]
async fn a_panic_becomes_an_error_with_an_id() {
    let server = echoing().handler("T", "Panics", panics).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let mut texts = Vec::new();
    for payload in ["now, secret", "later, secret", "later, secret"] {
        let error = call(&client, "Panics", payload).await.expect_err("it panics");
        assert_eq!(error.code(), Some(ErrorCode::Internal));
        let text = error.remote_text().expect("an answer").to_owned();
        assert!(text.starts_with("internal error, id ") && !text.contains("secret"), "{text}");
        assert!(!text.contains(".rs"), "{text}");
        texts.push(text);
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 3, "each has an id of its own");
    oneshot_to(&client, "Panics", "now").await.expect("room");
    oneshot_to(&client, "Panics", "later").await.expect("room");
    assert_eq!(call(&client, "Echo", "x").await.expect("answered"), "x");
    until(|| server.stats().calls_running == 0).await;
}

/// The text of a handler's error may be rewritten; refusals of the library stay as they are, and a hook
/// that panics is a handler that panics.
#[tokio::test(start_paused = true)]
async fn errors_may_be_rewritten() {
    let server = echoing()
        .handler("T", "Fails", |_| std::future::ready(Reply::error("boom")))
        .handler("T", "Worse", |_| std::future::ready(Reply::error("bang")))
        .on_error(|path, method, text| {
            assert_ne!(text, "bang");
            format!("{path}.{method}: {text}")
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let error = call(&client, "Fails", "").await.expect_err("it fails");
    assert_eq!(error.remote_text(), Some("T.Fails: boom"));
    let error = call(&client, "None", "").await.expect_err("there is none");
    assert_eq!(error.remote_text(), Some("rpcx: can't find method None"));
    let error = call(&client, "Worse", "").await.expect_err("the hook panics");
    assert_eq!(error.code(), Some(ErrorCode::Internal));
}

/// A payload whose drop panics costs its own connection at most: the deadlines of all others are kept by the same task,
/// which goes on.
#[tokio::test(start_paused = true)]
async fn a_payload_that_panics_as_it_is_dropped_stops_no_deadline() {
    struct Bomb(Vec<u8>);
    impl AsRef<[u8]> for Bomb {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let _silent = [
        Scripted::connect_negotiated(listening.address()).await,
        Scripted::connect_negotiated(listening.address()).await,
    ];
    let mut waiting = Vec::new();
    for connection in connections(&server, 2).await {
        let payload = Bytes::from_owner(Bomb(vec![0; 1 << 20]));
        connection.send_message("T", "M", &Metadata::new(), payload).expect("there is room");
        waiting.push(connection);
    }
    for connection in waiting {
        let closed = tokio::time::timeout(Duration::from_secs(60), connection.closed()).await;
        let reason = closed.expect("its time to write is over");
        assert!(matches!(reason, CloseReason::SlowPeer(_)), "{reason:?}");
    }
    until(|| server.stats().connections == 0).await;
}
