//! Messages → bytes → messages.

use std::cell::RefCell;

use bothways_proto::{
    Buffers, DecodeError, Deframer, Header, Limits, MAGIC, Message, Metadata, PREFIX_LEN, Seq, SerializeType, frame,
};
use bytes::Bytes;
use hex_literal::hex;
use proptest::{collection::vec, prelude::*};

/// A header with any bits that the wire has room for.
fn header() -> impl Strategy<Value = Header> {
    (any::<[u8; 3]>(), any::<u64>()).prop_map(|([version, flags, kinds], seq)| {
        let mut bytes = [MAGIC, version, flags, kinds, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[4..].copy_from_slice(&seq.to_be_bytes());
        Header::from_bytes(&bytes).expect("the magic number is right")
    })
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..12).prop_map(String::from_iter)
}

fn metadata() -> impl Strategy<Value = Metadata> {
    vec((text(), vec(any::<u8>(), 0..12)), 0..5).prop_map(Metadata::from_iter)
}

/// The five parts of a message, and the message.
fn parts() -> impl Strategy<Value = (Header, String, String, Metadata, Vec<u8>)> {
    (header(), text(), text(), metadata(), vec(any::<u8>(), 0..80))
}

fn message() -> impl Strategy<Value = Message> {
    parts()
        .prop_map(|(header, path, method, metadata, payload)| Message::new(header, &path, &method, &metadata, &payload))
}

/// The frame of the parts of this message.
fn encoded_again(message: &Message) -> Bytes {
    let (path, method, metadata) = (message.service_path(), message.service_method(), message.metadata());
    frame(message.header(), path, method, &metadata, &message.wire_payload(), &Limits::default())
        .expect("what was decoded is within the limits")
}

/// Takes all messages that are there. Returns what was wrong behind them.
fn take_whole<B: Buffers>(
    deframer: &mut Deframer<B>,
    limits: &Limits,
    messages: &mut Vec<Message>,
) -> Option<DecodeError> {
    loop {
        match deframer.next_message(limits) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

/// Decodes all of `stream` in pieces of these sizes, the last of them repeated.
fn decode(stream: &[u8], sizes: &[usize]) -> (Vec<Message>, Option<DecodeError>) {
    let (limits, mut deframer, mut messages) = (Limits::default(), Deframer::new(), Vec::new());
    let (mut rest, mut sizes) = (stream, sizes.iter().copied());
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
        rest = tail;
        deframer.feed(piece, &limits);
        if let Some(error) = take_whole(&mut deframer, &limits, &mut messages) {
            return (messages, Some(error));
        }
    }
    (messages, None)
}

/// Keeps every buffer of its thread, and what is in it. Frames of so many bytes are read in place.
#[derive(Debug)]
struct Kept<const FROM: usize>;

/// The same, which keeps nothing.
#[derive(Debug)]
struct New<const FROM: usize>;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl<const FROM: usize> Buffers for New<FROM> {
    const IN_PLACE_FROM: usize = FROM;

    fn take(_: usize) -> Option<Vec<u8>> {
        None
    }

    fn give(buffer: Vec<u8>) {
        assert_eq!(buffer.len(), buffer.capacity());
    }
}

impl<const FROM: usize> Buffers for Kept<FROM> {
    const IN_PLACE_FROM: usize = FROM;

    fn take(bytes: usize) -> Option<Vec<u8>> {
        KEPT.with_borrow_mut(|kept| {
            let fits = |buffer: &Vec<u8>| (bytes..=bytes + bytes / 8).contains(&buffer.len());
            kept.iter().position(fits).map(|at| kept.swap_remove(at))
        })
    }

    fn give(buffer: Vec<u8>) {
        assert_eq!(buffer.len(), buffer.capacity());
        KEPT.with_borrow_mut(|kept| kept.push(buffer));
    }
}

/// As [`decode`], where large frames are read in place.
fn decode_in_place<B: Buffers>(stream: &[u8], sizes: &[usize], is_new: bool) -> (Vec<Message>, Option<DecodeError>) {
    let (limits, mut messages, mut deframer) = (Limits::default(), Vec::new(), Deframer::<B>::default());
    let (mut rest, mut sizes) = (stream, sizes.iter().copied());
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).min(rest.len());
        let read = match deframer.space() {
            Some(space) => {
                let read = size.min(space.len());
                space[..read].copy_from_slice(&rest[..read]);
                deframer.filled(read);
                read
            }
            None => {
                deframer.feed(&rest[..size], &limits);
                size
            }
        };
        rest = &rest[read..];
        let held_max = if is_new { 5 * deframer.partial_bytes() } else { usize::MAX };
        assert!(deframer.held_bytes() <= held_max, "{} of {held_max}", deframer.held_bytes());
        assert!(deframer.partial_bytes() != 0 || deframer.held_bytes() == 0, "nothing is held between frames");
        if let Some(error) = take_whole(&mut deframer, &limits, &mut messages) {
            return (messages, Some(error));
        }
    }
    (messages, None)
}

