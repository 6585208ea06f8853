//! The bare limit: the most that the operating system allows a server of the contract.
//!
//! It understands the prefix of a frame and the name of a method, checks no more than it must, and
//! answers in place: a reply is the request with one bit set. For what one read brought there is one
//! write; a batch of a broadcast is encoded once and written once to each connection. No queue has a
//! bound, no client can be refused, nothing is counted: a framework is measured by how close it comes.
//!
//! Each thread has an epoll of its own and its share of the connections. The crate `mio` is used
//! because it is safe, in the tree already through tokio, and adds no system call: an edge-triggered
//! event, one read, one write, and no changes of interest.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bothways_proto::{self as proto, Header, Limits, Metadata, Seq, SerializeType};
use bytes::{Buf, Bytes};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::contract::{self, BroadcastArgs, Stamps};

/// One read takes at most this much.
const READ_BYTES: usize = 256 << 10;

/// Bytes of one batch of a broadcast to one connection, and of one write.
const BATCH_BYTES: usize = 64 << 10;

/// A connection for which more than this waits is behind: the next batch waits for it.
const BEHIND_BYTES: usize = 256 << 10;

/// Unless it took nothing for this long.
const PATIENCE: Duration = Duration::from_millis(5);

/// Most bytes of one push: what a frame can hold beside its names.
const PUSH_BYTES_MAX: usize = 4 << 20;

/// Slices of one write.
const SLICES: usize = 64;

/// The bit in byte 2 of a frame that makes a reply of a request.
const RESPONSE: u8 = 0x80;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Serves on `listener` with this many threads, for ever.
///
/// # Errors
/// The system has no epoll, no thread or no file left.
pub fn serve(listener: TcpListener, threads: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let (mut polls, mut inboxes, mut outlets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..threads.max(1) {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (commands, inbox) = mpsc::channel();
        outlets.push(Outlet { commands, waker: Arc::new(waker) });
        polls.push(poll);
        inboxes.push(inbox);
    }

    let mut listener = mio::net::TcpListener::from_std(listener);
    polls[0].registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    // Only the first thread accepts; it hands connections to the others.
    let mut listener = Some(listener);

    let mut workers = Vec::new();
    for (index, (poll, inbox)) in polls.into_iter().zip(inboxes).enumerate() {
        let worker = Worker {
            index,
            poll,
            listener: listener.take(),
            next: 0,
            inbox,
            outlets: outlets.clone(),
            connections: Slab::new(),
            taken: 0,
            joined: HashMap::new(),
            jobs: VecDeque::new(),
            pushed: 0,
            stamps: Stamps::default(),
            buffer: vec![0; READ_BYTES],
        };
        workers.push(std::thread::Builder::new().name(format!("limit-{index}")).spawn(move || worker.run())?);
    }

    workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
}

/// How one thread reaches another.
#[derive(Clone)]
struct Outlet {
    commands: mpsc::Sender<Command>,
    waker: Arc<Waker>,
}

enum Command {
    Take(TcpStream),
    Broadcast(Arc<Job>),
    /// The last thread is done with this broadcast of ours.
    Done(Arc<Job>),
}

/// A broadcast, which each thread does for its own connections.
struct Job {
    args: BroadcastArgs,
    asked_by: usize,
    connection: Id,
    reply: Bytes,
    threads_left: AtomicUsize,
}

/// A place in the slab, and which of those that had it is meant.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Id {
    place: usize,
    born: u64,
}

struct Connection {
    stream: mio::net::TcpStream,
    born: u64,
    /// The beginning of a frame whose end has not arrived.
    partial: Vec<u8>,
    /// What the socket did not take.
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    progress: Instant,
}

struct Worker {
    index: usize,
    poll: Poll,
    /// Only the first thread's.
    listener: Option<mio::net::TcpListener>,
    /// The thread that gets the next connection.
    next: usize,
    inbox: mpsc::Receiver<Command>,
    outlets: Vec<Outlet>,
    connections: Slab<Connection>,
    taken: u64,
    /// By place.
    joined: HashMap<usize, u64>,
    /// Broadcasts under way, and how many messages each has left.
    jobs: VecDeque<(Arc<Job>, usize)>,
    pushed: u64,
    stamps: Stamps,
    buffer: Vec<u8>,
}

