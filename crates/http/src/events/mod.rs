//! Pushes as server-sent events: `GET /events`.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | the request: a new stream, or one whose client comes back |
//! | `stream.rs` | one stream: the client inside that listens, what was written, who reads |
//! | `streams.rs` | all streams, by their keys, and their bounds |
//! | `encode.rs` | a message as an event |
//! | `tickets.rs` | what lets a browser in, which cannot send a token with this request |
//!
//! A stream outlives its HTTP connection by the resume window. The id of each event names the stream by a secret, so
//! that a browser comes back to it by the `Last-Event-ID` that it sends anyway.

mod encode;
mod stream;
mod streams;
mod tickets;

use bothways::{CallError, Client, QueueBound, session::Position};
use http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use serde_json::{Value, json};

use self::{
    encode::Event,
    stream::{LastSeen, Stream},
};
pub(crate) use self::{stream::Events, streams::Streams};
use crate::{
    body::{Body, Response},
    fault::Fault,
    form,
    front::Asked,
    gateway, rpc,
};

/// Where the stream is.
pub(crate) const PATH: &str = "/events";

/// Where a browser gets its ticket.
pub(crate) const TICKET_PATH: &str = "/events/ticket";

/// Where a client says what it has handled.
pub(crate) const ACK_PATH: &str = "/events/ack";

/// What a client has seen last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// For proxies that would keep events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What the query of a request says.
#[derive(Default)]
struct Query {
    topics: Vec<String>,
    /// Where to begin in topics with history.
    from: Vec<(String, Position)>,
    ticket: Option<String>,
    last: Option<String>,
    /// The client says what it has handled.
    acks: bool,
    /// What it has handled.
    id: Option<String>,
}

/// The answer to `GET /events`.
pub(crate) async fn answer(asked: &Asked, parts: &Parts) -> Response {
    if parts.method != Method::GET {
        return Fault::method_not_allowed("GET").into_response();
    }
    match open(asked, parts).await {
        Ok(events) => respond(events),
        Err(fault) => fault.into_response(),
    }
}

