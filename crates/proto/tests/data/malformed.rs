//! Reads `malformed.hex`; that file says what it holds. No dependency but the crate itself, so that
//! any test can include this file by its path.

#![allow(dead_code, reason = "each test that includes this file reads what it needs")]

use bothways_proto::{Limits, Role};

/// One record.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) to: Role,
    pub(crate) limits: Limits,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: Expect,
    pub(crate) shows: Option<(&'static str, &'static str)>,
}

/// What becomes of the last frame.
#[derive(Debug)]
pub(crate) enum Expect {
    Closes(&'static str),
    Fails(&'static str),
    Accepts(&'static str),
    Waits,
}

/// All records, in the order of the file.
pub(crate) fn cases() -> Vec<Case> {
    let text = include_str!("malformed.hex");
    let records = text.split("\n\n").map(|record| record.lines().filter(|line| !line.starts_with('#')));
    records.filter(|record| record.clone().next().is_some()).map(case).collect()
}

fn case(lines: impl Iterator<Item = &'static str> + Clone) -> Case {
    let fields = lines.map(|line| line.split_once(' ').map_or((line, ""), |(field, value)| (field, value.trim())));
    let find = |wanted| fields.clone().find(|(field, _)| *field == wanted).map(|(_, value)| value);
    let name = find("name").unwrap_or_else(|| panic!("a record without a name: {:?}", fields.clone().next()));
    Case {
        name,
        to: match find("to") {
            None | Some("server") => Role::Server,
            Some("client") => Role::Client,
            Some(other) => panic!("{name}: to {other}?"),
        },
        limits: find("limits").unwrap_or_default().split_whitespace().fold(Limits::default(), |limits, limit| {
            let (field, number) = limit.split_once('=').unwrap_or_else(|| panic!("{name}: {limit}?"));
            let number = number.parse().unwrap_or_else(|_| panic!("{name}: {limit}?"));
            match field {
                "body_bytes_max" => limits.body_bytes_max(number),
                "decompressed_bytes_max" => limits.decompressed_bytes_max(number),
                "metadata_bytes_max" => limits.metadata_bytes_max(number),
                "metadata_pairs_max" => limits.metadata_pairs_max(number),
                other => panic!("{name}: limit {other}?"),
            }
        }),
        bytes: unhex(&fields.clone().filter(|(field, _)| *field == "hex").map(|(_, hex)| hex).collect::<String>()),
        expect: match find("expect").unwrap_or_default().split_once(' ') {
            Some(("closes", error)) => Expect::Closes(error),
            Some(("fails", error)) => Expect::Fails(error),
            Some(("accepts", inbound)) => Expect::Accepts(inbound),
            None if find("expect") == Some("waits") => Expect::Waits,
            other => panic!("{name}: expect {other:?}?"),
        },
        shows: find("shows").and_then(|pair| pair.split_once('=')),
    }
}

/// True if the Debug form of an error is what a record expects.
pub(crate) fn is_error(found: &str, expected: &str) -> bool {
    expected.strip_suffix("_)").map_or(found == expected, |start| found.starts_with(start))
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).expect("a hex digit") as u8).collect();
    assert!(digits.len().is_multiple_of(2), "half a byte: {hex}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
