//! One session reads the mailbox of its user: from the cursor of its device, in order, as its client handles the letters.
//!
//! A task, for as long as there is something to read or to wait for. What it has from the store is what the store says: a
//! ring is a reason to look, and no letter. So none that was lost on its way is passed over.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinSet, time::Instant};

use super::{
    super::{
        Session,
        push::Push,
        receipt::{Stage, Ticket},
    },
    DEFAULT_DEVICE, DEVICES_MAX, Mailboxes,
    letter::{Dead, Letter},
    window::{End, LETTERS_MAX, Then, Window},
};
use crate::{
    calm::tell,
    clock::{after, backoff, unix_ms},
    store::{AppendError, EngineDown, Log, NewEntry, Page, Place, Stored},
};

/// How long a letter waits for room in its session; after that others are looked at.
const ROOM_WAIT: Duration = Duration::from_secs(10);

/// After how long a store that does not answer is asked again; twice as long each time, up to the second.
const STORE_AGAIN: Duration = Duration::from_millis(200);
const STORE_AGAIN_MAX: Duration = Duration::from_secs(10);

/// How long one question to a store may take.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// A store that rang may not show the letter yet, as a replica that is behind: it is asked again after this, twice as long each
/// time and up to [`STORE_AGAIN_MAX`], and so often: for a minute and a half.
const BEHIND_WAIT: Duration = Duration::from_millis(50);
const BEHIND_TRIES: u32 = 15;

/// What is handled by all devices is forgotten after so many letters, and when all is read.
const TRIM_AFTER: usize = 64;

/// Ends of letters that are remembered for receipts that come late.
const ENDED_MAX: usize = 64;

/// How others reach a reader.
#[derive(Default)]
pub(super) struct Reader {
    /// Somebody rang since it looked last.
    rung: AtomicBool,
    /// It has asked its store for the first time.
    has_looked: AtomicBool,
    bell: Notify,
    asked: Mutex<Asked>,
}

/// What others want of a reader.
#[derive(Default)]
struct Asked {
    /// The last letter that is certain to be there.
    place: Option<Place>,
    /// Of receipts, by letter.
    tickets: BTreeMap<Place, Vec<Ticket>>,
    ended: VecDeque<(Place, Stage)>,
}

impl Reader {
    #[cfg(feature = "cluster")]
    pub(super) fn has_looked(&self) -> bool {
        self.has_looked.load(Ordering::Acquire)
    }

    /// It is to look; a ticket waits for the end of its letter. Returns one whose letter has ended already.
    pub(super) fn ring(&self, place: Option<Place>, ticket: Option<(Stored, Ticket)>) -> Option<(Ticket, Stage)> {
        let mut asked = self.asked.lock();
        if let Some(place) = place {
            asked.place = asked.place.filter(|known| known.epoch == place.epoch).max(Some(place));
        }
        let mut over = None;
        if let Some((stored, ticket)) = ticket {
            match asked.ended.iter().find(|(place, _)| *place == stored.place) {
                Some((_, stage)) => over = Some((ticket, *stage)),
                // It may have been handled long ago.
                None if stored.repeated && !asked.tickets.contains_key(&stored.place) => {
                    over = Some((ticket, Stage::Duplicate));
                }
                None => asked.tickets.entry(stored.place).or_default().push(ticket),
            }
        }
        drop(asked);
        self.rung.store(true, Ordering::Release);
        self.bell.notify_one();
        over
    }

    /// A letter has come to its end in this session.
    fn end(&self, place: Place, stage: Stage) {
        let mut asked = self.asked.lock();
        let tickets = asked.tickets.remove(&place).unwrap_or_default();
        asked.ended.push_back((place, stage));
        if ENDED_MAX < asked.ended.len() {
            asked.ended.pop_front();
        }
        drop(asked);
        tickets.into_iter().for_each(|mut ticket| ticket.advance(stage));
    }

    /// Nobody reads any more: of what is up to the cursor it is not known here how it ended.
    fn close(&self, cursor: Option<Place>) {
        let tickets = std::mem::take(&mut self.asked.lock().tickets);
        for (place, tickets) in tickets {
            let is_read = cursor.is_some_and(|cursor| place.epoch != cursor.epoch || place <= cursor);
            // The others count as dropped with their session: it has not got the letter, which stays in the mailbox.
            tickets.into_iter().filter(|_| is_read).for_each(|mut ticket| ticket.advance(Stage::Unknown));
        }
    }
}

