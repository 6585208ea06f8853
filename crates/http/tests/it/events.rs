//! Server-sent events.

use std::{net::SocketAddr, time::Duration};

use bothways::{Push, Stage, Target, session::TopicOptions};
use bothways_http::FrontOptions;
use serde_json::{Value, json};

use crate::support::{Http, ask, builder, request, serve, until, with_users};

/// An event as a browser reads it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

/// A reader of events.
struct Reader {
    http: Http,
    text: String,
}

impl Reader {
    async fn open(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut http = Http::connect(address).await;
        http.send(request(&format!("GET {path}\n{headers}"), "")).await;
        let head = http.head().await;
        assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream"), "{head:?}");
        assert_eq!((head.header("x-accel-buffering"), head.header("cache-control")), ("no", "no-store"));
        Self { http, text: String::new() }
    }

    /// The next event; `None`: the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    lines.collect::<Vec<_>>().join("\n")
                };
                if block.lines().any(|line| line.starts_with("data")) {
                    let data = serde_json::from_str(&field("data")).expect("JSON");
                    return Some(Event { id: field("id"), name: field("event"), data });
                }
            }
            self.text += &self.http.chunk().await?;
        }
    }

    async fn named(&mut self, name: &str) -> Event {
        let event = self.next().await.expect("there is one");
        assert_eq!(event.name, name, "{event:?}");
        event
    }
}

fn value<T: serde::Serialize + Send>(path: &str, method: &str, value: &T) -> Push {
    Push::of(path, method, value).expect("it is encoded")
}

const ANN: &str = "Authorization: bearer ann";

#[tokio::test]
async fn pushes_and_topics_are_events() {
    let topics = TopicOptions::new().history(10, Duration::from_secs(60)).open();
    let served = serve(with_users().topic("news", topics).expect("a pattern"), FrontOptions::new()).await;
    let mut reader = Reader::open(served.address(), "/events?topics=news", ANN).await;
    let opened = reader.named("bothways.open").await;
    assert_eq!((&opened.data["topics"][0]["topic"], &opened.data["lost"]), (&json!("news"), &json!(false)));

    let receipt = served.server.push(&Target::user("ann"), &value("Mail", "New", &json!({ "n": 1 }))).expect("sent");
    served
        .server
        .publish("news", &Push::new("News", "Flash", "{\"big\": 12345678901234567890,\n\"x\":1}"))
        .expect("sent");
    served.server.push(&Target::user("ann"), &Push::new("Raw", "Text", "no\njson")).expect("sent");
    served.server.push(&Target::user("ann"), &Push::new("Raw", "Bytes", vec![0xff, 0])).expect("sent");

    let mail = reader.named("Mail.New").await;
    assert_eq!((&mail.data["payload"], &mail.data["path"]), (&json!({ "n": 1 }), &json!("Mail")));
    let news = reader.named("News.Flash").await;
    assert_eq!((&news.data["topic"], &news.data["payload"]["x"]), (&json!("news"), &json!(1)));
    assert_eq!(news.data["payload"]["big"].to_string(), "12345678901234567890", "no digit is lost");
    assert!(news.data["position"].as_str().is_some_and(|at| at.ends_with(":1")), "{news:?}");
    assert_eq!(reader.named("Raw.Text").await.data["text"], "no\njson");
    assert_eq!(reader.named("Raw.Bytes").await.data["base64"], "/wA=");
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
}

/// A browser comes back by the id that it sends by itself: nothing is missing, and nothing comes twice.
#[tokio::test]
async fn a_stream_goes_on_after_the_last_event_that_was_seen() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let push = |n: u32| served.server.push(&Target::user("ann"), &value("N", "n", &n)).map(drop).expect("sent");
    let mut reader = Reader::open(served.address(), "/events", ANN).await;
    let mut last = reader.named("bothways.open").await.id;
    let mut seen = Vec::new();
    for round in 0..5 {
        for n in 0..10 {
            push(10 * round + n);
        }
        // It is cut while some are on their way.
        for _ in 0..5 {
            let event = reader.named("N.n").await;
            last = event.id;
            seen.push(event.data["payload"].as_u64().expect("a number"));
        }
        drop(reader);
        until("nobody reads", || served.front.stats().streams_waiting == 1).await;
        reader = Reader::open(served.address(), "/events", &format!("Last-Event-ID: {last}")).await;
    }
    while seen.len() < 50 {
        let event = reader.named("N.n").await;
        seen.push(event.data["payload"].as_u64().expect("a number"));
    }
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert_eq!(served.server.stats().sessions, 1, "it is one session all along");
}

