//! The servers to choose from, and the one client of each.
//!
//! A choice is made in a snapshot of the list, without its lock. A server that leaves the list loses its client at
//! once; the connection ends when the last call that has a clone of it is done. Until then the client is one of those
//! that have left: an end of a subscription, and the end of all, are theirs too, and a list that names their server
//! again takes them back. A choice that meets a server that has left is made again in the newer list. A list without any
//! server is no list: what is there stays.
//!
//! Lock order: `source`, then `list`, then `sticky` or a slot's client.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::{runtime::Handle, sync::watch, time::timeout_at};

use super::{
    budget::RetryBudget,
    options::XClientOptions,
    outcome::Attempt,
    select::{SelectMode, Selection, Selector},
    snapshots::Snapshots,
};
use crate::{
    caller::RawCall,
    calm::{Calm, Said, tell},
    client::{
        Client, Common, EventSender, Look, MessageQueue, Subscribing, Unsubscribing, WeakClient, handle_messages,
    },
    clock::after,
    connection::{CallTime, Connection},
    discovery::{DiscoveryError, ServerEntry},
    error::{AddressError, ConnectError},
    guard,
};

pub(super) struct Servers {
    options: XClientOptions,
    /// Where clients are made, for the first caller that needs one.
    runtime: Handle,
    /// Clients are made for all servers of a list, not with the first call.
    eager: bool,
    selector: Arc<dyn Selector>,
    /// The selector is told of each try.
    learns: bool,
    /// What the discovery says. Locked while a list of it is taken, so that these come one after another.
    source: Mutex<watch::Receiver<Arc<[ServerEntry]>>>,
    /// The source of the lists has told none yet.
    awaits_list: AtomicBool,
    /// How it failed since its last list.
    source_failed: Mutex<Option<DiscoveryError>>,
    list: RwLock<List>,
    /// The same as calls see it; nothing once the client is closed. Set under the lock of the list.
    snapshots: Snapshots<Snapshot>,
    /// The server that all calls go to, if they are to stay with one.
    sticky: Mutex<Option<Arc<Slot>>>,
    told: Told,
    retry_budget: RetryBudget,
    /// At all servers, those that have left the list among them.
    oneways_lost: Arc<AtomicU64>,
}

/// When it was told last what is wrong with a list, or with the selector: each list, and each call, could be a line.
#[derive(Default)]
struct Told {
    unreachable: Calm,
    empty: Calm,
    panicked: Calm,
}

/// The list of now, and what all servers of it have in common.
struct List {
    /// Says whether the discovery has a newer one.
    changes: watch::Receiver<Arc<[ServerEntry]>>,
    listed: Arc<Listed>,
    /// Clients whose servers have left the list, by address, for as long as calls or the application keep them.
    left: HashMap<String, WeakClient>,
    /// What every server is asked for.
    topics: Vec<Arc<str>>,
    /// Taken when the client is closed.
    receivers: Option<Receivers>,
}

/// The list at one moment, for the threads of one place.
struct Snapshot {
    changes: watch::Receiver<Arc<[ServerEntry]>>,
    listed: Arc<Listed>,
    /// Of each server of the list the choice of it, for as long as its connection is open. So calls of different threads
    /// to one server share no line of memory but those of its connection.
    found: Box<[Mutex<Option<Arc<Pick>>>]>,
}

/// A list as the discovery gave it, without those that no call may go to.
#[derive(Default)]
struct Listed {
    /// The same servers in the same places: what the selector sees, and the clients.
    entries: Vec<ServerEntry>,
    slots: Vec<Arc<Slot>>,
    /// Why there are no more of them.
    left_out: LeftOut,
}

/// Those who are told what happens at, and what comes from, any server.
pub(super) struct Receivers {
    pub(super) common: Common,
    pub(super) messages: Option<MessageQueue>,
}

#[derive(Clone, Debug, Default)]
struct LeftOut {
    listed: usize,
    unreachable: Option<AddressError>,
}

/// One server: its client is made when it is first needed.
pub(super) struct Slot {
    address: String,
    client: Mutex<Held>,
}

enum Held {
    Nothing,
    Client(Client),
    /// The server left the list: no client is made any more.
    Retired,
}

