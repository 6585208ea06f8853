//! Client and server of one kind: the load that every framework's own client makes.
//!
//! Connections × calls in flight, each a task that calls again as soon as its reply is there and is
//! the one that was due. A program that measures a framework brings a [`Peer`]; the words of its
//! command line and of its answers are here, so that all are started and read alike.

use std::{
    future::Future,
    io::{Read, Write},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::load::latencies;

/// What a call carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Shape {
    /// Bytes, or the nearest that a framework has.
    Raw,
    /// A [`Record`], in the framework's usual codec.
    Record,
}

/// How to serve.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Where to listen: tcp@HOST:PORT or HOST:PORT; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8972")]
    pub addr: String,
    /// Threads that serve. Default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
    /// End when standard input does, so that a benchmark leaves no server behind.
    #[arg(long)]
    pub attached: bool,
}

impl ServeArgs {
    /// The address as most libraries want it.
    pub fn host_port(&self) -> &str {
        self.addr.strip_prefix("tcp@").unwrap_or(&self.addr)
    }

    /// Ends the process when standard input ends, if that is asked for.
    pub fn watch_stdin(&self) {
        if self.attached {
            std::thread::spawn(|| {
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                std::process::exit(0);
            });
        }
    }
}

/// Says where the server listens: the first line on stdout.
///
/// # Errors
/// Nobody reads stdout.
pub fn say_listening(address: impl std::fmt::Display) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "LISTENING {address}")?;
    stdout.flush()
}

/// How to call.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The server.
    #[arg(long)]
    pub addr: String,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Calls of each connection that wait for their reply.
    #[arg(long, default_value_t = 16)]
    pub in_flight: usize,
    /// Bytes of a raw payload.
    #[arg(long, default_value_t = 581)]
    pub payload: usize,
    /// What a call carries.
    #[arg(long, value_enum, default_value = "raw")]
    pub shape: Shape,
    /// Milliseconds before the measurement.
    #[arg(long, default_value_t = 500)]
    pub warm_up_ms: u64,
    /// Milliseconds of the measurement.
    #[arg(long, default_value_t = 3_000)]
    pub measure_ms: u64,
    /// Threads that call. Default: one for each core.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// What a client prints when the measurement begins; at its end comes [`PairReport`] as a line of JSON.
pub const MEASURING: &str = "MEASURING";

/// What a client measured.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct PairReport {
    /// Calls that were answered as they should be.
    pub calls: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Nanoseconds from call to reply, half of the calls.
    pub p50_ns: u64,
    /// Nanoseconds from call to reply, all but one in a hundred.
    pub p99_ns: u64,
}

/// A framework's client.
pub trait Peer: Sized + Send + Sync + 'static {
    /// One connection.
    ///
    /// # Errors
    /// There is no server.
    fn connect(address: &str) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Calls with a raw payload, and fails unless the same comes back.
    ///
    /// # Errors
    /// The call failed.
    fn call_raw(&self, number: u64, len: usize) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Calls with a record, and fails unless the same comes back.
    ///
    /// # Errors
    /// The call failed.
    fn call_record(&self, number: u64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Runs a server or a client on a runtime of its own.
///
/// # Errors
/// Those of `work`.
pub fn block_on<F: Future<Output = anyhow::Result<()>>>(threads: Option<usize>, work: F) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads.max(1));
    }
    runtime.enable_all().build()?.block_on(work)
}

