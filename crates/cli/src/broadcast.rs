//! Load the other way: a server pushes to many connections, and every push is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bothways::{
    CallOptions, Caller, Client, ClientOptions, QueueBound, SerializeType, ServerMessages, caller::RawCall,
};
use bytes::Bytes;
use serde::Serialize;
use tokio::task::{JoinError, JoinSet};

use crate::{
    args::LoadArgs,
    failure::{Exit, Failure},
    latency::{Latency, Quantiles},
    load, plan,
    term::{self, Out},
};

/// After the broadcast is done, this long without a push means that no more come.
const SILENCE: Duration = Duration::from_secs(2);

/// How many messages of how many bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Asked {
    count: u64,
    size: usize,
}

impl Asked {
    fn new(typed: &[String]) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::usage(format!("--broadcast {}: {why}", typed.join(" ")));
        let [count, size] = typed else { return Err(wrong("give COUNT and SIZE")) };
        let count = count.parse().ok().filter(|count| 0 < *count).ok_or_else(|| wrong("COUNT is a number from 1"))?;
        let size = plan::size(size).map_err(|why| wrong(&why))?;
        if size < 8 {
            return Err(wrong("SIZE is at least 8: each message begins with the time it left at"));
        }
        Ok(Self { count, size })
    }

    /// How many pushes so many connections together are to receive.
    fn pushes(self, connections: u32) -> u64 {
        // More than can be counted, or be sent: the server refuses long before.
        self.count.saturating_mul(u64::from(connections))
    }
}

pub(crate) async fn run(args: &LoadArgs, typed: &[String]) -> Result<(), Failure> {
    let asked = Asked::new(typed)?;
    // Room for a million pushes, so that hardly any is dropped at this end.
    let options = args.peer.options()?.message_queue(QueueBound::messages(1 << 20).bytes(1 << 30));
    let asking = args.peer.connect(options.clone()).await?;
    let receivers = Receivers::connect(args, asked, options).await?;

    let broadcast = call(&asking, "Broadcast", format!("{} {}", asked.count, asked.size).into(), args.duration);
    let Outcome { answer, heard, elapsed } = receivers.receive(broadcast, args, asked).await;
    report(args, asked, &heard, elapsed)?;

    match answer {
        Some(Err(failure)) => Err(failure),
        None => Err(Failure::new(Exit::Timeout, "Bench.Broadcast was not answered in time")
            .hint("allow more time with --duration, or ask for fewer messages")),
        Some(Ok(())) => verdict(args, asked, &heard),
    }
}

/// The connections that receive the broadcast, with a reader for each.
struct Receivers {
    clients: Vec<Client>,
    readers: JoinSet<Heard>,
    /// Pushes that all readers have received so far.
    received: Arc<AtomicU64>,
}

impl Receivers {
    async fn connect(args: &LoadArgs, asked: Asked, options: ClientOptions) -> Result<Self, Failure> {
        let received = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        let mut clients = Vec::new();
        for _ in 0..args.connections {
            let (client, messages) = join(args, options.clone()).await?;
            clients.push(client);
            readers.spawn(read(messages, asked, Arc::clone(&received)));
        }
        Ok(Self { clients, readers, received })
    }

    /// Makes the call that starts the broadcast, and receives until the call is answered and all pushes are there, or
    /// until no more pushes are expected.
    async fn receive(
        mut self,
        broadcast: impl Future<Output = Result<(), Failure>>,
        args: &LoadArgs,
        asked: Asked,
    ) -> Outcome {
        let bar = load::bar(asked.pushes(args.connections));
        let began = Instant::now();
        tokio::pin!(broadcast);

        let (mut answer, mut complete_after) = (None, None);
        let mut heard = Heard::new();
        let mut progress = Progress { received: 0, changed: Instant::now() };
        let mut ticks = tokio::time::interval(Duration::from_millis(50));

        loop {
            tokio::select! {
                reply = &mut broadcast, if answer.is_none() => {
                    answer = Some(reply);
                    progress.changed = Instant::now();
                }
                Some(done) = self.readers.join_next() => {
                    heard.add(&of_reader(done));
                    if self.readers.is_empty() {
                        // Each reader has all its pushes, or lost its connection: only the answer can still come.
                        progress.update(&self.received);
                        complete_after = (heard.received == asked.pushes(args.connections)).then(|| began.elapsed());
                        if answer.is_some() {
                            break;
                        }
                    }
                }
                _ = ticks.tick() => {
                    bar.set_position(progress.update(&self.received));

                    // Pushes may follow the answer, until nothing has come for a while.
                    let is_over = self.readers.is_empty() || SILENCE <= progress.changed.elapsed();
                    if args.duration <= began.elapsed() || (answer.is_some() && is_over) {
                        break;
                    }
                }
                _ = tokio::signal::ctrl_c() => break,
            }
        }

        bar.finish_and_clear();
        self.close(&mut heard).await;

        // Without all pushes: until the last of them came, or the answer if that was later.
        let elapsed = complete_after.unwrap_or_else(|| progress.changed.duration_since(began));
        Outcome { answer, heard, elapsed }
    }

