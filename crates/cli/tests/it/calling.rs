//! `bothways call` against `bothways serve`.

use std::net::TcpListener;

use crate::support::{Serving, bothways, finish, run};

#[test]
fn a_reply_is_printed_as_json() {
    let server = Serving::start();
    let address = &server.address;
    let ran = run(&["call", address, "Arith.Mul", r#"{"A":10,"B":20}"#]);
    assert_eq!((ran.ended(0), ran.err.as_str()), ("{\"C\":200}\n", ""));
    let ran = run(&["call", address, "Arith.Mul", r#"{"A":10,"B":20}"#, "--codec", "json", "--meta", "k=v"]);
    assert_eq!(ran.ended(0), "{\"C\":200}\n");
    let ran = run(&["call", address, "Arith.Mul"]);
    assert_eq!(ran.ended(0), "{\"C\":0}\n");
}

#[test]
fn values_of_every_kind_come_back_as_they_went() {
    let server = Serving::start();
    let value = r#"{"z":[1,-2.5,null,true],"a":{"$bytes":"AP8="},"n":18446744073709551615,"t":"é"}"#;
    assert_eq!(run(&["call", &server.address, "Echo.Echo", value]).ended(0).trim_end(), value);
    assert_eq!(run(&["call", &server.address, "Echo.Echo", "-2.5"]).ended(0), "-2.5\n");
    let keys = r#"{"$map":[[1,"one"],[-2,"two"]]}"#;
    assert_eq!(run(&["call", &server.address, "Echo.Echo", keys]).ended(0), "{\"1\":\"one\",\"-2\":\"two\"}\n");
    let ran = run(&["call", &server.address, "Echo.Echo", "plain text", "--codec", "raw"]);
    assert_eq!(ran.ended(0), "plain text\n");
}

#[test]
fn arguments_come_from_a_file_or_from_standard_input() {
    let server = Serving::start();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), r#"{"A":6,"B":7}"#).expect("written");
    let at = format!("@{}", file.path().display());
    assert_eq!(run(&["call", &server.address, "Arith.Mul", &at]).ended(0), "{\"C\":42}\n");
    let ran = finish(bothways(&["call", &server.address, "Arith.Add", "-"]), br#"{"A":6,"B":7}"#);
    assert_eq!(ran.ended(0), "{\"C\":13}\n");
}

#[test]
fn an_error_of_the_peer_is_exit_code_1() {
    let server = Serving::start();
    let ran = run(&["call", &server.address, "Arith.Div", r#"{"A":1,"B":0}"#]);
    ran.failed(1, &["error: Arith.Div: the peer answered: division by zero"]);
    assert_eq!(ran.out, "");
    run(&["call", &server.address, "arith.Mul"]).failed(1, &["rpcx: can't find service arith", "case-sensitive"]);
    let ran = run(&["call", &server.address, "Arith.Div", r#"{"A":1,"B":0}"#, "--json"]);
    let report: serde_json::Value = serde_json::from_str(ran.ended(1)).expect("JSON");
    assert_eq!(report["ok"], false);
    assert!(report["error"].as_str().expect("a text").contains("division by zero"));
}

#[test]
fn a_report_in_json_says_all() {
    let server = Serving::start();
    let ran = run(&["call", &server.address, "Arith.Mul", r#"{"A":2,"B":3}"#, "--json", "--repeat", "20"]);
    let report: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    assert_eq!(
        (&report["ok"], &report["payload"]["C"], &report["codec"]),
        (&true.into(), &6.into(), &"msgpack".into())
    );
    assert_eq!((&report["calls"], &report["errors"]), (&20.into(), &0.into()));
    assert!(0.0 < report["latency"]["p50_us"].as_f64().expect("a number"));
}

#[test]
fn repeated_calls_end_with_a_summary() {
    let server = Serving::start();
    let ran = run(&["call", &server.address, "Arith.Mul", r#"{"A":2,"B":3}"#, "--repeat", "50"]);
    assert_eq!(ran.ended(0), "{\"C\":6}\n");
    for part in ["50 calls in", "0 errors", "p50", "p99.9", "max"] {
        assert!(ran.err.contains(part), "{ran:?}");
    }
}

#[test]
fn a_oneway_request_wants_no_reply() {
    let server = Serving::start();
    let ran = run(&["call", &server.address, "Arith.Mul", r#"{"A":2,"B":3}"#, "--oneway"]);
    assert_eq!(ran.ended(0), "");
    assert!(ran.err.contains("sent 1 oneway request"), "{ran:?}");
}

#[test]
fn nobody_there_is_exit_code_3() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").to_string();
    run(&["call", &free, "Arith.Mul"]).failed(3, &["cannot connect to tcp@", "hint:", "bothways serve"]);
}

#[test]
fn no_answer_is_exit_code_4() {
    let address = crate::support::silent_server();
    let ran = run(&["call", &address, "Arith.Mul", "--timeout", "200ms"]);
    ran.failed(4, &["no reply within 200ms", "--timeout"]);
    // One that says nothing at all does not even answer the Hello.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address").to_string();
    let ran = run(&["call", &address, "Arith.Mul", "--connect-timeout", "200ms"]);
    ran.failed(4, &["did not answer", "--connect-timeout"]);
}

#[test]
fn a_peer_that_hangs_up_is_exit_code_3() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let hanging_up = std::thread::spawn(move || drop(listener.accept()));
    let ran = run(&["call", &address, "Arith.Mul"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    hanging_up.join().expect("it hung up");
}

#[test]
fn a_token_is_asked_for_and_never_shown() {
    let server = Serving::with(&["--auth-token-env", "BW_T"], &[("BW_T", "s3cret")]);
    let args = ["call", &server.address, "Arith.Mul", r#"{"A":2,"B":3}"#, "--auth-env", "BW_T"];
    let with = |token: &str| {
        let mut command = bothways(&args);
        command.env("BW_T", token);
        finish(command, b"")
    };
    assert_eq!(with("s3cret").ended(0), "{\"C\":6}\n");
    let wrong = with("wr0ng");
    wrong.failed(1, &["the token is missing or wrong", "--auth-env"]);
    assert!(!wrong.err.contains("wr0ng"));
    run(&args[..4]).failed(1, &["the token is missing or wrong"]);
    run(&["call", &server.address, "Arith.Mul", "--plain"]).failed(1, &["the token is missing or wrong"]);
}

/// A variable that is there and empty is a mistake of who starts the server: it does not open it to everybody.
#[test]
fn an_empty_token_opens_no_server() {
    for option in ["--auth-token-env", "--admin-token-env"] {
        let mut command = bothways(&["serve", "127.0.0.1:0", option, "BW_T"]);
        command.env("BW_T", "");
        finish(command, b"").failed(2, &["the environment variable BW_T is empty"]);
    }
}

/// -v and RUST_LOG show what the library does; without them a call prints its reply alone.
#[test]
fn what_the_library_does_is_shown_where_it_is_asked_for() {
    let server = Serving::start();
    let call = ["call", &server.address, "Arith.Mul", "{\"A\":6,\"B\":7}"];
    assert_eq!(run(&call).err, "");
    let loud = run(&[&["-v"][..], &call].concat());
    assert!(loud.err.contains("INFO") && loud.err.contains("connected"), "{loud:?}");
    for (filter, part) in [("bothways=info", "connected"), ("b=((", "RUST_LOG is not understood")] {
        let mut command = bothways(&call);
        command.env("RUST_LOG", filter);
        let ran = finish(command, b"");
        ran.ended(0);
        assert!(ran.err.contains(part), "{filter}: {ran:?}");
    }
}

/// What a peer names and says is shown on one line.
#[test]
fn a_peers_error_is_one_line() {
    let server = Serving::start();
    let ran = run(&["call", &server.address, "No.such\n2026-01-01 forged"]);
    ran.failed(1, &["such\\n2026-01-01 forged"]);
    assert!(ran.err.lines().all(|line| !line.starts_with("2026")), "{ran:?}");
}
