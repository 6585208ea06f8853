//! The sessions of a node in the register; those that leave it, and those that came lately.
//!
//! ```text
//!  a session begins ──► its record is written (behind: nobody waits for it)
//!  Give of another node ──► frozen, its image goes out ──┬─ the record has moved ─► gone: relays, a note for 30 s
//!                                                        └─ own compare-and-set ──► it stays
//! ```
//!
//! - A *relay* is the ticket of a push whose session went on elsewhere. The node that has the session says how the push
//!   stands, as it does of a push of another node; so the receipt tells the truth without knowing of the move.
//! - Each push reaches the nodes one by one, and each node sees the pushes of another one by growing numbers. The node that
//!   takes a session in says up to which number it has seen those of each node before: its *cuts*. What comes to it later
//!   it gives to the session itself. What it has seen already is the former owner's to give: that has it in the image, or
//!   sends it after the session, and leaves everything behind the cuts alone. So a push comes neither twice nor not at all,
//!   however late it is at one of them, and whatever the clocks say: `cuts.rs` has it whole.
//! - Where a session went, and its cuts, are known for 30 s: no push is under way for longer.
//!
//! The lock here is taken before that of the node, and may be taken under that of a session. Nothing of the registry is called
//! under it.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    iter,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways_proto::SerializeType;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    claim::{Admission, Given, Keep, Keeping, Record, Wrote},
    cuts::{Cuts, Passed, Passing},
    engine::{ClaimError, NodeId, Revision},
    mail::{Answer, Standing},
    node::Node,
    owned::{AllOwned, OwnedHere, Owning},
    record::{RENEW_AFTER, Written},
    remote::{Name, PushNumber},
    snapshot,
};
use crate::{
    codec::{Encode, Payload},
    session::{
        Address, Counts, Departed, Destination, EntryImage, Known, Push, Receipt, Registry, Relay, SessionId,
        SessionImage, Watcher,
    },
};

/// For how long it is known where a session went: none is on its way between two nodes for longer.
pub(super) const LATELY: Duration = Duration::from_secs(30);
/// A push that waited for longer on its way here is refused while sessions have moved lately: one may be forgotten already.
pub(super) const WAITED_MAX: Duration = Duration::from_secs(20);
/// How long a session stays frozen before its owner asks the register whether it has moved.
const FROZEN_MAX: Duration = Duration::from_secs(1);
/// Records that are written side by side, and sessions that are brought here side by side.
const SIDE_BY_SIDE: usize = 64;
/// After how long what the register did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// See [`wait_until`].
const LOOK: Duration = Duration::from_millis(20);
/// How long one question about a move may take.
pub(super) const ASK_MAX: Duration = Duration::from_secs(1);
/// How long a node that took a session may take until it has it.
const TAKEN_MAX: Duration = Duration::from_secs(10);
/// Most lives of this node whose names it knows again in a record. More do not end while a record is kept.
const LIVES_MAX: usize = 1024;
/// After how long the node to which a session went knows of its pushes, if it ever does.
const KNOWN_AFTER: Duration = Duration::from_secs(10);
/// Numbers of relays are of another kind than those of pushes.
const RELAY: PushNumber = 1 << 63;

/// See the module.
pub(super) struct Moves {
    state: Mutex<State>,
    /// Records wait to be written.
    due: Notify,
    /// Sessions that left lately: while there are none, pushes ask nothing here.
    left: AtomicUsize,
    /// Those, and the ones that came lately.
    moved: AtomicUsize,
    /// Sessions that have gone on elsewhere.
    departed: AtomicUsize,
    /// Those that go at this moment: the registry may have one of them no more, and what follows its pushes is not noted yet.
    departing: AtomicUsize,
    pub(super) places: Semaphore,
}

struct State {
    /// The names of this node's lives, the last one at the end.
    lives: VecDeque<NodeId>,
    owned: AllOwned,
    due: BTreeSet<SessionId>,
    /// When what the register did not take is tried again.
    later: BTreeSet<(Instant, SessionId)>,
    /// Sessions that are being brought here.
    claiming: HashSet<SessionId>,
    /// The server stops, and no session is brought here any more.
    brings_no_more: bool,
    /// Those that left or came lately, and what is known of a session that has left.
    passing: Passing<Instant, Known>,
    relays: HashMap<PushNumber, Following>,
    /// Other names of theirs: of those whose sessions have gone on again.
    aliases: HashMap<Name, PushNumber>,
    /// The node has said its last words.
    has_said_last: bool,
    next: PushNumber,
    /// When the lease was surely renewed last, and since when that never failed.
    renewed: Option<Instant>,
    sound_since: Option<Instant>,
    /// When a lease of this node has ended last.
    lapsed: Option<Instant>,
}

/// See [`Moves::departing`].
struct Departing<'a>(&'a Moves);

