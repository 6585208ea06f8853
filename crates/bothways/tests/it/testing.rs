//! The test kit: wires break where they are told to.

use std::time::Duration;

use bothways::{
    ClientOptions, ConnectionEvent, Push, Receipt, Server, Session, Stage, Target,
    testing::{Direction, Network, TestClient, run},
};

use crate::support::until;

async fn connected() -> (Network, TestClient, Session) {
    let network = Network::new(Server::builder().build()).await.expect("a name of its own");
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let client = network.client(options).await.expect("it listens");
    client.welcomed().await;
    let session = network.server().sessions(&Target::everyone()).expect("no topic")[0].clone();
    (network, client, session)
}

fn push(session: &Session, numbers: std::ops::Range<u32>) -> Vec<Receipt> {
    numbers.map(|number| session.push(&Push::new("T", "N", number.to_string())).expect("small")).collect()
}

/// The next messages are these, and their receipts say so.
async fn all_arrive(client: &mut TestClient, receipts: Vec<Receipt>) {
    for (number, receipt) in receipts.into_iter().enumerate() {
        let message = client.messages.next().await.expect("the client is open");
        assert_eq!(message.payload().expect("not packed"), number.to_string());
        drop(message);
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    }
    assert!(client.messages.try_next().is_none());
}

#[test]
fn a_cut_after_the_seventh_push_comes_after_the_seventh_push() {
    run(async {
        let (_network, mut client, session) = connected().await;
        client.wire.cut_after_push(7);
        let mut events = client.client.events();
        let receipts = push(&session, 0..20);
        assert!(matches!(events.next().await, Some(ConnectionEvent::Lost { .. })));
        assert_eq!((client.wire.pushes(), client.messages.len()), (7, 7));
        all_arrive(&mut client, receipts).await;
        assert_eq!((client.wire.connections(), session.generation()), (2, 2));
    });
}

#[test]
fn a_cut_inside_a_frame_is_seen_as_one() {
    run(async {
        let (_network, mut client, session) = connected().await;
        let mut events = client.client.events();
        client.wire.cut_inside_frame(Direction::ToClient, 20);
        let receipts = push(&session, 0..3);
        let lost = events.next().await;
        assert!(format!("{lost:?}").contains("MidFrame"), "{lost:?}");
        all_arrive(&mut client, receipts).await;
    });
}

#[test]
fn who_does_not_read_gets_everything_later() {
    run(async {
        let (_network, mut client, session) = connected().await;
        client.wire.freeze_reader();
        let receipts = push(&session, 0..10);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((client.messages.len(), receipts[9].outcomes().at(Stage::Written)), (0, 1));
        client.wire.thaw();
        all_arrive(&mut client, receipts).await;
        assert_eq!(client.wire.connections(), 1);
    });
}

#[test]
fn a_lost_acknowledgement_is_made_good_by_the_next() {
    run(async {
        let (_network, mut client, session) = connected().await;
        client.wire.drop_ack(1);
        let receipts = push(&session, 0..1);
        drop(client.messages.next().await);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(receipts[0].outcomes().at(Stage::Written), 1);
        let more = push(&session, 1..2);
        drop(client.messages.next().await);
        for receipt in receipts.into_iter().chain(more) {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        }
    });
}

#[test]
fn a_stranded_server_is_relieved_when_the_client_comes_back() {
    run(async {
        let (network, mut client, session) = connected().await;
        client.wire.refuse();
        client.wire.strand();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(network.server().connections().len(), 1, "it does not know");
        let receipts = push(&session, 0..3);
        assert_eq!(receipts[2].written().await.at(Stage::Written), 1, "the kernel took them");
        client.wire.admit();
        all_arrive(&mut client, receipts).await;
        until(|| network.server().connections().len() == 1).await;
        assert_eq!(session.generation(), 2);
    });
}

#[test]
fn of_two_claims_one_gets_the_session_and_the_client_keeps_it() {
    run(async {
        let (network, mut client, session) = connected().await;
        client.wire.claim_twice();
        client.wire.cut();
        let receipts = push(&session, 0..3);
        all_arrive(&mut client, receipts).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(2 <= session.generation(), "one of the two was let in, and the client with it or after it");
        assert_eq!(network.server().connections().len(), 1, "the one that lost it was sent away");
    });
}
