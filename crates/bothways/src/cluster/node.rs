//! One node at work: its lease, a link to every other member, and the mail of the others.
//!
//! ```text
//!  Registry::push ──► route ──► Origin, and a Push in the link of each member
//!                                  │ one task a member: a batch in flight
//!                                  ▼
//!     the other node:  Inbox ──► Registry::push_here ──► its state in the answer; each change later, in its own batches
//! ```
//!
//! Locks, in this order: that of an origin's mail, held while its batch is run; the state of the node. A receipt tells its
//! watcher under no lock of a session.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Metadata, SerializeType};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    absent::{Absent, Whose},
    ask,
    calling::CallsOfNode,
    counted::Counted,
    engine::{
        AskError, BoxFuture, BuryError, Engine, EngineDown, EngineState, Inbox, Lease, Members, RenewError, Revision,
    },
    kicks::Kicks,
    link::{Arrival, BATCH_BYTES_MAX, Incoming, Number, Outgoing},
    mail::{self, Answer, ITEM_BYTES, Item, Standing},
    moves::{self, Moves},
    offers::{Offers, Taker},
    options::Cluster,
    remote::{At, Moved, Name, Origin, Owed, PushNumber},
    topics::{TopicsOfNode, keep_topics},
    view::{ClusterStats, Home, Load, read_card},
};
use crate::{
    calm::{Calm, tell},
    codec::Encode,
    connection::Connection,
    session::{
        Carried, Counts, Destination, Elsewhere, NodeId, Outcomes, Push, Receipt, Registry, SessionId, Share,
        UnreachedWhy,
    },
};

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How often a node asks how its open pushes stand elsewhere.
const DIGEST_EVERY: Duration = Duration::from_secs(10);
/// The same while a call of this node runs at the other one: its caller waits.
const CALLS_DIGEST_EVERY: Duration = Duration::from_secs(3);
/// How long one ask may take, and how long a batch is tried.
const ASK_MAX: Duration = Duration::from_secs(1);
/// See [`ASK_MAX`].
const BATCH_MAX: Duration = Duration::from_secs(3);
/// For how long nobody may be there under a node's name: one whose way to the engine breaks is back within milliseconds.
pub(super) const NOBODY_MAX: Duration = Duration::from_millis(500);
/// How long a link pauses after a failure.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a member may answer nothing before what it has is unknown, although its lease lives.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long a node that leaves waits until the others know how their pushes ended.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// How long a node that joins waits until the others count it.
const COUNTED_MAX: Duration = Duration::from_secs(2);
/// How long it may take until a node sees itself in the list of members.
const LISTED_MAX: Duration = Duration::from_secs(2);
/// Most states, or numbers of a digest, in one item.
const STATES_MAX: usize = 256;
/// What a batch has besides its items.
pub(super) const BATCH_OVERHEAD: usize = 1024;

/// What a node says of itself.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Card {
    version: u32,
    pub(super) address: Option<String>,
    /// More of them, of other networks.
    pub(super) also_at: Vec<String>,
    pub(super) load: Load,
    pub(super) up_ms: u64,
    /// The same in all its lives.
    pub(super) process: u64,
}

/// See the module.
pub(crate) struct Node {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) options: Cluster,
    pub(super) sessions: Weak<Registry>,
    pub(super) home: Weak<dyn Home>,
    joined: Instant,
    /// Under any name. Never 0.
    process: u64,
    pub(super) moves: Arc<Moves>,
    pub(super) counted: Mutex<Counted>,
    pub(super) kicks: Mutex<Kicks>,
    /// Who asks the others whether they count this node: one for all that wait.
    pub(super) counting: tokio::sync::Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Woken when links may be idle.
    pub(super) said: Notify,
    /// Woken when its card says something new that the others are to see at once.
    renews: Arc<Notify>,
    offers: Mutex<Offers>,
    me: Weak<Self>,
    /// Its tasks end with it.
    pub(super) stop: watch::Sender<bool>,
    /// That in which it has joined.
    pub(super) runtime: Handle,
    pub(super) topics: Arc<TopicsOfNode>,
    told: Told,
}

#[derive(Default)]
struct Told {
    lapsed: Calm,
    joined: Calm,
    left: Calm,
}

/// One life of a node, under one name.
pub(super) struct Life {
    me: NodeId,
    /// Mail of each origin. What is still sent to this name when the life is over is not run.
    incoming: Mutex<HashMap<NodeId, Arc<Mutex<Incoming<Bytes>>>>>,
    is_over: AtomicBool,
}

impl Life {
    /// Nothing more is run of this node's mail. What is being run is done when this returns, and leaves nothing behind that
    /// comes after it.
    fn forget(&self, node: NodeId) {
        let incoming = self.incoming.lock().remove(&node);
        drop(incoming.as_ref().map(|incoming| incoming.lock()));
    }

    /// The same of all nodes.
    fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        let all: Vec<NodeId> = self.incoming.lock().keys().copied().collect();
        all.into_iter().for_each(|node| self.forget(node));
    }
}

pub(super) struct State {
    /// `None`: it is no member at the moment.
    pub(super) life: Option<Arc<Life>>,
    lease: Option<Arc<dyn Lease>>,
    /// It has left, and begins no other life.
    has_left: bool,
    pub(super) members: BTreeMap<NodeId, Link>,
    pub(super) origin: Origin<Standing>,
    receipts: HashMap<PushNumber, Receipt>,
    /// What receipts are to be told, in the order in which it was decided, and whether somebody is telling them.
    settling: VecDeque<(Receipt, Moved<Standing>)>,
    is_settling: bool,
    next: PushNumber,
    pub(super) owed: HashMap<NodeId, Owed<Standing>>,
    /// Pushes that came with their sessions from nodes that are gone, by whom they are owed to.
    pub(super) parts_owed: HashMap<NodeId, Owed<Standing, Name>>,
    /// Parts of this node's pushes that wait in the store, and until when.
    pub(super) overdue: BTreeSet<(Instant, Name)>,
    /// Pushes of all others that it answers for.
    pub(super) owing: usize,
    /// Those that were members lately: pushes do not reach them.
    pub(super) absent: Absent,
    pub(super) calls: CallsOfNode,
}