impl Drop for Departing<'_> {
    fn drop(&mut self) {
        self.0.departing.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Looks again and again until this holds, so long at most.
pub(super) async fn wait_until(most: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + most;
    while !holds() && Instant::now() < deadline {
        sleep(LOOK).await;
    }
}

/// A session that was given away, as it goes.
pub(super) struct Parcel {
    parts: Vec<Bytes>,
    /// Of its pushes whose ends are open.
    numbers: Vec<PushNumber>,
}

/// A push of a session that was given to this node.
pub(super) struct Following {
    /// `None`: the session is in the store.
    pub(super) node: Option<NodeId>,
    /// Since when it is known that the session went there. Until then, the node that speaks of it has it.
    settled: Option<Instant>,
    /// The name under which another node hears of it.
    pub(super) debt: Option<Name>,
    /// What the node that has the session calls it, if it has gone on from the one that it went to.
    alias: Option<Name>,
    /// Until when it waits in the store.
    pub(super) until: Option<Instant>,
    pub(super) changes: u64,
    said: Option<Counts>,
    pub(super) relay: Option<Relay>,
}

/// What nodes ask each other when sessions move.
#[derive(Deserialize, Serialize)]
pub(super) struct Question {
    pub(super) moving: Asked,
}

#[derive(Deserialize, Serialize)]
pub(super) enum Asked {
    Give {
        id: SessionId,
        hash: [u8; 32],
        attempt: Option<u64>,
        by: u64,
    },
    Part {
        id: SessionId,
        part: u32,
    },
    Has {
        id: SessionId,
        hash: [u8; 32],
    },
    /// It is there now, by a record of this term, and these are its cuts.
    Took {
        id: SessionId,
        by: u64,
        term: u64,
        cuts: Vec<(u64, PushNumber)>,
    },
    /// Did it come there by a record of this term?
    Came {
        id: SessionId,
        term: u64,
    },
}

#[derive(Deserialize, Serialize)]
pub(super) enum Said {
    Image {
        term: u64,
        revision: u64,
        parts: u32,
        first: Bytes,
    },
    Part(Bytes),
    Late,
    NotMine,
    Moved(u64),
    /// Not now.
    Silent,
    Has(bool),
    Came(Option<Vec<(u64, PushNumber)>>),
    Heard,
    /// There is nothing of it here, and nothing is on its way.
    Nothing,
}

impl Said {
    /// `None`: it is none.
    pub(super) fn from_bytes(bytes: Bytes) -> Option<Self> {
        Self::decode(SerializeType::MSGPACK, bytes).ok()
    }
}

impl Moves {
    pub(super) fn new() -> Self {
        let state = State {
            lives: VecDeque::new(),
            owned: AllOwned::new(),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            claiming: HashSet::new(),
            brings_no_more: false,
            passing: Passing::new(),
            aliases: HashMap::new(),
            has_said_last: false,
            relays: HashMap::new(),
            next: RELAY,
            renewed: None,
            sound_since: None,
            lapsed: None,
        };
        Self {
            state: Mutex::new(state),
            due: Notify::new(),
            left: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            departed: AtomicUsize::new(0),
            departing: AtomicUsize::new(0),
            places: Semaphore::new(SIDE_BY_SIDE),
        }
    }

    /// A life begins, under this name.
    pub(super) fn begins(&self, life: NodeId) {
        let mut state = self.state.lock();
        if LIVES_MAX <= state.lives.len() {
            state.lives.pop_front();
        }
        state.lives.push_back(life);
    }

    /// The lease was renewed by what began at this moment.
    pub(super) fn renewed(&self, at: Instant) {
        let mut state = self.state.lock();
        state.renewed = Some(at);
        state.sound_since.get_or_insert(at);
    }

    /// The register does not answer.
    pub(super) fn not_renewed(&self) {
        self.state.lock().sound_since = None;
    }

    /// The lease surely lives. The last third of it, and five seconds at most, are doubt.
    pub(super) fn is_certain(&self, lease: Duration) -> bool {
        let doubt = (lease / 3).min(Duration::from_secs(5));
        let certain = lease.saturating_sub(doubt);
        self.state.lock().renewed.is_some_and(|renewed| renewed.elapsed() < certain)
    }

    /// This node may judge others: the register was up for a whole lease.
    pub(super) fn may_judge(&self, lease: Duration) -> bool {
        self.is_certain(lease) && self.state.lock().sound_since.is_some_and(|since| lease <= since.elapsed())
    }

    /// This node's lease has ended a short while ago. So may have those of others, which are not all members again.
    pub(super) fn has_lapsed_lately(&self, lease: Duration) -> bool {
        self.state.lock().lapsed.is_some_and(|at| at.elapsed() < lease)
    }

    /// A session to which its client may come back began here, or ended: its record follows.
    pub(super) fn note(&self, id: SessionId) {
        if self.state.lock().due.insert(id) {
            self.due.notify_one();
        }
    }

    pub(super) fn wake(&self) {
        self.due.notify_one();
    }

    /// Nobody tells any more what becomes of this one.
    pub(super) fn forget(&self, number: PushNumber) {
        let forgotten = self.state.lock().relays.remove(&number);
        drop(forgotten);
    }

    /// A session is being brought here. False: it is already, or none is any more.
    pub(super) fn begin_claim(&self, id: SessionId) -> bool {
        let mut state = self.state.lock();
        !state.brings_no_more && state.claiming.insert(id)
    }

    pub(super) fn bring_no_more(&self) {
        self.state.lock().brings_no_more = true;
    }

    pub(super) fn are_being_brought(&self) -> bool {
        !self.state.lock().claiming.is_empty()
    }

    pub(super) fn end_claim(&self, id: SessionId) {
        self.state.lock().claiming.remove(&id);
    }

    /// A session is here from here on, by this record. `is_stale`: it names a life of this node that is over.
    /// `at`: this node, and the number of its last push; `taken`: what the session has been given. Returns its cuts.
    pub(super) fn own(
        &self,
        id: SessionId,
        owned: OwnedHere,
        is_stale: bool,
        at: (NodeId, PushNumber),
        taken: Cuts,
    ) -> Cuts {
        let mut state = self.state.lock();
        let cuts = state.passing.arrives(id, owned.term, at, taken, Instant::now() + LATELY);
        state.owned.insert(id, Owning::new(owned, is_stale));
        if is_stale {
            state.due.insert(id);
        } else {
            state.owned.renew_later(id);
        }
        self.count_left(&state);
        self.due.notify_one();
        cuts
    }

    /// What was begun for a session that could not be taken in.
    pub(super) fn disown(&self, id: SessionId) {
        let mut state = self.state.lock();
        state.owned.remove(id);
        state.passing.forget(id);
        self.count_left(&state);
    }

    /// It is this node's no more, and who has got its image tells nothing of its pushes.
    fn let_go(&self, id: SessionId) {
        let mut state = self.state.lock();
        let parcel = state.owned.remove(id).and_then(|owning| owning.owned.image);
        for number in parcel.iter().flat_map(|parcel| &parcel.numbers) {
            state.relays.remove(number);
        }
    }

    /// Its record is written.
    pub(super) fn has_record(&self, id: SessionId) -> bool {
        self.state.lock().owned.has(id)
    }

    /// A session goes into the store: nobody else gets it by its image meanwhile. Returns what is to be written, and on
    /// which revision.
    pub(super) fn freeze_own(&self, id: SessionId, me: NodeId, certain: bool) -> Option<(Record, Revision)> {
        let mut state = self.state.lock();
        let mut owning = state.owned.get_mut(id).filter(|owning| owning.owned.is_live() && !owning.is_stale)?;
        let attempt = owning.owned.last_try().saturating_add(1);
        match owning.owned.give(attempt, certain) {
            Given::Image { revision, .. } => Some((owning.owned.record(me, rand::random()), revision)),
            _ => None,
        }
    }

    /// Its image is on its way to another node, which may have written the record, or into the store; nobody has taken it
    /// back since.
    pub(super) fn is_frozen(&self, id: SessionId) -> bool {
        self.state.lock().owned.get(id).is_some_and(|owning| !owning.owned.is_live())
    }

    /// It stays after all.
    pub(super) fn unfreeze(&self, id: SessionId) {
        if let Some(mut owning) = self.state.lock().owned.get_mut(id) {
            owning.owned.not_given();
        }
    }

    /// Sessions that go on elsewhere are counted anew.
    pub(super) fn count_departed(&self) {
        self.departed.store(0, Ordering::Relaxed);
    }

    pub(super) fn departed(&self) -> usize {
        self.departed.load(Ordering::Relaxed)
    }

    /// A session goes on elsewhere, as long as this is kept.
    fn departing(&self) -> Departing<'_> {
        self.departing.fetch_add(1, Ordering::AcqRel);
        Departing(self)
    }

    /// Waits until what follows the pushes is noted of each session that is here no more; so long at most.
    pub(super) async fn all_departed(&self, most: Duration) {
        wait_until(most, || self.departing.load(Ordering::Acquire) == 0).await;
    }

    fn count_left(&self, state: &State) {
        let (left, all) = state.passing.counts();
        self.left.store(left, Ordering::Release);
        self.moved.store(all, Ordering::Release);
    }

    /// True if sessions left lately.
    pub(super) fn have_left(&self) -> bool {
        self.left.load(Ordering::Acquire) != 0
    }

    /// True if sessions left or came lately.
    pub(super) fn have_moved(&self) -> bool {
        self.moved.load(Ordering::Acquire) != 0
    }

    /// The sessions that came lately and have the push of this number of that node already.
    pub(super) fn taken_of(&self, origin: NodeId, number: PushNumber) -> Vec<SessionId> {
        if !self.have_moved() {
            return Vec::new();
        }
        self.state.lock().passing.have_it(origin, number).collect()
    }

    /// Up to which numbers a session of this node has the pushes of each.
    fn taken(&self, id: SessionId, me: NodeId, last: PushNumber) -> Vec<(u64, PushNumber)> {
        numbers(&self.state.lock().passing.taken(id, me, last))
    }

    /// A push of another node has come.
    pub(super) fn saw(&self, origin: NodeId, number: PushNumber) {
        self.state.lock().passing.saw(origin, number);
    }

    /// What is over is forgotten. Answers whether there is more.
    fn forget_old(&self) -> bool {
        let mut state = self.state.lock();
        let State { passing, aliases, relays, .. } = &mut *state;
        passing.forget_old(Instant::now());
        aliases.retain(|_, number| relays.contains_key(number));
        self.count_left(&state);
        self.have_moved()
    }

    /// Sessions that left lately, which this push means, and what becomes of it: [`Passing::behind`].
    fn behind(&self, to: &Destination, origin: NodeId, number: PushNumber) -> Vec<(SessionId, Option<NodeId>, Passed)> {
        let state = self.state.lock();
        let means = |id, left: &Option<(NodeId, &Known)>| left.is_none_or(|(_, known)| to.admits_known(id, known));
        let behind = state.passing.behind(origin, number).filter(|(id, left, _)| means(*id, left));
        behind.map(|(id, left, passed)| (id, left.map(|(node, _)| node), passed)).collect()
    }

    /// A node says how a push stands whose session went there.
    pub(super) fn told(&self, number: PushNumber, node: NodeId, standing: &Standing) {
        let relay = {
            let mut state = self.state.lock();
            let speaks =
                |following: &&mut Following| following.settled.is_none() || following.node.is_none_or(|at| at == node);
            let Some(following) = state.relays.get_mut(&number).filter(speaks) else { return };
            following.node = Some(node);
            if following.said.is_some() && standing.changes <= following.changes {
                return;
            }
            (following.changes, following.said) = (standing.changes, Some(standing.counts));
            following.relay.take()
        };
        let Some(mut relay) = relay else { return };
        let (mut changes, mut counts) = (standing.changes, standing.counts);
        loop {
            // Tickets tell others: under no lock.
            relay.follow(&counts);
            let mut state = self.state.lock();
            match state.relays.get_mut(&number) {
                // More was said meanwhile, by a thread that found no relay.
                Some(Following { changes: newer, said: Some(said), .. }) if changes < *newer => {
                    (changes, counts) = (*newer, *said);
                }
                Some(_) if counts.is_final() => {
                    state.relays.remove(&number);
                    return;
                }
                Some(following) => {
                    following.relay = Some(relay);
                    return;
                }
                None => return,
            }
        }
    }

    /// Nobody tells any more what becomes of pushes there; `None`: of any.
    pub(super) fn lost(&self, node: Option<NodeId>) {
        let mut state = self.state.lock();
        state.passing.lost(node);
        let lost: Vec<Following> = {
            let all = std::mem::take(&mut state.relays);
            let (lost, kept) = all.into_iter().partition(|(_, at)| node.is_none_or(|node| at.node == Some(node)));
            state.relays = kept;
            let lost: HashMap<PushNumber, Following> = lost;
            lost.into_values().collect()
        };
        drop(state);
        drop(lost);
    }
}

