//! The services of `serve` and `demo`: arithmetic, echoes, and what a load test needs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways::{Connection, Metadata, PushError, Reply, Request, Router, connection::ConnectionId, raw::FanOut};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Most messages, and most bytes of each, that one `Bench.Broadcast` sends to a connection.
const BROADCAST_MAX: (usize, usize) = (1_000_000, 1 << 20);

/// How long a broadcast waits for one connection to take a message.
const ROOM_WAIT: Duration = Duration::from_secs(5);

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

    router
        .handler("Demo", "Login", login)
        .handler("Echo", "Echo", echo)
        .handler("Bench", "Echo", echo)
        .handler("Bench", "Join", move |request: Request| {
            joining.remember(request.connection());
            std::future::ready(Reply::ok(Bytes::new()))
        })
        .handler("Bench", "Broadcast", move |request: Request| {
            let joined = joined.clone();
            async move {
                match request.payload().map_err(|error| error.to_string()).and_then(|asked| how_much(&asked)) {
                    Ok((count, size)) => broadcast(&joined, count, size).await,
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

/// Makes the caller's session one of this user, and subscribes it. A demo: nobody is asked for a proof.
fn login(request: Request) -> std::future::Ready<Reply> {
    let session = request.session();
    std::future::ready(match request.into_typed::<Login>() {
        Ok((context, Login { user, topics })) => {
            let Some(session) = session else { return std::future::ready(Reply::error("the session is over")) };
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
        [count, size] if count <= count_max && (8..=size_max).contains(&size) => Ok((count, size)),
        _ => Err(format!("the payload is `COUNT SIZE`: at most {count_max} messages of 8 to {size_max} bytes each")),
    }
}

/// Sends every message to everyone who joined. Each begins with the time it left at. A connection whose
/// queue is full is waited for, so that a load test measures delivery and not the queue's size.
async fn broadcast(joined: &Remembered, count: usize, size: usize) -> Reply {
    let mut payload = vec![0; size];

    for _ in 0..count {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        payload[..8].copy_from_slice(&now.to_be_bytes());
        let message = Bytes::copy_from_slice(&payload);

        // `all` copies the list: the lock is not held while a full queue is waited for.
        for connection in joined.all() {
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
        for wrong in [&b""[..], b"100", b"100 7", b"1000001 64", b"1 1048577", b"-1 64", b"1 2 3", b"\xff"] {
            assert!(how_much(wrong).is_err());
        }
    }
}
