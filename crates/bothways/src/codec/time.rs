//! Go's `time.Time` for serde fields: `#[serde(with = "bothways::codec::time")]`.
//!
//! A [`SystemTime`] travels as MessagePack's timestamp (extension type -1, in its 4, 8 or 12 bytes) and
//! as RFC 3339 text in JSON, in UTC. It reads those, the text in MessagePack too, and `nil`, which is
//! Go's [zero time](go_zero). For `SystemTime`, also within `Option`, `Vec` and maps. In a
//! `#[bothways::message]` such fields travel this way by themselves. As a whole argument or reply,
//! where there is no field, take [`Timestamp`].
//!
//! ```
//! use bothways::{Encode, Payload, SerializeType};
//! use std::time::{Duration, SystemTime, UNIX_EPOCH};
//!
//! #[derive(serde::Deserialize, serde::Serialize)]
//! struct Stamp(#[serde(with = "bothways::codec::time")] SystemTime);
//!
//! let stamp = Stamp(UNIX_EPOCH + Duration::from_millis(1_500));
//! # #[cfg(feature = "json")]
//! assert_eq!(stamp.encode(SerializeType::JSON)?, r#""1970-01-01T00:00:01.5Z""#);
//! # Ok::<(), bothways::codec::CodecError>(())
//! ```

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
    ser,
};

use super::text::is_text;

const DAY_SECONDS: i64 = 86_400;

/// Seconds from the first of January of the year 1 to the Unix epoch.
const GO_ZERO_TO_EPOCH_SECONDS: u64 = 62_135_596_800;

/// Nanoseconds of a second end here.
const SECOND_NANOSECONDS: u32 = 1_000_000_000;

const EXTENSION_TYPE: i8 = -1;

/// Writes the field as a Go time.
///
/// # Errors
/// In JSON a year outside 0 to 9999, as in Go; else those of the serializer.
pub fn serialize<T: GoTime, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write(serializer)
}

/// Reads the field from a Go time.
///
/// # Errors
/// A malformed time, one that this system cannot hold, or those of the deserializer.
pub fn deserialize<'de, T: GoTime, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::read(deserializer)
}

/// What a `time.Time` holds in Go before anything is put into it: midnight of the first of January of
/// the year 1, UTC. Go peers send it for a time that was never set. The Unix epoch where the system
/// cannot count that far back.
///
/// ```
/// # use std::time::UNIX_EPOCH;
/// assert!(bothways::codec::time::go_zero() < UNIX_EPOCH);
/// ```
pub fn go_zero() -> SystemTime {
    UNIX_EPOCH.checked_sub(Duration::from_secs(GO_ZERO_TO_EPOCH_SECONDS)).unwrap_or(UNIX_EPOCH)
}

