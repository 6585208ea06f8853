//! What every engine of a cluster must do: one suite, which runs over any [`Engine`].
//!
//! A crate with an engine of its own runs it in its tests, over one server and over several:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use bothways::{
//!     cluster::{Engine, memory::MemoryBroker},
//!     testing::{self, engine::Bed},
//! };
//!
//! testing::run(async {
//!     let bed = || {
//!         let broker = MemoryBroker::new();
//!         Bed::new(Duration::from_secs(15), move || broker.engine() as Arc<dyn Engine>)
//!     };
//!     for check in testing::engine::checks() {
//!         check.run(bed()).await;
//!     }
//! });
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::engine::{
        AppendError, AskError, BoxFuture, BuryError, ClaimError, Engine, Followed, Follower, Inbox, Log, NewEntry,
        NodeId, RenewError, Revision,
    },
    session::SessionId,
    testing::store::{self, StoreBed, StoreCheck},
};

/// An engine under test: its nodes, all of one cluster that nobody else uses.
pub struct Bed {
    lease: Duration,
    make: Box<dyn Fn() -> Arc<dyn Engine> + Send + Sync>,
}

impl std::fmt::Debug for Bed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bed").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Bed {
    /// `make` gives the engine of one more node. `lease` is the shortest lease that the engine keeps exactly to the
    /// second.
    pub fn new(lease: Duration, make: impl Fn() -> Arc<dyn Engine> + Send + Sync + 'static) -> Self {
        Self { lease, make: Box::new(make) }
    }

    fn node(&self) -> Arc<dyn Engine> {
        (self.make)()
    }

    /// Its part that stores.
    fn store(self) -> StoreBed {
        let limits = self.node().limits();
        StoreBed::new(limits, move || self.node())
    }

    /// A node that answers what it is asked, with what this makes of it.
    async fn answering(
        &self,
        answer: impl Fn(Bytes) -> Option<Bytes> + Send + Sync + 'static,
    ) -> (NodeId, Arc<dyn Engine>) {
        let (engine, me) = (self.node(), NodeId::random());
        engine.listen(me, Arc::new(Answers(Box::new(answer)))).await.expect("the engine works");
        (me, engine)
    }
}

struct Answers(Box<dyn Fn(Bytes) -> Option<Bytes> + Send + Sync>);

impl Inbox for Answers {
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>> {
        let answer = (self.0)(bytes);
        Box::pin(async move { answer })
    }
}

/// One thing that every engine must do.
pub struct Check {
    name: &'static str,
    run: Run,
}

