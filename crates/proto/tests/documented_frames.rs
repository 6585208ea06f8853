//! Every frame in `docs/protocol.md` is the one that the code makes, and the code reads it back.

use std::{collections::BTreeMap, fs, path::Path};

use bothways_proto::{
    Capabilities, Connection, Header, Hello, Inbound, Limits, Message, Metadata, Role, Seq, SerializeType, Status,
    VERSION, keys,
};
use hex_literal::hex;

const MSGPACK: SerializeType = SerializeType::MSGPACK;
const RAW: SerializeType = SerializeType::RAW;

/// The hex blocks of the page, by name.
fn documented() -> BTreeMap<String, Vec<u8>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let blocks = page.split("```hex ").skip(1).map(|block| {
        let (name, block) = block.split_once('\n').expect("a block has lines");
        let (block, _) = block.split_once("```").expect("a block has an end");
        let code = block.lines().map(|line| line.split('#').next().unwrap_or_default());
        let digits: Vec<u32> = code.flat_map(str::chars).filter_map(|c| c.to_digit(16)).collect();
        (name.to_owned(), digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
    });
    blocks.collect()
}

/// What the code makes, in the order of the page.
fn built() -> Vec<(&'static str, Message)> {
    let none = Metadata::new();
    let call = Header::request(Seq::new(2), MSGPACK);
    let (mut client, mut server) = (Connection::<()>::new(Role::Client, 10), Connection::<()>::new(Role::Server, 10));

    let mut greeting = Metadata::new();
    Hello { version: VERSION, capabilities: Capabilities::ALL }.put(&mut greeting);
    let first_call = client.begin_call(()).expect("room");
    let hello = Message::ping(first_call, &greeting, b"");
    let Ok(Inbound::Hello(greeted, asked)) = server.handle_message(hello.clone()) else {
        panic!("it is a Hello");
    };
    let mut answer = asked.metadata();
    server.on_hello_accepted(&greeted, Capabilities::CALLS.union(Capabilities::GOODBYE)).put(&mut answer);
    let welcome = Message::new(asked.header().reply(), "", "", &answer, b"");

    let push = Header::oneway(server.next_push(), RAW);
    let to_client = Header::request(server.begin_call(()).expect("room"), MSGPACK);
    let heartbeat = Message::ping(Seq::new(3), &none, &hex!("d30000000000000005"));
    let pong = Message::parse(heartbeat.pong().into(), &Limits::default()).expect("well formed");
    let cancel = Metadata::new().with(keys::CANCEL_SEQ, first_call.to_string());
    let goodbye = Metadata::new()
        .with(keys::GOODBYE_CODE, "shutting_down")
        .with(keys::GOODBYE_WHY, "new version")
        .with(keys::GOODBYE_AFTER, "500");
    let busy = Metadata::new().with(keys::ERROR, "busy").with(keys::ERROR_CODE, "overloaded");
    let full =
        Metadata::new().with(keys::ERROR, "full").with(keys::ERROR_CODE, "overloaded").with(keys::RETRY_AFTER, "500");
    let refused_hello = Message::new(asked.header().reply().with_status(Status::ERROR), "", "", &full, b"");
    let gzip = hex!("1f8b08000000000000ff000700f8ff82a1410aa14214000000ffff0300deb9a45a07000000");
    let gzip_call = Header::request(Seq::new(1), MSGPACK).with_compress(bothways_proto::CompressType::GZIP);
    vec![
        ("call", Message::new(call, "Arith", "Mul", &none, &hex!("82a1410aa14214"))),
        ("reply", Message::new(call.reply(), "Arith", "Mul", &none, &hex!("81a143ccc8"))),
        ("failed-reply", Message::error_reply(call.with_seq(Seq::new(4)), "F", "fn", "boom")),
        ("push", Message::new(push, "p", "m", &Metadata::new().with("k", "v"), b"abcde")),
        ("heartbeat", heartbeat),
        ("heartbeat-answer", pong),
        ("gzip-call", Message::new(gzip_call, "Arith", "Mul", &Metadata::new().with("k", "v"), &gzip)),
        ("failed-reply-with-code", Message::new(call.reply().with_status(Status::ERROR), "Arith", "Mul", &busy, b"")),
        ("hello", hello),
        ("welcome", welcome),
        ("refused-hello", refused_hello),
        ("call-to-a-client", Message::new(to_client, "Chat", "last", &none, b"")),
        ("reply-of-a-client", Message::new(to_client.reply(), "Chat", "last", &none, &hex!("a26869"))),
        ("cancel", {
            let header = Header::oneway(client.next_push(), RAW);
            Message::new(header, keys::CONTROL_PATH, keys::CANCEL, &cancel, b"")
        }),
        ("leave", {
            let (header, acked) =
                (Header::oneway(client.next_push(), RAW), Metadata::new().with(keys::ACK_OFFSETS, "7,5"));
            Message::new(header, keys::CONTROL_PATH, keys::LEAVE, &acked, b"")
        }),
        ("call-by-push", {
            let number = Metadata::new().with(keys::CALL_NUMBER, to_client.seq().unmarked().to_string());
            Message::new(Header::oneway(server.next_push(), MSGPACK), "Chat", "last", &number, b"")
        }),
        ("reply-by-call", {
            let number = Metadata::new().with(keys::CALL_NUMBER, to_client.seq().unmarked().to_string());
            let header = Header::oneway(Seq::new(5), MSGPACK);
            Message::new(header, keys::CONTROL_PATH, keys::REPLY, &number, &hex!("a26869"))
        }),
        ("ack-with-outcomes", {
            let said = Metadata::new()
                .with(keys::ACK_OFFSETS, "9,1")
                .with(keys::ACK_AHEAD, "3-5,7-7")
                .with(keys::ACK_FAILED, "4:error,7:no_handler");
            let header = Header::oneway(Seq::new(1 << 62 | 1), RAW);
            Message::new(header, keys::CONTROL_PATH, keys::ACK, &said, b"")
        }),
        ("skip", Message::new(Header::oneway(Seq::of_push(5), RAW), keys::CONTROL_PATH, keys::SKIP, &none, b"")),
        ("goodbye", {
            let header = Header::oneway(server.next_push(), RAW);
            Message::new(header, keys::CONTROL_PATH, keys::GOODBYE, &goodbye, b"")
        }),
        ("taken", {
            let (header, taken) =
                (Header::oneway(server.next_push(), RAW), Metadata::new().with(keys::TAKEN_COUNT, "7"));
            Message::new(header, keys::CONTROL_PATH, keys::TAKEN, &taken, b"")
        }),
        ("subscribe", {
            let args = hex!("83 a5546f706963 a46e657773 a545706f6368 cd03e8 a64f6666736574 04");
            Message::new(call, keys::CONTROL_PATH, keys::SUBSCRIBE, &none, &args)
        }),
        ("published", {
            let position =
                Metadata::new().with(keys::TOPIC, "news").with(keys::TOPIC_EPOCH, "1000").with(keys::TOPIC_OFFSET, "5");
            Message::new(Header::oneway(Seq::of_push(1), RAW), "News", "say", &position, b"hi")
        }),
    ]
}

/// The page shows exactly these frames, byte for byte.
#[test]
fn the_page_shows_what_the_code_sends() {
    let (mut documented, limits) = (documented(), Limits::default());
    for (name, message) in built() {
        let shown = documented.remove(name).unwrap_or_else(|| panic!("{name} is not on the page"));
        let hex: String = message.frame().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(shown == message.frame()[..], "{name} is {hex}");
        assert_eq!(Message::parse(shown.into(), &limits), Ok(message), "{name}");
    }
    assert_eq!(documented.keys().collect::<Vec<_>>(), [""; 0], "nothing makes these");
}
