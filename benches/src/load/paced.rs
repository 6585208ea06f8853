//! Single connections: one that sends at an even pace, and one that asks for pushes to itself.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bothways_proto::Metadata;
use hdrhistogram::Histogram;

use super::{
    fleet::{Frame, connect_waiting, put_heartbeat, read_frame},
    latencies, pattern, socket_address,
};
use crate::contract::{self, put_oneway, put_request};

/// What [`paced`] sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Paced {
    /// Heartbeats.
    Heartbeats,
    /// Calls of `Echo`.
    Calls,
}

/// Sends one message after the other on a connection of its own, each when it is due, or as soon as the one before is
/// answered. Returns the nanoseconds from when each was due to its answer.
///
/// # Errors
/// One is not answered.
pub fn paced(
    what: Paced,
    address: &str,
    begin: Instant,
    end: Instant,
    every: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let mut stream = connect_waiting(socket_address(address)?)?;
    let (mut latency, payload) = (latencies(), pattern(581));
    let (mut seq, mut frame, mut due) = (0, Vec::new(), begin);

    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        seq += 1;
        frame.clear();
        match what {
            Paced::Heartbeats => put_heartbeat(&mut frame, seq, &Metadata::new()),
            Paced::Calls => put_request(&mut frame, seq, contract::ECHO, &payload),
        }

        stream.write_all(&frame)?;
        let answer = read_frame(&mut stream).context("nothing answered")?;
        let answer = Frame::parse(&answer)?;
        answer.must_be_reply()?;
        let is_what_was_due = match what {
            Paced::Heartbeats => answer.is_heartbeat(),
            Paced::Calls => answer.payload == payload,
        };
        ensure!(is_what_was_due && answer.seq == seq, "another frame than was due: {answer:?}");

        // From when it was due, so that being late counts too.
        latency.saturating_record(due.elapsed().as_nanos() as u64);
        due += every;
    }
    Ok(latency)
}

/// One connection that asks for pushes to itself, one at a time.
#[derive(Debug)]
pub struct Single {
    stream: TcpStream,
    seq: u64,
    frame: Vec<u8>,
}

impl Single {
    /// Connects.
    ///
    /// # Errors
    /// The server does not listen.
    pub fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = connect_waiting(socket_address(address)?)?;
        Ok(Self { stream, seq: 0, frame: Vec::new() })
    }

    /// Asks for a push, by a request that wants no reply.
    ///
    /// # Errors
    /// The connection is over.
    pub fn ask(&mut self, method: &str, payload: &[u8]) -> anyhow::Result<()> {
        self.seq += 1;
        self.frame.clear();
        put_oneway(&mut self.frame, self.seq, method, payload);
        Ok(self.stream.write_all(&self.frame)?)
    }

    /// Waits for the push. Its payload.
    ///
    /// # Errors
    /// Something else comes, or nothing.
    pub fn push(&mut self) -> anyhow::Result<Vec<u8>> {
        let frame = read_frame(&mut self.stream).context("no push came")?;
        let frame = Frame::parse(&frame)?;
        frame.must_be_push()?;
        Ok(frame.payload.to_vec())
    }
}
