//! A client, which counts what it has handled.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bothways::{Client, ClientOptions, ConnectionEvent, Reply, Request, Router, client::SessionLost};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::{LONG, until};

/// A message that was handled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Came {
    /// The topic, if it was published.
    pub topic: Option<String>,
    /// Its number.
    pub number: u64,
}

/// A client of one user in the process of the test, with the handlers that nodes push to and call.
#[derive(Debug)]
pub struct User {
    /// For what else a client does, such as subscribing.
    pub client: Client,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// True: what comes waits.
    holds: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Seen {
    came: Vec<Came>,
    runs: HashMap<u64, Runs>,
    events: Vec<ConnectionEvent>,
}

/// How often a call has begun, and ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Runs {
    begun: usize,
    ended: usize,
    cancelled: usize,
}

impl User {
    /// Comes to a node, or to what leads to one, under this name; it tries again at least once a second.
    pub async fn connect(address: impl AsRef<str>, name: &str) -> Self {
        let second = Duration::from_secs(1);
        Self::with(address, ClientOptions::new().auth(name).backoff(second / 20, second)).await
    }

    /// Comes with other options, the name as its token among them.
    pub async fn with(address: impl AsRef<str>, options: ClientOptions) -> Self {
        let shared = Arc::<Shared>::default();
        let (of_pushes, of_calls) = (Arc::clone(&shared), Arc::clone(&shared));
        let handlers = Router::new()
            .handler("Numbers", "Take", move |request| take(Arc::clone(&of_pushes), request))
            .handler("Numbers", "Work", move |request| work(Arc::clone(&of_calls), request));
        let connecting = Client::with_handlers(address.as_ref(), options, handlers);
        let client = timeout(LONG, connecting).await.expect("it is let in").expect("it is let in");
        let (mut events, of_events) = (client.events(), Arc::clone(&shared));
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                of_events.seen.lock().events.push(event);
            }
        });
        Self { client, shared }
    }

    /// From here on what comes waits before it is handled, and so do calls when they have begun.
    pub fn hold(&self) {
        self.shared.holds.send_replace(true);
    }

    /// What was held is handled, and what comes.
    pub fn go_on(&self) {
        self.shared.holds.send_replace(false);
    }

    /// What was handled, in order.
    pub fn came(&self) -> Vec<Came> {
        self.shared.seen.lock().came.clone()
    }

    /// How often the push of this number was handled.
    pub fn times(&self, number: u64) -> usize {
        self.count(|came| came.topic.is_none() && came.number == number)
    }

    /// The numbers that were handled of a topic, in order.
    pub fn of_topic(&self, topic: &str) -> Vec<u64> {
        let seen = self.shared.seen.lock();
        let of_topic = seen.came.iter().filter(|came| came.topic.as_deref() == Some(topic));
        of_topic.map(|came| came.number).collect()
    }

    fn count(&self, which: impl Fn(&Came) -> bool) -> usize {
        self.shared.seen.lock().came.iter().filter(|came| which(came)).count()
    }

    /// How often the call of this number has begun, has ended, and was cancelled.
    pub fn calls(&self, number: u64) -> (usize, usize, usize) {
        let runs = self.shared.seen.lock().runs.get(&number).copied().unwrap_or_default();
        (runs.begun, runs.ended, runs.cancelled)
    }

    /// What happened to its connection.
    pub fn events(&self) -> Vec<ConnectionEvent> {
        self.shared.seen.lock().events.clone()
    }

    /// Why it has lost sessions.
    pub fn sessions_lost(&self) -> Vec<SessionLost> {
        let lost = |event: ConnectionEvent| match event {
            ConnectionEvent::SessionLost { why, .. } => Some(why),
            _ => None,
        };
        self.events().into_iter().filter_map(lost).collect()
    }

    /// How often it was connected again.
    pub fn times_back(&self) -> usize {
        self.events().iter().filter(|event| matches!(event, ConnectionEvent::Restored { .. })).count()
    }

    /// Whether it missed something of a topic, each time that it subscribed again by itself.
    pub fn recovered(&self, of: &str) -> Vec<bool> {
        let recovered = |event: ConnectionEvent| match event {
            ConnectionEvent::Resubscribed { topic, recovered, .. } if &*topic == of => Some(recovered),
            _ => None,
        };
        self.events().into_iter().filter_map(recovered).collect()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        until(what, async || holds(self)).await;
    }
}

impl Shared {
    async fn goes_on(&self) {
        let _ = self.holds.subscribe().wait_for(|holds| !holds).await;
    }
}

async fn take(shared: Arc<Shared>, request: Request) -> Reply {
    shared.goes_on().await;
    let topic = request.topic();
    match number_of(&request) {
        Some(number) => shared.seen.lock().came.push(Came { topic, number }),
        None => return Reply::error("no number"),
    }
    Reply::ok("")
}

/// Counts as cancelled if it is dropped before it has ended.
struct Run {
    shared: Arc<Shared>,
    number: u64,
    has_ended: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut seen = self.shared.seen.lock();
        let runs = seen.runs.entry(self.number).or_default();
        match self.has_ended {
            true => runs.ended += 1,
            false => runs.cancelled += 1,
        }
    }
}

async fn work(shared: Arc<Shared>, request: Request) -> Reply {
    let Some(number) = number_of(&request) else { return Reply::error("no number") };
    shared.seen.lock().runs.entry(number).or_default().begun += 1;
    let mut run = Run { shared: Arc::clone(&shared), number, has_ended: false };
    shared.goes_on().await;
    run.has_ended = true;
    Reply::encode(&number.to_string(), request.serialize_type())
}

fn number_of(request: &Request) -> Option<u64> {
    let payload = request.payload().ok()?;
    match std::str::from_utf8(&payload).ok().and_then(|text| text.parse().ok()) {
        Some(number) => Some(number),
        None => request.decode::<String>().ok()?.parse().ok(),
    }
}
