//! The corpus that the targets begin with: golden frames of Go rpcx, and the malformed ones.
//!
//! `BLESS=1 cargo test --test corpus` writes it. Files that are not listed here are left alone: a
//! fuzzing engine found them worth keeping, and somebody agreed.

use std::{env, fs, path::Path};

use bothways::Encode;
use bothways_fuzz::Record;
use bothways_proto::{Metadata, SerializeType, gzip};
use hex_literal::hex;

#[path = "../../crates/proto/tests/data/malformed.rs"]
mod table;

/// As Go rpcx 1.9.4 prints them.
fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let frames: [(&str, &[u8]); 10] = [
        (
            "request",
            &hex!(
                "08 00 00 30 0000000000000002 0000001f 00000005 4172697468 00000003 4d756c 00000000 00000007 82a1410aa14214"
            ),
        ),
        (
            "response",
            &hex!(
                "08 00 80 30 0000000000000002 0000001d 00000005 4172697468 00000003 4d756c 00000000 00000005 81a143ccc8"
            ),
        ),
        (
            "error-of-a-method",
            &hex!(
                "08 00 81 30 0000000000000003 00000036 00000005 4172697468 00000003 457272
             0000001a 0000000e 5f5f727063785f6572726f725f5f 00000004 626f6f6d 00000004 81a14300"
            ),
        ),
        (
            "error-of-a-function",
            &hex!(
                "08 00 81 30 0000000000000004 0000002d 00000001 46 00000002 666e
             0000001a 0000000e 5f5f727063785f6572726f725f5f 00000004 626f6f6d 00000000"
            ),
        ),
        (
            "oneway",
            &hex!(
                "08 00 20 30 0000000000000002 0000001f 00000005 4172697468 00000003 4d756c 00000000 00000007 82a1410aa14214"
            ),
        ),
        (
            "heartbeat",
            &hex!("08 00 40 30 0000000000000003 00000019 00000000 00000000 00000000 00000009 d30000000000000005"),
        ),
        (
            "push",
            &hex!(
                "08 00 20 00 0000000000000001 00000021 00000001 70 00000001 6d 0000000a 00000001 6b 00000001 76 00000005 6162636465"
            ),
        ),
        ("push-all-empty", &hex!("08 00 20 00 0000000000000002 00000010 00000000 00000000 00000000 00000000")),
        (
            "request-with-metadata",
            &hex!(
                "08 00 00 30 0000000000000001 00000029 00000005 4172697468 00000003 4d756c 0000000a 00000001 6b 00000001 76 00000007 82a1410aa14214"
            ),
        ),
        (
            "request-with-gzip",
            &hex!(
            "08 00 04 30 0000000000000001 00000047 00000005 4172697468 00000003 4d756c 0000000a 00000001 6b 00000001 76
             00000025 1f8b08000000000000ff000700f8ff82a1410aa14214000000ffff0300deb9a45a07000000"
        ),
        ),
    ];
    frames.map(|(name, frame)| (name, frame.to_vec())).into()
}

/// The first byte says how the target cuts the rest.
fn decode() -> Vec<(String, Vec<u8>)> {
    let mut corpus = Vec::new();
    for (place, (name, frame)) in golden().into_iter().enumerate() {
        corpus.push((format!("golden-{name}"), [&[place as u8 * 3], &frame[..]].concat()));
    }
    let all: Vec<u8> = golden().into_iter().flat_map(|(_, frame)| frame).collect();
    corpus.push(("golden-all".into(), [&[40], &all[..]].concat()));
    for (place, case) in table::cases().into_iter().enumerate() {
        corpus.push((format!("malformed-{}", case.name), [&[place as u8], &case.bytes[..]].concat()));
    }
    corpus
}

fn metadata() -> Vec<(String, Vec<u8>)> {
    let block = |pairs: &[(&str, &str)]| Metadata::from_iter(pairs.iter().copied()).as_block().to_vec();
    vec![
        ("one-pair".into(), block(&[("k", "v")])),
        ("empty-key".into(), block(&[("", "v")])),
        ("empty-value".into(), block(&[("k", "")])),
        ("error".into(), block(&[("__rpcx_error__", "boom")])),
        ("token-and-deadline".into(), block(&[("__AUTH", "bearer token"), ("__ServerTimeout", "5000")])),
        ("hello".into(), block(&[("_bw.v", "1"), ("_bw.caps", "calls,cancel,goodbye,ping")])),
        ("key-twice".into(), [block(&[("k", "a")]), block(&[("k", "b")])].concat()),
        ("not-utf8".into(), hex!("00000002 c328 00000001 ff").to_vec()),
        ("stray-bytes".into(), [&block(&[("k", "v")])[..], &[0, 0]].concat()),
        ("value-too-long".into(), hex!("00000001 6b 00000064 76").to_vec()),
        ("seventeen-pairs".into(), hex!("00000000 00000000").repeat(17)),
    ]
}

fn gunzip() -> Vec<(String, Vec<u8>)> {
    let go = hex!("1f8b08000000000000ff000700f8ff82a1410aa14214000000ffff0300deb9a45a07000000");
    let mut corpus = vec![
        ("golden".to_string(), go.to_vec()),
        ("two-members".to_string(), [&go[..], &gzip(b"second")].concat()),
        ("nothing".to_string(), gzip(b"")),
        ("with-a-name".to_string(), hex!("1f8b0808000000000003 6100 4b040043beb7e801000000").to_vec()),
        ("bomb".to_string(), gzip(&[0; 1 << 20])),
        ("text".to_string(), gzip(include_str!("corpus.rs").split_at(2000).0.as_bytes())),
        ("stray-byte".to_string(), [&go[..], &[0]].concat()),
    ];
    for at in [1, 9, 12, 30] {
        corpus.push((format!("cut-at-{at}"), go[..at].to_vec()));
    }
    corpus
}