impl Node {
    /// True if a number is that of a relay.
    pub(super) fn is_relay(number: PushNumber) -> bool {
        number & RELAY != 0
    }

    /// Whether the lease of this node surely lives.
    pub(super) fn is_certain(&self) -> bool {
        self.me().is_some() && self.moves.is_certain(self.options.lease)
    }

    /// Answers what another node asks about a move. `None`: it is no such question.
    pub(super) fn answer_move(self: &Arc<Self>, bytes: Bytes) -> Option<Bytes> {
        let Question { moving } = Question::decode(SerializeType::MSGPACK, bytes).ok()?;
        let said = match moving {
            Asked::Give { id, hash, attempt, by } => self.give(id, &hash, attempt, NodeId(by)),
            Asked::Part { id, part } => self.part(id, part),
            Asked::Has { id, hash } => {
                let known = self.registry().and_then(|sessions| sessions.known(id));
                Said::Has(known.is_some_and(|known| known.hash == hash))
            }
            Asked::Took { id, by, term, cuts } => {
                self.depart(id, NodeId(by), Some(term), Some(cuts_of(cuts)));
                Said::Heard
            }
            Asked::Came { id, term } => Said::Came(self.moves.state.lock().passing.came(id, term).map(numbers)),
        };
        said.encode(SerializeType::MSGPACK).ok()
    }