/// Whatever these bytes are: what decodes is what was there, byte for byte, and nothing is skipped.
fn decodes_to_itself_or_is_an_error(stream: &[u8]) {
    let (messages, _) = decode(stream, &[]);
    let again: Vec<u8> = messages.iter().flat_map(encoded_again).collect();
    assert!(stream.starts_with(&again), "{stream:02x?} came back as {again:02x?}");
}

proptest! {
    /// Every part of a message comes out as it went in.
    #[test]
    fn what_is_encoded_decodes_to_the_same((header, path, method, metadata, payload) in parts()) {
        let limits = Limits::default();
        let wire = frame(header, &path, &method, &metadata, &payload, &limits).expect("within the limits");
        let message = Message::parse(wire.clone(), &limits).expect("well formed");
        prop_assert_eq!(message.header(), header);
        prop_assert_eq!(message.service_path(), &path);
        prop_assert_eq!(message.service_method(), &method);
        prop_assert_eq!(message.metadata(), metadata);
        prop_assert_eq!(message.wire_payload(), &payload);
        prop_assert_eq!(message.frame(), &wire);
    }

    /// However a stream is cut, the same messages come out in the same order.
    #[test]
    fn cutting_changes_nothing(messages in vec(message(), 1..8), sizes in vec(1..90_usize, 0..60)) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| message.frame().to_vec()).collect();
        prop_assert_eq!(decode(&stream, &sizes), (messages, None));
    }

    /// So it does where the rest of a frame is read in place, into a buffer that is new, or that another frame has left.
    /// Of a new one, no more is taken than five times what has come.
    #[test]
    fn reading_in_place_changes_nothing(messages in vec(message(), 1..8), sizes in vec(1..90_usize, 0..60)) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| message.frame().to_vec()).collect();
        let expected = (messages, None);
        prop_assert_eq!(&decode_in_place::<New<1>>(&stream, &sizes, true), &expected);
        prop_assert_eq!(&decode_in_place::<New<20>>(&stream, &sizes, true), &expected);
        prop_assert_eq!(&decode_in_place::<New<90>>(&stream, &sizes, true), &expected);
        prop_assert_eq!(&decode_in_place::<Kept<1>>(&stream, &sizes, false), &expected);
        prop_assert_eq!(&decode_in_place::<Kept<40>>(&stream, &sizes, false), &expected);
    }

    /// And where the stream is broken.
    #[test]
    fn reading_in_place_changes_no_error(messages in vec(message(), 1..4), at in any::<prop::sample::Index>(),
                                         byte in any::<u8>(), sizes in vec(1..90_usize, 0..60)) {
        let mut stream: Vec<u8> = messages.iter().flat_map(|message| message.frame().to_vec()).collect();
        let at = at.index(stream.len());
        stream[at] = byte;
        prop_assert_eq!(decode_in_place::<Kept<20>>(&stream, &sizes, false), decode(&stream, &[]));
    }

    /// However a broken stream is cut, the same messages and the same error come out.
    #[test]
    fn cutting_changes_no_error(messages in vec(message(), 1..4), at in any::<prop::sample::Index>(),
                                byte in any::<u8>(), sizes in vec(1..90_usize, 0..60)) {
        let mut stream: Vec<u8> = messages.iter().flat_map(|message| message.frame().to_vec()).collect();
        let at = at.index(stream.len());
        stream[at] = byte;
        prop_assert_eq!(decode(&stream, &sizes), decode(&stream, &[]));
    }

    /// A changed byte is either part of another message, or an error; never a panic, never a byte lost.
    #[test]
    fn a_changed_byte_is_another_message_or_an_error(message in message(), at in any::<prop::sample::Index>(),
                                                     byte in any::<u8>()) {
        let mut stream = message.frame().to_vec();
        let at = at.index(stream.len());
        stream[at] = byte;
        decodes_to_itself_or_is_an_error(&stream);
    }

    /// The beginning of a frame is not a message yet, and not an error either.
    #[test]
    fn a_beginning_is_not_a_message(message in message(), at in any::<prop::sample::Index>()) {
        let (limits, beginning) = (Limits::default(), &message.frame()[..at.index(message.frame().len())]);
        let mut deframer = Deframer::new();
        deframer.feed(beginning, &limits);
        prop_assert_eq!(deframer.next_message(&limits), Ok(None));
        prop_assert_eq!(deframer.partial_bytes(), beginning.len());
        prop_assert!(Message::parse(Bytes::copy_from_slice(beginning), &limits).is_err());
    }

    /// Any bytes at all are messages, then an error or a frame that is not all there.
    #[test]
    fn any_bytes_are_messages_or_an_error(mut bytes in vec(any::<u8>(), 0..200), is_rpcx in any::<bool>()) {
        if let (true, Some(first)) = (is_rpcx, bytes.first_mut()) {
            *first = MAGIC;
        }
        decodes_to_itself_or_is_an_error(&bytes);
    }

    /// A heartbeat comes back as it is, except for the response bit and what is reserved.
    #[test]
    fn a_pong_is_the_ping_with_the_response_bit(message in message()) {
        let pong = Message::parse(message.pong().into(), &Limits::default()).expect("well formed");
        prop_assert_eq!(&pong.frame()[4..], &message.frame()[4..]);
        let [magic, version, flags, kinds] = *message.frame().first_chunk().expect("a whole frame");
        prop_assert_eq!(&pong.frame()[..4], &[magic, version, (flags & 0x7c) | 0x80, kinds & 0xf0][..]);
    }
}

