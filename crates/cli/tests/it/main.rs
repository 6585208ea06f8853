//! The real program, from outside: what it prints, and how it ends.

mod calling;
mod demo;
mod help;
mod listening;
mod serving;
mod support;
