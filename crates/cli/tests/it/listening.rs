//! `bothways listen` against `bothways serve`.

use crate::support::{Running, Serving, bothways, run};

const CALL: [&str; 3] = ["--call", "Arith.Mul", r#"{"A":10,"B":20}"#];

fn listen<'a>(address: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["listen", address], &CALL[..], args].concat()
}

#[test]
fn pushes_are_printed_as_they_come() {
    let server = Serving::with(&["--push-every", "20ms"], &[]);
    let ran = run(&listen(&server.address, &["--count", "3"]));
    let lines: Vec<&str> = ran.ended(0).lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    for line in lines {
        assert!(line.contains("test_service_path.test_service_method") && line.ends_with("\"abcde\""), "{line}");
    }
    assert!(ran.err.contains(r#"Arith.Mul answered {"C":200}"#), "{ran:?}");
}

#[test]
fn pushes_can_be_json_lines() {
    let server = Serving::with(&["--push-every", "20ms"], &[]);
    let ran = run(&listen(&server.address, &["--count", "2", "--json"]));
    for line in ran.ended(0).lines() {
        let push: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&push["path"], &push["payload"]), (&"test_service_path".into(), &"abcde".into()));
        assert_eq!((&push["codec"], &push["payload_bytes"]), (&"raw".into(), &5.into()));
        assert_eq!(push["server"], server.address.as_str());
    }
}

#[test]
fn no_push_in_time_is_exit_code_4() {
    let server = Serving::start();
    run(&["listen", &server.address, "--count", "1", "--timeout", "100ms"])
        .failed(4, &["0 messages received", "--call"]);
    let ran = run(&["listen", &server.address, "--timeout", "100ms"]);
    ran.ended(0);
    assert!(ran.err.contains("0 messages received"), "{ran:?}");
}

#[test]
fn a_lost_connection_is_made_again_and_so_is_the_call() {
    let mut server = Serving::with(&["--push-every", "20ms"], &[]);
    let address = server.address.clone();
    let listener = Running::start(bothways(&listen(&address, &[])));
    listener.out.next();
    server.program.child.kill().expect("it runs");
    let lost = listener.err.until("connection lost");
    assert!(lost.contains("closed by the peer") || lost.contains("socket failed"), "{lost}");
    drop(server);

    let _server = Serving::at(&address, &["--push-every", "20ms"], &[]);
    listener.err.until("connection restored");
    listener.err.until("Arith.Mul answered");
    listener.out.until("abcde");
}

#[test]
fn a_first_call_that_fails_ends_it() {
    let server = Serving::start();
    run(&["listen", &server.address, "--call", "No.Such"]).failed(1, &["No.Such", "can't find service No"]);
    run(&["listen", "127.0.0.1:1"]).failed(3, &["cannot connect"]);
}