    /// Another node wants a session for its client's attempt.
    fn give(self: &Arc<Self>, id: SessionId, hash: &[u8; 32], attempt: Option<u64>, by: NodeId) -> Said {
        let Some(sessions) = self.registry() else { return Said::Silent };
        if sessions.known(id).is_some_and(|known| known.hash != *hash) {
            return Said::NotMine;
        }
        let certain = self.is_certain();
        let (term, revision, attempt) = {
            let mut state = self.moves.state.lock();
            if let Some(to) = state.passing.went(id) {
                return Said::Moved(to.0);
            }
            let Some(mut owning) = state.owned.get_mut(id) else {
                let is_coming = state.claiming.contains(&id);
                drop(state);
                // Its record is not written yet, or it is on its way.
                return if is_coming || sessions.session_lives(id) { Said::Silent } else { Said::Nothing };
            };
            if owning.is_stale {
                return Said::Silent;
            }
            let is_frozen = !owning.owned.is_live();
            if is_frozen && !sessions.session_lives(id) {
                // It was ended meanwhile, and its task forgets it.
                return Said::Silent;
            }
            let attempt = attempt.unwrap_or_else(|| owning.owned.last_try().saturating_add(1));
            owning.asked = Some((by, Instant::now()));
            let given = owning.owned.give(attempt, certain);
            drop(owning);
            match given {
                Given::Image { term, revision, image: Some(parcel) } => {
                    state.follow(&parcel.numbers, by);
                    return image(term, revision, &parcel);
                }
                // Another thread takes the image this moment.
                Given::Image { .. } if is_frozen => return Said::Silent,
                Given::Image { term, revision, image: None } => (term, revision, attempt),
                Given::Late => return Said::Late,
                Given::NotMine | Given::Nothing | Given::Moved(_) | Given::Silent => return Said::Silent,
            }
        };

        let mut numbers = Vec::new();
        let given = self.give_away(&sessions, id, hash, &mut |debt| {
            let number = self.moves.state.lock().number(Some(by), debt);
            numbers.push(number);
            number
        });
        let parcel = given.and_then(|mut given| {
            given.from = self.me()?.0;
            let parts = snapshot::write(&given, snapshot::part_bytes(self.engine().limits().message_bytes_max))?;
            Some(Arc::new(Parcel { parts, numbers: numbers.clone() }))
        });

        let is_still = |owning: &Owning| !owning.owned.is_live() && owning.owned.last_try() == attempt;
        let was_watched = {
            let mut state = self.moves.state.lock();
            let kept = match (state.owned.get_mut(id).filter(|owning| is_still(owning)), &parcel) {
                (Some(mut owning), Some(parcel)) => {
                    owning.owned.image = Some(Arc::clone(parcel));
                    Some(std::mem::replace(&mut owning.is_watched, true))
                }
                (Some(mut owning), None) => {
                    owning.owned.not_given();
                    None
                }
                (None, _) => None,
            };
            if kept.is_none() {
                numbers.iter().for_each(|number| _ = state.relays.remove(number));
            }
            kept
        };
        let (Some(was_watched), Some(parcel)) = (was_watched, parcel) else {
            sessions.take_back(id);
            return Said::NotMine;
        };
        if !was_watched {
            tokio::spawn(settle_frozen(Arc::downgrade(self), id, self.stopped()));
        }
        image(term, revision, &parcel)
    }

    fn part(&self, id: SessionId, part: u32) -> Said {
        let state = self.moves.state.lock();
        let parcel = state.owned.get(id).and_then(|owning| owning.owned.image);
        let part = parcel.and_then(|parcel| parcel.parts.get(part as usize).cloned());
        part.map_or(Said::NotMine, Said::Part)
    }

    /// A session that was given has gone on there, by a record of this term. No cuts: it is not known what that node had
    /// seen before.
    fn depart(self: &Arc<Self>, id: SessionId, to: NodeId, term: Option<u64>, cuts: Option<Cuts>) {
        let Some(sessions) = self.registry() else { return };
        // A drain goes on when the registry has it no more.
        let _departing = self.moves.departing();
        let known = sessions.known(id);
        let me = self.me().unwrap_or(NodeId(0));
        let members = self.members();
        let (numbers, departed) = {
            // What is pushed finds the session, or the note.
            let _alone = sessions.gate.alone();
            let last = self.last_push();
            let numbers = {
                let mut state = self.moves.state.lock();
                let is_of = |given| term.is_none_or(|term| state.passing.is_next(given, term));
                let is_gone = |owning: Owning| !owning.owned.is_live() && is_of(owning.owned.term);
                if !state.owned.get(id).is_some_and(is_gone) {
                    return;
                }
                let owning = state.owned.remove(id);
                if let Some(known) = known {
                    state.passing.departs(id, to, cuts.as_ref(), (me, last), known, Instant::now() + LATELY);
                }
                if let Some(cuts) = &cuts {
                    let unheard = members.into_iter().filter(|node| *node != to && !cuts.contains_key(node));
                    state.passing.has_not_heard(id, unheard);
                }
                self.moves.count_left(&state);
                owning.and_then(|owning| owning.owned.image).map(|parcel| parcel.numbers.clone()).unwrap_or_default()
            };
            let departed = sessions.depart(id, &mut |debt| self.moves.state.lock().number(Some(to), debt));
            // Before the session can be here again.
            let state = self.moves.state.lock();
            let passed = |address: Option<(NodeId, PushNumber)>| match address {
                // What one session alone was pushed went nowhere else.
                None => Passed::After,
                Some((origin, number)) => state.passing.of_held(id, cuts.as_ref(), origin, number),
            };
            let departed = departed.map(|Departed { relays, late, there }| {
                let late = late.into_iter().map(|(entry, relay, address)| (entry, relay, passed(address)));
                (relays, late.collect::<Vec<_>>(), there)
            });
            (numbers, departed)
        };
        self.moves.wake();
        let Some((relays, late, there)) = departed else { return };
        there.into_iter().for_each(Relay::withdraw);
        self.moves.departed.fetch_add(1, Ordering::Relaxed);
        for (number, relay) in numbers.into_iter().zip(relays) {
            self.relay(number, Some(to), relay);
        }
        for (entry, relay, passed) in late {
            match passed {
                Passed::After => self.send_after(id, to, entry, relay),
                Passed::There => {
                    self.moves.forget(entry.number);
                    relay.withdraw();
                }
                Passed::Unknown => self.moves.forget(entry.number),
            }
        }
    }

    /// A ticket follows its push from here on.
    pub(super) fn relay(&self, number: PushNumber, to: Option<NodeId>, mut relay: Relay) {
        let is_there = to.is_none_or(|to| self.others().contains(&to));
        let mut state = self.moves.state.lock();
        let Some(following) = state.relays.get_mut(&number).filter(|_| is_there) else {
            state.relays.remove(&number);
            drop(state);
            return drop(relay);
        };
        // One that was in the store may have been taken out already.
        (following.node, following.settled) = (to.or(following.node), Some(Instant::now()));
        // It may have been told before.
        match following.said {
            None => following.relay = Some(relay),
            Some(counts) => {
                let changes = following.changes;
                drop(state);
                relay.follow(&counts);
                let mut state = self.moves.state.lock();
                let Some(following) = state.relays.get_mut(&number) else { return };
                let newer = following.said.filter(|_| changes < following.changes);
                let is_final = newer.unwrap_or(counts).is_final();
                if is_final {
                    state.relays.remove(&number);
                } else {
                    following.relay = Some(relay);
                    return;
                }
                drop(state);
                if let Some(newer) = newer {
                    relay.follow(&newer);
                }
            }
        }
    }

