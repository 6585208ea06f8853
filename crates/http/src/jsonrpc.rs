//! JSON-RPC 2.0: requests with the header `X-JSONRPC-2.0: true`, as rpcx serves them, and batches.
//!
//! Source: Go rpcx `server/jsonrpc2.go`. What differs is in `docs/go-differences.md`.

use std::{collections::VecDeque, fmt, sync::Arc};

use bothways::{CallOptions, Caller, Client, Metadata, SerializeType, caller::RawCall};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    body::{Body, Budget, Held, Response},
    fault::Fault,
    front::Asked,
    rpc,
};

/// The header that asks for it. Source: Go rpcx `server/gateway.go`, `startGateway`.
const HEADER: HeaderName = HeaderName::from_static("x-jsonrpc-2.0");

/// Go's header, typing error and all: clients look for it.
const CONTEXT_TYPE: HeaderName = HeaderName::from_static("context-type");

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;

/// Calls of one batch that run at a time.
const BATCH_AT_ONCE: usize = 16;

/// Bytes of a request that are read to learn its id, where its token is refused.
const REFUSED_BYTES_MAX: usize = 64 << 10;

/// Most bytes of a text that says why something cannot be read: it may repeat what the client has sent.
const WHY_BYTES_MAX: usize = 500;

/// Most bytes of an id that is told where there is no room for an answer.
const ID_BYTES_MAX: usize = 1 << 10;

/// True if a request asks for JSON-RPC, in exactly Go's words.
pub(crate) fn is_meant(headers: &HeaderMap) -> bool {
    headers.get(HEADER).is_some_and(|value| value == "true")
}

/// One call as it is asked for.
struct Called {
    path: String,
    method: String,
    params: Bytes,
    /// In JSON; `None` of a notification.
    id: Option<String>,
}

/// Why there is no result.
struct Failure {
    code: i64,
    text: String,
    data: Value,
}

/// A part of a body: what to do, or what to answer at once.
enum Part {
    Call(Called),
    Answer(String),
}

#[derive(Deserialize)]
struct Form<'a> {
    #[serde(default, borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default, borrow)]
    params: Option<&'a RawValue>,
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
}

/// What all calls of one request have in common.
#[derive(Clone)]
struct Terms {
    metadata: Metadata,
    until: Instant,
    is_strict: bool,
    tells_kind: bool,
    /// Where answers count until their client has them.
    budget: Budget,
    peer: Arc<str>,
}

/// The answer to a JSON-RPC request: always 200, except for what is no request of JSON-RPC at all.
pub(crate) async fn answer<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Response {
    match run(asked, parts, body).await {
        Ok(Some(body)) => respond(body),
        Ok(None) => http::Response::new(Body::empty()),
        Err(fault) => fault.into_response(),
    }
}

fn respond(body: Body) -> Response {
    let mut response = http::Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTEXT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn run<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Result<Option<Body>, Fault> {
    let (metadata, token) = rpc::metadata(&parts.headers)?;
    let client = asked.client(&token).await;
    let (body, _held) = match &client {
        Ok(_) => asked.read(body).await?,
        Err(_) => asked.read_up_to(body, REFUSED_BYTES_MAX).await?,
    };

    let (asked_for, is_batch) = match parse(&body, asked.options().batch_calls_max) {
        Ok(parsed) => parsed,
        Err(failure) => return Ok(Some(failure.told("null").into())),
    };
    let terms = Terms {
        metadata,
        until: Instant::now() + asked.time(&parts.headers)?,
        is_strict: asked.options().strict_json_rpc_codes,
        tells_kind: parts.headers.get("x-bothways").is_some_and(|value| value == "1"),
        budget: asked.budget().clone(),
        peer: Arc::clone(&asked.peer),
    };
    let answers = match client {
        Ok(client) => call_all(&client, &terms, asked_for).await,
        Err(fault) => refuse_all(&terms, &fault, asked_for),
    };
    if answers.iter().any(|answer| answer.is_refused) {
        asked.forget().await;
    }

    let mut held = asked.budget().hold(&asked.peer, 0)?;
    let mut texts = Vec::with_capacity(answers.len());
    for answer in answers {
        texts.extend(answer.text);
        answer.held.into_iter().for_each(|part| held.join(part));
    }
    let text = match (texts.is_empty(), is_batch) {
        // Notifications alone are not answered.
        (true, _) => return Ok(None),
        (false, true) => format!("[{}]", texts.join(",")),
        (false, false) => texts.swap_remove(0),
    };
    Ok(Some(Body::held(text.into(), held)))
}

/// Reads a body: one request, or a batch of them.
fn parse(body: &[u8], batch_calls_max: usize) -> Result<(Vec<Part>, bool), Failure> {
    let failed = |error: serde_json::Error| Failure::new(PARSE_ERROR, error.to_string());
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return Ok((vec![Part::Call(parse_one(body)?)], false));
    }

    let mut reader = serde_json::Deserializer::from_slice(body);
    let Batch { requests, count } = UpTo(batch_calls_max).deserialize(&mut reader).map_err(failed)?;
    reader.end().map_err(failed)?;
    if count == 0 {
        return Err(Failure::new(INVALID_REQUEST, "the batch is empty"));
    }
    if batch_calls_max < count {
        let text = format!("{count} calls are more than a batch may have: {batch_calls_max}");
        return Err(Failure::new(INVALID_REQUEST, text));
    }
    let part = |request: &RawValue| match parse_one(request.get().as_bytes()) {
        Ok(called) => Part::Call(called),
        Err(failure) => Part::Answer(Failure { code: INVALID_REQUEST, ..failure }.told("null")),
    };
    Ok((requests.into_iter().map(part).collect(), true))
}

