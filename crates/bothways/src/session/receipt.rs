//! What became of a push: counted per stage, and awaitable.
//!
//! ```text
//!             ┌──► superseded, dropped (why)                   final
//!  queued ──► written ──► received ──► handled                 handled is final
//!      │         └──► expired: at the latest here              final
//!      └────► plain written: nobody confirms more              final
//!  duplicate: one of the same idempotency key was taken        final
//!  no route                                                    final
//! ```
//!
//! A stage is never better than the truth: `written` means that the kernel took all of it, `received`
//! and `handled` that the client said so.

use std::{pin::pin, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    SessionId,
    each::{Each, TargetOutcomes},
    explain::Trail,
};

/// How far one push to one session has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Stage {
    /// It waits for the session's connection: for room in it, for a client that is away, or for the first request of
    /// one that speaks plain rpcx.
    Queued,
    /// The kernel took it. That is not delivery.
    Written,
    /// The client's library has it.
    Received,
    /// The client's application has dealt with it.
    Handled,
    /// The kernel took it, and nothing more is ever confirmed: the client speaks plain rpcx, or the push
    /// is [`Fire`](super::Class::Fire).
    PlainWritten,
    /// Its time was over before the client had it: it was not sent, or was lost with a connection and not sent again.
    Expired,
    /// A newer value of the same key took its place.
    Superseded,
    /// It was not sent to this session, which was sent one of the same
    /// [idempotency key](super::Push::idempotency_key), or is about to be.
    Duplicate,
    /// It was dropped.
    Dropped(DropReason),
}

/// Why a push was dropped.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum DropReason {
    /// The session's bounds were reached: the client reads, or handles, too slowly.
    Full,
    /// The connection ended before the push was written whole, and its class does not outlive a connection.
    Disconnected,
    /// The session ended: its client did not come back in time, or was sent away.
    SessionEnded,
}

impl Stage {
    /// True if nothing can follow.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Written | Self::Received)
    }

    fn index(self) -> usize {
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
        }
    }
}

/// How many targets of one push stand where. Every target is in exactly one place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcomes {
    counts: [usize; 11],
}

impl Outcomes {
    /// Targets that stand at this stage now.
    pub fn at(&self, stage: Stage) -> usize {
        self.counts[stage.index()]
    }

    /// Targets in all; 0 means that there was no route to anybody.
    pub fn targets(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Targets that were dropped, for whatever reason.
    pub fn dropped(&self) -> usize {
        self.counts[7..10].iter().sum()
    }

    /// Targets for which something can still follow.
    pub fn open(&self) -> usize {
        self.counts[..3].iter().sum()
    }
}

/// What becomes of one push, to one session or to many. A clone is the same receipt.
#[derive(Clone, Debug)]
pub struct Receipt {
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    outcomes: Mutex<Outcomes>,
    changed: Notify,
    /// If somebody wants to know the end of each target, and not only how many there are.
    each: Option<Arc<Each>>,
}

impl Receipt {
    pub(crate) fn new() -> Self {
        Self { tally: Arc::default() }
    }

    /// A receipt whose targets tell their ends too. All of them are entered before anybody reads these.
    pub(crate) fn with_outcomes() -> (Self, TargetOutcomes) {
        let each = Arc::<Each>::default();
        let tally = Tally { each: Some(Arc::clone(&each)), ..Tally::default() };
        (Self { tally: Arc::new(tally) }, TargetOutcomes::new(each))
    }

    /// The place of one more target, which is queued.
    pub(super) fn ticket(&self, session: SessionId) -> Ticket {
        self.tally.outcomes.lock().counts[Stage::Queued.index()] += 1;
        let place = self.tally.each.as_ref().map_or(0, |each| each.enter(session));
        Ticket { tally: Arc::clone(&self.tally), stage: Stage::Queued, place, trail: None }
    }

    /// How many targets stand where, now.
    pub fn outcomes(&self) -> Outcomes {
        *self.tally.outcomes.lock()
    }

    /// Waits until every target is written, or ended otherwise.
    pub async fn written(&self) -> Outcomes {
        self.until(|outcomes| outcomes.at(Stage::Queued) == 0).await
    }

    /// Waits until every target is received, or ended otherwise.
    pub async fn received(&self) -> Outcomes {
        self.until(|outcomes| outcomes.at(Stage::Queued) + outcomes.at(Stage::Written) == 0).await
    }

    /// Waits until every target is handled, or ended otherwise. A class that is not tracked ends with
    /// being written.
    pub async fn handled(&self) -> Outcomes {
        self.until(|outcomes| outcomes.open() == 0).await
    }

    async fn until(&self, done: fn(&Outcomes) -> bool) -> Outcomes {
        loop {
            let mut changed = pin!(self.tally.changed.notified());
            changed.as_mut().enable();
            let outcomes = self.outcomes();
            if done(&outcomes) {
                return outcomes;
            }
            changed.await;
        }
    }
}

/// The place of one target. Dropped before its end, it counts as dropped with its session.
#[derive(Debug)]
pub(super) struct Ticket {
    tally: Arc<Tally>,
    stage: Stage,
    /// Among those that tell their ends.
    place: u32,
    /// Where its session tells of it, and under which number.
    trail: Option<(Arc<Trail>, u64)>,
}

impl Ticket {
    /// From here on the trail tells of it too, as the event of this number.
    pub(super) fn follow(&mut self, trail: &Arc<Trail>, number: u64) {
        self.trail = Some((Arc::clone(trail), number));
    }

    /// It is sent under this offset.
    pub(super) fn numbered(&self, offset: u64) {
        if let Some((trail, number)) = &self.trail {
            trail.numbered(*number, offset);
        }
    }

    /// Moves on. Never back, and never out of a final stage.
    pub(super) fn advance(&mut self, to: Stage) {
        if self.stage.is_final() || (!to.is_final() && to.index() <= self.stage.index()) {
            return;
        }
        {
            let mut outcomes = self.tally.outcomes.lock();
            outcomes.counts[self.stage.index()] -= 1;
            outcomes.counts[to.index()] += 1;
        }
        self.stage = to;
        if let Some(each) = self.tally.each.as_ref().filter(|_| to.is_final()) {
            each.end(self.place, to);
        }
        if let Some((trail, number)) = &self.trail {
            trail.reached(*number, to);
        }
        self.tally.changed.notify_waiters();
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
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

    fn ticket(receipt: &Receipt) -> Ticket {
        receipt.ticket(SessionId(7))
    }

    /// Who asks is told of each target once, in the order of their ends; who does not read any more costs nothing.
    #[tokio::test]
    async fn each_target_tells_its_end_once() {
        let (receipt, mut outcomes) = Receipt::with_outcomes();
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
        assert_eq!(reading.await.expect("no panic"), [(2, Stage::Handled), (0, gone), (1, gone)]);

        let (receipt, outcomes) = Receipt::with_outcomes();
        let ticket = receipt.ticket(SessionId(1));
        drop(outcomes);
        drop(ticket);
        assert_eq!(receipt.outcomes().dropped(), 1, "the receipt counts on");
        assert_eq!(Receipt::with_outcomes().1.next().await, None, "no target, no outcome");
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

    /// A push that reached nobody is done at once, and says so.
    #[tokio::test]
    async fn no_route_is_no_target() {
        assert_eq!(Receipt::new().handled().await.targets(), 0);
    }
}