/// The way to one member.
pub(super) struct Link {
    pub(super) out: Outgoing<Queued>,
    pub(super) wake: Arc<Notify>,
    /// The revision of its lease that was seen last.
    revision: Revision,
    /// It is not in the list any more.
    pub(super) is_missing: bool,
    /// Since when it has answered nothing.
    pub(super) silent_since: Option<Instant>,
    /// What digests asked for last: of pushes, and of parts.
    digested: (Option<PushNumber>, Option<Name>),
    /// The first push that went there.
    first: PushNumber,
    whose: Whose,
    /// It has said so.
    pub(super) leaves: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) item: Item,
    pub(super) since: Instant,
}

impl Queued {
    pub(super) fn now(item: Item) -> Self {
        Self { item, since: Instant::now() }
    }
}

/// Why a server did not join.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The engine does not work now. It can be tried again.
    #[error(transparent)]
    Engine(#[from] EngineDown),
    /// The server belongs to a cluster already.
    #[error("the server belongs to a cluster already")]
    Joined,
    /// The server was shut down.
    #[error("the server was shut down")]
    ShutDown,
    /// A node needs tasks of its own.
    #[error("there is no tokio runtime on this thread")]
    NoRuntime,
}

impl Node {
    /// Joins: from here on it takes mail, and pushes go to all members.
    pub(crate) async fn join(
        options: Cluster,
        sessions: &Arc<Registry>,
        home: Weak<dyn Home>,
    ) -> Result<Arc<Self>, JoinError> {
        let Ok(runtime) = Handle::try_current() else { return Err(JoinError::NoRuntime) };
        let engine = Arc::clone(&options.engine);
        let node = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            engine,
            options,
            sessions: Arc::downgrade(sessions),
            home,
            joined: Instant::now(),
            process: rand::random::<u64>().max(1),
            moves: Arc::new(Moves::new()),
            counted: Mutex::default(),
            kicks: Mutex::default(),
            counting: tokio::sync::Mutex::default(),
            state: Mutex::new(State {
                life: None,
                lease: None,
                has_left: false,
                members: BTreeMap::new(),
                origin: Origin::new(),
                receipts: HashMap::new(),
                settling: VecDeque::new(),
                is_settling: false,
                next: 1,
                owed: HashMap::new(),
                parts_owed: HashMap::new(),
                overdue: BTreeSet::new(),
                owing: 0,
                absent: Absent::default(),
                calls: CallsOfNode::new(),
            }),
            said: Notify::new(),
            renews: Arc::default(),
            offers: Mutex::default(),
            stop: watch::Sender::new(false),
            runtime,
            topics: Arc::new(TopicsOfNode::new()),
            told: Told::default(),
        });
        node.begin_life().await?;
        tokio::spawn(keep_lease(Arc::downgrade(&node), Arc::clone(&node.renews), node.stop.subscribe()));
        tokio::spawn(watch_members(Arc::downgrade(&node), node.engine.members(), node.stop.subscribe()));
        let (mail, register) = (node.engine.mail_state(), node.engine.register_state());
        tokio::spawn(keep_topics(Arc::downgrade(&node), mail, register, node.stop.subscribe()));
        tokio::spawn(watch_mail(Arc::downgrade(&node), node.engine.mail_state(), node.stop.subscribe()));
        tokio::spawn(moves::keep_records(Arc::downgrade(&node), node.stop.subscribe()));
        // A member that does not answer now is asked again before a session comes here.
        node.is_counted(Instant::now() + COUNTED_MAX).await;
        Ok(node)
    }

    /// Sessions that have begun before the server joined have no records yet.
    pub(crate) fn note_all(&self) {
        if let Some(sessions) = self.registry() {
            sessions.resumable().into_iter().for_each(|id| self.moves.note(id));
        }
    }

    pub(super) fn lease(&self) -> Duration {
        self.options.lease
    }

    /// Itself; `None`: it is being dropped.
    pub(super) fn this(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// The number of its last push.
    pub(super) fn last_push(&self) -> PushNumber {
        self.state.lock().next - 1
    }

    /// Told when the node leaves.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The number of the last push before those that go to this member too. `None`: it is none.
    pub(super) fn counts_since(&self, node: NodeId) -> Option<PushNumber> {
        self.state.lock().members.get(&node).map(|link| link.first - 1)
    }

    /// The revision of a member's lease that was seen last.
    pub(super) fn last_revision(&self, node: NodeId) -> Option<Revision> {
        self.state.lock().members.get(&node).map(|link| link.revision)
    }

    /// Offers a push that follows a session to the node where that is. False: there is no room.
    pub(super) fn offer_late(&self, to: NodeId, number: PushNumber, id: SessionId, entry: Bytes) -> bool {
        let size = entry.len() + ITEM_BYTES;
        if self.batch_bytes_max() < size + BATCH_OVERHEAD {
            return false;
        }
        let mut state = self.state.lock();
        let Some(link) = state.members.get_mut(&to) else { return false };
        let is_taken = link.out.offer(Queued::now(Item::Late(number, id, entry)), size).is_ok();
        link.wake.notify_one();
        is_taken
    }

    /// This node answers another one for a push from here on. Returns how it stands.
    pub(super) fn owe(&self, to: NodeId, push: PushNumber, receipt: &Receipt) -> Standing {
        let mut state = self.state.lock();
        let (changes, outcomes) = receipt.standing();
        let standing = Standing { changes, counts: Counts::from(&outcomes) };
        state.owed.entry(to).or_insert_with(Owed::new).taken(push, standing);
        state.owing += 1;
        standing
    }

    /// As [`Self::owe`], of one that came after its session: those behind hear of it when that node is gone.
    pub(super) fn owe_late(&self, to: NodeId, push: PushNumber, receipt: &Receipt, behind: Vec<NodeId>) -> Standing {
        let standing = self.owe(to, push, receipt);
        if let Some(owed) = self.state.lock().owed.get_mut(&to) {
            owed.has_behind(push, behind);
        }
        standing
    }

    pub(super) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    pub(super) fn registry(&self) -> Option<Arc<Registry>> {
        self.sessions.upgrade()
    }

    /// Its number while it is a member.
    pub(crate) fn me(&self) -> Option<NodeId> {
        self.state.lock().life.as_ref().map(|life| life.me)
    }

    /// The other members, as far as it knows.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.members.iter().filter(|(_, link)| !link.is_missing).map(|(node, _)| *node).collect()
    }

    /// The other members, also those whose leases seem to have ended: until they are buried they may be at work.
    pub(super) fn members(&self) -> Vec<NodeId> {
        self.state.lock().members.keys().copied().collect()
    }

    /// What it says of itself at this moment.
    pub(super) fn card_now(&self) -> Card {
        let load = self.home.upgrade().map(|home| home.load()).unwrap_or_default();
        let up_ms = self.joined.elapsed().as_millis() as u64;
        let (address, also_at) = (self.options.address.clone(), self.options.also_at.clone());
        Card { version: 1, address, also_at, load, up_ms, process: self.process }
    }

    /// The others see at once what this node says of itself now.
    pub(super) fn show_card(&self) {
        self.renews.notify_one();
    }

    /// Where else a client of this node may go that stops: to other nodes that answer, and do not stop themselves.
    pub(crate) fn others_for_client(&self) -> Option<String> {
        let listed = Arc::clone(&self.engine.members().borrow());
        let here: Vec<NodeId> = {
            let state = self.state.lock();
            let is_there = |link: &Link| !link.is_missing && link.silent_since.is_none();
            state.members.iter().filter(|(_, link)| is_there(link)).map(|(node, _)| *node).collect()
        };
        let takers = here.into_iter().filter_map(|node| {
            let Card { address, also_at, load, up_ms, .. } = read_card(&listed.get(&node)?.card)?;
            let addresses = address.into_iter().chain(also_at).collect();
            (!load.is_draining).then_some(Taker { node, card: up_ms, sessions: load.sessions, addresses })
        });
        self.offers.lock().choose(takers.collect())
    }

    fn card(&self) -> Bytes {
        self.card_now().encode(SerializeType::MSGPACK).unwrap_or_default()
    }

    /// Takes mail first, and then a lease: a member that is seen answers.
    async fn begin_life(self: &Arc<Self>) -> Result<(), EngineDown> {
        let (me, began) = (NodeId::random(), Instant::now());
        let life = Arc::new(Life { me, incoming: Mutex::default(), is_over: AtomicBool::new(false) });
        let inbox: Arc<dyn Inbox> = Arc::new(Mailbox { node: Arc::downgrade(self), life: Arc::clone(&life) });
        self.engine.listen(me, inbox).await?;
        let lease = match self.engine.lease(me, self.card(), self.options.lease).await {
            Ok(lease) => lease,
            Err(down) => {
                self.engine.deafen(me).await;
                return Err(down);
            }
        };
        // A list that has this node has the others too.
        let mut members = self.engine.members();
        let listed = timeout(LISTED_MAX, members.wait_for(|members| members.contains_key(&me))).await;
        let is_listed = listed.is_ok_and(|listed| listed.is_ok());
        if !is_listed {
            self.engine.deafen(me).await;
            lease.release().await;
            return Err(EngineDown);
        }

        let too_late = {
            let mut state = self.state.lock();
            if !state.has_left {
                (state.life, state.lease) = (Some(life), Some(Arc::clone(&lease)));
                state.absent.begin(Instant::now());
            }
            state.has_left
        };
        if too_late {
            self.engine.deafen(me).await;
            lease.release().await;
            return Err(EngineDown);
        }
        self.moves.begins(me);
        tracing::info!(node = %me, "the server has joined its cluster");
        self.see();
        self.moves.renewed(began);
        self.moves.wake();
        Ok(())
    }

    /// The lease has ended: this life is over, and what it has begun elsewhere is unknown.
    async fn end_life(&self, why: UnreachedWhy) {
        let life = self.state.lock().life.clone();
        if let Some(life) = life {
            life.end();
        }
        let (life, lease) = {
            let mut state = self.state.lock();
            // Until the next life all are named that are remembered.
            state.absent.forget_old(Instant::now());
            let others: Vec<NodeId> = state.members.keys().copied().collect();
            let mut moved = Vec::new();
            for other in others {
                moved.extend(state.drop_member(other, why));
            }
            state.calls.end_here();
            state.owed.clear();
            state.parts_owed.clear();
            state.owing = 0;
            state.note(moved);
            (state.life.take(), state.lease.take())
        };
        self.settle();
        self.end_of_life();
        if let Some(life) = life {
            self.engine.deafen(life.me).await;
        }
        if let Some(lease) = lease {
            lease.release().await;
        }
    }

    /// Leaves: the others are told how their pushes ended, as far as they listen, and that it goes.
    pub(crate) async fn leave(&self) {
        self.say_last_words();
        let deadline = Instant::now() + LEAVE_MAX;
        loop {
            let said = self.said.notified();
            tokio::pin!(said);
            said.as_mut().enable();
            if self.state.lock().has_said_all() || timeout_at(deadline, said).await.is_err() {
                break;
            }
        }
        self.say_farewell().await;
        self.state.lock().has_left = true;
        self.stop.send_replace(true);
        self.end_life(UnreachedWhy::Left).await;
    }

    /// The members are those of the engine's list now.
    pub(super) fn see(self: &Arc<Self>) {
        let listed = self.engine.members();
        let mut new = Vec::new();
        let mut state = self.state.lock();
        // Under the lock: an older list does not follow a newer one.
        let members = Arc::clone(&listed.borrow());
        let Some(me) = state.life.as_ref().map(|life| life.me) else { return };
        let next = state.next;
        for (node, member) in members.iter().filter(|(node, _)| **node != me) {
            match state.members.get_mut(node) {
                Some(link) => (link.revision, link.is_missing) = (member.revision, false),
                None => {
                    let wake = Arc::new(Notify::new());
                    let (out, revision) = (Outgoing::new(), member.revision);
                    let whose = Whose::of(read_card(&member.card));
                    state.absent.came(*node, &whose);
                    let link = Link {
                        out,
                        wake: Arc::clone(&wake),
                        revision,
                        is_missing: false,
                        silent_since: None,
                        digested: (None, None),
                        first: next,
                        whose,
                        leaves: false,
                    };
                    state.members.insert(*node, link);
                    new.push((*node, wake));
                }
            }
        }
        for (node, link) in &mut state.members {
            link.is_missing |= !members.contains_key(node);
        }
        drop(state);
        for (node, wake) in new {
            tell!(self.told.joined, info, %node, "a node has joined the cluster");
            tokio::spawn(run_link(Arc::downgrade(self), node, wake, self.stop.subscribe()));
        }
    }

    /// Buries members whose leases have ended: a living one refuses.
    async fn bury_missing(&self) {
        let missing: Vec<(NodeId, Revision)> = {
            let state = self.state.lock();
            let missing = state.members.iter().filter(|(_, link)| link.is_missing);
            missing.map(|(node, link)| (*node, link.revision)).collect()
        };
        // All at once, so that its own lease does not wait for them.
        let mut burials = JoinSet::new();
        for (node, revision) in missing {
            let engine = Arc::clone(&self.engine);
            burials.spawn(async move { (node, engine.bury(node, revision).await) });
        }
        let until = Instant::now() + RENEW_EVERY;
        while let Ok(Some(Ok((node, buried)))) = timeout_at(until, burials.join_next()).await {
            match buried {
                Ok(()) => self.lose(node),
                // It is seen again, or asked again in a second.
                Err(BuryError::Alive | BuryError::Down) => {}
            }
        }
    }

    /// A member's life is over.
    fn lose(&self, node: NodeId) {
        let life = {
            let mut state = self.state.lock();
            let moved = state.drop_member(node, UnreachedWhy::NodeLost);
            state.note(moved);
            state.life.clone()
        };
        if let Some(life) = life {
            life.forget(node);
        }
        {
            let mut state = self.state.lock();
            state.calls.end_of(node);
            // It is no member any more.
            self.owe_behind(&mut state, node);
        }
        self.settle();
        self.moves.lost(Some(node));
        self.said.notify_waiters();
        tell!(self.told.left, info, %node, "a node has left the cluster");
    }

    /// Tells the receipts what was noted, in its order: one thread at a time, under no lock, as a receipt wakes tasks.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        if state.is_settling {
            return;
        }
        state.is_settling = true;
        while !state.settling.is_empty() {
            let noted = std::mem::take(&mut state.settling);
            drop(state);
            for (receipt, Moved { node, from, to, .. }) in noted {
                receipt.settle(node, &share(&from), &share(&to));
            }
            state = self.state.lock();
        }
        state.is_settling = false;
    }

    /// Most bytes of a batch: its answer has to fit too.
    pub(super) fn batch_bytes_max(&self) -> usize {
        (self.engine.limits().message_bytes_max / 2).min(BATCH_BYTES_MAX)
    }

    /// The next batch for a member, if there is something to say.
    fn next_batch(&self, node: NodeId) -> Option<(Number, Vec<Queued>)> {
        let most = self.batch_bytes_max();
        let mut state = self.state.lock();
        let State { members, owed, parts_owed, calls, .. } = &mut *state;
        let link = members.get_mut(&node)?;
        calls.say(node, &mut link.out, most);
        if let Some(owed) = parts_owed.get_mut(&node) {
            let states = owed.say(STATES_MAX);
            if !states.is_empty() {
                let bytes = states.len() * ITEM_BYTES;
                let queued = Queued::now(Item::Parts(states));
                if let Err(Queued { item: Item::Parts(states), .. }) = link.out.offer(queued, bytes) {
                    owed.all_unheard(&states);
                }
            }
        }
        if let Some(owed) = owed.get_mut(&node) {
            let states = owed.say(STATES_MAX);
            if !states.is_empty() {
                let bytes = states.len() * ITEM_BYTES;
                let queued = Queued::now(Item::States(states));
                if let Err(Queued { item: Item::States(states), .. }) = link.out.offer(queued, bytes) {
                    owed.all_unheard(&states);
                }
            }
        }
        link.out.begin(most)
    }

    /// Asks a member how this node's pushes stand there.
    fn ask_digest(&self, node: NodeId) {
        let relays = self.me().map(|me| self.moves.digest(node, me)).unwrap_or_default();
        let mut state = self.state.lock();
        let pushes = state.origin.digest(node);
        let parts = [state.origin.digest_parts(node), relays].concat();
        let State { members, calls, .. } = &mut *state;
        let Some(link) = members.get_mut(&node) else { return };
        calls.ask_digest(node, &mut link.out);
        for some in some_in_turn(parts, &mut link.digested.1).chunks(STATES_MAX) {
            let _ = link.out.offer(Queued::now(Item::PartsDigest(some.to_vec())), some.len() * ITEM_BYTES);
        }
        for some in some_in_turn(pushes, &mut link.digested.0).chunks(STATES_MAX) {
            let queued = Queued::now(Item::Digest(some.to_vec()));
            // What has no room now is asked for the next time.
            let _ = link.out.offer(queued, some.len() * ITEM_BYTES);
        }
    }

    /// Sends a batch, and again within its time.
    async fn send(&self, node: NodeId, number: Number, items: &[Queued]) -> Sent {
        let Some(me) = self.me() else { return Sent::Not(UnreachedWhy::Left) };
        let began = Instant::now();
        let (mut maybe, mut nobody_since) = (false, None);
        loop {
            let waited = |since: Instant| since.elapsed().as_millis() as u64;
            let dated: Vec<Item> = items
                .iter()
                .map(|queued| match &queued.item {
                    Item::Push(push, _, carried) => Item::Push(*push, waited(queued.since), carried.clone()),
                    Item::Call(call, _, carried) => Item::Call(*call, waited(queued.since), carried.clone()),
                    Item::Late(number, id, entry) => Item::Late(*number, *id, moves::aged(entry, queued.since)),
                    other => other.clone(),
                })
                .collect();
            let bytes = mail::write_batch(me, number, &dated);
            let why = match self.engine.ask(node, bytes, ASK_MAX).await {
                Ok(answer) => match mail::read_answers(answer).filter(|answers| answers.len() == items.len()) {
                    Some(answers) => return Sent::Answered(answers),
                    None => return Sent::Perhaps(UnreachedWhy::Refused),
                },
                Err(AskError::TooLarge) => return Sent::Not(UnreachedWhy::TooLarge),
                Err(AskError::Down) => return Sent::Perhaps(UnreachedWhy::EngineDown),
                // It comes back under another name, if at all.
                Err(AskError::NoNode) if self.leaves(node) => {
                    let why = UnreachedWhy::Left;
                    return if maybe { Sent::Perhaps(why) } else { Sent::Not(why) };
                }
                Err(AskError::NoNode) => {
                    let since = *nobody_since.get_or_insert_with(Instant::now);
                    if NOBODY_MAX <= since.elapsed() {
                        let why = UnreachedWhy::NodeLost;
                        return if maybe { Sent::Perhaps(why) } else { Sent::Not(why) };
                    }
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(_) => {
                    (maybe, nobody_since) = (true, None);
                    UnreachedWhy::TimedOut
                }
            };
            if BATCH_MAX <= began.elapsed() {
                return Sent::Perhaps(why);
            }
        }
    }

    /// A batch of this link was answered.
    fn answered(&self, node: NodeId, wake: &Arc<Notify>, number: Number, answers: Vec<Answer>) {
        let (mut moved, mut late, mut relayed) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut state = self.state.lock();
            let State { members, origin, owed, parts_owed, owing, calls, .. } = &mut *state;
            let Some(link) = members.get_mut(&node).filter(|link| Arc::ptr_eq(&link.wake, wake)) else { return };
            let Some(items) = link.out.answered(number) else { return };
            link.silent_since = None;
            for (queued, answer) in items.into_iter().zip(answers) {
                match (queued.item, answer) {
                    (Item::Push(push, ..), Answer::Routed(standing)) => moved.extend(origin.told(push, node, standing)),
                    (Item::Push(push, ..), Answer::Left) => {
                        moved.extend(origin.not_sent(push, node, UnreachedWhy::Left))
                    }
                    (Item::Push(push, ..), _) => moved.extend(origin.not_sent(push, node, UnreachedWhy::Refused)),
                    (Item::States(states), answer) => {
                        let Some(owed) = owed.get_mut(&node) else { continue };
                        *owing = owing.saturating_sub(owed.answered(&states, !matches!(answer, Answer::NotHeard)));
                    }
                    (Item::Parts(states), answer) => {
                        let Some(owed) = parts_owed.get_mut(&node) else { continue };
                        *owing = owing.saturating_sub(owed.answered(&states, !matches!(answer, Answer::NotHeard)));
                    }
                    (Item::PartsDigest(names), Answer::Known(states)) => {
                        for (name, state) in names.into_iter().zip(states) {
                            match origin.has_part(name) {
                                true => moved.extend(origin.part_digested(name, node, state)),
                                false => relayed.push((name, state)),
                            }
                        }
                    }
                    (Item::Digest(pushes), Answer::Known(states)) => {
                        for (push, state) in pushes.into_iter().zip(states) {
                            moved.extend(origin.digested(push, node, state));
                        }
                    }
                    (Item::Late(number, ..), Answer::Routed(standing)) => late.push((number, standing)),
                    (Item::Late(number, ..), _) => late.push((number, Standing::NOWHERE)),
                    (item @ (Item::Call(..) | Item::Outcome(..) | Item::CallsOut(_)), answer) => {
                        calls.answered(node, item, answer);
                    }
                    (Item::Digest(_) | Item::PartsDigest(_) | Item::Left(_) | Item::Cancel(_) | Item::Other, _) => {}
                }
            }
            state.note(moved);
        }
        self.settle();
        late.iter().for_each(|(number, standing)| self.moves.told(*number, node, standing));
        for (name, standing) in relayed {
            let own = Some(name.1).filter(|number| Self::is_relay(*number) && self.me() == Some(name.0));
            if let Some(number) = own.or_else(|| self.moves.alias(name)) {
                self.moves.digested(number, node, standing.as_ref());
            }
        }
        self.said.notify_waiters();
    }

    /// A batch of this link was not answered. What waits behind it fails too: it would only wait as long.
    fn failed(&self, node: NodeId, wake: &Arc<Notify>, why: UnreachedWhy, maybe: bool) {
        let (mut moved, mut late, mut again, mut is_lost) = (Vec::new(), Vec::new(), Vec::new(), false);
        {
            let mut state = self.state.lock();
            let State { members, origin, owed, parts_owed, calls, .. } = &mut *state;
            let Some(link) = members.get_mut(&node).filter(|link| Arc::ptr_eq(&link.wake, wake)) else { return };
            if why != UnreachedWhy::TooLarge {
                link.silent_since.get_or_insert_with(Instant::now);
            }
            let given_up = link.out.give_up().into_iter().map(|queued| (queued, maybe));
            let waits =
                |entry: &Bytes, since: Instant| since.elapsed() < moves::WAITED_MAX && !moves::is_over(entry, since);
            let alone = why == UnreachedWhy::TooLarge || why == UnreachedWhy::Refused;
            let waiting = if alone { Vec::new() } else { link.out.take_waiting() };
            for (queued, maybe) in given_up.chain(waiting.into_iter().map(|queued| (queued, false))) {
                match queued.item {
                    Item::Push(push, ..) if maybe => moved.extend(origin.gave_up(push, node, why)),
                    Item::Push(push, ..) => moved.extend(origin.not_sent(push, node, why)),
                    Item::States(states) => _ = owed.get_mut(&node).map(|owed| owed.all_unheard(&states)),
                    Item::Parts(states) => _ = parts_owed.get_mut(&node).map(|owed| owed.all_unheard(&states)),
                    // Its session lives: what was not sent waits for its node, in its order and before what is offered from now on.
                    Item::Late(_, _, ref entry) if !maybe && !alone && waits(entry, queued.since) => {
                        let size = entry.len() + ITEM_BYTES;
                        late.extend(link.out.offer(queued, size).err().map(|queued| (queued, false)));
                    }
                    Item::Late(..) => late.push((queued, maybe)),
                    item @ (Item::Call(..) | Item::Outcome(..)) => calls.failed(node, item, why, maybe),
                    // A last word is said again as long as there is time.
                    item @ Item::Left(_) => again.push(item),
                    Item::Digest(_) | Item::PartsDigest(_) | Item::Cancel(_) | Item::CallsOut(_) | Item::Other => {}
                }
            }
            for item in again {
                let _ = link.out.offer(Queued::now(item), ITEM_BYTES);
            }
            // Without mail for a moment only, they go on.
            if !alone && why != UnreachedWhy::EngineDown {
                calls.lost(node, why);
            }
            is_lost |= link.silent_since.is_some_and(|since| SILENCE_MAX <= since.elapsed());
            if is_lost {
                moved.extend(origin.lost(node, UnreachedWhy::TimedOut));
            }
            state.note(moved);
        }
        self.settle();
        for (queued, maybe) in late {
            self.late_failed(node, queued, maybe);
        }
        if is_lost {
            self.moves.lost(Some(node));
        }
    }

    /// A push that follows a session was not answered, and waits no more.
    fn late_failed(&self, node: NodeId, queued: Queued, maybe: bool) {
        let Item::Late(number, _, entry) = queued.item else { return };
        if maybe {
            return self.moves.forget(number);
        }
        let is_expired = moves::is_over(&entry, queued.since);
        self.moves.told(number, node, &if is_expired { Standing::expired() } else { Standing::NOWHERE });
    }

    /// Runs a batch of another node, once, or answers its question. `None`: nobody waits for an answer, or it is none.
    async fn take(self: Arc<Self>, life: Arc<Life>, bytes: Bytes) -> Option<Bytes> {
        match mail::read_batch(bytes.clone()) {
            Some((from, number, items)) => self.take_batch(&life, from, number, items),
            None => match self.answer_move(bytes.clone()) {
                Some(answer) => Some(answer),
                None => ask::answer(&self, bytes).await,
            },
        }
    }

    fn take_batch(self: &Arc<Self>, life: &Life, from: NodeId, number: Number, items: Vec<Item>) -> Option<Bytes> {
        // One that has just joined is in the engine's list, or will be when it asks again.
        let is_member = || {
            let is_known = self.state.lock().members.contains_key(&from);
            is_known || self.engine.members().borrow().contains_key(&from)
        };
        if !is_member() {
            return None;
        }
        let incoming = {
            let mut all = life.incoming.lock();
            Arc::clone(all.entry(from).or_insert_with(|| Arc::new(Mutex::new(Incoming::new()))))
        };
        let mut incoming = incoming.lock();
        // Looked at again: what it has run may be forgotten since.
        if life.is_over.load(Ordering::SeqCst) || !is_member() {
            return None;
        }
        match incoming.arrive(number) {
            Arrival::Old => None,
            Arrival::Repeat(answer) => Some(answer),
            Arrival::Run { confirms, breaks } => {
                self.settle_last(from, confirms, breaks);
                let answers: Vec<Answer> = items.into_iter().map(|item| self.run(from, item)).collect();
                let answer = mail::write_answers(&answers);
                incoming.done(number, answer.clone());
                Some(answer)
            }
        }
    }

    /// What became of the last answer to this node.
    fn settle_last(&self, from: NodeId, confirms: bool, breaks: bool) {
        let mut state = self.state.lock();
        let State { owed, owing, members, .. } = &mut *state;
        let Some(owed) = owed.get_mut(&from) else { return };
        if confirms {
            let before = owed.len();
            owed.confirmed();
            *owing = owing.saturating_sub(before - owed.len());
        }
        if breaks {
            owed.broken();
            if let Some(link) = members.get(&from) {
                link.wake.notify_one();
            }
        }
    }

    fn run(self: &Arc<Self>, from: NodeId, item: Item) -> Answer {
        match item {
            Item::Push(push, waited, carried) => {
                self.run_push(from, push, Duration::from_millis(waited), carried).unwrap_or(Answer::Refused)
            }
            Item::States(states) => {
                let (relays, states): (Vec<_>, Vec<_>) =
                    states.into_iter().partition(|(push, _)| Self::is_relay(*push));
                {
                    let mut state = self.state.lock();
                    let State { origin, .. } = &mut *state;
                    let told = states.into_iter().filter_map(|(push, standing)| origin.told(push, from, standing));
                    let moved: Vec<_> = told.collect();
                    state.note(moved);
                }
                self.settle();
                // Its last words say more than what would be passed on now.
                if !relays.is_empty() && self.moves.has_said_last() {
                    return Answer::NotHeard;
                }
                relays.iter().for_each(|(number, standing)| self.moves.told(*number, from, standing));
                Answer::Heard
            }
            Item::Digest(pushes) => {
                let mut state = self.state.lock();
                let owed = state.owed.entry(from).or_insert_with(Owed::new);
                match owed.have_gone(pushes.iter()) {
                    true => Answer::NotHeard,
                    false => Answer::Known(pushes.into_iter().map(|push| owed.asked(push)).collect()),
                }
            }
            Item::Call(call, waited, carried) => {
                self.run_call(from, call, Duration::from_millis(waited), carried).unwrap_or(Answer::Refused)
            }
            Item::Cancel(call) => {
                self.state.lock().calls.cancelled(from, call);
                Answer::Heard
            }
            Item::Outcome(call, outcome) => {
                self.state.lock().calls.told(from, call, outcome);
                Answer::Heard
            }
            Item::CallsOut(calls) => Answer::CallsKnown(self.state.lock().calls.known(from, &calls)),
            Item::Parts(states) => self.hear_parts(from, states),
            Item::PartsDigest(names) => self.know_parts(from, names),
            Item::Left(words) => self.hear_last_words(from, words),
            Item::Late(number, id, entry) => self.run_late(from, number, id, entry),
            Item::Other => Answer::Unsupported,
        }
    }

    /// Pushes to sessions here what another node has sent.
    fn run_push(self: &Arc<Self>, from: NodeId, push: PushNumber, waited: Duration, carried: Bytes) -> Option<Answer> {
        let sessions = self.sessions.upgrade()?;
        if sessions.have_ended() {
            return Some(Answer::Left);
        }
        if self.options.pushes_max <= self.state.lock().owing {
            return None;
        }
        if self.moves.have_moved() && moves::WAITED_MAX < waited {
            return None;
        }
        let (to, to_push) = mail::read_push(carried)?.open(waited, sessions.limits())?;
        let node = Arc::downgrade(self);
        let receipt = sessions.watched(&to_push, move |changes, outcomes| {
            if let Some(node) = node.upgrade() {
                node.changed(from, push, changes, outcomes);
            }
        });
        receipt.addressed(from, push);
        let _stay = sessions.gate.stay();
        self.moves.saw(from, push);
        if !sessions.push_carried(&to, &to_push, &receipt, (from, push)) {
            return sessions.have_ended().then_some(Answer::Left);
        }
        self.push_after_moved(&to, &to_push, &receipt, from, push);
        Some(Answer::Routed(self.owe(from, push, &receipt)))
    }

    /// A push of another node stands elsewhere now.
    pub(super) fn changed(&self, origin: NodeId, push: PushNumber, changes: u64, outcomes: &Outcomes) {
        let mut state = self.state.lock();
        let State { owed, members, .. } = &mut *state;
        let standing = Standing { changes, counts: Counts::from(outcomes) };
        let is_due = owed.get_mut(&origin).is_some_and(|owed| owed.changed(push, standing));
        if is_due {
            members.get(&origin).into_iter().for_each(|link| link.wake.notify_one());
        } else if Self::is_relay(push) && Self::part_changed(&mut state, (origin, push), standing) {
            drop(state);
            self.settle();
        }
    }
}

