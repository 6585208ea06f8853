//! The metadata of a server, in rpcx's form: a URL query string.

use std::fmt;

/// Pairs such as `weight=7&group=test&group=blue&state=inactive`.
///
/// Read and written as Go's `net/url` does it: `+` is a blank, `%` and two digits a byte, a key may come
/// several times, and written keys are sorted.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct ServerMetadata {
    text: Box<str>,
    pairs: Vec<(Box<str>, Box<str>)>,
    error: Option<MetadataSyntaxError>,
}

/// Why a text is no query string.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataSyntaxError {
    /// A `;`, which is no separator any more.
    #[error("`;` does not separate pairs: write `&`, or %3B if it belongs to a value")]
    Semicolon,
    /// A `%` that two hexadecimal digits do not follow.
    #[error("`%` is not followed by two hexadecimal digits")]
    Escape,
}

impl ServerMetadata {
    /// Reads a query string. A text that is none is kept without pairs: in rpcx a server with such metadata counts as
    /// one without any.
    pub fn parse(text: &str) -> Self {
        let mut pairs = Vec::new();
        let mut error = None;
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (part.contains(';'), unescape(key), unescape(value)) {
                (false, Some(key), Some(value)) => pairs.push((key, value)),
                (true, ..) => error = error.or(Some(MetadataSyntaxError::Semicolon)),
                _ => error = error.or(Some(MetadataSyntaxError::Escape)),
            }
        }
        if error.is_some() {
            pairs.clear();
        }
        Self { text: text.into(), pairs, error }
    }

    /// Metadata of these pairs.
    pub fn from_pairs<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (key.as_ref().into(), value.as_ref().into())).collect();
        let mut metadata = Self { text: Box::default(), pairs, error: None };
        metadata.text = metadata.to_query().into();
        metadata
    }

    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if the text is a query string.
    pub fn is_well_formed(&self) -> bool {
        self.error.is_none()
    }

    /// The fault in the text.
    pub fn error(&self) -> Option<MetadataSyntaxError> {
        self.error
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Every value of a key, in order.
    pub fn get_all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Every pair, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The pairs as a query string, sorted by key; values of one key stay in order. This is the form in
    /// which rpcx's servers refresh what registries hold.
    pub fn to_query(&self) -> String {
        let mut pairs: Vec<_> = self.iter().collect();
        pairs.sort_by_key(|(key, _)| *key);
        let mut query = String::new();
        for (key, value) in pairs {
            if !query.is_empty() {
                query.push('&');
            }
            escape(key, &mut query);
            query.push('=');
            escape(value, &mut query);
        }
        query
    }
}

impl fmt::Debug for ServerMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerMetadata").field(&self.text).finish()
    }
}

/// `None`: a `%` without two digits. Bytes that are no UTF-8 become the replacement character.
fn unescape(text: &str) -> Option<Box<str>> {
    if !text.contains(['%', '+']) {
        return Some(text.into());
    }

    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, behind) = rest.split_first_chunk::<2>()?;
                rest = behind;
                let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(digits[0])? << 4 | digit(digits[1])?
            }
            byte => byte,
        });
    }

    Some(String::from_utf8_lossy(&bytes).into())
}

fn escape(text: &str, query: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b' ' => query.push('+'),
            b'-' | b'_' | b'.' | b'~' => query.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => query.push(char::from(byte)),
            byte => {
                query.push('%');
                query.push(char::from(DIGITS[usize::from(byte >> 4)]));
                query.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_string_is_read_as_go_reads_it() {
        let metadata = ServerMetadata::parse("weight=7&group=test&&group=a+b%26c&flag&=x&empty=&a=b=c");
        let pairs: Vec<_> = metadata.iter().collect();
        let expected = [
            ("weight", "7"),
            ("group", "test"),
            ("group", "a b&c"),
            ("flag", ""),
            ("", "x"),
            ("empty", ""),
            ("a", "b=c"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(metadata.get_all("group").collect::<Vec<_>>(), ["test", "a b&c"]);
        assert_eq!((metadata.get("group"), metadata.get("none")), (Some("test"), None));
    }

    #[test]
    fn what_is_no_query_string_has_no_pairs() {
        for (text, error) in [
            ("weight=7;group=test", MetadataSyntaxError::Semicolon),
            ("a=1&b=%", MetadataSyntaxError::Escape),
            ("a=1&b=%2", MetadataSyntaxError::Escape),
            ("a%g0=1", MetadataSyntaxError::Escape),
        ] {
            let metadata = ServerMetadata::parse(text);
            assert_eq!((metadata.error(), metadata.iter().count()), (Some(error), 0), "{text}");
            assert_eq!(metadata.as_str(), text);
        }
    }

    #[test]
    fn keys_are_written_sorted_and_escaped() {
        let metadata = ServerMetadata::from_pairs([("weight", "7"), ("group", "ü/1"), ("group", "a b")]);
        assert_eq!(metadata.as_str(), "group=%C3%BC%2F1&group=a+b&weight=7");
    }

    proptest! {
        /// Whatever is written is read back, and any text can be read.
        #[test]
        fn pairs_survive_the_text(pairs in prop::collection::vec((".{0,6}", ".{0,6}"), 0..5), text in ".{0,30}") {
            let metadata = ServerMetadata::from_pairs(pairs.iter().map(|(key, value)| (key, value)));
            let read = ServerMetadata::parse(metadata.as_str());
            prop_assert!(read.is_well_formed());
            for (key, _) in &pairs {
                prop_assert_eq!(read.get_all(key).collect::<Vec<_>>(), metadata.get_all(key).collect::<Vec<_>>());
            }
            let any = ServerMetadata::parse(&text);
            prop_assert_eq!(any.as_str(), text);
        }
    }
}
