//! The library from outside, a module per topic. One binary, so that it links once.

mod admin;
mod asks_again;
mod auth;
mod bounds;
mod call_back;
mod call_layers;
mod call_users;
mod calls;
mod comes_back;
mod compression;
#[cfg(feature = "config")]
mod config;
mod counted;
mod deadlines;
mod drain;
mod durations;
mod explain;
mod golden;
#[cfg(feature = "testing")]
mod histories;
mod idempotency;
mod keepalive;
#[cfg(feature = "testing")]
mod last_requests;
mod layers;
mod leaks;
mod leaving;
mod limits;
mod long_frames;
mod metadata;
mod misbehaving_server;
mod negotiation;
mod optin;
mod outcomes;
mod outside;
mod overflow;
mod panic;
// Elsewhere the system does not spread connections over the listeners of a port.
#[cfg(target_os = "linux")]
mod per_core;
mod push;
mod quiet;
mod reach;
mod reconnect;
#[cfg(unix)]
mod rest;
mod resume;
mod scripted;
mod sessions;
mod shown;
mod shutdown;
mod slow_clients;
mod support;
#[cfg(feature = "testing")]
mod testing;
mod too_large;
mod topic_promises;
mod topics;
mod transports;
mod trust;
mod turns;
mod way_in;
mod xclient;
