//! What a peer sees that negotiated nothing: rpcx, and nothing more. No Go needed.

use std::time::{Duration, Instant};

use bothways::{Metadata, SerializeType, server::Listening};
use bothways_interop::{LONG, contract, wire::RawConnection};
use bothways_proto::{Header, Message, Seq, keys};

async fn server() -> Listening {
    contract::server(None).build().listen("tcp@127.0.0.1:0").await.expect("a port is free")
}

async fn connect(server: &Listening) -> RawConnection {
    RawConnection::connect(server.address().strip_prefix("tcp@").expect("it is TCP")).await
}

fn request(seq: u64, serialize: u8, method: &str, metadata: &Metadata, payload: &[u8]) -> Message {
    let serialize = SerializeType::new(serialize).expect("four bits");
    Message::new(Header::request(Seq::new(seq), serialize), "Arith", method, metadata, payload)
}

/// `Args { A: 500, B: 7 }` in MessagePack.
const ARGS: &[u8] = b"\x82\xa1A\xcd\x01\xf4\xa1B\x07";

/// Codes of errors are for peers that know them.
#[tokio::test]
async fn an_error_has_a_text_and_no_code() {
    let server = server().await;
    let mut plain = connect(&server).await;
    for (method, text) in [("Nope", Some("rpcx: can't find method Nope")), ("Err", Some("boom")), ("Panic", None)] {
        plain.send_message(&request(1, 3, method, &Metadata::new(), ARGS)).await;
        let reply = plain.receive(LONG).await.expect("a reply");
        let metadata = reply.metadata();
        assert_eq!(metadata.pairs().count(), 1, "{metadata:?}");
        let said = metadata.get(keys::ERROR).expect("the text of the error");
        assert!(text.is_none_or(|text| said == text), "{said}");
    }
}

/// A peer that negotiated is told what kind of error it is.
#[tokio::test]
async fn a_negotiated_error_has_a_code() {
    let server = server().await;
    let mut negotiated = connect(&server).await;
    let mut metadata = Metadata::new();
    let capabilities = bothways_proto::Capabilities::ALL;
    bothways_proto::Hello { version: bothways_proto::VERSION, capabilities }.put(&mut metadata);
    negotiated.send_message(&Message::ping(Seq::new(1), &metadata, b"")).await;
    negotiated.receive(LONG).await.expect("a welcome");
    negotiated.send_message(&request(2, 3, "Nope", &Metadata::new(), ARGS)).await;
    let reply = negotiated.receive(LONG).await.expect("a reply");
    assert_eq!(reply.metadata().get(keys::ERROR_CODE), Some("not_found"));
}

/// Go's text for a codec that nobody has.
#[tokio::test]
async fn an_unknown_codec_is_refused_in_gos_words() {
    let server = server().await;
    let mut plain = connect(&server).await;
    for serialize in 5..16 {
        plain.send_message(&request(1, serialize, "Mul", &Metadata::new(), b"x")).await;
        let reply = plain.receive(LONG).await.expect("a reply");
        assert_eq!(reply.error_text(), Some(format!("can not find codec for {serialize}")));
        assert_eq!(reply.header().serialize().get(), serialize);
    }
    plain.send_message(&request(1, 2, "Mul", &Metadata::new(), b"x")).await;
    let text = plain.receive(LONG).await.expect("a reply").error_text().expect("an error");
    assert!(text.contains("cannot travel as protobuf"), "{text}");
}

/// The caller's own deadline comes before the server's refusal because of it: the caller sent whole
/// milliseconds, and would take an early refusal for the outcome.
#[tokio::test]
async fn a_deadline_is_the_callers_to_notice() {
    let server = server().await;
    let mut plain = connect(&server).await;
    let began = Instant::now();
    let metadata = Metadata::new().with(keys::SERVER_TIMEOUT, "50");
    plain.send_message(&request(1, 3, "Sleep", &metadata, ARGS)).await;
    let reply = plain.receive(LONG).await.expect("a reply");
    assert!(reply.error_text().is_some_and(|text| text.contains("deadline")), "{reply:?}");
    assert!(Duration::from_millis(150) < began.elapsed(), "{:?}", began.elapsed());
}
