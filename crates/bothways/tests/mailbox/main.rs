//! Durable pushes: mailboxes, their devices, and what an operator does with them.

#[macro_use]
mod passes_on;

mod devices;
mod failures;
mod kept;
mod nodes;
mod stubborn;
mod support;
