//! A transport within this process: no port, no file, no system call.
//!
//! [`pair`] makes two connected ends. Under an address `memory@name` a [`Listener`](super::Listener)
//! takes connections from [`connect`](super::connect()) as with any other network; names are known in
//! the whole process.
//!
//! Each direction is a queue of bytes with a bound. Its memory is taken when bytes wait and given back
//! when none do, so an idle connection costs some hundred bytes. A thread keeps the last queue that was given back, for the
//! next one.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    io::{self, IoSlice, Read},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, task::coop};

use super::{Accepted, Address, AnySocket, ConnectOptions, Listen, ListenOptions, Socket, Transport, peer::Peer};
use crate::reply::BoxFuture;

/// Most bytes that wait in one direction of a connection made by `connect`. 64 KiB: enough for a batch
/// of frames, little enough that a peer that does not read is noticed.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Two connected ends. In each direction `buffer_bytes` wait at most, but always one.
pub fn pair(buffer_bytes: usize) -> (MemorySocket, MemorySocket) {
    connected("memory@pair".into(), buffer_bytes)
}

/// As [`pair`], where the server's end, the second, calls its peer by this name: a gateway passes on who its own client
/// is, in rpcx's form, such as `http@127.0.0.1:50312`. Log lines and bounds per address go by it.
pub fn pair_for(peer: impl Into<Arc<str>>, buffer_bytes: usize) -> (MemorySocket, MemorySocket) {
    let (client, mut server) = pair(buffer_bytes);
    server.peer = Peer::Listener(peer.into());
    (client, server)
}

/// A client's end and a server's.
fn connected(address: Arc<str>, buffer_bytes: usize) -> (MemorySocket, MemorySocket) {
    let pipes = Arc::new([(); 2].map(|()| Mutex::new(Pipe::new(buffer_bytes.max(1)))));
    let client = Peer::next_client(Arc::clone(&address));
    (
        MemorySocket { pipes: Arc::clone(&pipes), end: End::Client, peer: Peer::Listener(address) },
        MemorySocket { pipes, end: End::Server, peer: client },
    )
}

/// One end of a connection within this process. Dropping it ends both directions: the other end reads
/// what was written, then the end of the stream; it can write no more.
#[derive(Debug)]
pub struct MemorySocket {
    /// From the client to the server, and back.
    pipes: Arc<[Mutex<Pipe>; 2]>,
    end: End,
    peer: Peer,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Client,
    Server,
}

impl MemorySocket {
    /// Breaks the connection as a network does: what waits is lost, and from now on both ends get
    /// [`ConnectionReset`](io::ErrorKind::ConnectionReset). For tests of what happens then.
    pub fn reset(&self) {
        for pipe in &*self.pipes {
            change(pipe, Pipe::reset);
        }
    }

    fn outgoing(&self) -> &Mutex<Pipe> {
        &self.pipes[self.end as usize]
    }

    fn incoming(&self) -> &Mutex<Pipe> {
        &self.pipes[1 - self.end as usize]
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        change(self.outgoing(), Pipe::end);
        change(self.incoming(), Pipe::abandon);
    }
}

impl Socket for MemorySocket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let turn = ready!(coop::poll_proceed(cx));
        let result = change(self.incoming(), |pipe| {
            let result = pipe.read(buf);
            if would_block(&result) {
                wait(&mut pipe.reader, cx);
            }
            result
        });
        if would_block(&result) {
            return Poll::Pending;
        }
        turn.made_progress();
        Poll::Ready(result)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let turn = ready!(coop::poll_proceed(cx));
        let result = change(self.outgoing(), |pipe| {
            let result = pipe.write(slices);
            if would_block(&result) {
                wait(&mut pipe.writer, cx);
            }
            result
        });
        if would_block(&result) {
            return Poll::Pending;
        }
        turn.made_progress();
        Poll::Ready(result)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        change(self.outgoing(), |pipe| pipe.write(slices))
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        change(self.outgoing(), Pipe::end);
        Poll::Ready(Ok(()))
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}