/// The connection that is lost may not know it yet: the one that comes takes over.
#[tokio::test]
async fn the_last_reader_reads() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let mut first = Reader::open(served.address(), "/events", ANN).await;
    let id = first.named("bothways.open").await.id;
    let mut second = Reader::open(served.address(), &format!("/events?last={id}"), "").await;
    served.server.push(&Target::user("ann"), &value("N", "n", &1)).expect("sent");
    second.named("N.n").await;
    drop(second);
    drop(first);
    until("both are gone", || served.front.stats().streams_waiting == 1).await;
}

/// What was dropped from what is kept is counted, and a stream that is gone is said to be.
#[tokio::test]
async fn what_is_missing_is_said() {
    let options = FrontOptions::new().stream_kept(4, 1 << 20).stream_resume_window(Duration::from_millis(50));
    let served = serve(with_users(), options).await;
    let mut reader = Reader::open(served.address(), "/events", ANN).await;
    let opened = reader.named("bothways.open").await.id;
    for n in 0..10 {
        served.server.push(&Target::user("ann"), &value("N", "n", &n)).expect("sent");
        reader.named("N.n").await;
    }
    let mut again = Reader::open(served.address(), "/events", &format!("Last-Event-ID: {opened}")).await;
    assert_eq!(again.named("bothways.gap").await.data["missed"], 6);
    assert_eq!(again.named("N.n").await.data["payload"], 6);
    drop((reader, again));

    until("it is gone", || served.front.stats().streams_waiting == 0 && served.server.stats().sessions == 0).await;
    let refused = ask(served.address(), &format!("GET /events\nLast-Event-ID: {opened}"), "").await;
    assert_eq!(refused.status, 401, "the id of a stream that is gone lets nobody in");
    let mut new = Reader::open(served.address(), "/events", &format!("{ANN}\nLast-Event-ID: {opened}")).await;
    assert_eq!(new.named("bothways.open").await.data["lost"], true);
}

/// A client that comes back and leaves again and again costs one task for its stream, and the window is that of the last
/// time.
#[tokio::test]
async fn a_client_that_comes_and_goes_is_watched_by_one_task() {
    let served = serve(with_users(), FrontOptions::new().stream_resume_window(Duration::from_secs(2))).await;
    let mut reader = Reader::open(served.address(), "/events", ANN).await;
    let opened = reader.named("bothways.open").await.id;
    drop(reader);
    until("it waits", || served.front.stats().streams_waiting == 1).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    until("the connection has ended", || served.front.stats().connections == 0).await;
    let before = tasks();
    for _ in 0..30 {
        drop(Reader::open(served.address(), "/events", &format!("Last-Event-ID: {opened}")).await);
        until("it waits again", || served.front.stats().connections == 0).await;
    }
    assert!(tasks() < before + 10, "{before} tasks became {}", tasks());
    until("it is gone", || served.front.stats().streams_waiting == 0 && served.server.stats().sessions == 0).await;
}

/// A stream that is gone altogether is made up for from the history of its topics.
#[tokio::test]
async fn a_topic_is_read_from_a_position() {
    let topics = TopicOptions::new().history(10, Duration::from_secs(60)).open();
    let served = serve(builder().topic("news", topics).expect("a pattern"), FrontOptions::new()).await;
    let mut reader = Reader::open(served.address(), "/events?topics=news", "").await;
    let opened = reader.named("bothways.open").await;
    let position = opened.data["topics"][0]["position"].as_str().expect("it has a history").to_owned();
    drop(reader);
    for n in 0..3 {
        served.server.publish("news", &value("N", "n", &n)).expect("sent");
    }
    let mut reader = Reader::open(served.address(), &format!("/events?topics=news&from=news:{position}"), "").await;
    assert_eq!(reader.named("bothways.open").await.data["topics"][0]["recovered"], true);
    for n in 0..3 {
        assert_eq!(reader.named("N.n").await.data["payload"], n);
    }
}

