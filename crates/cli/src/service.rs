//! The services of `serve` and `demo`: arithmetic, echoes, and what a load test needs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways::{Connection, Metadata, PushError, Reply, Request, Router, connection::ConnectionId, raw::FanOut};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Most messages, and most bytes of each, that one `Bench.Broadcast` sends to a connection.
const BROADCAST_MAX: (usize, usize) = (1_000_000, 1 << 20);

/// Most bytes that it sends to a connection in all. 1 GiB.
const BROADCAST_BYTES_MAX: usize = 1 << 30;

/// How long a broadcast waits for one connection to take a message.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// Most topics of a session that `Demo.Login` subscribes.
const TOPICS_MAX: usize = 100;

/// Numbers to calculate with, as Go's example declares them.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(crate) struct Numbers {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

/// What came out, as Go's example declares it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Answer {
    pub(crate) c: i64,
}

/// Who somebody says to be, and what they want to hear of.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Login {
    user: String,
    topics: Vec<String>,
}

/// Connections to push to: those that asked for it, for as long as they are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    connections: Arc<Mutex<HashMap<ConnectionId, Connection>>>,
}

impl Remembered {
    pub(crate) fn remember(&self, connection: &Connection) {
        self.lock().entry(connection.id()).or_insert_with(|| connection.clone());
    }

    pub(crate) fn forget(&self, connection: &Connection) {
        self.lock().remove(&connection.id());
    }

    pub(crate) fn all(&self) -> Vec<Connection> {
        self.lock().values().cloned().collect()
    }