/// [`SystemTime`], also within containers. The library's own types have it; what its methods are called
/// may change.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as a time of Go",
    note = "if it only has the same name, say `#[message(plain)]` on the field"
)]
pub trait GoTime: Sized {
    #[doc(hidden)]
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    #[doc(hidden)]
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

impl GoTime for SystemTime {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let instant = Instant::of(*self).ok_or_else(|| ser::Error::custom("a time too far away"))?;
        if is_text(serializer.is_human_readable()) {
            let text = instant.to_rfc3339().ok_or_else(|| ser::Error::custom("the year is not within 0 to 9999"))?;
            return serializer.serialize_str(&text);
        }
        let (bytes, len) = instant.to_extension();
        let data = Data(&bytes[..len]);
        serializer.serialize_newtype_struct(super::msgpack::EXTENSION, &(EXTENSION_TYPE, data))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

super::field::within_containers!(GoTime);

super::field::newtype! {
    /// Go's `time.Time` where there is no field to put an attribute on: a whole argument or reply.
    ///
    /// ```
    /// use bothways::{Encode, Payload, SerializeType, codec::Timestamp};
    /// use std::time::{Duration, UNIX_EPOCH};
    ///
    /// let stamp = Timestamp(UNIX_EPOCH + Duration::from_secs(1));
    /// let wire = stamp.encode(SerializeType::MSGPACK)?;
    /// assert_eq!(wire, &b"\xd6\xff\0\0\0\x01"[..]);
    /// assert_eq!(Timestamp::decode(SerializeType::MSGPACK, wire)?, stamp);
    /// # Ok::<(), bothways::codec::CodecError>(())
    /// ```
    Timestamp, GoTime, SystemTime
}

/// The data of an extension.
struct Data<'a>(&'a [u8]);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct TimeVisitor;

impl<'de> Visitor<'de> for TimeVisitor {
    type Value = SystemTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time: a MessagePack timestamp or RFC 3339 text")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(go_zero())
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(go_zero())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let instant = Instant::from_rfc3339(text);
        let time = instant.and_then(Instant::time);
        time.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    /// How an extension comes out of the MessagePack decoder: a newtype of its type and its data.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut extension: A) -> Result<Self::Value, A::Error> {
        let number: i8 = extension.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let data: ExtensionData = extension.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
        if number != EXTENSION_TYPE {
            return Err(de::Error::custom(format!("extension type {number} is no time")));
        }
        let instant = Instant::from_extension(&data.0);
        let time = instant.and_then(Instant::time);
        time.ok_or_else(|| de::Error::invalid_value(de::Unexpected::Bytes(&data.0), &self))
    }
}

/// The data of an extension, as it is read.
struct ExtensionData(Vec<u8>);

impl<'de> Deserialize<'de> for ExtensionData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::bytes::deserialize(deserializer).map(Self)
    }
}

/// A time as both forms on the wire count it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Instant {
    /// Since the Unix epoch, rounded down.
    seconds: i64,
    /// Since that second; less than a second.
    nanoseconds: u32,
}

