//! What things are called at the broker: subjects, streams, and names of ours as parts of them.
//!
//! All subjects begin with `bw.<cluster>.`, so that permissions take one line. The part behind the letter of a stream is
//! its token: a stream that was made anew has other subjects.
//!
//! | subject | what |
//! |---|---|
//! | `n.<node>` | mail of a node |
//! | `i.<random>.<number>` | answers |
//! | `k.<token>.<node>` | leases; published again as `w.<token>.<node>` |
//! | `s.<token>.<session>` | records |
//! | `c.<token>.<letter and name of a log>.<reader>` | cursors |
//! | `p.<token>.<session>` | parts of sessions that wait |
//! | `d.<token>.<user>` | what users could not handle |
//! | `h.<token>.<topic>` | histories; published again as `t.<token>.<topic>` |
//! | `t.-.<topic>` | what is published to topics without history |
//! | `m.<token>.<user>` | mailboxes; published again, without its bytes, as `b.<token>.<user>` |

use std::fmt::Write as _;

use bothways::cluster::{NodeId, engine::Log};
use sha2::{Digest as _, Sha256};

use crate::wire::Outbox;

/// How many streams the histories are spread over, and the mailboxes.
pub(crate) const SHARDS: u8 = 4;

/// Most bytes of the name of a mailbox or a cursor, and of a topic.
pub(crate) const NAME_BYTES_MAX: usize = 512;

/// In place of the token, in the subject of a topic without history.
pub(crate) const UNKEPT: &str = "-";

/// One stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Nodes,
    Sessions,
    Cursors,
    Parked,
    Dead,
    History(u8),
    Mailbox(u8),
}

impl Kind {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let one_each = [Self::Nodes, Self::Sessions, Self::Cursors, Self::Parked, Self::Dead];
        one_each.into_iter().chain((0..SHARDS).map(Self::History)).chain((0..SHARDS).map(Self::Mailbox))
    }

    pub(crate) fn letter(self) -> char {
        match self {
            Self::Nodes => 'k',
            Self::Sessions => 's',
            Self::Cursors => 'c',
            Self::Parked => 'p',
            Self::Dead => 'd',
            Self::History(_) => 'h',
            Self::Mailbox(_) => 'm',
        }
    }

    /// What has logs; the others have leases, records and cursors, one of a subject, that end with their time.
    pub(crate) fn is_log(self) -> bool {
        !matches!(self, Self::Nodes | Self::Sessions | Self::Cursors)
    }

    /// Through which outbox it is asked and written.
    pub(crate) fn outbox(self) -> Outbox {
        match self {
            Self::Nodes | Self::Sessions => Outbox::Register,
            Self::Cursors | Self::Parked | Self::Dead | Self::History(_) | Self::Mailbox(_) => Outbox::Logs,
        }
    }

    /// The letter of the subjects under which it is published again, and whether without its bytes.
    pub(crate) fn published_again(self) -> Option<(char, bool)> {
        match self {
            Self::Nodes => Some(('w', false)),
            Self::History(_) => Some(('t', false)),
            Self::Mailbox(_) => Some(('b', true)),
            Self::Sessions | Self::Cursors | Self::Parked | Self::Dead => None,
        }
    }

    pub(crate) fn of(log: &Log) -> Self {
        match log {
            Log::History(topic) => Self::History(shard(first_segment(topic))),
            Log::Mailbox(user) => Self::Mailbox(shard(user)),
            Log::Dead(_) => Self::Dead,
            Log::Parked(_) | Log::ParkedOf(_) => Self::Parked,
        }
    }

    /// All streams with logs of the kind of this one.
    pub(crate) fn all_of(log: &Log) -> Vec<Self> {
        match log {
            Log::History(_) => (0..SHARDS).map(Self::History).collect(),
            Log::Mailbox(_) => (0..SHARDS).map(Self::Mailbox).collect(),
            Log::Dead(_) | Log::Parked(_) => vec![Self::of(log)],
            // It has no entries.
            Log::ParkedOf(_) => Vec::new(),
        }
    }
}

fn first_segment(topic: &str) -> &str {
    topic.split('.').next().unwrap_or_default()
}

/// Where the histories are that a pattern can match.
pub(crate) fn histories_of(pattern: &str) -> Vec<Kind> {
    match first_segment(pattern) {
        "*" | ">" => (0..SHARDS).map(Kind::History).collect(),
        segment => vec![Kind::History(shard(segment))],
    }
}

fn shard(name: &str) -> u8 {
    Sha256::digest(name.as_bytes())[0] % SHARDS
}

/// A log's own part of its subject. `None`: its name is too long.
pub(crate) fn log(log: &Log) -> Option<String> {
    match log {
        Log::History(name) => topic(name),
        Log::Mailbox(user) | Log::Dead(user) => token(user),
        Log::Parked(session) => Some(session.to_string()),
        // No session has such a name.
        Log::ParkedOf(user) => token(&format!("of {user}")),
    }
}

/// A cursor's own part of its subject; `*` for those of all readers. `None`: a name is too long.
pub(crate) fn cursor(of: &Log, reader: Option<&str>) -> Option<String> {
    let reader = match reader {
        Some(reader) => token(reader)?,
        None => "*".to_owned(),
    };
    let letter = match of {
        Log::ParkedOf(_) => 'u',
        _ => Kind::of(of).letter(),
    };
    Some(format!("{letter}{}.{reader}", token(&of.name())?))
}

