//! Pushes of one session that went straight to its connection, and have not come to their ends.
//!
//! As long as nothing else happens than that they are written and acknowledged in their order, each takes 32 bytes
//! here, and is told of in the event log once, when it ends. For everything else they become entries of the
//! [`Book`](super::book::Book) first.

use std::{collections::VecDeque, num::NonZeroU32, sync::Arc, time::Duration};

use super::{Entry, book::give_back};
use crate::session::{
    explain::{EventLog, FlightEvent, NEVER},
    flight::Flight,
    push::Encoded,
    receipt::{Stage, Ticket},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// Of which nobody confirms more than that they are written.
    lone: VecDeque<Flown>,
    /// Those in the log, by offset.
    logged: VecDeque<Flown>,
    /// How many of the logged ones are written, and received.
    written: usize,
    received: usize,
    /// Of the session. There is one before the first push.
    event_log: Option<Arc<EventLog>>,
}

#[derive(Debug)]
struct Flown {
    flight: Arc<Flight>,
    /// Where the connection's counter of pushes stands behind it.
    mark: u64,
    /// 0: it is not in the log.
    offset: u64,
    /// When that was known, by [`millis_of`]; they begin again after 49 days.
    written: Option<NonZeroU32>,
    received: Option<NonZeroU32>,
}

impl Flown {
    /// As it is told at this stage, which it reached for good now, if that is its end.
    fn event(&self, event_log: &EventLog, stage: Stage, done: Option<NonZeroU32>) -> FlightEvent<'_> {
        let flight = &*self.flight;
        let at = micros_of(flight, event_log);
        let after = |moment: Option<NonZeroU32>| moment.map_or(NEVER, |moment| since(at, moment));
        let [written, received, done] = [self.written, self.received, done].map(after);
        FlightEvent { flight, at, offset: self.offset, stage, written, received, done }
    }
}

/// So long after the session began, in milliseconds, and one more.
fn millis_of(now: Duration) -> Option<NonZeroU32> {
    NonZeroU32::new((now.as_millis() as u32).wrapping_add(1)).or(Some(NonZeroU32::MIN))
}

/// Milliseconds from this moment, in microseconds, to that one.
fn since(at: u64, moment: NonZeroU32) -> u32 {
    moment.get().wrapping_sub(1).wrapping_sub((at / 1000) as u32)
}