    /// Sends a push after a session that went there.
    fn send_after(&self, id: SessionId, to: NodeId, mut entry: EntryImage, relay: Relay) {
        let number = entry.number;
        let debt = self.moves.state.lock().relays.get(&number).and_then(|following| following.debt);
        entry.behind = self.chain_of(debt).into_iter().map(|node| node.0).collect();
        self.relay(number, Some(to), relay);
        let bytes = entry.encode(SerializeType::MSGPACK).unwrap_or_default();
        if !self.offer_late(to, number, id, bytes) {
            self.moves.told(number, to, &Standing::NOWHERE);
        }
    }

    /// A push of this number came from there, or was made here: it is sent after the sessions that it means and that have
    /// left lately, as far as the nodes that have them do not get it by themselves.
    pub(super) fn push_after_moved(
        &self,
        to: &Destination,
        push: &Push,
        receipt: &Receipt,
        origin: NodeId,
        number: PushNumber,
    ) {
        if !self.moves.have_left() {
            return;
        }
        let Some(sessions) = self.registry() else { return };
        let debt = Some((origin, number)).filter(|(origin, _)| self.me() != Some(*origin));
        for (id, left, passed) in self.moves.behind(to, origin, number) {
            let Some(node) = left.filter(|_| passed == Passed::After) else {
                let is_meant = left.is_some() || sessions.known(id).is_some_and(|known| to.admits_known(id, &known));
                if is_meant {
                    // Its receipt counts a target of which nobody knows.
                    drop(sessions.late_of(id, push, to.topic(), receipt, 0));
                }
                continue;
            };
            let relay = self.moves.state.lock().number(Some(node), debt);
            match sessions.late_of(id, push, to.topic(), receipt, relay) {
                Some((entry, relay)) => self.send_after(id, node, entry, relay),
                None => self.moves.forget(relay),
            }
        }
    }

    /// Runs what was pushed to a session that came here, after it.
    pub(super) fn run_late(self: &Arc<Self>, from: NodeId, number: PushNumber, id: SessionId, bytes: Bytes) -> Answer {
        let Ok(entry) = EntryImage::decode(SerializeType::MSGPACK, bytes) else { return Answer::Refused };
        let Some(sessions) = self.registry() else { return Answer::Refused };
        // It is here, or has gone on, and nothing between: its former node may know of it before it is taken in.
        let _stay = sessions.gate.stay();
        let gone_on = self.moves.state.lock().passing.went(id);
        let behind: Vec<NodeId> = entry.behind.iter().copied().map(NodeId).collect();
        let receipt = match gone_on {
            None => sessions.take_late(id, entry, self.follows(from, number)),
            Some(to) => {
                let next = self.moves.state.lock().number(Some(to), Some((from, number)));
                let (entry, relay, receipt) = sessions.late_again(id, entry, next, self.follows(from, number));
                self.send_after(id, to, entry, relay);
                Some(receipt)
            }
        };
        let Some(receipt) = receipt else {
            return Answer::Routed(Standing::NOWHERE);
        };
        receipt.owes(from, number);
        Answer::Routed(self.owe_late(from, number, &receipt, behind))
    }

    /// What tells a former node of a push that came with a session.
    pub(super) fn follows(self: &Arc<Self>, from: NodeId, number: PushNumber) -> Watcher {
        let node = Arc::downgrade(self);
        Box::new(move |changes, outcomes| {
            if let Some(node) = node.upgrade() {
                node.changed(from, number, changes, outcomes);
            }
        })
    }

    /// A client comes to this node for a session that is here. `Ok(true)`: it may have it, as far as its node knows.
    /// `Ok(false)`: it is not here.
    pub(super) async fn admit(
        self: &Arc<Self>,
        id: SessionId,
        hash: &[u8; 32],
        attempt: Option<u64>,
    ) -> Result<bool, Refused> {
        let known = self.registry().and_then(|sessions| sessions.known(id));
        if known.is_some_and(|known| known.hash != *hash) {
            // The session says so itself, and the attempt of a stranger counts for nothing.
            return Ok(true);
        }
        loop {
            let Some(me) = self.me() else { return Err(Refused::Again) };
            let certain = self.is_certain();
            let (was, record) = {
                let mut state = self.moves.state.lock();
                let Some(mut owning) = state.owned.get_mut(id) else {
                    drop(state);
                    return Ok(self.registry().is_some_and(|sessions| sessions.has(id)));
                };
                if owning.is_stale {
                    return Err(Refused::Again);
                }
                let attempt = attempt.unwrap_or_else(|| owning.owned.last_try().saturating_add(1));
                match owning.owned.hello(attempt, me, rand::random(), certain) {
                    Admission::Admit => return Ok(true),
                    // As the session says: it may be another connection of the same attempt.
                    Admission::Late => return Err(Refused::Late),
                    Admission::InDoubt => return Err(Refused::Again),
                    Admission::Thaw(was, record) => (was, record),
                }
            };
            match self.thaw(id, was, &record).await {
                Thawed::Stays => {}
                Thawed::Moved(to) => {
                    self.depart_when_there(id, to).await;
                    return Ok(false);
                }
                Thawed::Unknown => return Err(Refused::Again),
            }
        }
    }

    /// Writes the record of a frozen session, so that nobody can have it by its image.
    async fn thaw(self: &Arc<Self>, id: SessionId, was: Revision, record: &Record) -> Thawed {
        let Some(known) = self.registry().and_then(|sessions| sessions.known(id)) else { return Thawed::Unknown };
        let written = Written::new(record, &known);
        let revision = match self.keep(id, Some(was), &written).await {
            Keep::Stays(revision) => revision,
            Keep::Gone(to) => return Thawed::Moved(to),
            Keep::GivenUp => {
                self.end_given_up(id);
                return Thawed::Unknown;
            }
            // It has been forgotten with the store.
            Keep::Forgotten => match self.elsewhere(id, &known.hash).await {
                Elsewhere::At(node) => return Thawed::Moved(node),
                Elsewhere::Unknown => return Thawed::Unknown,
                Elsewhere::Nowhere => match self.write(id, None, &written).await {
                    Ok(revision) => revision,
                    Err(_) => return Thawed::Unknown,
                },
            },
            Keep::Later | Keep::Write(_) => return Thawed::Unknown,
        };
        let is_frozen = {
            let mut state = self.moves.state.lock();
            let Some(mut owning) = state.owned.get_mut(id) else { return Thawed::Unknown };
            if owning.owned.revision != was && revision <= owning.owned.revision {
                // Another one of this node was written after it: by that the image may be out again.
                return Thawed::Unknown;
            }
            let is_frozen = !owning.owned.is_live();
            owning.owned.thawed(revision);
            (owning.is_watched, owning.asked) = (false, None);
            let parcel = owning.owned.image.take();
            drop(owning);
            for number in parcel.iter().flat_map(|parcel| &parcel.numbers) {
                state.relays.remove(number);
            }
            is_frozen
        };
        if is_frozen && let Some(sessions) = self.registry() {
            sessions.take_back(id);
        }
        Thawed::Stays
    }

