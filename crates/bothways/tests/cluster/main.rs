//! Many nodes, over the engine in memory. A binary of its own, as it needs features.

mod engine;
mod everywhere;
mod push;
mod support;
mod trouble;
