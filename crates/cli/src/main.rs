//! The program `bothways`.
fn main() {}
