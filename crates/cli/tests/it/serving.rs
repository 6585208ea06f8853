//! `bothways serve`: how it starts and how it stops.

#[cfg(unix)]
use crate::support::{Running, bothways};
use crate::support::{Serving, run};

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
