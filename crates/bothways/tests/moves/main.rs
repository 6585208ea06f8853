//! Sessions that go on at another node, over the engine in memory. A binary of its own, as it needs features.

mod counted;
mod fences;
mod given_up;
mod handover;
mod kicks;
mod late;
mod leaving;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod support;
mod topics;
mod trouble;
mod ways;
