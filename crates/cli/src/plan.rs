//! Parses arguments: methods, times, sizes, pairs, payloads, tokens.

use std::{
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bothways::{Metadata, connection::ConnectionId, server::AdminRole};

use crate::failure::Failure;

/// Most bytes that are read from a file or from standard input: more than any default limit lets through.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// A service path and a method, typed as `Service.Method`; the last dot separates.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Method {
    pub(crate) service_path: String,
    pub(crate) service_method: String,
}

impl FromStr for Method {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HOW: &str = "write it as Service.Method, such as Arith.Mul; the last dot separates the two";
        let (service_path, service_method) = text.rsplit_once('.').ok_or(HOW)?;
        if service_path.is_empty() || service_method.is_empty() {
            return Err(HOW);
        }
        Ok(Self { service_path: service_path.to_owned(), service_method: service_method.to_owned() })
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.service_path, self.service_method)
    }
}

/// `250ms`, `5s`, `1.5s`, `2m`, `1h`. Never zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const HOW: &str = "write a number and a unit (us, ms, s, m or h), such as 250ms or 5s";

    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(HOW)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| HOW)?;
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(HOW.into()),
    };

    let duration = Duration::try_from_secs_f64(number * seconds).map_err(|_| "that is too long")?;
    if duration.is_zero() {
        return Err("it must be more than zero".into());
    }
    if Duration::from_secs(365 * 86_400) < duration {
        return Err("that is more than a year".into());
    }
    Ok(duration)
}

/// As [`duration`], for what a server waits at most.
pub(crate) fn up_to_10_s(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time <= Duration::from_secs(10) => Ok(time),
        _ => Err("a server waits 10 s at most".into()),
    }
}

/// A connection's number, such as `c12`.
pub(crate) fn connection(text: &str) -> Result<String, String> {
    match text.parse::<ConnectionId>() {
        Ok(id) if !text.contains('+') => Ok(id.to_string()),
        _ => Err("write it as c12: `bothways connections` lists them".into()),
    }
}

/// A session's number: 32 hexadecimal digits.
pub(crate) fn session(text: &str) -> Result<String, String> {
    match text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("write its 32 hexadecimal digits: `bothways sessions` lists them".into()),
    }
}

/// `581`, `64KiB`, `1MiB`, `10kB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    const HOW: &str = "write a number of bytes, with a unit if you like (B, kB, KiB, MB, MiB, GiB), such as 64KiB";
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: usize = number.parse().map_err(|_| HOW)?;
    let bytes: usize = match unit {
        "" | "B" => 1,
        "k" | "kB" | "KB" => 1_000,
        "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err(HOW.into()),
    };
    number.checked_mul(bytes).ok_or_else(|| "that is too large".into())
}

/// A pair of metadata, typed as `key=value`; the first `=` separates.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pair {
    key: String,
    value: String,
}

impl FromStr for Pair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("write it as key=value"),
        }
    }
}

pub(crate) fn metadata(pairs: &[Pair]) -> Metadata {
    pairs.iter().map(|pair| (&pair.key, &pair.value)).collect()
}

/// An operator of the admin service, and the environment variable that holds the token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Operator {
    pub(crate) name: String,
    pub(crate) role: AdminRole,
    pub(crate) variable: String,
}

impl FromStr for Operator {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HOW: &str = "write it as name=role:VARIABLE, with the role look, push or kick";
        let (name, rest) = text.split_once('=').ok_or(HOW)?;
        let (role, variable) = rest.split_once(':').ok_or(HOW)?;
        let known = [AdminRole::Look, AdminRole::Push, AdminRole::Kick];
        let role = known.into_iter().find(|known| known.name() == role).ok_or(HOW)?;
        match name.is_empty() || variable.is_empty() {
            true => Err(HOW),
            false => Ok(Self { name: name.to_owned(), role, variable: variable.to_owned() }),
        }
    }
}

/// Where a payload comes from: the argument itself, `@file`, or `-` for standard input. `@@` begins a
/// text with an `@`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Text(String),
    File(PathBuf),
    Stdin,
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        match text.strip_prefix('@') {
            _ if text == "-" => Self::Stdin,
            Some(escaped) if escaped.starts_with('@') => Self::Text(escaped.to_owned()),
            Some(path) if !path.is_empty() => Self::File(path.into()),
            _ => Self::Text(text.to_owned()),
        }
    }
}

impl Source {
    pub(crate) fn read(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::File(path) => {
                let shown = path.display();
                let file = std::fs::File::open(path)
                    .map_err(|error| Failure::usage(format!("cannot read the payload from {shown}: {error}")))?;
                read_bounded(file, &shown.to_string())
            }
            Self::Stdin => read_bounded(std::io::stdin(), "standard input"),
        }
    }
}

fn read_bounded(from: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    from.take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
    if INPUT_BYTES_MAX < bytes.len() as u64 {
        return Err(Failure::usage(format!("{name} has more than {} MiB", INPUT_BYTES_MAX >> 20)));
    }
    Ok(bytes)
}

