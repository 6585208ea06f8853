//! Peers of commit 03422e3, and Go applications written for it, as they speak: `golden/peers_03422e3.hex` has their
//! frames, recorded before anything was added to the wire. What they send must go on working, and what we send them
//! must go on saying at least the same.

use std::{collections::BTreeMap, time::Duration};

use bothways::{
    AdmissionOptions, Client, ClientOptions, Metadata, Push, QueueBound, Rate, Server, SessionOptions, Stage, Target,
    client::{ConnectionEvent, SessionLost},
};
use bothways_proto::{Limits, Message, keys};

use crate::{
    scripted::{Scripted, ScriptedServer},
    support::{address, settle, soon, until},
};

/// In the recorded frames, in place of a session's number and its secrets.
const SID: &str = "0123456789abcdef0123456789abcdef";
const KEY: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";
const NEXT_KEY: &str = "decade00decade00decade00decade00decade00decade00decade00decade00";

/// The recorded frames, by name.
struct Recorded(BTreeMap<&'static str, Vec<u8>>);

impl Recorded {
    fn read() -> Self {
        let lines = include_str!("golden/peers_03422e3.hex").lines();
        let frames = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
            let (name, hex) = line.split_once(' ').expect("a name and a frame");
            let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).expect("a digit")).collect();
            (name, digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
        });
        Self(frames.collect())
    }

    fn get(&self, name: &str) -> Vec<u8> {
        self.0.get(name).unwrap_or_else(|| panic!("{name} was not recorded")).clone()
    }

    /// A frame that names the session which this Welcome, or reply, has given.
    fn of_session(&self, name: &str, given: &Metadata) -> Vec<u8> {
        let frame = replaced(&self.get(name), SID, given.get(keys::SESSION_ID).expect("a session"));
        replaced(&frame, KEY, given.get(keys::SESSION_KEY).expect("a secret"))
    }

    /// What came says at least what was recorded: the same header and payload, and every pair, in any order. More
    /// pairs may be there if they are ours, which such a peer ignores.
    #[track_caller]
    fn assert_said(&self, name: &str, came: &Message) {
        let recorded = Message::parse(self.get(name).into(), &Limits::default()).expect("it was sent");
        assert_eq!(came.header(), recorded.header(), "{name}");
        assert_eq!(came.service_path(), recorded.service_path(), "{name}");
        assert_eq!(came.service_method(), recorded.service_method(), "{name}");
        assert_eq!(came.wire_payload(), recorded.wire_payload(), "{name}");
        let (said, before) = (came.metadata(), recorded.metadata());
        for (key, value) in before.iter() {
            let now = said.get(&key).unwrap_or_else(|| panic!("{name} has lost {key}"));
            let is_drawn = [keys::SESSION_ID, keys::SESSION_KEY, keys::RETRY_AFTER].contains(&&*key)
                // A peer takes a reason that it does not know for `unknown`.
                || key == keys::SESSION_WHY;
            match key == CAPABILITIES {
                // A peer takes of them what it knows.
                true => {
                    assert!(value.split(',').all(|known| now.split(',').any(|said| said == known)), "{name}: {now}")
                }
                false => assert!(now == value || is_drawn, "{name}: {key} is {now:?}"),
            }
        }
        let is_known = |key: &str| key.starts_with("_bw.") || before.get(key).is_some();
        assert!(said.iter().all(|(key, _)| is_known(&key)), "{name} says more: {said:?}");
    }
}

const CAPABILITIES: &str = "_bw.caps";

