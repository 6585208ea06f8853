//! What holds for any input, one module per part of the crate.

mod calls;
mod frames;
#[cfg(feature = "gzip")]
mod gzip;
mod keepalive;
mod metadata;
mod rate;
