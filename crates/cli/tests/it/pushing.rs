//! `bothways push` and `bothways connections` against the admin service of `bothways serve`.

use crate::support::{Ran, Running, Serving, bothways, finish, run};

pub(crate) const TOKEN: &str = "t0p-s3cret";

pub(crate) fn serving() -> Serving {
    Serving::with(&["--admin-token-env", "BW_ADMIN", "--push-every", "1h"], &[("BW_ADMIN", TOKEN)])
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

    let ran = operate(&["push", &server.address, "--everyone", "News.Flash", "hello, all"], TOKEN);
    assert!(ran.ended(0).starts_with("2 sessions: "), "{ran:?}");
    for listener in [&first, &second] {
        assert!(listener.out.until("News.Flash").ends_with("\"hello, all\""));
    }

    let ran = operate(&["connections", &server.address, "--json"], TOKEN);
    let connections: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    let connections = connections.as_array().expect("a list");
    assert_eq!(connections.len(), 3);
    assert_eq!((&connections[0]["negotiated"], &connections[1]["negotiated"]), (&true.into(), &false.into()));
    assert_eq!((&connections[1]["is_asking"], &connections[2]["is_asking"]), (&false.into(), &true.into()));
    let id = connections[1]["id"].as_str().expect("a text");

    let mut command = bothways(&["push", &server.address, "--to", id, "Chat.Say", "-", "--meta", "from=ops", "--json"]);
    command.args(["--admin-token-env", "BW_ADMIN"]).env("BW_ADMIN", TOKEN);
    let ran = finish(command, b"\x00\xff");
    let outcome: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    assert_eq!((&outcome["written"], &outcome["dropped"]), (&1.into(), &0.into()), "a plain client confirms no more");
    assert!(second.out.until("Chat.Say").ends_with("{from=\"ops\"} hex:00ff"));
}

#[test]
fn connections_are_a_table() {
    let server = serving();
    let ran = operate(&["connections", &server.address], TOKEN);
    let lines: Vec<&str> = ran.ended(0).lines().collect();
    assert!(lines[0].starts_with("ID  PEER") && lines[0].ends_with("CALLS"), "{ran:?}");
    assert!(lines[1].starts_with("c1  tcp@127.0.0.1:") && lines[1].contains("(this one)"), "{ran:?}");
}

#[test]
fn who_is_not_there_is_told_as_such() {
    let server = serving();
    operate(&["push", &server.address, "--to", "c99", "A.b", "x"], TOKEN)
        .failed(1, &["there is no connection c99", "bothways connections"]);
    let ran = operate(&["push", &server.address, "--everyone", "A.b", "x"], TOKEN);
    assert_eq!(ran.ended(0), "0 sessions\n");
    operate(&["push", &server.address, "--user", "nobody", "A.b", "x"], TOKEN)
        .failed(1, &["nobody is there", "bothways sessions"]);
}

#[test]
fn a_wrong_token_opens_nothing_and_is_not_shown() {
    let server = serving();
    let ran = operate(&["connections", &server.address], "wr0ng");
    ran.failed(1, &["the admin token is missing or wrong"]);
    assert!(!ran.err.contains("wr0ng"));
    let closed = Serving::start();
    operate(&["connections", &closed.address], TOKEN).failed(1, &["admin service is closed", "--admin-token-env"]);
}

#[test]
fn a_token_can_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("{TOKEN}\n")).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let server = Serving::with(&["--admin-token-file", path], &[]);
    run(&["connections", &server.address, "--admin-token-file", path]).ended(0);
}

/// An operator has the admin token, and need not have that of clients.
#[test]
fn the_token_of_clients_is_not_asked_for() {
    let env = [("BW_ADMIN", TOKEN), ("BW_AUTH", "other")];
    let server = Serving::with(&["--admin-token-env", "BW_ADMIN", "--auth-token-env", "BW_AUTH"], &env);
    operate(&["connections", &server.address], TOKEN).ended(0);
}
