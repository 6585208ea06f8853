//! Histories and mailboxes over the broker while parts of it, and nodes, are killed.

#[allow(dead_code)]
mod support;

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bothways::{
    Class, Client, ClientOptions, Push, QueueBound, Receipt, ServerMessages, Target,
    cluster::{
        Store as _,
        engine::{AppendError, Log, NewEntry},
    },
    session::{SessionOptions, TopicOptions},
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{LONG, Node, run, until};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};

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

/// What the broker says of the stream that has something under this subject.
async fn stream_of(broker: &Broker, through: usize, subject: &str) -> Value {
    let client = async_nats::connect(&broker.addresses()[through]).await.expect("it listens");
    let (deadline, letter) = (Instant::now() + LONG, subject.split('.').nth(2).expect("one of ours"));
    loop {
        for number in 0..4 {
            let (name, filter) =
                (format!("bw_bothways_{letter}{number}"), format!(r#"{{"subjects_filter":"{subject}"}}"#));
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
        let headers = STANDARD.decode(headers).expect("base64");
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
        // What waits for another leader comes at once: there is room for all of it.
        let room = SessionOptions::new().log(QueueBound::messages(50_000).bytes(64 << 20)).user_log_bytes_max(64 << 20);
        Node::start(options, "news", |server| server.sessions(room).topic("news", kept).expect("a topic"))
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
        // Her node begins to follow the topic while the first is published, which nobody is sent then.
        assert!(numbers[0] <= 1, "{numbers:?}");
        let missing: Vec<_> = stored[numbers[0]..].iter().filter(|(text, _)| !came.contains(text)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    });
    let _ = [one, other].map(Node::kill);
}

fn address_of(node: &Node) -> String {
    node.listening.address().to_string().trim_start_matches("tcp@").to_owned()
}

/// A way to the node that is named last.
async fn balancer(mut node: watch::Receiver<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("tcp@{}", listener.local_addr().expect("it listens"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = node.borrow_and_update().clone();
            let mut moved = node.clone();
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    _ = moved.changed() => {}
                }
            });
        }
    });
    address
}

/// Letters go on while the client is taken from node to node, and while its node is killed: its device handles each that was
/// stored once, in the order of the mailbox.
#[test]
fn letters_outlive_moves_and_a_node() {
    let Some(broker) = Broker::one() else { return };
    let [one, other, third] =
        std::array::from_fn(|_| Node::start(NatsOptions::new(broker.addresses()), "news", |server| server));
    run(async {
        let know = |node: &Node| node.server.nodes().is_some_and(|(_, others)| others.len() == 2);
        until("they know each other", || [&one, &other, &third].into_iter().all(know)).await;
        let (to, node) = watch::channel(address_of(&one));
        let address = balancer(node).await;
        let options = ClientOptions::new().auth("ann").device("phone");
        let (_ann, messages) = Client::bidirectional(&address, options).await.expect("it listens");
        let came = collect(messages);
        let mut receipts: Vec<(String, Receipt)> = Vec::new();
        let mut post = |count: usize| {
            for _ in 0..count {
                let text = receipts.len().to_string();
                let push = Push::new("Mail", "New", text.clone()).class(Class::Durable { ttl: KEEP });
                receipts.push((text, third.server.push(&Target::user("ann"), &push).expect("there is a store")));
            }
        };
        let is_at = |node: &Node| {
            let sessions = node.server.sessions(&Target::user("ann")).unwrap_or_default();
            sessions.iter().any(|session| session.connection().is_some())
        };
        for (round, node) in [&other, &one, &other, &one].into_iter().enumerate() {
            post(20);
            sleep(Duration::from_millis(30 * round as u64)).await;
            to.send_replace(address_of(node));
            post(20);
            until("she is there", || is_at(node)).await;
        }
        post(20);
        to.send_replace(address_of(&other));
        one.kill();
        for _ in 0..20 {
            post(5);
            sleep(Duration::from_millis(50)).await;
        }
        until("she is there", || is_at(&other)).await;
        post(20);

        let mut places = HashMap::new();
        for (text, receipt) in &receipts {
            match timeout(LONG, receipt.stored()).await.expect("it ends") {
                Ok(kept) => _ = places.insert(text.clone(), kept[0].position.sequence),
                Err(error) => panic!("the broker was there: {error}"),
            }
        }
        until("all have come", || places.len() <= came.lock().len()).await;
        let mail = other.server.mail().expect("there is a store");
        let deadline = Instant::now() + LONG;
        while !mail.letters("ann", 0, 10).await.expect("the store works").is_empty() {
            assert!(Instant::now() < deadline, "letters stay");
            sleep(Duration::from_millis(50)).await;
        }
        assert!(mail.dead_letters("ann", 0, 10).await.expect("the store works").is_empty());
        let came = came.lock().clone();
        assert_eq!(came.len(), places.len(), "each once: {came:?}");
        let order: Vec<u64> = came.iter().map(|text| places[text]).collect();
        assert!(order.is_sorted_by(|one, other| one < other), "in the order of the mailbox: {came:?}");
    });
    let _ = [other, third].map(Node::kill);
}

