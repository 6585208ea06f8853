//! Streams of events whose clients say what they have handled, and what the events of many streams cost.

use std::time::Duration;

use bothways::{Push, Stage, Target, session::TopicOptions};
use bothways_http::FrontOptions;
use serde_json::Value;
use tokio::io::AsyncReadExt;

#[allow(dead_code, reason = "it is the support of other tests too")]
#[path = "it/support.rs"]
mod support;

use support::{Http, LONG, Served, ask, request, serve, until, with_users};

const ANN: &str = "Authorization: bearer ann";

/// Reads the events of one stream.
struct Reader {
    http: Http,
    text: String,
    id: String,
    /// What lets it acknowledge.
    ack: String,
}

impl Reader {
    async fn open(served: &Served, path: &str, headers: &str) -> Self {
        let mut http = Http::connect(served.address()).await;
        http.send(request(&format!("GET {path}\n{headers}"), "")).await;
        assert_eq!(http.head().await.status, 200, "{path}");
        Self { http, text: String::new(), id: String::new(), ack: String::new() }
    }

    /// The name and the data of the next event.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
                };
                if !field("data").is_empty() {
                    self.id = field("id").to_owned();
                    let data: Value = serde_json::from_str(field("data")).expect("JSON");
                    if let Some(ack) = data["ack"].as_str() {
                        self.ack = ack.to_owned();
                    }
                    return (field("event").to_owned(), data);
                }
            }
            self.text += &self.http.chunk().await.expect("the stream goes on");
        }
    }

    async fn payload(&mut self) -> u64 {
        let (name, data) = self.next().await;
        data["payload"].as_u64().unwrap_or_else(|| panic!("{name}: {data}"))
    }

    /// What says that the last event is handled.
    fn ack_id(&self) -> String {
        let (_, number) = self.id.split_once('-').expect("a key and a number");
        format!("{}-{number}", self.ack)
    }

    /// True if nothing comes for a while in which much could.
    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(200), self.next()).await.is_err()
    }
}

async fn ack(served: &Served, id: &str) -> u16 {
    ask(served.address(), &format!("POST /events/ack?id={id}"), "").await.status
}

fn number(n: u64) -> Push {
    Push::of("N", "n", &n).expect("it is encoded")
}

/// A push is handled when its client has said so, and not when it was written.
#[tokio::test]
async fn a_client_may_say_what_it_has_handled() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let mut reader = Reader::open(&served, "/events?acks=1", ANN).await;
    reader.next().await;
    let receipts: Vec<_> =
        (0..3).map(|n| served.server.push(&Target::user("ann"), &number(n)).expect("sent")).collect();
    let mut ids = Vec::new();
    for n in 0..3 {
        assert_eq!(reader.payload().await, n);
        ids.push(reader.ack_id());
    }

    assert_eq!(ack(&served, &ids[1]).await, 204);
    for receipt in &receipts[..2] {
        let handled = tokio::time::timeout(LONG, receipt.handled()).await.expect("it was acknowledged");
        assert_eq!(handled.at(Stage::Handled), 1);
    }
    let waits = tokio::time::timeout(Duration::from_millis(200), receipts[2].handled()).await;
    assert!(waits.is_err(), "nobody has said that the third was handled");
    assert_eq!(ack(&served, &ids[1]).await, 204, "once more does no harm");

    let (key, _) = ids[0].split_once('-').expect("a key and a number");
    for wrong in [format!("{key}-99"), "00000000000000000000000000000001-1".to_owned()] {
        assert_eq!(ack(&served, &wrong).await, 404, "{wrong}");
    }
    assert_eq!(ack(&served, "nonsense").await, 400);
    assert_eq!(ask(served.address(), &format!("GET /events/ack?id={}", ids[0]), "").await.status, 405);
    let mut plain = Reader::open(&served, "/events", ANN).await;
    let (_, opened) = plain.next().await;
    assert_eq!(opened["ack"], Value::Null, "it is not asked for acknowledgements");
    assert_eq!(ack(&served, &plain.id).await, 404);
}

