//! A front in an application's own router.

use axum::{Router, extract::Request, middleware::Next, routing::get};
use bothways_http::{Front, FrontOptions, HttpPeer};
use tokio::net::TcpListener;

use crate::support::{ask, builder};

#[tokio::test]
async fn axum_gives_it_what_no_other_route_takes() {
    let server = builder().build();
    let front = Front::new(&server, FrontOptions::new());
    let app = Router::new().route("/hello", get(|| async { "hello" })).fallback_service(front).layer(
        axum::middleware::from_fn(|mut request: Request, next: Next| async move {
            request.extensions_mut().insert(HttpPeer::of("192.0.2.7:4711".parse().expect("an address")));
            next.run(request).await
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has one");
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    assert_eq!(ask(address, "GET /hello", "").await.body, "hello");
    let head = "POST /rpc/Arith/Meta\nContent-Type: application/json";
    let answer = ask(address, head, "{\"A\":0,\"B\":0}").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "\"http@192.0.2.7:4711\""));
    serving.abort();
}
