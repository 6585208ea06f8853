//! Leases, members and records: what changes only by compare-and-set.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bothways::{
    cluster::{
        NodeId,
        engine::{
            BoxFuture, BuryError, ClaimError, EngineDown, EngineState, Lease, Member, Members, RenewError, Revision,
        },
    },
    session::SessionId,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    names::Kind,
    streams::{Got, Identity, Put, PutFailure, REQUEST_MAX, Streams, Write, ends},
    wire::{Failure, Looked, Wire, next},
};

/// How often members are listed.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// How often streams are looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long looking at them may take.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// How long a list may take.
const LIST_MAX: Duration = Duration::from_secs(2);
/// Most members that are read, with those who left or were buried a minute ago: more are an error.
const MEMBERS_MAX: usize = 4096;
/// The least time between two looks when something fails.
const BREATH: Duration = Duration::from_millis(200);
/// How long it is known that a node was buried, and that a record was forgotten. A lease ends sooner than its stone, and
/// without it a renewal is refused as well.
const BURIED_FOR: Duration = Duration::from_secs(60);
const FORGOTTEN_FOR: Duration = Duration::from_secs(60);
/// How often it is read who was first, and how long between.
const WINNER_TRIES: usize = 10;
const WINNER_AGAIN: Duration = Duration::from_millis(20);

// What the first byte of a value means.
const LIVING: u8 = 1;
const GRAVE: u8 = 2;
const GONE: u8 = 3;

/// Bits of a revision that are the sequence. The 16 others say of which stream it is: one of a stream that is gone is
/// taken for one of another with a chance of 1 in 65,536, and then only if the sequence is that of the same subject.
const SEQUENCE_BITS: u32 = 48;

fn revision(identity: &Identity, sequence: u64) -> Revision {
    Revision((identity.epoch() << SEQUENCE_BITS) | (sequence & ((1 << SEQUENCE_BITS) - 1)))
}

/// Its sequence, if it is of this stream.
fn sequence(identity: &Identity, of: Revision) -> Option<u64> {
    let sequence = of.0 & ((1 << SEQUENCE_BITS) - 1);
    (revision(identity, sequence) == of).then_some(sequence)
}

/// Who has a lease, as far as this node knows.
#[derive(Default)]
struct Known {
    epoch: u64,
    /// With the sequence, and when it was seen.
    nodes: BTreeMap<NodeId, (u64, Bytes, Instant)>,
}

/// See the module.
pub(crate) struct Register {
    pub(crate) wire: Arc<Wire>,
    pub(crate) streams: Arc<Streams>,
    /// Over TLS a connection cannot be left before the broken one has written its farewell.
    may_leave_server: bool,
    state: watch::Sender<EngineState>,
    known: Mutex<Known>,
    members: watch::Sender<Arc<Members>>,
}

fn value(kind: u8, nonce: u64, bytes: &Bytes) -> Bytes {
    let mut value = BytesMut::with_capacity(9 + bytes.len());
    value.put_u8(kind);
    value.put_u64(nonce);
    value.extend_from_slice(bytes);
    value.freeze()
}

/// What is written, by whom, and what it says.
fn parsed(got: &Got) -> Option<(u8, u64, Bytes)> {
    let mut bytes = got.bytes.clone();
    if bytes.len() < 9 {
        return None;
    }
    Some((bytes.get_u8(), bytes.get_u64(), bytes))
}

impl Register {
    pub(crate) fn new(wire: Arc<Wire>, streams: Arc<Streams>, is_encrypted: bool) -> Arc<Self> {
        Arc::new(Self {
            wire,
            streams,
            may_leave_server: !is_encrypted,
            state: watch::Sender::new(EngineState::Up { epoch: rand::random() }),
            known: Mutex::default(),
            members: watch::Sender::default(),
        })
    }

    pub(crate) fn state(&self) -> watch::Receiver<EngineState> {
        self.state.subscribe()
    }

    pub(crate) fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    fn identity(&self, kind: Kind) -> Result<Identity, EngineDown> {
        self.streams.identity(kind).ok_or(EngineDown)
    }

    /// One member more, or one as it is now.
    fn seen(&self, epoch: u64, node: NodeId, sequence: u64, card: Option<Bytes>) {
        let mut known = self.known.lock();
        if known.epoch != epoch || known.nodes.get(&node).is_some_and(|(before, ..)| sequence <= *before) {
            return;
        }
        match card {
            Some(card) => _ = known.nodes.insert(node, (sequence, card, Instant::now())),
            None => _ = known.nodes.remove(&node),
        }
        self.tell(&known);
    }