/// The requests of a batch.
struct Batch<'a> {
    requests: Vec<&'a RawValue>,
    count: usize,
}

/// Reads a batch. Of so many requests at most it keeps where they are: a place takes more bytes than `1,` does.
struct UpTo(usize);

impl<'de> DeserializeSeed<'de> for UpTo {
    type Value = Batch<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Batch<'de>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for UpTo {
    type Value = Batch<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Batch<'de>, A::Error> {
        let mut batch = Batch { requests: Vec::new(), count: 0 };
        while let Some(request) = all.next_element()? {
            batch.count += 1;
            if batch.count <= self.0 {
                batch.requests.push(request);
            }
        }
        Ok(batch)
    }
}

fn parse_one(body: &[u8]) -> Result<Called, Failure> {
    let failed = |mut text: String| {
        text.truncate(text.floor_char_boundary(WHY_BYTES_MAX));
        Failure::new(PARSE_ERROR, text)
    };
    // An array of the members' values would do for serde, and of any other value it would name a type of this file.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    if !is_object && serde_json::from_slice::<&RawValue>(body).is_ok() {
        return Err(failed("a request is an object".to_owned()));
    }
    let form: Form<'_> = serde_json::from_slice(body).map_err(|error| failed(error.to_string()))?;
    if let Some(version) = form.jsonrpc.filter(|version| version.get() != "\"2.0\"") {
        return Err(failed(format!("invalid RPC version {}", version.get().trim_matches('"'))));
    }
    let id = form.id.map(id).transpose()?.flatten();

    // Without a method and an id it is neither a call nor a notification.
    if form.method.is_none() && id.is_none() {
        return Err(Failure::new(INVALID_REQUEST, "a request has a method"));
    }
    let asked = form.method.unwrap_or_default();
    // As in Go, the method is what follows the last dot; without one it is an error of the call and has its id.
    let (path, method) = asked.rsplit_once('.').filter(|(path, _)| !path.is_empty()).unwrap_or_default();
    let params = form.params.map_or_else(|| Bytes::from_static(b"null"), |params| params.get().to_owned().into());
    Ok(Called { path: path.to_owned(), method: method.to_owned(), params, id })
}

/// An id is a text or a whole number; `null` is none.
fn id(said: &RawValue) -> Result<Option<String>, Failure> {
    let text = said.get();
    let is_id = text.starts_with('"') || text.parse::<i64>().is_ok();
    match text {
        "null" => Ok(None),
        _ if is_id => Ok(Some(text.to_owned())),
        _ => Err(Failure::new(PARSE_ERROR, "an id is a text or a whole number")),
    }
}

/// What became of one part.
#[derive(Default)]
struct Answer {
    /// `None` of a notification.
    text: Option<String>,
    /// The token was refused: the server ends the connection.
    is_refused: bool,
    /// The room that the text takes.
    held: Option<Held>,
}

impl Answer {
    /// Counts the text until its client has it. Without room for it, that is the answer.
    fn hold(mut self, terms: &Terms, id: Option<&str>) -> Self {
        match terms.budget.hold(&terms.peer, self.text.as_ref().map_or(0, String::len)) {
            Ok(held) => self.held = Some(held),
            Err(fault) => {
                let id = id.filter(|id| id.len() <= ID_BYTES_MAX).unwrap_or("null");
                self.text = Some(Failure::of(fault, terms).shown(terms).told(id));
            }
        }
        self
    }
}

