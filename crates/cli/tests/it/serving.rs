//! `bothways serve`: how it starts and how it stops.

#[cfg(unix)]
use crate::support::{Running, bothways};
use crate::support::{Serving, http, run};

#[test]
fn it_says_what_it_serves() {
    let server = Serving::start();
    assert!(server.address.starts_with("tcp@127.0.0.1:") && !server.address.ends_with(":0"), "{}", server.address);
    let services = server.program.out.until("services:");
    assert!(services.contains("Arith") && services.contains("Bench"), "{services}");
}

#[test]
fn an_address_in_use_is_exit_code_2() {
    let server = Serving::start();
    run(&["serve", &server.address]).failed(2, &["cannot listen on", "port 0"]);
}

#[cfg(unix)]
#[test]
fn a_signal_stops_it_in_good_order() {
    let mut server = Serving::start();
    run(&["call", &server.address, "Arith.Mul"]).ended(0);
    assert_eq!(server.program.terminate(), Some(0));
    server.program.out.until("stopping");
    let stopped = server.program.out.next();
    assert_eq!(stopped, "stopped: 1 connection served, 0 calls unfinished, 0 connections cut");
}

#[cfg(unix)]
#[test]
fn a_signal_sends_clients_away_one_by_one() {
    let mut server = Serving::with(&["--reconnects-per-second", "100", "--new-clients-per-second", "100"], &[]);
    let listening = Running::start(bothways(&["listen", &server.address, "--call", "Arith.Mul"]));
    listening.out.next();
    assert_eq!(server.program.terminate(), Some(0));
    let lost = listening.err.until("connection lost");
    assert!(lost.contains("the server said goodbye"), "{lost}");
    let stopped = server.program.out.until("stopped");
    assert_eq!(stopped, "stopped: 1 connection served, 0 calls unfinished, 0 connections cut");
}

/// As systemd starts a service whose socket is somebody's first call: the socket is there before the program.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_was_passed_on_is_served() {
    use std::{os::fd::OwnedFd, process::Stdio};

    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("tcp@{}", socket.local_addr().expect("it is bound"));
    let mut command = std::process::Command::new("sh");
    let passes = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --activated";
    command.args(["-c", passes, env!("CARGO_BIN_EXE_bothways")]).stdin(Stdio::from(OwnedFd::from(socket)));
    let mut program = Running::start(command);

    assert_eq!(program.out.next(), format!("listening on {address}"));
    let called = run(&["call", &address, "Arith.Mul", r#"{"A":10,"B":20}"#]);
    assert_eq!(called.ended(0).trim_end(), r#"{"C":200}"#);
    assert_eq!(program.terminate(), Some(0));
}

#[test]
fn without_a_socket_that_was_passed_on_it_says_so() {
    run(&["serve", "--activated"]).failed(2, &["LISTEN_FDS", "name an address"]);
}

/// HTTP beside the server: calls, events, health, and what operators ask; other hosts' names are refused.
#[test]
fn http_is_served_beside_it() {
    let server = Serving::with(&["--http", "0", "--push-every", "50ms"], &[]);
    let address = server.http_address();
    let get = |path: &str, host: &str, until: &str| {
        http(&address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"), until)
    };

    let call = "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"A\":6,\"B\":7}";
    let called = http(&address, call, "42}");
    assert!(called.starts_with("HTTP/1.1 200 OK") && called.ends_with("{\"C\":42}"), "{called}");
    let events = get("/events?topics=demo.clock", "localhost", "\"Count\"");
    assert!(events.contains("event: Demo.Clock") && events.contains("\"Count\":"), "{events}");
    for (path, part) in [("/readyz", "ready"), ("/debug/vars", "\"by_kind\""), ("/metrics", "bothways_calls_total{")] {
        let said = get(path, "127.0.0.1", part);
        assert!(said.starts_with("HTTP/1.1 200 OK") && said.contains(part), "{path}: {said}");
    }
    let refused = get("/readyz", "evil.example", "421");
    assert!(refused.starts_with("HTTP/1.1 421 "), "{refused}");
}

/// A page of an origin that is named may use HTTP as well as WebSocket, and no other page may.
#[test]
fn an_origin_that_is_named_may_use_http_and_web_socket() {
    let pages = ["--origin", "http://pages.example:3000", "--origin", "https://*.example.net", "--http", "0"];
    let server = Serving::at("ws@127.0.0.1:0", &pages, &[]);
    let http_address = server.http_address();
    let address = server.address.trim_start_matches("ws@").trim_end_matches("/_rpcx_").to_owned();
    for (origin, is_taken) in [
        ("http://pages.example:3000", true),
        ("https://a.example.net", true),
        ("http://pages.example:3001", false),
        ("https://evil.example", false),
        ("null", false),
    ] {
        let said = format!("Origin: {origin}\r\nSec-Fetch-Site: cross-site\r\nConnection: close");
        let call = format!(
            "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: localhost\r\n{said}\r\nContent-Type: application/json\r\n\
             Content-Length: 13\r\n\r\n{{\"A\":6,\"B\":7}}"
        );
        let called = http(&http_address, &call, "no such text").to_ascii_lowercase();
        let events = format!("GET /events?topics=demo.clock HTTP/1.1\r\nHost: localhost\r\n{said}\r\n\r\n");
        let events = http(&http_address, &events, "\r\n\r\n").to_ascii_lowercase();
        let told = format!("access-control-allow-origin: {origin}\r\n");
        for (what, answer) in [("a call", &called), ("events", &events)] {
            let status = if is_taken { "http/1.1 200 " } else { "http/1.1 403 " };
            assert!(answer.starts_with(status) && answer.contains(&told) == is_taken, "{what} from {origin}: {answer}");
        }
        assert_eq!(called.ends_with("{\"c\":42}"), is_taken, "{origin}: {called}");

        let upgrade = format!(
            "GET /_rpcx_ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: {origin}\r\n\r\n"
        );
        let upgraded = http(&address, &upgrade, "\r\n\r\n");
        let status = if is_taken { "HTTP/1.1 101 " } else { "HTTP/1.1 403 " };
        assert!(upgraded.starts_with(status), "{origin}: {upgraded}");
    }
}

/// A token is asked for over HTTP too, and shown nowhere.
#[cfg(unix)]
#[test]
fn http_asks_for_the_token_too() {
    let env = [("BW_T", "swordfish-7")];
    let server = Serving::with(&["-vv", "--http", "0", "--auth-token-env", "BW_T"], &env);
    let address = server.http_address();
    let call = |more: &str| {
        let head =
            "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
        http(&address, &format!("{head}\r\nContent-Length: 2\r\n{more}\r\n{{}}"), "no such text")
    };
    assert!(call("").starts_with("HTTP/1.1 401 "));
    assert!(call("Authorization: guess-8\r\n").starts_with("HTTP/1.1 401 "));
    assert!(call("Authorization: swordfish-7\r\n").starts_with("HTTP/1.1 200 "));
    let mut program = server.program;
    program.terminate();
    let log = program.err.rest();
    assert!(log.contains("was not authenticated") && !log.contains("swordfish") && !log.contains("guess-8"), "{log}");
}
