//! One connection.
use bothways_proto::Limits;
use std::sync::Arc;
/// A handle on one connection.
#[derive(Clone, Debug)]
pub struct Connection {
    limits: Arc<Limits>,
}
impl Connection {
    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}
