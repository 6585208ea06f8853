//! How far calls and pushes have been written.

/// How far calls or pushes are, each by how many went that far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Given to the outbox.
    pub(super) added: u64,
    pub(super) on_wire: u64,
    /// In a write that is under way, or was the last one.
    pub(super) under_way: u64,
    /// Of calls: begun to be written; a call with a number up to this may have reached the peer. Of pushes: the
    /// kernel has them whole.
    pub(super) written: u64,
}

/// What is counted of calls and pushes.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) calls: Progress,
    /// In the order of the adding, unless the rule for a full queue drops some.
    pub(super) pushes: Progress,
    /// By that rule, or with the connection.
    pub(super) pushes_dropped: u64,
    /// With the connection only.
    pub(super) pushes_dropped_at_end: u64,
    /// How often a session kept pushes for which there was no room.
    pub(super) pushes_kept: u64,
    /// Replies that were ever kept back.
    pub(super) replies_held: u64,
}
