//! One push to many sessions: encoded once, entered into the ledger of each, and then written.

use std::{
    cell::OnceCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bothways_proto::{Header, Limits, Metadata, Seq, keys};
use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    Session,
    batch::{self, Batch, Batches, Fill, Noted},
    claims::Listed,
    flight::{Flight, Flying},
    flusher::{CROWD, Flusher, Unwritten, write_to_each},
    handle::{Entered, Form},
    keys::Keyed,
    lock::Held,
    long_batch::Walker,
    push::{Class, Encoded, Push},
    receipt::Receipt,
    subscribers::{Listing, LongList},
    topic::TopicError,
    totals::Totals,
};
use crate::{
    clock::Runtimes,
    connection::send::PushFrame,
    error::{NotDurable, PushError, ReservedName},
};

/// See the module.
pub(super) struct Delivery {
    limits: Limits,
    /// Those in which the server listens.
    pub(super) runtimes: Arc<Runtimes>,
    /// What became of all pushes.
    pub(super) totals: Totals,
    pub(super) batches: Arc<Batches>,
    /// As [`CROWD`].
    #[cfg(test)]
    pub(super) crowd: std::sync::atomic::AtomicUsize,
    /// The server has stopped, and all sessions ended.
    stopped: AtomicBool,
}

impl Delivery {
    pub(super) fn new(limits: Limits, runtimes: Arc<Runtimes>) -> Self {
        Self {
            limits,
            runtimes,
            totals: Totals::default(),
            batches: Arc::default(),
            #[cfg(test)]
            crowd: CROWD.into(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Subscribers above which their list is a long one.
    #[cfg(not(test))]
    pub(super) fn crowd(&self) -> usize {
        CROWD
    }

    #[cfg(test)]
    pub(super) fn crowd(&self) -> usize {
        self.crowd.load(Ordering::Relaxed)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Nobody is pushed to from here on.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn encode(&self, push: &Push) -> Result<Encoded, PushError> {
        let plain = self.encode_with(push, &push.metadata)?;
        let mut metadata = push.metadata.clone();
        let hash = push.key.as_ref().map(|(key, hash)| {
            metadata.insert(keys::IDEMPOTENCY_KEY, &**key);
            *hash
        });
        match &push.class {
            Class::Latest(key) => metadata.insert(keys::LATEST_KEY, key),
            Class::Durable { .. } => return Err(NotDurable::Target.into()),
            _ if hash.is_none() => return Ok(Encoded { frame: plain, keyed: None }),
            _ => {}
        }
        let frame = self.encode_with(push, &metadata)?;
        Ok(Encoded { frame, keyed: Some(Arc::new(Keyed { hash, plain })) })
    }

    /// That a push of another class is one that could be sent.
    pub(super) fn check(&self, push: &Push) -> Result<(), PushError> {
        push.check_reserved()?;
        self.encode_with(push, &push.metadata).map(drop)
    }

    fn encode_with(&self, push: &Push, metadata: &Metadata) -> Result<Bytes, PushError> {
        let header = Header::oneway(Seq::of_push(0), push.serialize);
        let limits = &self.limits;
        let frame =
            PushFrame::with_header(header, &push.service_path, &push.service_method, metadata, &push.payload, limits)?;
        Ok(frame.bytes())
    }

    /// # Errors
    /// [`SendError::ShutDown`].
    pub(super) fn check_running(&self) -> Result<(), SendError> {
        if self.stopped.load(Ordering::Acquire) { Err(SendError::ShutDown) } else { Ok(()) }
    }

    /// A push begins.
    pub(super) fn begin(&self) -> Delivered {
        let flusher = Flusher::of_this_thread(&self.runtimes);
        let is_in_burst = flusher.as_ref().is_some_and(|flusher| flusher.is_in_burst());
        Delivered { flusher, is_in_burst, ..Delivered::default() }
    }

    /// True if a session may not have taken yet what was pushed to it; it does when it is locked.
    pub(super) fn has_batches(&self) -> bool {
        self.batches.any()
    }

    /// Pushes to these sessions.
    pub(super) fn push_to(&self, sessions: &[Session], push: &Push, receipt: &Receipt) -> Result<(), PushError> {
        let mut delivered = self.begin();
        push.check_reserved()?;
        let (encoded, listed) = (self.encode(push)?, Listed::new(sessions));
        let flight = Flight::of(push, &encoded, receipt, listed.origin);
        let flying = flight.as_ref().map(Flying::Only);
        deliver(sessions.iter(), push, flying, Form::Only(&encoded), receipt, &listed, &mut delivered);
        self.write(delivered);
        Ok(())
    }

    /// Hands what is published to these sessions, or enters it into their ledgers; [`Self::write`] follows, whatever comes
    /// of it.
    pub(super) fn deliver_of_topic(
        &self,
        published: &Publishing<'_>,
        push: &Push,
        receipt: &Receipt,
        delivered: &mut Delivered,
    ) -> Result<(), PushError> {
        let Publishing { with_topic, listed, listing, .. } = published;
        let flight = Flight::of(push, with_topic, receipt, listed.origin);
        if let Some(flight) = &flight {
            let is_noted = match listing {
                Listing::Short(sessions) if delivered.puts_off(sessions) => {
                    self.note(sessions, published, push, flight, receipt, delivered)?
                }
                Listing::Long(list) if delivered.flusher.is_some() => {
                    self.note_long(list, published, push, flight, receipt, delivered)?;
                    true
                }
                Listing::Short(_) | Listing::Long(_) => false,
            };
            if is_noted {
                return Ok(());
            }
        }
        self.deliver_to(listing.iter(), published, push, flight.as_ref(), receipt, delivered)
    }

    /// Notes it for a long list, all of which get it in their turns.
    fn note_long(
        &self,
        list: &Arc<LongList<Session>>,
        published: &Publishing<'_>,
        push: &Push,
        flight: &Arc<Flight>,
        receipt: &Receipt,
        delivered: &mut Delivered,
    ) -> Result<(), PushError> {
        let Publishing { with_topic, listed, topic, .. } = published;
        // Of so many, some may know of no topics.
        let plain = with_topic.or_plain(self.encode(push)?);
        let plain = Flight::of(push, &plain, receipt, listed.origin);
        let mut noted = Noted::new(push, Arc::clone(flight), plain, *topic);

        // Before one of them takes it.
        receipt.enter(list.len());
        delivered.is_long = true;
        loop {
            let (batch, is_new) = self.batches.of_long(list);
            delivered.begins_long |= is_new;
            match self.batches.note_long(&batch, noted) {
                Ok(()) => return Ok(()),
                // It was closed as it was found.
                Err(again) => noted = again,
            }
        }
    }

    /// Notes it in the batch of its sessions, all of which get it soon. False: it is delivered to each now.
    fn note(
        &self,
        sessions: &Arc<[Session]>,
        published: &Publishing<'_>,
        push: &Push,
        flight: &Arc<Flight>,
        receipt: &Receipt,
        delivered: &mut Delivered,
    ) -> Result<bool, PushError> {
        let Publishing { with_topic, listed, topic, .. } = published;
        // One that is closed as it is found makes room for another.
        for _ in 0..2 {
            let Some(batch) = self.batches.of(sessions) else { return Ok(false) };
            // First: whatever comes of it, it is written.
            delivered.batches.push(Arc::clone(&batch));

            // Before one of them takes it.
            receipt.enter(sessions.len());
            let noted = batch.note(|joined| {
                let plain = joined.has_plain.then(|| self.encode(push)).transpose()?;
                let plain =
                    plain.and_then(|plain| Flight::of(push, &with_topic.or_plain(plain), receipt, listed.origin));
                Ok::<_, PushError>(Noted::new(push, Arc::clone(flight), plain, *topic))
            });

            let taken_back = match &noted {
                Ok(Some((_, joined))) => joined.others.len(),
                Ok(None) | Err(_) => sessions.len(),
            };
            receipt.take_back(taken_back);
            if let Some((fill, joined)) = noted? {
                delivered.fill = delivered.fill.max(fill);
                self.deliver_to(joined.others.iter(), published, push, Some(flight), receipt, delivered)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Delivers to each of these, which are some or all of those to whom it is published.
    fn deliver_to<'s>(
        &self,
        sessions: impl Iterator<Item = &'s Session> + Clone,
        published: &Publishing<'_>,
        push: &Push,
        flight: Option<&Arc<Flight>>,
        receipt: &Receipt,
        delivered: &mut Delivered,
    ) -> Result<(), PushError> {
        let Publishing { with_topic, listed, .. } = published;
        // Encoded once at most, and only if one of the sessions knows no topics.
        let perhaps_plain = OnceCell::new();
        let plain = || {
            let encoded = perhaps_plain.get_or_init(|| self.encode(push).map(|plain| with_topic.or_plain(plain)));
            encoded.as_ref().ok()
        };
        let form = Form::OfTopic { with_topic, plain: &plain };

        let perhaps_plain_flight = OnceCell::new();
        let plain_flight = || {
            let flight = || Flight::of(push, plain()?, receipt, listed.origin);
            perhaps_plain_flight.get_or_init(flight).as_ref()
        };
        let flying = flight.map(|with_topic| Flying::OfTopic { with_topic, plain: &plain_flight });

        deliver(sessions, push, flying, form, receipt, listed, delivered);
        match perhaps_plain.into_inner() {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes what these have got: at once, or soon, together with what comes next.
    pub(super) fn write(&self, delivered: Delivered) {
        let Delivered { flusher, is_in_burst, sent, kept, much, batches, fill, is_long, begins_long } = delivered;
        if begins_long {
            // On the runtime of this thread, which is the flusher's.
            Handle::current().spawn(Walker(Arc::clone(&self.batches)).run());
        }
        if is_long {
            self.batches.help();
        }
        write_to_each(much, Session::write_put_off);
        match &flusher {
            Some(flusher) if !sent.is_empty() => flusher.write(sent, is_in_burst),
            _ => write_to_each(sent, Session::write_put_off),
        }
        if let Some(flusher) = flusher.filter(|_| !batches.is_empty()) {
            flusher.write_batches(batches, fill);
        }
        self.pump_all(&kept);
    }

    /// Writes to these sessions what is in their ledgers. To a crowd a task does so, which lets others run every so
    /// many; each session gets its pushes in the order of its ledger, whichever thread writes.
    fn pump_all(&self, sessions: &[Session]) {
        let crowd = CROWD < sessions.len();
        let runtime = crowd.then(|| self.runtimes.near()).flatten();
        let Some(runtime) = runtime else { return write_to_each(sessions, Session::pump) };
        write_by_task(sessions, &runtime);
    }
}

/// Hands a push to the connections of these sessions, where nothing is before it; the others have it in their ledgers.
fn deliver<'s>(
    sessions: impl Iterator<Item = &'s Session> + Clone,
    push: &Push,
    flying: Option<Flying<'_>>,
    form: Form<'_>,
    receipt: &Receipt,
    listed: &Listed<'_>,
    delivered: &mut Delivered,
) {
    let Some(flying) = flying else {
        let each = sessions.map(|session| (session, session.deliver(push, form, receipt, listed)));
        return each.for_each(|(session, entered)| delivered.note(session, entered));
    };

    // Nobody is woken before all have it.
    let _held = Held::begin();
    // Before one of them is written.
    receipt.enter(sessions.clone().count());

    let (mut others, flusher) = (0, delivered.flusher.as_ref().map(|flusher| flusher.id()));
    for session in sessions {
        let entered = session.send(push, flying, listed.topic, flusher).unwrap_or_else(|| {
            others += 1;
            session.deliver(push, form, receipt, listed)
        });
        delivered.note(session, entered);
    }
    // Those that went through `Session::deliver` count by their tickets, or not at all.
    receipt.take_back(others);
}

/// What is published to a topic.
pub(super) struct Publishing<'a> {
    pub(super) with_topic: &'a Encoded,
    pub(super) listed: &'a Listed<'a>,
    /// The topic that keeps it.
    pub(super) topic: Option<&'a Arc<str>>,
    /// Those to whom it is.
    pub(super) listing: &'a Listing<Session>,
}

/// The sessions that got a push, by what is to be done for it.
#[derive(Default)]
pub(super) struct Delivered {
    /// What writes to many for this thread, if it is in a runtime of the server's.
    flusher: Option<Arc<Flusher>>,
    /// The push follows another one of this thread closely.
    is_in_burst: bool,
    /// Their connections have it.
    sent: Vec<Session>,
    /// Their connections have so much that it is written at once.
    much: Vec<Session>,
    /// It is in their ledgers.
    kept: Vec<Session>,
    /// It is noted here, for the flusher.
    batches: Vec<Arc<Batch>>,
    fill: Fill,
    /// It is noted for a long list, and begins the batch of that.
    is_long: bool,
    begins_long: bool,
}

impl Delivered {
    /// True if a push to these sessions is one of several, or of a crowd: it waits for the flusher.
    fn puts_off(&self, sessions: &Arc<[Session]>) -> bool {
        let Some(flusher) = &self.flusher else { return false };
        if Arc::strong_count(sessions) < 2 {
            // It was made for this push alone, as of subscribers of several patterns: the next push has another list.
            return false;
        }
        let is_again = flusher.pushes_again_to(sessions);
        is_again && self.is_in_burst && batch::SESSIONS_MIN <= sessions.len() || CROWD < sessions.len()
    }

    fn note(&mut self, session: &Session, entered: Entered) {
        let of_these = match entered {
            Entered::Sent => &mut self.sent,
            Entered::SentMuch => &mut self.much,
            Entered::Kept => &mut self.kept,
            Entered::Nothing | Entered::DoesNotSuit => return,
        };
        of_these.push(session.clone());
    }
}

/// Writes to these sessions by a task, which lets others run every so many.
fn write_by_task(sessions: &[Session], runtime: &Handle) {
    sessions.iter().for_each(Session::note_unwritten);
    runtime.spawn(Unwritten::new(sessions.to_vec(), Session::pump).write_in_turns());
}

/// Why a push to a target was not even begun.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The topic has no such name.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The message cannot be sent.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The server was shut down: its sessions have ended, and its topics have no subscribers any more.
    #[error("the server was shut down")]
    ShutDown,
}

impl From<ReservedName> for SendError {
    fn from(error: ReservedName) -> Self {
        Self::Push(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures::plain_connections, *};

    /// A list that was made for one push is no reason to wait for the next one, which has another list, perhaps at the
    /// same address.
    #[tokio::test(start_paused = true)]
    async fn only_a_list_that_is_kept_is_waited_for() {
        let (_server, _clients, registry, connections) = plain_connections::<2>("kept-list").await;
        let list: Arc<[Session]> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let puts_off = || Delivered { is_in_burst: true, ..registry.fan_out.begin() }.puts_off(&list);
        assert!(!puts_off() && !puts_off(), "nobody keeps it");
        let _kept = Arc::clone(&list);
        assert!(!puts_off() && puts_off(), "the second push goes to it again");
    }

    /// A crowd is written to by a task. If its runtime ends before that has run, all are written to, and no push waits
    /// for the next one.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_written_to_though_its_runtime_ends() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("crowd").await;
        let sessions = connections.map(|connection| registry.of(&connection).expect("it is made"));
        let (push, receipt) = (Push::new("Chat", "say", "x"), Receipt::new());
        let frame = registry.fan_out.encode(&push).expect("small");
        sessions.iter().for_each(|session| session.add(&push, &frame, &receipt, &Listed::default()));
        // Nobody runs its tasks.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        write_by_task(&sessions, runtime.handle());
        assert_eq!(receipt.outcomes().at(super::super::Stage::Queued), 3, "{receipt:?}");
        runtime.shutdown_background();
        assert_eq!(receipt.outcomes().at(super::super::Stage::PlainWritten), 3, "{receipt:?}");
    }
}
