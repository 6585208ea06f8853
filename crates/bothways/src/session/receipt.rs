//! How far a push has come: a count for each stage, which can be awaited.
//!
//! ```text
//!             ┌──► dropped (why): it was not sent whole          final
//!  queued ──► written ──► received ──► handled, failed (how)     both are final
//!      │         │           │ └────► superseded                 final; from each of these
//!      │         │           └──────► unknown: its session ended final; from each that was sent
//!      │         └──► expired: at the latest here                final
//!      ├────► plain written: nobody confirms more                final
//!      └────► unknown: its connection ended as it was written    final; of what nobody confirms
//!  duplicate: one of the same idempotency key reached the client final
//!  no route                                                      final
//! ```
//!
//! A stage is never better than the truth: `written` means that the kernel took all of it, `received`, `handled` and
//! `failed` that the client said so. It is never worse either: what may have been handled is not called dropped.
//!
//! A push that is the repetition of another one goes its way: see [`Ticket::repeat`].

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

#[cfg(feature = "cluster")]
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

#[cfg(feature = "cluster")]
use super::elsewhere::{Afar, Counts, NodeId, Share, Unreached, Watcher};

use super::{
    Class, Push, SessionId,
    each::{Each, TargetOutcomes},
    explain::EventLog,
    history::Position,
    lock::{self, Changes, Wake},
    totals::{Total, Totals},
};
use crate::store::{AppendError, Kept, Log, StoreError};

/// How far one push to one session has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Stage {
    /// It waits for the session's connection: for room in it, for a client that is away, or for the first request of a
    /// plain rpcx client.
    Queued,
    /// The kernel has it. That is not delivery.
    Written,
    /// The client's library has it.
    Received,
    /// The client's application has handled it: it dropped the message, or its handler returned success.
    ///
    /// A client that does not report failures (a Bothways client from before `outcomes`, or a Go application that sends no
    /// `_bw.nack`) acknowledges also what it could not handle.
    Handled,
    /// The client has it, and its application could not handle it. It is not sent again.
    Failed(Failure),
    /// The kernel has it, and nothing more is ever confirmed: the push is [`Fire`](super::Class::Fire), or the client
    /// acknowledges nothing. Such are plain rpcx clients, applications on Go's library that have not called
    /// `_bothways`/`Enable`, and Bothways clients that [negotiate](crate::ClientOptions::negotiate) nothing. The repetitions
    /// of such a push end so too.
    PlainWritten,
    /// Its time to live ended before the client had it: it was not sent, or was lost with a connection and not sent again.
    Expired,
    /// A newer value of the same key took its place.
    Superseded,
    /// It was not sent to this session, which has handled a push with the same
    /// [idempotency key](super::Push::idempotency_key), or a newer value of its key. Until then it shows the stage of that
    /// push, and it ends as that one does if that is not handled.
    Duplicate,
    /// It was sent, at least in part, and its session ended before the client acknowledged it: the server cannot know
    /// whether the client's application handled it. Or its connection ended while it was being written, and the class
    /// or the client confirms nothing.
    Unknown,
    /// It was dropped before it was sent whole: the client has not got it.
    Dropped(DropReason),
}

/// How a client's application failed to handle a push.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Failure {
    /// The client has no handler for this name, or none at all. If it has announced its methods, the push is not sent.
    NoHandler,
    /// The handler could not decode it; or it is larger than the client accepts, and was not kept.
    BadArguments,
    /// The handler returned an error, or the application called
    /// [`ServerMessage::fail`](crate::ServerMessage::fail).
    Error,
    /// The handler panicked.
    Panicked,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoHandler => "no handler takes it",
            Self::BadArguments => "its handler cannot decode it",
            Self::Error => "its handler failed",
            Self::Panicked => "its handler panicked",
        })
    }
}

/// Why a push was dropped, and how far it had come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum DropReason {
    /// The session's bounds were reached: the client reads, or handles, too slowly. Nothing of it was sent.
    Full,
    /// The connection ended before the push was written whole, and its class does not outlive a connection.
    Disconnected,
    /// It waited, and the session ended: its client did not come back in time, or was sent away. Nothing of it was
    /// sent, or a part that was lost with its connection.
    SessionEnded,
}

/// How many stages there are.
pub(super) const STAGES: usize = 16;