fn would_block(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn wait(waiting: &mut Option<Waker>, cx: &Context<'_>) {
    match waiting {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waiting = Some(cx.waker().clone()),
    }
}

/// Changes a pipe, then wakes whom the change concerns, no longer holding the lock.
fn change<T>(pipe: &Mutex<Pipe>, change: impl FnOnce(&mut Pipe) -> T) -> T {
    let mut pipe = pipe.lock();
    let result = change(&mut pipe);
    let [first, second] = std::mem::take(&mut pipe.woken);
    drop(pipe);
    // Not as an iterator: that takes 50 instructions of each read and write, in which most have nobody to wake.
    if let Some(waker) = first {
        waker.wake();
    }
    if let Some(waker) = second {
        waker.wake();
    }
    result
}

thread_local! {
    /// The queue that was given back last, of at most [`BUFFER_BYTES`]: bytes that are written are often read by the same
    /// thread, and an allocator takes 250 instructions for each time.
    static SPARE: Cell<VecDeque<u8>> = const { Cell::new(VecDeque::new()) };
}

/// An empty queue, which has not more memory than so many bytes.
fn spare(bytes_max: usize) -> VecDeque<u8> {
    // At the end of its thread there is none.
    let spare = SPARE.try_with(Cell::take).unwrap_or_default();
    if spare.capacity() <= bytes_max { spare } else { VecDeque::new() }
}

fn give_back(mut queue: VecDeque<u8>) {
    if queue.capacity() <= BUFFER_BYTES {
        // Also its place within the ring: what is written next is read in one piece.
        queue.clear();
        let _ = SPARE.try_with(|spare| spare.set(queue));
    }
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    state: State,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// To be woken when the lock is free.
    woken: [Option<Waker>; 2],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// Nothing more is written. What waits can be read.
    Ended,
    /// Nobody reads any more.
    Abandoned,
    Reset,
}

impl Pipe {
    fn new(bytes_max: usize) -> Self {
        let bytes = VecDeque::new();
        Self { bytes, bytes_max, state: State::Open, reader: None, writer: None, woken: [None, None] }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
            State::Open if self.bytes.is_empty() && !buf.is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
            _ => {}
        }
        // The queue is a ring: what waits may be in two pieces, of which a read takes one.
        let mut len = self.bytes.read(buf)?;
        len += self.bytes.read(&mut buf[len..])?;
        if self.bytes.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
        }
        if 0 < len {
            self.woken[1] = self.writer.take();
        }
        Ok(len)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.state {
            State::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
            State::Ended | State::Abandoned => return Err(io::ErrorKind::BrokenPipe.into()),
            State::Open => {}
        }

        let offered = slices.iter().fold(0_usize, |sum, slice| sum.saturating_add(slice.len()));
        let len = offered.min(self.bytes_max - self.bytes.len());
        if len == 0 && 0 < offered {
            return Err(io::ErrorKind::WouldBlock.into());
        }

        self.reserve(len);
        let mut left = len;
        for slice in slices {
            let piece = &slice[..left.min(slice.len())];
            self.bytes.extend(piece);
            left -= piece.len();
        }
        if 0 < len {
            // Only noted here: the caller wakes it once the lock is free.
            self.woken[0] = self.reader.take();
        }
        Ok(len)
    }

    /// Makes room by doubling, but never for more than the bound.
    fn reserve(&mut self, additional: usize) {
        if self.bytes.capacity() == 0 && additional != 0 {
            self.bytes = spare(self.bytes_max);
        }
        let (len, capacity) = (self.bytes.len(), self.bytes.capacity());
        if capacity < len + additional {
            let wanted = (len + additional).max(self.bytes_max.min(2 * capacity));
            self.bytes.reserve_exact(wanted - len);
        }
    }

    fn end(&mut self) {
        if self.state == State::Open {
            self.state = State::Ended;
            self.woken = [self.reader.take(), self.writer.take()];
        }
    }

    fn abandon(&mut self) {
        if self.state != State::Reset {
            self.state = State::Abandoned;
            self.bytes = VecDeque::new();
            self.woken = [self.reader.take(), self.writer.take()];
        }
    }

    fn reset(&mut self) {
        self.state = State::Reset;
        self.bytes = VecDeque::new();
        self.woken = [self.reader.take(), self.writer.take()];
    }
}

/// The network `memory`.
pub(super) struct Memory;

impl Transport for Memory {
    fn networks(&self) -> &[&str] {
        &["memory"]
    }

