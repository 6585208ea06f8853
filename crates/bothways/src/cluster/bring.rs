//! Brings a session to this node whose client has come here: `claim.rs` at work.
//!
//! It runs in a task of its own: a client that leaves in the middle of it leaves no session behind whose record is
//! written and that nobody has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bothways_proto::{Metadata, keys};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    ask,
    claim::{Claim, End, Given, NOBODY, Owned, Read, Step, Written as Outcome},
    engine::{BuryError, Log, NodeId, Revision},
    moves::{Asked, Refused, Said, WriteError, cuts_of, numbers},
    node::Node,
    owned::OwnedHere,
    record::{Parked, Written},
    snapshot::{self, IMAGE_BYTES_MAX},
};
use crate::{
    connection::Connection,
    reply::BoxFuture,
    session::{Known, RETRY_LATE, SessionId, SessionImage, hash_of},
};

/// How long a client waits for its session to come here, before it is to come again.
const BRING_MAX: Duration = Duration::from_secs(2);
/// After how long a compare-and-set of unknown end is written once more.
const UNSURE_RETRY: Duration = Duration::from_millis(250);
/// After how long a client comes again whose session cannot be had now.
const RETRY_AGAIN: Duration = Duration::from_millis(500);
/// How many parts of a parked session are read at once.
const PARTS_AT_ONCE: usize = 8;

/// A session that a client comes for.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) id: SessionId,
    pub(super) hash: [u8; 32],
    pub(super) attempt: Option<u64>,
    /// How the client calls its device.
    pub(super) device: Option<Box<str>>,
    pub(super) connection: Connection,
}

/// A session as it came.
type Image = Arc<SessionImage>;

/// What is known of the record while it is claimed.
#[derive(Default)]
struct Seen {
    written: Option<Written>,
    image: Option<Image>,
}

