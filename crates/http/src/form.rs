//! The form in which metadata travels in the header `X-RPCX-Meta`: a query string, as Go's `net/url` reads and writes it.

use std::collections::BTreeMap;

use bothways::Metadata;

/// Most pairs of one request: as many as a server takes.
const PAIRS_MAX: usize = 128;

/// Pairs of a query string; of a repeated key the first value counts.
///
/// # Errors
/// The text of Go's error. Source: Go `net/url`, `parseQuery`.
pub(crate) fn parse(query: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        if part.contains(';') {
            return Err("invalid semicolon separator in query".to_owned());
        }
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let key = String::from_utf8(unescape(key)?).map_err(|_| "a key of the metadata is not UTF-8".to_owned())?;
        let value = unescape(value)?;
        if pairs.iter().any(|(known, _)| *known == key) {
            continue;
        }
        if pairs.len() == PAIRS_MAX {
            return Err(format!("more than {PAIRS_MAX} pairs of metadata"));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Source: Go `net/url`, `QueryUnescape`.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3).and_then(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
                let Some((high, low)) = digits else {
                    let shown = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]);
                    return Err(format!("invalid URL escape {shown:?}"));
                };
                plain.push(high << 4 | low);
                at += 2;
            }
            b'+' => plain.push(b' '),
            other => plain.push(*other),
        }
        at += 1;
    }
    Ok(plain)
}

/// A part of a path without its escapes; `None` if they are wrong, or it is no text then.
pub(crate) fn unescape_path(path: &str) -> Option<String> {
    // There `+` is a plus.
    String::from_utf8(unescape(&path.replace('+', "%2B")).ok()?).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The pairs as a query string, sorted. Source: Go `net/url`, `Values.Encode`.
pub(crate) fn encode(metadata: &Metadata) -> String {
    let sorted: BTreeMap<&[u8], &[u8]> = metadata.pairs().collect();
    let pairs = sorted.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn escape(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(*byte)),
            b' ' => text.push('+'),
            other => _ = write!(text, "%{other:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each query as Go 1.26 reads it.
    #[test]
    fn queries_are_read_as_go_reads_them() {
        let pairs = |query| {
            let pairs = parse(query)?;
            Ok::<_, String>(
                pairs.into_iter().map(|(key, value)| (key, String::from_utf8(value).expect("a text"))).collect(),
            )
        };
        let of = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>())
        };
        assert_eq!(pairs(""), of(&[]));
        assert_eq!(pairs("a=b+c&echo=a+b%26c%3Dd"), of(&[("a", "b c"), ("echo", "a b&c=d")]));
        assert_eq!(pairs("z=1&z=2&&y&=x"), of(&[("z", "1"), ("y", ""), ("", "x")]));
        assert_eq!(pairs("a=%zz"), Err("invalid URL escape \"%zz\"".to_owned()));
        assert_eq!(pairs("a=%4"), Err("invalid URL escape \"%4\"".to_owned()));
        assert_eq!(pairs("a=1;b=2"), Err("invalid semicolon separator in query".to_owned()));
        let many: String = (0..129).map(|n| format!("{n}&")).collect();
        assert_eq!(pairs(&many), Err("more than 128 pairs of metadata".to_owned()));
        let again: String = (0..128).chain(0..128).map(|n| format!("{n}&")).collect();
        assert_eq!(pairs(&again).map(|pairs| pairs.len()), Ok(128), "of a repeated key the first counts, however many");
    }

    #[test]
    fn pairs_are_written_as_go_writes_them() {
        let metadata = Metadata::new().with("got.a", "b c").with("echo", "a b&c=d").with("*~", "ü");
        assert_eq!(encode(&metadata), "%2A~=%C3%BC&echo=a+b%26c%3Dd&got.a=b+c");
        assert_eq!(encode(&Metadata::new()), "");
    }

    #[test]
    fn a_path_has_its_own_escapes() {
        assert_eq!(unescape_path("a%20b+c"), Some("a b+c".to_owned()));
        assert_eq!(unescape_path("%ff"), None);
        assert_eq!(unescape_path("%x"), None);
    }
}
