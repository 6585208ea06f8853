//! All streams of a front, and how many there may be.

use std::{collections::HashMap, sync::Arc};

use bothways::shares::{Share, Shares};
use parking_lot::Mutex;

use super::{
    encode::Encodings,
    stream::{Events, LastSeen, Stream, Watch},
    tickets::Tickets,
};
use crate::{body::shares, fault::Fault, options::StreamBounds};

pub(crate) struct Streams {
    bounds: StreamBounds,
    tickets: Tickets,
    encodings: Encodings,
    /// Each stream has one.
    places: Arc<Shares>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u128, Arc<Stream>>,
    /// The keys of those whose clients acknowledge, by what lets them do so.
    acks: HashMap<u128, u128>,
}

/// Streams of one address, if the application says nothing else.
const PER_ADDRESS: usize = 64;

/// How many streams there are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) open: usize,
    pub(crate) waiting: usize,
}

impl Streams {
    pub(crate) fn new(bounds: StreamBounds) -> Arc<Self> {
        let tickets = Tickets::new(bounds.ticket_time, bounds.tickets_max);
        let places = shares(bounds.streams_max, bounds.per_address_max, PER_ADDRESS);
        let encodings = Encodings::new(bounds.bytes_max);
        Arc::new(Self { bounds, tickets, encodings, places, table: Mutex::default() })
    }

    pub(super) fn bounds(&self) -> &StreamBounds {
        &self.bounds
    }

    pub(super) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    pub(super) fn encodings(&self) -> &Encodings {
        &self.encodings
    }

    /// Bytes of all events that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.encodings.bytes()
    }

    pub(crate) fn count(&self) -> Count {
        let streams: Vec<_> = self.table.lock().streams.values().cloned().collect();
        let waiting = streams.iter().filter(|stream| stream.waiting_since().is_some()).count();
        Count { open: streams.len() - waiting, waiting }
    }

    /// A place for a new stream of this peer. Of an address with too many, the one that waits the longest makes room.
    pub(super) fn reserve(&self, peer: &str) -> Result<Share, Fault> {
        let too_many = |_| Fault::overloaded("too many streams of events are open");
        let mut place = self.places.share(peer);
        if place.grow(1).is_ok() {
            return Ok(place);
        }
        let oldest = self.table.lock().oldest_waiting(place.peer());
        // Dropped outside the lock.
        oldest.iter().for_each(|oldest| self.remove(oldest));
        drop(oldest);
        place.grow(1).map_err(too_many)?;
        Ok(place)
    }

    /// A new stream begins, and is read.
    pub(super) fn begin(self: &Arc<Self>, stream: Stream) -> Events {
        let stream = Arc::new(stream);
        let mut table = self.table.lock();
        table.streams.insert(stream.key, Arc::clone(&stream));
        table.acks.extend(stream.ack_key.map(|ack_key| (ack_key, stream.key)));
        drop(table);
        stream.read(self, None)
    }

    /// A client comes back to its stream.
    pub(super) fn resume(self: &Arc<Self>, last: &LastSeen) -> Option<Events> {
        let stream = self.table.lock().streams.get(&last.key).cloned()?;
        Some(stream.read(self, Some(last.number)))
    }

    /// A client has handled all events up to this one. False: nothing is known of it.
    pub(super) fn ack(&self, handled: &LastSeen) -> bool {
        let table = self.table.lock();
        let stream = table.acks.get(&handled.key).and_then(|key| table.streams.get(key)).cloned();
        drop(table);
        stream.is_some_and(|stream| stream.ack(handled.number))
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
        let mut table = self.table.lock();
        let removed = table.streams.remove(&stream.key);
        stream.ack_key.map(|ack_key| table.acks.remove(&ack_key));
        drop(table);
        drop(removed);
    }
}

impl Table {
    /// Of the streams of an address, the one that nobody has read for the longest time.
    fn oldest_waiting(&self, address: &str) -> Option<Arc<Stream>> {
        let of_address = self.streams.values().filter(|stream| stream.place.peer() == address);
        let waiting = of_address.filter_map(|stream| Some((stream.waiting_since()?, stream)));
        waiting.min_by_key(|(since, _)| *since).map(|(_, stream)| Arc::clone(stream))
    }
}