impl Stage {
    /// True if nothing can follow.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Written | Self::Received)
    }

    /// The places of those that are final begin here.
    pub(super) const FIRST_FINAL: usize = 3;

    /// The names of those, in the order of [`Self::ALL`].
    pub(super) const FINAL_NAMES: [&'static str; STAGES - Self::FIRST_FINAL] = [
        "handled",
        "plain_written",
        "expired",
        "superseded",
        "dropped_full",
        "dropped_disconnected",
        "dropped_session_ended",
        "duplicate",
        "failed_no_handler",
        "failed_bad_arguments",
        "failed_error",
        "failed_panicked",
        "unknown",
    ];

    /// Its name in one word, such as `handled` or `dropped_full`: a value for a label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Written => "written",
            Self::Received => "received",
            other => Self::FINAL_NAMES[other.index() - Self::FIRST_FINAL],
        }
    }

    /// Each stage once, by [`Self::index`].
    const ALL: [Self; STAGES] = [
        Self::Queued,
        Self::Written,
        Self::Received,
        Self::Handled,
        Self::PlainWritten,
        Self::Expired,
        Self::Superseded,
        Self::Dropped(DropReason::Full),
        Self::Dropped(DropReason::Disconnected),
        Self::Dropped(DropReason::SessionEnded),
        Self::Duplicate,
        Self::Failed(Failure::NoHandler),
        Self::Failed(Failure::BadArguments),
        Self::Failed(Failure::Error),
        Self::Failed(Failure::Panicked),
        Self::Unknown,
    ];

    pub(super) fn index(self) -> usize {
        match self {
            Self::Queued => 0,
            Self::Written => 1,
            Self::Received => 2,
            Self::Handled => 3,
            Self::PlainWritten => 4,
            Self::Expired => 5,
            Self::Superseded => 6,
            Self::Dropped(DropReason::Full) => 7,
            Self::Dropped(DropReason::Disconnected) => 8,
            Self::Dropped(DropReason::SessionEnded) => 9,
            Self::Duplicate => 10,
            Self::Failed(Failure::NoHandler) => 11,
            Self::Failed(Failure::BadArguments) => 12,
            Self::Failed(Failure::Error) => 13,
            Self::Failed(Failure::Panicked) => 14,
            Self::Unknown => 15,
        }
    }

    /// The one of this [index](Self::index); of one that is not known, `Unknown`.
    #[cfg(feature = "cluster")]
    pub(super) fn of_index(index: u8) -> Self {
        Self::ALL.get(usize::from(index)).copied().unwrap_or(Self::Unknown)
    }

    /// Where a push stands that was not sent because another one with its idempotency key was taken, which stands
    /// here.
    fn of_repetition(self) -> Self {
        match self {
            Self::Handled | Self::Superseded => Self::Duplicate,
            other => other,
        }
    }
}

/// How many targets of one push stand where. Every target is in exactly one place.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Outcomes {
    counts: [usize; 16],
}

/// The stages at which there is somebody.
impl std::fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outcomes ")?;
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Outcomes {
    /// The stages at which there are targets now, and how many.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, usize)> {
        Stage::ALL.into_iter().zip(self.counts).filter(|(_, count)| *count != 0)
    }

    /// Targets at this stage now.
    pub fn at(&self, stage: Stage) -> usize {
        self.counts[stage.index()]
    }

    /// Targets in all. 0 means that no session was named.
    pub fn targets(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Targets whose application could not handle it, for any reason.
    pub fn failed(&self) -> usize {
        self.counts[11..15].iter().sum()
    }

    /// Targets whose push was dropped, for any reason.
    pub fn dropped(&self) -> usize {
        self.counts[7..10].iter().sum()
    }

    /// Where its only target has ended. `None`: it has not, or there is none, or several.
    pub(super) fn only(&self) -> Option<Stage> {
        let (stage, _) = self.iter().next().filter(|_| self.targets() == 1)?;
        stage.is_final().then_some(stage)
    }

    /// Targets whose stage can still change.
    pub fn open(&self) -> usize {
        self.counts[..3].iter().sum()
    }
}

/// How far one push has come, to one session or to many. A clone is the same receipt.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions, Push, Server, Stage, Target};
///
/// let server = Server::builder().build();
/// let listening = server.listen("memu@receipt").await?;
/// let (client, mut messages) = Client::bidirectional(listening.address(), ClientOptions::new()).await?;
///
/// let receipt = server.push(&Target::everyone(), &Push::new("News", "Flash", "rain"))?;
/// assert_eq!(receipt.outcomes().targets(), 1);
/// drop(messages.next().await);
/// let outcomes = receipt.handled().await;
/// assert_eq!((outcomes.at(Stage::Handled), outcomes.failed(), outcomes.dropped()), (1, 0, 0));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Receipt {
    tally: Arc<Tally>,
    /// If the push asked for the end of each target, and not only for how many there are.
    each: Option<Arc<Each>>,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    outcomes: Mutex<Outcomes>,
    changed: Notify,
    /// What is waited for, or was: bits of [`Wait`]. Set before the counts are looked at, whose lock orders the two: a
    /// change that is not seen there finds it set.
    awaited: AtomicU8,
    /// Where it is kept beside its sessions.
    kept: OnceLock<InLogs>,
    /// That of the receipt: empty if the push did not ask, or nobody reads it any more.
    each: Weak<Each>,
    /// Where the ends of its targets are counted, together with those of all other pushes.
    total: Option<Total>,
    /// Nodes that have not said their targets. Changed under the lock of the counts, as the next.
    #[cfg(feature = "cluster")]
    routing: AtomicUsize,
    /// How often a target has moved on.
    #[cfg(feature = "cluster")]
    changes: AtomicU64,
    #[cfg(feature = "cluster")]
    afar: OnceLock<Box<Afar>>,
}

/// Where a push is kept beside its sessions.
#[derive(Debug)]
enum InLogs {
    /// A topic of this node has it in its history.
    Topic(Position),
    /// A store has it, or is asked to take it. The flag: as the history of a topic, which the nodes of a cluster share.
    Store(
        watch::Receiver<Option<Outcome>>,
        #[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "only nodes of a cluster share histories"))]
        bool,
    ),
}

type Outcome = Result<Vec<Kept>, StoreError>;

/// The end of a receipt that waits for a store. Dropped without a word, nobody knows whether it is stored.
#[derive(Debug)]
pub(crate) struct Storing {
    tally: Arc<Tally>,
    outcome: watch::Sender<Option<Outcome>>,
    logs: Vec<Log>,
}