    fn connect(&self, address: &Address, _: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        let address = address.clone();
        Box::pin(async move { Ok(connect(&address).await?.into()) })
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let listening = Listening::bind(address, options).map(|listening| Box::new(listening) as Box<dyn Listen>);
        Box::pin(std::future::ready(listening))
    }
}

/// The names that are listened on, and where their connections go.
static NAMES: Mutex<BTreeMap<Box<str>, mpsc::Sender<MemorySocket>>> = Mutex::new(BTreeMap::new());

/// Holds a name until it is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    address: Address,
    incoming: Mutex<mpsc::Receiver<MemorySocket>>,
}

impl Listening {
    pub(super) fn bind(address: &Address, options: &ListenOptions) -> io::Result<Self> {
        use std::collections::btree_map::Entry;
        match NAMES.lock().entry(address.target().into()) {
            Entry::Occupied(_) => Err(io::ErrorKind::AddrInUse.into()),
            Entry::Vacant(vacant) => {
                let (sender, incoming) = mpsc::channel(options.backlog.max(1) as usize);
                vacant.insert(sender);
                Ok(Self { address: address.clone(), incoming: incoming.into() })
            }
        }
    }

    fn poll_socket(&self, cx: &mut Context<'_>) -> Poll<MemorySocket> {
        let socket = self.incoming.lock().poll_recv(cx);
        socket.map(|socket| socket.expect("the sender is in the table as long as the listener lives"))
    }
}

impl Listen for Listening {
    fn local_address(&self) -> String {
        self.address.to_string()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.poll_socket(cx).map(|socket| Ok(Accepted::new(socket)))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Its last sender wakes who waits for a place: not under the lock.
        let sender = NAMES.lock().remove(self.address.target());
        drop(sender);
    }
}

