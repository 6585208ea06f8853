//! `bothways push` and `bothways connections` against the admin service of `bothways serve`.

use crate::support::{Ran, Running, Serving, bothways, finish, run};

pub(crate) const TOKEN: &str = "t0p-s3cret";

pub(crate) fn serving() -> Serving {
    Serving::with(
        &["--admin-token-env", "BW_ADMIN", "--admin", "127.0.0.1:0", "--push-every", "1h"],
        &[("BW_ADMIN", TOKEN)],
    )
}

/// Runs a command of an operator, with this token.
pub(crate) fn operate(args: &[&str], token: &str) -> Ran {
    let mut command = bothways(args);
    command.args(["--admin-token-env", "BW_ADMIN"]).env("BW_ADMIN", token);
    finish(command, b"")
}

pub(crate) fn listener(server: &Serving, more: &[&str]) -> Running {
    let listener = Running::start(bothways(&[&["listen", &server.address], more].concat()));
    listener.err.until("connected to");
    listener
}

#[test]
fn a_push_reaches_everyone_or_one() {
    let server = serving();
    // Plain, so that it is known to the server as soon as it is connected to it: its first call is answered.
    let first = listener(&server, &["--call", "Bench.Join", "--codec", "raw"]);
    let second = listener(&server, &["--call", "Bench.Join", "--codec", "raw", "--plain"]);
    first.err.until("answered");
    second.err.until("answered");

    let ran = operate(&["push", &server.admin, "--everyone", "News.Flash", "hello, all"], TOKEN);
    assert!(ran.ended(0).starts_with("2 sessions: "), "{ran:?}");
    for listener in [&first, &second] {
        assert!(listener.out.until("News.Flash").ends_with("\"hello, all\""));
    }

    let ran = operate(&["connections", &server.admin, "--json"], TOKEN);
    let connections: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    let connections = connections.as_array().expect("a list");
    assert_eq!(connections.len(), 2, "an operator's own is none of them");
    assert_eq!((&connections[0]["negotiated"], &connections[1]["negotiated"]), (&true.into(), &false.into()));
    let id = connections[1]["id"].as_str().expect("a text");

    let mut command = bothways(&["push", &server.admin, "--to", id, "Chat.Say", "-", "--meta", "from=ops", "--json"]);
    command.args(["--admin-token-env", "BW_ADMIN"]).env("BW_ADMIN", TOKEN);
    let ran = finish(command, b"\x00\xff");
    let outcome: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    assert_eq!((&outcome["written"], &outcome["dropped"]), (&1.into(), &0.into()), "a plain client confirms no more");
    assert!(second.out.until("Chat.Say").ends_with("{from=\"ops\"} hex:00ff"));
}

#[test]
fn connections_are_a_table() {
    let server = serving();
    let _listener = listener(&server, &[]);
    let ran = operate(&["connections", &server.admin], TOKEN);
    let lines: Vec<&str> = ran.ended(0).lines().collect();
    assert!(lines[0].starts_with("ID  PEER") && lines[0].ends_with("CALLS"), "{ran:?}");
    assert!(lines[1].starts_with("c1  tcp@127.0.0.1:") && lines.len() == 2, "{ran:?}");
}

#[test]
fn who_is_not_there_is_told_as_such() {
    let server = serving();
    operate(&["push", &server.admin, "--to", "c99", "A.b", "x"], TOKEN)
        .failed(1, &["there is no connection c99", "bothways connections"]);
    for to in [&["--everyone"][..], &["--user", "nobody"], &["--topic", "nothing"]] {
        operate(&[&["push", &server.admin, "A.b", "x"], to].concat(), TOKEN)
            .failed(1, &["nobody is there", "bothways sessions"]);
    }
}

#[test]
fn a_wrong_token_opens_nothing_and_is_not_shown() {
    let server = serving();
    let ran = operate(&["connections", &server.admin], "wr0ng");
    ran.failed(1, &["the admin token is missing or wrong"]);
    assert!(!ran.err.contains("wr0ng"));
    operate(&["connections", &server.address], TOKEN)
        .failed(1, &["does not answer at this address", "tcp@127.0.0.1:8973", "--admin"]);
}

