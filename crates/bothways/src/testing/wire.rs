//! The wire between a client and its server, and how to break it.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Deframer, Limits, Message, MessageKind, keys};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    error::ServeError,
    transport::{self, Address, AnySocket, ConnectOptions, ListenOptions, Listener, Socket},
};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// A way to a server, for one client. A client that connects to its [`address`](Self::address) talks to the server,
/// until the test says otherwise. Dropping it cuts it for good.
///
/// A cut loses the bytes that have not passed the wire. Each side still reads the bytes that have passed before it sees
/// the end.
#[derive(Debug)]
pub struct Wire {
    address: String,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<Address>,
    /// Told when anything below changes that somebody waits for.
    changed: watch::Sender<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: u64,
    /// Connections up to this number are cut.
    cut_upto: u64,
    /// Connections up to this number are cut on the client's side only.
    stranded_upto: u64,
    stranded: Vec<AnySocket>,
    refuses: bool,
    frozen: bool,
    /// How long each frame takes, by direction.
    pace: [Duration; 2],
    breaks: [Option<Break>; 2],
    acks_to_drop: u64,
    claims_to_double: u64,
    /// The last Hello in which the client claimed its session.
    last_claim: Option<Message>,
    pushes: u64,
    acks: u64,
}

/// Where in one direction the connection is to break.
#[derive(Clone, Copy, Debug)]
struct Break {
    /// Only pushes count.
    of_pushes: bool,
    /// Behind so many more frames.
    frames: u64,
    /// And so many bytes of the next one.
    bytes: Option<usize>,
}

/// What becomes of one frame.
enum Passage {
    Whole,
    Lost,
    /// All of it, then the end.
    Last,
    /// So many bytes of it, then the end.
    Part(usize),
}