enum Run {
    Engine(fn(Bed) -> BoxFuture<()>),
    Store(StoreCheck),
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Check {
    fn of_store(check: StoreCheck) -> Self {
        Self { name: check.name(), run: Run::Store(check) }
    }

    /// What it must do.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it over an engine of its own. No check takes longer than four leases and ten seconds.
    ///
    /// # Panics
    /// The engine does something else.
    pub async fn run(&self, bed: Bed) {
        let most = 4 * bed.lease + Duration::from_secs(10);
        let run = match &self.run {
            Run::Engine(run) => run(bed),
            Run::Store(check) => return check.run(bed.store()).await,
        };
        assert!(timeout(most, run).await.is_ok(), "{}: not within {most:?}", self.name);
    }
}

/// All of them.
pub fn checks() -> Vec<Check> {
    macro_rules! checks {
        ($($name:ident),* $(,)?) => {
            vec![$(Check { name: stringify!($name), run: Run::Engine(|bed| Box::pin($name(bed))) }),*]
        };
    }
    let mut all: Vec<Check> = store::store_checks().into_iter().map(Check::of_store).collect();
    all.extend(checks![
        an_ask_is_answered_by_the_node_that_it_names,
        asks_one_after_another_arrive_in_order,
        an_unknown_node_is_said_to_be_none_at_once,
        a_node_that_went_is_none,
        an_ask_ends_in_its_time,
        what_is_too_large_is_refused,
        a_lease_is_seen_by_all_and_can_be_renewed,
        a_lease_that_is_not_renewed_ends,
        a_lease_that_is_given_back_is_gone_at_once,
        the_living_are_not_buried,
        the_buried_cannot_renew,
        who_was_never_met_is_buried_for_good,
        of_many_that_claim_one_wins,
        a_stale_claim_is_refused_and_told_what_is_there,
        a_record_that_was_forgotten_can_be_claimed_anew,
        a_record_ends_with_its_time,
        followers_get_what_is_theirs_with_its_chain,
        mailboxes_ring_without_their_letters,
    ]);
    all
}

const SOON: Duration = Duration::from_secs(5);

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Waits until this holds.
async fn until(what: &str, most: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + most;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {most:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn an_ask_is_answered_by_the_node_that_it_names(bed: Bed) {
    let (one, _one) = bed.answering(|asked| Some(Bytes::from([b"one ", &asked[..]].concat()))).await;
    let (other, _other) = bed.answering(|asked| Some(Bytes::from([b"other ", &asked[..]].concat()))).await;
    let asker = bed.node();
    assert!(asker.mail_state().borrow().is_up() && asker.register_state().borrow().is_up());
    assert_eq!(asker.ask(one, text("x"), SOON).await, Ok(text("one x")));
    assert_eq!(asker.ask(other, text(""), SOON).await, Ok(text("other ")));
}

async fn asks_one_after_another_arrive_in_order(bed: Bed) {
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&arrived);
    let note = move |asked: Bytes| {
        noted.lock().push(asked[0]);
        Some(asked)
    };
    let (node, _engine) = bed.answering(note).await;
    let asker = bed.node();
    for number in 0..100 {
        assert_eq!(asker.ask(node, Bytes::from(vec![number]), SOON).await, Ok(Bytes::from(vec![number])));
    }
    assert_eq!(*arrived.lock(), (0..100).collect::<Vec<u8>>());
}

async fn an_unknown_node_is_said_to_be_none_at_once(bed: Bed) {
    let began = Instant::now();
    assert_eq!(bed.node().ask(NodeId::random(), text("x"), SOON).await, Err(AskError::NoNode));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

async fn a_node_that_went_is_none(bed: Bed) {
    let (node, engine) = bed.answering(Some).await;
    let asker = bed.node();
    assert_eq!(asker.ask(node, text("x"), SOON).await, Ok(text("x")));
    engine.deafen(node).await;
    assert_eq!(asker.ask(node, text("x"), SOON).await, Err(AskError::NoNode));
}

async fn an_ask_ends_in_its_time(bed: Bed) {
    let (node, _engine) = bed.answering(|_| None).await;
    let (asker, began, within) = (bed.node(), Instant::now(), Duration::from_millis(200));
    assert_eq!(asker.ask(node, text("x"), within).await, Err(AskError::TimedOut));
    assert!(within <= began.elapsed() && began.elapsed() < SOON, "{:?}", began.elapsed());
}

async fn what_is_too_large_is_refused(bed: Bed) {
    let (node, _engine) = bed.answering(Some).await;
    let asker = bed.node();
    let most = asker.limits().message_bytes_max;
    assert!(64 << 10 <= most, "{most}");
    let large = Bytes::from(vec![0; most + 1]);
    assert_eq!(asker.ask(node, large.clone(), SOON).await, Err(AskError::TooLarge));
    assert_eq!(asker.claim(SessionId::next(), None, large.clone(), SOON).await, Err(ClaimError::TooLarge));
    assert_eq!(asker.append(Log::Mailbox("a".to_owned()), NewEntry::new(large)).await, Err(AppendError::TooLarge));
    // A batch between nodes has half a MiB, or less if the engine takes less.
    let whole = Bytes::from(vec![7; (512 << 10).min(most / 2)]);
    assert_eq!(asker.ask(node, whole.clone(), SOON).await, Ok(whole));
}

async fn a_lease_is_seen_by_all_and_can_be_renewed(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    let lease = one.lease(me, text("first"), bed.lease).await.expect("the engine works");
    let (here, there) = (one.members(), other.members());
    let card = |members: &tokio::sync::watch::Receiver<Arc<crate::cluster::engine::Members>>| {
        members.borrow().get(&me).map(|member| member.card.clone())
    };
    until("both know the card", SOON, || card(&here) == Some(text("first")) && card(&there) == Some(text("first")))
        .await;
    for _ in 0..3 {
        sleep(bed.lease / 2).await;
        assert_eq!(lease.renew(text("second")).await, Ok(()));
    }
    until("both know the new card", SOON, || [&here, &there].iter().all(|of| card(of) == Some(text("second")))).await;
}

async fn a_lease_that_is_not_renewed_ends(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    let lease = one.lease(me, text("card"), bed.lease).await.expect("the engine works");
    let members = other.members();
    until("it is a member", SOON, || members.borrow().contains_key(&me)).await;
    until("it is none", 2 * bed.lease + SOON, || !members.borrow().contains_key(&me)).await;
    assert_eq!(lease.renew(text("card")).await, Err(RenewError::Lapsed));
}

async fn a_lease_that_is_given_back_is_gone_at_once(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    let lease = one.lease(me, text("card"), bed.lease).await.expect("the engine works");
    let members = other.members();
    until("it is a member", SOON, || members.borrow().contains_key(&me)).await;
    lease.release().await;
    until("it is none", SOON.min(bed.lease / 2), || !members.borrow().contains_key(&me)).await;
    assert_eq!(lease.renew(text("card")).await, Err(RenewError::Lapsed));
}

async fn the_living_are_not_buried(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    let lease = one.lease(me, text("card"), bed.lease).await.expect("the engine works");
    let members = other.members();
    until("it is a member", SOON, || members.borrow().contains_key(&me)).await;
    let revision = members.borrow().get(&me).map(|member| member.revision).expect("it is a member");
    assert_eq!(lease.renew(text("card")).await, Ok(()));
    assert_eq!(other.bury(me, revision).await, Err(BuryError::Alive), "it has renewed since");
    assert_eq!(other.bury(me, Revision(0)).await, Err(BuryError::Alive), "the asker may not have met it");
    assert_eq!(lease.renew(text("card")).await, Ok(()));
}

async fn the_buried_cannot_renew(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    let lease = one.lease(me, text("card"), bed.lease).await.expect("the engine works");
    let members = other.members();
    until("it is a member", SOON, || members.borrow().contains_key(&me)).await;
    let revision = members.borrow().get(&me).map(|member| member.revision).expect("it is a member");
    until("it is none", 2 * bed.lease + SOON, || !members.borrow().contains_key(&me)).await;
    assert_eq!(other.bury(me, revision).await, Ok(()));
    assert_eq!(lease.renew(text("card")).await, Err(RenewError::Lapsed));
    assert!(!members.borrow().contains_key(&me));
}

/// After that no life begins under its name: a lease that was on its way is refused.
async fn who_was_never_met_is_buried_for_good(bed: Bed) {
    let (one, other, me) = (bed.node(), bed.node(), NodeId::random());
    assert_eq!(other.bury(me, Revision(0)).await, Ok(()));
    assert_eq!(one.bury(me, Revision(0)).await, Ok(()), "twice is once");
    assert!(one.lease(me, text("card"), bed.lease).await.is_err(), "it was buried");
    assert!(!one.members().borrow().contains_key(&me) && !other.members().borrow().contains_key(&me));
}

async fn of_many_that_claim_one_wins(bed: Bed) {
    let id = SessionId::next();
    let nodes: Vec<_> = (0..4).map(|_| bed.node()).collect();
    let mut was: Option<Revision> = None;
    for round in 0..5_u8 {
        let claims: Vec<_> = (0..16_u8)
            .map(|number| {
                let record = Bytes::from(vec![round, number]);
                tokio::spawn(nodes[usize::from(number) % 4].claim(id, was, record, SOON * 12))
            })
            .collect();
        let (mut winner, mut unknown) = (None, 0);
        for (number, claim) in claims.into_iter().enumerate() {
            match claim.await.expect("no panic") {
                Ok(revision) => {
                    assert_eq!(winner, None, "two have won");
                    winner = Some((number, revision));
                }
                Err(ClaimError::Lost(_)) => {}
                Err(ClaimError::Unknown) => unknown += 1,
                Err(other) => panic!("{other}"),
            }
        }
        let (record, revision) = nodes[0].session(id, true).await.expect("the engine works").expect("one has won");
        assert_eq!(record[0], round);
        match winner {
            Some((number, won)) => assert_eq!((usize::from(record[1]), revision), (number, won)),
            None => assert_ne!(unknown, 0, "nobody has won"),
        }
        assert_ne!(Some(revision), was);
        was = Some(revision);
    }
}

async fn a_stale_claim_is_refused_and_told_what_is_there(bed: Bed) {
    let (one, other, id, ttl) = (bed.node(), bed.node(), SessionId::next(), SOON * 12);
    assert_eq!(one.session(id, true).await, Ok(None));
    let first = one.claim(id, None, text("1"), ttl).await.expect("there was none");
    let second = other.claim(id, Some(first), text("2"), ttl).await.expect("it was the last");
    for stale in [None, Some(first)] {
        match one.claim(id, stale, text("3"), ttl).await {
            Err(ClaimError::Lost(None)) => {}
            Err(ClaimError::Lost(Some(now))) => assert_eq!(now, (text("2"), second)),
            other => panic!("{stale:?}: {other:?}"),
        }
    }
    assert!(matches!(one.forget(id, first).await, Err(ClaimError::Lost(_))));
    assert_eq!(one.session(id, true).await, Ok(Some((text("2"), second))));
}

async fn a_record_that_was_forgotten_can_be_claimed_anew(bed: Bed) {
    let (one, id, ttl) = (bed.node(), SessionId::next(), SOON * 12);
    let first = one.claim(id, None, text("1"), ttl).await.expect("there was none");
    assert_eq!(one.forget(id, first).await, Ok(()));
    assert_eq!(one.session(id, true).await, Ok(None));
    assert!(matches!(one.claim(id, Some(first), text("2"), ttl).await, Err(ClaimError::Lost(_))));
    let second = one.claim(id, None, text("2"), ttl).await.expect("there is none");
    assert_eq!(one.session(id, true).await, Ok(Some((text("2"), second))));
}

async fn a_record_ends_with_its_time(bed: Bed) {
    let (one, id) = (bed.node(), SessionId::next());
    one.claim(id, None, text("1"), Duration::from_secs(1)).await.expect("there was none");
    let began = Instant::now();
    while one.session(id, true).await.expect("the engine works").is_some() {
        assert!(began.elapsed() < SOON, "it is still there");
        sleep(Duration::from_millis(100)).await;
    }
    one.claim(id, None, text("2"), SOON).await.expect("there is none");
}

#[derive(Default)]
struct Heard(Mutex<Vec<Followed>>);

impl Follower for Heard {
    fn message(&self, message: Followed) {
        self.0.lock().push(message);
    }
}

async fn followers_get_what_is_theirs_with_its_chain(bed: Bed) {
    let (one, other) = (bed.node(), bed.node());
    let (all, sport, nothing) = <(Arc<Heard>, Arc<Heard>, Arc<Heard>)>::default();
    let follow = |pattern: &str, heard: &Arc<Heard>| other.follow(pattern.to_owned(), Arc::clone(heard) as _);
    let _all = follow("news.>", &all).await.expect("the engine works");
    let of_sport = follow("news.*.sport", &sport).await.expect("the engine works");
    let _nothing = follow("weather", &nothing).await.expect("the engine works");

    let log = Log::History("news.de.sport".to_owned());
    let mut places = Vec::new();
    for number in 0..3_u8 {
        places.push(one.append(log.clone(), NewEntry::new(vec![number])).await.expect("there is room").place);
    }
    one.publish("news.de.politics".to_owned(), text("x")).await.expect("the engine works");
    until("four have come", SOON, || all.0.lock().len() == 4).await;
    until("three have come", SOON, || sport.0.lock().len() == 3).await;

    // Topics come each in its own order: between several servers they take several ways.
    let (kept, others): (Vec<_>, Vec<_>) =
        all.0.lock().iter().cloned().partition(|heard| heard.topic == "news.de.sport");
    let befores = [0, places[0].sequence, places[1].sequence];
    for (number, (place, before)) in places.iter().zip(befores).enumerate() {
        let expected = Followed::new("news.de.sport", Bytes::from(vec![number as u8]), Some((*place, before)));
        assert_eq!(kept[number], expected);
    }
    assert_eq!(others, [Followed::new("news.de.politics", text("x"), None)]);

    drop(of_sport);
    sleep(Duration::from_millis(100)).await;
    one.append(log, NewEntry::new("last")).await.expect("there is room");
    until("five have come", SOON, || all.0.lock().len() == 5).await;
    assert_eq!((sport.0.lock().len(), nothing.0.lock().len()), (3, 0));
}

async fn mailboxes_ring_without_their_letters(bed: Bed) {
    let (one, other) = (bed.node(), bed.node());
    let (rung, topics) = <(Arc<Heard>, Arc<Heard>)>::default();
    let mailboxes = other.follow_mailboxes(Arc::clone(&rung) as _).await.expect("the engine works");
    let _topics = other.follow(">".to_owned(), Arc::clone(&topics) as _).await.expect("the engine works");

    let append = async |user: &str| {
        let letter = NewEntry::new("a letter").with_time_to_live(SOON * 12);
        one.append(Log::Mailbox(user.to_owned()), letter).await.expect("there is room").place
    };
    // A user's name may be any text.
    let (ann, bob) = ("ann", "bob b.*>");
    let [first, second, of_bob] = [append(ann).await, append(ann).await, append(bob).await];
    until("three have rung", SOON, || rung.0.lock().len() == 3).await;
    let heard = rung.0.lock().clone();
    let ring = |user: &str, place, before| Followed::new(user, Bytes::new(), Some((place, before)));
    assert_eq!(heard, [ring(ann, first, 0), ring(ann, second, first.sequence), ring(bob, of_bob, 0)]);

    one.append(Log::History("news".to_owned()), NewEntry::new("x")).await.expect("there is room");
    until("the topic's has come", SOON, || topics.0.lock().len() == 1).await;
    drop(mailboxes);
    sleep(Duration::from_millis(100)).await;
    append(ann).await;
    one.append(Log::History("news".to_owned()), NewEntry::new("y")).await.expect("there is room");
    until("the topic's next has come", SOON, || topics.0.lock().len() == 2).await;
    assert_eq!(rung.0.lock().len(), 3, "a mailbox is no topic, and nobody follows it any more");
}
