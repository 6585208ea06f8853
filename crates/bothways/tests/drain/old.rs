//! Clients that know nothing of many nodes: applications on `_bothways`, and older clients of ours, which do not number
//! their attempts. Their node stops, and they go on at another one.

use std::time::Duration;

use bothways::{
    Metadata, Push, Receipt, SerializeType, Server, Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
    server::Listening,
    testing,
};
use bothways_proto::{Capabilities, Header, Message, Seq, Status, keys};

use crate::{
    scripted::{Scripted, hello},
    support::{address, server, until},
};

async fn node(broker: &MemoryBroker) -> (Server, Listening) {
    let server = server();
    server.join(Cluster::new(broker.engine())).await.expect("the engine works");
    let listening = server.listen(&address()).await.expect("the name is free");
    (server, listening)
}

/// Pushed to ann, wherever she is.
fn letter(from: &Server, text: &str) -> Receipt {
    from.push(&Target::user("ann"), &Push::new("Mail", "New", text.to_owned())).expect("a small push")
}

/// What a client shows of its session. No number of an attempt.
fn shown(welcome: &Metadata, handled: u64) -> Metadata {
    let said = |key| welcome.get(key).expect("it has a session").to_owned();
    Metadata::new()
        .with(keys::AUTH, "ann")
        .with(keys::SESSION_ID, said(keys::SESSION_ID))
        .with(keys::SESSION_KEY, said(keys::SESSION_KEY))
        .with(keys::SESSION_OFFSET, handled.to_string())
}

fn request(seq: u64, method: &str, pairs: &Metadata) -> bytes::Bytes {
    let header = Header::request(Seq::new(seq), SerializeType::RAW);
    Message::new(header, keys::CONTROL_PATH, method, pairs, b"").frame().clone()
}

fn oneway(seq: u64, method: &str, pairs: &Metadata) -> bytes::Bytes {
    let header = Header::oneway(Seq::new(seq), SerializeType::RAW);
    Message::new(header, keys::CONTROL_PATH, method, pairs, b"").frame().clone()
}

/// The next push of an application.
async fn next_push(client: &mut Scripted) -> (Seq, String) {
    loop {
        let message = client.next().await;
        if message.service_path() == "Mail" {
            return (message.header().seq(), String::from_utf8(message.wire_payload().to_vec()).expect("a text"));
        }
    }
}

/// How a client comes: `Enable` or `Resume` of an application on an unmodified library, or a Hello.
async fn comes(address: &str, is_plain: bool, session: Option<&Metadata>) -> (Scripted, Metadata) {
    let mut client = Scripted::connect(address).await;
    let pairs = session.cloned().unwrap_or_else(|| Metadata::new().with(keys::AUTH, "ann"));
    let method = if session.is_some() { keys::RESUME } else { keys::ENABLE };
    let said = if is_plain { request(7, method, &pairs) } else { hello(0, Capabilities::ALL, &pairs).into() };
    client.say(said).await;
    let answer = client.next().await;
    assert_eq!(answer.header().status(), Status::NORMAL, "{:?}", answer.error_text());
    (client, answer.metadata())
}

/// Its node stops. It comes to another node with what it knows of its session, and gets there what it had not handled, once;
/// the receipts say so.
#[test]
fn clients_that_know_of_no_nodes_go_on_at_another_one() {
    for is_plain in [true, false] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let (one, at_one) = node(&broker).await;
            let (other, at_other) = node(&broker).await;
            let (origin, _at_origin) = node(&broker).await;
            for server in [&one, &other, &origin] {
                until("all know each other", || server.members().len() == 3).await;
            }

            let (mut client, welcome) = comes(at_one.address(), is_plain, None).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut receipts = Vec::new();
            for text in ["first", "second", "third"] {
                receipts.push(letter(&origin, text));
                assert_eq!(next_push(&mut client).await, (Seq::of_push(receipts.len() as u64), text.to_owned()));
            }
            let acks = Metadata::new().with(keys::AUTH, "ann").with(keys::ACK_OFFSETS, "1,1");
            client.say(oneway(8, keys::ACK, &acks)).await;
            assert_eq!(receipts[0].handled().await.at(Stage::Handled), 1);

            let report = one.drain(Duration::from_secs(5), 100).await;
            assert_eq!((report.sessions_parked, report.sessions_left), (1, 0), "{report:?}");
            drop(client);
            let (mut client, again) = comes(at_other.address(), is_plain, Some(&shown(&welcome, 1))).await;
            assert_eq!(again.get(keys::SESSION_RESUMED), Some("1"), "{again:?}");
            receipts.push(letter(&origin, "fourth"));
            for (offset, text) in [(2, "second"), (3, "third"), (4, "fourth")] {
                assert_eq!(next_push(&mut client).await, (Seq::of_push(offset), text.to_owned()), "plain: {is_plain}");
            }
            let acks = Metadata::new().with(keys::AUTH, "ann").with(keys::ACK_OFFSETS, "4,4");
            client.say(oneway(9, keys::ACK, &acks)).await;
            for receipt in &receipts {
                assert_eq!(receipt.handled().await.at(Stage::Handled), 1, "{receipt:?}");
            }
        });
    }
}