/// Every value of every byte of these frames, and every one of their beginnings: no panic.
#[test]
fn every_changed_byte_of_the_golden_frames_is_handled() {
    let golden = [
        &hex!("08 00 80 30 0000000000000002 0000001d 00000005 4172697468 00000003 4d756c 00000000 00000005 81a143ccc8")
            [..],
        &hex!(
            "08 00 81 30 0000000000000003 00000036 00000005 4172697468 00000003 457272
             0000001a 0000000e 5f5f727063785f6572726f725f5f 00000004 626f6f6d  00000004 81a14300"
        ),
        &hex!(
            "08 00 20 00 0000000000000001 00000021 00000001 70 00000001 6d
             0000000a 00000001 6b 00000001 76 00000005 6162636465"
        ),
        &hex!("08 00 40 30 0000000000000003 00000019 00000000 00000000 00000000 00000009 d30000000000000005"),
    ];
    for frame in golden {
        assert_eq!(decode(frame, &[]).0.len(), 1, "{frame:02x?}");
        let mut changed = frame.to_vec();
        for at in 0..frame.len() {
            for byte in 0..=255 {
                changed[at] = byte;
                decodes_to_itself_or_is_an_error(&changed);
                // Cut in the wrong place, too.
                let _ = Message::parse(changed.clone().into(), &Limits::default()).map(|message| {
                    assert_eq!(encoded_again(&message), changed);
                    message.payload(&Limits::default()).map(drop)
                });
            }
            changed[at] = frame[at];
            let beginning = Bytes::copy_from_slice(&frame[..at]);
            assert!(Message::parse(beginning, &Limits::default()).is_err(), "{frame:02x?} up to {at}");
        }
    }
}

/// A frame cut in the wrong place is refused, whichever way its prefix is wrong.
#[test]
fn a_frame_with_another_length_is_refused() {
    let header = Header::request(Seq::new(1), SerializeType::RAW);
    let message = Message::new(header, "p", "m", &Metadata::new(), b"payload");
    let body_len = message.frame().len() - PREFIX_LEN;
    for stated in [0, body_len - 1, body_len + 1, u32::MAX as usize] {
        let mut frame = message.frame().to_vec();
        frame[12..16].copy_from_slice(&(stated as u32).to_be_bytes());
        let refused = Message::parse(frame.into(), &Limits::default());
        assert_eq!(refused, Err(DecodeError::BodyLength { stated, actual: body_len }));
    }
}