impl State {
    /// Nothing is to be said to others, and nothing is under way.
    fn has_said_all(&self) -> bool {
        let is_owed = |node: &NodeId| {
            let is_due = self.owed.get(node).is_some_and(Owed::is_due);
            is_due || self.calls.is_due(*node) || self.parts_owed.get(node).is_some_and(Owed::is_due)
        };
        self.members.iter().all(|(node, link)| link.is_missing || (!is_owed(node) && link.out.is_idle()))
    }

    pub(super) fn counts(&self) -> ClusterStats {
        ClusterStats { pushes_out: self.receipts.len(), pushes_here: self.owing, ..ClusterStats::default() }
    }

    /// The node's name while it is a member.
    pub(super) fn me(&self) -> Option<NodeId> {
        self.life.as_ref().map(|life| life.me)
    }

    /// Receipts are to be told of this: [`Node::settle`] does it, after the lock.
    pub(super) fn note(&mut self, moved: Vec<Moved<Standing>>) {
        for moved in moved {
            let receipt = match moved.is_last {
                true => self.receipts.remove(&moved.push),
                false => self.receipts.get(&moved.push).cloned(),
            };
            self.settling.extend(receipt.map(|receipt| (receipt, moved)));
        }
    }

    /// A member is none any more.
    fn drop_member(&mut self, node: NodeId, why: UnreachedWhy) -> Vec<Moved<Standing>> {
        let Some(mut link) = self.members.remove(&node) else { return Vec::new() };
        // Its task finds itself without a link.
        link.wake.notify_one();
        // What was not told before its farewell is not told any more.
        let of_pushes = if link.leaves { UnreachedWhy::Left } else { why };
        // One that runs in its place, or under another name, has joined before this lease has ended.
        let is_replaced = self.members.values().any(|other| other.whose.is_after(&link.whose));
        if !link.leaves && !is_replaced {
            self.absent.gone(node, std::mem::take(&mut link.whose), Instant::now());
        }
        let mut moved = Vec::new();
        for queued in link.out.take_waiting() {
            match queued.item {
                Item::Push(push, ..) => moved.extend(self.origin.not_sent(push, node, of_pushes)),
                item @ Item::Call(..) => self.calls.failed(node, item, why, false),
                _ => {}
            }
        }
        self.calls.lost_all(node, why);
        moved.extend(self.origin.lost(node, of_pushes));
        moved
    }
}