impl Storing {
    /// It is known what became of it. What is told to its sessions is told before.
    pub(crate) fn done(self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            let failed = std::mem::take(&mut self.logs).into_iter().map(|log| (log, AppendError::Unknown));
            self.outcome.send_replace(Some(Err(StoreError::new(Vec::new(), failed.collect()))));
        }
        Tally::tell(&self.tally);
    }
}

/// Among the bits of [`Wait`]: each change is told.
#[cfg(feature = "cluster")]
const WATCHED: u8 = 8;

/// How far all targets have to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wait {
    Written = 1,
    Received = 2,
    Handled = 4,
}

impl Wait {
    fn is_over(self, outcomes: &Outcomes) -> bool {
        let stages = match self {
            Self::Written => 1,
            Self::Received => 2,
            Self::Handled => 3,
        };
        outcomes.counts[..stages].iter().all(|count| *count == 0)
    }
}

impl Tally {
    /// A target moves on from one stage to another one. True if [`Self::tell`] is to follow: a wait may be over.
    pub(super) fn count(&self, from: Stage, to: Stage) -> bool {
        if let Some(total) = self.total.as_ref().filter(|_| to.is_final()) {
            total.count(to.index());
        }
        let mut outcomes = self.outcomes.lock();
        outcomes.counts[from.index()] -= 1;
        outcomes.counts[to.index()] += 1;
        #[cfg(feature = "cluster")]
        {
            self.changes.fetch_add(1, Ordering::Relaxed);
            if self.awaited.load(Ordering::Relaxed) & WATCHED != 0 {
                return true;
            }
        }
        self.ends_wait(&outcomes, from)
    }

    /// A target that is queued is none after all. True if [`Self::tell`] is to follow.
    pub(super) fn leave(&self) -> bool {
        let mut outcomes = self.outcomes.lock();
        outcomes.counts[Stage::Queued.index()] -= 1;
        self.ends_wait(&outcomes, Stage::Queued)
    }

    /// A wait is over with the last target that leaves a stage.
    fn ends_wait(&self, outcomes: &Outcomes, from: Stage) -> bool {
        let awaited = if outcomes.counts[from.index()] == 0 { self.awaited.load(Ordering::Relaxed) } else { 0 };
        let all = [Wait::Written, Wait::Received, Wait::Handled];
        awaited != 0 && all.into_iter().any(|wait| awaited & wait as u8 != 0 && self.is_over(wait, outcomes))
    }

    /// How all stands, if no target has to go that far any more.
    fn over(&self, wait: Wait) -> Option<Outcomes> {
        // One look at all of it: what a node, or a store, is asked becomes targets in between, and is asked no more.
        let outcomes = self.outcomes.lock();
        self.is_over(wait, &outcomes).then_some(*outcomes)
    }

    /// True if no target, here or at another node, has to go that far any more. Under the lock of the counts.
    fn is_over(&self, wait: Wait, outcomes: &Outcomes) -> bool {
        wait.is_over(outcomes) && !self.is_routing() && !self.is_storing()
    }

    /// True if it is not known yet whether a store takes it, which comes before its sessions.
    fn is_storing(&self) -> bool {
        matches!(self.kept.get(), Some(InLogs::Store(outcome, _)) if outcome.borrow().is_none())
    }

    #[cfg(feature = "cluster")]
    fn is_routing(&self) -> bool {
        self.routing.load(Ordering::Relaxed) != 0
    }

    #[cfg(not(feature = "cluster"))]
    fn is_routing(&self) -> bool {
        false
    }

    /// Wakes those who wait.
    pub(super) fn tell(me: &Arc<Self>) {
        lock::wake(Wake::Of(Arc::clone(me) as Arc<dyn Changes>));
    }
}

impl Changes for Tally {
    fn tell(&self) {
        self.changed.notify_waiters();
        #[cfg(feature = "cluster")]
        if let Some(watcher) = self.afar.get().and_then(|afar| afar.watcher.get()) {
            let (changes, outcomes) = self.standing();
            watcher(changes, &outcomes);
        }
    }
}

impl Receipt {
    /// Only counts.
    pub(crate) fn new() -> Self {
        Self { tally: Arc::default(), each: None }
    }

    /// As the push asks: counts, or notes the end of each target too. Both count among those of all pushes.
    pub(super) fn of(push: &Push, totals: &Totals) -> Self {
        let each = push.watches_each.then(Arc::<Each>::default);
        let weak = each.as_ref().map(Arc::downgrade).unwrap_or_default();
        // A durable push counts when it is handed on to a session.
        let is_counted = !matches!(push.class, Class::Durable { .. });
        let total = is_counted.then(|| totals.of(&push.class));
        let tally = Tally { each: weak, total, ..Tally::default() };
        Self { tally: Arc::new(tally), each }
    }

    /// The place of one more target, which is queued.
    pub(super) fn ticket(&self, session: SessionId) -> Ticket {
        self.tally.outcomes.lock().counts[Stage::Queued.index()] += 1;
        let place = self.each.as_ref().map_or(0, |each| each.enter(session));
        Ticket { tally: Arc::clone(&self.tally), stage: Stage::Queued, place, event_log: None, repetitions: None }
    }

    /// Where its targets are counted, if nothing else is asked of them.
    pub(super) fn counts_only(&self) -> Option<&Arc<Tally>> {
        self.each.is_none().then_some(&self.tally)
    }

