//! The page for operators of `bothways serve`.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{Serving, bothways, finish, run};

/// What the server says to a request for this path, by its own address.
fn get(url: &str, host: &str) -> String {
    let (place, path) = url.trim_start_matches("http://").split_once('/').expect("a URL has a path");
    let mut stream = TcpStream::connect(place).expect("it listens");
    let host = if host.is_empty() { place } else { host };
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("it is open");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("it is a text");
    said
}

/// It is where the server says, and nowhere else; and each operator has a token.
#[test]
fn the_page_is_where_the_server_says() {
    let args = ["--admin", "tcp@127.0.0.1:0", "--admin-token-env", "BW_A", "--operator", "wall=look:BW_L"];
    let args = [&args[..], &["--admin-host", "admin.example.org"]].concat();
    let server = Serving::with(&args, &[("BW_A", "swordfish-7"), ("BW_L", "halibut-8")]);
    let line = server.program.out.until("the page for operators is");
    let url = line.rsplit(' ').next().expect("a URL").to_owned();
    for host in ["", "admin.example.org"] {
        let page = get(&url, host);
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<title>Bothways admin</title>"), "{page}");
    }
    assert!(get(&url, "evil.net").starts_with("HTTP/1.1 421 "));
    assert!(TcpStream::connect(server.address.trim_start_matches("tcp@")).is_ok(), "the service listens too");

    let run_as = |token: &str, args: &[&str]| {
        let mut command = bothways(args);
        command.args(["--admin-token-env", "T"]).env("T", token);
        finish(command, b"")
    };
    for token in ["halibut-8", "swordfish-7"] {
        run_as(token, &["sessions", &server.admin]).ended(0);
    }
    let kick = ["kick", &server.admin, "--user", "ann", "--why", "x"];
    run_as("halibut-8", &kick).failed(1, &["your token's role is look"]);
}

#[test]
fn an_operator_is_written_in_one_way() {
    run(&["serve", "--admin-token-env", "T", "--operator", "wall=boss:W"]).failed(2, &["name=role:VARIABLE"]);
    run(&["serve", "--operator", "wall=look:W"]).failed(2, &["--admin-token"]);
}
