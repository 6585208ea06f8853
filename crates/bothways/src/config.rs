//! The form of options in a file, where it differs from serde's derive.

use std::time::Duration;

use bothways_proto::Rate;
use serde::{Deserialize, Deserializer};

use crate::options::Heartbeat;

/// One word that stands for the absence of a bound or of an interval.
#[derive(Deserialize)]
enum Never {
    #[serde(rename = "never")]
    Never,
}

#[derive(Deserialize)]
enum Unlimited {
    #[serde(rename = "unlimited")]
    Unlimited,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateText {
    per_second: u32,
    burst: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"unlimited\", or { per_second = …, burst = … }")]
enum MaybeRate {
    Rate(RateText),
    No(Unlimited),
}

/// `{ per_second = 100, burst = 500 }`, or `"unlimited"`.
pub(crate) fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Rate>, D::Error> {
    Ok(match MaybeRate::deserialize(from)? {
        MaybeRate::No(Unlimited::Unlimited) => None,
        MaybeRate::Rate(RateText { per_second, burst }) => {
            let rate = Rate::per_second(per_second);
            Some(burst.map_or(rate, |burst| rate.burst(burst)))
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeartbeatText {
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"never\", or { interval = \"15s\", timeout = \"10s\" }")]
enum MaybeHeartbeat {
    Some(HeartbeatText),
    No(Never),
}

/// `{ interval = "15s", timeout = "10s" }`, or `"never"`.
impl<'de> Deserialize<'de> for Heartbeat {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let default = Self::default();
        Ok(match MaybeHeartbeat::deserialize(from)? {
            MaybeHeartbeat::No(Never::Never) => Self::never(),
            MaybeHeartbeat::Some(text) => {
                Self { interval: text.interval.or(default.interval), timeout: text.timeout.unwrap_or(default.timeout) }
            }
        })
    }
}
