//! What does it take to turn a typed value into MessagePack, and back?
//!
//! Allocations are counted beside the time: a record of texts and lists keeps 12 of its own.

use bothways::{Encode, Payload, SerializeType};
use bothways_benches::pair::{RECORD_BYTES, Record};
use divan::{AllocProfiler, Bencher, counter::BytesCount};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// A record of 581 bytes → its payload.
#[divan::bench]
fn encode_record(bencher: Bencher<'_, '_>) {
    let record = Record::sample(1);
    bencher
        .counter(BytesCount::new(RECORD_BYTES))
        .bench_local(|| record.encode(SerializeType::MSGPACK).expect("it can travel so"));
}

/// The payload → the record.
#[divan::bench]
fn decode_record(bencher: Bencher<'_, '_>) {
    let payload = Record::sample(1).encode(SerializeType::MSGPACK).expect("it can travel so");
    bencher
        .counter(BytesCount::new(RECORD_BYTES))
        .bench_local(|| Record::decode(SerializeType::MSGPACK, payload.clone()).expect("it was just encoded"));
}
