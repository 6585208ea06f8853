//! Pages of other origins in the browser of somebody who may reach the front: what they ask is refused before it costs
//! anything. The browser's side of it is in `js/test/hostile.test.mjs`.

use bothways::session::TopicOptions;
use bothways_http::{Cors, FrontOptions};

#[allow(dead_code, reason = "it is the support of other tests too")]
#[path = "it/support.rs"]
mod support;

use support::{Http, Served, ask, builder, request, serve, with_users};

/// A request of each kind that costs something, or that a token could come with.
const COSTLY: &[(&str, &str)] = &[
    ("GET /events", ""),
    ("GET /events?topics=news", ""),
    ("POST /events/ticket", ""),
    ("POST /events/ack?id=00000000000000000000000000000001-1", ""),
    ("POST /rpc/Arith/Mul\nContent-Type: text/plain", "{\"A\":1,\"B\":2}"),
    ("POST /rpc/Arith/Mul\nContent-Type: application/json", "{\"A\":1,\"B\":2}"),
    ("GET /Arith?x=1", ""),
    ("POST /Arith\nX-RPCX-ServiceMethod: Mul\nX-RPCX-SerializeType: 1", "{\"A\":1,\"B\":2}"),
    ("POST /\nX-JSONRPC-2.0: true", "{\"method\":\"Arith.Mul\",\"params\":{\"A\":1,\"B\":2},\"id\":1}"),
    ("POST /app.js\nX-JSONRPC-2.0: true", "{\"method\":\"Arith.Mul\",\"id\":1}"),
    ("GET /debug/vars", ""),
];

/// What costs nothing, and is for everybody.
const FREE: &[&str] = &["GET /healthz", "GET /readyz", "GET /app.js"];

const STRANGERS: &[&str] = &[
    "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors",
    "Sec-Fetch-Site: same-site\nSec-Fetch-Mode: no-cors",
    "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: iframe",
    "Sec-Fetch-Site: cross-site\nOrigin: https://evil.example",
    "Origin: https://evil.example",
    "Origin: null",
];

fn options() -> FrontOptions {
    FrontOptions::new().debug(true).file("/app.js", "text/javascript", "1")
}

/// The status, also of a stream of events, which has no length.
async fn status(served: &Served, head: &str, said: &str, body: &str) -> u16 {
    let mut http = Http::connect(served.address()).await;
    http.send(request(&format!("{head}\n{said}"), body)).await;
    http.head().await.status
}

#[tokio::test]
async fn the_page_of_a_stranger_costs_nothing() {
    let server = builder().topic("news", TopicOptions::new().open()).expect("a pattern");
    let served = serve(server, options()).await;
    for said in STRANGERS {
        for (head, body) in COSTLY {
            assert_eq!(status(&served, head, said, body).await, 403, "{head} {said}");
        }
        for head in FREE {
            assert_eq!(status(&served, head, said, "").await, 200, "{head} {said}");
        }
    }
    let stats = served.front.stats();
    assert_eq!((stats.streams, stats.streams_waiting), (0, 0), "no stream was begun");
    assert_eq!(served.server.stats().connections_accepted, 0, "and the server has not been asked");

    // What the user, the front's own pages and programs ask is answered as ever.
    for said in ["", "Sec-Fetch-Site: none", "Sec-Fetch-Site: same-origin", "Origin: http://localhost"] {
        for (head, body) in COSTLY {
            assert_ne!(status(&served, head, said, body).await, 403, "{head} {said}");
        }
        assert_eq!(status(&served, COSTLY[0].0, said, "").await, 200, "{said}");
        assert_eq!(status(&served, COSTLY[5].0, said, COSTLY[5].1).await, 200, "{said}");
    }
}

/// The origins that are let in are, with a token as without one, and no others.
#[tokio::test]
async fn pages_of_origins_that_are_let_in_may_ask() {
    let shop = "https://shop.example";
    let served = serve(with_users(), options().cors(Cors::origins([shop]))).await;
    let ticket = |said: &str| format!("POST /events/ticket\nAuthorization: bearer ann\n{said}");
    for said in [format!("Origin: {shop}"), format!("Sec-Fetch-Site: cross-site\nOrigin: {shop}")] {
        let answer = ask(served.address(), &ticket(&said), "").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, shop), "{said}");
    }
    for said in STRANGERS {
        let answer = ask(served.address(), &ticket(said), "").await;
        assert_eq!((answer.status, answer.header("x-bothways-error")), (403, "forbidden"), "{said}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{said}");
    }

    let open = serve(with_users(), options().cors(Cors::any())).await;
    for said in STRANGERS {
        assert_eq!(ask(open.address(), &ticket(said), "").await.status, 200, "{said}");
    }
}

/// A second header cannot say what the first one does not.
#[tokio::test]
async fn each_expectation_is_read() {
    let served = serve(builder(), options()).await;
    let head = "POST /rpc/Arith/Mul\nContent-Type: application/json";
    for (said, expected) in [
        ("Expect: 100-continue", 200),
        ("Expect: 100-Continue\nExpect: 100-continue", 200),
        ("Expect: 100-continue, 100-continue", 200),
        ("Expect:", 200),
        ("Expect: 100-continue\nExpect: tea", 417),
        ("Expect: 100-continue, tea", 417),
        ("Expect: tea\nExpect: 100-continue", 417),
        ("Expect: tea", 417),
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(request(&format!("{head}\n{said}"), "{\"A\":6,\"B\":7}")).await;
        let mut answer = http.head().await;
        if answer.status == 100 {
            answer = http.head().await;
        }
        assert_eq!(answer.status, expected, "{said}");
    }
}
