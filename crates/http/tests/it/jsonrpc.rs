//! JSON-RPC: what Go's has not; `tests/interop/tests/http.rs` has the rest.

use bothways_http::FrontOptions;
use serde_json::json;

use crate::support::{Http, ask, builder, serve, with_users};

const HEAD: &str = "POST /\nX-JSONRPC-2.0: true";

#[tokio::test]
async fn a_batch_is_answered_in_its_order() {
    let served = serve(builder(), FrontOptions::new().batch_calls_max(40)).await;
    let mut calls: Vec<_> = (0..38)
        .map(|n| json!({ "jsonrpc": "2.0", "method": "Arith.Mul", "params": { "A": n, "B": 2 }, "id": n }))
        .collect();
    calls.push(json!({ "jsonrpc": "2.0", "method": "Arith.Mul", "params": { "A": 1, "B": 2 } }));
    calls.push(json!(7));
    let answer = ask(served.address(), HEAD, &json!(calls).to_string()).await;
    assert_eq!((answer.status, answer.header("context-type")), (200, "application/json"));
    let answers = answer.json();
    let answers = answers.as_array().expect("a batch");
    // A notification has no answer.
    assert_eq!(answers.len(), 39);
    for (n, answer) in answers.iter().take(38).enumerate() {
        assert_eq!(*answer, json!({ "jsonrpc": "2.0", "result": { "C": 2 * n }, "id": n }));
    }
    assert_eq!((&answers[38]["error"]["code"], &answers[38]["id"]), (&json!(-32600), &json!(null)));

    for batch in ["[]".to_owned(), json!(vec![7; 41]).to_string()] {
        let answer = ask(served.address(), HEAD, &batch).await.json();
        assert_eq!(answer["error"]["code"], -32600, "{answer}");
    }
    let notified = json!([{ "method": "Arith.Mul", "params": { "A": 1, "B": 2 } }]).to_string();
    let nothing = ask(served.address(), HEAD, &notified).await;
    assert_eq!((nothing.status, nothing.body.as_str()), (200, ""));
}

/// A refused token answers each call of a batch, and spoils no later request of the connection.
#[tokio::test]
async fn a_refused_token_has_the_ids_of_its_calls() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    let call = json!({ "method": "Arith.Mul", "params": { "A": 3, "B": 4 }, "id": "x" });
    let refused = http.ask(&format!("{HEAD}\nAuthorization: bearer bad"), &json!([call, call]).to_string()).await;
    let error = json!({ "code": -32603, "message": "not you", "data": null });
    let one = json!({ "jsonrpc": "2.0", "error": error, "id": "x" });
    assert_eq!(refused.json(), json!([one, one]));
    let good = http.ask(&format!("{HEAD}\nAuthorization: bearer ann"), &call.to_string()).await;
    assert_eq!(good.json()["result"], json!({ "C": 12 }));
}

#[tokio::test]
async fn codes_are_gos_unless_they_are_to_be_strict() {
    let ask_both = async |options, method: &str, params: serde_json::Value| {
        let served = serve(builder(), options).await;
        let call = json!({ "method": method, "params": params, "id": 1 });
        ask(served.address(), &format!("{HEAD}\nX-Bothways: 1"), &call.to_string()).await.json()["error"].clone()
    };
    for (method, params, strict, kind) in [
        ("No.Such", json!({}), -32601, "not_found"),
        ("Arith.Mul", json!("text"), -32602, "bad_arguments"),
        ("Arith.Err", json!({}), -32603, "handler"),
    ] {
        let error = ask_both(FrontOptions::new(), method, params.clone()).await;
        assert_eq!((&error["code"], &error["data"]), (&json!(-32603), &json!(kind)), "{error}");
        let error = ask_both(FrontOptions::new().strict_json_rpc_codes(true), method, params).await;
        assert_eq!(error["code"], strict, "{error}");
    }
}

/// Without `params` Go's server dies; here it is a call with `null`.
#[tokio::test]
async fn missing_params_are_null() {
    let served = serve(builder(), FrontOptions::new()).await;
    let call = json!({ "method": "Arith.Mul", "id": 1 }).to_string();
    let answer = ask(served.address(), HEAD, &call).await.json();
    assert_eq!(answer["result"], json!({ "C": 0 }), "{answer}");
    let notified = ask(served.address(), HEAD, "{\"method\":\"Arith.Mul\"}").await;
    assert_eq!((notified.status, notified.body.as_str()), (200, ""));
    assert_eq!(ask(served.address(), HEAD, &call).await.json(), answer, "it lives");
}