/// The server of a try. The client of one that leaves the list lives for as long as tries have this.
pub(super) struct Pick {
    pub(super) slot: Arc<Slot>,
    pub(super) client: Client,
    /// Its connection, if it was up: for the first try.
    pub(super) seen: Option<Connection>,
    /// The server as the selector knows it, if it learns.
    entry: Option<ServerEntry>,
}

impl Pick {
    /// For another try at the same server, by this client of it, or by the same.
    pub(super) fn again(&self, client: Option<Client>) -> Arc<Self> {
        let (slot, entry) = (Arc::clone(&self.slot), self.entry.clone());
        let client = client.unwrap_or_else(|| self.client.clone());
        Arc::new(Self { slot, client, seen: None, entry })
    }
}

/// A server as it is at one moment.
enum Seen {
    /// It is up, and may be called as it is.
    Up(Arc<Pick>),
    /// Each look at it takes locks that all its callers share.
    Otherwise {
        /// The client, if it may be called as it is.
        client: Option<Client>,
        connection: Option<Connection>,
        is_down: bool,
    },
}

impl Seen {
    fn is_down(&self) -> bool {
        matches!(self, Self::Otherwise { is_down: true, .. })
    }
}

/// Why no server was chosen.
#[derive(Clone, Debug)]
pub(super) enum NoPick {
    Closed,
    NoServer(String),
}

/// Which servers a choice prefers.
#[derive(Clone, Copy)]
pub(super) struct Preference<'a> {
    /// Others than these, which were tried for the call.
    pub(super) not_tried: &'a [Arc<Slot>],
    /// Those that are not known to be down.
    pub(super) up: bool,
    /// The server that the others stay with, if they are to stay with one; and stay with this one.
    pub(super) sticky: bool,
}

impl Servers {
    /// Follows `source`. Must be called within a tokio runtime.
    pub(super) fn new(
        options: XClientOptions,
        eager: bool,
        select_mode: SelectMode,
        mut source: watch::Receiver<Arc<[ServerEntry]>>,
        awaits_list: bool,
        receivers: Receivers,
    ) -> Self {
        if !awaits_list {
            // `update` below takes the first list.
            source.mark_changed();
        }

        let oneways_lost = Arc::clone(&receivers.common.oneways_lost);
        let (changes, listed) = (source.clone(), Arc::default());
        let list = List { changes, listed, left: HashMap::new(), topics: Vec::new(), receivers: Some(receivers) };
        let (learns, selector) = (select_mode.learns(), select_mode.into_selector());
        let (runtime, sticky) = (Handle::current(), Mutex::default());
        let (source, list, told) = (Mutex::new(source), RwLock::new(list), Told::default());
        let (awaits_list, source_failed) = (awaits_list.into(), Mutex::default());
        let retry_budget = RetryBudget::new(options.retry_budget);

        let servers = Self {
            options,
            runtime,
            eager,
            selector,
            learns,
            source,
            awaits_list,
            source_failed,
            list,
            snapshots: Snapshots::default(),
            sticky,
            told,
            retry_budget,
            oneways_lost,
        };

        if !servers.awaits_list() {
            servers.update();
        }
        servers
    }

    pub(super) fn options(&self) -> &XClientOptions {
        &self.options
    }

