//! Histories and mailboxes over the broker, to which much is appended at once, also while a part of it is killed.

#[allow(dead_code)]
mod support;

use std::{sync::Arc, time::Duration};

use bothways::{
    Client, ClientOptions, Push, Receipt, ServerMessages, Target,
    cluster::{
        Store as _,
        engine::{AppendError, Log, NewEntry},
    },
    session::TopicOptions,
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use support::{LONG, Node, run, until};
use tokio::time::{Instant, sleep, timeout};

const KEEP: Duration = Duration::from_secs(3600);

/// All that comes to a client, each handled at once.
fn collect(mut messages: ServerMessages) -> Arc<Mutex<Vec<String>>> {
    let came = Arc::<Mutex<Vec<String>>>::default();
    let all = Arc::clone(&came);
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let text = message.payload().expect("not packed").to_vec();
            all.lock().push(String::from_utf8(text).expect("a text"));
        }
    });
    came
}

/// What the broker says of the stream in which a topic is.
async fn stream_of(broker: &Broker, through: usize, subject: &str) -> Value {
    let client = async_nats::connect(&broker.addresses()[through]).await.expect("it listens");
    let deadline = Instant::now() + LONG;
    loop {
        for number in 0..4 {
            let (name, filter) = (format!("bw_bothways_h{number}"), format!(r#"{{"subjects_filter":"{subject}"}}"#));
            let info = client.request(format!("$JS.API.STREAM.INFO.{name}"), filter.into()).await;
            let info: Value = info.ok().and_then(|info| serde_json::from_slice(&info.payload).ok()).unwrap_or_default();
            let is_led = info["cluster"].is_null() || info["cluster"]["leader"].is_string();
            if info["state"]["subjects"].is_object() && is_led {
                return info;
            }
        }
        assert!(Instant::now() < deadline, "no stream has {subject}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Three servers store what comes together in one turn; one server, and a mailbox, one behind the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_is_appended_to_in_batches() {
    for (broker, expected) in [(Broker::one(), false), (Broker::three(), true)] {
        let Some(broker) = broker else { return };
        let one = NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works");
        let entries = |from: usize| -> Vec<NewEntry> {
            (from..from + 200).map(|number| NewEntry::new(number.to_string()).with_key(number.to_string())).collect()
        };
        for log in [Log::History("news".to_owned()), Log::Mailbox("ann".to_owned())] {
            let began = Instant::now();
            let stored = one.append_all(log.clone(), entries(0)).await;
            println!("{log} at {} servers: 200 in {:?}", broker.count(), began.elapsed());
            assert!(stored.iter().all(Result::is_ok), "{stored:?}");
            let began = Instant::now();
            for entry in entries(1000).into_iter().take(50) {
                one.append(log.clone(), entry).await.expect("there is room");
            }
            println!("one after another: 50 in {:?}", began.elapsed());
        }
        let info = stream_of(&broker, 0, "bw.bothways.h.*.news").await;
        let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
        let name = info["config"]["name"].as_str().expect("it has one");
        let got = client.request(format!("$JS.API.STREAM.MSG.GET.{name}"), r#"{"seq":7}"#.into()).await;
        let got: Value = serde_json::from_slice(&got.expect("it answers").payload).expect("JSON");
        let headers = got["message"]["hdrs"].as_str().expect("they have headers");
        let headers = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, headers).expect("base64");
        assert_eq!(String::from_utf8_lossy(&headers).contains("Nats-Batch-Id"), expected);
    }
}

/// Publishes go on while the leader of their topic's history is killed: those that are said to be stored come at another node,
/// each once, in the order of the publishes; and so does what is not known, if it comes.
#[test]
fn publishes_stay_in_order_when_a_leader_is_killed() {
    let Some(mut broker) = Broker::three() else { return };
    // The nodes are at servers that stay: which one leads is known later.
    let node = || {
        let options = NatsOptions::new(broker.addresses()).history_entries_max(10_000);
        let kept = TopicOptions::new().history(10_000, KEEP);
        Node::start(options, "news", |server| server.topic("news", kept).expect("a topic"))
    };
    let [one, other] = [node(), node()];
    run(async {
        let options = ClientOptions::new().auth("ann");
        let (_ann, messages) = Client::bidirectional(other.listening.address(), options).await.expect("it listens");
        let came = collect(messages);
        until("ann is there", || other.server.sessions(&Target::user("ann")).is_ok_and(|all| all.len() == 1)).await;
        let publish = |number: usize| -> Receipt {
            one.server.publish("news", &Push::new("News", "Say", number.to_string())).expect("small")
        };
        let mut receipts = vec![publish(0)];
        receipts[0].stored().await.expect("the broker works");
        let info = stream_of(&broker, 0, "bw.bothways.h.*.news").await;
        let leader = broker.number_of(info["cluster"]["leader"].as_str().expect("it has one"));

        let began = Instant::now();
        let mut is_killed = false;
        while began.elapsed() < Duration::from_secs(12) {
            for _ in 0..20 {
                receipts.push(publish(receipts.len()));
            }
            if !is_killed && Duration::from_secs(1) < began.elapsed() {
                broker.kill(leader);
                is_killed = true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        broker.start(leader);

        let (mut stored, mut unknown) = (Vec::new(), 0);
        for (number, receipt) in receipts.iter().enumerate() {
            match timeout(LONG, receipt.stored()).await.expect("it ends") {
                Ok(kept) => stored.push((number.to_string(), kept[0].position)),
                Err(error) if error.is_unknown() => unknown += 1,
                Err(_) => {}
            }
        }
        println!("of {}, {} stored, {unknown} unknown", receipts.len(), stored.len());
        assert!(receipts.len() / 2 < stored.len());
        assert!(stored.iter().is_sorted_by_key(|(_, place)| *place), "in the order of the publishes");
        let last = stored.last().expect("some").0.clone();
        until("the last one has come", || came.lock().contains(&last)).await;
        let came = came.lock().clone();
        let numbers: Vec<usize> = came.iter().map(|text| text.parse().expect("a number")).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other), "each once and in order");
        let missing: Vec<_> = stored.iter().filter(|(text, _)| !came.contains(text)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    });
    let _ = [one, other].map(Node::kill);
}

/// Many are refused together, and each says why: a full mailbox takes what it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_room_of_many_is_stored() {
    let Some(broker) = Broker::one() else { return };
    let options = NatsOptions::new(broker.addresses()).mailbox_entries_max(30);
    let one = NatsEngine::connect(options).await.expect("the broker works");
    let entries = (0..50).map(|number| NewEntry::new(Bytes::from(number.to_string())).with_time_to_live(KEEP));
    let stored = one.append_all(Log::Mailbox("ann".to_owned()), entries.collect()).await;
    assert!(stored[..30].iter().all(Result::is_ok), "{stored:?}");
    assert!(stored[30..].iter().all(|stored| *stored == Err(AppendError::Full)), "{stored:?}");
}