/// What acknowledges is in the logs of proxies: it does not let its bearer read, and what lets it read acknowledges
/// nothing.
#[tokio::test]
async fn the_id_of_an_acknowledgement_lets_nobody_read() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let mut reader = Reader::open(&served, "/events?acks=1", ANN).await;
    reader.next().await;
    assert_eq!(reader.ack.len(), 32, "{}", reader.ack);
    assert_eq!(ack(&served, &reader.ack_id()).await, 204);
    for thief in
        [format!("GET /events?last={}", reader.ack_id()), format!("GET /events\nLast-Event-ID: {}", reader.ack_id())]
    {
        assert_eq!(ask(served.address(), &thief, "").await.status, 401, "{thief}");
    }
    assert_eq!(ack(&served, &reader.id).await, 404);
    let old = format!("POST /events/ack\nLast-Event-ID: {}", reader.id);
    assert_eq!(ask(served.address(), &old, "").await.status, 400);

    // It holds after its client has come back, too.
    let id = reader.id.clone();
    let mut again = Reader::open(&served, &format!("/events?last={id}"), "").await;
    let receipt = served.server.push(&Target::user("ann"), &number(7)).expect("sent");
    assert_eq!(again.payload().await, 7);
    again.ack.clone_from(&reader.ack);
    assert_eq!(ack(&served, &again.ack_id()).await, 204);
    let handled = tokio::time::timeout(LONG, receipt.handled()).await.expect("it was acknowledged");
    assert_eq!(handled.at(Stage::Handled), 1);
}

/// The one that another takes the stream from is told at once, and not when its next comment is due.
#[tokio::test]
async fn a_reader_whose_stream_is_taken_over_is_told() {
    for acks in ["", "?acks=1"] {
        let served = serve(with_users(), FrontOptions::new()).await;
        let mut first = Reader::open(&served, &format!("/events{acks}"), ANN).await;
        first.next().await;
        let mut second = Reader::open(&served, &format!("/events?last={}", first.id), "").await;
        let told = tokio::time::timeout(Duration::from_secs(5), first.next()).await.expect("it is told");
        assert_eq!((&*told.0, &told.1["taken"]), ("bothways.end", &Value::Bool(true)), "{told:?}");
        assert!(first.http.chunk().await.is_none(), "that was its end");

        served.server.push(&Target::user("ann"), &number(1)).expect("sent");
        assert_eq!(second.payload().await, 1);
        assert_eq!(served.front.stats().streams_waiting, 0, "it is read");
    }
}

/// A stream that is gone has handled nothing that its client did not say: the sender learns that nobody knows.
#[tokio::test]
async fn what_was_not_acknowledged_is_not_called_handled() {
    let served = serve(with_users(), FrontOptions::new().stream_resume_window(Duration::from_millis(50))).await;
    let mut reader = Reader::open(&served, "/events?acks=1", ANN).await;
    reader.next().await;
    let receipt = served.server.push(&Target::user("ann"), &number(1)).expect("sent");
    reader.payload().await;
    drop(reader);
    let ended = tokio::time::timeout(LONG, receipt.handled()).await.expect("its session ends");
    assert_eq!((ended.at(Stage::Handled), ended.at(Stage::Unknown)), (0, 1), "{ended:?}");
}

/// What is not acknowledged is kept within the bounds of the stream; it goes on when its client says more, in order.
#[tokio::test]
async fn a_client_that_acknowledges_nothing_gets_no_more() {
    let served = serve(with_users(), FrontOptions::new().stream_kept(4, 1 << 20)).await;
    let mut reader = Reader::open(&served, "/events?acks=1", ANN).await;
    reader.next().await;
    for n in 0..10 {
        served.server.push(&Target::user("ann"), &number(n)).expect("sent");
    }
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(reader.payload().await);
    }
    assert!(reader.is_quiet().await, "four are not acknowledged, with the first event");
    while seen.len() < 10 {
        assert_eq!(ack(&served, &reader.ack_id()).await, 204);
        seen.push(reader.payload().await);
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

/// An event that many streams have is encoded and kept once.
#[tokio::test]
async fn an_event_of_many_streams_is_kept_once() {
    let options = FrontOptions::new().stream_queue(100, 8 << 20).stream_kept(100, 8 << 20);
    let topics = TopicOptions::new().history(10, Duration::from_secs(60)).open();
    let served = serve(with_users().topic("news", topics).expect("a pattern"), options).await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut reader = Reader::open(&served, "/events?topics=news", ANN).await;
        reader.next().await;
        readers.push(reader);
    }
    let text = "x".repeat(200_000);
    served.server.publish("news", &Push::of("News", "Flash", &text).expect("it is encoded")).expect("sent");
    for reader in &mut readers {
        let (name, data) = reader.next().await;
        assert!(name == "News.Flash" && data["payload"].as_str() == Some(&text), "{name}");
    }
    let bytes = served.front.stats().stream_bytes;
    assert!((200_000..600_000).contains(&bytes), "{bytes} bytes are kept");

    // Another one is another one, though its payload is the same.
    served.server.publish("news", &Push::of("News", "Again", &text).expect("it is encoded")).expect("sent");
    for reader in &mut readers {
        assert_eq!(reader.next().await.0, "News.Again");
    }
    let bytes = served.front.stats().stream_bytes;
    assert!((400_000..1_000_000).contains(&bytes), "{bytes} bytes are kept");
    drop(readers);
    until("nobody reads", || served.front.stats().streams == 0).await;
}