    /// Writes the record of a session that is here: [`Keeping`] at work.
    async fn keep(&self, id: SessionId, was: Option<Revision>, written: &Written) -> Keep {
        self.keep_while(id, was, written, || true).await
    }

    /// As [`Self::keep`]. [`Keep::Write`]: this does not hold any more, and nothing was written.
    pub(super) async fn keep_while(
        &self,
        id: SessionId,
        was: Option<Revision>,
        written: &Written,
        holds: impl Fn() -> bool,
    ) -> Keep {
        let lives = self.moves.state.lock().lives.iter().copied().collect();
        let (mut keeping, mut keep) = Keeping::begin(was, written.record(), lives);
        while let Keep::Write(was) = keep
            && holds()
        {
            keep = keeping.wrote(match self.write(id, was, written).await {
                Ok(revision) => Wrote::Won(revision),
                Err(WriteError::Lost(Some((other, _)))) if other.parked.is_some() => Wrote::Parked(other.record()),
                Err(WriteError::Lost(other)) => Wrote::Lost(other.map(|(other, at)| (other.record(), at))),
                Err(WriteError::Down | WriteError::Unknown) => Wrote::Unknown,
            });
        }
        keep
    }

    /// Writes a record, and reads it if nobody can tell how that ended.
    pub(super) async fn write(
        &self,
        id: SessionId,
        was: Option<Revision>,
        written: &Written,
    ) -> Result<Revision, WriteError> {
        match self.engine().claim(id, was, written.to_bytes(), written.ttl(was)).await {
            Ok(revision) => return Ok(revision),
            Err(ClaimError::Lost(other)) => {
                let other = other.and_then(|(bytes, at)| Some((Written::from_bytes(bytes)?, at)));
                return match other {
                    Some((other, at)) if other.record() == written.record() => Ok(at),
                    other => Err(WriteError::Lost(other)),
                };
            }
            Err(ClaimError::Unknown) => {}
            Err(ClaimError::Down | ClaimError::TooLarge) => return Err(WriteError::Down),
        }
        match self.engine().session(id, true).await {
            Ok(Some((bytes, at))) => match Written::from_bytes(bytes) {
                Some(it) if it.record() == written.record() => Ok(at),
                _ => Err(WriteError::Unknown),
            },
            _ => Err(WriteError::Unknown),
        }
    }

    /// A node has claimed a session that was given to it: it has it in a moment.
    pub(super) async fn depart_when_there(self: &Arc<Self>, id: SessionId, to: NodeId) {
        let Some(given) = self.moves.state.lock().owned.get(id).map(|owning| owning.owned.term) else { return };
        let (deadline, mut cuts_there) = (Instant::now() + TAKEN_MAX, None);
        while Instant::now() < deadline && self.others().contains(&to) {
            match self.ask_move(to, &Asked::Came { id, term: given + 1 }).await {
                Some(Said::Came(Some(cuts))) => {
                    cuts_there = Some(cuts_of(cuts));
                    break;
                }
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
        self.depart(id, to, Some(given + 1), cuts_there);
    }

    /// Asks a node once. `None`: it does not answer.
    pub(super) async fn ask_move(&self, to: NodeId, asked: &Asked) -> Option<Said> {
        let bytes = asked_bytes(asked)?;
        let answer = self.engine().ask(to, bytes, ASK_MAX).await.ok()?;
        Said::from_bytes(answer)
    }

    /// This life is over: what was given is nobody's to tell of, and the sessions that are here are to be claimed by the
    /// next one.
    pub(super) fn end_of_life(&self) {
        let mut state = self.moves.state.lock();
        let stale = state.owned.all_stale();
        state.due.extend(stale);
        (state.renewed, state.sound_since, state.lapsed) = (None, None, Some(Instant::now()));
        drop(state);
        self.moves.lost(None);
    }

    /// Writes the record of one session, or forgets it.
    pub(super) async fn keep_record(self: Arc<Self>, id: SessionId) {
        let Some(sessions) = self.registry() else { return };
        let Some(me) = self.me() else { return self.moves.later(id, RETRY) };
        let known = sessions.known(id);
        let (before, is_stale) = {
            let state = self.moves.state.lock();
            let owning = state.owned.get(id);
            let before = owning.as_ref().map(|owning| (owning.owned.record(me, rand::random()), owning.owned.revision));
            if owning.as_ref().is_some_and(|owning| !owning.owned.is_live() && !owning.is_stale) {
                // Its own task knows more.
                return;
            }
            (before, owning.is_some_and(|owning| owning.is_stale))
        };

        let Some(known) = known else {
            self.moves.state.lock().owned.remove(id);
            if let Some((record, revision)) = before {
                self.forget_ended(id, record.term, revision).await;
            }
            return;
        };
        let (record, was) = match before {
            Some((record, revision)) => (record, Some(revision)),
            None => (Record { term: 1, owner: me, nonce: rand::random() }, None),
        };
        let written = Written::new(&record, &known);
        let kept = match self.keep(id, was, &written).await {
            // Nobody has taken it: the register has lost its data, or its time has ended while this node was cut off.
            Keep::Forgotten if was.is_some() => match self.elsewhere(id, &known.hash).await {
                Elsewhere::Nowhere => self.keep(id, None, &written).await,
                Elsewhere::At(node) => Keep::Gone(node),
                Elsewhere::Unknown => Keep::Later,
            },
            kept => kept,
        };
        match kept {
            Keep::Stays(revision) => {
                let was_given = {
                    let mut state = self.moves.state.lock();
                    let was_given = state.owned.written(id, record.term, revision);
                    state.owned.renew_later(id);
                    was_given
                };
                if was_given {
                    sessions.take_back(id);
                }
                if !sessions.session_lives(id) {
                    self.moves.note(id);
                }
            }
            // It was given away meanwhile, and has gone: its own task sees to that.
            Keep::Gone(_) if was.is_some() && !is_stale && self.moves.is_frozen(id) => {}
            // Another node has it: what is here is nobody's any more.
            Keep::Gone(_) if was.is_some() => self.end_lost(&sessions, id),
            Keep::GivenUp => self.end_given_up(id),
            Keep::Gone(_) | Keep::Forgotten | Keep::Later | Keep::Write(_) => self.moves.later(id, RETRY),
        }
    }

    /// A session was ended while its image was out: nobody is to have it by that. Where somebody has it already, the record is
    /// another one by now.
    async fn end_given(&self, id: SessionId) {
        let owned = self.moves.state.lock().owned.get(id).map(|owning| (owning.owned.term, owning.owned.revision));
        let Some((term, revision)) = owned else { return };
        self.moves.let_go(id);
        self.forget_ended(id, term, revision).await;
    }

    /// The record of a session that has ended here. One that has never moved is forgotten. Of one that came from another
    /// node that one may have an image still, frozen, as it was cut off or stood still: by this it hears that the session
    /// has ended, and not that nobody has it.
    pub(super) async fn forget_ended(&self, id: SessionId, term: u64, revision: Revision) {
        // Where this fails its time ends by itself.
        if term <= 1 {
            let _ = self.engine().forget(id, revision).await;
            return;
        }
        let _ = self.write(id, Some(revision), &Written::nobodys(term, [0; 32])).await;
    }

    /// There is no record of a session that is here any more. Where its image was given away, who got it may have it: the
    /// record was lost with the register's data, and that node writes it anew.
    async fn elsewhere(&self, id: SessionId, hash: &[u8; 32]) -> Elsewhere {
        let is_given = self.moves.state.lock().owned.get(id).is_some_and(|owning| !owning.owned.is_live());
        match is_given {
            false => Elsewhere::Nowhere,
            true => match self.others_have(id, *hash).await {
                Ok(Some(node)) => Elsewhere::At(node),
                Ok(None) => Elsewhere::Nowhere,
                Err(()) => Elsewhere::Unknown,
            },
        }
    }

    /// Its record names nobody here any more.
    fn end_lost(&self, sessions: &Registry, id: SessionId) {
        self.moves.let_go(id);
        sessions.end_lost(id, &|address| self.has_taken(address));
    }

    /// Its client was told that it is lost, while this node was out of its cluster.
    pub(super) fn end_given_up(&self, id: SessionId) {
        self.moves.let_go(id);
        if let Some(sessions) = self.registry() {
            sessions.end_given_up(id, &|address| self.has_taken(address));
        }
    }

    /// This push came in this life of the node: what was lost in an earlier one was no target of it.
    fn has_taken(&self, (origin, number): Address) -> bool {
        self.state.lock().owed.get(&origin).is_some_and(|owed| owed.has(number))
    }
}

/// How a client is refused that comes for its session: it keeps it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    Again,
    Late,
}

/// Whether another node has a session that was given away.
enum Elsewhere {
    At(NodeId),
    Nowhere,
    /// A node does not answer.
    Unknown,
}

enum Thawed {
    Stays,
    Moved(NodeId),
    Unknown,
}

/// Why a record is not written.
pub(super) enum WriteError {
    Lost(Option<(Written, Revision)>),
    /// Nothing was written.
    Down,
    /// Nobody knows.
    Unknown,
}

fn image(term: u64, revision: Revision, parcel: &Parcel) -> Said {
    let first = parcel.parts.first().cloned().unwrap_or_default();
    Said::Image { term, revision: revision.0, parts: parcel.parts.len() as u32, first }
}

pub(super) fn asked_bytes(asked: &Asked) -> Option<Bytes> {
    #[derive(Serialize)]
    struct Of<'a> {
        moving: &'a Asked,
    }
    Of { moving: asked }.encode(SerializeType::MSGPACK).ok()
}