/// A reader that others find. If its task ends with its runtime, also before it has run, another one can begin.
pub(super) struct Registered {
    pub(super) mail: Arc<Mailboxes>,
    pub(super) session: Session,
    pub(super) reader: Arc<Reader>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut readers = self.mail.readers.lock();
        if readers.get(&self.session.id()).is_some_and(|reader| Arc::ptr_eq(reader, &self.reader)) {
            readers.remove(&self.session.id());
        }
    }
}

/// Reads until there is nothing left, and nobody rings.
pub(super) async fn run(registered: Registered) {
    let (mail, session) = (Arc::clone(&registered.mail), registered.session.clone());
    let (reader, mut cursor) = (Arc::clone(&registered.reader), None);
    while let Some(user) = session.user().filter(|_| session.is_resumable()) {
        let mut reading = Reading::new(&mail, &session, &reader, user);
        let is_over = loop {
            if reading.read_all().await {
                break true;
            }
            if reading.is_another_users() {
                break false;
            }
            // Under the lock: one that rings after this finds no reader, and begins another.
            let mut readers = mail.readers.lock();
            if !reader.rung.load(Ordering::Acquire) {
                readers.remove(&session.id());
                break true;
            }
        };
        cursor = reading.place(reading.window.read());
        if is_over {
            break;
        }
    }
    drop(registered);
    reader.close(cursor);
    if reader.rung.load(Ordering::Acquire) {
        // It was bound to a user again, just before.
        mail.arrived(&session);
    }
}

fn cursor_of(cursors: &[(String, Place)], device: &str) -> Option<Place> {
    cursors.iter().find(|(name, _)| name == device).map(|(_, place)| *place)
}

/// A letter between the store and its end.
#[derive(Clone, Debug)]
struct InHand {
    /// `None`: it cannot be read, or sent.
    push: Option<Push>,
    /// As the store has it.
    bytes: Bytes,
}

struct Reading<'a> {
    mail: &'a Arc<Mailboxes>,
    session: &'a Session,
    reader: &'a Arc<Reader>,
    user: Arc<str>,
    device: Arc<str>,
    /// Times are since then.
    began: Instant,
    /// It is known from where to read.
    has_begun: bool,
    /// The device has a cursor.
    has_cursor: bool,
    /// Of the store. `None`: it has told none.
    epoch: Option<u64>,
    window: Window<InHand>,
    /// Letters that are with the session.
    out: JoinSet<(u64, Option<Stage>)>,
    /// How the last deliveries of letters failed.
    failed: BTreeMap<u64, Stage>,
    /// There may be more to read.
    more: bool,
    /// How often the store has not shown a letter that is there.
    behind: u32,
    /// The cursor that the store is to have.
    unsaved: Option<u64>,
    handled: usize,
    /// Asks of the store that failed one after another, and when it is asked again.
    failures: u32,
    again: Option<Instant>,
    /// When a letter that dies is tried to be kept again: the store had no room for it.
    bury_again: Option<Instant>,
}