/// Connects, calls, and prints what was measured.
///
/// # Errors
/// A call failed, or its reply was not what was due.
pub async fn run_client<P: Peer>(args: ClientArgs) -> anyhow::Result<()> {
    let mut peers = Vec::new();
    for _ in 0..args.connections {
        peers.push(Arc::new(P::connect(&args.addr).await?));
    }

    let begin = Instant::now() + Duration::from_millis(args.warm_up_ms);
    let end = begin + Duration::from_millis(args.measure_ms);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..args.connections * args.in_flight {
        let peer = Arc::clone(&peers[task % peers.len()]);
        // Numbers differ from task to task, so that a reply to another's call is noticed.
        tasks.spawn(call_until(peer, args.shape, args.payload, (task as u64) << 32, begin, end));
    }

    tokio::time::sleep_until(begin.into()).await;
    // The program that started this one measures CPU time from this line on.
    println!("{MEASURING}");
    std::io::stdout().flush()?;
    let mut latency = latencies();
    while let Some(of_task) = tasks.join_next().await {
        of_task??.into_iter().for_each(|nanos| latency.saturating_record(nanos));
    }

    let report = PairReport {
        calls: latency.len(),
        seconds: (end - begin).as_secs_f64(),
        p50_ns: quantile(&latency, 0.5),
        p99_ns: quantile(&latency, 0.99),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn quantile(latency: &Histogram<u64>, quantile: f64) -> u64 {
    latency.value_at_quantile(quantile)
}

async fn call_until<P: Peer>(
    peer: Arc<P>,
    shape: Shape,
    payload: usize,
    first: u64,
    begin: Instant,
    end: Instant,
) -> anyhow::Result<Vec<u64>> {
    let (mut nanos, mut number, mut since) = (Vec::new(), first, Instant::now());

    loop {
        match shape {
            Shape::Raw => peer.call_raw(number, payload).await?,
            Shape::Record => peer.call_record(number).await?,
        }

        number += 1;
        let now = Instant::now();
        if end <= now {
            return Ok(nanos);
        }
        if begin <= now {
            nanos.push((now - since).as_nanos() as u64);
        }
        since = now;
    }
}

/// The raw payload of a call: its number, then letters, so that it is a text for those that only have texts.
///
/// Copied rather than made: what the load itself takes hides how frameworks differ. Letter by letter it was a sixth of
/// our client's time.
pub fn raw_payload(number: u64, len: usize) -> Vec<u8> {
    const LETTERS: [u8; 4096] = {
        let (mut letters, mut at) = ([0; 4096], 0);
        while at < letters.len() {
            letters[at] = b'a' + (at % 26) as u8;
            at += 1;
        }
        letters
    };
    static TEXT: [u8; 4096] = LETTERS;
    let mut payload = Vec::with_capacity(len);
    while payload.len() < len {
        payload.extend_from_slice(&TEXT[..TEXT.len().min(len - payload.len())]);
    }
    let digits = (0..16).rev().map(|digit| b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]);
    payload.iter_mut().zip(digits).for_each(|(place, digit)| *place = digit);
    payload
}

/// Fails unless `got` is the raw payload that was sent.
///
/// # Errors
/// It is not.
pub fn check_raw(sent: &[u8], got: &[u8]) -> anyhow::Result<()> {
    ensure!(sent == got, "a reply with other bytes than its call");
    Ok(())
}

/// What applications send: an id, texts, numbers, a list of each. In MessagePack with the names of its
/// fields, as rpcx sends it, a sample takes [`RECORD_BYTES`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Record {
    /// The number of the call.
    pub id: u64,
    /// A short text.
    pub name: String,
    /// Another.
    pub address: String,
    /// Short texts.
    pub tags: Vec<String>,
    /// Small numbers.
    pub scores: Vec<i64>,
    /// A number with a fraction.
    pub balance: f64,
    /// A truth.
    pub active: bool,
    /// A longer text.
    pub notes: String,
}

/// The id of the record with this number. The top bit keeps the encoding of every id at nine bytes.
pub(crate) fn id_of(number: u64) -> u64 {
    number | 1 << 63
}

/// Bytes of a sample in MessagePack.
pub const RECORD_BYTES: usize = 581;

impl Record {
    /// The record of a call. `number` is in its upper half what tells tasks apart.
    ///
    /// A copy of one that was made before, for the same reason as [`raw_payload`].
    pub fn sample(number: u64) -> Self {
        static SAMPLE: LazyLock<Record> = LazyLock::new(|| Record {
            id: 0,
            name: "Ada King, Countess of Lovelace".into(),
            address: "12 St James's Square, London".into(),
            tags: (0..8).map(|tag| format!("tag-number-{tag:02}")).collect(),
            scores: (0..24).map(|score| score * 40 - 300).collect(),
            balance: 1815.1843,
            active: true,
            notes: "note ".repeat(54) + "end.",
        });
        Self { id: id_of(number), ..SAMPLE.clone() }
    }

    /// Fails unless `got` is the record that was sent.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, got: &Self) -> anyhow::Result<()> {
        ensure!(self == got, "a reply with another record than its call");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bothways::{Encode, SerializeType};

    use super::*;

    #[test]
    fn a_record_takes_as_many_bytes_as_a_raw_payload() {
        for number in [0, 1, 77 << 32] {
            let bytes = Record::sample(number).encode(SerializeType::MSGPACK).expect("it can travel so");
            assert_eq!(bytes.len(), RECORD_BYTES);
        }
    }

    #[test]
    fn a_raw_payload_begins_with_its_number() {
        assert_eq!(raw_payload(255, 18), b"00000000000000ffqr");
        assert_eq!(raw_payload(255, 3), b"000");
    }
}