/// A token. Nothing prints it.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The token itself, for the wire.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn from_env(name: &str) -> Result<Self, Failure> {
        match std::env::var(name) {
            Ok(token) => Self::checked(token, &format!("the environment variable {name}")),
            Err(std::env::VarError::NotPresent) => {
                Err(Failure::usage(format!("the environment variable {name} is not set, and it should hold the token"))
                    .hint(format!("for example: read -rs {name} && export {name}")))
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Failure::usage(format!("the token in the environment variable {name} is not UTF-8")))
            }
        }
    }

    pub(crate) fn from_file(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::checked(text.trim_end_matches(['\r', '\n']).to_owned(), &format!("the file {shown}")),
            Err(error) => Err(Failure::usage(format!("cannot read the token from {shown}: {error}"))),
        }
    }

    fn checked(token: String, whence: &str) -> Result<Self, Failure> {
        if token.is_empty() {
            return Err(Failure::usage(format!("{whence} is empty, and it should hold the token")));
        }
        Ok(Self(token))
    }
}

impl FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() { Err("a token is not empty") } else { Ok(Self(text.to_owned())) }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_has_a_name_a_role_and_a_variable() {
        let wall: Operator = "wall board=look:WALL".parse().expect("it has all three");
        let expected = Operator { name: "wall board".into(), role: AdminRole::Look, variable: "WALL".into() };
        assert_eq!(wall, expected);
        for wrong in ["", "wall", "wall=look", "=look:W", "wall=look:", "wall=boss:W", "wall:look=W"] {
            wrong.parse::<Operator>().expect_err(wrong);
        }
    }

    #[test]
    fn the_last_dot_separates_service_and_method() {
        let method: Method = "com.example.Arith.Mul".parse().expect("a method");
        assert_eq!((method.service_path.as_str(), method.service_method.as_str()), ("com.example.Arith", "Mul"));
        for wrong in ["", "Arith", "Arith.", ".Mul", "."] {
            assert!(wrong.parse::<Method>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        for (text, millis) in [("250ms", 250), ("5s", 5_000), ("1.5s", 1_500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("50us"), Ok(Duration::from_micros(50)));
        for wrong in ["", "5", "s", "5 s", "-5s", "5sec", "1.2.3s", "0s", "99999999h", "1e3s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_of_connections_and_sessions_are_checked() {
        assert_eq!((connection("c12"), connection("12")), (Ok("c12".to_owned()), Ok("c12".to_owned())));
        for wrong in ["", "c", "zzz", "c-1", "c+1", "+1", "c1 ", "c99999999999999999999"] {
            assert!(connection(wrong).is_err(), "{wrong}");
        }
        let id = "0B5c00000000000000000000000000ff";
        assert_eq!(session(id), Ok(id.to_lowercase()));
        for wrong in ["", "zzz", "0b5c", &format!("+{}", &id[1..]), &format!("{id}0")] {
            assert!(session(wrong).is_err(), "{wrong}");
        }
        assert_eq!(up_to_10_s("10s"), Ok(Duration::from_secs(10)));
        assert!(up_to_10_s("60s").is_err() && up_to_10_s("0s").is_err());
    }

    #[test]
    fn sizes_may_have_a_unit() {
        for (text, bytes) in [("0", 0), ("581", 581), ("64KiB", 65_536), ("1MiB", 1 << 20), ("10kB", 10_000), ("2B", 2)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "KiB", "1.5KiB", "-1", "64 KiB", "1TiB", "99999999999999999999", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_equals_sign_separates_a_pair() {
        let pairs: Vec<Pair> = ["k=v", "url=a=b", "empty="].iter().map(|pair| pair.parse().expect("a pair")).collect();
        let metadata = metadata(&pairs);
        assert_eq!((metadata.get("k"), metadata.get("url"), metadata.get("empty")), (Some("v"), Some("a=b"), Some("")));
        assert!("novalue".parse::<Pair>().is_err() && "=v".parse::<Pair>().is_err());
    }

    #[test]
    fn a_payload_is_text_a_file_or_standard_input() {
        assert_eq!(Source::from("{}"), Source::Text("{}".into()));
        assert_eq!(Source::from("-"), Source::Stdin);
        assert_eq!(Source::from("@args.json"), Source::File("args.json".into()));
        assert_eq!(Source::from("@@all"), Source::Text("@all".into()));
        assert_eq!(Source::from("@"), Source::Text("@".into()));
    }

    #[test]
    fn a_token_from_a_file_has_no_line_end_and_is_never_shown() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "s3cret\r\n").expect("written");
        let secret = Secret::from_file(file.path()).expect("a token");
        assert_eq!(secret.reveal(), "s3cret");
        assert_eq!(format!("{secret:?}"), "***");
        std::fs::write(file.path(), "\n").expect("written");
        assert!(Secret::from_file(file.path()).expect_err("empty").text().contains("is empty"));
    }
}
