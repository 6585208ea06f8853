//! The library from outside, a module per topic. One binary, so that it links once.

mod calls;
mod negotiation;
mod overflow;
mod push;
mod scripted;
mod support;
mod xclient;
