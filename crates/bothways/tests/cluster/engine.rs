//! The engine in memory does what every engine must do, and what only an unkind one does.

use std::{sync::Arc, time::Duration};

use bothways::{
    cluster::{
        Engine, NodeId, Store,
        engine::{
            AppendError, AskError, BoxFuture, ClaimError, EngineLimits, EngineState, Inbox, Level, Log, NewEntry,
            RenewError,
        },
        memory::MemoryBroker,
    },
    session::SessionId,
    testing::{self, engine::Bed},
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(15);

fn session() -> SessionId {
    "7".parse().expect("a number")
}

fn bed() -> Bed {
    let limits = EngineLimits::new(Level::Memory).mailbox_entries_max(50).history_entries_max(50);
    let broker = MemoryBroker::with_limits(limits);
    Bed::new(TTL, move || broker.engine() as Arc<dyn Engine>)
}

/// The suite of all engines, in virtual time.
#[test]
fn the_engine_in_memory_does_what_every_engine_must() {
    let checks = testing::engine::checks();
    assert!(29 <= checks.len());
    for check in checks {
        println!("{}", check.name());
        testing::run(check.run(bed()));
    }
}

/// The same over the real clock, with short leases.
#[tokio::test]
async fn the_engine_in_memory_keeps_real_time() {
    let wanted = ["a_lease_that_is_not_renewed_ends", "of_many_that_claim_one_wins", "an_ask_ends_in_its_time"];
    for check in testing::engine::checks().into_iter().filter(|check| wanted.contains(&check.name())) {
        let broker = MemoryBroker::new();
        check.run(Bed::new(Duration::from_millis(300), move || broker.engine() as Arc<dyn Engine>)).await;
    }
}

#[derive(Default)]
struct Noted(Mutex<Vec<Bytes>>);

impl Inbox for Noted {
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>> {
        self.0.lock().push(bytes.clone());
        Box::pin(async move { Some(bytes) })
    }
}

/// Two nodes; the second takes mail.
async fn two(broker: &MemoryBroker) -> (Arc<dyn Engine>, Arc<dyn Engine>, NodeId, Arc<Noted>) {
    let (one, other, me, noted) = (broker.engine(), broker.engine(), NodeId::random(), Arc::<Noted>::default());
    other.listen(me, Arc::clone(&noted) as Arc<dyn Inbox>).await.expect("it works");
    (one, other, me, noted)
}

/// R13. Register and mail fail apart, and each says so with another epoch when it is back.
#[test]
fn the_register_stands_still_while_mail_goes_on() {
    testing::run(async {
        let (broker, id) = (MemoryBroker::new(), session());
        let (one, other, node, _noted) = two(&broker).await;
        let lease = other.lease(node, "card".into(), TTL).await.expect("it works");
        let before = *one.register_state().borrow();
        broker.faults().register_up(false);
        assert_eq!(*one.register_state().borrow(), EngineState::Down);
        assert_eq!(one.claim(id, None, "1".into(), TTL).await, Err(ClaimError::Down));
        assert!(one.session(id, true).await.is_err());
        assert_eq!(one.append(Log::History("a".to_owned()), NewEntry::new("1")).await, Err(AppendError::Down));
        assert_eq!(lease.renew("card".into()).await, Err(RenewError::Down));
        assert_eq!(one.ask(node, "x".into(), TTL).await, Ok("x".into()));
        sleep(TTL / 2).await;
        broker.faults().register_up(true);
        let after = *one.register_state().borrow();
        assert!(after.is_up() && after != before, "{after:?}");
        assert_eq!(lease.renew("card".into()).await, Ok(()), "its time was not over");

        broker.faults().mail_up(false);
        assert_eq!(one.ask(node, "x".into(), TTL).await, Err(AskError::Down));
        assert!(one.claim(id, None, "1".into(), TTL).await.is_ok());
    });
}

/// R11. All leases are gone in one moment, and all nodes live: each learns it by its own renewal.
#[test]
fn all_leases_may_end_at_once() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other) = (broker.engine(), broker.engine());
        let mut leases = Vec::new();
        for engine in [&one, &other] {
            leases.push(engine.lease(NodeId::random(), "card".into(), TTL).await.expect("it works"));
        }
        broker.faults().end_all_leases();
        assert!(one.members().borrow().is_empty());
        for lease in leases {
            assert_eq!(lease.renew("card".into()).await, Err(RenewError::Lapsed));
        }
    });
}