    pub(super) fn retry_budget(&self) -> &RetryBudget {
        &self.retry_budget
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// True until a source that is watched has told its first list.
    pub(super) fn awaits_list(&self) -> bool {
        self.awaits_list.load(Ordering::Acquire)
    }

    /// Waits for the first list, for as long as a call waits for a connection.
    pub(super) async fn first_list(&self, time: Option<CallTime>) {
        let mut changes = self.list.read().changes.clone();
        // If it came before the clone, it was noted before.
        if !self.awaits_list() {
            return;
        }
        let until = after(self.options.client.wait());
        let until = time.map_or(until, |time| until.min(time.end));
        // Without one, the error of the call says what is wrong.
        let _ = timeout_at(until, changes.changed()).await;
    }

    /// The source of the lists failed.
    pub(super) fn note_source_failed(&self, error: &DiscoveryError) {
        *self.source_failed.lock() = Some(error.clone());
    }

    fn why_empty(&self, listed: &Listed) -> String {
        match &*self.source_failed.lock() {
            Some(error) if listed.left_out.listed == 0 => format!("the discovery failed: {error}"),
            _ => listed.why_empty(&self.options),
        }
    }

    /// Chooses the server of a try.
    pub(super) fn pick(&self, call: &RawCall<'_>, prefer: Preference<'_>) -> Result<Arc<Pick>, NoPick> {
        loop {
            let snapshot = self.snapshot().ok_or(NoPick::Closed)?;
            let listed = &*snapshot.listed;
            if listed.slots.is_empty() {
                return Err(NoPick::NoServer(self.why_empty(listed)));
            }

            let prefer = Preference { not_tried: listed.still_excluded(prefer.not_tried), ..prefer };
            let (server, seen) = self.stay_or_choose(&snapshot, call, prefer)?;
            let slot = &listed.slots[server];
            let (client, seen) = match seen {
                Seen::Up(pick) => return Ok(pick),
                Seen::Otherwise { client, connection, .. } => (client, connection),
            };
            match client.map_or_else(|| self.client_of(slot), Ok) {
                Ok(client) => {
                    let entry = self.entry_of(listed, server);
                    return Ok(Arc::new(Pick { slot: Arc::clone(slot), client, seen, entry }));
                }
                // It left the list meanwhile: the newer one has others, or the client is closed.
                Err(_) if slot.is_retired() => self.unstick(slot),
                Err(error) => return Err(NoPick::NoServer(error.to_string())),
            }
        }
    }

    /// A server as the selector knows it, if it learns.
    fn entry_of(&self, listed: &Listed, server: usize) -> Option<ServerEntry> {
        self.learns.then(|| listed.entries[server].clone())
    }

    /// Looks at a server. One that is up was found so before, in most cases.
    #[inline]
    fn see(&self, snapshot: &Snapshot, server: usize) -> Seen {
        let found = snapshot.found[server].lock().clone();
        match found {
            Some(pick) if pick.seen.as_ref().is_some_and(Connection::is_open) => Seen::Up(pick),
            found => self.see_anew(snapshot, server, found),
        }
    }

    #[cold]
    fn see_anew(&self, snapshot: &Snapshot, server: usize, found: Option<Arc<Pick>>) -> Seen {
        let slot = &snapshot.listed.slots[server];
        let (seen, up) = match slot.look() {
            Some((client, Look { is_up: true, connection: seen @ Some(_), .. })) => {
                let entry = self.entry_of(&snapshot.listed, server);
                let pick = Arc::new(Pick { slot: Arc::clone(slot), client, seen, entry });
                (Seen::Up(Arc::clone(&pick)), Some(pick))
            }
            Some((client, Look { connection, is_down, may_be_called, .. })) => {
                let client = may_be_called.then_some(client);
                (Seen::Otherwise { client, connection, is_down }, None)
            }
            None => (Seen::Otherwise { client: None, connection: None, is_down: false }, None),
        };
        let before = std::mem::replace(&mut *snapshot.found[server].lock(), up);
        // Perhaps the last that has its client, which ends something: not under the lock.
        drop((found, before));
        seen
    }

    /// The place of the server in the list, and how it was seen.
    fn stay_or_choose(
        &self,
        snapshot: &Snapshot,
        call: &RawCall<'_>,
        prefer: Preference<'_>,
    ) -> Result<(usize, Seen), NoPick> {
        if !self.options.sticky || !prefer.sticky {
            return self.choose(snapshot, call, prefer);
        }

        let listed = &*snapshot.listed;
        let stays = |sticky: &Option<Arc<Slot>>| {
            let is_it = |slot| sticky.as_ref().is_some_and(|sticky| Arc::ptr_eq(sticky, slot));
            let server = listed.slots.iter().position(is_it)?;
            let seen = self.see(snapshot, server);
            listed.suits(&listed.slots[server], &seen, prefer).then_some((server, seen))
        };
        if let Some(stays) = stays(&self.sticky.lock()) {
            return Ok(stays);
        }

        // The selector may be an application's code: it is asked without the lock.
        let chosen = self.choose(snapshot, call, prefer)?;
        let mut sticky = self.sticky.lock();
        // Another call may have chosen meanwhile: the first choice counts.
        let (server, seen) = stays(&sticky).unwrap_or(chosen);
        *sticky = Some(Arc::clone(&listed.slots[server]));
        Ok((server, seen))
    }

    /// The selector learns that a try begins, and then how it ends.
    pub(super) fn begin(&self, pick: &Pick) -> Attempt<'_> {
        match &pick.entry {
            Some(entry) => Attempt::begin(self, entry.clone()),
            None => Attempt::UNSEEN,
        }
    }

