//! The checks of the fuzz targets, each a function of bytes that panics if something is wrong.

use bothways::{Encode, Payload};
use bothways_proto::{Buffers, Deframer, Limits, Message, Metadata, SerializeType, frame, gunzip as unpack, gzip};

pub use peak_alloc::PeakAlloc;

mod mutate;
pub use mutate::short_run;

mod record;
mod web_socket;
pub use record::{Kind, Record, full};
pub use web_socket::web_socket;

#[path = "../../crates/proto/tests/pair/driver.rs"]
mod driver;

/// Limits that short inputs can reach.
fn limits() -> Limits {
    Limits::default()
        .body_bytes_max(4 << 10)
        .metadata_bytes_max(512)
        .metadata_pairs_max(16)
        .decompressed_bytes_max(32 << 10)
}

/// Runs `what`, and fails if it held more memory at a time than `bytes_max`.
fn within<T>(bytes_max: usize, what: impl FnOnce() -> T) -> T {
    let before = PeakAlloc.current_usage();
    PeakAlloc.reset_peak_usage();
    let answer = what();
    let held = PeakAlloc.peak_usage().saturating_sub(before);
    assert!(held <= bytes_max, "{held} bytes were held, at most {bytes_max} are allowed");
    answer
}

/// The first byte says how the others are cut, for they are a stream. Nothing panics; however the
/// stream is cut the same comes out; what decodes is byte for byte what was fed, and nothing is
/// skipped; no more memory is held than a small multiple of what was fed.
pub fn decode(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = decode_in_pieces(stream, usize::MAX);
    assert_eq!(whole, decode_in_pieces(stream, 1 + usize::from(cut)), "pieces of {}", 1 + usize::from(cut));

    assert_eq!(whole, decode_in_place(stream, 1 + usize::from(cut)), "in place, pieces of {}", 1 + usize::from(cut));

    let limits = limits();
    let (again, _) = whole;
    assert!(stream.starts_with(&again), "{stream:02x?} came back as {again:02x?}");
    // Cut in the wrong place by the caller, too.
    if let Ok(message) = Message::parse(stream.to_vec().into(), &limits.clone().body_bytes_max(usize::MAX)) {
        assert_eq!(encoded_again(&message, &limits.body_bytes_max(usize::MAX)), stream);
    }
}

/// The frames that came out, encoded again and joined, and what was wrong behind them.
fn decode_in_pieces(stream: &[u8], piece_bytes: usize) -> (Vec<u8>, Option<String>) {
    let (limits, mut deframer, mut again) = (limits(), Deframer::new(), Vec::with_capacity(stream.len()));
    for piece in stream.chunks(piece_bytes) {
        // A doubled buffer and its copy; the whole frames beside it; a counter for each.
        let bytes_max = 3 * (deframer.partial_bytes() + piece.len()) + 512;
        within(bytes_max, || deframer.feed(piece, &limits));

        loop {
            match within(512, || deframer.next_message(&limits)) {
                Ok(Some(message)) => {
                    again.extend_from_slice(&encoded_again(&message, &limits));
                    look(&message, &limits);
                }
                Ok(None) => break,
                Err(error) => {
                    let is_clean = !deframer.is_broken() || deframer.partial_bytes() == 0;
                    assert!(is_clean, "nothing is kept behind {error}");
                    return (again, Some(error.to_string()));
                }
            }
        }
    }

    (again, None)
}

/// Buffers of frames that are read in place, which short inputs reach.
#[derive(Debug)]
struct Short;

impl Buffers for Short {
    const IN_PLACE_FROM: usize = 64;

    fn take(_: usize) -> Option<Vec<u8>> {
        None
    }

    fn give(_: Vec<u8>) {}
}

/// The same where the rest of a frame that is no small one is read in place.
fn decode_in_place(stream: &[u8], piece_bytes: usize) -> (Vec<u8>, Option<String>) {
    let (limits, mut again, mut rest) = (limits(), Vec::with_capacity(stream.len()), stream);
    let mut deframer = Deframer::<Short>::default();

    while !rest.is_empty() {
        let piece = piece_bytes.min(rest.len());
        let came = deframer.partial_bytes();
        // The buffer that it had, and one with room for five times as much.
        let read = match within(6 * came + 512, || deframer.space().map(|space| space.len())) {
            Some(_) => {
                let space = deframer.space().expect("it was there");
                let read = piece.min(space.len());
                space[..read].copy_from_slice(&rest[..read]);
                within(512, || deframer.filled(read));
                read
            }
            None => {
                within(6 * (came + piece) + 512, || deframer.feed(&rest[..piece], &limits));
                piece
            }
        };

        rest = &rest[read..];
        loop {
            match deframer.next_message(&limits) {
                Ok(Some(message)) => again.extend_from_slice(&encoded_again(&message, &limits)),
                Ok(None) => break,
                Err(error) => return (again, Some(error.to_string())),
            }
        }
    }

    (again, None)
}

