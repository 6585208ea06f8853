//! Pushes of operators, and how far they come.

use std::{collections::VecDeque, time::Duration};

use bothways_proto::{Metadata, SerializeType};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[cfg(feature = "cluster")]
use super::everywhere;
use super::{
    Asking, Refused,
    views::{PushReceipt, PushTarget, ReceiptAsked},
};
use crate::session::{Class, Failure, Outcomes, Push, Receipt, Stage, Target};

/// A push that an operator asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminPush {
    /// To whom.
    pub target: PushTarget,
    /// The service path that the client sees.
    pub service_path: String,
    /// The method that the client sees.
    pub service_method: String,
    /// The pairs that the client sees.
    pub metadata: Vec<(String, String)>,
    /// The payload.
    #[serde(with = "crate::codec::bytes")]
    pub payload: Vec<u8>,
    /// The codec of the payload, by its number on the wire; raw if nothing is said.
    #[serde(default)]
    pub codec: u8,
    /// The class of the push.
    #[serde(default)]
    pub class: PushClass,
    /// The idempotency key: a session is sent only one of several pushes with the same; see
    /// [`Push::idempotency_key`](crate::Push::idempotency_key).
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Wait until it has come so far with every session,
    #[serde(default)]
    pub until: PushUntil,
    /// but answer after so many milliseconds at the latest; 10,000 at most.
    #[serde(default)]
    pub wait_ms: u64,
}

/// The class of an [`AdminPush`]; see [`Class`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushClass {
    /// As [`Class::Tracked`].
    #[default]
    Tracked,
    /// As [`Class::Fire`].
    Fire,
    /// As [`Class::Latest`], with this key.
    Latest(String),
    /// As [`Class::Durable`], for so many milliseconds. Its target is a user.
    Durable(u64),
}

/// A stage to wait for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PushUntil {
    /// Do not wait.
    #[default]
    Queued,
    /// The kernel has it.
    Written,
    /// The client's library has it.
    Received,
    /// The client's application has dealt with it.
    Handled,
}

/// How an [`AdminPush`] ended: each target session is counted once.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AdminPushOutcome {
    /// It waits for the connection, or for the client to come back.
    pub queued: usize,
    /// The kernel has it.
    pub written: usize,
    /// The client's library has it.
    pub received: usize,
    /// The client's application has dealt with it.
    pub handled: usize,
    /// It was too old before it was sent.
    pub expired: usize,
    /// A newer value of its key took its place.
    pub superseded: usize,
    /// It was dropped before it was sent whole; `explain` says why.
    pub dropped: usize,
    /// The client has it, and its application could not deal with it.
    #[serde(default)]
    pub failed: PushFailures,
    /// Its session ended before its client said what became of it.
    #[serde(default)]
    pub unknown: usize,
    /// One of the same idempotency key was sent before.
    #[serde(default)]
    pub duplicate: usize,
    /// It is kept for those who come later: in the history of its topic, or in the mailbox of its user.
    #[serde(default)]
    pub stored: bool,
    /// Nodes of the cluster that have not said yet how many sessions it is for there.
    #[serde(default)]
    pub routing: usize,
    /// Nodes that it has not reached, as far as is known.
    #[serde(default)]
    pub unreached: usize,
}

/// How many clients' applications could not deal with a push, and how they failed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PushFailures {
    /// Nobody there takes messages of this name.
    pub no_handler: usize,
    /// The handler could not decode it.
    pub bad_arguments: usize,
    /// The handler returned an error.
    pub error: usize,
    /// The handler panicked.
    pub panicked: usize,
}

impl PushFailures {
    /// All of them.
    pub fn total(&self) -> usize {
        self.no_handler + self.bad_arguments + self.error + self.panicked
    }
}

impl AdminPushOutcome {
    /// Sessions in all.
    pub fn targets(&self) -> usize {
        self.queued + self.written + self.received + self.handled + self.unknown + self.missed() + self.duplicate
    }

    /// Sessions that it will never reach, or whose application could not deal with it.
    pub fn missed(&self) -> usize {
        self.expired + self.superseded + self.dropped + self.failed.total()
    }
}

impl From<Outcomes> for AdminPushOutcome {
    fn from(outcomes: Outcomes) -> Self {
        Self {
            queued: outcomes.at(Stage::Queued),
            written: outcomes.at(Stage::Written) + outcomes.at(Stage::PlainWritten),
            received: outcomes.at(Stage::Received),
            handled: outcomes.at(Stage::Handled),
            expired: outcomes.at(Stage::Expired),
            superseded: outcomes.at(Stage::Superseded),
            dropped: outcomes.dropped(),
            failed: PushFailures {
                no_handler: outcomes.at(Stage::Failed(Failure::NoHandler)),
                bad_arguments: outcomes.at(Stage::Failed(Failure::BadArguments)),
                error: outcomes.at(Stage::Failed(Failure::Error)),
                panicked: outcomes.at(Stage::Failed(Failure::Panicked)),
            },
            unknown: outcomes.at(Stage::Unknown),
            duplicate: outcomes.at(Stage::Duplicate),
            stored: false,
            routing: 0,
            unreached: 0,
        }
    }
}

