//! The real program, from outside: what it prints, and how it ends.

mod admin_page;
mod calling;
mod demo;
mod dumping;
mod help;
mod listening;
mod load;
mod mail;
mod pushing;
mod serving;
mod sessions;
mod support;
#[cfg(feature = "tls")]
mod tls;