    /// A panic of the selector is logged, and costs nothing else.
    pub(super) fn tell_selector(&self, tell: impl FnOnce(&dyn Selector)) {
        if let Err(panicked) = guard::call(|| tell(&*self.selector)) {
            let panic = Said(panicked.text());
            tell!(self.told.panicked, error, ?panic, "a selector panicked");
        }
    }

    /// The client of a server: that which stands, or a new one.
    fn client_of(&self, slot: &Slot) -> Result<Client, ConnectError> {
        if let Some((client, Look { may_be_called: true, .. })) = slot.look() {
            return Ok(client);
        }
        // The lock of the list is held: no topic is added or forgotten meanwhile.
        let list = self.list();
        slot.client(self, list.receivers.as_ref().ok_or(ConnectError::Closed)?, &list.topics)
    }

    /// The client of a server that was picked, a new one if it has ended and may be made again; `None` if the server
    /// left the list.
    pub(super) fn client_again(&self, slot: &Slot) -> Option<Client> {
        self.client_of(slot).ok()
    }

    /// A server failed: calls do not stay with it.
    pub(super) fn unstick(&self, slot: &Arc<Slot>) {
        if self.options.sticky {
            self.sticky.lock().take_if(|sticky| Arc::ptr_eq(sticky, slot));
        }
    }

    /// True if there is a server beside these.
    pub(super) fn has_others(&self, tried: &[Arc<Slot>]) -> bool {
        self.list().listed.slots.iter().any(|slot| !is_in(slot, tried))
    }

    /// Takes the newest list of the discovery, if it was not taken before.
    pub(super) fn update(&self) {
        // Those who saw the change at once come one after the other, and one is enough.
        let mut source = self.source.lock();
        if !source.has_changed().unwrap_or(true) {
            return;
        }
        let said = Arc::clone(&source.borrow_and_update());
        self.source_failed.lock().take();
        // Before it is published: see `first_list`.
        self.awaits_list.store(false, Ordering::Release);

        let before = Arc::clone(&self.list.read().listed);
        if said.is_empty() && !before.slots.is_empty() {
            let mut list = self.list.write();
            list.changes = source.clone();
            self.show(&list);
            // A log line may be slow, and calls may wait for this lock.
            drop(list);
            let kept = before.slots.len();
            return tell!(self.told.empty, warn, kept, "the discovery lists no server: the previous list is kept");
        }

        let (usable, unreachable) = self.usable(&said);
        let mut old: HashMap<&str, &Arc<Slot>> = before.slots.iter().map(|slot| (&*slot.address, slot)).collect();
        let left_out = LeftOut { listed: said.len(), unreachable };
        let mut listed = Listed { left_out, ..Listed::default() };
        for (address, entry) in usable {
            let known = old.remove(&*address).map(Arc::clone);
            listed.slots.push(known.unwrap_or_else(|| Arc::new(Slot::new(address))));
            listed.entries.push(entry);
        }

        // A selector that panics is told the next list all the same, and asked.
        self.tell_selector(|selector| selector.update(&listed.entries));
        self.publish(listed, source.clone(), old.into_values());
    }

