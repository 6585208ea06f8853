//! The library from outside, a module per topic. One binary, so that it links once.

mod push;
mod support;
mod xclient;