impl Node {
    /// Gives a session away, with all that was pushed to it until now, and nothing that is pushed later.
    pub(super) fn give_away(
        &self,
        sessions: &Registry,
        id: SessionId,
        hash: &[u8; 32],
        number: &mut dyn FnMut(Option<Name>) -> PushNumber,
    ) -> Option<SessionImage> {
        let me = self.me()?;
        let mut debts = Vec::new();
        let _alone = sessions.gate.alone();
        let taken = self.moves.taken(id, me, self.last_push());
        let mut image = sessions.give(id, hash, &mut |debt| {
            let debt = debt.filter(|(node, _)| *node != me);
            let number = number(debt);
            debts.extend(debt.map(|debt| (number, debt)));
            number
        })?;
        (image.taken, image.giver) = (taken, me.0);
        let chain = |debt| self.chain_of(Some(debt)).into_iter().map(|node| node.0).collect();
        image.behind = debts.into_iter().map(|(number, debt)| (number, chain(debt))).collect();
        Some(image)
    }
}

/// Cuts as they travel.
pub(super) fn numbers(cuts: &Cuts) -> Vec<(u64, PushNumber)> {
    cuts.iter().map(|(node, number)| (node.0, *number)).collect()
}

/// Cuts that have come.
pub(super) fn cuts_of(numbers: Vec<(u64, PushNumber)>) -> Cuts {
    numbers.into_iter().map(|(node, number)| (NodeId(node), number)).collect()
}

impl Following {
    fn of(node: Option<NodeId>, debt: Option<Name>) -> Self {
        Self { node, settled: None, debt, alias: None, until: None, changes: 0, said: None, relay: None }
    }
}

/// A push that follows its session, as it is sent now: its time to live has run since it began to wait.
pub(super) fn aged(entry: &Bytes, since: Instant) -> Bytes {
    let aged = EntryImage::decode(SerializeType::MSGPACK, entry.clone()).ok().map(|entry| entry.aged(since.elapsed()));
    aged.and_then(|entry| entry.encode(SerializeType::MSGPACK).ok()).unwrap_or_else(|| entry.clone())
}

/// The time to live of one that waits since then is over.
pub(super) fn is_over(entry: &Bytes, since: Instant) -> bool {
    EntryImage::decode(SerializeType::MSGPACK, entry.clone()).is_ok_and(|entry| entry.is_over(since.elapsed()))
}

impl State {
    /// The image that these are in goes to another node than the one that asked first, which may be gone.
    fn follow(&mut self, numbers: &[PushNumber], to: NodeId) {
        for number in numbers {
            self.relays.entry(*number).or_insert_with(|| Following::of(None, None)).node = Some(to);
        }
    }

    /// The number of one more relay to this node.
    fn number(&mut self, to: Option<NodeId>, debt: Option<Name>) -> PushNumber {
        let number = self.next;
        self.next = RELAY | self.next.wrapping_add(1);
        self.relays.insert(number, Following::of(to, debt));
        number
    }
}

