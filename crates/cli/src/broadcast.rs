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
}

pub(crate) async fn run(args: &LoadArgs, typed: &[String]) -> Result<(), Failure> {
    let asked = Asked::new(typed)?;
    // Room for a million pushes, so that hardly any is dropped at this end.
    let options = args.peer.options()?.message_queue(QueueBound::messages(1 << 20).bytes(1 << 30));
    let asking = args.peer.connect(options.clone()).await?;

    let received = Arc::new(AtomicU64::new(0));
    let mut readers = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        let (client, messages) = join(args, options.clone()).await?;
        clients.push(client);
        readers.spawn(read(messages, asked, Arc::clone(&received)));
    }

    let bar = load::bar(asked.count * u64::from(args.connections));
    let began = Instant::now();
    let broadcast = call(&asking, "Broadcast", format!("{} {}", asked.count, asked.size).into(), args.duration);
    tokio::pin!(broadcast);

    let mut answered = None;
    let mut last = (0, Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut heard = Heard::new();
    let mut elapsed = None;

    loop {
        tokio::select! {
            reply = &mut broadcast, if answered.is_none() => {
                answered = Some(reply);
                last.1 = Instant::now();
            }
            Some(done) = readers.join_next() => {
                if let Ok(done) = done {
                    heard.add(&done);
                }
                if readers.is_empty() {
                    elapsed = Some(began.elapsed());
                    // Every push is there. The answer is all that can be missing.
                    if answered.is_some() {
                        break;
                    }
                }
            }
            _ = ticks.tick() => {
                let now = received.load(Ordering::Relaxed);
                bar.set_position(now);
                if now != last.0 {
                    last = (now, Instant::now());
                }

                // Pushes may follow the answer, until nothing has come for a while.
                let silent = answered.is_some() && SILENCE <= last.1.elapsed();
                if silent || args.duration <= began.elapsed() || (answered.is_some() && readers.is_empty()) {
                    break;
                }
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }

    bar.finish_and_clear();
    // Closing ends the streams, and with them the readers that still wait.
    clients.iter().for_each(Client::close);
    while let Some(done) = readers.join_next().await {
        if let Ok(done) = done {
            heard.add(&done);
        }
    }

    // Without all pushes: until the last one that came.
    let elapsed = elapsed.unwrap_or_else(|| last.1.duration_since(began));
    report(args, asked, &heard, elapsed)?;

    match answered {
        Some(Err(failure)) => Err(failure),
        None => Err(Failure::new(Exit::Timeout, "Bench.Broadcast was not answered in time")
            .hint("allow more time with --duration, or ask for fewer messages")),
        Some(Ok(())) => verdict(args, asked, &heard),
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

/// Reads until all messages are there, or none can come any more.
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
    (asked.count * u64::from(args.connections)).saturating_sub(heard.received)
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
    if missing + heard.out_of_order + heard.malformed == 0 {
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
    }
}