fn respond(events: Events) -> Response {
    let mut response = http::Response::new(Body::events(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn open(asked: &Asked, parts: &Parts) -> Result<Events, Fault> {
    let streams = &asked.front.shared.streams;
    let query = read_query(parts.uri.query().unwrap_or_default(), streams.bounds().topics_max)?;
    let last = last_seen(parts, &query);
    if let Some(last) = &last
        && let Some(events) = streams.resume(last)
    {
        return Ok(events);
    }

    let token = match &query.ticket {
        Some(ticket) => streams.tickets().take(ticket).ok_or_else(|| {
            Fault::new(StatusCode::UNAUTHORIZED, "unauthenticated", "the ticket is used, too old or not known")
        })?,
        None => rpc::metadata(&parts.headers)?.1,
    };
    // Its place first: a server need not let in a client for which there is none.
    let place = streams.reserve(&asked.peer)?;
    let bounds = streams.bounds();
    let queue = QueueBound::messages(bounds.queue_messages_max).bytes(bounds.queue_bytes_max);
    let entrance = &asked.front.shared.entrance;
    let (client, messages) = entrance.connect_listening(&asked.peer, &token, queue).await?;
    let topics = subscribe(&client, &query).await?;

    let mut said = json!({ "topics": topics, "lost": last.is_some() });
    let ack_key = query.acks.then(rand::random);
    if let Some(ack_key) = ack_key {
        said["ack"] = format!("{ack_key:032x}").into();
    }
    let opened = Event::named("bothways.open", &said);
    Ok(streams.begin(Stream::new(place, client, messages, bounds.clone(), opened, ack_key)))
}

/// What a client has seen last: a browser says it in a header, others may say it in the query.
fn last_seen(parts: &Parts, query: &Query) -> Option<LastSeen> {
    match gateway::text(&parts.headers, &LAST_EVENT_ID) {
        "" => query.last.as_deref().and_then(LastSeen::parse),
        last => LastSeen::parse(last),
    }
}

/// The answer to `POST /events/ack`: the client has handled all events up to the one that it names. The id is a secret that
/// lets it do this and no more: proxies may write it to their logs.
pub(crate) fn ack(asked: &Asked, parts: &Parts) -> Response {
    if parts.method != Method::POST {
        return Fault::method_not_allowed("POST").into_response();
    }
    let streams = &asked.front.shared.streams;
    let query = match read_query(parts.uri.query().unwrap_or_default(), streams.bounds().topics_max) {
        Ok(query) => query,
        Err(fault) => return fault.into_response(),
    };
    match query.id.as_deref().and_then(LastSeen::parse) {
        None => Fault::bad_request(
            "`id` in the query is ACK-NUMBER: `ack` of `bothways.open`, and the number at the end of an event's id",
        )
        .into_response(),
        Some(handled) if streams.ack(&handled) => gateway::nothing(StatusCode::NO_CONTENT),
        Some(_) => {
            Fault::not_found("there is no such event, or its stream was not opened with `acks=1`").into_response()
        }
    }
}

/// Subscribes to what was asked for; what is said of each topic.
async fn subscribe(client: &Client, query: &Query) -> Result<Vec<Value>, Fault> {
    let mut said = Vec::with_capacity(query.topics.len());
    for topic in &query.topics {
        let from = query.from.iter().find(|(of, _)| of == topic).map(|(_, position)| *position);
        let subscribed = match from {
            Some(position) => client.subscribe_from(topic, position).await,
            None => client.subscribe(topic).await,
        };
        let subscribed = subscribed.map_err(refused)?;
        let position = subscribed.position.map(|position| position_of(&position));
        let recovered = from.map(|_| subscribed.recovered);
        said.push(json!({ "topic": topic, "position": position, "recovered": recovered }));
    }
    Ok(said)
}

/// Why there is no subscription. What the application decides has no code.
fn refused(error: CallError) -> Fault {
    match error.code() {
        None if error.remote_text().is_some() => {
            Fault { status: StatusCode::FORBIDDEN, kind: "forbidden", ..error.into() }
        }
        _ => error.into(),
    }
}

/// A position as a client gives it back: the numbers are texts, for they have 64 bits.
fn position_of(position: &Position) -> String {
    format!("{}:{}", position.epoch, position.offset)
}

fn read_query(query: &str, topics_max: usize) -> Result<Query, Fault> {
    let mut read = Query::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let pairs = form::parse(&format!("v={value}")).map_err(Fault::bad_request)?;
        let value = pairs.into_iter().next().map(|(_, value)| value).unwrap_or_default();
        let value = String::from_utf8(value).map_err(|_| Fault::bad_request("the query is not UTF-8"))?;
        match key {
            "topics" => read.topics.extend(value.split(',').filter(|topic| !topic.is_empty()).map(str::to_owned)),
            "from" => read.from.push(begin_at(&value)?),
            // Of what is repeated, the first counts, as in Go.
            "ticket" => _ = read.ticket.get_or_insert(value),
            "acks" => read.acks = value == "1",
            "id" => _ = read.id.get_or_insert(value),
            "last" => _ = read.last.get_or_insert(value),
            _ => {}
        }
    }
    if topics_max < read.topics.len() {
        return Err(Fault::bad_request(format!("a stream has {topics_max} topics at most")));
    }
    Ok(read)
}

/// `TOPIC:EPOCH:OFFSET`.
fn begin_at(text: &str) -> Result<(String, Position), Fault> {
    let parsed = (|| {
        let (rest, offset) = text.rsplit_once(':')?;
        let (topic, epoch) = rest.rsplit_once(':')?;
        Some((topic.to_owned(), Position { epoch: epoch.parse().ok()?, offset: offset.parse().ok()? }))
    })();
    parsed.ok_or_else(|| Fault::bad_request("`from` is TOPIC:EPOCH:OFFSET"))
}

/// The answer to `POST /events/ticket`: a ticket for the token of the request, if the server lets that in.
pub(crate) async fn give_ticket(asked: &Asked, parts: &Parts) -> Response {
    if parts.method != Method::POST {
        return Fault::method_not_allowed("POST").into_response();
    }
    let given = async {
        let token = rpc::metadata(&parts.headers)?.1;
        asked.client(&token).await?;
        let streams = &asked.front.shared.streams;
        let ticket = streams.tickets().give(&asked.peer, token)?;
        let seconds = streams.bounds().ticket_time.as_secs();
        Ok::<_, Fault>(json!({ "ticket": ticket, "seconds": seconds }).to_string())
    };
    match given.await {
        Err(fault) => fault.into_response(),
        Ok(body) => {
            let mut response = http::Response::new(Body::from(body));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_topics_positions_and_what_lets_in() {
        let query = read_query("topics=a,b.%3E&topics=c%2Cd&from=a:7:9&ticket=t&ticket=u&x=1&acks=1&last=k-1&last=", 5)
            .expect("it is right");
        assert_eq!(query.topics, ["a", "b.>", "c", "d"]);
        assert_eq!(query.from, [("a".to_owned(), Position { epoch: 7, offset: 9 })]);
        assert_eq!((query.ticket.as_deref(), query.last.as_deref()), (Some("t"), Some("k-1")));
        assert!(query.acks && !read_query("acks=", 5).expect("it is right").acks);
        for wrong in ["from=a:7", "from=a:x:1", "topics=a,b,c,d,e,f", "topics=%zz", "topics=%ff"] {
            let fault = read_query(wrong, 5).map(drop).expect_err(wrong);
            assert_eq!(fault.status, StatusCode::BAD_REQUEST);
        }
    }
}
