//! The words of codecs about payloads go to peers, whom the names of our types do not concern.

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
