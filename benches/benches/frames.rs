//! What does it take to make a frame of a push, and messages of what a read brought?
//!
//! Allocations are counted beside the time: they hold where times do not.

use bothways::{Limits, Metadata, SerializeType, raw::PushFrame};
use bothways_benches::contract;
use bothways_proto::{Deframer, Header, Seq, frame};
use divan::{AllocProfiler, Bencher, counter::BytesCount};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

/// Payload bytes.
const SIZES: [usize; 3] = [16, 1 << 10, 64 << 10];

/// One read takes at most this much of a stream.
const READ_BYTES: usize = 64 << 10;

fn main() {
    divan::main();
}

/// One push, encoded as it is once for all who get it.
#[divan::bench(args = SIZES)]
fn encode_push(bencher: Bencher<'_, '_>, size: usize) {
    let (metadata, limits, payload) = (Metadata::new(), Limits::default(), vec![7; size]);
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| PushFrame::new(contract::SERVICE, contract::TICK, &metadata, &payload, &limits));
}

/// One call, cut off the stream and looked into.
#[divan::bench(args = SIZES)]
fn decode(bencher: Bencher<'_, '_>, size: usize) {
    let (metadata, limits) = (Metadata::new(), Limits::default());
    let header = Header::request(Seq::new(1), SerializeType::RAW);
    let stream = frame(header, contract::SERVICE, contract::ECHO, &metadata, &vec![7; size], &limits);
    let stream = stream.expect("within the limits");
    let mut deframer = Deframer::new();
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let mut last = None;
        for read in stream.chunks(READ_BYTES) {
            deframer.feed(read, &limits);
            while let Some(message) = deframer.next_message(&limits).expect("a valid frame") {
                last = Some(message);
            }
        }
        last.expect("a whole frame")
    });
}
