//! Two connections that talk to each other in memory: by script, and at random.

use bothways_proto::{
    Capabilities, Connection, Greeting, Header, Hello, Inbound, Message, Metadata, PeerMisbehaved, Role, Seq,
    SerializeType, TooManyCalls, VERSION, Welcome, keys,
};
use proptest::{collection::vec, prelude::*};

mod driver;

use driver::Tally;

fn hello(seq: Seq, capabilities: Capabilities) -> Message {
    let mut metadata = Metadata::new();
    Hello { version: VERSION, capabilities }.put(&mut metadata);
    Message::ping(seq, &metadata, b"")
}

fn request(seq: Seq) -> Message {
    Message::new(Header::request(seq, SerializeType::RAW), "Arith", "Mul", &Metadata::new(), b"")
}

fn reply(seq: Seq) -> Message {
    Message::new(Header::request(seq, SerializeType::RAW).reply(), "Arith", "Mul", &Metadata::new(), b"")
}

fn control(method: &str, metadata: Metadata) -> Message {
    Message::new(Header::oneway(Seq::new(1), SerializeType::RAW), keys::CONTROL_PATH, method, &metadata, b"")
}

/// A client and a server that agreed on these.
fn agreed(capabilities: Capabilities) -> (Connection<&'static str>, Connection<&'static str>) {
    let (mut client, mut server) = (Connection::new(Role::Client, 10), Connection::new(Role::Server, 10));
    let seq = client.begin_call("hello").expect("room");
    let Inbound::Hello(hello, asked) = server.handle_message(hello(seq, capabilities)).expect("polite") else {
        panic!("the first frame of a client with `_bw.v` is a Hello");
    };
    let mut metadata = asked.metadata();
    server.on_hello_accepted(&hello, Capabilities::ALL).put(&mut metadata);
    server.on_welcome_sent();
    let answer = Message::new(asked.header().reply(), "", "", &metadata, b"");
    let Inbound::Reply("hello", answer) = client.handle_message(answer).expect("polite") else {
        panic!("the Welcome answers the Hello");
    };
    assert_eq!(client.on_welcome_received(&answer), Some(Welcome { version: VERSION, capabilities }));
    (client, server)
}

/// A client that speaks first without a Hello is plain, and stays it.
#[test]
fn a_client_that_begins_without_a_hello_is_plain() {
    let mut server = Connection::<()>::new(Role::Server, 10);
    assert_eq!(server.greeting(), Greeting::Unknown);
    assert!(matches!(server.handle_message(request(Seq::new(0))), Ok(Inbound::Call(_))));
    assert_eq!(server.greeting(), Greeting::Plain { listens: false });
    let late = server.handle_message(hello(Seq::new(1), Capabilities::ALL));
    assert_eq!(late.expect_err("it is late"), PeerMisbehaved::LateHello);
}

/// A second Hello is late, whatever came of the first.
#[test]
fn a_second_hello_closes() {
    let (_, mut server) = agreed(Capabilities::ALL);
    let second = server.handle_message(hello(Seq::new(9), Capabilities::ALL));
    assert_eq!(second.expect_err("one is enough"), PeerMisbehaved::LateHello);
}

/// A Go server echoes a Hello, so its client knows that it is plain.
#[test]
fn a_server_that_echoes_the_hello_is_plain() {
    let mut client = Connection::new(Role::Client, 10);
    let seq = client.begin_call(()).expect("room");
    let echo = Message::parse(hello(seq, Capabilities::ALL).pong().into(), &Default::default()).expect("well formed");
    let Ok(Inbound::Reply((), echo)) = client.handle_message(echo) else {
        panic!("the echo answers the Hello");
    };
    assert_eq!(client.on_welcome_received(&echo), None);
    assert_eq!(client.greeting(), Greeting::Plain { listens: false });
}

/// What a client sends right behind its Hello, before anybody looked at the token, is plain traffic.
#[test]
fn calls_behind_a_hello_are_calls() {
    let mut server = Connection::<()>::new(Role::Server, 10);
    assert!(matches!(server.handle_message(hello(Seq::new(0), Capabilities::ALL)), Ok(Inbound::Hello(..))));
    assert!(matches!(server.handle_message(request(Seq::new(1))), Ok(Inbound::Call(_))));
    assert!(!server.peer_can(Capabilities::CALLS));
}

/// A server's call goes out under a marked number and its reply comes home by it.
#[test]
fn a_call_to_a_client_comes_home() {
    let (mut client, mut server) = agreed(Capabilities::ALL);
    let seq = server.begin_call("who").expect("room");
    assert!(seq.is_call_to_client());
    assert!(matches!(client.handle_message(request(seq)), Ok(Inbound::Call(_))));
    assert!(matches!(server.handle_message(reply(seq)), Ok(Inbound::Reply("who", _))));
    assert!(matches!(server.handle_message(reply(seq)), Ok(Inbound::Late(_))));
}

/// The client and the server each have a call in the first place of their table; neither takes the
/// other's number for its own.
#[test]
fn numbers_of_both_sides_do_not_meet() {
    let (mut client, mut server) = agreed(Capabilities::ALL);
    let to_server = client.begin_call("of the client").expect("room");
    let to_client = server.begin_call("of the server").expect("room");
    assert!(matches!(client.handle_message(reply(to_client)), Ok(Inbound::Late(_))));
    assert!(matches!(server.handle_message(reply(to_server)), Ok(Inbound::Late(_))));
    assert_eq!((client.calls().len(), server.calls().len()), (1, 1));
}

