//! A type with every kind of value that a payload can have.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

/// Fields that lack are as if they were zero, so that a payload which is nearly right is read to its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Record {
    pub flag: bool,
    pub small: i8,
    pub number: i64,
    pub large: u64,
    pub single: f32,
    pub double: f64,
    pub letter: Option<char>,
    pub name: String,
    #[serde(with = "bothways::codec::bytes")]
    pub bytes: Vec<u8>,
    pub list: Vec<Option<i32>>,
    pub pair: (u8, String),
    pub map: BTreeMap<String, u16>,
    pub by_number: BTreeMap<i32, bool>,
    #[serde(with = "bothways::codec::time")]
    pub at: Option<SystemTime>,
    #[serde(with = "bothways::codec::duration")]
    pub took: Duration,
    pub kind: Option<Kind>,
    pub within: Option<Box<Record>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Kind {
    Nothing,
    One(u32),
    Two(i8, String),
    Named { size: u16 },
}

/// One whose fields all say something.
pub fn full() -> Record {
    Record {
        flag: true,
        small: -7,
        number: -40_000_000_000,
        large: u64::MAX,
        single: 1.5,
        double: -0.1,
        letter: Some('ß'),
        name: "a name that is longer than thirty-one bytes".into(),
        bytes: vec![0, 128, 255],
        list: vec![Some(1), None, Some(-70_000)],
        pair: (200, "two".into()),
        map: [("a".to_owned(), 1), ("b".to_owned(), 65_535)].into(),
        by_number: [(-1, true), (300, false)].into(),
        at: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
        took: Duration::from_millis(1500),
        kind: Some(Kind::Two(-1, "x".into())),
        within: Some(Box::new(Record { kind: Some(Kind::Named { size: 9 }), ..Record::default() })),
    }
}
