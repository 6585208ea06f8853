//! Storms over processes: three nodes with clients, three servers of NATS, and a fourth node that pushes; nodes and
//! servers are killed, stopped and started again, nodes drain, and clients move and leave. At the end the sum is exact.
//!
//! `BOTHWAYS_STORM=full` has the large ones, and `BOTHWAYS_STORM_SEED` names one seed.

#[path = "../../../../crates/bothways/tests/storm/accounts.rs"]
mod accounts;
mod letters;
#[path = "../../../../crates/bothways/tests/storm/schedule.rs"]
mod schedule;
mod tracked;
mod world;