/// Asks the broker of a stream.
async fn ask(client: &async_nats::Client, what: &str, stream: &str, body: &Value) -> Value {
    let answer = client.request(format!("$JS.API.STREAM.{what}.{stream}"), body.to_string().into()).await;
    let answer: Value = serde_json::from_slice(&answer.expect("it answers").payload).expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

/// Stores what was stored last under a subject once more, with another text and another key, and nobody is told.
async fn store_in_silence(broker: &Broker, subject: &str, (was, text): (&str, &str)) {
    let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    let info = stream_of(broker, 0, subject).await;
    let stream = info["config"]["name"].as_str().expect("it has one");
    let last = ask(&client, "MSG.GET", stream, &json!({"last_by_subj": subject})).await;
    let mut bytes = STANDARD.decode(last["message"]["data"].as_str().expect("bytes")).expect("base64");
    let find = |bytes: &[u8], part: &str| bytes.windows(part.len()).position(|some| some == part.as_bytes());
    let at = find(&bytes, was).expect("it is there");
    bytes.splice(at..at + was.len(), text.bytes());
    if let Some(key) = find(&bytes, "_bw.m ") {
        let digit = &mut bytes[key + "_bw.m ".len()];
        *digit = if *digit == b'0' { b'1' } else { b'0' };
    }

    let mut quiet = info["config"].clone();
    quiet.as_object_mut().expect("fields").remove("republish").expect("it tells");
    ask(&client, "UPDATE", stream, &quiet).await;
    let subject = last["message"]["subject"].as_str().expect("it has one").to_owned();
    let stored = client.request(subject, bytes.into()).await.expect("it answers");
    ask(&client, "UPDATE", stream, &info["config"]).await;
    let stored: Value = serde_json::from_slice(&stored.payload).expect("JSON");
    assert!(stored["error"].is_null(), "{stored}");
}

/// The broker tells nobody of a letter, or of a message that is the last of its topic: a node finds within half a minute that
/// there is more than came, and reads.
#[test]
fn what_nobody_was_told_of_comes_all_the_same() {
    let Some(broker) = Broker::one() else { return };
    let kept = TopicOptions::new().history(100, KEEP);
    let node = Node::start(NatsOptions::new(broker.addresses()), "news", |server| {
        server.topic("news", kept).expect("a topic")
    });
    run(async {
        let at = node.listening.address();
        let device = |name| ClientOptions::new().auth("ann").device(name);
        let sessions = || node.server.sessions(&Target::user("ann")).unwrap_or_default();
        // A device that is away: so letters stay.
        let tablet = Client::bidirectional(at, device("tablet")).await.expect("it listens");
        let mail = node.server.mail().expect("there is a store");
        let deadline = Instant::now() + LONG;
        while mail.devices("ann").await.expect("the broker works").is_empty() {
            assert!(Instant::now() < deadline, "it gets no place");
            sleep(Duration::from_millis(10)).await;
        }
        drop(tablet);
        let (_ann, messages) = Client::bidirectional(at, device("phone")).await.expect("it listens");
        let came = collect(messages);
        until("ann is there", || sessions().iter().any(|session| session.connection().is_some())).await;

        let push = |text: &str| Push::new("Mail", "New", text.to_owned());
        let letter = push("letter 1").class(Class::Durable { ttl: KEEP });
        node.server.push(&Target::user("ann"), &letter).expect("small").stored().await.expect("the broker works");
        node.server.publish("news", &push("message 1")).expect("small").stored().await.expect("the broker works");
        let has_come = |text: &str| came.lock().iter().any(|came| came == text);
        until("they came", || has_come("letter 1") && has_come("message 1")).await;

        for (subject, was, text) in
            [("bw.bothways.m.*.ann", "letter 1", "letter 2"), ("bw.bothways.h.*.news", "message 1", "message 2")]
        {
            let began = Instant::now();
            store_in_silence(&broker, subject, (was, text)).await;
            println!("{text} was stored in silence within {:?}", began.elapsed());
            assert!(!has_come(text), "it was told of");
            until("it comes", || has_come(text)).await;
            println!("{text} came after {:?}", began.elapsed());
        }
        let mut all = came.lock().clone();
        all.sort();
        assert_eq!(all, ["letter 1", "letter 2", "message 1", "message 2"], "each once");
    });
    node.kill();
}

/// A topic has a position before anything is published to it, also at a node that has not seen it.
#[test]
fn a_topic_begins_with_its_first_subscriber() {
    let Some(broker) = Broker::one() else { return };
    let [one, other] = std::array::from_fn(|_| {
        let kept = TopicOptions::new().open().history(100, KEEP);
        let options = NatsOptions::new(broker.addresses());
        Node::start(options, "mine", |server| server.topic("news.>", kept).expect("a pattern"))
    });
    run(async {
        let client = async |node: &Node| {
            let options = ClientOptions::new().auth("ann");
            Client::bidirectional(node.listening.address(), options).await.expect("it listens")
        };
        let (ann, _messages) = client(&one).await;
        let at = ann.subscribe("news.new").await.expect("it is open").position.expect("it has begun");
        ann.close();
        for text in ["1", "2", "3"] {
            let push = Push::new("News", "Say", text.to_owned());
            one.server.publish("news.new", &push).expect("small").stored().await.expect("the broker works");
        }
        for node in [&other, &one] {
            let (again, messages) = client(node).await;
            let came = collect(messages);
            let subscribed = again.subscribe_from("news.new", at).await.expect("it is open");
            assert!(subscribed.recovered, "{subscribed:?}");
            until("all come", || came.lock().len() == 3).await;
            assert_eq!(*came.lock(), ["1", "2", "3"]);
        }
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
