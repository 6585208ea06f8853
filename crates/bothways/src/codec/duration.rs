//! Go's `time.Duration` for serde fields: `#[serde(with = "bothways::codec::duration")]`.
//!
//! A [`Duration`] travels as an integer: nanoseconds, signed, 64 bits. That is 292 years; a longer one
//! is an error, and so is a negative one that a peer sent. For `Duration` and `Option<Duration>`. In a
//! `#[bothways::message]` such fields travel this way by themselves.
//!
//! ```
//! use bothways::{Payload, SerializeType};
//! use std::time::Duration;
//!
//! #[derive(serde::Deserialize, serde::Serialize)]
//! struct Wait(#[serde(with = "bothways::codec::duration")] Duration);
//!
//! # #[cfg(feature = "json")]
//! assert_eq!(Wait(Duration::from_micros(3)).encode(SerializeType::JSON)?, "3000");
//! # Ok::<(), bothways::codec::CodecError>(())
//! ```

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// Writes the field as nanoseconds.
///
/// # Errors
/// More than `i64::MAX` nanoseconds, or those of the serializer.
pub fn serialize<T: Nanoseconds, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write(serializer)
}

/// Reads the field from nanoseconds.
///
/// # Errors
/// A negative number, or those of the deserializer.
pub fn deserialize<'de, T: Nanoseconds, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::read(deserializer)
}

/// [`Duration`], or an `Option` of it.
pub trait Nanoseconds: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    #[doc(hidden)]
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Duration {}
    impl Sealed for Option<super::Duration> {}
}

impl Nanoseconds for Duration {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_nanoseconds::<S::Error>(*self)?.serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An absent value: what `nil` is in Go.
        Ok(Option::read(deserializer)?.unwrap_or_default())
    }
}

impl Nanoseconds for Option<Duration> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.map(to_nanoseconds::<S::Error>).transpose()?.serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let nanoseconds = Option::<i64>::deserialize(deserializer)?;
        nanoseconds.map(from_nanoseconds).transpose()
    }
}

fn to_nanoseconds<E: ser::Error>(duration: Duration) -> Result<i64, E> {
    i64::try_from(duration.as_nanos()).map_err(|_| E::custom("a duration of more than 292 years"))
}

fn from_nanoseconds<E: de::Error>(nanoseconds: i64) -> Result<Duration, E> {
    let nanoseconds = u64::try_from(nanoseconds);
    nanoseconds.map(Duration::from_nanos).map_err(|_| E::custom("a negative duration"))
}
