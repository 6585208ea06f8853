//! What does a call cost more for a deadline, a token, layers, a choice among ten servers?
//!
//! Everything is in one thread and goes over memory: the time is CPU time, and none of it is the kernel's. The
//! kinds take turns, and the figure of each is the median of its rounds. A kind is held against another one that
//! does the same without what it asks about: an `XClient` against ten clients that are called in turn.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, FailMode, MultipleServersDiscovery, PushError, Reply,
    Request, SelectMode, SerializeType, Server, XClient,
    caller::{RawCall, RawReply},
    layer,
};
use bytes::Bytes;
use tokio::task::JoinSet;

const SERVERS: usize = 10;
const ROUNDS: usize = 9;

/// Calls under way at a time, and calls of a round.
const IN_FLIGHT: usize = 64;
const CALLS: usize = 20_000;

/// Far away: it is the timer that costs.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (mut servers, mut addresses) = (Vec::new(), Vec::new());
    for at in 0..SERVERS {
        let (server, address) = (server(), format!("memory@governance-{at}"));
        let listening = server.listen(&address).await.expect("the name is free");
        servers.push((server, listening));
        addresses.push(address);
    }
    let layered = Server::builder()
        .layer(layer::trace())
        .layer(layer::timeout(DEADLINE))
        .layer(layer::concurrency(1_000))
        .handler("Bench", "Echo", echo)
        .build();
    let _layered = layered.listen("memory@layered").await.expect("the name is free");

    let plain = || ClientOptions::new();
    let one = client(&addresses[0], plain()).await;
    let deadline = client(&addresses[0], plain().timeout(DEADLINE)).await;
    let token = client(&addresses[0], plain().auth("bearer tGzv3JOkF0XG5Qx2TlKWIA")).await;
    let layers = client("memory@layered", plain()).await;
    let mut ten = Vec::new();
    for address in &addresses {
        ten.push(client(address, plain()).await);
    }
    let ten = InTurn(Arc::new((ten, AtomicUsize::new(0))));
    let of_ten = |fail_mode, select_mode| {
        XClient::new("Bench", fail_mode, select_mode, MultipleServersDiscovery::new(addresses.clone()), plain())
    };
    let failover = of_ten(FailMode::Failover, SelectMode::RoundRobin);
    let failfast = of_ten(FailMode::Failfast, SelectMode::RandomSelect);
    let failbackup = of_ten(FailMode::Failbackup, SelectMode::RoundRobin);

    let names = [
        ("one client", None),
        ("  with a deadline", Some(0)),
        ("  with a token", Some(0)),
        ("  three layers at the server", Some(0)),
        ("ten clients in turn", None),
        ("  XClient, Failover, RoundRobin", Some(4)),
        ("  XClient, Failfast, RandomSelect", Some(4)),
        ("  XClient, Failbackup, RoundRobin", Some(4)),
    ];
    let mut nanos = vec![Vec::new(); names.len()];
    // The first round connects, and is not counted.
    for round in 0..=ROUNDS {
        let took = [
            calls(&one).await,
            calls(&deadline).await,
            calls(&token).await,
            calls(&layers).await,
            calls(&ten).await,
            calls(&failover).await,
            calls(&failfast).await,
            calls(&failbackup).await,
        ];
        if 0 < round {
            nanos.iter_mut().zip(took).for_each(|(nanos, took)| nanos.push(took));
        }
    }
    let median = |at: usize| {
        let mut nanos = nanos[at].clone();
        nanos.sort_unstable_by(f64::total_cmp);
        nanos[ROUNDS / 2]
    };
    println!("{:<36} {:>9} {:>9}", "both ends of a call, 64 at a time", "ns", "more");
    for (at, (name, without)) in names.into_iter().enumerate() {
        let more = without.map(|without| format!("{:+.0}", median(at) - median(without))).unwrap_or_default();
        println!("{name:<36} {:>9.0} {more:>9}", median(at));
    }
}

fn echo(request: Request) -> impl Future<Output = Reply> {
    std::future::ready(Reply::ok(request.payload().expect("it is not packed")))
}

fn server() -> Server {
    Server::builder().handler("Bench", "Echo", echo).build()
}

async fn client(address: &str, options: ClientOptions) -> Client {
    Client::connect(address, options).await.expect("it listens")
}

/// Ten clients as one without any of what an `XClient` does.
#[derive(Clone)]
struct InTurn(Arc<(Vec<Client>, AtomicUsize)>);

impl Caller for InTurn {
    async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, CallError> {
        let (clients, next) = &*self.0;
        clients[next.fetch_add(1, Ordering::Relaxed) % clients.len()].call_raw(call).await
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        self.0.0[0].push_raw(push).await
    }
}

/// Nanoseconds of one call, on average.
async fn calls(caller: &(impl Caller + Clone + 'static)) -> f64 {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let caller = caller.clone();
        callers.spawn(async move {
            for _ in 0..CALLS / IN_FLIGHT {
                call(&caller).await;
            }
        });
    }
    callers.join_all().await;
    began.elapsed().as_nanos() as f64 / CALLS as f64
}

async fn call(caller: &impl Caller) {
    static PAYLOAD: [u8; 128] = [7; 128];
    let call = RawCall {
        service_path: "Bench",
        service_method: "Echo",
        serialize: SerializeType::RAW,
        payload: Bytes::from_static(&PAYLOAD),
        options: CallOptions::new(),
    };
    let reply = caller.call_raw(call).await.expect("answered");
    assert_eq!(reply.payload.len(), PAYLOAD.len());
}