/// A few of these, each time others in turn: those behind the last one of the time before.
fn some_in_turn<T: Copy + Ord>(mut all: Vec<T>, last: &mut Option<T>) -> Vec<T> {
    if all.is_empty() {
        return all;
    }
    all.sort_unstable();
    let at = all.partition_point(|one| Some(*one) <= *last) % all.len();
    all.rotate_left(at);
    all.truncate(STATES_MAX * 8);
    *last = all.last().copied();
    all
}

/// What the receipt has of a node that stands so.
fn share(at: &At<Standing>) -> Share {
    match at {
        At::Asked => Share { is_routing: true, ..Share::default() },
        At::Doubtful(why) => Share { is_routing: true, unreached: Some((*why, true)), ..Share::default() },
        At::Told(standing) => Share { counts: standing.counts, ..Share::default() },
        At::Unreached { why, maybe } => Share { unreached: Some((*why, *maybe)), ..Share::default() },
        At::Gone { rest, parts } => {
            let mut counts = rest.counts;
            for part in parts.values() {
                counts.0.iter_mut().zip(part.state.counts.0).for_each(|(count, more)| *count += more);
            }
            Share { counts, ..Share::default() }
        }
    }
}

enum Sent {
    Answered(Vec<Answer>),
    /// Nobody has got it.
    Not(UnreachedWhy),
    Perhaps(UnreachedWhy),
}

