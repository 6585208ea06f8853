//! Servers that are processes, over brokers that are processes: one of either is killed or stopped, and the others go on.

#![cfg(feature = "nats")]

#[path = "it/support.rs"]
#[allow(dead_code)]
mod support;

use std::time::{Duration, Instant};

use bothways_brokers::Broker;
use support::{Ran, Running, Serving, bothways, finish, run};

const TOKEN: (&str, &str) = ("BW_ADMIN", "a token of operators");

/// One more node of the cluster over this broker.
fn node(broker: &Broker) -> Serving {
    let urls = broker.addresses().join(",");
    let arguments = ["--cluster", &urls, "--admin", "tcp@127.0.0.1:0", "--admin-token-env", TOKEN.0];
    let serving = Serving::with(&arguments, &[TOKEN]);
    serving.program.out.until("of the cluster `bothways`");
    serving
}

/// A client of a node, which is this user, and prints what it is pushed.
fn client(of: &Serving, user: &str) -> Running {
    let login = format!("{{\"User\":\"{user}\"}}");
    let client = Running::start(bothways(&["listen", &of.address, "--call", "Demo.Login", &login]));
    client.err.until("Demo.Login");
    client
}

/// An operator pushes at this node, and waits until it is handled.
fn push(at: &Serving, user: &str, text: &str) -> Ran {
    let arguments = ["push", &at.admin, "--user", user, "Mail.New", text, "--admin-token-env", TOKEN.0];
    let mut push = bothways(&arguments);
    push.args(["--until", "handled", "--within", "8s"]).env(TOKEN.0, TOKEN.1);
    finish(push, b"")
}

/// A push at one node is handled by the client of another one. A third one is killed: the push arrives as before, and when
/// the dead node's lease has ended, all is said to be well again.
#[test]
fn a_push_reaches_a_client_of_another_process_and_a_third_one_may_be_killed() {
    let Some(broker) = Broker::one() else { return };
    let (one, other, third) = (node(&broker), node(&broker), node(&broker));
    let ann = client(&other, "ann");
    let first = push(&one, "ann", "first");
    assert!(first.ended(0).contains("1 session: 1 handled"), "{first:?}");
    ann.out.until("first");

    drop(third);
    let killed = Instant::now();
    loop {
        let second = push(&one, "ann", "second");
        assert!(second.out.contains("1 session: 1 handled"), "{second:?}");
        ann.out.until("second");
        if second.code == Some(0) {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(100), "its lease has ended, and it is forgotten: {second:?}");
    }
}

/// A node is stopped for less than its lease. A push that is made meanwhile is not said to be handled, and comes once at
/// most; nobody has taken the node for dead, and the next push is handled.
#[cfg(unix)]
#[test]
fn a_node_that_is_stopped_goes_on() {
    let Some(broker) = Broker::one() else { return };
    let (one, other) = (node(&broker), node(&broker));
    let ann = client(&other, "ann");
    let signal = |name: &str| {
        let id = other.program.child.id().to_string();
        let sent = std::process::Command::new("kill").args([name, &id]).status();
        assert!(sent.expect("there is a `kill`").success());
    };
    signal("-STOP");
    let stopped = Instant::now();
    let meanwhile = push(&one, "ann", "meanwhile");
    assert_ne!(meanwhile.code, Some(0), "nobody can have handled it: {meanwhile:?}");
    signal("-CONT");
    assert!(stopped.elapsed() < Duration::from_secs(15), "its lease has not ended");

    let back = Instant::now();
    while push(&one, "ann", "after").code != Some(0) {
        assert!(back.elapsed() < Duration::from_secs(40), "it is back");
    }
    let mut came = 0;
    loop {
        let line = ann.out.next();
        came += usize::from(line.contains("meanwhile"));
        if line.contains("after") {
            break;
        }
    }
    assert!(came <= 1, "it came {came} times");
}