    /// Counts so many targets as queued, before it is known which of them need tickets. Nobody else has the receipt yet.
    pub(super) fn enter(&self, targets: usize) {
        self.tally.outcomes.lock().counts[Stage::Queued.index()] += targets;
    }

    /// So many of those that were [entered](Self::enter) have got tickets, or are none.
    pub(super) fn take_back(&self, targets: usize) {
        self.tally.outcomes.lock().counts[Stage::Queued.index()] -= targets;
    }

    /// A topic keeps it here.
    pub(super) fn store(&self, position: Position) {
        // Published once: there is no other position.
        let _ = self.tally.kept.set(InLogs::Topic(position));
    }

    /// A store is asked to take it, in these logs. Nobody else has the receipt yet.
    pub(crate) fn storing(&self, logs: Vec<Log>) -> Storing {
        let (outcome, told) = watch::channel(None);
        let _ = self.tally.kept.set(InLogs::Store(told, logs.iter().any(|log| matches!(log, Log::History(_)))));
        Storing { tally: Arc::clone(&self.tally), outcome, logs }
    }

    /// The position at which a topic of this node keeps the message: a client that subscribes from an earlier position
    /// gets it, even if there were no targets. `None`: no such topic keeps it.
    pub fn position(&self) -> Option<Position> {
        match self.tally.kept.get() {
            Some(InLogs::Topic(position)) => Some(*position),
            _ => None,
        }
    }

    /// Waits until the store has answered: where the push is kept, and how well. Empty if no store is asked: see
    /// [`Self::position`] for a topic of this node. It is answered in some seconds, whatever happens.
    ///
    /// Being stored is no stage of a session: nothing is sent before, and [`Self::handled`] waits for this too.
    ///
    /// # Errors
    /// [`StoreError`]: in at least one log it is not stored, or nobody knows. There nothing was sent.
    pub async fn stored(&self) -> Result<Vec<Kept>, StoreError> {
        let Some(InLogs::Store(outcome, _)) = self.tally.kept.get() else { return Ok(Vec::new()) };
        let mut outcome = outcome.clone();
        // Its sender says something before it goes.
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Ok(Vec::new())),
            Err(_) => Err(StoreError::new(Vec::new(), Vec::new())),
        }
    }

    /// True of a message of a topic whose history the nodes of a cluster share: the targets are sessions of this node, and
    /// those of the others are not counted. They get it from the log.
    #[cfg(feature = "cluster")]
    pub fn counts_this_node_only(&self) -> bool {
        matches!(self.tally.kept.get(), Some(InLogs::Store(_, true)))
    }

    /// True if it is known to be kept somewhere beside its sessions.
    pub(crate) fn is_kept(&self) -> bool {
        match self.tally.kept.get() {
            Some(InLogs::Topic(_)) => true,
            Some(InLogs::Store(outcome, _)) => matches!(&*outcome.borrow(), Some(Ok(_))),
            None => false,
        }
    }

    /// How many targets are at which stage now.
    pub fn outcomes(&self) -> Outcomes {
        *self.tally.outcomes.lock()
    }

    /// How each target ends, as it happens; `None` if the push did not ask for it with [`Push::watch_each`]. Each stream
    /// begins with the first target that ended, whenever it is made, so none is missed.
    ///
    /// ```no_run
    /// # async fn example(server: bothways::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// use bothways::{Push, Stage, Target};
    ///
    /// let receipt = server.push(&Target::everyone(), &Push::new("News", "Flash", "rain").watch_each())?;
    /// let mut each = receipt.each().ok_or("the push did not ask")?;
    /// while let Some((session, stage)) = each.next().await {
    ///     if stage != Stage::Handled {
    ///         println!("{session} has not handled it: {stage:?}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn each(&self) -> Option<TargetOutcomes> {
        self.each.clone().map(TargetOutcomes::new)
    }

    /// Waits until every target is written, or ended otherwise.
    pub async fn written(&self) -> Outcomes {
        self.until(Wait::Written).await
    }

    /// Waits until every target is received, or ended otherwise.
    pub async fn received(&self) -> Outcomes {
        self.until(Wait::Received).await
    }

    /// Waits until every target is handled, or ended otherwise, such as [failed](Outcomes::failed). A push that is not
    /// tracked ends when it is written.
    pub async fn handled(&self) -> Outcomes {
        self.until(Wait::Handled).await
    }

    async fn until(&self, wait: Wait) -> Outcomes {
        self.tally.awaited.fetch_or(wait as u8, Ordering::Relaxed);
        loop {
            let mut changed = pin!(self.tally.changed.notified());
            changed.as_mut().enable();
            if let Some(outcomes) = self.tally.over(wait) {
                return outcomes;
            }
            changed.await;
        }
    }
}

/// What a receipt has of other nodes.
#[cfg(feature = "cluster")]
impl Receipt {
    /// How many nodes have not said yet how many targets they have. Waits such as [`Self::handled`] wait for them too: a
    /// node answers, or counts as [unreached](Self::unreached), within seconds; one of which it is not known whether it
    /// has the push, at the latest when it is known to be gone. 0 without a cluster.
    pub fn routing(&self) -> usize {
        self.tally.routing.load(Ordering::Relaxed)
    }