impl Elsewhere for Node {
    fn route(&self, carried: &Carried, receipt: &Receipt) -> Option<PushNumber> {
        let is_here = |sessions: Arc<Registry>| carried.session().is_some_and(|id| sessions.session(id).is_some());
        if self.sessions.upgrade().is_some_and(is_here) {
            return None;
        }
        let bytes = mail::write_push(carried);
        let size = bytes.len() + ITEM_BYTES;
        let is_up = self.engine.mail_state().borrow().is_up();
        let fails = if !is_up {
            Some(UnreachedWhy::EngineDown)
        } else if self.batch_bytes_max() < size + BATCH_OVERHEAD {
            Some(UnreachedWhy::TooLarge)
        } else {
            None
        };

        let mut moved = Vec::new();
        let mut state = self.state.lock();
        let State { members, origin, receipts, next, absent, life, .. } = &mut *state;
        for (node, why) in absent.unreached(life.is_some(), Instant::now()) {
            receipt.settle(node, &Share::default(), &share(&At::Unreached { why, maybe: false }));
        }
        let fails = fails.or((self.options.pushes_max <= receipts.len()).then_some(UnreachedWhy::Full));
        // One that leaves has no sessions any more.
        if members.values().all(|link| link.leaves) {
            return None;
        }
        let (number, since) = (*next, Instant::now());
        *next += 1;
        origin.push(number, members.iter().filter(|(_, link)| !link.leaves).map(|(node, _)| *node));
        receipts.insert(number, receipt.clone());
        if let Some(life) = life {
            receipt.addressed(life.me, number);
        }
        // Before anybody is woken: the receipt counts them as routing.
        for (node, link) in members.iter_mut().filter(|(_, link)| !link.leaves) {
            receipt.settle(*node, &Share::default(), &share(&At::Asked));
            let why = fails.or_else(|| {
                let queued = Queued { item: Item::Push(number, 0, bytes.clone()), since };
                link.out.offer(queued, size).err().map(|_| UnreachedWhy::Full)
            });
            match why {
                Some(why) => moved.extend(origin.not_sent(number, *node, why)),
                None => link.wake.notify_one(),
            }
        }
        // Nobody else knows of this push, as nobody has had the lock since.
        for Moved { node, from, to, is_last, .. } in moved {
            receipt.settle(node, &share(&from), &share(&to));
            if is_last {
                state.receipts.remove(&number);
            }
        }
        Some(number)
    }