/// R4. A read shows the past, and says nothing of a record that was just created; compare-and-set is right.
#[test]
fn reads_may_be_old_and_claims_are_not() {
    testing::run(async {
        let (broker, id) = (MemoryBroker::new(), session());
        let engine = broker.engine();
        broker.faults().reads_are_old(true);
        let first = engine.claim(id, None, "1".into(), TTL).await.expect("there was none");
        assert_eq!(engine.session(id, true).await, Ok(None), "just acknowledged, and not there");
        let second = engine.claim(id, Some(first), "2".into(), TTL).await.expect("the last revision");
        assert_eq!(engine.session(id, true).await, Ok(Some(("1".into(), first))));
        assert!(matches!(engine.claim(id, Some(first), "3".into(), TTL).await, Err(ClaimError::Lost(_))));
        broker.faults().reads_are_old(false);
        assert_eq!(engine.session(id, true).await, Ok(Some(("2".into(), second))));
    });
}

/// A claim whose end nobody knows was applied, or was not.
#[test]
fn a_claim_may_end_unknown() {
    testing::run(async {
        for applied in [false, true] {
            let (broker, id) = (MemoryBroker::new(), session());
            let engine = broker.engine();
            broker.faults().claims_unknown(1, applied);
            assert_eq!(engine.claim(id, None, "1".into(), TTL).await, Err(ClaimError::Unknown));
            let record = engine.session(id, true).await.expect("it works").map(|(record, _)| record);
            assert_eq!(record, applied.then(|| "1".into()));
        }
    });
}

/// R14. Mail is lost, is answered in vain, comes twice, and comes late to a node that was stopped; 503 is no death.
#[test]
fn mail_is_lost_late_or_comes_twice() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, _other, node, noted) = two(&broker).await;
        let within = Duration::from_secs(1);
        let came = || std::mem::take(&mut *noted.0.lock());

        broker.faults().lose_mail(1);
        assert_eq!(one.ask(node, "lost".into(), within).await, Err(AskError::TimedOut));
        assert!(came().is_empty());
        broker.faults().lose_answers(1);
        assert_eq!(one.ask(node, "in vain".into(), within).await, Err(AskError::TimedOut));
        assert_eq!(came(), ["in vain"]);
        broker.faults().repeat_mail(1);
        assert_eq!(one.ask(node, "twice".into(), within).await, Ok("twice".into()));
        assert_eq!(came(), ["twice", "twice"]);

        assert!(broker.faults().pause(node, true));
        let began = Instant::now();
        assert_eq!(one.ask(node, "late".into(), within).await, Err(AskError::TimedOut));
        assert_eq!((began.elapsed(), came().len()), (within, 0));
        broker.faults().pause(node, false);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(came(), ["late"]);

        assert!(broker.faults().cut(node, true));
        assert_eq!(one.ask(node, "x".into(), within).await, Err(AskError::NoNode));
        broker.faults().cut(node, false);
        assert_eq!(one.ask(node, "y".into(), within).await, Ok("y".into()));
        broker.faults().kill(node);
        assert_eq!(one.ask(node, "x".into(), within).await, Err(AskError::NoNode));
        assert_eq!(came(), ["y"]);
    });
}

/// A broker that lost its data is another one: older places are of another epoch.
#[test]
fn lost_data_has_another_epoch() {
    testing::run(async {
        let (broker, log) = (MemoryBroker::new(), Log::History("news".to_owned()));
        let engine = broker.engine();
        let before = engine.append(log.clone(), NewEntry::new("1")).await.expect("there is room").place;
        let state = *engine.register_state().borrow();
        broker.faults().wipe();
        assert_ne!(*engine.register_state().borrow(), state);
        assert!(engine.read(log.clone(), 0, 10).await.expect("it works").entries.is_empty());
        let after = engine.append(log, NewEntry::new("1")).await.expect("there is room").place;
        assert_ne!(before.epoch, after.epoch);
    });
}
