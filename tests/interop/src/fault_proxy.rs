//! Stands between clients and a server as a bad network does: it knows where frames end, and cuts there or within.
//!
//! Each connection gets a plan, drawn from a seed: so many frames pass, this way or that, and then something
//! happens. What is drawn is the same for the same seed; when the tasks run is up to the machine.

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways_proto::{Deframer, Message};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{proxy::Way, wire::unlimited};

/// What happens to a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Both ends see a reset, between two frames.
    Reset,
    /// Part of a frame passes, then both ends see a reset.
    WithinFrame,
    /// Both ends see the end of the stream.
    Close,
    /// The receiver in this direction sees the end of the stream; the other direction goes on for a while.
    HalfClose,
    /// Nothing passes any more for a while, either way, then both ends see a reset.
    Freeze,
    /// The client sees a reset; the server sees nothing for a while: a connection that is half open.
    HalfOpen,
}

impl Fault {
    const ALL: [Self; 6] = [Self::Reset, Self::WithinFrame, Self::Close, Self::HalfClose, Self::Freeze, Self::HalfOpen];
}

/// How a network is bad.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    /// What everything is drawn from.
    pub seed: u64,
    /// Connections that are cut in all, until [`FaultProxy::cut_more`]; the network is good afterwards.
    pub cuts: usize,
    /// Most frames to the client before a cut in that direction. In the other one in 256 counts, and 4 at least:
    /// one acknowledgement stands for all that came since the one before, hundreds for a busy client.
    pub frames_max: u64,
    /// How long something that lasts a while lasts.
    pub pause: Duration,
}

/// A proxy whose connections fail as planned.
#[derive(Debug)]
pub struct FaultProxy {
    address: String,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    plan: FaultPlan,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    /// Cuts in all.
    planned: usize,
    cuts: Vec<(Way, Fault)>,
}

/// What is to happen to one connection.
#[derive(Clone, Copy, Debug)]
struct Fate {
    way: Way,
    fault: Fault,
    frames: u64,
    /// After this frame, in the same direction, nothing passes for a moment.
    delay_at: u64,
}

/// Why a direction is done.
enum End {
    /// Its sender has ended it, or its receiver does not take any more.
    Ended,
    /// The plan says so.
    Fault,
}

impl FaultProxy {
    /// Listens, and leads every connection to the server at `HOST:PORT`.
    pub async fn start(server: &str, plan: FaultPlan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = format!("tcp@{}", listener.local_addr().expect("it is bound"));
        let state =
            Mutex::new(State { random: StdRng::seed_from_u64(plan.seed), planned: plan.cuts, cuts: Vec::new() });
        let shared = Arc::new(Shared { plan, state });
        let (server, of_tasks) = (server.to_owned(), Arc::clone(&shared));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, shared) = (server.clone(), Arc::clone(&of_tasks));
                // A connection that fails is what this is for.
                tokio::spawn(async move { join(client, &server, &shared).await });
            }
        });
        Self { address, shared, accepting }
    }

    /// Where to connect to, in rpcx's form.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Plans so many cuts more. A connection that has passed the frame at which it was to be cut is cut at its next.
    pub fn cut_more(&self, cuts: usize) {
        self.shared.state.lock().expect("nobody panics with it").planned += cuts;
    }

    /// What was done so far.
    pub fn cuts(&self) -> Vec<(Way, Fault)> {
        self.shared.state.lock().expect("nobody panics with it").cuts.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    /// What is to happen to the next connection.
    fn draw(&self) -> Fate {
        let random = &mut self.state.lock().expect("nobody panics with it").random;
        let way = if random.random_bool(0.5) { Way::ToClient } else { Way::ToServer };
        let most = if way == Way::ToClient { self.plan.frames_max } else { (self.plan.frames_max / 256).max(4) };
        let frames = random.random_range(0..=most);
        let fault = Fault::ALL[random.random_range(0..Fault::ALL.len())];
        Fate { way, fault, frames, delay_at: random.random_range(0..=most) }
    }

    /// Notes a cut; false if there were enough.
    fn cut(&self, fate: Fate) -> bool {
        let mut state = self.state.lock().expect("nobody panics with it");
        let go_on = state.cuts.len() < state.planned;
        if go_on {
            state.cuts.push((fate.way, fate.fault));
        }
        go_on
    }
}