    fn note(&self, id: SessionId) {
        self.moves.note(id);
    }

    fn bring(&self, connection: &Connection, hello: &Metadata) -> Option<BoxFuture<Result<(), Duration>>> {
        self.bring_for(connection, hello)
    }

    fn push_after(&self, to: &Destination, push: &Push, receipt: &Receipt, number: u64) {
        if let Some(me) = self.me() {
            self.push_after_moved(to, push, receipt, me, number);
        }
    }

    fn has_left(&self) -> bool {
        self.moves.have_left()
    }

    fn taken(&self, origin: NodeId, number: u64) -> Vec<SessionId> {
        self.moves.taken_of(origin, number)
    }
}

/// Its mailbox, as the engine has it: for one life.
struct Mailbox {
    node: Weak<Node>,
    life: Arc<Life>,
}

impl Inbox for Mailbox {
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>> {
        let (node, life) = (self.node.upgrade(), Arc::clone(&self.life));
        Box::pin(async move { node?.take(life, bytes).await })
    }
}

/// Ends when the node does.
pub(super) async fn until_stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopped| *stopped).await;
}

/// Renews the lease, and buries those whose leases have ended.
async fn keep_lease(node: Weak<Node>, renews: Arc<Notify>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = until_stopped(&mut stop) => return,
            () = sleep(RENEW_EVERY) => {}
            () = renews.notified() => {}
        }
        let Some(node) = node.upgrade() else { return };
        node.end_overdue();
        let (lease, began) = (node.state.lock().lease.clone(), Instant::now());
        let renewed = match lease {
            Some(lease) => timeout(node.options.lease, lease.renew(node.card())).await.unwrap_or(Err(RenewError::Down)),
            None => Err(RenewError::Lapsed),
        };
        match renewed {
            // Only one that could renew its own lease judges others.
            Ok(()) => {
                node.moves.renewed(began);
                node.bury_missing().await;
            }
            Err(RenewError::Down) => node.moves.not_renewed(),
            Err(RenewError::Lapsed) => {
                tell!(
                    node.told.lapsed,
                    warn,
                    "the lease of this node has ended: it begins another life in its cluster"
                );
                node.end_life(UnreachedWhy::Left).await;
                if *stop.borrow() {
                    return;
                }
                // Without an engine it is tried again in a second.
                let _ = node.begin_life().await;
            }
        }
    }
}