impl Worker {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            // With a broadcast under way, the next batch must not wait for an event.
            let timeout = match self.jobs.front() {
                None => None,
                Some(_) if self.is_behind() => Some(Duration::from_millis(1)),
                Some(_) => Some(Duration::ZERO),
            };

            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }

            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER => self.take_commands()?,
                    Token(place) => {
                        let mut alive = true;
                        if event.is_writable() {
                            alive = self.handle_writable(place);
                        }
                        if alive && event.is_readable() {
                            alive = self.handle_readable(place, event.is_read_closed());
                        }
                        if !alive && self.connections.contains(place) {
                            self.connections.remove(place);
                            self.joined.remove(&place);
                        }
                    }
                }
            }

            if !self.jobs.is_empty() && !self.is_behind() {
                self.push_batch();
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, _)) => {
                    let to = self.next;
                    self.next = (self.next + 1) % self.outlets.len();
                    if to == self.index {
                        self.take(stream)?;
                    } else {
                        self.send(to, Command::Take(stream.into()))?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&self, to: usize, command: Command) -> io::Result<()> {
        // The other end lives as long as its thread, and all threads end together.
        let _ = self.outlets[to].commands.send(command);
        self.outlets[to].waker.wake()
    }

    fn take_commands(&mut self) -> io::Result<()> {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Take(stream) => self.take(mio::net::TcpStream::from_std(stream))?,
                Command::Broadcast(job) => {
                    let left = job.args.count;
                    self.jobs.push_back((job, left));
                }
                Command::Done(job) => {
                    let Id { place, born } = job.connection;
                    if let Some(connection) = self.connections.get_mut(place).filter(|c| c.born == born) {
                        // An error comes back as an event.
                        let _ = connection.write(&job.reply, |rest| job.reply.slice_ref(rest));
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, mut stream: mio::net::TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let entry = self.connections.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(entry.key()), interest)?;
        self.taken += 1;
        entry.insert(Connection {
            stream,
            born: self.taken,
            partial: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            progress: Instant::now(),
        });
        Ok(())
    }

    /// False if the connection is over.
    fn handle_writable(&mut self, place: usize) -> bool {
        let Some(connection) = self.connections.get_mut(place) else { return false };
        connection.waiting.is_empty() || connection.write_waiting().is_ok()
    }

    /// Reads until the socket is drained: a read that does not fill the buffer shows that, unless the
    /// end of the stream is behind it. False if the connection is over.
    fn handle_readable(&mut self, place: usize, to_the_end: bool) -> bool {
        // Taken out, for `handle_bytes` borrows the whole worker.
        let mut buffer = std::mem::take(&mut self.buffer);

        let alive = loop {
            let Some(connection) = self.connections.get_mut(place) else { break false };
            let n = match connection.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break false,
            };
            if self.handle_bytes(place, &mut buffer[..n]).is_err() {
                break false;
            }
            if n < buffer.len() && !to_the_end {
                break true;
            }
        };

        self.buffer = buffer;
        alive
    }

    fn handle_bytes(&mut self, place: usize, bytes: &mut [u8]) -> Result<(), Over> {
        if self.connections[place].partial.is_empty() {
            let used = self.answer(place, bytes)?;
            self.connections[place].partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.connections[place].partial);
            partial.extend_from_slice(bytes);
            let used = self.answer(place, &mut partial)?;
            partial.drain(..used);
            if !partial.is_empty() {
                self.connections[place].partial = partial;
            }
        }
        Ok(())
    }

    /// Answers the whole frames at the start of `bytes`, in place and with one write. How many bytes
    /// they are.
    fn answer(&mut self, place: usize, bytes: &mut [u8]) -> Result<usize, Over> {
        let limits = Limits::default();
        let (mut start, mut at) = (0, 0);

        while let Some(len) = proto::frame_len(&bytes[at..], &limits).map_err(|_| Over)? {
            let Some(frame) = bytes.get_mut(at..at + len) else { break };
            let [_, method, _, payload] = contract::parts(frame).ok_or(Over)?;
            if method == contract::BROADCAST.as_bytes() {
                let args = BroadcastArgs::parse(payload).filter(|args| args.size <= PUSH_BYTES_MAX).ok_or(Over)?;
                let seq = u64::from_be_bytes(*frame[4..].first_chunk().ok_or(Over)?);
                // The replies before it go first; its own follows when the last thread is done.
                self.connections[place].reply(&bytes[start..at])?;
                self.begin_broadcast(place, args, Seq::new(seq)).map_err(|_| Over)?;
                start = at + len;
            } else {
                if method == contract::JOIN.as_bytes() {
                    self.joined.insert(place, self.connections[place].born);
                }
                frame[2] |= RESPONSE;
            }
            at += len;
        }

        self.connections[place].reply(&bytes[start..at])?;
        Ok(at)
    }

    fn begin_broadcast(&mut self, place: usize, args: BroadcastArgs, seq: Seq) -> io::Result<()> {
        let (mut reply, names) = (Vec::new(), (contract::SERVICE, contract::BROADCAST));
        let header = Header::request(seq, SerializeType::RAW).reply();
        contract::put(&mut reply, header, names, &Metadata::new(), b"");
        let job = Arc::new(Job {
            args,
            asked_by: self.index,
            connection: Id { place, born: self.connections[place].born },
            reply: reply.into(),
            threads_left: AtomicUsize::new(self.outlets.len()),
        });
        for to in 0..self.outlets.len() {
            self.send(to, Command::Broadcast(Arc::clone(&job)))?;
        }
        Ok(())
    }

    /// True while somebody who reads has much to read still.
    fn is_behind(&self) -> bool {
        self.joined.keys().any(|place| {
            let connection = &self.connections[*place];
            BEHIND_BYTES < connection.waiting_bytes && connection.progress.elapsed() < PATIENCE
        })
    }

    /// Writes the next batch of the oldest broadcast to everyone here who joined.
    fn push_batch(&mut self) {
        let Some((job, mut left)) = self.jobs.pop_front() else { return };
        if !self.joined.is_empty() {
            let mut payload = vec![0; job.args.size];
            let batch = (BATCH_BYTES / job.args.size).max(1).min(left);
            let mut bytes = Vec::with_capacity(batch * (job.args.size + 64));
            for _ in 0..batch {
                self.pushed += 1;
                self.stamps.stamp(&mut payload);
                contract::put_oneway(&mut bytes, self.pushed, contract::TICK, &payload);
            }

            let bytes = Bytes::from(bytes);
            for place in self.joined.keys() {
                // An error comes back as an event.
                let _ = self.connections[*place].write(&bytes, |rest| bytes.slice_ref(rest));
            }
            left -= batch;
        } else {
            left = 0;
        }

        if 0 < left {
            self.jobs.push_front((job, left));
        } else if job.threads_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // It can only fail if no files are left, and then the one who asked waits for nothing.
            let _ = self.send(job.asked_by, Command::Done(job));
        }
    }
}

