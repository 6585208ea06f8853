//! Every frame of `data/malformed.hex` is answered as the table says, in whatever pieces it comes.

#![cfg(feature = "gzip")]

use std::collections::HashSet;

use bothways_proto::{Connection, Deframer, Inbound, Message};

#[path = "data/malformed.rs"]
mod table;

use table::{Case, Expect};

/// What became of a stream: the last message it held, and how it ended.
enum End {
    Closed(String),
    Accepted(&'static str, Message),
    Waiting,
}

fn run(case: &Case, piece_bytes: usize) -> End {
    let (mut deframer, mut connection) = (Deframer::new(), Connection::<()>::new(case.to, 10));
    let mut last = None;
    for piece in case.bytes.chunks(piece_bytes) {
        deframer.feed(piece, &case.limits);
        loop {
            let message = match deframer.next_message(&case.limits) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return End::Closed(format!("{error:?}")),
            };
            last = Some(match connection.handle_message(message) {
                Ok(Inbound::Call(message)) => ("Call", message),
                Ok(Inbound::Push(message)) => ("Push", message),
                Ok(Inbound::Ping(message)) => ("Ping", message),
                Ok(Inbound::Late(message)) => ("Late", message),
                Ok(other) => panic!("{}: nothing was negotiated: {other:?}", case.name),
                Err(error) => return End::Closed(format!("{error:?}")),
            });
        }
    }
    match last {
        Some((name, message)) if !deframer.is_mid_frame() => End::Accepted(name, message),
        _ if deframer.is_mid_frame() => End::Waiting,
        _ => panic!("{}: nothing came of it", case.name),
    }
}

/// The table holds, whole and byte by byte.
#[test]
fn every_malformed_frame_is_answered_as_the_table_says() {
    for case in table::cases() {
        for piece_bytes in [usize::MAX, 1, 7] {
            let name = case.name;
            match (run(&case, piece_bytes), &case.expect) {
                (End::Closed(found), Expect::Closes(expected)) => {
                    assert!(table::is_error(&found, expected), "{name}: {found}");
                }
                (End::Accepted(_, message), Expect::Fails(expected)) => {
                    let error = message.payload(&case.limits).expect_err(name);
                    assert!(table::is_error(&format!("{error:?}"), expected), "{name}: {error:?}");
                }
                (End::Accepted(found, message), Expect::Accepts(expected)) => {
                    assert_eq!(found, *expected, "{name}");
                    message.payload(&case.limits).expect(name);
                    if let Some((key, value)) = case.shows {
                        assert_eq!(message.metadata().get(key), Some(value), "{name}");
                    }
                }
                (End::Waiting, Expect::Waits) => {}
                (End::Closed(found), expected) => panic!("{name}: closed with {found}, not {expected:?}"),
                (End::Accepted(found, _), expected) => panic!("{name}: accepted as {found}, not {expected:?}"),
                (End::Waiting, expected) => panic!("{name}: waits, not {expected:?}"),
            }
        }
    }
}

/// Names are how other tests speak of a record.
#[test]
fn names_are_unique() {
    let mut names = HashSet::new();
    assert!(table::cases().iter().all(|case| names.insert(case.name)));
    assert!(50 < names.len(), "{} records were read", names.len());
}