    fn tell(&self, known: &Known) {
        let tag = |sequence: u64| Revision((known.epoch << SEQUENCE_BITS) | sequence);
        let members: Members =
            known.nodes.iter().map(|(node, (at, card, _))| (*node, Member::new(card.clone(), tag(*at)))).collect();
        self.members.send_if_modified(|before| {
            let is_new = **before != members;
            if is_new {
                *before = Arc::new(members);
            }
            is_new
        });
    }

    /// Reads who has a lease.
    pub(crate) async fn list(&self) -> Result<(), Failure> {
        let identity = self.streams.identity(Kind::Nodes).ok_or(Failure::NotSent)?;
        let began = Instant::now();
        // Before the list: what is over now is over then.
        let now = self.streams.time(Kind::Nodes).await?;
        let (mut found, mut after) = (BTreeMap::new(), 0);
        loop {
            let got = self.streams.first_from(Kind::Nodes, identity.token(), ">", after + 1).await?;
            let Some(got) = got else { break };
            if found.len() == MEMBERS_MAX {
                return Err(Failure::Unknown);
            }
            after = got.sequence;
            if let Some((node, card)) = self.member(&got) {
                found.insert(node, (got.sequence, card.filter(|_| !got.is_over(now))));
            }
        }

        let mut known = self.known.lock();
        if known.epoch != identity.epoch() {
            *known = Known { epoch: identity.epoch(), nodes: BTreeMap::new() };
        }
        // What was heard of meanwhile is newer than the list.
        known.nodes.retain(|node, (_, _, seen)| began <= *seen || matches!(found.get(node), Some((_, Some(_)))));
        for (node, (sequence, card)) in found {
            let is_newer = known.nodes.get(&node).is_none_or(|(before, ..)| *before < sequence);
            if let Some(card) = card.filter(|_| is_newer) {
                known.nodes.insert(node, (sequence, card, began));
            }
        }
        self.tell(&known);
        Ok(())
    }

    /// A node and its card. `None` in it: it has no lease any more.
    fn member(&self, got: &Got) -> Option<(NodeId, Option<Bytes>)> {
        let (_, node) = self.streams.names.parts(&got.subject)?;
        let (kind, _, card) = parsed(got)?;
        Some((node.parse().ok()?, (kind == LIVING).then_some(card)))
    }

    pub(crate) async fn lease(
        self: Arc<Self>,
        me: NodeId,
        card: Bytes,
        ttl: Duration,
    ) -> Result<Arc<dyn Lease>, EngineDown> {
        let identity = self.identity(Kind::Nodes)?;
        let nonce = rand::random();
        let write = Write::after(0, ttl);
        let bytes = value(LIVING, nonce, &card);
        let put = self.streams.put(Kind::Nodes, &identity, &me.to_string(), write, bytes).await;
        // An unknown end: the life that may have a lease now is never heard of again.
        let Put { sequence, .. } = put.map_err(|_| EngineDown)?;
        self.seen(identity.epoch(), me, sequence, Some(card));
        let state = LeaseState { last: sequence, tried: Vec::new() };
        Ok(Arc::new(NatsLease(Arc::new(Leased { register: self, me, ttl, identity, state: state.into() }))))
    }

    /// Where there is no lease any more, there is room for a stone; a living one refuses it, whatever is known of it here.
    pub(crate) async fn bury(&self, node: NodeId) -> Result<(), BuryError> {
        let identity = self.identity(Kind::Nodes).map_err(|_| BuryError::Down)?;
        let name = node.to_string();
        // Twice: a lease that is over, and that a broker shows which has started again, is written over.
        let mut after = 0;
        for is_last in [false, true] {
            let (write, stone) = (Write::after(after, BURIED_FOR), value(GRAVE, 0, &Bytes::new()));
            let at = match self.streams.put(Kind::Nodes, &identity, &name, write, stone).await {
                Ok(Put { sequence, .. }) => {
                    self.seen(identity.epoch(), node, sequence, None);
                    return Ok(());
                }
                Err(PutFailure::WrongLast(at)) => at,
                Err(_) => return Err(BuryError::Down),
            };
            // Before it is read: what is over now is over then.
            let now = self.streams.time(Kind::Nodes).await.map_err(|_| BuryError::Down)?;
            match self.read_at(Kind::Nodes, &identity, &name, at).await {
                // Buried by another one, or it has left.
                Ok(Some(got)) if parsed(&got).is_some_and(|(kind, ..)| kind != LIVING) => return Ok(()),
                Ok(Some(got)) if !is_last && got.is_over(now) => after = got.sequence,
                Ok(_) => return Err(BuryError::Alive),
                Err(_) => return Err(BuryError::Down),
            }
        }
        Err(BuryError::Alive)
    }

