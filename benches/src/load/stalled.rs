//! Connections that get pushes and do not read them.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, ensure};

use super::{
    fleet::{Frame, connect_waiting, limits},
    socket_address,
};
use crate::contract::{self, put_request};

/// Connections that get pushes and never read.
#[derive(Debug)]
pub struct Stalled(Vec<TcpStream>);

impl Stalled {
    /// Connects, and asks for pushes by this method.
    ///
    /// # Errors
    /// The server does not listen, or there are no files left.
    pub fn connect(address: &str, connections: usize, method: &str) -> anyhow::Result<Self> {
        let address = socket_address(address)?;
        let mut request = Vec::new();
        put_request(&mut request, 1, method, b"");
        let one = || {
            let mut stream = connect_waiting(address)?;
            stream.write_all(&request)?;
            // Once the answer waits in the socket, the server counts this one in. It is never read.
            stream.peek(&mut [0]).context("no answer to the joining")?;
            Ok(stream)
        };
        (0..connections).map(|_| one()).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Reads at last: what the system had taken before the server gave up, and then the end. How many
    /// bytes all of them got.
    ///
    /// # Errors
    /// A connection does not end, or something came twice or out of order.
    pub fn read_to_the_end(self) -> anyhow::Result<u64> {
        self.0.into_iter().map(read_to_the_end).sum()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn read_to_the_end(mut stream: TcpStream) -> anyhow::Result<u64> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // The server need not say goodbye to who does not listen.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("a stalled connection does not end"),
    }

    let (mut at, mut last) = (0, 0);
    while let Some(len) = bothways_proto::frame_len(&bytes[at..], &limits())? {
        let Some(frame) = bytes.get(at..at + len) else { break };
        let frame = Frame::parse(frame)?;
        // The first one answers the request for pushes.
        if 0 < at {
            frame.must_be_push()?;
            let clock = contract::stamped(frame.payload).context("a push without a clock")?;
            ensure!(last < clock, "a push of {clock} ns after one of {last} ns");
            last = clock;
        }
        at += len;
    }

    Ok(bytes.len() as u64)
}