/// The events of all streams have a bound in bytes: a stream keeps fewer, and what it writes is not lost.
#[tokio::test]
async fn kept_events_have_one_bound() {
    let options = FrontOptions::new().streams_bytes_max(1 << 20).stream_queue(100, 8 << 20).stream_kept(100, 8 << 20);
    let served = serve(with_users(), options).await;
    let mut reader = Reader::open(&served, "/events", ANN).await;
    reader.next().await;
    for n in 0..20 {
        let text = format!("{n} {}", "x".repeat(100_000));
        served.server.push(&Target::user("ann"), &Push::of("N", "n", &text).expect("it is encoded")).expect("sent");
        let (_, data) = reader.next().await;
        assert_eq!(data["payload"].as_str(), Some(&*text));
        assert!(served.front.stats().stream_bytes <= 1 << 19, "half of it is for one address");
    }
    drop(reader);

    // One that never fits ends the stream, which says when to come back.
    let served = serve(with_users(), FrontOptions::new().streams_bytes_max(100_000)).await;
    let mut reader = Reader::open(&served, "/events", ANN).await;
    reader.next().await;
    let text = "x".repeat(60_000);
    let receipt = served.server.push(&Target::user("ann"), &Push::of("N", "n", &text).expect("it is encoded"));
    let (name, data) = reader.next().await;
    assert!(
        name == "bothways.end" && data["why"].as_str().is_some_and(|why| why.contains("streams_bytes_max")),
        "{data}"
    );
    drop(reader);
    until("it is gone", || served.front.stats().streams + served.front.stats().streams_waiting == 0).await;
    let ended = tokio::time::timeout(LONG, receipt.expect("sent").handled()).await.expect("its session ends");
    assert_eq!(ended.at(Stage::Handled), 0, "nobody has had it: {ended:?}");
}

/// An event is not handled before HTTP has taken all of it: its client reads nothing, and then does.
#[tokio::test]
async fn what_is_half_written_is_not_handled() {
    let served = serve(with_users(), FrontOptions::new().stream_queue(16, 32 << 20)).await;
    let mut reader = Reader::open(&served, "/events", ANN).await;
    reader.next().await;
    let large = Push::of("N", "n", &"x".repeat(7 << 20)).expect("it is encoded");
    let receipt = served.server.push(&Target::user("ann"), &large).expect("sent");
    until("it is taken from the queue", || 7 << 20 < served.front.stats().stream_bytes).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), receipt.clone().handled()).await.is_err());
    assert_eq!(receipt.outcomes().open(), 1, "it is larger than what the system and HTTP keep");

    let (mut read, mut piece) = (0, vec![0; 256 << 10]);
    while read < 7 << 20 {
        let reading = tokio::time::timeout(LONG, reader.http.stream.read(&mut piece)).await.expect("in time");
        let len = reading.expect("it is open");
        assert_ne!(len, 0, "it ends after {read} bytes");
        read += len;
    }
    let handled = tokio::time::timeout(LONG, receipt.handled()).await.expect("in time");
    assert_eq!(handled.at(Stage::Handled), 1);
}