    /// Closes the connections, and adds what the remaining readers received.
    async fn close(mut self, heard: &mut Heard) {
        // Closing ends the streams, and with them the readers that still wait.
        self.clients.iter().for_each(Client::close);
        while let Some(done) = self.readers.join_next().await {
            heard.add(&of_reader(done));
        }
    }
}

/// Returns what a reader received. Panics if the reader panicked: its pushes would otherwise be reported as missing, as
/// if the server had not sent them.
fn of_reader(done: Result<Heard, JoinError>) -> Heard {
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What became of a broadcast.
struct Outcome {
    /// The answer to the call that started it, if it came in time.
    answer: Option<Result<(), Failure>>,
    heard: Heard,
    /// Until all pushes were there; without all of them, until the last push or the answer.
    elapsed: Duration,
}

/// How many pushes had been received when this was last looked at.
struct Progress {
    received: u64,
    /// When that number last grew, or the answer came.
    changed: Instant,
}

impl Progress {
    /// Returns how many pushes have been received by now.
    fn update(&mut self, received: &AtomicU64) -> u64 {
        let now = received.load(Ordering::Relaxed);
        if now != self.received {
            *self = Self { received: now, changed: Instant::now() };
        }
        now
    }
}

async fn join(args: &LoadArgs, options: ClientOptions) -> Result<(Client, ServerMessages), Failure> {
    let (client, messages) = Client::bidirectional(&args.peer.address.to_string(), options)
        .await
        .map_err(|error| Failure::connect(&error))?;
    call(&client, "Join", Bytes::new(), args.timeout).await?;
    Ok((client, messages))
}

async fn call(client: &Client, service_method: &str, payload: Bytes, timeout: Duration) -> Result<(), Failure> {
    let options = CallOptions::new().timeout(timeout);
    let call = RawCall { service_path: "Bench", service_method, serialize: SerializeType::RAW, payload, options };
    let reply = client.call_raw(call).await;
    reply.map(|_| ()).map_err(|error| Failure::call(&format!("Bench.{service_method}"), &error))
}

/// What one connection, or all of them, heard.
#[derive(Clone, Debug)]
struct Heard {
    received: u64,
    out_of_order: u64,
    malformed: u64,
    dropped_here: u64,
    latency: Latency,
}

impl Heard {
    fn new() -> Self {
        Self { received: 0, out_of_order: 0, malformed: 0, dropped_here: 0, latency: Latency::new() }
    }

    fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.out_of_order += other.out_of_order;
        self.malformed += other.malformed;
        self.dropped_here += other.dropped_here;
        self.latency.add(&other.latency);
    }

    /// Takes in one message that left before `now`, nanoseconds since 1970; `last` is when the one before it left.
    fn take(&mut self, payload: &[u8], size: usize, now: u64, last: &mut u64) {
        let Some(left) = payload.first_chunk().filter(|_| payload.len() == size) else {
            self.malformed += 1;
            return;
        };
        let left = u64::from_be_bytes(*left);
        self.received += 1;
        self.out_of_order += u64::from(left < *last);
        *last = left;
        self.latency.record(Duration::from_nanos(now.saturating_sub(left)));
    }
}

