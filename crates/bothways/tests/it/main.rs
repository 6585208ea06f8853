//! The library from outside, a module per topic. One binary, so that it links once.

mod auth;
mod call_back;
mod calls;
mod deadlines;
mod keepalive;
mod layers;
mod negotiation;
mod overflow;
mod push;
mod scripted;
mod sessions;
mod support;
mod xclient;
