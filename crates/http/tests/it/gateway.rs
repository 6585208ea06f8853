//! The gateway: `tests/interop/tests/http.rs` holds it against Go's; here is what Go's has not.

use bothways_http::{Cors, FrontOptions};

use crate::support::{Http, ask, builder, serve, with_users};

const MUL: &str = "POST /
    X-RPCX-ServicePath: Arith
    X-RPCX-ServiceMethod: Mul
    X-RPCX-SerializeType: 1";

/// The names of headers are written as Go writes them.
#[tokio::test]
async fn a_call_is_answered_with_gos_headers() {
    let served = serve(builder(), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    http.send("POST /Arith HTTP/1.1\r\nHost: x\r\nx-rpcx-servicemethod: Mul\r\nX-Rpcx-SerializeType: 1\r\nX-RPCX-MessageID: 7\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{\"A\":6,\"B\":7}").await;
    let said = http.closed().await;
    for line in [
        "HTTP/1.1 200 OK",
        "X-Rpcx-Version: ",
        "X-Rpcx-Messageid: 7",
        "X-Rpcx-Servicepath: Arith",
        "X-Rpcx-Servicemethod: Mul",
        "X-Rpcx-Serializetype: 1",
        "X-Rpcx-Meta: ",
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
    ] {
        assert!(said.lines().any(|said| said.trim_end() == line.trim_end()), "{line} is not in {said}");
    }
    assert!(said.ends_with("{\"C\":42}"), "{said}");
}

/// The server sees who asks, and the pairs; the token is no pair of the request's metadata header.
#[tokio::test]
async fn the_server_knows_the_peer_and_the_metadata() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let head = "GET /Arith
        X-RPCX-ServiceMethod: Meta
        X-RPCX-SerializeType: 1
        Authorization: bearer ann
        X-RPCX-Meta: a=b+c&a=d&k=%C3%BC";
    let mut http = Http::connect(served.address()).await;
    let answer = http.ask(head, "{\"A\":0,\"B\":0}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let peer = format!("\"http@{}\"", http.stream.local_addr().expect("it has one"));
    assert_eq!(answer.body, peer);
    let meta = answer.header("x-rpcx-meta");
    assert!(meta.contains("got.a=b+c&") && meta.contains("got.k=%C3%BC"), "{meta}");
}

/// Requests of two users over one connection, as a proxy sends them, are never taken for one another's.
#[tokio::test]
async fn each_token_has_a_connection_of_its_own() {
    let router = bothways::Router::new().handler("Who", "Am", |request: bothways::Request| async move {
        let session = request.session().expect("it has one");
        bothways::Reply::encode(&session.user().map(|user| user.to_string()), bothways::SerializeType::JSON)
    });
    let served = serve(with_users().router(router), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    for user in ["ann", "bob", "ann", "bob"] {
        let head = format!("POST /rpc/Who/Am\nContent-Type: application/json\nAuthorization: bearer {user}");
        let answer = http.ask(&head, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, format!("\"{user}\"").as_str()));
    }
    let answer = http.ask("POST /rpc/Who/Am\nContent-Type: application/json", "").await;
    assert_eq!(answer.status, 401, "without a token it is nobody: {answer:?}");
}

/// A client that can tell is told more.
#[tokio::test]
async fn statuses_say_more_to_clients_that_ask() {
    let served = serve(builder(), FrontOptions::new()).await;
    let head = "POST /Nowhere\nX-RPCX-ServiceMethod: x\nX-RPCX-SerializeType: 1";
    let plain = ask(served.address(), head, "").await;
    assert_eq!((plain.status, plain.header("x-bothways-error")), (500, ""));
    assert_eq!(plain.header("x-rpcx-errormessage"), "rpcx: can't find service Nowhere");
    let more = ask(served.address(), &format!("{head}\nX-Bothways: 1"), "").await;
    assert_eq!((more.status, more.header("x-bothways-error")), (404, "not_found"));
}

/// The text of an error cannot end its header, or the head.
#[tokio::test]
async fn an_error_text_is_one_header() {
    let served = serve(builder(), FrontOptions::new()).await;
    let head = "POST /Arith\nX-RPCX-ServiceMethod: Err\nX-RPCX-SerializeType: 1";
    let answer = ask(served.address(), head, "{\"A\":0,\"B\":0}").await;
    assert_eq!((answer.status, answer.body.as_str()), (500, ""));
    assert_eq!(answer.header("x-rpcx-errormessage"), "boom  Set-Cookie: a=b    <script>");
    assert_eq!(answer.header("set-cookie"), "");
}

#[tokio::test]
async fn pages_of_other_origins_are_told_what_they_may() {
    let served = serve(builder(), FrontOptions::new().cors(Cors::origins(["https://shop.example"]))).await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /Arith\nOrigin: {origin}\nAccess-Control-Request-Method: POST\n\
             Access-Control-Request-Headers: x-rpcx-servicemethod"
        )
    };
    let allowed = ask(served.address(), &preflight("https://shop.example"), "").await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(allowed.header("access-control-allow-headers"), "x-rpcx-servicemethod");
    let refused = ask(served.address(), &preflight("https://evil.example"), "").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (204, ""));

    let answer = ask(served.address(), &format!("{MUL}\nOrigin: https://shop.example"), "{\"A\":1,\"B\":2}").await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://shop.example");
    assert!(answer.header("access-control-expose-headers").contains("X-Rpcx-Errormessage"));

    let closed = serve(builder(), FrontOptions::new()).await;
    let answer = ask(closed.address(), &format!("{MUL}\nOrigin: https://shop.example"), "{\"A\":1,\"B\":2}").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
}
