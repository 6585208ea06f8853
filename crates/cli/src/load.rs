//! Load: as fast as replies come, or at a fixed rate, with the latencies of the replies.
//!
//! At a fixed rate a call's latency counts from the moment at which it was due, even if no connection was free then: a
//! server that stands still for a second is seen to make all calls of that second wait, and not only those that were
//! under way (coordinated omission).

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bothways::{CallError, CallOptions, Caller, Client, SerializeType, caller::RawCall};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::{
    args::LoadArgs,
    broadcast,
    failure::{Exit, Failure},
    latency::{Latency, Quantiles},
    plan::Method,
    term::{self, Out},
};

pub(crate) async fn run(args: LoadArgs) -> Result<(), Failure> {
    if let Some(asked) = &args.broadcast {
        return broadcast::run(&args, asked).await;
    }

    let clients = connect_all(&args).await?;
    let load = Arc::new(Load {
        method: args.service.clone(),
        size: args.size,
        timeout: args.timeout,
        begin: Instant::now(),
        duration: args.duration,
        stop: AtomicBool::new(false),
        numbers: AtomicU64::new(0),
        answered: AtomicU64::new(0),
    });

    let bar = tokio::spawn(show_progress(Arc::clone(&load)));
    let stopping = Arc::clone(&load);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopping.stop.store(true, Ordering::Relaxed);
        }
    });

    let tally = match args.rate {
        None => closed_loop(&load, &clients, args.in_flight).await,
        Some(rate) => open_loop(&load, &clients, args.in_flight, rate).await,
    };

    // Read first: the bar may take a moment to end.
    let elapsed = load.begin.elapsed();
    load.stop.store(true, Ordering::Relaxed);
    // It ends as soon as it sees the flag; if it panicked, only the bar is missing.
    let _ = bar.await;
    clients.iter().for_each(Client::close);
    report(&args, tally, elapsed)
}

/// Connects as many clients as asked for, some at a time.
pub(crate) async fn connect_all(args: &LoadArgs) -> Result<Vec<Client>, Failure> {
    let options = args.peer.options()?;
    let mut connecting = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    let limit = Arc::new(tokio::sync::Semaphore::new(128));
    for _ in 0..args.connections {
        let (options, address, limit) = (options.clone(), args.peer.address.to_string(), Arc::clone(&limit));
        connecting.spawn(async move {
            let _permit = limit.acquire().await;
            Client::connect(&address, options).await
        });
    }
    while let Some(connected) = connecting.join_next().await {
        let connected = connected.map_err(|error| Failure::new(Exit::Connection, error.to_string()))?;
        clients.push(connected.map_err(|error| Failure::connect(&error))?);
    }
    Ok(clients)
}

/// What all workers share.
struct Load {
    method: Method,
    size: usize,
    timeout: Duration,
    begin: Instant,
    duration: Duration,
    stop: AtomicBool,
    /// Makes each request differ from all others.
    numbers: AtomicU64,
    answered: AtomicU64,
}