impl Instant {
    fn of(time: SystemTime) -> Option<Self> {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Some(Self { seconds: since.as_secs().try_into().ok()?, nanoseconds: since.subsec_nanos() }),
            Err(before) => {
                let before = before.duration();
                let seconds = i64::try_from(before.as_secs()).ok()?.checked_neg()?;
                match before.subsec_nanos() {
                    0 => Some(Self { seconds, nanoseconds: 0 }),
                    nanoseconds => {
                        Some(Self { seconds: seconds.checked_sub(1)?, nanoseconds: SECOND_NANOSECONDS - nanoseconds })
                    }
                }
            }
        }
    }

    fn time(self) -> Option<SystemTime> {
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        let second = if self.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        second?.checked_add(Duration::from_nanos(self.nanoseconds.into()))
    }

    /// The shortest of the three forms, and its length.
    fn to_extension(self) -> ([u8; 12], usize) {
        let mut bytes = [0; 12];
        let nanoseconds = u64::from(self.nanoseconds);
        match u64::try_from(self.seconds).ok().filter(|seconds| seconds >> 34 == 0) {
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds) if nanoseconds == 0 => {
                    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
                    (bytes, 4)
                }
                _ => {
                    bytes[..8].copy_from_slice(&(nanoseconds << 34 | seconds).to_be_bytes());
                    (bytes, 8)
                }
            },
            None => {
                bytes[..4].copy_from_slice(&self.nanoseconds.to_be_bytes());
                bytes[4..].copy_from_slice(&self.seconds.to_be_bytes());
                (bytes, 12)
            }
        }
    }

    fn from_extension(data: &[u8]) -> Option<Self> {
        let instant = if let Ok(seconds) = <[u8; 4]>::try_from(data) {
            Self { seconds: u32::from_be_bytes(seconds).into(), nanoseconds: 0 }
        } else if let Ok(both) = <[u8; 8]>::try_from(data) {
            let both = u64::from_be_bytes(both);
            let seconds = both & ((1 << 34) - 1);
            Self { seconds: seconds.try_into().ok()?, nanoseconds: (both >> 34).try_into().ok()? }
        } else {
            let (nanoseconds, seconds) = data.split_first_chunk::<4>()?;
            let nanoseconds = u32::from_be_bytes(*nanoseconds);
            Self { seconds: i64::from_be_bytes(seconds.try_into().ok()?), nanoseconds }
        };
        (instant.nanoseconds < SECOND_NANOSECONDS).then_some(instant)
    }

    /// `2006-01-02T15:04:05.999999999Z`, with as many decimals as it takes.
    fn to_rfc3339(self) -> Option<String> {
        let (year, month, day) = date_of(self.seconds.div_euclid(DAY_SECONDS));
        if !(0..=9999).contains(&year) {
            return None;
        }
        let second_of_day = self.seconds.rem_euclid(DAY_SECONDS);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanoseconds != 0 {
            let decimals = format!("{:09}", self.nanoseconds);
            text.push('.');
            text.push_str(decimals.trim_end_matches('0'));
        }
        text.push('Z');
        Some(text)
    }

    fn from_rfc3339(text: &str) -> Option<Self> {
        let mut rest = text.as_bytes();
        let year = number(&mut rest, 4)?;
        expect(&mut rest, b"-")?;
        let month = number(&mut rest, 2)?;
        expect(&mut rest, b"-")?;
        let day = number(&mut rest, 2)?;
        expect(&mut rest, b"Tt")?;
        let hour = number(&mut rest, 2)?;
        expect(&mut rest, b":")?;
        let minute = number(&mut rest, 2)?;
        expect(&mut rest, b":")?;
        let second = number(&mut rest, 2)?;
        let mut nanoseconds = 0;
        if expect(&mut rest, b".").is_some() {
            let decimals = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (digits, behind) = rest.split_at(decimals);
            // What is finer than a nanosecond is dropped, as Go does.
            for place in 0..9 {
                nanoseconds = nanoseconds * 10 + digits.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            }
            if decimals == 0 {
                return None;
            }
            rest = behind;
        }
        let offset_seconds = match expect(&mut rest, b"Zz+-")? {
            sign @ (b'+' | b'-') => {
                let hours = number(&mut rest, 2)?;
                expect(&mut rest, b":")?;
                let minutes = number(&mut rest, 2)?;
                if 23 < hours || 59 < minutes {
                    return None;
                }
                let seconds = hours * 3600 + minutes * 60;
                if sign == b'+' { seconds } else { -seconds }
            }
            _ => 0,
        };
        let exists = (1..=12).contains(&month)
            && (1..=days_in(year, month)).contains(&day)
            && hour <= 23
            && minute <= 59
            && second <= 59
            && rest.is_empty();
        let seconds = || day_of(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second - offset_seconds;
        exists.then(|| Self { seconds: seconds(), nanoseconds })
    }
}

