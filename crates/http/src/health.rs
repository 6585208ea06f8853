//! What operators and their tools ask: is it alive, does it take clients, what does it hold.

use bothways::{Server, stats::Counts};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    body::{Body, Response},
    front::Front,
    inside::Home,
};

fn text(status: StatusCode, text: &'static str) -> Response {
    let mut response = http::Response::new(Body::from(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The process answers.
pub(crate) fn is_alive() -> Response {
    text(StatusCode::OK, "alive\n")
}

/// The server takes new clients: not while it drains or shuts down.
pub(crate) fn is_ready(home: &Home) -> Response {
    match home.is_stopping() {
        false => text(StatusCode::OK, "ready\n"),
        true => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

/// Tasks by kind, connections, queues and their bytes. Walks all connections.
pub(crate) fn vars(front: &Front) -> Response {
    let server = front.shared.entrance.home.server();
    let vars = json!({
        "uptime_seconds": front.shared.began.elapsed().as_secs(),
        "process": process(),
        "server": server.as_ref().map(of_server),
        "tasks": server.as_ref().map(|server| tasks(front, server)),
        "queues": server.as_ref().map(|server| queues(front, server)),
        "http": of_front(front),
    });
    let mut response = http::Response::new(Body::from(format!("{vars:#}\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn process() -> Value {
    json!({ "id": std::process::id(), "resident_bytes": resident_bytes() })
}

/// What Linux says that the process has in memory; elsewhere unknown.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn of_server(server: &Server) -> Value {
    let stats = server.stats();
    json!({
        "is_stopping": server.is_stopping(),
        "connections": stats.connections,
        "connections_accepted": stats.connections_accepted,
        "connections_refused": stats.connections_refused,
        "clients_not_admitted": stats.clients_not_admitted,
        "tokens_refused": stats.tokens_refused,
        "sessions": stats.sessions,
        "sessions_away": stats.sessions_away,
        "calls_running": stats.calls_running,
        "overloads": stats.overloads,
        "frames_in": stats.frames_in,
        "bytes_in": stats.bytes_in,
        "frames_out": stats.frames_out,
        "bytes_out": stats.bytes_out,
        "closes": counted(&stats.closes),
        "errors": counted(&stats.errors),
        "drops": counted(&stats.drops),
    })
}

/// Those that are not 0.
fn counted(counts: &Counts) -> Value {
    counts.iter().filter(|(_, count)| *count != 0).map(|(name, count)| (name.to_owned(), json!(count))).collect()
}

fn tasks(front: &Front, server: &Server) -> Value {
    let runtime = tokio::runtime::Handle::current().metrics();
    let mut tasks: serde_json::Map<String, Value> =
        server.stats().tasks.iter().map(|(kind, count)| (kind.to_owned(), count.into())).collect();
    tasks.insert("http_connection".to_owned(), front.stats().connections.into());
    json!({
        "by_kind": tasks,
        "all": runtime.num_alive_tasks(),
        "workers": runtime.num_workers(),
        "waiting_for_a_worker": runtime.global_queue_depth(),
    })
}

fn queues(front: &Front, server: &Server) -> Value {
    let (mut pushes, mut push_bytes, mut calls) = (0, 0, 0);
    for connection in server.connections() {
        let stats = connection.stats();
        pushes += stats.pushes_waiting;
        push_bytes += stats.push_bytes_waiting;
        calls += stats.calls_pending;
    }
    json!({
        "outgoing_bytes": server.stats().outgoing_bytes,
        "pushes_waiting": pushes,
        "push_bytes_waiting": push_bytes,
        "calls_to_clients_pending": calls,
        "http_held_bytes": front.shared.budget.bytes(),
    })
}

fn of_front(front: &Front) -> Value {
    let stats = front.stats();
    json!({
        "connections": stats.connections,
        "connections_refused": stats.connections_refused,
        "requests": stats.requests,
        "streams": stats.streams,
        "streams_waiting": stats.streams_waiting,
        "stream_bytes": stats.stream_bytes,
    })
}