    /// What a compare-and-set was refused for.
    async fn read_at(
        &self,
        kind: Kind,
        identity: &Identity,
        name: &str,
        at: Option<u64>,
    ) -> Result<Option<Got>, Failure> {
        match at {
            Some(0) => Ok(None),
            Some(sequence) => self.streams.at(kind, sequence).await,
            None => self.streams.last(kind, identity.token(), name).await,
        }
    }

    /// The record for which a compare-and-set after this sequence was refused. `None`: there is none any more. What is older
    /// says nothing, nor does one that is not there yet: it is read again.
    async fn winner(
        &self,
        identity: &Identity,
        name: &str,
        mut at: Option<u64>,
        after: u64,
    ) -> Result<Option<Got>, Failure> {
        for _ in 0..WINNER_TRIES {
            if at == Some(0) {
                return Ok(None);
            }
            let got = self.read_at(Kind::Sessions, identity, name, at.take()).await?;
            if let Some(got) = got.filter(|got| after < got.sequence) {
                return Ok(Some(got));
            }
            sleep(WINNER_AGAIN).await;
        }
        Err(Failure::Unknown)
    }

    pub(crate) async fn session(&self, id: SessionId, fresh: bool) -> Result<Option<(Bytes, Revision)>, EngineDown> {
        let identity = self.identity(Kind::Sessions)?;
        let name = id.to_string();
        let got = match fresh {
            true => self.streams.last(Kind::Sessions, identity.token(), &name).await,
            false => self.streams.last_anywhere(Kind::Sessions, identity.token(), &name).await,
        };
        Ok(got.map_err(|_| EngineDown)?.and_then(|got| record(&identity, &got)))
    }

    pub(crate) async fn claim(
        &self,
        id: SessionId,
        was: Option<Revision>,
        bytes: Bytes,
        ttl: Duration,
    ) -> Result<Revision, ClaimError> {
        self.change(id, was, value(LIVING, 0, &bytes), ttl).await
    }

    pub(crate) async fn forget(&self, id: SessionId, was: Revision) -> Result<(), ClaimError> {
        self.change(id, Some(was), value(GONE, 0, &Bytes::new()), FORGOTTEN_FOR).await.map(drop)
    }

    async fn change(
        &self,
        id: SessionId,
        was: Option<Revision>,
        to: Bytes,
        ttl: Duration,
    ) -> Result<Revision, ClaimError> {
        let identity = self.identity(Kind::Sessions).map_err(|_| ClaimError::Down)?;
        let name = id.to_string();
        let mut after = match was {
            None => 0,
            Some(was) => sequence(&identity, was).ok_or(ClaimError::Lost(None))?,
        };
        // Twice: where there was a record that was forgotten, it is written over.
        for is_last in [false, true] {
            let write = Write::after(after, ttl);
            let put = self.streams.put(Kind::Sessions, &identity, &name, write, to.clone()).await;
            let at = match put {
                Ok(Put { sequence, .. }) => return Ok(revision(&identity, sequence)),
                Err(PutFailure::WrongLast(at)) => at,
                Err(PutFailure::Unknown | PutFailure::Meanwhile) => return Err(ClaimError::Unknown),
                Err(PutFailure::TooLarge) => return Err(ClaimError::TooLarge),
                Err(PutFailure::Down | PutFailure::Full) => return Err(ClaimError::Down),
            };
            let got = match self.winner(&identity, &name, at, after).await {
                Ok(Some(got)) => got,
                Ok(None) => return Err(ClaimError::Lost(None)),
                Err(_) => return Err(ClaimError::Down),
            };
            match parsed(&got) {
                Some((GONE, ..)) if was.is_none() && !is_last => after = got.sequence,
                _ => return Err(ClaimError::Lost(record(&identity, &got))),
            }
        }
        Err(ClaimError::Down)
    }
}