    /// From now on calls go by this list. Those that are not in it any more lose their clients; those that are in it
    /// again have the clients that they had, if these live.
    fn publish<'a>(
        &self,
        listed: Listed,
        changes: watch::Receiver<Arc<[ServerEntry]>>,
        gone: impl Iterator<Item = &'a Arc<Slot>>,
    ) {
        let mut guard = self.list.write();
        let list = &mut *guard;
        let Some(receivers) = &list.receivers else { return };

        // Kept until the lock is free: to drop the last clone of a client closes a connection.
        let back: Vec<_> = listed.slots.iter().filter_map(|slot| slot.take_back(&mut list.left)).collect();
        back.iter().for_each(|client| client.note_listed(&list.topics));
        (list.listed, list.changes) = (Arc::new(listed), changes);
        self.show(list);
        receivers.common.keys.share_among(list.listed.slots.len());

        if self.eager {
            // One that has ended is no business of a list that names it again.
            for slot in list.listed.slots.iter().filter(|slot| slot.made().is_none()) {
                // Cannot fail: the address is one, and the slot is in the list.
                let _ = slot.client(self, receivers, &list.topics);
            }
        }

        let mut retired = Vec::new();
        list.left.retain(|_, client| client.is_kept());
        for slot in gone {
            if let Some(client) = slot.retire() {
                list.left.insert(slot.address.clone(), client.downgrade());
                retired.push(client);
            }
            self.sticky.lock().take_if(|sticky| Arc::ptr_eq(sticky, slot));
        }
        retired.iter().for_each(Client::note_unlisted);
        drop(guard);
        // Closing a connection writes to its socket: not under the lock.
        drop((back, retired));
    }

    /// Those of a list that calls may go to, by address; and what is wrong with one that is no address.
    fn usable(&self, source: &[ServerEntry]) -> (Vec<(String, ServerEntry)>, Option<AddressError>) {
        let mut places = HashMap::new();
        let mut usable: Vec<(String, ServerEntry)> = Vec::new();
        let mut unreachable = None;
        for entry in source {
            let address = match self.options.client.transports().place(entry.address()) {
                Ok(address) => address.to_string(),
                Err(error) => {
                    tell!(self.told.unreachable, warn, error = %Said(&error), "a server is left out: it cannot be reached");
                    unreachable = Some(error);
                    continue;
                }
            };

            // Twice in the list: the later one counts, as in Go.
            match places.get(&address) {
                Some(place) => usable[*place] = (address, entry.clone()),
                None => {
                    places.insert(address.clone(), usable.len());
                    usable.push((address, entry.clone()));
                }
            }
        }

        usable.retain(|(_, entry)| entry.is_eligible(self.options.group.as_deref()));
        (usable, unreachable)
    }

    /// Ends every client, and takes no more calls.
    pub(super) fn close(&self) {
        let mut list = self.list.write();
        let receivers = list.receivers.take();
        self.show(&list);
        let listed = std::mem::take(&mut list.listed);
        let left = std::mem::take(&mut list.left);
        drop(list);
        self.sticky.lock().take();
        listed.slots.iter().filter_map(|slot| slot.retire()).for_each(|client| client.close());
        for client in left.into_values().filter_map(|client| client.upgrade()) {
            // One's own end is no loss.
            client.note_listed(&[]);
            client.close();
        }
        drop(receivers);
    }

    /// The servers that calls may go to.
    pub(super) fn entries(&self) -> Vec<ServerEntry> {
        self.list().listed.entries.clone()
    }

    /// Asks every server for a topic from now on, those that come to the list too. Answers the clients of those
    /// that are there, by address, with what each is to ask; `None` if they are closed.
    pub(super) fn want_topic(&self, topic: &str) -> Option<Vec<(String, (Client, Subscribing))>> {
        let mut list = self.list.write();
        let list = &mut *list;
        let receivers = list.receivers.as_ref()?;
        // The caller asks those that are there; only those that are made later ask by themselves.
        let asking = |slot: &Arc<Slot>| {
            let client = slot.client(self, receivers, &list.topics).ok()?;
            // In line while the list is locked: the next request comes after it at every server.
            let subscribing = client.begin_subscribe(topic);
            Some((slot.address.clone(), (client, subscribing)))
        };
        let clients = list.listed.slots.iter().filter_map(asking).collect();
        if !list.topics.iter().any(|wanted| **wanted == *topic) {
            list.topics.push(topic.into());
        }
        Some(clients)
    }

    /// Asks no server for a topic any more. Answers the clients that were made, with what each is to ask: those whose
    /// servers have left the list are the last.
    pub(super) fn forget_topic(&self, topic: &str) -> Vec<(Client, Unsubscribing)> {
        let mut list = self.list.write();
        list.topics.retain(|wanted| **wanted != *topic);
        let left = list.left.values().filter_map(WeakClient::upgrade).filter(|client| !client.is_ended());
        let clients = list.listed.slots.iter().filter_map(|slot| slot.made()).chain(left);
        clients.map(|client| (client.clone(), client.begin_unsubscribe(topic))).collect()
    }

    /// Oneway requests that did not go again, at any server.
    pub(super) fn oneways_lost(&self) -> u64 {
        self.oneways_lost.load(Ordering::Relaxed)
    }

    /// The clients that were made.
    pub(super) fn clients(&self) -> Vec<Client> {
        self.list().listed.slots.iter().filter_map(|slot| slot.made()).collect()
    }

    pub(super) fn events(&self) -> EventSender {
        self.list().receivers.as_ref().map(|receivers| receivers.common.events.clone()).unwrap_or_default()
    }

    /// The list; the newest one even if the task that follows it has not run yet.
    fn list(&self) -> RwLockReadGuard<'_, List> {
        let list = self.list.read();
        // Without a sender there is nothing newer.
        if !list.changes.has_changed().unwrap_or(false) || list.receivers.is_none() {
            return list;
        }
        drop(list);
        self.update();
        self.list.read()
    }

    /// Calls see this list from now on, whose lock is held.
    fn show(&self, list: &List) {
        self.snapshots.set(|| list.snapshot());
    }

    /// The newest list to choose in; `None` if the client is closed.
    #[inline]
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshots.get();
        // Without a sender there is nothing newer.
        let is_newest = |snapshot: &Arc<Snapshot>| !snapshot.changes.has_changed().unwrap_or(false);
        snapshot.filter(is_newest).or_else(|| self.list().snapshot().map(Arc::new))
    }

    fn choose(&self, snapshot: &Snapshot, call: &RawCall<'_>, prefer: Preference<'_>) -> Result<(usize, Seen), NoPick> {
        let listed = &*snapshot.listed;
        let selection = Selection::new(call.service_path, call.service_method, &call.payload, &listed.entries);
        let tried = |server: usize| is_in(&listed.slots[server], prefer.not_tried);
        let select = |selection: &Selection<'_>| {
            guard::call(|| self.selector.select(selection)).map_err(|panicked| {
                let panic = Said(panicked.text());
                tell!(self.told.panicked, error, ?panic, "a selector panicked");
                NoPick::NoServer("the selector panicked: the log has more".to_owned())
            })
        };

        let chosen =
            if prefer.not_tried.is_empty() { select(&selection)? } else { select(&selection.excluding(&tried))? };
        let chosen = listed.place(chosen)?;
        let seen = self.see(snapshot, chosen);
        if listed.suits(&listed.slots[chosen], &seen, prefer) {
            return Ok((chosen, seen));
        }

        let unsuited = |server: usize| tried(server) || listed.slots[server].is_down();
        let better = listed.place(select(&selection.excluding(&unsuited))?);
        // A selector may have nobody else to offer.
        Ok(better.map_or((chosen, seen), |better| (better, self.see(snapshot, better))))
    }
}