/// The name of the log that has this part of a subject.
pub(crate) fn name_of_log(kind: Kind, rest: &str) -> Option<String> {
    match kind {
        Kind::History(_) => topic_of(rest),
        _ => name_of(rest),
    }
}

/// What stands for the key of an entry in its stream: keys of different logs have nothing to do with each other.
pub(crate) fn key(of: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(of.as_bytes());
    // No subject has it.
    hash.update([0]);
    hash.update(key.as_bytes());
    hex(&hash.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A name as one segment of a subject, and of no other name: what may not be in one is `=` and two digits.
pub(crate) fn token(name: &str) -> Option<String> {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'@' | b':' | b'+' | b'/' => {
                token.push(char::from(byte));
            }
            _ => {
                let _ = write!(token, "={byte:02X}");
            }
        }
    }
    if token.is_empty() {
        token.push('=');
    }
    (name.len() <= NAME_BYTES_MAX).then_some(token)
}

/// The name that became this segment.
pub(crate) fn name_of(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let (mut name, mut rest) = (Vec::with_capacity(token.len()), token.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'=' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            name.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            name.push(*first);
        }
    }
    String::from_utf8(name).ok()
}

/// A topic as segments of a subject.
pub(crate) fn topic(topic: &str) -> Option<String> {
    segments(topic, token)
}

/// A pattern over topics.
pub(crate) fn pattern(pattern: &str) -> Option<String> {
    segments(pattern, |segment| match segment {
        "*" | ">" => Some(segment.to_owned()),
        _ => token(segment),
    })
}

fn segments(text: &str, each: impl Fn(&str) -> Option<String>) -> Option<String> {
    let segments: Option<Vec<String>> = text.split('.').map(each).collect();
    segments.filter(|_| text.len() <= NAME_BYTES_MAX).map(|segments| segments.join("."))
}

/// The topic that became these segments.
pub(crate) fn topic_of(subject: &str) -> Option<String> {
    segments(subject, name_of)
}

/// What all subjects and streams of one cluster begin with.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    cluster: String,
}

impl Names {
    /// `None`: it cannot be part of a subject and of a stream's name.
    pub(crate) fn new(cluster: &str) -> Option<Self> {
        let is_plain = cluster.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        (is_plain && (1..=32).contains(&cluster.len())).then(|| Self { cluster: cluster.to_owned() })
    }

    pub(crate) fn prefix(&self) -> String {
        format!("bw.{}.", self.cluster)
    }

    pub(crate) fn mail(&self, node: NodeId) -> String {
        format!("bw.{}.n.{node}", self.cluster)
    }

    /// A subject of a stream, or one under which it is published again.
    pub(crate) fn subject(&self, letter: char, token: &str, rest: &str) -> String {
        format!("bw.{}.{letter}.{token}.{rest}", self.cluster)
    }

    /// The token and the rest of such a subject.
    pub(crate) fn parts<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let behind = subject.strip_prefix("bw.")?.strip_prefix(self.cluster.as_str())?.strip_prefix('.')?;
        let (_, behind) = behind.split_once('.')?;
        behind.split_once('.')
    }

    pub(crate) fn stream(&self, kind: Kind) -> String {
        let letter = kind.letter();
        match kind {
            Kind::History(number) | Kind::Mailbox(number) => format!("bw_{}_{letter}{number}", self.cluster),
            _ => format!("bw_{}_{letter}", self.cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_segment_of_its_own() {
        let names =
            ["ann", "Ann", "", "=", "a.b", "a b", "*", ">", "a=2Eb", "jürgen", "a\tb", "\u{1F600}", "a+b@c:d/e_~-"];
        let tokens: std::collections::BTreeSet<String> = names.iter().map(|name| token(name).expect("short")).collect();
        assert_eq!(tokens.len(), names.len());
        for name in names {
            let token = token(name).expect("short");
            assert!(!token.is_empty() && !token.contains(['.', '*', '>', ' ', '\t']), "{token}");
            assert_eq!(name_of(&token).as_deref(), Some(name));
        }
        for wrong in ["=2", "=zz", "a=", "=FF"] {
            assert_eq!(name_of(wrong), None, "{wrong}");
        }
        assert_eq!(token(&"a".repeat(NAME_BYTES_MAX + 1)), None);
    }

    #[test]
    fn topics_and_patterns_keep_their_segments() {
        assert_eq!(topic("news.de sport").as_deref(), Some("news.de=20sport"));
        assert_eq!(topic_of("news.de=20sport").as_deref(), Some("news.de sport"));
        assert_eq!(pattern("news.*.>").as_deref(), Some("news.*.>"));
        assert_eq!(pattern("news.a>").as_deref(), Some("news.a=3E"));
        assert_eq!(histories_of("*.sport").len(), usize::from(SHARDS));
        assert_eq!(histories_of("news.>"), [Kind::of(&Log::History("news.sport".to_owned()))]);
    }

    #[test]
    fn a_subject_is_taken_apart() {
        let names = Names::new("prod-1").expect("plain");
        let subject = names.subject('t', "0f", "news.sport");
        assert_eq!(subject, "bw.prod-1.t.0f.news.sport");
        assert_eq!(names.parts(&subject), Some(("0f", "news.sport")));
        assert_eq!(names.parts("bw.prod-2.t.0f.news"), None);
        for wrong in ["", "a.b", "a b", "ä", &"a".repeat(33)] {
            assert!(Names::new(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_that_of_its_log() {
        assert_ne!(key("ann", "1"), key("bob", "1"));
        assert_ne!(key("ann", "1"), key("ann", "2"));
        assert_eq!(key("ann", "1"), key("ann", "1"));
    }
}
