//! Payloads worth packing.

use bothways::{CallError, Client, ClientOptions, ErrorCode, Limits, Metadata, Router, SerializeType, codec::Raw};
use bothways_proto::{CompressType, Header, Message, Seq, gzip};

use crate::{
    scripted::{Scripted, ScriptedServer, ping, reply_to},
    support::{address, call, connections, echo, echoing, soon, until},
};

fn packed_request(payload: &[u8]) -> Vec<u8> {
    let header = Header::request(Seq::new(1), SerializeType::RAW).with_compress(CompressType::GZIP);
    Message::new(header, "T", "Echo", &Metadata::new(), &gzip(payload)).frame().to_vec()
}

/// 1.6. Arguments above 1,024 bytes are packed if that is wanted, smaller ones never.
#[tokio::test(start_paused = true)]
async fn arguments_are_packed_above_1024_bytes() {
    for (compress, len, packed) in
        [(CompressType::GZIP, 1024, false), (CompressType::GZIP, 1025, true), (CompressType::NONE, 100_000, false)]
    {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().compress(compress);
        let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
        let client = client.expect("it listens");
        let script = async {
            let request = peer.next().await;
            assert_eq!(request.header().compress() == CompressType::GZIP, packed);
            assert_eq!(request.payload(&Limits::default()).expect("valid").len(), len);
            assert_eq!(request.wire_payload().len() < len, packed);
            peer.say(reply_to(&request, b"")).await;
        };
        let (answer, ()) = tokio::join!(call(&client, "Ask", vec![b'x'; len]), script);
        answer.expect("answered");
    }
}

/// 1.6. A reply is packed if it is above 1,024 bytes and its request was packed.
#[tokio::test(start_paused = true)]
async fn replies_are_packed_as_their_requests() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    for (len, packed) in [(1024, false), (1025, true)] {
        client.say(packed_request(&vec![b'x'; len])).await;
        let answer = client.next().await;
        assert_eq!(answer.header().compress() == CompressType::GZIP, packed);
        assert_eq!(answer.payload(&Limits::default()).expect("valid").len(), len);
    }
    client.say(crate::scripted::request(1, "Echo", &[b'x'; 5000])).await;
    assert_eq!(client.next().await.header().compress(), CompressType::NONE);
}

/// S3, W1. A payload that unpacks to too much, or not at all, costs its call and nothing else.
#[tokio::test(start_paused = true)]
async fn a_bomb_costs_one_call() {
    let read = |request: bothways::Request| {
        std::future::ready(match request.into_typed::<Raw>() {
            Ok((_, payload)) => bothways::Reply::ok(payload.0),
            Err(refusal) => refusal,
        })
    };
    let server = bothways::Server::builder()
        .handler("T", "Echo", read)
        .limits(Limits::default().decompressed_bytes_max(10_000))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let mut broken = packed_request(&[0; 100]);
    let at = broken.len() - 20;
    broken[at] ^= 0xff;
    for bad in [packed_request(&[0; 10_001]), broken] {
        client.say(bad).await;
        let answer = client.next().await;
        assert!(answer.error_text().is_some(), "{answer:?}");
        assert_eq!(answer.metadata().get(bothways_proto::keys::ERROR_CODE), Some(ErrorCode::BadArguments.name()));
    }
    client.say(packed_request(&[0; 10_000])).await;
    assert!(client.next().await.error_text().is_none());
}

/// Both ends of ours pack, in both directions, and nobody notices.
#[tokio::test(start_paused = true)]
async fn packing_is_not_noticed() {
    let server = echoing().compress(CompressType::GZIP).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().compress(CompressType::GZIP);
    let handlers = Router::new().handler("T", "Echo", echo);
    let client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
    let connection = connections(&server, 1).await.remove(0);
    until(|| connection.takes_calls()).await;
    for len in [0, 1, 1024, 1025, 1_000_000] {
        let payload: Vec<u8> = (0..len).map(|n: u32| (n / 7) as u8).collect();
        assert_eq!(call(&client, "Echo", payload.clone()).await.expect("answered")[..], payload);
        assert_eq!(call(&connection, "Echo", payload.clone()).await.expect("answered")[..], payload);
    }
    assert!(client.stats().written_bytes < 500_000, "it travelled packed");
}