/// The longest that an [`AdminPush`] waits: an operator who wants to wait longer asks for the story.
pub(super) const PUSH_WAIT_MAX: Duration = Duration::from_secs(10);

/// The longest that is waited for a store: longer than the nodes of a cluster try an append to a topic, which is 10 s, and
/// less than the admin page waits for an answer.
pub(super) const STORED_WAIT_MAX: Duration = Duration::from_secs(12);

/// Pushes of operators whose receipts are kept.
const RECEIPTS_MAX: usize = 64;

/// How often it is looked how many of a crowd a push has reached. The end of each stage is told at once.
const COUNTED_EVERY: Duration = Duration::from_millis(200);

/// The last pushes of operators, and how far they have come.
#[derive(Debug, Default)]
pub(in crate::server) struct Receipts {
    kept: Mutex<(u64, VecDeque<(u64, Receipt)>)>,
}

impl Receipts {
    fn keep(&self, receipt: Receipt) -> u64 {
        let mut kept = self.kept.lock();
        kept.0 += 1;
        let number = kept.0;
        kept.1.push_back((number, receipt));
        if RECEIPTS_MAX < kept.1.len() {
            kept.1.pop_front();
        }
        number
    }

    fn find(&self, number: u64) -> Option<Receipt> {
        self.kept.lock().1.iter().find(|(of, _)| *of == number).map(|(_, receipt)| receipt.clone())
    }
}

/// Pushes, waits as asked, and returns what became of it.
pub(super) async fn run(asking: Asking, push: AdminPush) -> Result<AdminPushOutcome, Refused> {
    let (until, wait) = (push.until, Duration::from_millis(push.wait_ms).min(PUSH_WAIT_MAX));
    let receipt = send(&asking, push)?;
    wait_for_store(&receipt).await?;
    let reached = async {
        match until {
            PushUntil::Queued => receipt.outcomes(),
            PushUntil::Written => receipt.written().await,
            PushUntil::Received => receipt.received().await,
            PushUntil::Handled => receipt.handled().await,
        }
    };
    // A timeout is no failure: the operator learns how far the push has come.
    _ = tokio::time::timeout(wait, reached).await;
    Ok(outcome(&receipt).0)
}

/// Whether a store takes it is known soon, and comes before its sessions. Silence is no success: without the store there
/// are no sessions to count, and the operator would be told that nobody is there.
async fn wait_for_store(receipt: &Receipt) -> Result<(), Refused> {
    match tokio::time::timeout(STORED_WAIT_MAX, receipt.stored()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Refused::Failed(error.to_string())),
        Err(_) => {
            let text = format!("nobody knows whether it is stored: no answer of the store in {STORED_WAIT_MAX:?}");
            Err(Refused::Failed(text))
        }
    }
}

/// Pushes, and returns the number under which the operator asks how far it comes.
pub(super) async fn begin(asking: Asking, push: AdminPush) -> Result<PushReceipt, Refused> {
    let receipt = send(&asking, push)?;
    wait_for_store(&receipt).await?;
    let number = asking.door.receipts.keep(receipt.clone());
    Ok(standing(number, &receipt))
}

/// How far a push has come, as soon as that is not what the operator has seen.
pub(super) async fn follow(asking: Asking, asked: ReceiptAsked) -> Result<PushReceipt, Refused> {
    let none = || Refused::Failed(format!("push {} is not kept: the last {RECEIPTS_MAX} are", asked.number));
    let receipt = asking.door.receipts.find(asked.number).ok_or_else(none)?;

    let changed = async {
        while let (seen, false) = outcome(&receipt)
            && Some(seen) == asked.seen
        {
            wait_for_stage(&receipt).await;
        }
    };
    _ = tokio::time::timeout(Duration::from_millis(asked.wait_ms).min(PUSH_WAIT_MAX), changed).await;
    Ok(standing(asked.number, &receipt))
}

/// Waits until the last target leaves the first stage that has any, or it is time to count again.
async fn wait_for_stage(receipt: &Receipt) {
    let outcomes = receipt.outcomes();
    let left = async {
        match (outcomes.at(Stage::Queued), outcomes.at(Stage::Written)) {
            (0, 0) => receipt.handled().await,
            (0, _) => receipt.received().await,
            _ => receipt.written().await,
        }
    };
    _ = tokio::time::timeout(COUNTED_EVERY, left).await;
}