impl Node {
    /// See [`Elsewhere::bring`](crate::session::Elsewhere::bring).
    pub(super) fn bring_for(
        &self,
        connection: &Connection,
        hello: &Metadata,
    ) -> Option<BoxFuture<Result<(), Duration>>> {
        let id = hello.get(keys::SESSION_ID)?.parse().ok()?;
        let hash = hash_of(hello.get(keys::SESSION_KEY)?);
        let attempt = hello.get(keys::SESSION_TRY).and_then(|attempt| attempt.parse().ok());
        let device = hello.get(keys::DEVICE).map(Into::into);
        let wanted = Wanted { id, hash, attempt, device, connection: connection.clone() };
        let node = self.this()?;
        Some(Box::pin(async move {
            // It may go on for longer than its client waits: as long as nobody knows whose the session is.
            let brought = timeout(BRING_MAX, tokio::spawn(async move { node.bring(wanted).await })).await;
            match brought {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(Refused::Late))) => Err(RETRY_LATE),
                Ok(Ok(Err(Refused::Again)) | Err(_)) | Err(_) => Err(RETRY_AGAIN),
            }
        }))
    }

    /// Sees to it that a session is here, if it is anywhere. `Err`: its client keeps it, and comes again.
    pub(super) async fn bring(self: &Arc<Self>, wanted: Wanted) -> Result<(), Refused> {
        let deadline = Instant::now() + BRING_MAX;
        match timeout_at(deadline, self.admit(wanted.id, &wanted.hash, wanted.attempt)).await {
            Err(_) => return Err(Refused::Again),
            Ok(Err(refused)) => return Err(refused),
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {}
        }
        // One whose lease has ended, and that does not know it yet, is no member: it would miss what is pushed.
        if !self.is_counted(deadline).await || !self.is_certain() {
            return Err(Refused::Again);
        }
        let Ok(Ok(_place)) = timeout_at(deadline, self.moves.places.acquire()).await else {
            return Err(Refused::Again);
        };
        if !self.moves.begin_claim(wanted.id) {
            return Err(Refused::Again);
        }
        let ended = self.claim(&wanted, deadline).await;
        self.moves.end_claim(wanted.id);
        match ended {
            None | Some(End::Unknown | End::NodeLost) => Ok(()),
            Some(End::Late) => Err(Refused::Late),
            Some(End::Again) => Err(Refused::Again),
        }
    }

    /// `None`: it is here. It ends with the time of its client, and with the life of this node; but where the record may
    /// name this node already, only when that is known, or when the node leaves.
    async fn claim(self: &Arc<Self>, wanted: &Wanted, deadline: Instant) -> Option<End> {
        let id = wanted.id;
        let Some(me) = self.me() else { return Some(End::Again) };
        let (mut claim, mut step) = Claim::<Image>::begin(me, rand::random());
        let mut seen = Seen::default();
        loop {
            let is_over = deadline <= Instant::now() || self.me() != Some(me);
            let may_stop = claim.may_stop() || *self.stopped().borrow();
            if is_over && may_stop && !matches!(step, Step::Install { .. } | Step::End(_)) {
                return Some(End::Again);
            }
            step = match step {
                Step::Read => {
                    let read = timeout_at(deadline, self.read(id, &mut seen)).await.unwrap_or(Read::Down);
                    if seen.written.as_ref().is_some_and(|written| written.hash != wanted.hash) {
                        // A client with another secret has never had it: nothing is asked, and nothing is written.
                        return Some(End::Unknown);
                    }
                    claim.read(read)
                }
                Step::Give(node) => {
                    let given = timeout_at(deadline, self.ask_for(node, me, wanted)).await.unwrap_or(Given::Silent);
                    if let Given::Image { image, .. } = &given {
                        seen.image = Some(Arc::clone(image));
                    }
                    claim.gave(given)
                }
                Step::Unpark => {
                    let parked = seen.written.as_ref().and_then(|written| written.parked);
                    let image = timeout_at(deadline, self.unpark(id, parked)).await.unwrap_or(Err(()));
                    if let Ok(Some(image)) = &image {
                        seen.image = Some(Arc::clone(image));
                    }
                    claim.unparked(image)
                }
                Step::AskAll => {
                    claim.asked_all(timeout_at(deadline, self.who_has(me, wanted)).await.unwrap_or(Err(())))
                }
                Step::Look => claim.looked(!wanted.connection.is_over()),
                Step::Bury(node) => claim.buried(self.bury(node).await),
                Step::Write(was, record) => {
                    let known = if record.owner == NOBODY { Known::of(wanted.hash) } else { seen.known(wanted) };
                    let outcome = match self.write(id, was, &Written::new(&record, &known)).await {
                        Ok(revision) => Outcome::Won(revision),
                        Err(WriteError::Lost(_)) => Outcome::Lost,
                        Err(WriteError::Down) => Outcome::Down,
                        Err(WriteError::Unknown) => Outcome::Unknown,
                    };
                    if matches!(outcome, Outcome::Down | Outcome::Unknown) {
                        sleep(UNSURE_RETRY).await;
                    }
                    claim.claimed(outcome)
                }
                Step::Install { term, revision, image } => {
                    if let Some(mail) = self.registry().as_ref().and_then(|sessions| sessions.mailboxes()) {
                        // Before it is here: its mailbox is read from then on, from the place of this device and no other's.
                        mail.name_device(id, wanted.device.as_deref());
                    }
                    self.install(me, id, Owned::new(term, revision, wanted.attempt.unwrap_or(0), None), &image);
                    if let Some(parked) = seen.written.as_ref().and_then(|written| written.parked) {
                        self.forget_parked(id, parked).await;
                    }
                    return None;
                }
                Step::End(end) => {
                    if end == End::NodeLost {
                        self.begin_anew(wanted, &seen);
                    }
                    return Some(end);
                }
            };
        }
    }

    async fn read(&self, id: SessionId, seen: &mut Seen) -> Read {
        let Ok(read) = self.engine().session(id, true).await else { return Read::Down };
        let Some((bytes, revision)) = read else { return Read::Nothing };
        // Of another version: nobody here can tell what it says.
        let Some(written) = Written::from_bytes(bytes) else { return Read::Down };
        let record = written.record();
        let is_given_up = written.is_given_up();
        let is_parked = written.parked.is_some();
        seen.written = Some(written);
        if is_given_up {
            return Read::GivenUp;
        }
        if is_parked {
            return Read::Parked { record, revision };
        }
        let owner_lives = self.engine().members().borrow().contains_key(&record.owner);
        let may_judge = self.moves.may_judge(self.lease());
        let is_here = self.moves.has_record(id) || self.registry().is_some_and(|sessions| sessions.session_lives(id));
        Read::Record { record, revision, owner_lives, may_judge, is_here }
    }

    /// Asks a node for a session, and fetches its parts.
    async fn ask_for(&self, node: NodeId, me: NodeId, wanted: &Wanted) -> Given<Image> {
        let &Wanted { id, hash, attempt, .. } = wanted;
        let asked = Asked::Give { id, hash, attempt, by: me.0 };
        let (term, revision, count, first) = match self.ask_move(node, &asked).await {
            Some(Said::Image { term, revision, parts, first }) => (term, Revision(revision), parts, first),
            Some(Said::Late) => return Given::Late,
            Some(Said::NotMine) => return Given::NotMine,
            Some(Said::Nothing) => return Given::Nothing,
            Some(Said::Moved(to)) => return Given::Moved(NodeId(to)),
            _ => return Given::Silent,
        };
        let (mut parts, mut bytes) = (vec![first], 0);
        for part in 1..count {
            let Some(Said::Part(more)) = self.ask_move(node, &Asked::Part { id, part }).await else {
                return Given::Silent;
            };
            bytes += more.len();
            if IMAGE_BYTES_MAX < bytes {
                return Given::Silent;
            }
            parts.push(more);
        }
        match snapshot::read(&parts).filter(|image| image.id == id) {
            Some(image) => Given::Image { term, revision, image: Arc::new(image) },
            None => Given::Silent,
        }
    }

    /// Reads the parts of a parked session.
    async fn unpark(&self, id: SessionId, parked: Option<Parked>) -> Result<Option<Image>, ()> {
        let Some(Parked { epoch, first, last, parts: count, .. }) = parked else { return Ok(None) };
        let (mut parts, mut after, mut bytes): (Vec<Bytes>, u64, usize) = (Vec::new(), first.saturating_sub(1), 0);
        while parts.len() < count as usize {
            let page = self.engine().read(Log::Parked(id), after, PARTS_AT_ONCE).await.map_err(drop)?;
            if page.entries.is_empty() {
                // Gone with its time, or with the store.
                return Ok(None);
            }
            for (place, part) in page.entries {
                bytes += part.len();
                if place.epoch != epoch || last < place.sequence || IMAGE_BYTES_MAX < bytes {
                    return Ok(None);
                }
                after = place.sequence;
                parts.push(part);
            }
        }
        Ok(snapshot::read(&parts).filter(|image| image.id == id).map(Arc::new))
    }

    /// Asks every member whether it has a session. `Err`: one does not answer.
    async fn who_has(&self, me: NodeId, wanted: &Wanted) -> Result<Option<NodeId>, ()> {
        let known = self.registry().and_then(|sessions| sessions.known(wanted.id));
        if known.is_some_and(|known| known.hash == wanted.hash) {
            return Ok(Some(me));
        }
        self.others_have(wanted.id, wanted.hash).await
    }

    /// Asks every other member whether it has a session. `Err`: one does not answer.
    pub(super) async fn others_have(&self, id: SessionId, hash: [u8; 32]) -> Result<Option<NodeId>, ()> {
        let me = self.me();
        let members = Arc::clone(&self.engine().members().borrow());
        let mut asking = tokio::task::JoinSet::new();
        let bytes = super::moves::asked_bytes(&Asked::Has { id, hash }).ok_or(())?;
        for node in members.keys().copied().filter(|node| Some(*node) != me) {
            asking.spawn(ask::once(Arc::clone(self.engine()), node, bytes.clone()));
        }
        let (mut found, mut is_silent) = (None, false);
        while let Some(asked) = asking.join_next().await {
            match asked.ok().and_then(|(node, answer)| Some((node, Said::from_bytes(answer?)?))) {
                Some((node, Said::Has(true))) => found = Some(node),
                Some((_, Said::Has(false))) => {}
                _ => is_silent = true,
            }
        }
        match found {
            Some(node) => Ok(Some(node)),
            // While all leases begin anew, as after a loss of the register's data, who has it may be no member yet.
            None if is_silent || self.moves.has_lapsed_lately(self.lease()) => Err(()),
            None => Ok(None),
        }
    }

    /// Puts a gravestone on the lease of a node that is no member. False: it lives, or nobody knows.
    async fn bury(&self, node: NodeId) -> bool {
        let was = self.last_revision(node).unwrap_or(Revision(0));
        match tokio::time::timeout(BRING_MAX, self.engine().bury(node, was)).await {
            Ok(Ok(())) => true,
            Ok(Err(BuryError::Alive | BuryError::Down)) | Err(_) => false,
        }
    }

    /// The record names this node, under a name that it had when the claim began: the session is here from here on.
    fn install(self: &Arc<Self>, named: NodeId, id: SessionId, owned: OwnedHere, image: &SessionImage) {
        let Some(sessions) = self.registry() else { return };
        // Its next life, if this one is over, claims it anew.
        let (me, is_stale, term) = (self.me().unwrap_or(named), self.me() != Some(named), owned.term);
        let from = Some(NodeId(image.from)).filter(|from| self.others().contains(from));
        let giver = NodeId(if image.giver == 0 { image.from } else { image.giver });
        let chains = image.behind.iter().map(|(number, chain)| (*number, chain.iter().copied().map(NodeId).collect()));
        let chains: HashMap<u64, Vec<NodeId>> = chains.collect();
        let behind = |number: u64| chains.get(&number).map_or(&[][..], |chain| &**chain);
        let (taken, cuts) = {
            // What is pushed is before the cuts, or finds the session.
            let _alone = sessions.gate.alone();
            let at = (me, self.last_push());
            let cuts = self.moves.own(id, owned, is_stale, at, cuts_of(image.taken.clone()));
            let follows = |number| self.is_followed(giver, behind(number)).then(|| self.follows(giver, number));
            (sessions.take_in(image.clone(), from.is_some(), &follows), cuts)
        };
        let Some(taken) = taken else {
            tracing::warn!(session = %id, "a session that came from another node could not be taken in");
            if let Some(mail) = sessions.mailboxes().filter(|_| sessions.session(id).is_none()) {
                mail.forget(id);
            }
            return self.moves.disown(id);
        };
        self.owe_all(giver, &taken.receipts, &behind);
        let known = sessions.known(id);
        let why = known.and_then(|known| self.kicks.lock().reason(id, &known, taken.age).map(str::to_owned));
        if let (Some(why), Some(session)) = (why, sessions.session(id)) {
            sessions.kick(&[session], &why);
        } else if taken.is_coming {
            let sessions = Arc::clone(&sessions);
            self.runtime.spawn(async move { sessions.bring_up(id).await });
        }
        let Some(from) = from else { return };
        let node = Arc::clone(self);
        let cuts = numbers(&cuts);
        tokio::spawn(async move {
            // A word that is lost is no harm: its former node finds out by itself.
            node.ask_move(from, &Asked::Took { id, by: me.0, term, cuts }).await;
        });
    }

    /// The node of the session is gone: its client is told so, and is the same user.
    fn begin_anew(&self, wanted: &Wanted, seen: &Seen) {
        let Some(sessions) = self.registry() else { return };
        sessions.note_node_lost(wanted.id, wanted.hash);
        sessions.begin_as(&wanted.connection, &seen.known(wanted));
    }
}

impl Seen {
    /// What is to be written of it.
    fn known(&self, wanted: &Wanted) -> Known {
        let of_image = self.image.as_ref().map(|image| (image.user.clone(), image.labels.clone()));
        let of_record = || self.written.as_ref().map(|written| (written.user.clone(), written.labels.clone()));
        let (user, labels) = of_image.or_else(of_record).unwrap_or_default();
        Known { user: user.map(Into::into), labels, ..Known::of(wanted.hash) }
    }
}