/// An address in memory that nobody else uses.
pub(super) fn fresh_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("memory@testing-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Wire {
    /// A wire to a server at this address, of whatever network. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError::Address`]: it is no address.
    pub async fn to(server: &str) -> Result<Self, ServeError> {
        let address = fresh_address();
        let own: Address = address.parse()?;
        let listener = Listener::bind(&own, &ListenOptions::default()).await?;
        let shared = Arc::new(Shared {
            server: Mutex::new(server.parse()?),
            changed: watch::Sender::new(()),
            state: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(Arc::clone(&shared), own, listener)).abort_handle();
        Ok(Self { address, shared, accepting })
    }

    /// Where a client connects to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Who connects from here on reaches this server, as behind a balancer. A connection that is there stays.
    ///
    /// # Errors
    /// [`ServeError::Address`]: it is no address.
    pub fn lead_to(&self, server: &str) -> Result<(), ServeError> {
        *self.shared.server.lock() = server.parse()?;
        Ok(())
    }

    /// Cuts the connection, if there is one. The client may come back at once.
    pub fn cut(&self) {
        self.change(|state| {
            state.cut_upto = state.connections;
            state.stranded.clear();
        });
    }

    /// Cuts the connection on the client's side only. The server does not notice, as when a network goes away
    /// without a word, and what it sends is lost; until the client comes back to its session, or [`cut`](Self::cut).
    pub fn strand(&self) {
        self.change(|state| state.stranded_upto = state.connections);
    }

    /// Cuts the connection when so many more pushes have passed, notices of the framework itself not counted.
    /// Zero cuts at once.
    pub fn cut_after_push(&self, pushes: u64) {
        self.break_at(Direction::ToClient, Break { of_pushes: true, frames: pushes, bytes: None });
    }

    /// Cuts the connection when so many more frames of any kind have passed in this direction. Zero cuts at once.
    pub fn cut_after_frames(&self, direction: Direction, frames: u64) {
        self.break_at(direction, Break { of_pushes: false, frames, bytes: None });
    }

    /// Cuts the connection in the next frame in this direction, after so many of its bytes, but before its last.
    pub fn cut_inside_frame(&self, direction: Direction, bytes: usize) {
        self.break_at(direction, Break { of_pushes: false, frames: 0, bytes: Some(bytes) });
    }

    /// Lets nobody connect, until [`admit`](Self::admit). A connection that is there stays.
    pub fn refuse(&self) {
        self.change(|state| state.refuses = true);
    }

    /// Lets clients connect again.
    pub fn admit(&self) {
        self.change(|state| state.refuses = false);
    }

    /// The client stops reading, as if its process were suspended, until [`thaw`](Self::thaw). What it sends still
    /// passes. About 64 KiB fit into the wire, then the server's socket is full.
    pub fn freeze_reader(&self) {
        self.change(|state| state.frozen = true);
    }

    /// The client reads again.
    pub fn thaw(&self) {
        self.change(|state| state.frozen = false);
    }

    /// Each frame takes so long in this direction from now on, and waits for those before it, as on a narrow network. About
    /// 64 KiB more fit into the wire, then the sender's socket is full. Zero: at once.
    pub fn slow(&self, direction: Direction, each: Duration) {
        self.change(|state| state.pace[direction as usize] = each);
    }

    /// Loses the next `count` acknowledgements of the client. A failed message is reported once on each connection: an
    /// acknowledgement that reports one is lost together with its connection.
    pub fn drop_ack(&self, count: u64) {
        self.change(|state| state.acks_to_drop = count);
    }

    /// When the client next claims its session, a second connection that nobody reads claims it too, with the same
    /// secret: a claim that was repeated on its way, or a stolen one. The last claim that the server reads gets the
    /// session; the client comes back to it.
    pub fn claim_twice(&self) {
        self.change(|state| state.claims_to_double = 1);
    }

    /// The last claim of the client comes once more, on a connection of its own that nobody reads: late, as if the
    /// network had kept it. It takes nothing from the client. Must be called within a tokio runtime.
    pub fn claim_late(&self) {
        let claim = self.shared.state.lock().last_claim.clone();
        if let Some(claim) = claim {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { say_alone(&shared, &claim).await });
        }
    }

    /// Connections that were made over this wire.
    pub fn connections(&self) -> u64 {
        self.shared.state.lock().connections
    }

    /// Pushes that reached the client's side whole, repeats among them.
    pub fn pushes(&self) -> u64 {
        self.shared.state.lock().pushes
    }

    /// Acknowledgements that reached the server's side.
    pub fn acks(&self) -> u64 {
        self.shared.state.lock().acks
    }

    fn break_at(&self, direction: Direction, at: Break) {
        if at.frames == 0 && at.bytes.is_none() {
            return self.cut();
        }
        self.change(|state| state.breaks[direction as usize] = Some(at));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
        self.shared.changed.send_replace(());
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Shared {
    /// Waits until the state is as asked.
    async fn until(&self, mut is_so: impl FnMut(&mut State) -> bool) {
        let mut changes = self.changed.subscribe();
        while !is_so(&mut self.state.lock()) {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    fn passage(&self, direction: Direction, message: &Message) -> Passage {
        let header = message.header();
        let oneway = header.kind() == MessageKind::Request && header.is_oneway();
        let control = message.service_path() == keys::CONTROL_PATH;
        let is_push = direction == Direction::ToClient && oneway && !control;
        let is_ack = direction == Direction::ToServer && control && message.service_method() == keys::ACK;

        let mut state = self.state.lock();
        if is_ack && 0 < state.acks_to_drop {
            state.acks_to_drop -= 1;
            // A failure is told once on each connection, so that this one ends with it.
            let said_once = message.metadata().get(keys::ACK_FAILED).is_some();
            return if said_once { Passage::Part(0) } else { Passage::Lost };
        }

        let place = &mut state.breaks[direction as usize];
        let passage = match place {
            Some(at) if is_push || !at.of_pushes => match at {
                Break { frames: 0, bytes: Some(bytes), .. } => Passage::Part(*bytes),
                Break { frames: 0 | 1, .. } => Passage::Last,
                Break { frames, .. } => {
                    *frames -= 1;
                    Passage::Whole
                }
            },
            _ => Passage::Whole,
        };

        if matches!(passage, Passage::Part(_) | Passage::Last) {
            *place = None;
        }
        if !matches!(passage, Passage::Part(_)) {
            state.pushes += u64::from(is_push);
            state.acks += u64::from(is_ack);
        }
        passage
    }
}

/// Takes connections for as long as they are admitted; refuses them by not listening.
async fn accept(shared: Arc<Shared>, own: Address, listener: Listener) {
    let mut listening = Some(listener);
    loop {
        shared.until(|state| !state.refuses).await;
        let listener = match listening.take() {
            Some(listener) => listener,
            None => Listener::bind(&own, &ListenOptions::default()).await.expect("the name is this wire's"),
        };

        loop {
            let accepted = tokio::select! {
                biased;
                () = shared.until(|state| state.refuses) => break,
                accepted = listener.accept() => accepted,
            };

            let number = {
                let mut state = shared.state.lock();
                state.connections += 1;
                state.connections
            };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let Ok(client) = accepted.handshake(Duration::from_secs(10)).await else { return };
                // A server that is not there: the client sees the end.
                let to = shared.server.lock().clone();
                if let Ok(server) = transport::connect(&to, &ConnectOptions::default()).await {
                    relay(&shared, number, client, server).await;
                }
            });
        }
    }
}

/// Carries both directions until both have ended, or the connection is to.
async fn relay(shared: &Arc<Shared>, number: u64, client: AnySocket, server: AnySocket) {
    let over = shared.until(|state| number <= state.cut_upto.max(state.stranded_upto));
    let up = carry(shared, Direction::ToServer, &client, &server);
    let down = carry(shared, Direction::ToClient, &server, &client);
    tokio::select! {
        biased;
        () = over => {}
        // An error is the end of the connection, and both sides are about to see it.
        _ = async { tokio::try_join!(up, down) } => {}
    }
    drop(client);
    let mut state = shared.state.lock();
    if state.cut_upto < number && number <= state.stranded_upto {
        state.stranded.push(server);
    }
}

/// Carries one direction to its end. `Err`: the connection is over.
async fn carry(shared: &Arc<Shared>, direction: Direction, from: &AnySocket, to: &AnySocket) -> io::Result<()> {
    let limits = Limits::default().body_bytes_max(1 << 30);
    let (mut deframer, mut buffer) = (Deframer::new(), vec![0; 16 << 10]);
    let flows = || shared.until(|state| direction == Direction::ToServer || !state.frozen);

    loop {
        flows().await;
        let read = poll_fn(|cx| from.poll_read(cx, &mut buffer)).await?;
        if read == 0 {
            return poll_fn(|cx| to.poll_shutdown(cx)).await;
        }

        deframer.feed(&buffer[..read], &limits);
        while let Some(message) = deframer.next_message(&limits).map_err(io::Error::other)? {
            // One read may bring several frames, and the reader may be frozen between them.
            flows().await;
            if direction == Direction::ToServer {
                double_claim(shared, &message).await;
            }
            let pace = shared.state.lock().pace[direction as usize];
            if !pace.is_zero() {
                tokio::time::sleep(pace).await;
            }

            let frame = message.frame();
            match shared.passage(direction, &message) {
                Passage::Lost => {}
                Passage::Whole => write_all(to, frame).await?,
                Passage::Last => {
                    write_all(to, frame).await?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Passage::Part(bytes) => {
                    write_all(to, &frame[..bytes.min(frame.len() - 1)]).await?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
        }
    }
}

/// Says a Hello that claims a session once more, on a connection of its own, if that is wanted.
async fn double_claim(shared: &Arc<Shared>, message: &Message) {
    let claims = message.header().is_heartbeat() && message.metadata().get(keys::SESSION_ID).is_some();
    let doubles = claims && {
        let mut state = shared.state.lock();
        state.last_claim = Some(message.clone());
        std::mem::take(&mut state.claims_to_double) != 0
    };
    if doubles {
        say_alone(shared, message).await;
    }
}

/// Says this on a connection of its own, of which nobody reads the answers, until the server ends it.
async fn say_alone(shared: &Shared, message: &Message) {
    let to = shared.server.lock().clone();
    let Ok(other) = transport::connect(&to, &ConnectOptions::default()).await else { return };
    if write_all(&other, message.frame()).await.is_ok() {
        tokio::spawn(async move {
            let mut buffer = vec![0; 4 << 10];
            while poll_fn(|cx| other.poll_read(cx, &mut buffer)).await.is_ok_and(|read| 0 < read) {}
        });
    }
}

async fn write_all(socket: &AnySocket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[written..];
    }
    poll_fn(|cx| socket.poll_flush(cx)).await
}