impl List {
    fn snapshot(&self) -> Option<Snapshot> {
        self.receivers.as_ref()?;
        let (changes, listed) = (self.changes.clone(), Arc::clone(&self.listed));
        let found = listed.slots.iter().map(|_| Mutex::default()).collect();
        Some(Snapshot { changes, listed, found })
    }
}

impl Listed {
    /// That of a server of the list.
    fn place(&self, chosen: Option<usize>) -> Result<usize, NoPick> {
        let servers = self.slots.len();
        chosen
            .filter(|server| *server < servers)
            .ok_or_else(|| NoPick::NoServer(format!("the selector chose none of {servers} servers")))
    }

    /// Those of `tried` to leave out: all; when nobody else is left only the last one, for another round;
    /// and nobody if that is the only one.
    fn still_excluded<'a>(&self, tried: &'a [Arc<Slot>]) -> &'a [Arc<Slot>] {
        if tried.is_empty() || self.slots.iter().any(|slot| !is_in(slot, tried)) {
            return tried;
        }
        let last = if self.slots.len() == 1 { tried.len() } else { tried.len() - 1 };
        &tried[last..]
    }

    /// True unless the server is not preferred, and there is one that is.
    fn suits(&self, slot: &Arc<Slot>, seen: &Seen, prefer: Preference<'_>) -> bool {
        let suits = |slot, is_down| !(is_in(slot, prefer.not_tried) || (prefer.up && is_down));
        suits(slot, seen.is_down()) || !self.slots.iter().any(|slot| suits(slot, prefer.up && slot.is_down()))
    }

    fn why_empty(&self, options: &XClientOptions) -> String {
        let LeftOut { listed, unreachable } = &self.left_out;
        match (listed, unreachable, &options.group) {
            (0, ..) => "the discovery lists none".to_owned(),
            (_, Some(error), _) => format!("none of {listed} can be used: {error}"),
            (_, None, Some(group)) => format!("none of {listed} is active and in the group `{group}`"),
            (_, None, None) => format!("none of {listed} is active"),
        }
    }
}

