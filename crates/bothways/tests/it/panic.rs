//! Handlers that panic.

use bothways::{Client, ClientOptions, ErrorCode, Reply, Request};

use crate::support::{address, call, echoing, oneshot_to, until};

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
