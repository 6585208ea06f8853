//! What several topics need.

use std::{
    future::Future,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Caller, Connection, Handler, PushError, Reply, Request, SerializeType, Server,
    ServerBuilder,
    caller::{RawCall, RawReply},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Arguments as Go declares them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Args {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

/// The reply as Go declares it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Product {
    pub(crate) c: i64,
}

/// An address in memory that no other test uses.
pub(crate) fn address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("memu@it-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A builder whose server multiplies.
pub(crate) fn arith() -> ServerBuilder {
    Server::builder().function(
        "Arith",
        "Mul",
        |args: Args| async move { Ok::<_, String>(Product { c: args.a * args.b }) },
    )
}

/// A request of service `T` that a test answers when it likes.
pub(crate) struct Asked {
    pub(crate) request: Request,
    answer: oneshot::Sender<Reply>,
}

impl Asked {
    pub(crate) fn answer(self, reply: Reply) {
        // Nobody listens if the handler was dropped meanwhile.
        let _ = self.answer.send(reply);
    }

    /// Waits until the handler is dropped without an answer.
    pub(crate) async fn dropped(&mut self) {
        soon(self.answer.closed()).await;
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.answer.is_closed()
    }
}

/// A handler whose requests the test gets and answers.
pub(crate) fn gate() -> (impl Handler + Clone, mpsc::UnboundedReceiver<Asked>) {
    let (sender, asked) = mpsc::unbounded_channel();
    let handler = move |request: Request| {
        let sender = sender.clone();
        async move {
            let (answer, reply) = oneshot::channel();
            // The test may be over.
            let _ = sender.send(Asked { request, answer });
            reply.await.unwrap_or_else(|_| Reply::error("the test gave no answer"))
        }
    };
    (handler, asked)
}

/// A handler that gives the payload back.
pub(crate) fn echo(request: Request) -> std::future::Ready<Reply> {
    std::future::ready(Reply::ok(request.payload().expect("not compressed")))
}

/// A builder whose service `T` echoes.
pub(crate) fn echoing() -> ServerBuilder {
    Server::builder().handler("T", "Echo", echo)
}

/// Calls `T` with raw bytes.
pub(crate) async fn call(caller: &impl Caller, method: &str, payload: impl Into<Bytes>) -> Result<Bytes, CallError> {
    Ok(call_with(caller, method, payload, CallOptions::new()).await?.payload)
}

pub(crate) async fn call_with(
    caller: &impl Caller,
    service_method: &str,
    payload: impl Into<Bytes>,
    options: CallOptions,
) -> Result<RawReply, CallError> {
    let (serialize, payload) = (SerializeType::RAW, payload.into());
    let call = caller.call_raw(RawCall { service_path: "T", service_method, serialize, payload, options });
    soon(call).await
}

/// Sends raw bytes to `T`, without a reply.
pub(crate) async fn oneshot_to(
    caller: &impl Caller,
    service_method: &str,
    payload: impl Into<Bytes>,
) -> Result<(), PushError> {
    let (serialize, payload, options) = (SerializeType::RAW, payload.into(), CallOptions::new());
    caller.push_raw(RawCall { service_path: "T", service_method, serialize, payload, options }).await
}

/// A connection of the server, once it has that many.
pub(crate) async fn connections(server: &Server, count: usize) -> Vec<Connection> {
    until(|| server.connections().len() == count).await;
    server.connections()
}

/// Waits until something is true.
pub(crate) async fn until(mut is_true: impl FnMut() -> bool) {
    soon(async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Lets everything happen that can happen without waiting for a deadline.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Waits for what must happen: far longer than any deadline of these tests, in their own time.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(3600), future).await.expect("it takes for ever")
}

/// What was logged, for a subscriber to write to. A clone is the same log.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