/// A packed reply that unpacks to too much is an error of that call, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn a_bomb_in_a_reply_costs_one_call() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().limits(Limits::default().decompressed_bytes_max(1000));
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it listens");
    for len in [1001, 1000] {
        let script = async {
            let request = peer.next().await;
            let header = request.header().reply().with_compress(CompressType::GZIP);
            peer.say(Message::new(header, "T", "Ask", &Metadata::new(), &gzip(&vec![0; len])).frame()).await;
        };
        let (answer, ()) = tokio::join!(call(&client, "Ask", ""), script);
        match len {
            1000 => assert_eq!(answer.expect("it fits").len(), 1000),
            _ => assert!(matches!(answer, Err(CallError::Decode(_)))),
        }
    }
}

/// A packed message that unpacks to too much is an error for its reader, and the next one is read.
#[tokio::test(start_paused = true)]
async fn a_bomb_in_a_message_costs_that_message() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().limits(Limits::default().decompressed_bytes_max(1000));
    let (client, mut peer) = tokio::join!(Client::bidirectional(&server.address, options), server.accept_plain());
    let (_client, mut messages) = client.expect("it listens");
    for len in [1001, 1000] {
        let header = Header::oneway(Seq::new(1), SerializeType::RAW).with_compress(CompressType::GZIP);
        peer.say(Message::new(header, "T", "Tell", &Metadata::new(), &gzip(&vec![0; len])).frame()).await;
        let message = soon(messages.next()).await.expect("it is up");
        assert_eq!(message.payload().map(|payload| payload.len()).ok(), Some(len).filter(|len| *len == 1000));
    }
}

/// A large payload is unpacked, and a large reply packed, apart from the connection's own task: what the client
/// sends behind it is answered first.
#[tokio::test(start_paused = true)]
async fn large_payloads_do_not_hold_up_their_connection() {
    let large = || vec![7; 8 << 20];
    let server = bothways::Server::builder()
        .function("T", "Count", |payload: Raw| {
            std::future::ready(Ok::<_, String>(Raw::from(payload.0.len().to_string().into_bytes())))
        })
        .function("T", "Large", move |_: Raw| std::future::ready(Ok::<_, String>(Raw::from(large()))))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let header = Header::request(Seq::new(1), SerializeType::RAW).with_compress(CompressType::GZIP);
    for (method, payload, in_line) in
        [("Count", vec![7; 200 << 10], true), ("Count", large(), false), ("Large", Vec::new(), false)]
    {
        let request = Message::new(header, "T", method, &Metadata::new(), &gzip(&payload));
        client.say([&request.frame()[..], &ping(2)].concat()).await;
        let answers = [client.next().await, client.next().await];
        assert_eq!(answers[0].header().is_heartbeat(), !in_line, "{method}");
        let answer = answers.iter().find(|answer| !answer.header().is_heartbeat()).expect("one of them");
        let answer = answer.payload(&Limits::default()).expect("valid");
        match method {
            "Count" => assert_eq!(answer, payload.len().to_string()),
            _ => assert_eq!(answer, large()),
        }
    }
}

/// What a payload says of its own size is not believed: in line no more is unpacked than goes in line.
#[tokio::test(start_paused = true)]
async fn a_payload_that_lies_about_its_size_does_not_hold_up_its_connection() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let mut lie = packed_request(&vec![7; 8 << 20]);
    let at = lie.len() - 4;
    lie[at..].copy_from_slice(&1000_u32.to_le_bytes());
    client.say([&lie[..], &ping(2)].concat()).await;
    assert!(client.next().await.header().is_heartbeat());
    assert!(client.next().await.error_text().is_some());
}