#[tokio::test]
async fn a_ticket_lets_one_reader_in() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let refused = ask(served.address(), "POST /events/ticket\nAuthorization: bearer bad", "").await;
    assert_eq!(refused.status, 401);
    let given = ask(served.address(), &format!("POST /events/ticket\n{ANN}"), "").await;
    assert_eq!(given.status, 200, "{given:?}");
    let ticket = given.json()["ticket"].as_str().expect("a text").to_owned();
    let mut reader = Reader::open(served.address(), &format!("/events?ticket={ticket}"), "").await;
    reader.named("bothways.open").await;
    served.server.push(&Target::user("ann"), &value("N", "n", &1)).expect("sent");
    reader.named("N.n").await;
    let again = ask(served.address(), &format!("GET /events?ticket={ticket}"), "").await;
    assert_eq!((again.status, again.header("x-bothways-error")), (401, "unauthenticated"));
}

/// A session that its server ends, ends its stream for good.
#[tokio::test]
async fn a_session_that_is_sent_away_ends_its_stream() {
    let served = serve(with_users(), FrontOptions::new()).await;
    let mut reader = Reader::open(served.address(), "/events", ANN).await;
    let id = reader.named("bothways.open").await.id;
    assert_eq!(served.server.kick(&Target::user("ann"), "enough").expect("no topic"), 1);
    let end = reader.named("bothways.end").await;
    assert!(end.data["why"].as_str().is_some_and(|why| why.contains("enough")), "{end:?}");
    assert_eq!(reader.next().await, None);
    drop(reader);
    until("it is gone", || served.front.stats().streams_waiting == 0).await;
    assert_eq!(ask(served.address(), &format!("GET /events\nLast-Event-ID: {id}"), "").await.status, 401);
}

/// Streams have a bound, and of one address those that wait make room.
#[tokio::test]
async fn streams_have_a_bound() {
    let served = serve(builder(), FrontOptions::new().streams_per_address_max(2)).await;
    let mut first = Reader::open(served.address(), "/events", "").await;
    first.named("bothways.open").await;
    let mut second = Reader::open(served.address(), "/events", "").await;
    second.named("bothways.open").await;
    let full = ask(served.address(), "GET /events", "").await;
    assert_eq!((full.status, full.header("x-bothways-error")), (503, "overloaded"), "{full:?}");
    drop(first);
    until("it waits", || served.front.stats().streams_waiting == 1).await;
    let mut third = Reader::open(served.address(), "/events", "").await;
    third.named("bothways.open").await;
    assert_eq!(served.front.stats().streams, 2);
}

/// A refused topic refuses the stream, and leaves no session.
#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let served = serve(builder(), FrontOptions::new().topics_per_stream_max(2)).await;
    for (path, status, kind) in [
        ("/events?topics=a,b,c", 400, "bad_request"),
        ("/events?from=x", 400, "bad_request"),
        ("/events?topics=a..b", 403, "forbidden"),
        ("/events?topics=closed", 403, "forbidden"),
    ] {
        let answer = ask(served.address(), &format!("GET {path}"), "").await;
        assert_eq!((answer.status, answer.header("x-bothways-error")), (status, kind), "{path}: {answer:?}");
    }
    assert_eq!(ask(served.address(), "POST /events", "").await.status, 405);
    until("nobody is left", || served.server.stats().connections == 0).await;
}

/// Without events a comment comes; it has no id, so that a browser remembers the last event.
#[tokio::test]
async fn a_quiet_stream_sends_comments() {
    let served = serve(builder(), FrontOptions::new().stream_beat(Duration::from_secs(1))).await;
    let mut reader = Reader::open(served.address(), "/events", "").await;
    reader.named("bothways.open").await;
    assert_eq!(reader.http.chunk().await.as_deref(), Some(":\n\n"));
}
