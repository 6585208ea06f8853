//! Go's `time.Duration` for serde fields: `#[serde(with = "bothways::codec::duration")]`.
//!
//! A [`Duration`] travels as an integer: nanoseconds, signed, 64 bits. That is 292 years; a longer one
//! is an error, and so is a negative one that a peer sent. For `Duration`, also within `Option`, `Vec` and maps. In a
//! `#[bothways::message]` such fields travel this way by themselves. As a whole argument or reply,
//! where there is no field, take [`Nanos`].
//!
//! ```
//! use bothways::{Encode, Payload, SerializeType};
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

/// [`Duration`], also within containers. The library's own types have it; what its methods are called
/// may change.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as a duration of Go",
    note = "if it only has the same name, say `#[message(plain)]` on the field"
)]
pub trait Nanoseconds: Sized {
    #[doc(hidden)]
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    #[doc(hidden)]
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

impl Nanoseconds for Duration {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_nanoseconds::<S::Error>(*self)?.serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let nanoseconds: Option<i64> = Option::deserialize(deserializer)?;
        from_nanoseconds(nanoseconds.unwrap_or_default())
    }
}

super::field::within_containers!(Nanoseconds);

super::field::newtype! {
    /// Go's `time.Duration` where there is no field to put an attribute on: a whole argument or reply.
    ///
    /// ```
    /// use bothways::{Encode, SerializeType, codec::Nanos};
    /// use std::time::Duration;
    ///
    /// let wait = Nanos(Duration::from_nanos(5));
    /// assert_eq!(wait.encode(SerializeType::MSGPACK)?, &b"\x05"[..]);
    /// # Ok::<(), bothways::codec::CodecError>(())
    /// ```
    Nanos, Nanoseconds, Duration
}

fn to_nanoseconds<E: ser::Error>(duration: Duration) -> Result<i64, E> {
    i64::try_from(duration.as_nanos()).map_err(|_| E::custom("a duration of more than 292 years"))
}

fn from_nanoseconds<E: de::Error>(nanoseconds: i64) -> Result<Duration, E> {
    let nanoseconds = u64::try_from(nanoseconds);
    nanoseconds.map(Duration::from_nanos).map_err(|_| E::custom("a negative duration"))
}
