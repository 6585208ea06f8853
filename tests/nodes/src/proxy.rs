//! A way that can be cut, and that can lead elsewhere.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Passes the bytes of TCP connections on, to the first of its addresses that takes one, until it is told otherwise. It
/// goes on for as long as it is kept.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    to: Mutex<Vec<String>>,
    /// Where the last connection has come to.
    last: Mutex<Option<String>>,
    doubled_to: Mutex<Option<String>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Grows with each cut: a connection from before it has ended.
    cuts: u64,
    refuses: bool,
    is_still: bool,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Proxy {
    /// Listens on a free port. An address is that of a node or of a broker.
    pub async fn to<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let to = Mutex::new(addresses.into_iter().map(|address| bare(address.as_ref())).collect());
        let (last, doubled_to) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { to, last, doubled_to, state: watch::Sender::default() });
        let of_tasks = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(lead(Arc::clone(&of_tasks), socket));
            }
        });
        Self { address, shared, accepting: accepting.abort_handle() }
    }

    /// For clients.
    pub fn address(&self) -> String {
        format!("tcp@{}", self.address)
    }

    /// For nodes, if it leads to a broker.
    pub fn broker_address(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Who connects from here on comes to the first of these that takes it. Connections that are there stay.
    pub fn lead_to<A: AsRef<str>>(&self, addresses: impl IntoIterator<Item = A>) {
        *self.shared.to.lock() = addresses.into_iter().map(|address| bare(address.as_ref())).collect();
    }

    /// `HOST:PORT` of the one to which the last connection has come.
    pub fn last_led_to(&self) -> Option<String> {
        self.shared.last.lock().clone()
    }

    /// What the next connection sends goes to this address too, whose answers nobody reads.
    pub fn double_to(&self, address: &str) {
        *self.shared.doubled_to.lock() = Some(bare(address));
    }

    /// Ends all connections. Who comes again is let in.
    pub fn cut(&self) {
        self.shared.state.send_modify(|state| state.cuts += 1);
    }

    /// Ends all connections, and lets nobody in until it goes on.
    pub fn cut_off(&self) {
        self.shared.state.send_modify(|state| (state.cuts, state.refuses) = (state.cuts + 1, true));
    }

    /// Nothing passes any more, either way, and no connection ends, until it goes on.
    pub fn stand_still(&self) {
        self.shared.state.send_modify(|state| state.is_still = true);
    }

    /// It passes on, and lets in, as at first.
    pub fn go_on(&self) {
        self.shared.state.send_modify(|state| (state.refuses, state.is_still) = (false, false));
    }
}

/// What is before `HOST:PORT` names the network.
fn bare(address: &str) -> String {
    address.rsplit(['@', '/']).next().unwrap_or(address).to_owned()
}

async fn lead(shared: Arc<Shared>, socket: TcpStream) {
    let mut state = shared.state.subscribe();
    let State { cuts, refuses, .. } = *state.borrow_and_update();
    if refuses {
        return;
    }
    let passing = async {
        let to = shared.to.lock().clone();
        let double = shared.doubled_to.lock().take();
        let Some((address, server)) = first_of(to).await else { return };
        *shared.last.lock() = Some(address);
        let double = match double {
            Some(double) => TcpStream::connect(double).await.ok(),
            None => None,
        };
        pass_both_ways(&shared, socket, server, double).await;
    };
    tokio::select! {
        () = passing => {}
        _ = state.wait_for(|state| cuts < state.cuts) => {}
    }
}

async fn first_of(addresses: Vec<String>) -> Option<(String, TcpStream)> {
    for address in addresses {
        if let Ok(socket) = TcpStream::connect(&address).await {
            return Some((address, socket));
        }
    }
    None
}

async fn pass_both_ways(shared: &Shared, client: TcpStream, server: TcpStream, double: Option<TcpStream>) {
    for socket in [Some(&client), Some(&server), double.as_ref()].into_iter().flatten() {
        let _ = socket.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (from_double, to_double) = double.map(TcpStream::into_split).unzip();
    tokio::join!(
        pass(shared, from_client, to_server, to_double),
        pass(shared, from_server, to_client, None::<tokio::net::tcp::OwnedWriteHalf>),
        async {
            if let Some(mut from) = from_double {
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            }
        },
    );
}

/// Until the sender has ended its half, or the receiver takes no more.
async fn pass(
    shared: &Shared,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut double: Option<impl AsyncWrite + Unpin>,
) {
    let mut state = shared.state.subscribe();
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let _ = state.wait_for(|state| !state.is_still).await;
        if let Some(double) = &mut double {
            let _ = double.write_all(&bytes[..count]).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    let _ = state.wait_for(|state| !state.is_still).await;
    let _ = to.shutdown().await;
}