impl<'a> Reading<'a> {
    fn new(mail: &'a Arc<Mailboxes>, session: &'a Session, reader: &'a Arc<Reader>, user: Arc<str>) -> Self {
        Self {
            mail,
            session,
            reader,
            user,
            device: mail.device_of(session.id()),
            began: Instant::now(),
            has_begun: false,
            has_cursor: false,
            epoch: None,
            window: Window::beginning_after(0, mail.options.tries()),
            out: JoinSet::new(),
            failed: BTreeMap::new(),
            more: true,
            behind: 0,
            unsaved: None,
            handled: 0,
            failures: 0,
            again: None,
            bury_again: None,
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn log(&self) -> Log {
        Log::Mailbox(self.user.to_string())
    }

    fn place(&self, sequence: u64) -> Option<Place> {
        Some(Place { epoch: self.epoch?, sequence })
    }

    fn is_another_users(&self) -> bool {
        self.session.user().as_ref() != Some(&self.user)
    }

    /// True if nobody is there to read for: the session, or the whole server, has ended.
    fn is_over(&self) -> bool {
        !self.session.is_resumable() || self.mail.registry.strong_count() == 0
    }

    /// Reads, delivers and waits until all is handled. True: its session is over.
    async fn read_all(&mut self) -> bool {
        loop {
            if self.is_over() || self.is_another_users() {
                // What was handled is noted, so that it does not come again.
                self.save().await;
                return self.is_over();
            }
            self.look().await;
            self.reader.has_looked.store(true, Ordering::Release);
            self.deliver().await;
            self.note_ends();
            // Before a letter that dies needs room: a store that is full has none before something is forgotten.
            self.move_cursor().await;
            self.bury().await;
            self.note_ends();
            self.move_cursor().await;
            if self.is_done() {
                return false;
            }
            // The ends of deliveries have made room.
            let may_read = self.more || self.reader.rung.load(Ordering::Acquire);
            if !may_read || self.window.room() == 0 || self.again.is_some() {
                self.wait().await;
            }
        }
    }

    /// All is read, handled and noted, and nobody rings. While the store is not to be asked, a ring is still to be waited for:
    /// its caller would only come back at once.
    fn is_done(&self) -> bool {
        let is_read = self.has_begun && !self.more && self.window.is_empty() && self.unsaved.is_none();
        is_read && (self.again.is_none() || !self.reader.rung.load(Ordering::Acquire))
    }

    /// Waits for a ring, the end of a delivery, or the time of a next try.
    async fn wait(&mut self) {
        let due = self.window.next_at().map(|at| self.began + at);
        let next = [due, self.again, self.bury_again].into_iter().flatten().min();
        // While there is no room, a ring changes nothing.
        let listens = self.window.room() != 0;
        tokio::select! {
            Some(ended) = self.out.join_next() => self.note_end(ended.ok()),
            () = self.reader.bell.notified(), if listens => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            // Letters that are out end, or something is due: there is always one of these.
            else => {}
        }
        if self.again.is_some_and(|again| again <= Instant::now()) {
            self.again = None;
        }
    }

    /// What the store says, in time; if it does not, it is asked again later.
    async fn ask<T>(&mut self, asked: impl Future<Output = Result<T, EngineDown>>) -> Option<T> {
        match tokio::time::timeout(STORE_WAIT, asked).await {
            Ok(Ok(answer)) => {
                self.failures = 0;
                Some(answer)
            }
            _ => {
                let wait = backoff(STORE_AGAIN, STORE_AGAIN_MAX, self.failures, 1.0);
                self.failures += 1;
                self.again = Some(after(wait));
                tell!(self.mail.told.down, warn, "the store of durable pushes does not answer");
                None
            }
        }
    }

    /// Reads what there is room for.
    async fn look(&mut self) {
        if self.again.is_some() || !self.has_begun && !self.begin().await {
            return;
        }
        if self.reader.rung.swap(false, Ordering::AcqRel) {
            (self.more, self.behind) = (true, 0);
        }
        while self.more && self.window.room() != 0 {
            let page = self.mail.store.read(self.log(), self.window.read(), self.window.room().min(LETTERS_MAX));
            let Some(page) = self.ask(page).await else { return };
            if !self.take(page).await {
                return;
            }
        }
    }

    /// Finds the cursor. False: the store does not answer.
    async fn begin(&mut self) -> bool {
        let mail = self.mail;
        let cursors = mail.store.cursors(self.log());
        let Some(mut cursors) = self.ask(cursors).await else { return false };

        // A new device is counted and has its cursor before the next one of this user is counted.
        let is_new = *self.device != *DEFAULT_DEVICE && cursor_of(&cursors, &self.device).is_none();
        let _turn = if is_new { Some(mail.turn_to_name(&self.user).await) } else { None };
        if is_new {
            let asked = mail.store.cursors(self.log());
            let Some(by_now) = self.ask(asked).await else { return false };
            cursors = by_now;
        }

        let mut cursor = cursor_of(&cursors, &self.device);
        let named = cursors.iter().filter(|(name, _)| name != DEFAULT_DEVICE).count();
        if is_new && cursor.is_none() && DEVICES_MAX <= named {
            let (session, user) = (self.session.id(), &self.user);
            tell!(self.mail.told.devices, warn, %session, %user, "a user has too many named devices: one is read as if unnamed");
            self.device = DEFAULT_DEVICE.into();
            cursor = cursor_of(&cursors, &self.device);
        }

        self.has_cursor = cursor.is_some();
        // The other devices' letters are not forgotten before this one has them.
        let is_known = *self.device != *DEFAULT_DEVICE || !cursors.is_empty();
        if !self.has_cursor && is_known && !self.register().await {
            return false;
        }
        if let Some(cursor) = cursor.filter(|cursor| cursor.sequence != 0) {
            self.epoch = Some(cursor.epoch);
            self.window = Window::beginning_after(cursor.sequence, self.mail.options.tries());
        }
        self.has_begun = true;
        true
    }

    /// Gives the device a cursor before all letters. False: the store does not answer.
    async fn register(&mut self) -> bool {
        let (at, keep) = (Place { epoch: 0, sequence: 0 }, self.mail.options.ttl_max);
        let advanced = self.mail.store.advance(self.log(), self.device.to_string(), at, keep);
        self.has_cursor = self.ask(advanced).await.is_some();
        self.has_cursor
    }

    /// Takes a page. False: it is not to go on for now.
    async fn take(&mut self, page: Page) -> bool {
        let Page { entries, last, .. } = page;
        let Some(epoch) = last.map(|last| last.epoch) else { return self.nothing_there(None) };
        if self.epoch.is_some_and(|known| known != epoch) {
            // The store has lost what it had, and with it what is out. This page began at a place of the other life.
            self.restart();
            self.epoch = Some(epoch);
            return true;
        }
        self.epoch = Some(epoch);
        let entries: Vec<_> = entries.into_iter().filter(|(place, _)| self.window.read() < place.sequence).collect();
        if entries.is_empty() {
            return self.nothing_there(last);
        }
        if !self.has_cursor && !self.register().await {
            return false;
        }

        // Without a server no letter can be opened, and that is no fault of the letters.
        let Some(registry) = self.mail.registry.upgrade() else { return false };
        let limits = registry.fan_out.limits().clone();
        drop(registry);
        let now = self.now();
        for (place, bytes) in entries {
            let push = Letter::of_bytes(bytes.clone()).and_then(|letter| letter.open(&limits));
            if !self.window.take(place.sequence, bytes.len(), InHand { push, bytes }, now) {
                break;
            }
        }
        self.more = last.is_some_and(|last| self.window.read() < last.sequence);
        self.behind = 0;
        true
    }

    /// The mailbox shows nothing more. One that rang for a letter may be behind. False: it is asked again later.
    fn nothing_there(&mut self, last: Option<Place>) -> bool {
        let rung_for = self.reader.asked.lock().place;
        let read = self.place(self.window.read());
        let is_behind = rung_for.is_some_and(|place| {
            let is_past = |known: Place| known.epoch == place.epoch && place <= known;
            !read.is_some_and(is_past) && !last.is_some_and(is_past)
        });
        if !is_behind || BEHIND_TRIES <= self.behind {
            (self.more, self.behind) = (false, 0);
            return true;
        }
        let wait = backoff(BEHIND_WAIT, STORE_AGAIN_MAX, self.behind, 1.0);
        self.behind += 1;
        self.again = Some(after(wait));
        false
    }

    /// Begins at the oldest letter of another life of the store.
    fn restart(&mut self) {
        self.window = Window::beginning_after(0, self.mail.options.tries());
        self.out = JoinSet::new();
        self.failed.clear();
        (self.more, self.unsaved) = (true, None);
    }

    /// Hands all that is due to the session, in order.
    async fn deliver(&mut self) {
        loop {
            let now = self.now();
            let Some((sequence, letter)) = self.window.next(now) else { return };
            let Some(push) = letter.push.clone() else {
                self.window.give_up(sequence);
                continue;
            };
            match self.session.push_within(ROOM_WAIT, &push).await {
                Ok(receipt) => _ = self.out.spawn(async move { (sequence, receipt.handled().await.only()) }),
                // It is larger than this server sends, by now.
                Err(_) => self.window.give_up(sequence),
            }
        }
    }

    fn note_ends(&mut self) {
        while let Some(ended) = self.out.try_join_next() {
            self.note_end(ended.ok());
        }
    }

    fn note_end(&mut self, ended: Option<(u64, Option<Stage>)>) {
        let Some((sequence, stage)) = ended else { return };
        let end = match stage {
            Some(Stage::Handled | Stage::Duplicate | Stage::Superseded | Stage::PlainWritten) => End::Handled,
            Some(Stage::Failed(_)) => End::Failed,
            _ => End::NotDelivered,
        };
        if let Some(failed) = stage.filter(|_| end == End::Failed) {
            self.failed.insert(sequence, failed);
        }
        if self.window.end(sequence, end, self.now()) == Some(Then::Done) {
            self.failed.remove(&sequence);
            if let Some(place) = self.place(sequence) {
                self.reader.end(place, stage.unwrap_or(Stage::Handled));
            }
        }
    }

    /// What has failed too often goes to the dead letters. As long as the store does not take it, it stays where it is.
    async fn bury(&mut self) {
        if self.bury_again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        self.bury_again = None;
        if self.window.dying().is_some() && self.again.is_none() && 0 < std::mem::take(&mut self.handled) {
            self.trim().await;
        }
        while self.again.is_none()
            && let Some((sequence, letter, deliveries)) = self.window.dying()
        {
            let Some(place) = self.place(sequence) else { return };
            let failed = self.failed.get(&sequence).copied();
            let why = match failed {
                Some(Stage::Failed(failure)) => failure.to_string(),
                _ => "it cannot be read, or is too large to be sent".to_owned(),
            };
            let dead = Dead {
                device: self.device.to_string(),
                why,
                deliveries,
                at_ms: unix_ms(),
                letter: letter.bytes.clone(),
            };
            let key = format!("{place} {}", self.device);
            let entry = dead
                .to_bytes()
                .map(|bytes| NewEntry::new(bytes).with_key(key).with_time_to_live(self.mail.options.dead_letters_kept));
            // One that cannot be written cannot be kept.
            let mut kept = Err(AppendError::TooLarge);
            if let Some(entry) = entry {
                let appended = self.mail.store.append(Log::Dead(self.user.to_string()), entry);
                let appended = async move {
                    match appended.await {
                        Err(AppendError::Down | AppendError::Unknown) => Err(EngineDown),
                        answer => Ok(answer.map(drop)),
                    }
                };
                let Some(answer) = self.ask(appended).await else { return };
                kept = answer;
            }
            let (user, device) = (&self.user, &self.device);
            match kept {
                Ok(()) => {
                    tell!(self.mail.told.died, warn, %user, %device, letter = %place, "a letter is with the dead letters");
                }
                // The letter fits, and what goes beside it does not.
                Err(AppendError::TooLarge) => {
                    tell!(self.mail.told.died, warn, %user, %device, letter = %place,
                        "a letter that a device could not handle is gone: it is too large for a dead letter");
                }
                Err(_) => {
                    tell!(self.mail.told.full, warn, %user, %device, letter = %place,
                        "the store has no room for a dead letter: the mailbox takes no more than is behind it");
                    self.bury_again = Some(after(STORE_AGAIN_MAX));
                    return;
                }
            }
            self.window.buried(sequence);
            self.failed.remove(&sequence);
            self.reader.end(place, failed.unwrap_or(Stage::Failed(super::super::Failure::BadArguments)));
        }
    }

    async fn move_cursor(&mut self) {
        let before = self.window.len();
        if let Some(cursor) = self.window.advance() {
            self.unsaved = Some(cursor);
            self.handled += before - self.window.len();
        }
        if self.again.is_some() || !self.save().await {
            return;
        }
        let has_read_all = self.window.is_empty() && !self.more;
        if self.handled != 0 && (has_read_all || TRIM_AFTER <= self.handled) {
            self.handled = 0;
            self.trim().await;
        }
    }

    /// Tells the store how far the device is. False: it does not answer.
    async fn save(&mut self) -> bool {
        let Some((place, cursor)) = self.unsaved.and_then(|cursor| Some((self.place(cursor)?, cursor))) else {
            return true;
        };
        let keep = self.mail.options.ttl_max;
        let advanced = self.mail.store.advance(self.log(), self.device.to_string(), place, keep);
        let is_saved = self.ask(advanced).await.is_some();
        if is_saved && self.unsaved == Some(cursor) {
            self.unsaved = None;
        }
        is_saved
    }

    /// Forgets what all devices have handled, those of the sessions that are here among them. Best effort: what stays has
    /// its time to live.
    async fn trim(&mut self) {
        let Some(epoch) = self.epoch else { return };
        let here: Vec<Arc<str>> =
            self.mail.sessions_of(&self.user).iter().map(|session| self.mail.device_of(session.id())).collect();
        let cursors = self.mail.store.cursors(self.log());
        let Some(cursors) = self.ask(cursors).await else { return };
        let has_cursor = |device: &Arc<str>| cursors.iter().any(|(name, _)| *name == **device);
        if !here.iter().all(has_cursor) || cursors.iter().any(|(_, place)| place.epoch != epoch) {
            return;
        }
        if let Some(upto) = cursors.iter().map(|(_, place)| *place).min() {
            let trimmed = self.mail.store.trim(self.log(), upto);
            self.ask(trimmed).await;
        }
    }
}