/// The broker is killed: a push to a client of the same node is handled all the same. It is back: the others are, too.
#[test]
fn without_the_broker_a_node_serves_its_own_clients() {
    let Some(mut broker) = Broker::one() else { return };
    let (one, other) = (node(&broker), node(&broker));
    let (here, there) = (client(&one, "ann"), client(&other, "bob"));
    broker.kill(0);
    let alone = push(&one, "ann", "alone");
    assert!(alone.out.contains("1 session: 1 handled"), "{alone:?}");
    here.out.until("alone");
    assert!(!push(&one, "bob", "nobody comes").out.contains("handled"), "there is no way");

    broker.start(0);
    let back = Instant::now();
    while push(&one, "bob", "again").code != Some(0) {
        assert!(back.elapsed() < Duration::from_secs(40), "the broker is back");
    }
    there.out.until("again");
}

/// A server that has joined and cannot listen leaves: no lease of it is left behind.
#[test]
fn a_node_that_cannot_listen_leaves_the_cluster() {
    let Some(broker) = Broker::one() else { return };
    let one = node(&broker);
    let urls = broker.addresses().join(",");
    run(&["serve", &one.address, "--cluster", &urls]).failed(2, &["another program listens there"]);

    let began = Instant::now();
    let nodes = || {
        let mut nodes = bothways(&["nodes", &one.admin, "--admin-token-env", TOKEN.0, "--json"]);
        nodes.env(TOKEN.0, TOKEN.1);
        let nodes: serde_json::Value = serde_json::from_str(&finish(nodes, b"").out).expect("JSON");
        nodes.as_array().expect("a list").len()
    };
    // That it has left comes to the other node by mail. A lease would end after 15 s.
    while nodes() != 1 {
        assert!(began.elapsed() < Duration::from_secs(8), "its lease is left behind");
    }
}

/// What is wrong is said in words, with an exit code, and without what is secret.
#[test]
fn what_is_wrong_with_the_cluster_is_said() {
    let serve = ["serve", "tcp@127.0.0.1:0", "--cluster"];
    let with = |url: &str| run(&[&serve[..], &[url]].concat());
    with("nats://127.0.0.1:1").failed(3, &["no NATS server answers at 127.0.0.1:1", "nats-server -js"]);
    let secret = with("nats://ann:hunter2@127.0.0.1:1");
    secret.failed(2, &["has a user or a password in it", "--cluster-token-env"]);
    assert!(!secret.err.contains("hunter2"), "{secret:?}");
    with("http://127.0.0.1:1").failed(2, &["is no address of a NATS server"]);

    let Some(broker) = Broker::with("authorization { user: ann, password: hunter2 }\n") else { return };
    let url = &broker.addresses()[0];
    with(url).failed(1, &["refuses these credentials", "--cluster-credentials"]);
    let mut right = bothways(&[&serve[..], &[url, "--cluster-token-env", "BW_NATS", "-vvv"]].concat());
    right.env("BW_NATS", "ann:hunter2");
    let mut serving = Running::start(right);
    serving.out.until("of the cluster");
    assert_eq!(serving.terminate(), Some(0));
    let log = serving.err.rest();
    assert!(log.contains("bothways") && !log.contains("hunter2"), "{log}");
}

/// `demo --nodes`, over a broker of its own and without one.
#[test]
fn the_demo_shows_a_node_die_and_its_clients_go_on() {
    for broker in [None, bothways_brokers::nats_server()] {
        let mut demo = bothways(&["demo", "--nodes", "3"]);
        demo.env_remove("BOTHWAYS_NATS_SERVER").env("PATH", "");
        let engine = match &broker {
            Some(program) => {
                demo.env("BOTHWAYS_NATS_SERVER", program);
                "nats-server v2."
            }
            None => "is in this process",
        };
        let ran = finish(demo, b"");
        let out = ran.ended(0);
        for part in [
            engine,
            "3 have joined and know each other",
            "6 connect by the balancer's address",
            "handled by 6 of 6, at 3 nodes",
            "kills node 3",
            "a node is",
            "are back at other nodes by themselves",
            "handled by 6 of 6, at 2 nodes",
            "All 12 steps happened",
        ] {
            assert!(out.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "`{part}` is not in\n{out}");
        }
        assert!(out.lines().all(|line| line.chars().count() <= 80), "it has room in 80 columns:\n{out}");
    }
}
