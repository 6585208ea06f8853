//! All streams of a front, and how many there may be.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use super::{
    stream::{Events, LastSeen, Stream, Watch},
    tickets::Tickets,
};
use crate::{fault::Fault, options::StreamBounds, serve::group};

pub(crate) struct Streams {
    bounds: StreamBounds,
    tickets: Tickets,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u128, Arc<Stream>>,
    /// Places that are taken, all of them and by address.
    taken: usize,
    of_address: HashMap<Group, usize>,
}

/// What counts as one address: an IP, or another kind of peer by its whole name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Group {
    Ip(IpAddr),
    Other(Arc<str>),
}

/// How many streams there are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) open: usize,
    pub(crate) waiting: usize,
}

impl Streams {
    pub(crate) fn new(bounds: StreamBounds) -> Arc<Self> {
        let tickets = Tickets::new(bounds.ticket_time, bounds.tickets_max);
        Arc::new(Self { bounds, tickets, table: Mutex::default() })
    }

    pub(super) fn bounds(&self) -> &StreamBounds {
        &self.bounds
    }

    pub(super) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    pub(crate) fn count(&self) -> Count {
        let streams: Vec<_> = self.table.lock().streams.values().cloned().collect();
        let waiting = streams.iter().filter(|stream| stream.waiting_since().is_some()).count();
        Count { open: streams.len() - waiting, waiting }
    }

    /// A place for a new stream of this peer. Of an address with too many, the one that waits the longest makes room.
    pub(super) fn reserve(self: &Arc<Self>, peer: &Arc<str>) -> Result<Place, Fault> {
        let group = group_of(peer);
        for is_last in [false, true] {
            let oldest = {
                let mut table = self.table.lock();
                let of_address = table.of_address.get(&group).copied().unwrap_or_default();
                let is_full = self.bounds.streams_max <= table.taken;
                if !is_full && of_address < self.bounds.per_address_max {
                    table.taken += 1;
                    *table.of_address.entry(group.clone()).or_default() += 1;
                    return Ok(Place { streams: Arc::downgrade(self), group });
                }
                table.oldest_waiting(&group)
            };
            match oldest {
                // Dropped outside the lock: it gives its place back.
                Some(oldest) if !is_last => self.remove(&oldest),
                _ => break,
            }
        }
        Err(Fault::overloaded("too many streams of events are open"))
    }

    /// A new stream begins, and is read.
    pub(super) fn begin(self: &Arc<Self>, stream: Stream) -> Events {
        let stream = Arc::new(stream);
        self.table.lock().streams.insert(stream.key, Arc::clone(&stream));
        stream.read(self, None)
    }

    /// A client comes back to its stream.
    pub(super) fn resume(self: &Arc<Self>, last: &LastSeen) -> Option<Events> {
        let stream = self.table.lock().streams.get(&last.key).cloned()?;
        Some(stream.read(self, Some(last.number)))
    }

    /// Nobody reads this stream any more. It waits for its client, if it goes on and time can pass here.
    pub(super) fn left(self: &Arc<Self>, stream: &Arc<Stream>) {
        if stream.waiting_since().is_none() {
            return self.remove(stream);
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return self.remove(stream) };
        // One task for each stream: a client may come back and leave many times within the window.
        if !stream.begin_watch() {
            return;
        }
        let (streams, stream, window) = (Arc::downgrade(self), Arc::downgrade(stream), self.bounds.resume_window);
        runtime.spawn(async move {
            loop {
                let (Some(streams), Some(watched)) = (streams.upgrade(), stream.upgrade()) else { return };
                let until = match watched.watch(window) {
                    Watch::Until(until) => until,
                    Watch::Over => return streams.remove(&watched),
                    Watch::Read => return,
                };
                drop((streams, watched));
                tokio::time::sleep_until(until).await;
            }
        });
    }

    fn remove(&self, stream: &Arc<Stream>) {
        let removed = self.table.lock().streams.remove(&stream.key);
        drop(removed);
    }
}

/// The place of one stream. Given back when dropped, never under the lock of the table.
pub(super) struct Place {
    streams: Weak<Streams>,
    group: Group,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(streams) = self.streams.upgrade() else { return };
        let mut table = streams.table.lock();
        table.taken -= 1;
        if let Some(taken) = table.of_address.get_mut(&self.group) {
            *taken -= 1;
            if *taken == 0 {
                table.of_address.remove(&self.group);
            }
        }
    }
}

fn group_of(peer: &Arc<str>) -> Group {
    let address = peer.split_once('@').and_then(|(_, address)| address.parse::<SocketAddr>().ok());
    address.map_or_else(|| Group::Other(Arc::clone(peer)), |address| Group::Ip(group(address.ip())))
}

impl Table {
    /// Of the streams of an address, the one that nobody has read for the longest time.
    fn oldest_waiting(&self, group: &Group) -> Option<Arc<Stream>> {
        let of_address = self.streams.values().filter(|stream| stream.place.group == *group);
        let waiting = of_address.filter_map(|stream| Some((stream.waiting_since()?, stream)));
        waiting.min_by_key(|(since, _)| *since).map(|(_, stream)| Arc::clone(stream))
    }
}