fn record(identity: &Identity, got: &Got) -> Option<(Bytes, Revision)> {
    let (kind, _, bytes) = parsed(got)?;
    (kind == LIVING).then(|| (bytes, revision(identity, got.sequence)))
}

/// Lists the members each second, and keeps what is known of the streams and of the register.
pub(crate) async fn watch_over(register: Weak<Register>) {
    let mut looked: Option<Instant> = Some(Instant::now());
    let mut generation = register.upgrade().map(|register| register.streams.generation());
    let mut connection = Looked::default();
    loop {
        let Some(here) = register.upgrade() else { return };
        here.wire.look_for_lost(&mut connection);
        let is_due = looked.is_none_or(|looked| LOOK_EVERY <= looked.elapsed());
        let works = here.look(is_due).await;
        looked = if works { looked.filter(|_| !is_due).or_else(|| Some(Instant::now())) } else { None };
        let generation_now = Some(here.streams.generation());
        here.judge(works, generation_now != generation);
        generation = generation_now;

        let streams = Arc::clone(&here.streams);
        let events = Arc::clone(&here.wire.events);
        drop(here);
        tokio::select! {
            () = sleep(if works { LIST_EVERY } else { BREATH }) => {}
            () = streams.doubt.notified() => {
                looked = None;
                sleep(BREATH).await;
            }
            // Another server, and perhaps one without our streams.
            () = events.connected.notified() => looked = None,
        }
    }
}

impl Register {
    /// Looks at what there is. False: the register does not work.
    async fn look(self: &Arc<Self>, at_streams: bool) -> bool {
        if !self.wire.events.is_up() {
            return false;
        }
        if at_streams && let Err(error) = self.streams.ensure_again(LOOK_MAX).await {
            tracing::warn!(%error, "the streams of the cluster");
            return false;
        }
        if !matches!(timeout(LIST_MAX, self.list()).await, Ok(Ok(()))) {
            return false;
        }
        !self.streams.do_writes_fail() || self.write_works().await
    }

    /// A write has failed, and perhaps nobody tries again.
    async fn write_works(&self) -> bool {
        let Ok(identity) = self.identity(Kind::Nodes) else { return false };
        let write = Write { time_to_live: Some(Duration::from_secs(1)), ..Write::default() };
        self.streams.put(Kind::Nodes, &identity, "probe", write, Bytes::new()).await.is_ok()
    }

    fn judge(&self, works: bool, is_anew: bool) {
        self.state.send_if_modified(|state| {
            let to = match (works, *state) {
                (true, EngineState::Up { epoch }) if !is_anew => EngineState::Up { epoch },
                (true, _) => EngineState::Up { epoch: rand::random() },
                (false, _) => EngineState::Down,
            };
            if to.is_up() != state.is_up() {
                match works {
                    true => tracing::info!("the register of the cluster works again"),
                    false => tracing::warn!("the register of the cluster does not work"),
                }
            }
            std::mem::replace(state, to) != to
        });
    }
}

/// Hears of leases as they are written: what the list says is a second old.
pub(crate) async fn watch_leases(register: Weak<Register>, mut subscriber: async_nats::Subscriber) {
    while let Some(message) = next(&mut subscriber).await {
        let Some(register) = register.upgrade() else { return };
        let sequence = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Sequence"));
        let sequence = sequence.and_then(|sequence| sequence.as_str().parse().ok());
        let token = register.streams.names.parts(&message.subject).map(|(token, _)| token);
        let identity = token.and_then(|token| register.streams.of_token(token));
        let (Some(sequence), Some((_, identity))) = (sequence, identity) else { continue };
        let ends = message.headers.as_ref().and_then(ends);
        let got = Got { subject: message.subject.to_string(), sequence, bytes: message.payload, ends };
        if let Some((node, card)) = register.member(&got) {
            register.seen(identity.epoch(), node, sequence, card);
        }
    }
}

struct NatsLease(Arc<Leased>);

struct Leased {
    register: Arc<Register>,
    me: NodeId,
    ttl: Duration,
    /// Of the stream that has it: in another one it never was.
    identity: Identity,
    state: tokio::sync::Mutex<LeaseState>,
}

struct LeaseState {
    last: u64,
    /// What was written since, of which nobody knows whether it was.
    tried: Vec<u64>,
}