impl Moves {
    /// The number of one more push that goes into the store with its session.
    pub(super) fn number_in_store(&self, debt: Option<Name>, until: Instant) -> PushNumber {
        // Nobody else hears of a push of this node itself, which stops.
        if debt.is_none() {
            return 0;
        }
        let mut state = self.state.lock();
        let number = state.number(None, debt);
        if let Some(following) = state.relays.get_mut(&number) {
            following.until = Some(until);
        }
        number
    }

    /// From here on nothing is heard of pushes whose sessions have gone on: each of them of which another node hears, with
    /// its number.
    pub(super) fn say_last<T>(&self, word: impl Fn(PushNumber, &Following) -> Option<T>) -> Vec<T> {
        let mut state = self.state.lock();
        state.has_said_last = true;
        state.relays.iter().filter_map(|(number, following)| word(*number, following)).collect()
    }

    pub(super) fn has_said_last(&self) -> bool {
        self.state.lock().has_said_last
    }

    /// The node that had this one has stopped: it has gone on, under another name.
    pub(super) fn gone_on(&self, number: PushNumber, by: NodeId, to: Name, at: Option<NodeId>) {
        let mut state = self.state.lock();
        let State { relays, aliases, .. } = &mut *state;
        if let Some(following) = relays.get_mut(&number).filter(|following| following.node == Some(by)) {
            (following.node, following.alias, following.settled) = (at, Some(to), Some(Instant::now()));
            // The node that has it now counts its own changes.
            (following.changes, following.said) = (0, None);
            aliases.insert(to, number);
        }
    }

    /// Nobody has taken this one out of the store.
    pub(super) fn forget_in_store(&self, number: PushNumber) {
        let mut state = self.state.lock();
        let is_there = state.relays.get(&number).is_some_and(|following| following.node.is_none());
        let forgotten = if is_there { state.relays.remove(&number) } else { None };
        drop(state);
        drop(forgotten);
    }

    /// What this node is asked for of pushes whose sessions have gone there, by the names that it has for them.
    pub(super) fn digest(&self, node: NodeId, me: NodeId) -> Vec<Name> {
        let state = self.state.lock();
        let is_known = |since: Instant| KNOWN_AFTER <= since.elapsed();
        let is_there = |following: &Following| following.node == Some(node) && following.settled.is_some_and(is_known);
        let there = state.relays.iter().filter(|(_, following)| is_there(following));
        there.map(|(number, following)| following.alias.unwrap_or((me, *number))).collect()
    }

    /// The answer to that. `None`: it knows nothing of it, so that nobody hears any more how it ends. That node may have begun
    /// another life since it took the session in.
    pub(super) fn digested(&self, number: PushNumber, node: NodeId, standing: Option<&Standing>) {
        if let Some(standing) = standing {
            return self.told(number, node, standing);
        }
        let mut state = self.state.lock();
        let is_there = |following: &Following| following.node == Some(node) && following.settled.is_some();
        let is_its = state.relays.get(&number).is_some_and(is_there);
        let forgotten = if is_its { state.relays.remove(&number) } else { None };
        drop(state);
        drop(forgotten);
    }

    /// The relay with this other name.
    pub(super) fn alias(&self, name: Name) -> Option<PushNumber> {
        self.state.lock().aliases.get(&name).copied()
    }

    fn later(&self, id: SessionId, after: Duration) {
        self.state.lock().later.insert((Instant::now() + after, id));
        self.due.notify_one();
    }

    /// Some of the sessions whose records are due now.
    fn take_due(&self) -> (Vec<SessionId>, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        while let Some((at, id)) = state.later.first().copied()
            && at <= now
        {
            state.later.pop_first();
            state.due.insert(id);
        }
        let renewals = state.owned.take_renewals(now);
        state.due.extend(renewals);
        let due = iter::from_fn(|| state.due.pop_first()).take(SIDE_BY_SIDE).collect();
        let next = state.later.first().map(|(at, _)| *at).into_iter().chain(state.owned.next_renewal()).min();
        (due, next)
    }
}

/// Writes records that are due, as long as the node lives.
pub(super) async fn keep_records(node: Weak<Node>, mut stop: watch::Receiver<bool>) {
    let mut writing = JoinSet::new();
    loop {
        let Some(strong) = node.upgrade() else { return };
        let lately = strong.moves.forget_old();
        let (due, next) = strong.moves.take_due();
        let idle = due.is_empty();
        for id in due {
            writing.spawn(Arc::clone(&strong).keep_record(id));
        }
        while writing.join_next().await.is_some() {}
        if !idle {
            continue;
        }
        let next = next.unwrap_or_else(|| Instant::now() + RENEW_AFTER);
        let next = if lately { next.min(Instant::now() + LATELY) } else { next };
        let moves = Arc::clone(&strong.moves);
        drop(strong);
        tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => return,
            () = moves.due.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// Finds out where a frozen session goes on: it stays until the record has moved, or by an own compare-and-set.
async fn settle_frozen(node: Weak<Node>, id: SessionId, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => return,
            () = sleep(FROZEN_MAX) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let Some(me) = node.me() else { continue };
        if !node.registry().is_some_and(|sessions| sessions.session_lives(id)) {
            return node.end_given(id).await;
        }
        let (was, record) = {
            let state = node.moves.state.lock();
            let Some(owning) = state.owned.get(id).filter(|owning| !owning.owned.is_live() && owning.is_watched) else {
                return;
            };
            // It was just asked for once more; and a life that is over writes nothing.
            let is_asked = owning.asked.is_some_and(|(_, at)| at.elapsed() < FROZEN_MAX);
            if is_asked || owning.is_stale {
                continue;
            }
            (owning.owned.revision, owning.owned.record(me, rand::random()))
        };
        match timeout(TAKEN_MAX, node.thaw(id, was, &record)).await {
            Ok(Thawed::Stays) => return,
            Ok(Thawed::Moved(to)) => return node.depart_when_there(id, to).await,
            Ok(Thawed::Unknown) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that stops says where its sessions have gone when that is noted of each, and waits no longer than it may.
    #[tokio::test(start_paused = true)]
    async fn a_node_waits_for_sessions_that_are_about_to_be_gone() {
        let (moves, most) = (Moves::new(), Duration::from_secs(5));
        let begun = Instant::now();
        moves.all_departed(most).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "there are none");

        let (first, second) = (moves.departing(), moves.departing());
        let goes = async {
            sleep(Duration::from_secs(1)).await;
            drop(first);
            sleep(Duration::from_secs(1)).await;
            drop(second);
        };
        tokio::join!(moves.all_departed(most), goes);
        assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&begun.elapsed()), "{:?}", begun.elapsed());

        let _stuck = moves.departing();
        let begun = Instant::now();
        moves.all_departed(most).await;
        assert!((most..most + Duration::from_secs(1)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
