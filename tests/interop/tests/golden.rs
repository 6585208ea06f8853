//! Every frame that Go was recorded with reads as Go reads it, and is written again as Go wrote it.
//!
//! The values inside the payloads are the matter of `golden_codecs.rs`.

use std::collections::BTreeMap;

use bothways_interop::golden::{self, GoldenFile, hex};
use bothways_proto::{Deframer, FrameParts, Header, Limits, Message, MessageKind, Metadata, Names};
use bytes::Bytes;
use serde::Deserialize;

/// What rpcx's own decoder reads in a frame.
#[derive(Debug, Deserialize, Eq, PartialEq)]
struct Decoded {
    version: u8,
    r#type: String,
    heartbeat: bool,
    oneway: bool,
    compress: u8,
    status: u8,
    serialize: u8,
    reserved: u8,
    seq: u64,
    path: String,
    method: String,
    metadata: BTreeMap<String, String>,
    payload: String,
}

impl Decoded {
    fn of(message: &Message) -> Self {
        let (header, frame) = (message.header(), message.frame());
        let payload = message.payload(&Limits::default()).expect("Go's payloads can be unpacked");
        Self {
            version: frame[1],
            r#type: match header.kind() {
                MessageKind::Request => "request".to_owned(),
                MessageKind::Response => "response".to_owned(),
            },
            heartbeat: header.is_heartbeat(),
            oneway: header.is_oneway(),
            compress: header.compress().get(),
            status: header.status().get(),
            serialize: header.serialize().get(),
            reserved: frame[3] & 0xf,
            seq: header.seq().get(),
            path: message.service_path().to_owned(),
            method: message.service_method().to_owned(),
            metadata: message.metadata().iter().map(|(k, v)| (k.into_owned(), v.into_owned())).collect(),
            payload: hex(&payload),
        }
    }
}

fn each_frame(mut check: impl FnMut(&str, &[u8], &Decoded)) {
    let files = golden::files(&["request_", "response_", "heartbeat_", "push", "encoded_", "quirk_"]);
    assert!(50 < files.len(), "{} files", files.len());
    for GoldenFile { name, paragraphs } in files {
        for paragraph in paragraphs {
            let Some(bytes) = &paragraph.bytes else { continue };
            let decoded = paragraph.comment("decoded").unwrap_or_else(|| panic!("{name} says not what it is"));
            let decoded = serde_json::from_str(decoded).unwrap_or_else(|error| panic!("{name}: {error}"));
            check(&name, bytes, &decoded);
        }
    }
}

/// The decoder reads what Go's reads.
#[test]
fn every_frame_reads_as_go_reads_it() {
    each_frame(|name, bytes, decoded| {
        let message = Message::parse(Bytes::copy_from_slice(bytes), &Limits::default());
        let message = message.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Decoded::of(&message), *decoded, "{name}");
    });
}

/// One stream of all of them is cut up into the same frames, however it comes in pieces.
#[test]
fn a_stream_of_all_frames_is_cut_where_go_cut_it() {
    let mut frames = Vec::new();
    each_frame(|_, bytes, _| frames.push(bytes.to_vec()));
    let stream = frames.concat();
    for piece_bytes in [1, 13, 1024, stream.len()] {
        let (mut deframer, mut found) = (Deframer::new(), Vec::new());
        for piece in stream.chunks(piece_bytes) {
            deframer.feed(piece, &Limits::default());
            while let Some(message) = deframer.next_message(&Limits::default()).expect("Go's frames are good") {
                found.push(message.frame().to_vec());
            }
        }
        assert!(!deframer.is_mid_frame());
        assert_eq!(found, frames, "in pieces of {piece_bytes}");
    }
}

/// The encoder makes the same bytes. A compressed payload may be packed otherwise: then what it holds counts.
#[test]
fn every_frame_is_written_as_go_wrote_it() {
    each_frame(|name, bytes, decoded| {
        let metadata: Metadata = decoded.metadata.iter().collect();
        let mut payload = golden::unhex(&decoded.payload);
        let header = header_of(decoded);
        if header.compress().get() == 1 {
            payload = bothways_proto::gzip(&payload);
        }
        let mut frame = Vec::new();
        let names = Names::new(&decoded.path, &decoded.method);
        FrameParts { header, names, metadata: &metadata, payload_len: payload.len() }
            .put_frame(&mut frame, &payload, &Limits::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        if header.compress().get() == 0 {
            assert_eq!(hex(&frame), hex(bytes), "{name}");
        } else {
            let message = Message::parse(frame.into(), &Limits::default()).expect("it is our own");
            assert_eq!(Decoded::of(&message), *decoded, "{name}");
        }
    });
}

/// The answer to each recorded heartbeat is Go's to the byte, also to one that wants no reply and gets one.
#[test]
fn a_heartbeat_is_answered_as_go_answers_it() {
    let requests = golden::files(&["heartbeat_request"]);
    assert!(3 < requests.len());
    for request in requests {
        let answer = request.name.replace("_request", "_response");
        let [answer] = &golden::files(&[&answer])[..1] else { unreachable!("one was taken") };
        let bytes = |file: &GoldenFile| file.paragraphs[0].bytes.clone().expect("it is a frame");
        let message = Message::parse(bytes(&request).into(), &Limits::default()).expect("Go's frames are good");
        assert_eq!(hex(&message.pong()), hex(&bytes(answer)), "{}", request.name);
    }
}

/// What Go packed is unpacked to what it was.
#[test]
fn gos_gzip_streams_are_unpacked() {
    #[derive(Deserialize)]
    struct Unpacked(#[serde(with = "bothways::codec::bytes")] Vec<u8>);
    let [file] = &golden::files(&["gzip_streams"])[..] else { panic!("one file") };
    let mut streams = 0;
    for paragraph in &file.paragraphs {
        let Some(bytes) = &paragraph.bytes else { continue };
        let unpacked: Unpacked =
            serde_json::from_str(paragraph.comment("json").expect("what it was")).expect("JSON of Go's");
        let found = bothways_proto::gunzip(bytes, 1 << 20).expect("Go packed it");
        assert_eq!(found, unpacked.0, "{:?}", paragraph.comment("go"));
        streams += 1;
    }
    assert!(2 < streams, "{streams} streams");
}

/// Bit by bit, because the library makes no header with a version or reserved bits.
fn header_of(decoded: &Decoded) -> Header {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let mut bytes = [0; bothways_proto::HEADER_LEN];
    bytes[0] = bothways_proto::MAGIC;
    bytes[1] = decoded.version;
    bytes[2] = flag(decoded.r#type == "response", 0x80)
        | flag(decoded.heartbeat, 0x40)
        | flag(decoded.oneway, 0x20)
        | decoded.compress << 2
        | decoded.status;
    bytes[3] = decoded.serialize << 4 | decoded.reserved;
    bytes[4..].copy_from_slice(&decoded.seq.to_be_bytes());
    Header::from_bytes(&bytes).expect("the magic number is right")
}