async fn watch_members(node: Weak<Node>, mut members: watch::Receiver<Arc<Members>>, mut stop: watch::Receiver<bool>) {
    loop {
        members.mark_unchanged();
        match node.upgrade() {
            Some(node) => node.see(),
            None => return,
        }
        tokio::select! {
            () = until_stopped(&mut stop) => return,
            changed = members.changed() => if changed.is_err() { return },
        }
    }
}

/// Calls do not wait for mail that stays away.
async fn watch_mail(node: Weak<Node>, mut mail: watch::Receiver<EngineState>, mut stop: watch::Receiver<bool>) {
    loop {
        let is_down = !mail.borrow_and_update().is_up();
        if is_down && timeout(NOBODY_MAX, mail.wait_for(|state| state.is_up())).await.is_err() {
            let Some(node) = node.upgrade() else { return };
            let mut state = node.state.lock();
            let others: Vec<NodeId> = state.members.keys().copied().collect();
            others.into_iter().for_each(|other| state.calls.lost(other, UnreachedWhy::EngineDown));
        }
        tokio::select! {
            () = until_stopped(&mut stop) => return,
            changed = mail.changed() => if changed.is_err() { return },
        }
    }
}

/// Sends what waits for one member, a batch at a time, as long as it is one.
async fn run_link(node: Weak<Node>, to: NodeId, wake: Arc<Notify>, mut stop: watch::Receiver<bool>) {
    let mut digest_at = Instant::now() + DIGEST_EVERY;
    loop {
        let batch = {
            let Some(node) = node.upgrade() else { return };
            {
                let state = node.state.lock();
                if !state.members.get(&to).is_some_and(|link| Arc::ptr_eq(&link.wake, &wake)) {
                    return;
                }
                if state.calls.has_out(to) {
                    digest_at = digest_at.min(Instant::now() + CALLS_DIGEST_EVERY);
                }
            }
            if digest_at <= Instant::now() {
                digest_at = Instant::now() + DIGEST_EVERY;
                node.ask_digest(to);
            }
            node.next_batch(to)
        };
        let Some((number, items)) = batch else {
            tokio::select! {
                () = until_stopped(&mut stop) => return,
                () = wake.notified() => {}
                () = tokio::time::sleep_until(digest_at) => {}
            }
            continue;
        };

        let Some(node) = node.upgrade() else { return };
        let failed = match node.send(to, number, &items).await {
            Sent::Answered(answers) => {
                node.answered(to, &wake, number, answers);
                false
            }
            Sent::Not(why) => {
                node.failed(to, &wake, why, false);
                why != UnreachedWhy::TooLarge
            }
            Sent::Perhaps(why) => {
                node.failed(to, &wake, why, true);
                // The next batch asks what became of it.
                digest_at = Instant::now();
                true
            }
        };
        drop(node);
        if failed {
            sleep(PAUSE).await;
        }
    }
}