impl Slot {
    fn new(address: String) -> Self {
        Self { address, client: Mutex::new(Held::Nothing) }
    }

    /// The client: made now if there is none, or none that has a future. Starts to connect and does not
    /// wait for it. One that its server sent away, or that gave up, stays as it is, and says why to each call.
    fn client(&self, servers: &Servers, receivers: &Receivers, topics: &[Arc<str>]) -> Result<Client, ConnectError> {
        // Held to the end, so that callers that come together share one client.
        let mut held = self.client.lock();
        match &*held {
            Held::Client(client) if !client.is_ended() || client.stays_away() => return Ok(client.clone()),
            Held::Retired => return Err(ConnectError::Closed),
            Held::Client(_) | Held::Nothing => {}
        }

        // The caller may be outside of a runtime, and the client starts a task.
        let _entered = servers.runtime.enter();
        let options = servers.options.client.clone();
        let handlers = servers.options.handlers.clone();
        let messages = match (&receivers.messages, &handlers) {
            (Some(messages), _) => Some(messages.clone()),
            (None, Some(handlers)) => {
                let (queue, messages) = options.new_queue();
                handle_messages(messages, handlers.clone());
                Some(queue)
            }
            (None, None) => None,
        };

        let handlers = handlers.unwrap_or_default();
        let client = Client::start(&self.address, options, handlers, messages, receivers.common.clone(), topics)?;
        *held = Held::Client(client.clone());
        Ok(client)
    }

    /// The client as it is now, if there is one, and what is seen of it.
    fn look(&self) -> Option<(Client, Look)> {
        match &*self.client.lock() {
            Held::Client(client) => Some((client.clone(), client.look())),
            Held::Nothing | Held::Retired => None,
        }
    }

    /// True if others are to be preferred.
    fn is_down(&self) -> bool {
        self.look().is_some_and(|(_, look)| look.is_down)
    }

    /// The client that the server had when it left the list is this one's, if it lives. A slot that has one, or no list
    /// yet, has none there.
    fn take_back(&self, left: &mut HashMap<String, WeakClient>) -> Option<Client> {
        let client = left.remove(&self.address)?.upgrade()?;
        if !client.is_ended() {
            *self.client.lock() = Held::Client(client.clone());
        }
        Some(client)
    }

    fn is_retired(&self) -> bool {
        matches!(&*self.client.lock(), Held::Retired)
    }

    fn made(&self) -> Option<Client> {
        match &*self.client.lock() {
            Held::Client(client) => Some(client.clone()),
            Held::Nothing | Held::Retired => None,
        }
    }

    fn retire(&self) -> Option<Client> {
        match std::mem::replace(&mut *self.client.lock(), Held::Retired) {
            Held::Client(client) => Some(client),
            Held::Nothing | Held::Retired => None,
        }
    }
}