impl Load {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.duration <= self.begin.elapsed()
    }

    fn payload(&self) -> Bytes {
        let mut number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut payload = vec![0; self.size];
        for chunk in payload.chunks_mut(8) {
            number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
        payload.into()
    }

    /// One call, due at `due`. False: this connection is of no more use.
    async fn call(&self, client: &Client, due: Instant, tally: &Mutex<Tally>) -> bool {
        let payload = self.payload();
        let call = RawCall {
            service_path: &self.method.service_path,
            service_method: &self.method.service_method,
            serialize: SerializeType::RAW,
            payload: payload.clone(),
            options: CallOptions::new().timeout(self.timeout),
        };

        let outcome = client.call_raw(call).await;
        let took = due.elapsed();
        self.answered.fetch_add(1, Ordering::Relaxed);

        // `took` is read before: waiting for this lock is no part of the call.
        let mut tally = lock(tally);
        let error = match outcome {
            Ok(reply) => {
                tally.latency.record(took);
                if reply.payload == payload {
                    tally.ok += 1
                } else {
                    tally.mismatched += 1
                }
                return true;
            }
            Err(error) => error,
        };

        let goes_on = match &error {
            CallError::TimedOut(_) => {
                // It took at least as long; leaving it out would hide the worst.
                tally.latency.record(took);
                tally.timed_out += 1;
                true
            }
            error if error.is_connection_failure() => {
                tally.lost += 1;
                false
            }
            _ => {
                tally.refused += 1;
                true
            }
        };

        let method = &self.method;
        tally.first_failure.get_or_insert_with(|| Failure::call(&method.to_string(), &error));
        goes_on
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of the calls.
#[derive(Debug)]
struct Tally {
    ok: u64,
    mismatched: u64,
    refused: u64,
    timed_out: u64,
    lost: u64,
    unstarted: u64,
    latency: Latency,
    first_failure: Option<Failure>,
}

impl Tally {
    fn new() -> Self {
        Self {
            ok: 0,
            mismatched: 0,
            refused: 0,
            timed_out: 0,
            lost: 0,
            unstarted: 0,
            latency: Latency::new(),
            first_failure: None,
        }
    }

    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.mismatched += other.mismatched;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
        self.lost += other.lost;
        self.unstarted += other.unstarted;
        self.latency.add(&other.latency);
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }
}

/// Every place for a call is filled again as soon as its reply is there.
async fn closed_loop(load: &Arc<Load>, clients: &[Client], in_flight: u32) -> Tally {
    let mut connections = Vec::new();
    for client in clients {
        let tally = Arc::new(Mutex::new(Tally::new()));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (load, client, tally) = (Arc::clone(load), client.clone(), Arc::clone(&tally));
            workers.spawn(async move { while !load.is_over() && load.call(&client, Instant::now(), &tally).await {} });
        }
        connections.push((workers, tally));
    }
    sum(connections).await
}

/// Calls become due at a fixed rate; each waits until a place is free.
async fn open_loop(load: &Arc<Load>, clients: &[Client], in_flight: u32, rate: u32) -> Tally {
    let (mut connections, mut queues) = (Vec::new(), Vec::new());
    for client in clients {
        // Holds at most the calls that become due in the whole run, --rate × --duration ÷ --connections, at 16 bytes
        // each. A smaller bound would drop calls while the server stands still. Those are the ones that wait longest.
        let (queue, due) = mpsc::unbounded_channel();
        queues.push(queue);
        // An async lock: a worker holds it while it waits for the next due call.
        let due = Arc::new(tokio::sync::Mutex::new(due));
        let tally = Arc::new(Mutex::new(Tally::new()));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            workers.spawn(work_off(Arc::clone(load), client.clone(), Arc::clone(&due), Arc::clone(&tally)));
        }
        connections.push((workers, tally));
    }

    let pace = Arc::clone(load);
    // A thread of its own: the runtime's timer is too coarse, and must not wait for the calls.
    let pacer = std::thread::spawn(move || keep_pace(&pace, &queues, rate));

    let mut tally = sum(connections).await;
    tally.unstarted += pacer.join().unwrap_or_default();
    tally
}

/// Makes calls due, until the time is over or all connections are lost. Returns how many found theirs lost.
fn keep_pace(load: &Load, queues: &[UnboundedSender<Instant>], rate: u32) -> u64 {
    let mut unstarted = 0;
    for number in 0_u64.. {
        let due = load.begin + Duration::from_nanos(number.saturating_mul(1_000_000_000) / u64::from(rate));
        if load.begin + load.duration <= due || load.stop.load(Ordering::Relaxed) {
            break;
        }
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        if queues[number as usize % queues.len()].send(due).is_err() {
            unstarted += 1;
            if queues.iter().all(UnboundedSender::is_closed) {
                break;
            }
        }
    }
    unstarted
}

async fn work_off(
    load: Arc<Load>,
    client: Client,
    queue: Arc<tokio::sync::Mutex<UnboundedReceiver<Instant>>>,
    tally: Arc<Mutex<Tally>>,
) {
    // Bounds how long a backlog is worked off after the time is over.
    let latest = load.begin + load.duration + load.timeout;
    loop {
        // Unlocked at the end of this statement: other workers take theirs while this one calls.
        let due = queue.lock().await.recv().await;
        let Some(due) = due else { return };

        if latest < Instant::now() {
            lock(&tally).unstarted += 1;
        } else if !load.call(&client, due, &tally).await {
            // The connection is gone: no worker of it can make the calls that are still due.
            let mut queue = queue.lock().await;
            queue.close();
            while queue.recv().await.is_some() {
                lock(&tally).unstarted += 1;
            }
            return;
        }
    }
}