    /// Sends one message to all of them; those that are over are forgotten.
    pub(crate) fn push(&self, service_path: &str, service_method: &str, payload: &Bytes) -> FanOut {
        let mut outcome = FanOut::default();
        for connection in self.all() {
            match connection.send_message(service_path, service_method, &Metadata::new(), payload.clone()) {
                Ok(_) => outcome.queued += 1,
                Err(PushError::Full { .. }) => outcome.full += 1,
                Err(_) => {
                    outcome.closed += 1;
                    self.forget(&connection);
                }
            }
        }
        outcome
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ConnectionId, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All services. `callers` are remembered by `Arith`, `joined` by `Bench.Join`.
pub(crate) fn routes(callers: &Remembered, joined: &Remembered) -> Router {
    let router = Router::new();
    let router = arith(router, "Mul", callers, |Numbers { a, b }| a.checked_mul(b).ok_or(OVERFLOW));
    let router = arith(router, "Add", callers, |Numbers { a, b }| a.checked_add(b).ok_or(OVERFLOW));
    let router = arith(router, "Sub", callers, |Numbers { a, b }| a.checked_sub(b).ok_or(OVERFLOW));
    let router = arith(router, "Div", callers, |Numbers { a, b }| match b {
        0 => Err("division by zero"),
        b => a.checked_div(b).ok_or(OVERFLOW),
    });

    let joining = joined.clone();
    let joined = joined.clone();
    let turn = Arc::new(Semaphore::new(1));

    router
        .handler("Demo", "Login", login)
        .handler("Echo", "Echo", echo)
        .handler("Bench", "Echo", echo)
        .handler("Bench", "Join", move |request: Request| {
            joining.remember(request.connection());
            std::future::ready(Reply::ok(Bytes::new()))
        })
        .handler("Bench", "Broadcast", move |request: Request| {
            let (joined, turn) = (joined.clone(), Arc::clone(&turn));
            async move {
                let asked = request.payload().map_err(|error| error.to_string());
                match asked.and_then(|asked| how_much(&asked)) {
                    Ok((count, size)) => {
                        let gone = request.connection().closed();
                        alone(&turn, gone, broadcast(&joined, count, size)).await
                    }
                    Err(why) => Reply::error(why),
                }
            }
        })
}

const OVERFLOW: &str = "the result does not fit into 64 bits";

fn arith(
    router: Router,
    service_method: &str,
    callers: &Remembered,
    calculate: fn(Numbers) -> Result<i64, &'static str>,
) -> Router {
    let callers = callers.clone();
    router.handler("Arith", service_method, move |request: Request| {
        callers.remember(request.connection());
        std::future::ready(match request.into_typed::<Numbers>() {
            Ok((context, numbers)) => context.into_reply(calculate(numbers).map(|c| Answer { c })),
            Err(refusal) => refusal,
        })
    })
}

/// Does this for its caller, if nobody else has it done, and stops when the caller is gone.
async fn alone<T>(turn: &Semaphore, gone: impl Future<Output = T>, work: impl Future<Output = Reply>) -> Reply {
    let Ok(_turn) = turn.try_acquire() else {
        return Reply::error("another broadcast is under way: one is sent at a time");
    };
    tokio::select! {
        reply = work => reply,
        _ = gone => Reply::error("the caller is gone"),
    }
}

/// Makes the caller's session one of this user, and subscribes it. A demo: nobody is asked for a proof. The server's own
/// subscriptions are never refused, so what a stranger may have subscribed is bounded here.
fn login(request: Request) -> std::future::Ready<Reply> {
    let session = request.session();
    std::future::ready(match request.into_typed::<Login>() {
        Ok((context, Login { user, topics })) => {
            let Some(session) = session else { return std::future::ready(Reply::error("the session is over")) };
            let has = session.subscriptions();
            let is_new = |topic: &&String| TOPICS_MAX < topics.len() || !has.contains(topic);
            if TOPICS_MAX < has.len() + topics.iter().filter(is_new).count() {
                let why = format!("a session is subscribed to at most {TOPICS_MAX} topics here");
                return std::future::ready(Reply::error(why));
            }
            session.bind_user(&user);
            let subscribed = topics.iter().try_for_each(|pattern| session.subscribe(pattern));
            context.into_reply(subscribed.map(|()| session.id().to_string()))
        }
        Err(refusal) => refusal,
    })
}

/// The same bytes, in the same codec.
fn echo(request: Request) -> std::future::Ready<Reply> {
    std::future::ready(match request.payload() {
        Ok(payload) => Reply::ok(payload),
        Err(error) => Reply::error(error.to_string()),
    })
}

fn how_much(asked: &[u8]) -> Result<(usize, usize), String> {
    let text = str::from_utf8(asked).unwrap_or_default();
    let numbers: Vec<usize> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let (count_max, size_max) = BROADCAST_MAX;
    match numbers[..] {
        [count, size]
            if count <= count_max
                && (8..=size_max).contains(&size)
                && count.saturating_mul(size) <= BROADCAST_BYTES_MAX =>
        {
            Ok((count, size))
        }
        _ => Err(format!(
            "the payload is `COUNT SIZE`: at most {count_max} messages of 8 to {size_max} bytes each, and \
             {BROADCAST_BYTES_MAX} bytes in all"
        )),
    }
}

/// Sends every message to everyone who joined. Each begins with the time it left at. A connection whose
/// queue is full is waited for, so that a load test measures delivery and not the queue's size. When nobody is there any
/// more, it ends.
async fn broadcast(joined: &Remembered, count: usize, size: usize) -> Reply {
    let mut payload = vec![0; size];

    for sent in 0..count {
        // `all` copies the list: the lock is not held while a full queue is waited for.
        let to = joined.all();
        if to.is_empty() {
            return Reply::error(format!("nobody has joined any more: {sent} of {count} messages were sent"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        payload[..8].copy_from_slice(&now.to_be_bytes());
        let message = Bytes::copy_from_slice(&payload);

        for connection in to {
            let nothing = Metadata::new();
            let sent = match connection.send_message("Bench", "Tick", &nothing, message.clone()) {
                Err(PushError::Full { .. }) => {
                    connection.send_message_within(ROOM_WAIT, "Bench", "Tick", &nothing, message.clone()).await
                }
                sent => sent,
            };
            if sent.is_err() {
                joined.forget(&connection);
            }
        }

        tokio::task::yield_now().await;
    }
    Reply::ok(Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broadcast_is_bounded() {
        assert_eq!(how_much(b"100 64"), Ok((100, 64)));
        for wrong in
            [&b""[..], b"100", b"100 7", b"1000001 64", b"1 1048577", b"1025 1048576", b"-1 64", b"1 2 3", b"\xff"]
        {
            assert!(how_much(wrong).is_err());
        }
        assert_eq!(how_much(b"1024 1048576"), Ok((1024, 1 << 20)));
    }

    /// What a reply says, once it is there.
    async fn said(reply: impl Future<Output = Reply>) -> String {
        let reply = tokio::time::timeout(Duration::from_secs(60), reply).await.expect("it ends");
        format!("{reply:?}")
    }

    /// A broadcast costs a server nothing when there is nobody to send to, its caller has gone, or another one runs.
    #[tokio::test]
    async fn a_broadcast_is_sent_alone_and_for_somebody() {
        let (turn, nobody) = (Semaphore::new(1), Remembered::default());
        let stays = || std::future::pending::<()>();
        let long = || broadcast(&nobody, 1_000_000, 1 << 20);
        assert!(said(alone(&turn, stays(), long())).await.contains("nobody has joined"));

        let unheard = alone(&turn, std::future::ready(()), std::future::pending());
        assert!(said(unheard).await.contains("the caller is gone"));

        let mut first = Box::pin(alone(&turn, stays(), std::future::pending()));
        let begun = std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx).is_pending()));
        assert!(begun.await && said(alone(&turn, stays(), long())).await.contains("another broadcast"));
        drop(first);
        assert!(said(alone(&turn, stays(), long())).await.contains("nobody has joined"), "the turn is free again");
    }
}