/// One that becomes an entry.
pub(super) struct Landed {
    pub(super) flight: Arc<Flight>,
    pub(super) ticket: Ticket,
    /// Where the connection's counter stands behind it; `None`: it is known to be written.
    pub(super) mark: Option<u64>,
    /// 0: it is not in the log.
    pub(super) offset: u64,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.lone.is_empty() && self.logged.is_empty()
    }

    /// The event log that tells of them.
    pub(super) fn tell_in(&mut self, event_log: &Arc<EventLog>) {
        if self.event_log.is_none() {
            self.event_log = Some(Arc::clone(event_log));
        }
    }

    /// One more: its connection has it.
    pub(super) fn add(&mut self, flight: &Arc<Flight>, event_log: &Arc<EventLog>, mark: u64, offset: u64) {
        self.tell_in(event_log);
        let flown = Flown { flight: Arc::clone(flight), mark, offset, written: None, received: None };
        match offset {
            0 => self.lone.push_back(flown),
            _ => self.logged.push_back(flown),
        }
    }

    /// What has marks up to this one is with the kernel. True if something is left that is not known to be.
    pub(super) fn written_upto(&mut self, mark: u64, now: Duration) -> bool {
        let now = millis_of(now);
        let lone = self.lone.partition_point(|flown| flown.mark <= mark);
        let ended = Ended { from: |_| Stage::Queued, to: Stage::PlainWritten, now };
        ended.take_first(&mut self.lone, lone, self.event_log.as_deref());

        let (first, received) = (self.written, self.received);
        for (number, flown) in
            self.logged.iter_mut().enumerate().skip(first).take_while(|(_, flown)| flown.mark <= mark)
        {
            if received <= number {
                flown.flight.advance(Stage::Queued, Stage::Written);
                flown.written = now;
            }
            self.written = number + 1;
        }

        !self.lone.is_empty() || self.written < self.logged.len()
    }

    /// The client has received and handled everything up to these offsets. Returns how many left the log so, and their
    /// bytes.
    pub(super) fn ack(&mut self, received: u64, handled: u64, now: Duration) -> (usize, usize) {
        if self.logged.is_empty() {
            return (0, 0);
        }

        let now = millis_of(now);
        let done = self.logged.partition_point(|flown| flown.offset <= handled);
        let (written, received_before) = (self.written, self.received);
        let from = |number| stage_at(number, written, received_before);
        let ended = Ended { from, to: Stage::Handled, now };
        let bytes = ended.take_first(&mut self.logged, done, self.event_log.as_deref());
        (self.written, self.received) = (written.saturating_sub(done), received_before.saturating_sub(done));

        let (first, written) = (self.received, self.written);
        let news = self.logged.iter_mut().enumerate().skip(first).take_while(|(_, flown)| flown.offset <= received);
        for (number, flown) in news {
            flown.flight.advance(stage_at(number, written, first), Stage::Received);
            flown.received = now;
            self.received = number + 1;
        }
        (done, bytes)
    }

    /// The oldest offset in the log.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.logged.front().map(|flown| flown.offset)
    }

    /// Those in the log that the application pushed.
    pub(super) fn logged(&self) -> usize {
        self.logged.len()
    }

    /// One that waits becomes an entry, of which the event log tells from here on.
    pub(super) fn entry_of(&self, flight: Arc<Flight>) -> Entry {
        let note = |event_log: &Arc<EventLog>| {
            let (at, stage) = (micros_of(&flight, event_log), Stage::Queued);
            let [written, received, done] = [NEVER; 3];
            event_log.note_flight(&FlightEvent { flight: &flight, at, offset: 0, stage, written, received, done })
        };
        let number = self.event_log.as_ref().map(note);
        let ticket = Ticket::of_counted(&flight.tally, Stage::Queued, self.event_log.as_ref().zip(number));
        entry(&flight, ticket)
    }

    /// They become entries, in the order in which the connection got them.
    pub(super) fn land(&mut self) -> impl Iterator<Item = Landed> {
        let event_log = self.event_log.clone();
        let Self { lone, logged, written, received, .. } =
            std::mem::replace(self, Self { event_log: event_log.clone(), ..Self::default() });
        let mut all: Vec<(Flown, Stage, bool)> = Vec::with_capacity(lone.len() + logged.len());
        all.extend(lone.into_iter().map(|flown| (flown, Stage::Queued, false)));
        let stages = logged.into_iter().enumerate();
        all.extend(stages.map(|(number, flown)| (flown, stage_at(number, written, received), number < written)));
        all.sort_by_key(|(flown, ..)| flown.mark);
        all.into_iter().map(move |(flown, stage, is_written)| {
            let note = |event_log: &Arc<EventLog>| event_log.note_flight(&flown.event(event_log, stage, None));
            let number = event_log.as_ref().map(note);
            let Flown { flight, mark, offset, .. } = flown;
            let event_log = event_log.as_ref().zip(number);
            let ticket = Ticket::of_counted(&flight.tally, stage, event_log);
            Landed { flight, ticket, mark: (!is_written).then_some(mark), offset }
        })
    }
}

/// The end of some that were sent one after another: each comes from the stage that its number among them has.
struct Ended<F> {
    from: F,
    to: Stage,
    now: Option<NonZeroU32>,
}

impl<F: Fn(usize) -> Stage> Ended<F> {
    /// Takes so many of the first out. Returns their bytes.
    fn take_first(&self, list: &mut VecDeque<Flown>, count: usize, event_log: Option<&EventLog>) -> usize {
        // Without an event log there was no push.
        let Some(event_log) = event_log.filter(|_| 0 < count) else { return 0 };

        let (mut told, mut bytes) = (event_log.ended(count), 0);
        for (number, flown) in list.drain(..count).enumerate() {
            bytes += flown.flight.encoded.size();
            flown.flight.advance((self.from)(number), self.to);
            told.push(|| flown.event(event_log, self.to, self.now));
        }
        // Its lock is free before memory is given back.
        drop(told);
        give_back(list);
        bytes
    }
}

/// What is kept of one that is told of by this ticket.
pub(super) fn entry(flight: &Flight, ticket: Ticket) -> Entry {
    let Encoded { frame, keyed } = flight.encoded.clone();
    let (class, priority, origin) = (flight.class.clone(), flight.priority, flight.origin);
    Entry { class, priority, frame, keyed, expires: None, origin, ticket }
}

/// One came to its end as it was pushed.
pub(super) fn note_end(flight: &Flight, stage: Stage, event_log: &EventLog) {
    flight.advance(Stage::Queued, stage);
    let (at, offset) = (micros_of(flight, event_log), 0);
    let event = FlightEvent { flight, at, offset, stage, written: NEVER, received: NEVER, done: 0 };
    event_log.ended(1).push(|| event);
}

/// When it was pushed, in microseconds since the session began.
fn micros_of(flight: &Flight, event_log: &EventLog) -> u64 {
    flight.at.saturating_duration_since(event_log.began()).as_micros() as u64
}

/// Where the logged one of this number stands, of which so many are written and received.
fn stage_at(number: usize, written: usize, received: usize) -> Stage {
    if number < received {
        Stage::Received
    } else if number < written {
        Stage::Written
    } else {
        Stage::Queued
    }
}