impl Connection {
    fn reply(&mut self, bytes: &[u8]) -> Result<(), Over> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.write(bytes, Bytes::copy_from_slice).map_err(|_| Over)
    }

    /// Writes at once what the socket takes, if nothing waits; `keep` makes the rest wait.
    fn write(&mut self, mut bytes: &[u8], keep: impl FnOnce(&[u8]) -> Bytes) -> io::Result<()> {
        while self.waiting.is_empty() && !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => bytes.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.progress = Instant::now();
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !bytes.is_empty() {
            self.waiting_bytes += bytes.len();
            self.waiting.push_back(keep(bytes));
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.waiting.iter().zip(&mut slices).map(|(bytes, slice)| *slice = IoSlice::new(bytes)).count();
            let mut n = match self.stream.write_vectored(&slices[..used]) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };

            self.waiting_bytes -= n;
            self.progress = Instant::now();
            while 0 < n {
                let front = self.waiting.front_mut().expect("no more is taken than waited");
                let of_front = n.min(front.len());
                front.advance(of_front);
                n -= of_front;
                if front.is_empty() {
                    self.waiting.pop_front();
                }
            }
        }

        // Once it is empty, a long queue gives its memory back.
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        Ok(())
    }
}

/// The connection is over: the client left, or sent what no client of the contract sends.
struct Over;

/// Where a listener really listens, in rpcx's form.
pub fn address_of(local: SocketAddr) -> String {
    format!("tcp@{local}")
}