fn is_in(slot: &Arc<Slot>, slots: &[Arc<Slot>]) -> bool {
    slots.iter().any(|other| Arc::ptr_eq(other, slot))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        CallOptions,
        discovery::{Discovery, MultipleServersDiscovery},
    };

    fn call() -> RawCall<'static> {
        RawCall {
            service_path: "Arith",
            service_method: "Mul",
            serialize: bothways_proto::SerializeType::MSGPACK,
            payload: bytes::Bytes::new(),
            options: CallOptions::new(),
        }
    }

    fn start(discovery: &MultipleServersDiscovery, options: XClientOptions, select_mode: SelectMode) -> Servers {
        let receivers = Receivers { common: Common::default(), messages: None };
        Servers::new(options, false, select_mode, discovery.lists("Arith").lists, false, receivers)
    }

    const ANY: Preference<'_> = Preference { not_tried: &[], up: false, sticky: true };

    /// A server of a list, as few numbers as possible: which one, and whether it is inactive.
    type Listed = (u8, bool);

    fn entries(list: &[Listed]) -> Vec<ServerEntry> {
        let entry = |(n, inactive): &Listed| {
            // Both names of the network are the same address.
            let network = if n % 2 == 0 { "memu" } else { "memory" };
            let metadata = if *inactive { "state=inactive" } else { "" };
            ServerEntry::from((format!("{network}@model-{n}"), metadata))
        };
        list.iter().map(entry).collect()
    }

    /// The servers that may be called: the last word on each counts, in the order of their first mention.
    fn model(list: &[Listed]) -> Vec<u8> {
        let mut seen = HashSet::new();
        let first = list.iter().filter(|(n, _)| seen.insert(*n));
        let active = |n: &u8| list.iter().rfind(|(of, _)| of == n).is_some_and(|(_, inactive)| !inactive);
        first.map(|(n, _)| *n).filter(active).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lists follow one another, with calls between them: only servers of the newest list are
        /// chosen, a server that stays keeps its client, and one that left has none.
        #[test]
        fn the_newest_list_counts(
            lists in prop::collection::vec(prop::collection::vec((0_u8..6, prop::bool::weighted(0.3)), 0..8), 1..8),
            sticky in any::<bool>(),
            picks in 0_usize..12,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let _entered = runtime.enter();
            let discovery = MultipleServersDiscovery::new([""; 0]);
            let options = XClientOptions::new().sticky(sticky);
            let servers = start(&discovery, options, SelectMode::RoundRobin);
            let mut known: Vec<Arc<Slot>> = Vec::new();
            let mut expected: Vec<String> = Vec::new();
            for list in lists {
                discovery.update(entries(&list));
                // A list without any server is no list.
                if !list.is_empty() {
                    expected = model(&list).iter().map(|n| format!("memory@model-{n}")).collect();
                }
                for _ in 0..picks {
                    match servers.pick(&call(), ANY) {
                        Ok(pick) => prop_assert!(expected.contains(&pick.slot.address)),
                        Err(_) => prop_assert!(expected.is_empty()),
                    }
                }
                let slots = servers.list().listed.slots.clone();
                prop_assert_eq!(slots.iter().map(|slot| slot.address.clone()).collect::<Vec<_>>(), expected.clone());
                prop_assert_eq!(servers.entries().len(), slots.len());
                for slot in &known {
                    let stays = slots.iter().find(|now| now.address == slot.address);
                    match stays {
                        Some(now) => prop_assert!(Arc::ptr_eq(now, slot)),
                        None => prop_assert!(matches!(&*slot.client.lock(), Held::Retired)),
                    }
                }
                if sticky && 0 < picks {
                    prop_assert!(slots.iter().filter(|slot| slot.made().is_some()).count() <= known.len() + 1);
                }
                known = slots;
            }
        }
    }

    #[derive(Default)]
    struct Counting(Mutex<Vec<usize>>);

    impl Selector for Arc<Counting> {
        fn select(&self, _: &Selection<'_>) -> Option<usize> {
            Some(0)
        }

        fn update(&self, servers: &[ServerEntry]) {
            self.0.lock().push(servers.len());
        }
    }

    /// A selector is told every list once, the first one too, before it is asked about it.
    #[tokio::test(start_paused = true)]
    async fn a_selector_is_told_each_list_once() {
        let discovery = MultipleServersDiscovery::new(["memu@a", "memu@b"]);
        let counting = Arc::new(Counting::default());
        let servers = start(&discovery, XClientOptions::new(), SelectMode::by_user(Arc::clone(&counting)));
        servers.update();
        discovery.update(["memu@a"]);
        for _ in 0..3 {
            assert!(servers.pick(&call(), ANY).is_ok());
            servers.update();
        }
        assert_eq!(*counting.0.lock(), [2, 1]);
    }
}