#[test]
fn a_token_can_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("{TOKEN}\n")).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let server = Serving::with(&["--admin-token-file", path, "--admin", "127.0.0.1:0"], &[]);
    run(&["connections", &server.admin, "--admin-token-file", path]).ended(0);
}

/// An operator has the admin token, and need not have that of clients.
#[test]
fn the_token_of_clients_is_not_asked_for() {
    let env = [("BW_ADMIN", TOKEN), ("BW_AUTH", "other")];
    let tokens = ["--admin-token-env", "BW_ADMIN", "--auth-token-env", "BW_AUTH", "--admin", "127.0.0.1:0"];
    let server = Serving::with(&tokens, &env);
    operate(&["connections", &server.admin], TOKEN).ended(0);
}

/// What a server warns of is on its standard error, also without -v, and no token is in it.
#[test]
fn a_guess_is_told_in_the_servers_log() {
    let server = serving();
    operate(&["connections", &server.admin], "wr0ng").failed(1, &["the admin token"]);
    let line = server.program.err.until("an admin request was refused");
    assert!(line.contains("WARN") && line.contains("localhost") && !line.contains("wr0ng"), "{line}");
}

/// A typed handler gets its value: the push says in which codec it is.
#[test]
fn a_push_may_be_a_value() {
    let server = serving();
    let listener = listener(&server, &["--call", "Bench.Join", "--codec", "raw"]);
    listener.err.until("answered");
    for (codec, payload, shown) in [("json", "{\"A\": 1}", "{\"A\":1}"), ("msgpack", "{\"A\":2}", "{\"A\":2}")] {
        let push = ["push", &server.admin, "--everyone", "Chat.Say", payload, "--codec", codec];
        operate(&push, TOKEN).ended(0);
        let line = listener.out.until("Chat.Say");
        assert!(line.ends_with(shown), "{line}");
    }
    let push = ["push", &server.admin, "--everyone", "Chat.Say", "{A", "--codec", "json"];
    operate(&push, TOKEN).failed(2, &["not JSON"]);
}

/// What is typed wrong is 2, whether this program or the server finds it; who is not there is 1.
#[test]
fn what_is_typed_wrong_has_its_own_exit_code() {
    let server = serving();
    let push = |more: &[&str]| operate(&[&["push", &server.admin, "A.b", "x"], more].concat(), TOKEN);
    let id = "0123456789abcdef0123456789abcdef";
    for (more, part) in [
        (&["--to", "zzz"][..], "write it as c12"),
        (&["--session", "zzz"], "32 hexadecimal digits"),
        (&["--topic", "a.*"], "a.*"),
        (&["--everyone", "--within", "60s"], "10 s at most"),
        (&["--everyone", "--meta", "_bw.t=news"], "belongs to the framework"),
        (&["--everyone", "--idempotency-key", ""], "1 to 64 bytes"),
        (&["--everyone", "--latest", "_bw.x"], "belongs to the framework"),
        (&["--everyone", "--codec", "xml"], "xml"),
        (&["--everyone", "--fire", "--until", "handled"], "do not go with --fire"),
        (&["--everyone", "--fire", "--until", "received"], "do not go with --fire"),
    ] {
        push(more).failed(2, &[part]);
    }
    operate(&["push", &server.admin, "--everyone", "_bothways.Ack", "x"], TOKEN).failed(2, &["belongs to"]);
    operate(&["explain", &server.admin, "--session", "zzz"], TOKEN).failed(2, &["32 hexadecimal digits"]);
    operate(&["kick", &server.admin, "--session", "zzz", "--why", "x"], TOKEN).failed(2, &["32 hexadecimal digits"]);
    operate(&["sessions", &server.admin, "--topic", "a.*"], TOKEN).failed(2, &["a.*"]);
    operate(&["sessions", &server.admin, "--max", "0"], TOKEN).failed(2, &["--max"]);
    push(&["--to", "c99"]).failed(1, &["there is no connection c99"]);
    push(&["--session", id]).failed(1, &["nobody is there"]);
}
