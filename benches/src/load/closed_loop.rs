//! As many calls as may be in flight are, and each reply brings the next call.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bothways_proto::Metadata;
use hdrhistogram::Histogram;

use super::{
    fleet::{Fleet, Frame, put_heartbeat},
    latencies, pattern,
};
use crate::contract::{self, put_request};

/// What a closed loop is: as many calls as may be in flight are, and each reply brings the next call.
#[derive(Clone, Copy, Debug)]
pub struct ClosedLoop {
    /// Calls of each connection that wait for their reply.
    pub in_flight: usize,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// What is asked for.
    pub call: Call,
    /// A heartbeat goes out this often, on a connection that has calls in flight.
    pub heartbeat_every: Option<Duration>,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Time of the measurement.
    pub measure: Duration,
}

impl ClosedLoop {
    /// Calls of `Echo`.
    pub fn new(in_flight: usize, payload_bytes: usize, warm_up: Duration, measure: Duration) -> Self {
        Self { in_flight, payload_bytes, call: Call::Echo, heartbeat_every: None, warm_up, measure }
    }

    /// One call at a time that asks for so many bytes.
    pub fn fill(bytes: usize, warm_up: Duration, measure: Duration) -> Self {
        Self { call: Call::Fill(bytes), ..Self::new(1, 0, warm_up, measure) }
    }
}

/// What calls of a closed loop ask for, and so what their replies must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Call {
    /// The payload back.
    Echo,
    /// The payload back, and the server is known to refuse: each reply must say so.
    EchoRefused,
    /// A reply of this many bytes. Our server only.
    Fill(usize),
}