/// Takes this many digits off the front.
fn number(rest: &mut &[u8], digits: usize) -> Option<i64> {
    let (front, behind) = rest.split_at_checked(digits)?;
    *rest = behind;
    front.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// Takes one of these characters off the front.
fn expect(rest: &mut &[u8], one_of: &[u8]) -> Option<u8> {
    let (front, behind) = rest.split_first()?;
    one_of.contains(front).then(|| {
        *rest = behind;
        *front
    })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days between the first of January of the year 0 and of this year. The calendar repeats every 400
/// years, which are 146,097 days.
fn days_before_year(year: i64) -> i64 {
    let (cycles, year_of_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    // The year 0 of a cycle is a leap year, so years after it count one more.
    let leap_years = if year_of_cycle == 0 { 0 } else { (year_of_cycle - 1) / 4 - (year_of_cycle - 1) / 100 + 1 };
    cycles * 146_097 + year_of_cycle * 365 + leap_years
}

/// The days of year 0 to the Unix epoch.
const EPOCH_DAY: i64 = 719_528;

/// Date → days since the Unix epoch.
fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let days_before_month: i64 = (1..month).map(|earlier| days_in(year, earlier)).sum();
    days_before_year(year) + days_before_month + day - 1 - EPOCH_DAY
}

/// Days since the Unix epoch → date.
fn date_of(day: i64) -> (i64, i64, i64) {
    let day = day + EPOCH_DAY;
    // Never too late, and at most a year too early.
    let mut year = day.div_euclid(146_097) * 400 + day.rem_euclid(146_097) / 366;
    while days_before_year(year + 1) <= day {
        year += 1;
    }
    let mut left = day - days_before_year(year);
    let mut month = 1;
    while days_in(year, month) <= left {
        left -= days_in(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;
    use crate::{Encode, Payload, SerializeType};

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Stamp(#[serde(with = "super")] SystemTime);

    fn at(seconds: i64, nanoseconds: u32) -> Stamp {
        Stamp(Instant { seconds, nanoseconds }.time().unwrap())
    }

    #[test]
    fn msgpack_takes_four_eight_or_twelve_bytes() {
        let cases: [(Stamp, &[u8]); 4] = [
            (at(1, 0), &hex!("d6ff 00000001")),
            (at(1, 5), &hex!("d7ff 0000001400000001")),
            (at(1 << 33, 0), &hex!("d7ff 0000000200000000")),
            (at(-62_135_596_800, 0), &hex!("c70cff 00000000 fffffff1886e0900")),
        ];
        for (stamp, wire) in cases {
            assert_eq!(stamp.encode(SerializeType::MSGPACK).unwrap(), wire);
            assert_eq!(Stamp::decode(SerializeType::MSGPACK, wire.to_vec().into()).unwrap(), stamp);
        }
    }

    #[test]
    fn nil_is_gos_zero_time_and_text_is_a_time() {
        let read = |wire: &'static [u8]| Stamp::decode(SerializeType::MSGPACK, wire.into());
        assert_eq!(read(&hex!("c0")).unwrap(), Stamp(go_zero()));
        assert_eq!(read(b"\xb41970-01-01T00:00:01Z").unwrap(), at(1, 0));
        assert!(read(&hex!("d6fe 00000001")).is_err(), "another extension type");
        assert!(read(&hex!("d5ff 0001")).is_err(), "two bytes of data");
        assert!(read(&hex!("d7ff fffffffc00000001")).is_err(), "more than a second of nanoseconds");
        assert!(read(&hex!("c70cff 00000000 7fffffffffffffff")).is_ok() || cfg!(not(unix)));
    }

    #[test]
    fn rfc3339_knows_leap_years_offsets_and_fractions() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("2000-02-29T12:34:56.5Z", 951_827_696, 500_000_000),
            ("2024-12-31T23:59:59.000000001Z", 1_735_689_599, 1),
            ("1969-12-31T23:59:59Z", -1, 0),
        ];
        for (text, seconds, nanoseconds) in cases {
            let instant = Instant { seconds, nanoseconds };
            assert_eq!(Instant::from_rfc3339(text), Some(instant), "{text}");
            assert_eq!(instant.to_rfc3339().as_deref(), Some(text));
        }
        assert_eq!(Instant::from_rfc3339("1970-01-01T02:00:00+02:00").unwrap().seconds, 0);
        assert_eq!(Instant::from_rfc3339("1969-12-31T19:00:00-05:00").unwrap().seconds, 0);
        let wrong = ["", "1970-01-01", "1900-02-29T00:00:00Z", "1970-13-01T00:00:00Z", "1970-01-01T24:00:00Z"];
        for text in wrong.into_iter().chain(["1970-01-01T00:00:00", "1970-01-01T00:00:00.Z", "1970-01-01T00:00:00Zx"]) {
            assert_eq!(Instant::from_rfc3339(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_survives_both_forms(seconds in -62_135_596_800i64..253_402_300_800, nanoseconds in 0..SECOND_NANOSECONDS) {
            let instant = Instant { seconds, nanoseconds };
            let (bytes, len) = instant.to_extension();
            prop_assert_eq!(Instant::from_extension(&bytes[..len]), Some(instant));
            prop_assert_eq!(Instant::from_rfc3339(&instant.to_rfc3339().unwrap()), Some(instant));
            prop_assert_eq!(Instant::of(instant.time().unwrap()), Some(instant));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,40}") {
            let _ = Instant::from_rfc3339(&text);
        }
    }
}
