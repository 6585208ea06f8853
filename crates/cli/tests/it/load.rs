//! `bothways load` against `bothways serve`.

use crate::support::{Ran, Serving, run};

fn json(ran: &Ran, code: i32) -> serde_json::Value {
    serde_json::from_str(ran.ended(code)).expect("JSON")
}

fn number(report: &serde_json::Value, field: &str) -> f64 {
    report.pointer(field).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("no {field} in {report}"))
}

#[test]
fn as_fast_as_replies_come() {
    let server = Serving::start();
    let args = ["load", &server.address, "--connections", "4", "--in-flight", "4", "--duration", "300ms"];
    let report = json(&run(&[&args[..], &["--json"]].concat()), 0);
    assert!(0.0 < number(&report, "/ok") && number(&report, "/mismatched") == 0.0, "{report}");
    assert!(number(&report, "/latency/p50_us") <= number(&report, "/latency/max_us"), "{report}");
    let ran = run(&args);
    for part in ["calls per second", "every reply checked, all right", "p99.9"] {
        assert!(ran.ended(0).contains(part), "{ran:?}");
    }
}

#[test]
fn at_a_fixed_rate_as_many_calls_are_made_as_are_due() {
    let server = Serving::start();
    let args = ["--connections", "2", "--rate", "200", "--duration", "500ms", "--size", "1KiB", "--json"];
    let report = json(&run(&[&["load", &server.address], &args[..]].concat()), 0);
    assert_eq!((number(&report, "/ok"), number(&report, "/unstarted")), (100.0, 0.0), "{report}");
}

#[test]
fn a_peer_that_refuses_is_exit_code_1() {
    let server = Serving::start();
    let args = ["load", &server.address, "--service", "No.Such", "--connections", "1", "--in-flight", "1"];
    let ran = run(&[&args[..], &["--duration", "100ms"]].concat());
    ran.failed(1, &["can't find service No"]);
    assert!(ran.out.contains("nothing was answered"), "{ran:?}");
    run(&["load", "127.0.0.1:1", "--connections", "2"]).failed(3, &["cannot connect"]);
}

#[test]
fn a_lost_server_ends_it() {
    let mut server = Serving::start();
    let address = server.address.clone();
    let loading = std::thread::spawn(move || run(&["load", &address, "--connections", "2", "--rate", "500"]));
    std::thread::sleep(std::time::Duration::from_millis(700));
    server.program.child.kill().expect("it runs");
    let ran = loading.join().expect("it ended");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains("lost"), "{ran:?}");
}

#[test]
fn every_push_of_a_broadcast_is_counted() {
    let server = Serving::start();
    let args = ["load", &server.address, "--connections", "5", "--broadcast", "40", "256"];
    let report = json(&run(&[&args[..], &["--json"]].concat()), 0);
    for (field, expected) in [("/deliveries", 200.0), ("/missing", 0.0), ("/out_of_order", 0.0)] {
        assert_eq!(number(&report, field), expected, "{report}");
    }
    assert!(run(&args).ended(0).contains("200 in"));
}

#[test]
fn a_reply_that_differs_from_its_request_is_seen() {
    let server = Serving::start();
    let args = ["load", &server.address, "--service", "Bench.Join", "--connections", "1", "--duration", "100ms"];
    let ran = run(&args);
    ran.failed(1, &["differ from their requests"]);
    assert!(ran.out.contains("mismatched") && !ran.out.contains("all right"), "{ran:?}");
}

/// At a fixed rate, a call that had to wait for its turn was slow, even if it was never begun in time.
#[test]
fn a_server_that_stands_still_is_not_flattered() {
    let address = crate::support::silent_server();
    let args = ["--connections", "1", "--in-flight", "1", "--rate", "100", "--duration", "300ms", "--timeout", "300ms"];
    let report = json(&run(&[&["load", &address, "--json"], &args[..]].concat()), 4);
    let (timed_out, unstarted) = (number(&report, "/timed_out"), number(&report, "/unstarted"));
    assert!(2.0 <= timed_out && timed_out + unstarted == 30.0, "{report}");
    assert!(500_000.0 < number(&report, "/latency/max_us"), "{report}");
}