/// Calls that run for ever, and one behind them, which shows that they run.
pub(super) fn hold(fleet: &mut Fleet, calls: usize) -> anyhow::Result<()> {
    for place in 0..fleet.len() {
        fleet.send(place, |out| {
            for seq in 0..calls {
                put_request(out, seq as u64, contract::HOLD, b"");
            }
            put_request(out, calls as u64, contract::ECHO, b"");
        })?;

        let answered = Cell::new(false);
        // It may be refused or not: which call is the first too many is the server's own affair.
        fleet.run(
            || answered.get(),
            |of, frame, _, _| {
                answered.set(answered.get() | (of == place && frame.seq == calls as u64));
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// A call that waits for its reply.
#[derive(Clone, Copy)]
struct InFlight {
    seq: u64,
    since: Instant,
}

pub(super) struct Replies {
    pub(super) calls: Histogram<u64>,
    pub(super) heartbeats: Histogram<u64>,
}

pub(super) fn closed_loop(
    fleet: &mut Fleet,
    work: ClosedLoop,
    begin: Instant,
    end: Instant,
) -> anyhow::Result<Replies> {
    let mut requests = Requests::new(work);
    let mut calls = send_first_calls(fleet, work.in_flight, &mut requests)?;

    let waiting = Cell::new(calls.len());
    let mut beats = Beats::new(work.heartbeat_every, begin, fleet.len());
    let mut latency = latencies();
    let is_done = || waiting.get() == 0;
    fleet.run(is_done, |place, frame, now, out| {
        if frame.is_heartbeat() {
            return beats.answered(place, frame.seq, now.instant);
        }

        // The low bits of a number are its slot, the others count the slot's calls.
        let slot = (frame.seq & u64::from(u16::MAX)) as usize;
        ensure!(slot < work.in_flight, "a reply to no call: {}", frame.seq);
        let call = &mut calls[place * work.in_flight + slot];
        ensure!(call.seq == frame.seq, "a second reply, or one to no call: {}", frame.seq);
        requests.check_reply(&frame)?;

        if begin <= now.instant && now.instant < end {
            latency.saturating_record(now.instant.duration_since(call.since).as_nanos() as u64);
        }
        if now.instant < end {
            call.seq += 1 << 16;
            call.since = now.instant;
            requests.put(out, call.seq);
            beats.put_if_due(place, now.instant, out);
        } else {
            // No call has this number, so a second reply is noticed.
            call.seq = u64::MAX;
            waiting.set(waiting.get() - 1);
        }
        Ok(())
    })?;
    Ok(Replies { calls: latency, heartbeats: beats.latency })
}

/// Fills each slot of each connection with its first call. Returns the calls by connection, and then by slot.
fn send_first_calls(fleet: &mut Fleet, in_flight: usize, requests: &mut Requests) -> anyhow::Result<Vec<InFlight>> {
    let now = Instant::now();
    let mut calls = vec![InFlight { seq: 0, since: now }; fleet.len() * in_flight];
    for place in 0..fleet.len() {
        for slot in 0..in_flight {
            let call = &mut calls[place * in_flight + slot];
            call.seq = slot as u64;
            fleet.send(place, |out| requests.put(out, call.seq))?;
        }
    }
    Ok(calls)
}

/// The requests of a closed loop, and what their replies must be.
struct Requests {
    call: Call,
    /// The frame of a request. Only the two sequence numbers in it differ between requests: one is in the header, the
    /// other at the start of the payload.
    frame: Vec<u8>,
    payload_at: usize,
    /// The payload that the reply to an echo must have, except for the sequence number at its start.
    payload: Vec<u8>,
    /// How many bytes of the payload are its sequence number. 0 for calls that are no echo.
    number_len: usize,
}

impl Requests {
    fn new(work: ClosedLoop) -> Self {
        let (method, payload) = match work.call {
            Call::Echo | Call::EchoRefused => (contract::ECHO, pattern(work.payload_bytes)),
            Call::Fill(bytes) => (contract::FILL, bytes.to_string().into_bytes()),
        };
        let number_len = if method == contract::ECHO { payload.len().min(8) } else { 0 };

        let mut frame = Vec::new();
        put_request(&mut frame, 0, method, &payload);
        let payload_at = frame.len() - payload.len();
        Self { call: work.call, frame, payload_at, payload, number_len }
    }

    /// Appends the request with this sequence number.
    fn put(&mut self, out: &mut Vec<u8>, seq: u64) {
        let number = seq.to_be_bytes();
        self.frame[4..12].copy_from_slice(&number);
        self.frame[self.payload_at..self.payload_at + self.number_len].copy_from_slice(&number[8 - self.number_len..]);
        out.extend_from_slice(&self.frame);
    }

    /// Fails unless this is the right reply to the request with the frame's sequence number.
    fn check_reply(&mut self, frame: &Frame<'_>) -> anyhow::Result<()> {
        match self.call {
            Call::EchoRefused => frame.must_be_refusal()?,
            Call::Echo => {
                frame.must_be_reply()?;
                self.payload[..self.number_len].copy_from_slice(&frame.seq.to_be_bytes()[8 - self.number_len..]);
                ensure!(frame.payload == self.payload, "a reply with other bytes than its call");
            }
            Call::Fill(bytes) => {
                frame.must_be_reply()?;
                ensure!(frame.payload.len() == bytes, "a reply of {} bytes, not {bytes}", frame.payload.len());
            }
        }
        Ok(())
    }
}

/// Heartbeats among calls. One of a connection waits for its answer at a time.
struct Beats {
    every: Option<Duration>,
    next: Instant,
    seq: u64,
    /// By connection: the number of the one that waits, and since when.
    waiting: Vec<Option<(u64, Instant)>>,
    latency: Histogram<u64>,
}

impl Beats {
    fn new(every: Option<Duration>, begin: Instant, connections: usize) -> Self {
        Self { every, next: begin, seq: 0, waiting: vec![None; connections], latency: latencies() }
    }

    fn put_if_due(&mut self, place: usize, now: Instant, out: &mut Vec<u8>) {
        let Some(every) = self.every.filter(|_| self.next <= now && self.waiting[place].is_none()) else { return };
        self.seq += 1;
        self.next = now + every;
        self.waiting[place] = Some((self.seq, now));
        put_heartbeat(out, self.seq, &Metadata::new());
    }

    fn answered(&mut self, place: usize, seq: u64, now: Instant) -> anyhow::Result<()> {
        let (due, since) = self.waiting[place].take().context("the answer to no heartbeat")?;
        ensure!(due == seq, "the answer to another heartbeat");
        self.latency.saturating_record(now.duration_since(since).as_nanos() as u64);
        Ok(())
    }
}