/// Connects to a name. Waits while as many connections as the listener allows wait to be accepted.
async fn connect(address: &Address) -> io::Result<MemorySocket> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let listener = NAMES.lock().get(address.target()).cloned().ok_or_else(refused)?;
    let place = listener.reserve().await.map_err(|_| refused())?;
    let (client, server) = connected(address.to_string().into(), BUFFER_BYTES);
    place.send(server);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::transport::check;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_arrive_in_order_both_ways(plans in check::plans(), buffer_bytes in prop_oneof![64..1000_usize, Just(BUFFER_BYTES)]) {
            check::run(async {
                let (client, server) = pair(buffer_bytes);
                check::exchange(client, server, plans).await;
            });
        }
    }

    /// The memory of a queue goes to the next one of its thread, unless it is more than either may have.
    #[tokio::test]
    async fn a_thread_keeps_one_queue() {
        let kept = || {
            let spare = SPARE.take();
            let bytes = spare.capacity();
            SPARE.set(spare);
            bytes
        };
        let through = async |socket: &MemorySocket, far: &MemorySocket, bytes: usize| {
            socket.try_write(&[IoSlice::new(&vec![7; bytes])]).expect("there is room");
            check::read(far, bytes).await.expect("it is there")
        };
        let (client, server) = pair(BUFFER_BYTES);
        assert_eq!(through(&client, &server, 3000).await, vec![7; 3000]);
        let bytes = kept();
        assert!((3000..BUFFER_BYTES).contains(&bytes), "{bytes}");
        client.try_write(&[IoSlice::new(b"x")]).expect("there is room");
        assert_eq!((kept(), client.outgoing().lock().bytes.capacity()), (0, bytes), "it is in use");
        check::read(&server, 1).await.expect("it is there");

        let (small, far) = pair(1000);
        through(&small, &far, 1000).await;
        assert!(kept() <= 1000, "more than a small one may have is no use to it");
        let (large, far) = pair(4 * BUFFER_BYTES);
        through(&large, &far, 2 * BUFFER_BYTES).await;
        assert!(kept() <= BUFFER_BYTES);
    }

    #[tokio::test]
    async fn a_server_sees_the_peer_that_a_gateway_names() {
        let (client, server) = pair_for("http@192.0.2.7:4711", 1000);
        assert_eq!((client.peer().as_str(), server.peer().as_str()), ("memory@pair", "http@192.0.2.7:4711"));
        check::half_close(client, server).await;
    }

    #[tokio::test]
    async fn a_full_pipe_blocks_and_wakes_its_task_when_there_is_room() {
        let (client, server) = pair(1000);
        check::fill_then_drain(client, server).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (client, server) = pair(1000);
        check::half_close(client, server).await;
    }

    #[tokio::test]
    async fn a_dropped_end_leaves_what_it_wrote_and_takes_no_more() {
        let (client, server) = pair(1000);
        client.try_write(&[IoSlice::new(b"goodbye")]).expect("there is room");
        drop(client);
        assert_eq!(check::read_to_end(&server).await.expect("reads"), b"goodbye");
        let error = server.try_write(&[IoSlice::new(b"wait")]).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_drop_wakes_a_reader_and_a_writer_that_wait() {
        let (client, server) = pair(1);
        server.try_write(&[IoSlice::new(b"x")]).expect("there is room");
        let waiting = tokio::spawn(async move {
            let written = poll_fn(|cx| server.poll_write(cx, &[IoSlice::new(b"y")])).await;
            (written.expect_err("nobody reads").kind(), check::read(&server, 1).await.expect("no error"))
        });
        tokio::task::yield_now().await;
        drop(client);
        assert_eq!(waiting.await.expect("no panic"), (io::ErrorKind::BrokenPipe, vec![]));
    }

    #[tokio::test]
    async fn a_reset_fails_both_ends_and_loses_what_waits() {
        let (client, server) = pair(1000);
        client.try_write(&[IoSlice::new(b"lost")]).expect("there is room");
        client.reset();
        for socket in [&client, &server] {
            let read = check::read(socket, 16).await.expect_err("is reset");
            let written = socket.try_write(&[IoSlice::new(b"x")]).expect_err("is reset");
            assert_eq!([read.kind(), written.kind()], [io::ErrorKind::ConnectionReset; 2]);
        }
    }

    /// A caller on another thread writes; the reader's task is woken by it.
    #[tokio::test]
    async fn any_thread_may_write() {
        let (client, server) = pair(256 * 1024);
        let writer = thread::spawn(move || {
            for n in 0..10_000_u32 {
                assert_eq!(client.try_write(&[IoSlice::new(&n.to_be_bytes())]).expect("there is room"), 4);
            }
        });
        let received = check::read_to_end(&server).await.expect("reads");
        writer.join().expect("no panic");
        let numbers = received.chunks_exact(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
        assert!(numbers.eq(0..10_000));
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let (client, server) = pair(BUFFER_BYTES);
        let held = || client.outgoing().lock().bytes.capacity();
        assert_eq!(held(), 0);
        client.try_write(&[IoSlice::new(&[1; 1000])]).expect("there is room");
        assert!(1000 <= held());
        client.try_write(&[IoSlice::new(&[1; BUFFER_BYTES])]).expect("there is room");
        assert_eq!(held(), BUFFER_BYTES);
        while check::read(&server, 10_000).await.expect("reads").len() == 10_000 {}
        assert_eq!(held(), 0);
    }

    fn address(name: &str) -> Address {
        format!("memory@{name}").parse().expect("an address")
    }

    #[tokio::test]
    async fn a_name_is_found_while_it_is_listened_on() {
        let address = address("a name is found");
        assert_eq!(connect(&address).await.expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
        let listening = Listening::bind(&address, &ListenOptions::default()).expect("listens");
        let client = connect(&address).await.expect("connects");
        let server = poll_fn(|cx| listening.poll_socket(cx)).await;
        assert_eq!(client.peer(), address.to_string());
        assert!(server.peer().starts_with(&format!("{address}#")), "{}", server.peer());
        check::half_close(client, server).await;
        drop(listening);
        assert_eq!(connect(&address).await.expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_name_has_one_listener() {
        let address = address("one listener");
        let first = Listening::bind(&address, &ListenOptions::default()).expect("listens");
        let error = Listening::bind(&address, &ListenOptions::default()).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        Listening::bind(&address, &ListenOptions::default()).expect("free again");
    }

    /// Those who wait to be accepted see the end of the stream.
    #[tokio::test]
    async fn a_listener_that_goes_takes_those_who_wait_with_it() {
        let address = address("goes");
        let listening = Listening::bind(&address, &ListenOptions::default()).expect("listens");
        let client = connect(&address).await.expect("connects");
        drop(listening);
        assert_eq!(check::read(&client, 1).await.expect("no error"), b"");
    }
}