async fn join(client: TcpStream, server: &str, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let fate = shared.draw();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let half_done = {
        let mut up = pin!(copy(&mut from_client, &mut to_server, Way::ToServer, fate, shared));
        let mut down = pin!(copy(&mut from_server, &mut to_client, Way::ToClient, fate, shared));
        let end = tokio::select! {
            end = &mut up => (Way::ToServer, end?),
            end = &mut down => (Way::ToClient, end?),
        };
        if matches!(end, (_, End::Fault)) && fate.fault == Fault::HalfClose {
            // The plan's direction is done and ended; the other may go on.
            let other = async {
                match end.0 {
                    Way::ToServer => down.await,
                    Way::ToClient => up.await,
                }
            };
            // Whatever comes first, the connection is over then.
            let _ = tokio::time::timeout(shared.plan.pause, other).await;
        }
        end.1
    };
    let mut client = from_client.reunite(to_client).expect("they are halves of one");
    let mut server = from_server.reunite(to_server).expect("they are halves of one");
    match (half_done, fate.fault) {
        (End::Ended, _) | (End::Fault, Fault::Close | Fault::HalfClose) => {
            client.shutdown().await?;
            server.shutdown().await?;
            drain(client).await;
            drain(server).await;
        }
        (End::Fault, Fault::Reset | Fault::WithinFrame) => {
            reset(client)?;
            reset(server)?;
        }
        (End::Fault, Fault::Freeze) => {
            tokio::time::sleep(shared.plan.pause).await;
            reset(client)?;
            reset(server)?;
        }
        (End::Fault, Fault::HalfOpen) => {
            reset(client)?;
            tokio::time::sleep(shared.plan.pause).await;
            reset(server)?;
        }
    }
    Ok(())
}

/// Ends a connection in the way of a network that lost it.
fn reset(stream: TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

/// Takes what still comes for a moment, so that the end of the stream arrives and no reset overtakes it.
async fn drain(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    let all = async { while let Ok(1..) = stream.read(&mut buffer).await {} };
    // Either is an end.
    let _ = tokio::time::timeout(Duration::from_millis(100), all).await;
}

/// Passes frames on until the plan or the stream ends it.
async fn copy(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    way: Way,
    fate: Fate,
    shared: &Shared,
) -> io::Result<End> {
    let limits = unlimited();
    let (mut deframer, mut buffer, mut passed) = (Deframer::new(), vec![0; 64 << 10], 0);
    let mut batch = Vec::new();
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(End::Ended);
        }
        deframer.feed(&buffer[..n], &limits);
        batch.clear();
        let next = |deframer: &mut Deframer| -> io::Result<Option<Message>> {
            deframer.next_message(&limits).map_err(|error| io::Error::other(error.to_string()))
        };
        while let Some(message) = next(&mut deframer)? {
            if fate.way == way && passed == fate.delay_at {
                to.write_all(&std::mem::take(&mut batch)).await?;
                tokio::time::sleep(shared.plan.pause / 10).await;
            }
            if fate.way == way && fate.frames <= passed && shared.cut(fate) {
                if fate.fault == Fault::WithinFrame {
                    batch.extend_from_slice(&message.frame()[..message.frame().len() / 2]);
                }
                to.write_all(&batch).await?;
                if fate.fault == Fault::HalfClose {
                    to.shutdown().await?;
                }
                return Ok(End::Fault);
            }
            passed += 1;
            batch.extend_from_slice(message.frame());
        }
        to.write_all(&batch).await?;
    }
}