    /// The nodes that the push has not reached, as far as is known now. Their sessions are not among the targets. Empty
    /// without a cluster.
    pub fn unreached(&self) -> Vec<Unreached> {
        self.tally.afar.get().map_or_else(Vec::new, |afar| afar.unreached.lock().clone())
    }

    /// True if every node was asked, and none has a session that the target names. Never of a durable push, or of a message
    /// of a topic whose history the nodes of a cluster share: for these no node is asked, as the store is their way to the
    /// sessions. What became of them [`Self::stored`] says.
    pub fn is_no_route(&self) -> bool {
        let goes_by_store = matches!(self.tally.kept.get(), Some(InLogs::Store(..)));
        let has_none = {
            let outcomes = self.tally.outcomes.lock();
            !self.tally.is_routing() && outcomes.targets() == 0
        };
        !goes_by_store && has_none && !self.is_partial()
    }

    /// True if there are nodes that were not reached: nothing is said about their sessions.
    pub fn is_partial(&self) -> bool {
        self.tally.afar.get().is_some_and(|afar| !afar.unreached.lock().is_empty())
    }

    /// One that calls this with each of its changes.
    pub(super) fn watched(
        push: &Push,
        totals: &Totals,
        watcher: impl Fn(u64, &Outcomes) + Send + Sync + 'static,
    ) -> Self {
        let receipt = Self::of(push, totals);
        let afar = Afar::default();
        // It is new: there is no other watcher.
        let _ = afar.watcher.set(Box::new(watcher));
        let _ = receipt.tally.afar.set(Box::new(afar));
        receipt.tally.awaited.fetch_or(WATCHED, Ordering::Relaxed);
        receipt
    }

    /// As [`Self::watched`], of a push that is counted at another node.
    pub(super) fn relayed(watcher: Watcher) -> Self {
        let receipt = Self::new();
        let afar = Afar::default();
        let _ = afar.watcher.set(watcher);
        let _ = receipt.tally.afar.set(Box::new(afar));
        receipt.tally.awaited.fetch_or(WATCHED, Ordering::Relaxed);
        receipt
    }

    /// What it says now, and how many changes there were.
    pub(crate) fn standing(&self) -> (u64, Outcomes) {
        self.tally.standing()
    }

    /// It is the push of this number at that node.
    pub(crate) fn addressed(&self, node: NodeId, number: u64) {
        let _ = self.tally.afar.get_or_init(Box::default).address.set((node, number));
    }

    /// It came with its session: that node hears of it under this number.
    pub(crate) fn owes(&self, node: NodeId, number: u64) {
        let _ = self.tally.afar.get_or_init(Box::default).owed.set((node, number));
    }

    /// A node's share of it is another one now.
    pub(crate) fn settle(&self, node: NodeId, was: &Share, is: &Share) {
        self.tally.settle(node, was, is);
        Tally::tell(&self.tally);
    }
}

#[cfg(feature = "cluster")]
impl Tally {
    fn standing(&self) -> (u64, Outcomes) {
        let outcomes = self.outcomes.lock();
        (self.changes.load(Ordering::Relaxed), *outcomes)
    }

    fn withdraw(&self, stage: Stage) {
        self.outcomes.lock().counts[stage.index()] -= 1;
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn settle(&self, node: NodeId, was: &Share, is: &Share) {
        // Before the counts, so that who sees the end of a wait sees this too.
        if was.unreached != is.unreached {
            let afar = self.afar.get_or_init(Box::default);
            let mut unreached = afar.unreached.lock();
            unreached.retain(|unreached| unreached.node != node);
            unreached.extend(is.unreached.map(|(why, maybe)| Unreached { node, why, maybe }));
        }
        let mut outcomes = self.outcomes.lock();
        for (stage, count) in outcomes.counts.iter_mut().enumerate() {
            *count = (*count + is.counts.0[stage] as usize).saturating_sub(was.counts.0[stage] as usize);
        }
        let routing = self.routing.load(Ordering::Relaxed) + usize::from(is.is_routing);
        self.routing.store(routing.saturating_sub(usize::from(was.is_routing)), Ordering::Relaxed);
    }
}

#[cfg(feature = "cluster")]
impl From<&Outcomes> for Counts {
    fn from(outcomes: &Outcomes) -> Self {
        // Four thousand million sessions are more than one process has.
        Self(outcomes.counts.map(|count| count as u32))
    }
}

/// The place of one target. Dropped before its end, it counts as dropped with its session: code that drops one of a
/// push that was sent says first what is known of it.
#[derive(Debug)]
pub(super) struct Ticket {
    tally: Arc<Tally>,
    stage: Stage,
    /// Among those that tell their ends.
    place: u32,
    /// Where its session tells of it, and under which number.
    event_log: Option<(Arc<EventLog>, u64)>,
    /// Of pushes with the same idempotency key, which are not sent, and stand where this one stands.
    repetitions: Option<Box<Repetitions>>,
}

/// Behind a pointer of its own, as few tickets have any.
#[derive(Debug, Default)]
struct Repetitions {
    tickets: Vec<Ticket>,
}

impl Ticket {
    /// Of a target that is counted at this stage already, and told of as the event of this number.
    pub(super) fn of_counted(tally: &Arc<Tally>, stage: Stage, event_log: Option<(&Arc<EventLog>, u64)>) -> Self {
        let event_log = event_log.map(|(event_log, number)| (Arc::clone(event_log), number));
        Self { tally: Arc::clone(tally), stage, place: 0, event_log, repetitions: None }
    }

