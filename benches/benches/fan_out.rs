//! What does a push to many take beyond the system's own part? The connections are in memory; what
//! arrives is read between the measurements.

use std::{
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use bothways::{
    Limits, Metadata, Server,
    raw::{PushFrame, fan_out},
    transport::{AnySocket, ConnectOptions, Socket, connect},
};
use bothways_benches::contract;
use divan::{AllocProfiler, Bencher, counter::ItemsCount};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// One push of 128 bytes to so many; an item is one of them.
#[divan::bench(args = [1, 100, 1000], sample_size = 1)]
fn one_push(bencher: Bencher<'_, '_>, sessions: usize) {
    push(bencher, sessions, 1);
}

/// Sixteen at once to each of so many.
#[divan::bench(args = [1, 100, 1000], sample_size = 1)]
fn sixteen_pushes(bencher: Bencher<'_, '_>, sessions: usize) {
    push(bencher, sessions, 16);
}

fn push(bencher: Bencher<'_, '_>, sessions: usize, frames: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (server, sockets) = runtime.block_on(async {
        let server = Server::builder().build();
        let listening = server.listen(&format!("memory@fan-out-{sessions}-{frames}")).await.expect("listens");
        let address = listening.address().parse().expect("an address");
        let mut sockets = Vec::new();
        for _ in 0..sessions {
            sockets.push(connect(&address, &ConnectOptions::default()).await.expect("connects"));
        }
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if server.stats().connections < sessions { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        (server, sockets)
    });
    let connections = server.connections();
    let (metadata, limits) = (Metadata::new(), Limits::default());
    let frame = PushFrame::new(contract::SERVICE, contract::TICK, &metadata, &[7; 128], &limits);
    let frames = vec![frame.expect("within the limits"); frames];
    let mut buffer = vec![0; 64 << 10];
    let _guard = runtime.enter();
    bencher
        .counter(ItemsCount::new(sessions * frames.len()))
        .with_inputs(|| sockets.iter().for_each(|socket| drain(socket, &mut buffer)))
        .bench_local_values(|()| {
            let outcome = fan_out(&connections, &frames);
            assert_eq!(outcome.queued, sessions * frames.len(), "nobody is behind");
        });
}

/// Reads what is there.
fn drain(socket: &AnySocket, buffer: &mut [u8]) {
    let mut cx = Context::from_waker(Waker::noop());
    while socket.poll_read(&mut cx, buffer).is_ready() {}
}