fn standing(number: u64, receipt: &Receipt) -> PushReceipt {
    let (outcome, is_final) = outcome(receipt);
    #[cfg(feature = "cluster")]
    let unreached = everywhere::silent_of(receipt.unreached().into_iter().map(|one| (one.node, one.why)).collect());
    #[cfg(not(feature = "cluster"))]
    let unreached = Vec::new();
    PushReceipt { number, outcome, unreached, is_final }
}

/// How far it is now, and whether that is all.
fn outcome(receipt: &Receipt) -> (AdminPushOutcome, bool) {
    // Before the counts: a node that is asked no more has said its targets.
    #[cfg(feature = "cluster")]
    let (routing, unreached) = (receipt.routing(), receipt.unreached().len());
    let outcomes = receipt.outcomes();
    let outcome = AdminPushOutcome { stored: receipt.is_kept(), ..outcomes.into() };
    #[cfg(feature = "cluster")]
    let outcome = AdminPushOutcome { routing, unreached, ..outcome };
    let is_final = outcomes.open() == 0 && outcome.routing == 0;
    (outcome, is_final)
}

/// Pushes as the operator says, and notes it.
fn send(asking: &Asking, push: AdminPush) -> Result<Receipt, Refused> {
    let target = asking.target(&push.target)?;
    let metadata: Metadata = push.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let class = match push.class {
        PushClass::Tracked => Class::Tracked,
        PushClass::Fire => Class::Fire,
        PushClass::Latest(key) => Class::Latest(key),
        PushClass::Durable(ttl_ms) => Class::Durable { ttl: Duration::from_millis(ttl_ms) },
    };
    let is_durable = matches!(class, Class::Durable { .. });
    let no_codec = || Refused::Wrong(format!("there is no codec {}", push.codec));
    let serialize = SerializeType::new(push.codec).ok_or_else(no_codec)?;

    let sent = Push::new(&push.service_path, &push.service_method, push.payload);
    let mut sent = sent.metadata(metadata).class(class).serialize_type(serialize);
    if let Some(key) = &push.idempotency_key {
        sent = sent.idempotency_key(key).map_err(Refused::wrong)?;
    }

    let receipt = match &push.target {
        // Not past the topic's history.
        PushTarget::Topic(topic) => asking.server.publish(topic, &sent),
        // Into the mailbox: it is nobody's session that is meant.
        PushTarget::User(user) if is_durable => asking.server.push(&Target::user(user), &sent),
        _ => asking.server.push(&target, &sent),
    };
    let receipt = receipt.map_err(Refused::wrong)?;
    let name = format!("{}.{}", push.service_path, push.service_method);
    asking.note("push", &push.target.to_string(), &name, receipt.outcomes().targets());
    Ok(receipt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AppendError, Kept, Level, Log, Place, StoreError, Stored};

    fn log() -> Log {
        Log::History("prices.EUR".to_owned())
    }

    /// How it ends for an operator whose push the store answers after this time. `None`: never.
    async fn told(answer: Option<(Duration, Result<(), AppendError>)>) -> Result<(), String> {
        let push = Push::new("Prices", "Set", "1.08");
        let receipt = crate::Server::builder().build().shared.sessions.receipt_of(&push);
        let storing = receipt.storing(vec![log()]);
        let store = async {
            let Some((after, outcome)) = answer else { return std::future::pending().await };
            tokio::time::sleep(after).await;
            storing.done(match outcome {
                Ok(()) => {
                    Ok(vec![Kept::new(log(), Stored::new(Place { epoch: 1, sequence: 1 }, Level::Synced, false))])
                }
                Err(why) => Err(StoreError::new(Vec::new(), vec![(log(), why)])),
            });
            std::future::pending().await
        };
        tokio::select! {
            waited = wait_for_store(&receipt) => waited.map_err(|refused| match refused {
                Refused::Failed(text) | Refused::Wrong(text) => text,
            }),
            () = store => unreachable!("it stays"),
        }
    }

    /// A push to a topic whose store is down, or silent, was not stored: that is said, and not that nobody is there.
    #[tokio::test(start_paused = true)]
    async fn an_operator_is_told_that_a_push_is_not_stored() {
        let late = Duration::from_secs(11);
        assert_eq!(told(Some((late, Ok(())))).await, Ok(()));
        let down = told(Some((late, Err(AppendError::Down)))).await.expect_err("it is down");
        assert!(down.contains("\"prices.EUR\"") && down.contains("has not stored it"), "{down}");
        let silent = told(None).await.expect_err("it says nothing");
        assert!(silent.starts_with("nobody knows whether it is stored"), "{silent}");
    }
}