    /// A push with the same idempotency key is not sent: it stands where this one stands, until this one has come to
    /// its end.
    pub(super) fn repeat(&mut self, mut ticket: Self) {
        ticket.advance(self.stage.of_repetition());
        if !self.stage.is_final() {
            self.repetitions.get_or_insert_default().tickets.push(ticket);
        }
    }

    /// Pushes that stand where this one stands.
    pub(super) fn repetitions(&self) -> usize {
        self.repetitions.as_ref().map_or(0, |repetitions| repetitions.tickets.len())
    }

    /// From here on the event log tells of it too, as the event of this number.
    pub(super) fn follow(&mut self, event_log: &Arc<EventLog>, number: u64) {
        self.event_log = Some((Arc::clone(event_log), number));
    }

    /// It is sent under this offset.
    pub(super) fn numbered(&self, offset: u64) {
        if let Some((event_log, number)) = &self.event_log {
            event_log.numbered(*number, offset);
        }
    }

    /// Moves on, now. Never back, and never out of a final stage.
    pub(super) fn advance(&mut self, to: Stage) {
        let now = self.event_log.as_ref().map_or(Duration::ZERO, |(event_log, _)| event_log.now());
        self.advance_at(to, now);
    }

    /// As [`Self::advance`], so long after its session began.
    pub(super) fn advance_at(&mut self, to: Stage, now: Duration) {
        if self.stage.is_final() || (!to.is_final() && to.index() <= self.stage.index()) {
            return;
        }

        let is_over = self.tally.count(self.stage, to);
        self.stage = to;
        let each = if to.is_final() { self.tally.each.upgrade() } else { None };
        if let Some(each) = each {
            each.end(self.place, to);
        }
        if let Some((event_log, number)) = &self.event_log {
            event_log.reached(*number, to, now);
        }
        if is_over {
            Tally::tell(&self.tally);
        }

        if let Some(repetitions) = &mut self.repetitions {
            repetitions.tickets.iter_mut().for_each(|ticket| ticket.advance_at(to.of_repetition(), now));
            if to.is_final() {
                self.repetitions = None;
            }
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// The node that has pushed it, and its number there; `None`: it went to no other node.
    #[cfg(feature = "cluster")]
    pub(super) fn address(&self) -> Option<(NodeId, u64)> {
        self.tally.afar.get()?.address.get().copied()
    }

    /// Under which name another node hears of it.
    #[cfg(feature = "cluster")]
    pub(super) fn owed(&self) -> Option<(NodeId, u64)> {
        let afar = self.tally.afar.get()?;
        afar.owed.get().or_else(|| afar.address.get()).copied()
    }

    /// It is no target after all: another node has it.
    #[cfg(feature = "cluster")]
    pub(super) fn withdraw(&mut self) {
        if self.stage.is_final() {
            return;
        }
        self.tally.withdraw(self.stage);
        if let Some(each) = self.tally.each.upgrade() {
            each.end(self.place, Stage::Unknown);
        }
        self.stage = Stage::Unknown;
        Tally::tell(&self.tally);
    }

    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn is_of(&self, receipt: &Receipt) -> bool {
        Arc::ptr_eq(&self.tally, &receipt.tally)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.advance(Stage::Dropped(DropReason::SessionEnded));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes name the stages at which there is somebody, and no others.
    #[test]
    fn outcomes_are_shown_by_stage() {
        assert!(Stage::ALL.iter().enumerate().all(|(at, stage)| stage.index() == at));
        assert_eq!(format!("{:?}", Outcomes::default()), "Outcomes {}");
        let mut outcomes = Outcomes::default();
        outcomes.counts[Stage::Handled.index()] = 2;
        outcomes.counts[Stage::Dropped(DropReason::Full).index()] = 1;
        assert_eq!(format!("{outcomes:?}"), "Outcomes {Handled: 2, Dropped(Full): 1}");
    }

    fn ticket(receipt: &Receipt) -> Ticket {
        receipt.ticket(SessionId(7))
    }

    fn watched() -> (Receipt, TargetOutcomes) {
        let receipt = Receipt::of(&Push::new("T", "m", "").watch_each(), &Totals::default());
        let each = receipt.each().expect("it was asked for");
        (receipt, each)
    }

    /// Who waits for the sessions waits for the store first; what became of it there is told to all who ask, however late.
    #[tokio::test(start_paused = true)]
    async fn a_receipt_waits_for_the_store() {
        use crate::store::{Level, Place, Stored};

        let receipt = Receipt::new();
        assert_eq!((receipt.stored().await, receipt.is_kept()), (Ok(Vec::new()), false));
        let log = Log::Mailbox("ann".to_owned());
        let storing = receipt.storing(vec![log.clone()]);
        let (waits, asks) = (receipt.clone(), receipt.clone());
        let waits = tokio::spawn(async move { waits.handled().await.targets() });
        let asks = tokio::spawn(async move { asks.stored().await });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!waits.is_finished() && !asks.is_finished());

        let kept = Kept::new(log.clone(), Stored::new(Place { epoch: 1, sequence: 2 }, Level::Synced, false));
        let mut told = ticket(&receipt);
        storing.done(Ok(vec![kept.clone()]));
        assert_eq!(asks.await.expect("no panic"), Ok(vec![kept.clone()]));
        told.advance(Stage::Handled);
        assert_eq!(waits.await.expect("no panic"), 1);
        assert_eq!((receipt.stored().await, receipt.is_kept()), (Ok(vec![kept]), true));
        assert_eq!(receipt.position(), None, "no topic has it");

        let receipt = Receipt::new();
        drop(receipt.storing(vec![log.clone()]));
        let unknown = receipt.stored().await.expect_err("nobody knows");
        assert_eq!((unknown.is_unknown(), &unknown.failed), (true, &vec![(log, AppendError::Unknown)]));
        assert_eq!(receipt.handled().await.targets(), 0);
        assert!(unknown.to_string().starts_with("the mailbox of \"ann\""), "{unknown}");
    }

    /// Each stream tells each target once, in the order of their ends, whenever it is made. A push that did not ask
    /// has none. Once nobody can read them, ends are not kept.
    #[tokio::test]
    async fn each_target_tells_its_end_once() {
        let (receipt, mut outcomes) = watched();
        let mut tickets: Vec<_> = (0..3).map(|n| receipt.ticket(SessionId(n))).collect();
        let reading = tokio::spawn(async move {
            let mut told = Vec::new();
            while let Some((session, stage)) = outcomes.next().await {
                told.push((session.0, stage));
            }
            told
        });
        tokio::task::yield_now().await;
        tickets[2].advance(Stage::Received);
        tickets[2].advance(Stage::Handled);
        tickets[2].advance(Stage::Expired);
        tokio::task::yield_now().await;
        drop(tickets);
        let gone = Stage::Dropped(DropReason::SessionEnded);
        let all = [(2, Stage::Handled), (0, gone), (1, gone)];
        assert_eq!(reading.await.expect("no panic"), all);
        let mut late = receipt.each().expect("it was asked for");
        for (session, stage) in all {
            assert_eq!(late.next().await, Some((SessionId(session), stage)));
        }
        assert_eq!(late.next().await, None);

        let (receipt, outcomes) = watched();
        let (first, second) = (receipt.ticket(SessionId(1)), receipt.ticket(SessionId(2)));
        drop(outcomes);
        drop(first);
        assert_eq!(receipt.outcomes().dropped(), 1, "the receipt counts on");
        drop(receipt);
        assert!(second.tally.each.upgrade().is_none(), "nothing is kept");
        assert_eq!(watched().1.next().await, None, "no target, no outcome");
        assert!(Receipt::new().each().is_none(), "it was not asked for");
        assert_eq!(size_of::<SessionId>() + size_of::<(u32, Stage)>(), 24, "as documented");
    }

    /// Several streams wait side by side, and one that is dropped leaves no waker behind.
    #[tokio::test]
    async fn streams_of_one_receipt_wait_side_by_side() {
        let (receipt, mut one) = watched();
        let (mut other, mut left) = (receipt.each().expect("asked for"), receipt.each().expect("asked for"));
        let ticket = receipt.ticket(SessionId(1));
        {
            let mut waits = pin!(left.next());
            let waker = std::task::Waker::noop();
            for _ in 0..2 {
                assert!(waits.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
            }
        }
        drop(left);
        let end_it = async {
            tokio::task::yield_now().await;
            drop(ticket);
        };
        let gone = Some((SessionId(1), Stage::Dropped(DropReason::SessionEnded)));
        let both = tokio::time::timeout(std::time::Duration::from_secs(10), async {
            tokio::join!(one.next(), other.next(), end_it)
        });
        assert_eq!(both.await.expect("both are woken"), (gone, gone, ()));
    }

    /// Each target is in one place, and a ticket that is lost is counted, not forgotten.
    #[test]
    fn every_target_is_somewhere() {
        let receipt = Receipt::new();
        let (mut a, b) = (ticket(&receipt), ticket(&receipt));
        a.advance(Stage::Received);
        a.advance(Stage::Written);
        assert_eq!(a.stage(), Stage::Received, "never back");
        drop(b);
        let outcomes = receipt.outcomes();
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Received), outcomes.dropped()), (2, 1, 1));
        a.advance(Stage::Handled);
        drop(a);
        assert_eq!(receipt.outcomes().at(Stage::Handled), 1, "a final stage stays");
    }

