//! Error texts of codecs without the names of Rust types, because these texts go to peers.

use std::fmt::{Display, Write};

/// Most bytes of a text that says what is wrong with a payload: it may repeat the payload.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// What is said, or its beginning: no more is made of it than is kept.
pub(super) fn brief(said: &dyn Display) -> String {
    struct Brief(String);

    impl Write for Brief {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let room = TEXT_BYTES_MAX - self.0.len();
            if text.len() <= room {
                self.0.push_str(text);
                return Ok(());
            }
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            Err(std::fmt::Error)
        }
    }

    let mut text = Brief(String::new());
    if write!(text, "{said}").is_err() {
        text.0.push('…');
    }
    text.0
}

/// Words that serde puts before the name of a type or of a variant.
const BEFORE_NAMES: [&str; 3] = ["struct", "enum", "variant"];

/// Words that may follow those in a sentence.
const NO_NAMES: [&str; 8] = ["variant", "of", "with", "and", "or", "as", "in", "index"];

/// `expected struct Args with 2 elements` → `expected struct with 2 elements`.
pub(super) fn without_type_names(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut before = "";
    for (at, word) in text.split(' ').enumerate() {
        let name = word.trim_end_matches([',', '.', ';', ')']);
        if BEFORE_NAMES.contains(&before) && is_name(name, before) {
            kept.push_str(&word[name.len()..]);
        } else {
            if 0 < at {
                kept.push(' ');
            }
            kept.push_str(word);
        }
        before = word.trim_start_matches('(');
    }
    kept
}

/// Whether this stands for a type behind `struct` or `enum`, or for a type and its variant behind `variant`.
fn is_name(word: &str, before: &str) -> bool {
    let letters = word.chars().all(|letter| letter.is_alphanumeric() || "_:#<>".contains(letter));
    let of_type = before != "variant" && !NO_NAMES.contains(&word);
    letters && !word.is_empty() && (of_type || word.contains("::"))
}

