//! `POST /rpc/Service/Method`.

use std::time::Duration;

use bothways::{AuthError, ServerLimits};
use bothways_http::FrontOptions;
use serde_json::json;

use crate::support::{Http, ask, builder, serve, with_users};

const JSON: &str = "Content-Type: application/json; charset=utf-8";

#[tokio::test]
async fn a_call_is_a_post() {
    let served = serve(builder(), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    for n in 0..3 {
        let answer = http.ask(&format!("POST /rpc/Arith/Mul\n{JSON}"), &json!({ "A": n, "B": 7 }).to_string()).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
        assert_eq!(answer.json(), json!({ "C": 7 * n }));
    }
    assert_eq!(served.server.stats().connections_accepted, 1, "an HTTP connection is one client");
}

/// The same value in MessagePack comes back in MessagePack.
#[tokio::test]
async fn the_content_type_is_the_codec() {
    let served = serve(builder(), FrontOptions::new()).await;
    let body = [0x82, 0xa1, b'A', 6, 0xa1, b'B', 7];
    let mut http = Http::connect(served.address()).await;
    let head =
        "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-msgpack\r\nContent-Length: 7\r\n\r\n";
    http.send([head.as_bytes(), &body].concat()).await;
    let answer = http.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/msgpack"));
    assert!(answer.body.contains('C'), "{answer:?}");
}

#[tokio::test]
async fn statuses_say_what_is_wrong() {
    let options = FrontOptions::new().body_bytes_max(1000).call_timeout(Duration::from_secs(20));
    let served = serve(with_users(), options).await;
    let ann = "Authorization: bearer ann";
    for (head, body, status, kind) in [
        (format!("POST /rpc/Arith/Mul\n{JSON}\n{ann}"), "{\"A\":1,\"B\":1}".to_owned(), 200, ""),
        (format!("POST /rpc/No/Such\n{JSON}\n{ann}"), String::new(), 404, "not_found"),
        (format!("POST /rpc/Arith\n{JSON}\n{ann}"), String::new(), 404, "not_found"),
        (format!("POST /rpc//Mul\n{JSON}\n{ann}"), String::new(), 404, "not_found"),
        (format!("GET /rpc/Arith/Mul\n{ann}"), String::new(), 405, "method_not_allowed"),
        (format!("POST /rpc/Arith/Mul\n{ann}"), "{}".to_owned(), 415, "unsupported_media_type"),
        (
            format!("POST /rpc/Arith/Mul\nContent-Type: text/plain\n{ann}"),
            "{}".to_owned(),
            415,
            "unsupported_media_type",
        ),
        (format!("POST /rpc/Arith/Mul\n{JSON}"), "{}".to_owned(), 401, "unauthenticated"),
        (format!("POST /rpc/Arith/Mul\n{JSON}\nAuthorization: bearer bad"), "{}".to_owned(), 401, "unauthenticated"),
        (format!("POST /rpc/Arith/Mul\n{JSON}\n{ann}"), "not json".to_owned(), 400, "bad_arguments"),
        (format!("POST /rpc/Arith/Mul\n{JSON}\n{ann}\nX-Bothways-Timeout: soon"), "{}".to_owned(), 400, "bad_request"),
        (format!("POST /rpc/Arith/Mul\n{JSON}\n{ann}\nX-RPCX-Meta: _bw.err=x"), "{}".to_owned(), 400, "bad_request"),
        (format!("POST /rpc/_bothways/Ack\n{JSON}\n{ann}"), "{}".to_owned(), 400, "bad_request"),
        (format!("POST /rpc/Arith/Mul\n{JSON}\n{ann}"), format!("\"{}\"", "x".repeat(1000)), 413, "too_large"),
        (format!("POST /rpc/Arith/Sleep\n{JSON}\n{ann}\nX-Bothways-Timeout: 30"), "60000".to_owned(), 504, "timeout"),
        (format!("POST /rpc/Arith/Err\n{JSON}\n{ann}"), "{}".to_owned(), 500, "handler"),
    ] {
        let answer = ask(served.address(), &head, &body).await;
        assert_eq!((answer.status, answer.header("x-bothways-error")), (status, kind), "{head}: {answer:?}");
        if status != 200 {
            assert_eq!(answer.json()["kind"], kind, "{head}");
        }
    }
}

/// A server that is full or admits no more says so, and when to come again.
#[tokio::test]
async fn a_busy_server_says_when_to_come_again() {
    let later = builder().auth(|request| async move {
        match request.token.as_str() {
            "later" => Err(AuthError::not_now("the user database is down", Duration::from_millis(4100))),
            _ => Ok(()),
        }
    });
    let served = serve(later, FrontOptions::new()).await;
    let head = format!("POST /rpc/Arith/Mul\n{JSON}");
    let mut first = Http::connect(served.address()).await;
    assert_eq!(first.ask(&head, "{}").await.status, 200);
    let second = first.ask(&format!("{head}\nAuthorization: later"), "{}").await;
    assert_eq!((second.status, second.header("retry-after")), (503, "5"), "{second:?}");
    assert_eq!(second.json()["error"], "the user database is down");
    assert_eq!(first.ask(&head, "{}").await.status, 200);

    let full = serve(builder().limits(ServerLimits::new().connections_max(1)), FrontOptions::new()).await;
    let mut first = Http::connect(full.address()).await;
    assert_eq!(first.ask(&head, "{}").await.status, 200);
    let second = ask(full.address(), &head, "{}").await;
    assert_eq!((second.status, second.header("retry-after")), (503, "1"), "{second:?}");
}

/// A handler that takes longer than its client waits is told to stop, and one whose client leaves too.
#[tokio::test]
async fn too_many_calls_are_429() {
    let served = serve(with_users().limits(ServerLimits::new().calls_per_user_max(1)), FrontOptions::new()).await;
    let head = format!("POST /rpc/Arith/Sleep\n{JSON}\nAuthorization: bearer ann");
    let mut sleeper = Http::connect(served.address()).await;
    sleeper.send(crate::support::request(&head, "60000")).await;
    crate::support::until("it sleeps", || served.server.stats().calls_running == 1).await;
    let answer = ask(served.address(), &head, "1").await;
    assert_eq!((answer.status, answer.header("x-bothways-error")), (429, "overloaded"), "{answer:?}");
    drop(sleeper);
    crate::support::until("its client left", || served.server.stats().calls_running == 0).await;
}

#[tokio::test]
async fn a_oneway_request_is_accepted() {
    let served = serve(builder(), FrontOptions::new()).await;
    let answer = ask(served.address(), &format!("POST /rpc/Arith/Mul\n{JSON}\nX-RPCX-Oneway: 1"), "{}").await;
    assert_eq!((answer.status, answer.body.as_str()), (202, ""));
}