    /// Waiting ends when the last target is there, or ended otherwise.
    #[tokio::test]
    async fn waiting_ends_with_the_last_target() {
        let receipt = Receipt::new();
        let (mut a, b) = (ticket(&receipt), ticket(&receipt));
        let waiting = tokio::spawn({
            let receipt = receipt.clone();
            async move { receipt.handled().await }
        });
        tokio::task::yield_now().await;
        a.advance(Stage::Handled);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(b);
        let outcomes = waiting.await.expect("no panic");
        assert_eq!((outcomes.at(Stage::Handled), outcomes.dropped()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_its_stage_and_not_before() {
        let receipt = Receipt::new();
        let mut only = ticket(&receipt);
        let is_over = async |wait: std::pin::Pin<Box<dyn Future<Output = Outcomes> + '_>>| {
            tokio::time::timeout(std::time::Duration::from_secs(1), wait).await.is_ok()
        };
        let stages = [Stage::Queued, Stage::Written, Stage::Received, Stage::Handled];
        for (waits_over, stage) in stages.into_iter().enumerate() {
            only.advance(stage);
            let over = [
                is_over(Box::pin(receipt.written())).await,
                is_over(Box::pin(receipt.received())).await,
                is_over(Box::pin(receipt.handled())).await,
            ];
            assert_eq!(over, [1, 2, 3].map(|wait| wait <= waits_over), "{stage:?}");
        }
    }

    /// A node says its targets on another thread while this one looks whether all is over: it is not, and never was.
    #[cfg(feature = "cluster")]
    #[test]
    fn a_wait_is_not_over_while_a_node_says_its_targets() {
        let asked = Share { is_routing: true, ..Share::default() };
        let told = Share { counts: Counts::one(Stage::Written), ..Share::default() };
        let node = NodeId(7);
        let starts = std::sync::Barrier::new(2);
        let receipts: Vec<Receipt> = (0..20_000).map(|_| Receipt::new()).collect();
        receipts.iter().for_each(|receipt| receipt.settle(node, &Share::default(), &asked));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for receipt in &receipts {
                    starts.wait();
                    receipt.settle(node, &asked, &told);
                }
            });
            let mut early = 0;
            for receipt in &receipts {
                starts.wait();
                while receipt.outcomes().targets() == 0 {
                    early += usize::from(receipt.tally.over(Wait::Handled).is_some() || receipt.is_no_route());
                }
            }
            assert_eq!(early, 0);
        });
    }

    /// A push that reached nobody is done at once, and says so.
    #[tokio::test]
    async fn no_route_is_no_target() {
        assert_eq!(Receipt::new().handled().await.targets(), 0);
    }

    #[test]
    fn each_failure_has_words_of_its_own() {
        let words = [Failure::NoHandler, Failure::BadArguments, Failure::Error, Failure::Panicked]
            .map(|failure| failure.to_string());
        let expected =
            ["no handler takes it", "its handler cannot decode it", "its handler failed", "its handler panicked"];
        assert_eq!(words, expected);
    }

    /// Each stage is counted at its own place, and each sum takes those that it names.
    #[test]
    fn outcomes_are_summed_by_kind() {
        let mut outcomes = Outcomes::default();
        for (number, stage) in Stage::ALL.iter().enumerate() {
            outcomes.counts[stage.index()] = 1 << number;
            assert_eq!(outcomes.at(*stage), 1 << number);
        }
        let sum = |is_meant: fn(&Stage) -> bool| -> usize {
            Stage::ALL.iter().filter(|stage| is_meant(stage)).map(|stage| outcomes.at(*stage)).sum()
        };
        assert_eq!(outcomes.targets(), (1 << Stage::ALL.len()) - 1);
        assert_eq!(outcomes.failed(), sum(|stage| matches!(stage, Stage::Failed(_))));
        assert_eq!(outcomes.dropped(), sum(|stage| matches!(stage, Stage::Dropped(_))));
        assert_eq!(outcomes.open(), sum(|stage| matches!(stage, Stage::Queued | Stage::Written | Stage::Received)));
        assert!(Stage::ALL.iter().all(|stage| stage.is_final() || stage.index() < 3));
    }

    /// An operator sees each stage under its own name.
    #[test]
    fn an_operator_sees_each_stage() {
        use crate::server::{AdminPushOutcome, PushFailures};

        let mut outcomes = Outcomes::default();
        let failures = [Failure::NoHandler, Failure::BadArguments, Failure::Error, Failure::Panicked];
        let stages = [Stage::Queued, Stage::Written, Stage::PlainWritten, Stage::Received, Stage::Handled]
            .into_iter()
            .chain([Stage::Expired, Stage::Superseded, Stage::Dropped(DropReason::Full), Stage::Unknown])
            .chain([Stage::Duplicate])
            .chain(failures.map(Stage::Failed));
        for (number, stage) in stages.enumerate() {
            outcomes.counts[stage.index()] = 1 + number;
        }
        let failed = PushFailures { no_handler: 11, bad_arguments: 12, error: 13, panicked: 14 };
        let expected = AdminPushOutcome {
            queued: 1,
            written: 2 + 3,
            received: 4,
            handled: 5,
            expired: 6,
            superseded: 7,
            dropped: 8,
            failed,
            unknown: 9,
            duplicate: 10,
            stored: false,
            routing: 0,
            unreached: 0,
        };
        assert_eq!(AdminPushOutcome::from(outcomes), expected);
    }

    /// As a stream the outcomes are the same, and it knows how many are left.
    #[test]
    fn outcomes_are_a_stream_that_knows_its_length() {
        use std::{pin::Pin, task::Waker};

        use futures_core::Stream;

        let (receipt, mut outcomes) = watched();
        let mut tickets: Vec<_> = (0..3).map(|n| receipt.ticket(SessionId(n))).collect();
        let next = |outcomes: &mut TargetOutcomes| {
            Pin::new(outcomes).poll_next(&mut std::task::Context::from_waker(Waker::noop())).map(|next| next.is_some())
        };
        assert_eq!((next(&mut outcomes), outcomes.size_hint()), (std::task::Poll::Pending, (3, Some(3))));
        tickets[1].advance(Stage::Handled);
        assert_eq!((next(&mut outcomes), outcomes.size_hint()), (std::task::Poll::Ready(true), (2, Some(2))));
        tickets.clear();
        assert_eq!([next(&mut outcomes), next(&mut outcomes)], [std::task::Poll::Ready(true); 2]);
        assert_eq!((next(&mut outcomes), outcomes.size_hint()), (std::task::Poll::Ready(false), (0, Some(0))));
    }
}
