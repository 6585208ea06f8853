//! The heap of a process that is measured to the byte, and what waits in it. Alone in its process, whose allocator counts.

use std::{alloc::System, io::Read, os::unix::net::UnixStream};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::runtime::Runtime;

#[global_allocator]
pub(crate) static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What an allocator adds to a block, for its own notes and for rounding up.
const BLOCK_BYTES: usize = 16;

/// Bytes on the heap, with what the allocator adds.
pub(crate) fn heap() -> usize {
    let stats = HEAP.stats();
    let blocks = stats.allocations - stats.deallocations;
    stats.bytes_allocated - stats.bytes_deallocated + blocks * BLOCK_BYTES
}

/// Lets the runtime run until this is so.
pub(crate) fn wait(runtime: &Runtime, mut until: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if until() {
            return;
        }
        runtime.block_on(tokio::task::yield_now());
    }
    panic!("it takes for ever");
}

/// Takes what has come, which is so much at least.
pub(crate) fn hear(runtime: &Runtime, mut stream: &UnixStream, bytes: usize) {
    let (mut heard, mut buffer) = (0, [0; 4096]);
    stream.set_nonblocking(true).expect("a socket");
    wait(runtime, || {
        while let Ok(more @ 1..) = stream.read(&mut buffer) {
            heard += more;
        }
        bytes <= heard
    });
    stream.set_nonblocking(false).expect("a socket");
}
