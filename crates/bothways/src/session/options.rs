//! What a server promises of its sessions.

use std::{sync::Arc, time::Duration};

use bothways_proto::Limits;

use super::{explain, ledger::Bounds, rules::Rules};
use crate::options::QueueBound;

/// What a server promises of its sessions.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    /// How long a session waits for its client to come back.
    pub(crate) resume_window: Duration,
    /// Sessions that may wait so at once.
    pub(crate) away_max: usize,
    /// Topics and patterns that a client may subscribe to at once.
    pub(crate) subscriptions_max: usize,
    /// What these may take.
    pub(crate) subscription_bytes_max: usize,
    /// What the subscriptions of all sessions may take before a client's are refused.
    pub(crate) all_subscription_bytes_max: usize,
    pub(crate) rules: Rules,
    pub(super) bounds: Arc<Bounds>,
    /// The calls of each user are counted.
    pub(crate) counts_user_calls: bool,
    /// Events that a session keeps of its past.
    pub(crate) events_max: usize,
    /// Sessions that ended whose past is kept.
    pub(crate) ended_max: usize,
    pub(crate) limits: Limits,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            resume_window: Duration::from_secs(120),
            away_max: 100_000,
            subscriptions_max: 1000,
            subscription_bytes_max: 512 << 10,
            all_subscription_bytes_max: 1 << 30,
            rules: Rules::default(),
            bounds: Arc::default(),
            counts_user_calls: false,
            events_max: explain::EVENTS_MAX,
            ended_max: explain::ENDED_MAX,
            limits: Limits::default(),
        }
    }
}

impl SessionOptions {
    /// What a session's queues hold: its log, pushes of class `Fire`, and values of class `Latest`.
    pub(crate) fn set_bounds(&mut self, log: QueueBound, fire: QueueBound, latest: QueueBound) {
        let bounds = Arc::make_mut(&mut self.bounds);
        log.set(&mut bounds.tracked_messages, &mut bounds.tracked_bytes);
        fire.set(&mut bounds.fire_messages, &mut bounds.fire_bytes);
        latest.set(&mut bounds.latest_keys, &mut bounds.latest_bytes);
        for messages in [&mut bounds.tracked_messages, &mut bounds.fire_messages, &mut bounds.latest_keys] {
            *messages = (*messages).max(1);
        }
    }

    /// Bytes that the logs of one user's sessions may hold together.
    pub(crate) fn set_user_log(&mut self, bytes: usize) {
        Arc::make_mut(&mut self.bounds).user_bytes = bytes;
    }

    /// Idempotency keys that a session remembers.
    pub(crate) fn set_idempotency_keys(&mut self, keys_max: usize) {
        Arc::make_mut(&mut self.bounds).idempotency_keys = keys_max;
    }
}