/// Reads until all messages are there, or the connection is lost or closed.
async fn read(mut messages: ServerMessages, asked: Asked, received: Arc<AtomicU64>) -> Heard {
    let (mut heard, mut last) = (Heard::new(), 0);
    while heard.received < asked.count
        && let Some(message) = messages.next().await
    {
        if (message.service_path(), message.service_method()) != ("Bench", "Tick") {
            continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        heard.take(&message.payload().unwrap_or_default(), asked.size, now, &mut last);
        received.fetch_add(1, Ordering::Relaxed);
    }
    heard.dropped_here = messages.dropped();
    heard
}

fn missing(args: &LoadArgs, asked: Asked, heard: &Heard) -> u64 {
    asked.pushes(args.connections).saturating_sub(heard.received)
}

fn report(args: &LoadArgs, asked: Asked, heard: &Heard, elapsed: Duration) -> Result<(), Failure> {
    let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
    let report = Report {
        address: args.peer.address.to_string(),
        connections: args.connections,
        messages: asked.count,
        message_bytes: asked.size,
        seconds,
        deliveries: heard.received,
        deliveries_per_second: heard.received as f64 / seconds,
        missing: missing(args, asked, heard),
        out_of_order: heard.out_of_order,
        malformed: heard.malformed,
        dropped_here: heard.dropped_here,
        latency: heard.latency.quantiles(),
    };

    let out = Out::new();
    if args.json {
        return out.line(&serde_json::to_string(&report).expect("a report can be written as JSON"));
    }
    out.line(&report.to_string())
}

fn verdict(args: &LoadArgs, asked: Asked, heard: &Heard) -> Result<(), Failure> {
    let missing = missing(args, asked, heard);
    if [missing, heard.out_of_order, heard.malformed] == [0; 3] {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Peer,
        format!("{missing} missing, {} out of order, {} malformed", heard.out_of_order, heard.malformed),
    ))
}

#[derive(Serialize)]
struct Report {
    address: String,
    connections: u32,
    messages: u64,
    message_bytes: usize,
    seconds: f64,
    deliveries: u64,
    deliveries_per_second: f64,
    missing: u64,
    out_of_order: u64,
    malformed: u64,
    /// Arrived, but this program could not keep up.
    dropped_here: u64,
    latency: Quantiles,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} pushed {} of {} bytes to {}",
            self.address,
            term::count(self.messages, "message"),
            term::grouped(self.message_bytes as u64),
            term::count(self.connections.into(), "connection"),
        )?;

        writeln!(
            f,
            "{} deliveries per second; {} in {}; {} missing, {} out of order",
            term::grouped(self.deliveries_per_second as u64),
            term::grouped(self.deliveries),
            term::time(Duration::from_secs_f64(self.seconds)),
            term::grouped(self.missing),
            term::grouped(self.out_of_order),
        )?;

        if self.dropped_here != 0 {
            writeln!(f, "{} arrived and were dropped, for this program could not keep up", self.dropped_here)?;
        }
        write!(f, "{}", self.latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_and_their_order_is_seen() {
        let (mut heard, mut last) = (Heard::new(), 0);
        for left in [1000_u64, 2000, 1500, 3000] {
            heard.take(&[&left.to_be_bytes()[..], b"x"].concat(), 9, 4000, &mut last);
        }
        heard.take(b"short", 9, 4000, &mut last);
        assert_eq!((heard.received, heard.out_of_order, heard.malformed), (4, 1, 1));
        assert_eq!(heard.latency.quantiles().max_us, 3.0);
    }

    #[test]
    fn a_broadcast_is_a_count_and_a_size() {
        let asked = |count: &str, size: &str| Asked::new(&[count.to_owned(), size.to_owned()]);
        assert_eq!(asked("100", "1KiB").expect("right"), Asked { count: 100, size: 1024 });
        for (count, size) in [("0", "64"), ("x", "64"), ("1", "7"), ("1", "x")] {
            assert_eq!(asked(count, size).expect_err("wrong").exit(), Some(Exit::Usage), "{count} {size}");
        }
        let most = asked(&u64::MAX.to_string(), "8").expect("a number");
        assert_eq!((most.pushes(1), most.pushes(1000)), (u64::MAX, u64::MAX), "as many as can be counted");
    }
}