async fn sum(connections: Vec<(tokio::task::JoinSet<()>, Arc<Mutex<Tally>>)>) -> Tally {
    let mut sum = Tally::new();
    for (workers, tally) in connections {
        workers.join_all().await;
        sum.add(std::mem::replace(&mut *lock(&tally), Tally::new()));
    }
    sum
}

/// A bar on a terminal, nothing elsewhere.
async fn show_progress(load: Arc<Load>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = bar(load.duration.as_millis() as u64);
    let mut before = (Instant::now(), 0);
    while !load.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bar.set_position(load.begin.elapsed().as_millis() as u64);
        let answered = load.answered.load(Ordering::Relaxed);
        let since = before.0.elapsed();
        if Duration::from_millis(500) <= since {
            let rate = (answered - before.1) as f64 / since.as_secs_f64();
            bar.set_message(format!("{} calls/s", term::grouped(rate as u64)));
            before = (Instant::now(), answered);
        }
    }
    bar.finish_and_clear();
}

/// A progress bar on standard error, which shows itself on a terminal only.
pub(crate) fn bar(len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:40}] {percent:>3}%  {msg}").expect("the template is valid");
    ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr()).with_style(style.progress_chars("=> "))
}

fn report(args: &LoadArgs, tally: Tally, elapsed: Duration) -> Result<(), Failure> {
    let Tally { ok, mismatched, refused, timed_out, lost, unstarted, latency, first_failure } = tally;
    let report = Report {
        address: args.peer.address.to_string(),
        method: args.service.to_string(),
        connections: args.connections,
        in_flight: args.in_flight,
        rate_asked: args.rate,
        payload_bytes: args.size,
        seconds: elapsed.as_secs_f64(),
        calls_per_second: ok as f64 / elapsed.as_secs_f64(),
        ok,
        mismatched,
        refused,
        timed_out,
        lost,
        unstarted,
        latency: latency.quantiles(),
    };

    let out = Out::new();
    if args.json {
        out.line(&serde_json::to_string(&report).expect("a report can be written as JSON"))?;
    } else {
        out.line(&report.to_string())?;
    }

    if mismatched != 0 {
        return Err(Failure::new(
            Exit::Peer,
            format!("{} differ from their requests", term::count(mismatched, "reply")),
        ));
    }

    if let Some(failure) = first_failure {
        return Err(failure);
    }
    if unstarted != 0 {
        return Err(Failure::new(Exit::Timeout, format!("{} could not even be begun", term::count(unstarted, "call")))
            .hint("the peer does not keep up with --rate: lower it, or raise --connections or --in-flight"));
    }
    if report.ok == 0 {
        return Err(Failure::new(Exit::Timeout, "no call was answered in that time").hint("raise --duration"));
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    address: String,
    method: String,
    connections: u32,
    in_flight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_asked: Option<u32>,
    payload_bytes: usize,
    seconds: f64,
    calls_per_second: f64,
    ok: u64,
    mismatched: u64,
    refused: u64,
    timed_out: u64,
    lost: u64,
    unstarted: u64,
    latency: Quantiles,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.rate_asked {
            Some(rate) => {
                format!("{} calls per second asked for, times from when each was due", term::grouped(rate.into()))
            }
            None => "each place filled as soon as it is free".to_owned(),
        };

        writeln!(
            f,
            "{} at {}: {} with {} in flight each, {} bytes a call; {how}",
            self.method,
            self.address,
            term::count(self.connections.into(), "connection"),
            self.in_flight,
            term::grouped(self.payload_bytes as u64),
        )?;

        let wrong: Vec<String> = [
            (self.mismatched, "mismatched"),
            (self.refused, "refused"),
            (self.timed_out, "timed out"),
            (self.lost, "lost"),
            (self.unstarted, "never begun"),
        ]
        .iter()
        .filter(|(number, _)| *number != 0)
        .map(|(number, what)| format!(", {} {what}", term::grouped(*number)))
        .collect();

        writeln!(
            f,
            "{} calls per second; {} in {}, every reply checked{}",
            term::grouped(self.calls_per_second as u64),
            term::grouped(self.ok),
            term::time(Duration::from_secs_f64(self.seconds)),
            if wrong.is_empty() { ", all right".to_owned() } else { wrong.concat() },
        )?;
        write!(f, "{}", self.latency)
    }
}