/// A reply from a client that agreed on something else is not taken.
#[test]
fn a_reply_without_agreed_calls_closes() {
    let (_, mut server) = agreed(Capabilities::PING.union(Capabilities::CANCEL));
    let seq = server.begin_call("never sent").expect("room");
    let refused = server.handle_message(reply(seq)).expect_err("calls were not agreed");
    assert_eq!(refused, PeerMisbehaved::ReplyFromPlainClient(seq));
    assert_eq!(server.drain().collect::<Vec<_>>(), ["never sent"]);
}

/// The answer to a server's heartbeat needs agreed heartbeats, and no agreed calls.
#[test]
fn a_client_answers_agreed_heartbeats() {
    let (mut client, mut server) = agreed(Capabilities::PING);
    let seq = server.begin_call("alive?").expect("room");
    let Ok(Inbound::Ping(ping)) = client.handle_message(Message::ping(seq, &Metadata::new(), b"now")) else {
        panic!("heartbeats were agreed");
    };
    let pong = Message::parse(ping.pong().into(), &Default::default()).expect("well formed");
    assert!(matches!(server.handle_message(pong), Ok(Inbound::Reply("alive?", _))));
}

/// Cancel says which call, by the number that the call had on the wire.
#[test]
fn a_cancel_names_the_call() {
    let (_, mut server) = agreed(Capabilities::CANCEL);
    let named = control(keys::CANCEL, Metadata::new().with(keys::CANCEL_SEQ, "4294967297"));
    assert!(matches!(server.handle_message(named), Ok(Inbound::Cancel(seq)) if seq == Seq::new(4_294_967_297)));
    for unreadable in [Metadata::new(), Metadata::new().with(keys::CANCEL_SEQ, "x")] {
        assert!(matches!(server.handle_message(control(keys::CANCEL, unreadable)), Ok(Inbound::Push(_))));
    }
}

/// Between peers that agreed on nothing, `_bothways` is a service like any other.
#[test]
fn control_messages_of_a_plain_peer_are_pushes() {
    let mut server = Connection::<()>::new(Role::Server, 10);
    let cancel = control(keys::CANCEL, Metadata::new().with(keys::CANCEL_SEQ, "1"));
    assert!(matches!(server.handle_message(cancel), Ok(Inbound::Push(_))));
    let mut client = Connection::<()>::new(Role::Client, 10);
    assert!(matches!(client.handle_message(control(keys::GOODBYE, Metadata::new())), Ok(Inbound::Push(_))));
}

/// Only a server says goodbye, and only to a client that understands it.
#[test]
fn goodbye_goes_to_clients_that_understand_it() {
    let (mut client, mut server) = agreed(Capabilities::GOODBYE);
    assert!(matches!(client.handle_message(control(keys::GOODBYE, Metadata::new())), Ok(Inbound::Goodbye(_))));
    assert!(matches!(server.handle_message(control(keys::GOODBYE, Metadata::new())), Ok(Inbound::Push(_))));
    let (mut client, _) = agreed(Capabilities::CANCEL);
    assert!(matches!(client.handle_message(control(keys::GOODBYE, Metadata::new())), Ok(Inbound::Push(_))));
}

/// A client's oneway calls have numbers that no call can have; a server's pushes have none but the mark.
#[test]
fn pushes_are_numbered_apart() {
    let mut server = Connection::<()>::new(Role::Server, 10);
    assert_eq!([server.next_push(), server.next_push()].map(Seq::get), [1 << 63, 1 << 63]);
    let mut client = Connection::<()>::new(Role::Client, 10);
    assert_eq!([client.next_push(), client.next_push()].map(Seq::get), [1 << 62 | 1, 1 << 62 | 2]);
}

/// The number of a push forgets no call, although its lower bits are those of one.
#[test]
fn forgetting_a_push_forgets_no_call() {
    let mut server = Connection::new(Role::Server, 1);
    let seq = server.begin_call("waits").expect("room");
    assert_eq!(server.forget(Seq::of_push(seq.unmarked())), None);
    assert_eq!(server.begin_call("refused"), Err(TooManyCalls { max: 1 }));
    assert_eq!(server.forget(seq), Some("waits"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever both sides do, in whatever order and pieces it arrives, each call ends once, by its own
    /// reply, and each message means what it should.
    #[test]
    fn two_connections_agree_with_the_model(bytes in vec(any::<u8>(), 0..1200)) {
        driver::run(&bytes, &mut Tally::default());
    }
}

/// The random conversations above come by everything that can happen in one.
#[test]
fn the_driver_comes_by_everything() {
    let (mut tally, mut state) = (Tally::default(), 0x9e37_79b9_7f4a_7c15_u64);
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(400_000)
    .collect();
    driver::run(&bytes, &mut tally);
    for what in [
        "call",
        "call from a plain server",
        "call to a client",
        "cancel",
        "drained",
        "echo of a hello",
        "forgotten",
        "goodbye",
        "goodbye that is a push",
        "hello",
        "late hello",
        "late reply",
        "late reply of a client",
        "ping",
        "ping from a plain server",
        "ping to a client",
        "push",
        "reply",
        "reply of a client",
        "reply of a plain client",
        "too many calls",
        "welcome",
    ] {
        assert!(10 < tally.seen.get(what).copied().unwrap_or_default(), "{what}: {tally:?}");
    }
}