/// Most renewals of unknown end that are remembered: one a second, for longer than any lease.
const TRIED_MAX: usize = 600;

impl Lease for NatsLease {
    fn renew(&self, card: Bytes) -> BoxFuture<Result<(), RenewError>> {
        let leased = Arc::clone(&self.0);
        Box::pin(async move { leased.renew(card).await })
    }

    fn release(&self) -> BoxFuture<()> {
        let leased = Arc::clone(&self.0);
        Box::pin(async move { leased.release().await })
    }
}

impl Leased {
    async fn renew(&self, card: Bytes) -> Result<(), RenewError> {
        let mut state = self.state.lock().await;
        let now = self.register.streams.identity(Kind::Nodes).ok_or(RenewError::Down)?;
        if now.epoch() != self.identity.epoch() {
            return Err(RenewError::Lapsed);
        }
        // Twice: one of unknown end may have been written, and is the last then.
        for _ in 0..2 {
            let nonce = rand::random();
            match self.put(&mut state, LIVING, nonce, &card, self.ttl).await {
                Ok(sequence) => {
                    state.last = sequence;
                    state.tried.clear();
                    self.register.seen(self.identity.epoch(), self.me, sequence, Some(card));
                    return Ok(());
                }
                Err(PutFailure::WrongLast(at)) => match self.find_own(&state, at).await? {
                    Some(sequence) => {
                        state.last = sequence;
                        state.tried.clear();
                    }
                    None => return Err(RenewError::Lapsed),
                },
                Err(_) => {
                    self.failed().await;
                    return Err(RenewError::Down);
                }
            }
        }
        Err(RenewError::Down)
    }

    /// Writes, and remembers it until its end is known: also if this future is dropped.
    async fn put(
        &self,
        state: &mut LeaseState,
        kind: u8,
        nonce: u64,
        card: &Bytes,
        ttl: Duration,
    ) -> Result<u64, PutFailure> {
        if state.tried.len() == TRIED_MAX {
            state.tried.remove(0);
        }
        state.tried.push(nonce);
        let (write, bytes) = (Write::after(state.last, ttl), value(kind, nonce, card));
        let name = self.me.to_string();
        let put = self.register.streams.put(Kind::Nodes, &self.identity, &name, write, bytes).await;
        if !matches!(put, Err(PutFailure::Unknown)) {
            state.tried.pop();
        }
        put.map(|put| put.sequence)
    }

    /// The sequence of a renewal of ours of unknown end, if that is the last. `None`: somebody else has written, or the
    /// lease is gone.
    async fn find_own(&self, state: &LeaseState, at: Option<u64>) -> Result<Option<u64>, RenewError> {
        if at == Some(0) || (at.is_some() && state.tried.is_empty()) {
            return Ok(None);
        }
        let name = self.me.to_string();
        let got = self.register.read_at(Kind::Nodes, &self.identity, &name, at).await.map_err(|_| RenewError::Down)?;
        // Refused, and yet nothing is there: an old answer, or it ends just now.
        let got = got.filter(|got| state.last < got.sequence).ok_or(RenewError::Down)?;
        let (kind, nonce, _) = parsed(&got).ok_or(RenewError::Down)?;
        Ok((kind == LIVING && state.tried.contains(&nonce)).then_some(got.sequence))
    }

    /// Perhaps it is the server of this connection that stands still: a leader that is elected answers nothing either,
    /// but then this server does.
    async fn failed(&self) {
        let wire = &self.register.wire;
        let may_leave = self.register.may_leave_server && wire.events.is_up();
        if may_leave && !wire.is_served(REQUEST_MAX / 2).await {
            tracing::warn!("the NATS server of this connection does not answer: another one is asked");
            wire.leave_server().await;
        }
    }

    async fn release(&self) {
        let mut state = self.state.lock().await;
        for _ in 0..2 {
            match self.put(&mut state, GONE, rand::random(), &Bytes::new(), FORGOTTEN_FOR).await {
                Ok(sequence) => {
                    self.register.seen(self.identity.epoch(), self.me, sequence, None);
                    return;
                }
                Err(PutFailure::WrongLast(at)) => match self.find_own(&state, at).await {
                    Ok(Some(sequence)) => state.last = sequence,
                    _ => return,
                },
                // What is left runs out.
                Err(_) => return,
            }
        }
    }
}