#[cfg(all(test, feature = "json"))]
mod tests {
    use bothways_proto::SerializeType;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Encode, Payload};

    #[derive(Debug, Default, Deserialize, Serialize)]
    struct SecretArgs {
        a: i64,
        maybe: Option<Box<SecretArgs>>,
        pair: SecretPair,
        choice: SecretChoice,
        #[serde(skip_serializing_if = "Option::is_none")]
        flat: Option<SecretTagged>,
        either: SecretUntagged,
    }

    #[derive(Debug, Default, Deserialize, Serialize)]
    struct SecretPair(i64, i64);

    #[derive(Debug, Default, Deserialize, Serialize)]
    enum SecretChoice {
        #[default]
        Nothing,
        One(i64),
        Two(i64, i64),
        Named {
            x: i64,
        },
        #[serde(skip)]
        Hidden,
    }

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(tag = "t")]
    enum SecretTagged {
        Some { x: i64 },
    }

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(untagged)]
    enum SecretUntagged {
        Text(String),
        Pair(SecretPair),
    }

    impl Default for SecretUntagged {
        fn default() -> Self {
            Self::Text(String::new())
        }
    }

    /// A value that is wrong, and says so without end.
    #[derive(Debug, Serialize)]
    struct Endless;

    impl<'de> Deserialize<'de> for Endless {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_str(Endless)
        }
    }

    impl serde::de::Visitor<'_> for Endless {
        type Value = Self;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("no text")
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self, E> {
            Err(E::custom(Self))
        }
    }

    impl Display for Endless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            for _ in 0..10_000 {
                f.write_str("wrong ")?;
            }
            panic!("more is made of the text than is kept");
        }
    }

    /// X1. A value of the wrong type is not repeated, and no more of the text is made than is kept, whatever the codec.
    #[test]
    fn no_error_of_a_codec_repeats_a_long_value() {
        const BYTES: usize = 1 << 20;
        let long = "\u{7f}".repeat(BYTES);
        for serialize in [SerializeType::JSON, SerializeType::MSGPACK] {
            let text = long.encode(serialize).unwrap();
            let field = std::collections::BTreeMap::from([("a", &long)]).encode(serialize).unwrap();
            for error in [
                i32::decode(serialize, text.clone()).expect_err("a text is no number"),
                SecretArgs::decode(serialize, field).expect_err("a text is no number"),
                SecretChoice::decode(serialize, text.clone()).expect_err("there is no such variant"),
                std::time::SystemTime::decode(serialize, text.clone()).expect_err("a text is no time"),
                crate::codec::Timestamp::<std::time::SystemTime>::decode(serialize, text.clone())
                    .expect_err("a text is no time"),
                bytes::Bytes::decode(SerializeType::JSON, long.encode(SerializeType::JSON).unwrap())
                    .expect_err("base64"),
                Endless::decode(serialize, text).expect_err("it is always wrong"),
            ] {
                let error = error.to_string();
                assert!(error.len() < TEXT_BYTES_MAX + 100, "{} bytes", error.len());
            }
        }
    }

    #[test]
    fn the_words_stay_and_the_names_go() {
        let words = [
            ("invalid type: integer `5`, expected struct Args", "invalid type: integer `5`, expected struct"),
            ("expected struct Args at line 1 column 2", "expected struct at line 1 column 2"),
            (
                "invalid length 1, expected tuple struct Pair with 2 elements",
                "invalid length 1, expected tuple struct with 2 elements",
            ),
            ("expected struct variant Shape::Circle with 1 element", "expected struct variant with 1 element"),
            ("expected enum r#Kind, which is another", "expected enum, which is another"),
            ("the enum variant Kind::Hidden cannot be serialized", "the enum variant cannot be serialized"),
            ("data did not match any variant of untagged enum Kind", "data did not match any variant of untagged enum"),
            ("unknown variant `x`, expected `A` or `B`", "unknown variant `x`, expected `A` or `B`"),
            ("expected variant index 0 <= i < 3", "expected variant index 0 <= i < 3"),
            ("missing field `B`", "missing field `B`"),
            ("a struct of numbers, or  an enum", "a struct of numbers, or  an enum"),
        ];
        for (before, after) in words {
            assert_eq!(without_type_names(before), after);
        }
    }

    #[test]
    fn no_error_of_a_codec_names_our_types() {
        let whole = |field: &str, value: &str| {
            format!(r#"{{"a":1,"pair":[1,2],"choice":"Nothing","either":"","{field}":{value}}}"#)
        };
        let wrong = [
            "5".to_owned(),
            "[1]".to_owned(),
            whole("maybe", "true"),
            whole("pair", "7").replacen(r#""pair":[1,2],"#, "", 1),
            whole("pair", "[1]").replacen(r#""pair":[1,2],"#, "", 1),
            whole("choice", "7").replacen(r#""choice":"Nothing","#, "", 1),
            whole("choice", r#"{"Two":[1]}"#).replacen(r#""choice":"Nothing","#, "", 1),
            whole("choice", r#"{"Two":1}"#).replacen(r#""choice":"Nothing","#, "", 1),
            whole("choice", r#"{"Named":1}"#).replacen(r#""choice":"Nothing","#, "", 1),
            whole("choice", r#""Other""#).replacen(r#""choice":"Nothing","#, "", 1),
            whole("flat", "[]"),
            whole("flat", r#"{"t":"Some"}"#),
            whole("flat", "7"),
            whole("either", "true").replacen(r#""either":"","#, "", 1),
        ];
        for text in wrong {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            for serialize in [SerializeType::JSON, SerializeType::MSGPACK] {
                let wire = value.encode(serialize).unwrap();
                let error = SecretArgs::decode(serialize, wire).expect_err(&text).to_string();
                assert!(!error.contains("Secret"), "{text}: {error}");
            }
        }
        for serialize in [SerializeType::JSON, SerializeType::MSGPACK] {
            let error = SecretChoice::Hidden.encode(serialize).unwrap_err().to_string();
            assert!(error.contains("cannot be serialized") && !error.contains("Secret"), "{error}");
        }
    }
}