fn replaced(frame: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "lengths are part of the frame");
    let mut frame = frame.to_vec();
    if let Some(at) = frame.windows(from.len()).position(|window| window == from.as_bytes()) {
        frame[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    frame
}

fn brief(text: &str) -> Push {
    Push::new("Chat", "say", text.to_owned()).time_to_live(Duration::from_secs(1))
}

fn push(text: &str) -> Push {
    Push::new("Chat", "say", text.to_owned())
}

/// The next message, in bounded time.
async fn next(peer: &mut Scripted) -> Message {
    soon(peer.next()).await
}

/// From its first frame over acknowledgements, a gap, a lost connection and what is sent again to the Goodbye.
#[tokio::test(start_paused = true)]
async fn an_old_client_is_served_as_ever() {
    let recorded = Recorded::read();
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(recorded.get("client.hello")).await;
    let welcome = next(&mut client).await;
    recorded.assert_said("server.welcome", &welcome);
    let welcome = welcome.metadata();
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let texts = [push("a"), push("b").idempotency_key("k").expect("a key"), brief("c"), push("refused")];
    let receipts = texts.each_ref().map(|push| session.push(push).expect("small"));
    for name in ["server.push", "server.push-with-key", "server.push-brief", "server.gap"] {
        recorded.assert_said(name, &next(&mut client).await);
    }
    client.say(recorded.get("client.ack-2-1")).await;
    until(|| receipts[0].outcomes().at(Stage::Handled) == 1).await;
    assert_eq!(receipts[1].outcomes().at(Stage::Received), 1);
    client.reset();
    until(|| session.connection().is_none()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut client = Scripted::connect(listening.address()).await;
    client.say(recorded.of_session("client.resume", &welcome)).await;
    for name in ["server.welcome-resumed", "server.skip", "server.gap"] {
        recorded.assert_said(name, &next(&mut client).await);
    }
    client.say(recorded.get("client.ack-3-3")).await;
    until(|| receipts[1].outcomes().at(Stage::Handled) == 1).await;
    assert_eq!(receipts[2].outcomes().at(Stage::Expired), 1);
    let stopping = tokio::spawn(async move { server.shutdown(Duration::from_secs(1)).await });
    recorded.assert_said("server.goodbye-shutdown", &next(&mut client).await);
    soon(client.hears_the_end()).await;
    soon(stopping).await.expect("no panic");
}

/// What an old client is told whose session is over, is on another connection, or is gone.
#[tokio::test(start_paused = true)]
async fn an_old_client_is_told_what_became_of_its_session() {
    let recorded = Recorded::read();
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut first = Scripted::connect(listening.address()).await;
    first.say(recorded.get("client.hello-with-all")).await;
    let welcome = next(&mut first).await;
    recorded.assert_said("server.welcome-to-all", &welcome);
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    session.push(&push("a")).expect("small");
    session.push(&push("b")).expect("small");
    for _ in 0..2 {
        next(&mut first).await;
    }
    let mut second = Scripted::connect(listening.address()).await;
    second.say(recorded.of_session("client.resume", &welcome.metadata())).await;
    let resumed = next(&mut second).await;
    recorded.assert_said("server.welcome-resumed-2", &resumed);
    recorded.assert_said("server.goodbye-moved", &next(&mut first).await);
    session.end("enough");
    recorded.assert_said("server.goodbye-ended", &next(&mut second).await);
    let mut third = Scripted::connect(listening.address()).await;
    third.say(recorded.of_session("client.resume", &resumed.metadata())).await;
    recorded.assert_said("server.welcome-new", &next(&mut third).await);
}

#[tokio::test(start_paused = true)]
async fn an_old_client_is_refused_as_ever() {
    let recorded = Recorded::read();
    let server = Server::builder()
        .auth(|_| async { Err("no such token") })
        .admission(AdmissionOptions::new().new_sessions_rate(Some(Rate::per_second(1).burst(1))))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for name in ["server.refused-unauthenticated", "server.refused-overloaded"] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(recorded.get("client.hello-with-all")).await;
        recorded.assert_said(name, &next(&mut client).await);
        soon(client.hears_the_end()).await;
    }
}

/// Enable, Ack as a call and without a reply, Resume, and what comes behind it.
#[tokio::test(start_paused = true)]
async fn a_go_application_is_served_as_ever() {
    let recorded = Recorded::read();
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(recorded.get("go.enable")).await;
    let enabled = next(&mut client).await;
    recorded.assert_said("server.go-enabled", &enabled);
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let texts = [push("a"), push("b"), brief("c"), push("refused")];
    let receipts = texts.each_ref().map(|push| session.push(push).expect("small"));
    for name in ["server.push", "server.push-second", "server.push-brief", "server.gap"] {
        recorded.assert_said(name, &next(&mut client).await);
    }
    client.say(recorded.get("go.ack-oneway-2-1")).await;
    until(|| receipts[0].outcomes().at(Stage::Handled) == 1).await;
    client.say(recorded.get("go.ack-call-2-1")).await;
    recorded.assert_said("server.go-acked", &next(&mut client).await);
    client.reset();
    until(|| session.connection().is_none()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut client = Scripted::connect(listening.address()).await;
    client.say(recorded.of_session("go.resume", &enabled.metadata())).await;
    for name in ["server.go-resumed", "server.push-second", "server.skip", "server.gap"] {
        recorded.assert_said(name, &next(&mut client).await);
    }
    client.say(recorded.get("go.ack-call-3-3")).await;
    next(&mut client).await;
    assert_eq!([0, 1].map(|n: usize| receipts[n].outcomes().at(Stage::Handled)), [1, 1]);
}

/// A Bothways client at an old server: what it is sent it understands, also a new secret with each Welcome, and what it
/// says is what such a server takes.
#[tokio::test(start_paused = true)]
async fn an_old_server_is_spoken_to_as_ever() {
    let recorded = Recorded::read();
    let server = ScriptedServer::listen().await;
    let wait = Duration::from_millis(1);
    let connecting = tokio::spawn({
        let address = server.address.clone();
        async move { Client::bidirectional(&address, ClientOptions::new().backoff(wait, wait)).await }
    });
    let mut peer = soon(server.accept()).await;
    recorded.assert_said("client.hello", &next(&mut peer).await);
    peer.say(recorded.get("server.welcome")).await;
    let (client, mut messages) = soon(connecting).await.expect("no panic").expect("it listens");
    peer.say(recorded.get("server.push")).await;
    peer.say(recorded.get("server.push-with-key")).await;
    drop(soon(messages.next()).await.expect("it is open"));
    let held = soon(messages.next()).await.expect("it is open");
    assert_eq!(next(&mut peer).await.frame()[..], recorded.get("client.ack-2-1")[..]);
    peer.say(recorded.get("server.gap")).await;
    until(|| messages.dropped() == 1).await;
    peer.reset();

    let mut peer = soon(server.accept()).await;
    recorded.assert_said("client.resume", &next(&mut peer).await);
    peer.say(replaced(&recorded.get("server.welcome-resumed"), KEY, NEXT_KEY)).await;
    peer.say(recorded.get("server.skip")).await;
    drop(held);
    assert_eq!(next(&mut peer).await.frame()[..], recorded.get("client.ack-3-3")[..]);
    assert_eq!(messages.dropped(), 1);

    let mut events = client.events();
    for (goodbye, is_lost) in [("server.goodbye-shutdown", None), ("server.goodbye-moved", Some(SessionLost::Unknown))]
    {
        peer.say(recorded.get(goodbye)).await;
        let mut next_peer = soon(server.accept()).await;
        let hello = next(&mut next_peer).await.metadata();
        assert_eq!((hello.get(keys::SESSION_ID), hello.get(keys::SESSION_KEY)), (Some(SID), Some(NEXT_KEY)));
        match is_lost {
            None => next_peer.say(replaced(&recorded.get("server.welcome-resumed"), KEY, NEXT_KEY)).await,
            Some(_) => next_peer.say(recorded.get("server.welcome-new")).await,
        }
        peer = next_peer;
        next(&mut peer).await;
    }
    let lost = async {
        loop {
            if let ConnectionEvent::SessionLost { why, .. } = events.next().await.expect("it is open") {
                return why;
            }
        }
    };
    assert_eq!(soon(lost).await, SessionLost::Unknown);
    settle().await;
}