/// Makes all calls, some at a time. The answers are in the order of the calls.
async fn call_all(client: &Client, terms: &Terms, parts: Vec<Part>) -> Vec<Answer> {
    if let [Part::Call(_)] = parts.as_slice() {
        // The usual case needs no task.
        let mut answers = Vec::with_capacity(1);
        for part in parts {
            answers.push(answer_part(client.clone(), terms.clone(), part).await);
        }
        return answers;
    }

    let mut answers: Vec<Answer> = parts.iter().map(|_| Answer::default()).collect();
    let (mut waiting, mut running) = (VecDeque::from_iter(parts.into_iter().enumerate()), JoinSet::new());
    loop {
        while running.len() < BATCH_AT_ONCE
            && let Some((at, part)) = waiting.pop_front()
        {
            let (client, terms) = (client.clone(), terms.clone());
            running.spawn(async move { (at, answer_part(client, terms, part).await) });
        }
        match running.join_next().await {
            Some(Ok((at, answer))) => answers[at] = answer,
            // They have no panics of their own, and are aborted only with this future.
            Some(Err(_)) => {}
            None => return answers,
        }
    }
}

async fn answer_part(client: Client, terms: Terms, part: Part) -> Answer {
    let called = match part {
        Part::Answer(text) => return Answer { text: Some(text), ..Answer::default() }.hold(&terms, None),
        Part::Call(called) => called,
    };
    let outcome = match called.path.is_empty() {
        true => Err(Failure::new(METHOD_NOT_FOUND, "must contains servicepath and method")),
        false => call(&client, &terms, &called).await,
    };
    let is_refused = matches!(&outcome, Err(failure) if failure.data == json!("unauthenticated"));
    let text = called.id.as_ref().map(|id| match outcome {
        Ok(result) => format!(r#"{{"jsonrpc":"2.0","result":{result},"id":{id}}}"#),
        Err(failure) => failure.shown(&terms).told(id),
    });
    Answer { text, is_refused, held: None }.hold(&terms, called.id.as_deref())
}

/// Makes one call and gives its result in JSON.
async fn call(client: &Client, terms: &Terms, called: &Called) -> Result<String, Failure> {
    let left = terms.until.saturating_duration_since(Instant::now());
    let options = CallOptions::new().metadata(terms.metadata.clone()).timeout(left);
    let raw = RawCall {
        service_path: &called.path,
        service_method: &called.method,
        serialize: SerializeType::JSON,
        payload: called.params.clone(),
        options,
    };
    if called.id.is_none() {
        client.push_raw(raw).await.map_err(|error| Failure::of(error.into(), terms))?;
        return Ok(String::new());
    }

    let reply = client.call_raw(raw).await.map_err(|error| Failure::of(error.into(), terms))?;
    if reply.payload.is_empty() {
        return Ok("null".to_owned());
    }
    // A handler may have made it by hand.
    match serde_json::from_slice::<&RawValue>(&reply.payload) {
        Ok(result) if reply.serialize == SerializeType::JSON => Ok(result.get().to_owned()),
        _ => Err(Failure::new(INTERNAL_ERROR, "the reply is not JSON")),
    }
}

fn refuse_all(terms: &Terms, fault: &Fault, parts: Vec<Part>) -> Vec<Answer> {
    let refuse = |part: Part| match part {
        Part::Answer(text) => Some(text),
        Part::Call(called) => called.id.map(|id| Failure::of(fault.clone(), terms).shown(terms).told(&id)),
    };
    parts.into_iter().map(|part| Answer { text: refuse(part), ..Answer::default() }).collect()
}

impl Failure {
    fn new(code: i64, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), data: Value::Null }
    }

    fn of(fault: Fault, terms: &Terms) -> Self {
        let code = match fault.status {
            StatusCode::NOT_FOUND if terms.is_strict => METHOD_NOT_FOUND,
            StatusCode::BAD_REQUEST if terms.is_strict => INVALID_PARAMS,
            _ => INTERNAL_ERROR,
        };
        Self { code, text: fault.text, data: json!(fault.kind) }
    }

    /// As the client sees it: Go's data is always null.
    fn shown(self, terms: &Terms) -> Self {
        if terms.tells_kind { self } else { Self { data: Value::Null, ..self } }
    }

    fn told(&self, id: &str) -> String {
        let (code, text, data) = (self.code, json!(self.text), &self.data);
        format!(r#"{{"jsonrpc":"2.0","error":{{"code":{code},"message":{text},"data":{data}}},"id":{id}}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> Result<(String, String, String, Option<String>), i64> {
        let called = parse_one(body.as_bytes()).map_err(|failure| failure.code)?;
        let params = String::from_utf8(called.params.to_vec()).expect("a text");
        Ok((called.path, called.method, params, called.id))
    }

    fn called(
        path: &str,
        method: &str,
        params: &str,
        id: Option<&str>,
    ) -> Result<(String, String, String, Option<String>), i64> {
        Ok((path.to_owned(), method.to_owned(), params.to_owned(), id.map(str::to_owned)))
    }

    #[test]
    fn requests_are_read_as_go_reads_them() {
        for (body, outcome) in [
            (
                r#"{"jsonrpc":"2.0","method":"Arith.Mul","params":{"A":3},"id":1}"#,
                called("Arith", "Mul", r#"{"A":3}"#, Some("1")),
            ),
            (r#"{"method":"a.b.C","params":[1, 2],"id":"x"}"#, called("a.b", "C", "[1, 2]", Some(r#""x""#))),
            (r#"{"jsonrpc":"2.0","method":"A.b"}"#, called("A", "b", "null", None)),
            (r#"{"jsonrpc":"2.0","method":"A.b","id":null}"#, called("A", "b", "null", None)),
            (r#"{"jsonrpc":"2.0","method":"Mul","id":1}"#, called("", "", "null", Some("1"))),
            (r#"{"jsonrpc":"2.0","method":".Mul","id":1}"#, called("", "", "null", Some("1"))),
            (r#"{"jsonrpc":"1.0","method":"A.b","id":1}"#, Err(PARSE_ERROR)),
            (r#"{"jsonrpc":"2.0","method":"A.b","id":2.5}"#, Err(PARSE_ERROR)),
            (r#"{"jsonrpc":"2.0","method":"A.b","id":true}"#, Err(PARSE_ERROR)),
            (r#"{"jsonrpc":"2.0","method":"A.b","id":{}}"#, Err(PARSE_ERROR)),
            ("{}", Err(INVALID_REQUEST)),
            (r#"{"jsonrpc":"2.0","id":null}"#, Err(INVALID_REQUEST)),
            (r#"{"id":1}"#, called("", "", "null", Some("1"))),
            ("nonsense", Err(PARSE_ERROR)),
            ("", Err(PARSE_ERROR)),
            ("null", Err(PARSE_ERROR)),
            (r#"["2.0","A.b",1,1]"#, Err(PARSE_ERROR)),
        ] {
            assert_eq!(parsed(body), outcome, "{body}");
        }
    }

    #[test]
    fn a_batch_has_a_bound_and_a_part_that_is_wrong_spoils_no_other() {
        assert_eq!(parse(b"[]", 2).map(drop).expect_err("empty").code, INVALID_REQUEST);
        assert_eq!(parse(b" [1,2,3]", 2).map(drop).expect_err("too many").code, INVALID_REQUEST);
        let (parts, is_batch) = parse(br#"[{"method":"A.b","id":1},7]"#, 2).ok().expect("two");
        assert!(is_batch && matches!(&parts[0], Part::Call(_)));
        let Part::Answer(text) = &parts[1] else { panic!("7 is no request") };
        assert!(text.contains("-32600") && text.ends_with(r#""id":null}"#), "{text}");
    }

    /// What cannot be read is not sent back as a whole, and a list of values is no request.
    #[test]
    fn why_something_is_not_read_is_short() {
        let long = "é".repeat(10_000);
        let bodies = [format!("{{\"jsonrpc\":\"{long}\"}}"), format!("\"{long}\""), format!("{{\"id\":{long}}}")];
        for body in bodies {
            let failure = parse_one(body.as_bytes()).map(drop).expect_err("it is wrong");
            assert!(failure.text.len() <= WHY_BYTES_MAX, "{}", failure.text.len());
        }
        for batch in [r#"[["2.0","A.b",1,1]]"#, "[1]", "[null]", r#"[ "x" ]"#, "[[]]"] {
            let (parts, _) = parse(batch.as_bytes(), 2).ok().expect("a batch of one");
            let [Part::Answer(text)] = &*parts else { panic!("{batch} has no request") };
            let error = r#"{"code":-32600,"message":"a request is an object","data":null}"#;
            assert_eq!(*text, format!(r#"{{"jsonrpc":"2.0","error":{error},"id":null}}"#), "{batch}");
        }
        for body in ["7", "null", r#""x""#, " true "] {
            let failure = parse_one(body.as_bytes()).map(drop).expect_err("it is no request");
            assert_eq!((failure.code, &*failure.text), (PARSE_ERROR, "a request is an object"), "{body}");
        }
    }
}
