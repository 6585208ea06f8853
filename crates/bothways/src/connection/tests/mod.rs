//! Two engines that face each other over a pipe as small as one likes.
//!
//! | file | what it does |
//! |---|---|
//! | `busy.rs` | when a connection counts as busy |
//! | `copies.rs` | requests that run for long do not keep the reads in which they came |
//! | `ends.rs` | how the socket of a connection that is over is let go |
//! | `fairness.rs` | one connection's large frame does not hold up the others |
//! | `noted.rs` | a socket that tells what it moves |
//! | `model.rs` | random scripts against a simple model: each call ends once, with a truthful outcome |
//! | `states.rs` | what a connection answers in each of its states |
//! | `takeover.rs` | what is asked for while a caller writes happens after it |
//! | `threads.rs` | many threads on one connection whose socket is full most of the time |
//! | `together.rs` | callers that are answered together call together |
//! | `turns.rs` | what the network brings is handled between two turns of a large frame |
//! | `wakers.rs` | nobody is woken, and nothing of an application's dropped, under the lock |

mod busy;
mod copies;
mod ends;
mod fairness;
mod model;
mod noted;
mod states;
mod takeover;
mod threads;
mod together;
#[cfg(unix)]
mod turns;
mod wakers;

use std::{
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bothways_proto::{Message, Metadata, Role, SerializeType};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Connection, ConnectionHandler, Settings};
use crate::{
    caller::{CallOptions, Caller, RawCall},
    error::{CallError, CloseReason},
    reply::{BoxFuture, Reply},
    transport::{AnySocket, Socket, memory, memory::MemorySocket},
};

/// Ends the whole run, and fails it, if a test that holds it takes longer than any that does not hang. A task that
/// turns in a circle lets no timer of its runtime pass.
struct Limit(#[expect(dead_code, reason = "dropped with the test")] std::sync::mpsc::Sender<()>);

/// See [`Limit`]. Two minutes: a hundred times what the slowest of these tests needs.
fn limit(test: &'static str) -> Limit {
    let (sender, ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(120)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the test `{test}` hangs");
            std::process::exit(1);
        }
    });
    Limit(sender)
}

/// A socket that the test can break.
#[derive(Clone)]
struct Breakable(Arc<MemorySocket>);

impl Socket for Breakable {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_read(cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, slices)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(slices)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }

    fn peer(&self) -> String {
        self.0.peer()
    }
}

/// With its counters and what glibc adds it takes 368 bytes, and these with the 272 of tokio's socket just five
/// lines of 128 bytes, to which the socket is aligned: 16 bytes more take 128 more of each idle client.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[test]
fn a_connection_leaves_no_hole_beside_its_socket() {
    let counters = 2 * size_of::<usize>();
    // There mio keeps a number with each socket.
    let of_debug = if cfg!(debug_assertions) { 8 } else { 0 };
    assert!(counters + size_of::<super::Shared>() <= 360 + of_debug, "{}", size_of::<super::Shared>());
}

/// With the 104 bytes that tokio adds, the task of a read is two lines of 128 bytes. A larger one takes three, and leaves
/// a larger hole when what was allocated beside it stays.
#[cfg(target_pointer_width = "64")]
#[test]
fn the_task_of_a_read_is_small() {
    assert!(104 + size_of::<super::driver::Driver>() <= 256, "{}", size_of::<super::driver::Driver>());
}

/// A call of method `wait`, to be answered by the test.
struct Asked {
    payload: Bytes,
    answer: oneshot::Sender<Reply>,
}

/// What one end hears.
struct Heard {
    asked: mpsc::UnboundedReceiver<Asked>,
    pushes: mpsc::UnboundedReceiver<Bytes>,
    closed: mpsc::UnboundedReceiver<CloseReason>,
}

struct Receivers {
    asked: mpsc::UnboundedSender<Asked>,
    pushes: mpsc::UnboundedSender<Bytes>,
    closed: mpsc::UnboundedSender<CloseReason>,
}

impl ConnectionHandler for Receivers {
    fn handle_request(&self, _: &Connection, message: Message) -> Answer {
        let payload = message.wire_payload();
        // The test may have stopped listening.
        if message.header().is_oneway() {
            let _ = self.pushes.send(payload);
            return Answer::Nothing;
        }
        if message.service_method() == "echo" {
            return Answer::Ready(Reply::ok(payload));
        }
        let (answer, reply) = oneshot::channel();
        let _ = self.asked.send(Asked { payload, answer });
        Answer::Later(Box::pin(async { reply.await.unwrap_or_else(|_| Reply::error("the test is over")) }), None)
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), crate::error::AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, _: &Connection, reason: &CloseReason) {
        let _ = self.closed.send(reason.clone());
    }
}

fn ears() -> (Arc<dyn ConnectionHandler>, Heard) {
    let ((asked, a), (pushes, b), (closed, c)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel(), mpsc::unbounded_channel());
    (Arc::new(Receivers { asked, pushes, closed }), Heard { asked: a, pushes: b, closed: c })
}

/// Client and server, negotiated, what each hears, and the pipe between them.
async fn engines(buffer_bytes: usize, settings: Settings) -> ([Connection; 2], [Heard; 2], Breakable) {
    let (client, server) = memory::pair(buffer_bytes);
    let (client, server) = (Breakable(Arc::new(client)), Breakable(Arc::new(server)));
    let settings = Arc::new(settings);
    let start = |role, socket: &Breakable, hello| {
        let (handler, heard) = ears();
        let socket = AnySocket::Other(Box::new(socket.clone()));
        (Connection::start(role, socket, Arc::clone(&settings), handler, hello, |_| {}), heard)
    };
    let (server_end, server_heard) = start(Role::Server, &server, None);
    let (client_end, client_heard) = start(Role::Client, &client, Some(Metadata::new()));
    while !(client_end.is_negotiated() && server_end.is_negotiated()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    ([client_end, server_end], [client_heard, server_heard], client)
}

async fn call(connection: &Connection, service_method: &str, payload: Bytes) -> Result<Bytes, CallError> {
    let (serialize, options) = (SerializeType::RAW, CallOptions::new());
    let call = RawCall { service_path: "T", service_method, serialize, payload, options };
    Ok(connection.call_raw(call).await?.payload)
}

/// Calls for the payload back, from a handler that is ready at once (`in_line`), or from a task that the test wakes.
async fn call_back(asking: &Connection, heard: &mut Heard, in_line: bool, payload: Bytes) -> Result<Bytes, CallError> {
    if in_line {
        return call(asking, "echo", payload).await;
    }
    let answer = async {
        let asked = heard.asked.recv().await.expect("it asks");
        let _ = asked.answer.send(Reply::ok(payload));
    };
    tokio::join!(call(asking, "wait", Bytes::new()), answer).0
}