fn encoded_again(message: &Message, limits: &Limits) -> Vec<u8> {
    let (path, method, metadata) = (message.service_path(), message.service_method(), message.metadata());
    let again = frame(message.header(), path, method, &metadata, &message.wire_payload(), limits);
    again.expect("what was decoded is within the limits").to_vec()
}

/// Everything that a receiver may look at.
fn look(message: &Message, limits: &Limits) {
    if let Ok(payload) = message.payload(limits) {
        assert!(payload.len() <= limits.decompressed_bytes().max(message.wire_payload().len()));
    }
    let _ = (message.error_text(), format!("{message:?}"));
    let pong = Message::parse(message.pong().into(), limits).expect("the answer to a heartbeat is well formed");
    assert_eq!(pong.header().seq(), message.header().seq());
}

/// The bytes are a metadata block. It is taken as it is or refused; and what is then done to it (its
/// own values become keys) keeps it a block that is taken.
pub fn metadata(bytes: &[u8]) {
    let limits = limits();
    let block = bytes.to_vec().into();
    let Ok(metadata) = within(512, || Metadata::from_block(block, &limits)) else {
        return;
    };
    assert_eq!(metadata.as_block(), bytes);
    assert!(metadata.pairs().count() <= limits.metadata_pairs());

    let (mut changed, mut merged) = (metadata.clone(), Metadata::new());
    for (key, value) in metadata.iter() {
        assert!(metadata.value(&key).is_some() || key.contains('\u{fffd}'), "{key} is in there");
        changed.insert(&value, key.as_bytes());
        assert_eq!(changed.get(&value), Some(&*key));
        merged.merge_missing(&changed);
        changed.remove(&key);
        assert_eq!(changed.value(&key), None);
    }

    // The pairs added above may exceed the limits: the block must be right all the same.
    let unbounded = Limits::default().metadata_bytes_max(usize::MAX).metadata_pairs_max(usize::MAX);
    for metadata in [changed, merged] {
        let block = metadata.as_block().to_vec();
        assert_eq!(Metadata::from_block(block.into(), &unbounded), Ok(metadata));
    }
}

/// The bytes are gzip, or are packed and unpacked again. Never does more than the limit come out,
/// nor is more held than twice that and the decoder's own tables.
pub fn gunzip(bytes: &[u8]) {
    const DECODER_BYTES: usize = 256 << 10;
    for max in [0, 100, 64 << 10] {
        if let Ok(out) = within(2 * max + DECODER_BYTES, || unpack(bytes, max)) {
            assert!(out.len() <= max && out.capacity() <= max + 1, "{} of {max}", out.len());
        }
    }
    let packed = gzip(bytes);
    assert_eq!(unpack(&packed, bytes.len()).as_deref(), Ok(bytes));
    if let Some(max) = bytes.len().checked_sub(1) {
        assert!(unpack(&packed, max).is_err(), "{max} bytes are too few");
    }
}

/// The first byte says which codec, the others are a payload of [`Record`]. Nothing panics; a length that is only
/// claimed costs no memory; and what was read is written such that it is read as the same.
pub fn codecs(bytes: &[u8]) {
    /// What the smallest element of a list or a map may take, in a table that grows by doubling.
    const ELEMENT_BYTES: usize = 256;
    let Some((&which, payload)) = bytes.split_first() else {
        return;
    };

    let serialize = if which % 2 == 0 { SerializeType::MSGPACK } else { SerializeType::JSON };
    let payload = payload.to_vec().into();
    // In proportion to the input: a few bytes must not take much memory.
    let bytes_max = ELEMENT_BYTES * bytes.len() + (8 << 10);
    let Ok(record) = within(bytes_max, || Record::decode(serialize, payload)) else {
        return;
    };

    // Not a number is not equal to itself, and JSON has no word for it: bytes are compared.
    let Ok(written) = record.encode(serialize) else {
        return;
    };

    let again = match Record::decode(serialize, written.clone()) {
        Ok(again) => again,
        // The deepest record lacked a field that is a container, and was written with it.
        Err(error) => return assert!(error.to_string().contains("nested deeper"), "what was written is read: {error}"),
    };
    assert_eq!(again.encode(serialize).expect("it was written before"), written, "{record:?}");
}

/// The bytes are acts of two peers and of whatever lies between them; the model that they are
/// compared with is that of the crate's own test `pair`.
pub fn connection_ops(bytes: &[u8]) {
    driver::run(bytes, &mut driver::Tally::default());
}