/// Conversations; the target gives every byte a meaning, so that any bytes are one.
fn connection_ops() -> Vec<(String, Vec<u8>)> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut corpus: Vec<(String, Vec<u8>)> = (1..=6)
        .map(|n| (format!("conversation-{n}"), std::iter::repeat_with(&mut random).take(n * 100).collect()))
        .collect();
    // Both sides agree; the Hello and the Welcome arrive; the server calls, the client answers, all arrives.
    corpus.push(("call-to-a-client".into(), vec![1, 1, 29, 255, 28, 255, 1, 0, 28, 255, 10, 1, 29, 255]));
    // The same client at a server that echoes the Hello.
    corpus.push(("plain-server".into(), vec![4, 1, 29, 255, 11, 0, 28, 255, 19, 0, 28, 255]));
    // A dishonest server answers the Hello before it is said, under the number that it will have.
    corpus.push(("forged-answer-to-a-hello".into(), hex!("01 00 11 04 16 fa 16 05").to_vec()));
    corpus
}

/// A full record and an empty one in each codec, and what a peer of another language makes of some fields.
fn codecs() -> Vec<(String, Vec<u8>)> {
    let mut corpus = Vec::new();
    for (which, (codec, serialize)) in
        [("msgpack", SerializeType::MSGPACK), ("json", SerializeType::JSON)].into_iter().enumerate()
    {
        for (name, record) in [("full", bothways_fuzz::full()), ("empty", Record::default())] {
            let payload = record.encode(serialize).expect("it can be written");
            corpus.push((format!("{codec}-{name}"), [&[which as u8], &payload[..]].concat()));
        }
    }
    corpus.push(("json-nulls".into(), b"\x01{\"Name\":null,\"List\":null,\"Map\":null,\"Kind\":null}".to_vec()));
    for (name, payload) in [
        ("nil-fields", &hex!("83 a44e616d65 c0 a44c697374 c0 a34d6170 c0")[..]),
        ("wide-integers", &hex!("82 a5536d616c6c d3ffffffffffffffff a54c61726765 cf0000000000000001")),
        ("a-float-for-a-float", &hex!("81 a653696e676c65 cb3ff8000000000000")),
        ("a-list-of-four-thousand-million", &hex!("81 a44c697374 ddffffffff 01")),
        ("a-map-of-four-thousand-million", &hex!("81 a34d6170 dfffffffff a161 01")),
        ("bytes-of-four-thousand-million", &hex!("81 a54279746573 c6ffffffff 01")),
        ("unknown-field-and-extension", &hex!("82 a158 d40500 a4466c6167 c3")),
        ("nested", &hex!("81 a657697468696e").repeat(200)),
    ] {
        corpus.push((format!("msgpack-{name}"), [&[0], payload].concat()));
    }
    corpus
}

/// Frames as Go and browsers send them, and some that break the rules; each to a server, or unmasked to a client.
fn web_socket() -> Vec<(String, Vec<u8>)> {
    let mut corpus = Vec::new();
    for (name, to_server, frames) in [
        ("hello", true, &hex!("8185 37fa213d 7f9f4d5158")[..]),
        ("binary-of-go", false, &hex!("8205 0800003000 8200 8a00")),
        ("ping-between-parts", true, &hex!("0183 00000000 616263 8982 00000000 6869 8081 00000000 64")),
        ("close", true, &hex!("8882 00000000 03e8")),
        ("close-with-a-reason", false, &hex!("8806 03f3 61626364")),
        ("close-without-text", true, &hex!("8884 00000000 03e8 ceed")),
        ("two-byte-length", false, &[&hex!("827e 00c8")[..], &[7; 200]].concat()),
        ("eight-byte-length", true, &hex!("82ff 0000000000010000 01020304 05060708")),
        ("all-the-length-there-is", true, &hex!("82ff 7fffffffffffffff 01020304 05060708")),
        ("length-in-another-form", false, &hex!("827e 0001 00")),
        ("without-a-mask", true, &hex!("8101 61")),
        ("bits-that-mean-nothing", false, &hex!("c101 61")),
        ("opcode-that-means-nothing", false, &hex!("8301 61")),
        ("ping-in-parts", false, &hex!("0901 61")),
        ("many-pings", false, &hex!("8901 61").repeat(40)),
    ] {
        corpus.push((name.to_owned(), [&[u8::from(!to_server), 4], frames].concat()));
    }
    corpus
}

/// Golden and malformed frames are where every target begins.
#[test]
fn the_corpus_is_there() {
    let bless = env::var_os("BLESS").is_some();
    let targets = [
        ("decode", decode()),
        ("metadata", metadata()),
        ("gunzip", gunzip()),
        ("connection_ops", connection_ops()),
        ("codecs", codecs()),
        ("web_socket", web_socket()),
    ];
    for (target, corpus) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(target).join("corpus");
        for (name, bytes) in corpus {
            let file = folder.join(name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
            if bless {
                fs::create_dir_all(&folder).and_then(|()| fs::write(&file, &bytes)).expect("the corpus can be written");
            }
            assert!(fs::read(&file).is_ok_and(|found| found == bytes), "{}: run again with BLESS=1", file.display());
        }
    }
}
