//! Many servers as one caller.

mod connections;
mod discovery;
mod fail_modes;
mod list;
mod selection;
mod servers_first;
mod topics;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, ConnectError, ConnectionEvent, ErrorCode, FailMode,
    Metadata, MultipleServersDiscovery, Peer2PeerDiscovery, Reply, Request, Router, SelectMode, SerializeType, Server,
    ServerBuilder, ServerEntry, XClient, XClientOptions,
    discovery::{Discovery, Lists},
    server::Listening,
    transport::{self, Address, ConnectOptions, ListenOptions, Listener},
    xclient::Selection,
};
use tokio::time::{Instant, sleep};

use crate::support::{Args, Product, address, arith};

const ALL_MODES: [FailMode; 4] = [FailMode::Failover, FailMode::Failfast, FailMode::Failtry, FailMode::Failbackup];

/// A server that says its name, and counts how often it was asked.
struct Named {
    address: String,
    asked: Arc<AtomicUsize>,
    server: Server,
    listening: Listening,
}

impl Named {
    async fn start(behaviour: Behaviour) -> Self {
        Self::start_at(address(), behaviour).await
    }

    async fn start_at(address: String, behaviour: Behaviour) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let server = named(&address, &asked, behaviour).build();
        let listening = server.listen(&address).await.expect("the name is free");
        Self { address, asked, server, listening }
    }

    async fn start_all<const N: usize>(behaviours: [Behaviour; N]) -> [Self; N] {
        let mut servers = Vec::new();
        for behaviour in behaviours {
            servers.push(Self::start(behaviour).await);
        }
        servers.try_into().unwrap_or_else(|_| unreachable!("as many as behaviours"))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.server.stats().connections
    }

    async fn stop(self) -> String {
        drop(self.listening);
        self.server.shutdown(Duration::ZERO).await;
        self.address
    }
}

/// What a [`Named`] server does when it is asked.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Answer,
    AnswerAfter(Duration),
    /// Ends the connection in the middle of so many calls, then answers.
    VanishTimes(usize),
    VanishAfter(Duration),
    Fail,
    Refuse(ErrorCode),
    Hang,
}

const VANISH: Behaviour = Behaviour::VanishTimes(usize::MAX);

fn named(address: &str, asked: &Arc<AtomicUsize>, behaviour: Behaviour) -> ServerBuilder {
    let (name, asked) = (address.to_owned(), Arc::clone(asked));
    Server::builder().handler("Who", "Name", move |request: Request| {
        let (name, times) = (name.clone(), asked.fetch_add(1, Ordering::SeqCst));
        async move {
            let answer = Reply::encode(&name, request.serialize_type());
            match behaviour {
                Behaviour::Answer => answer,
                Behaviour::AnswerAfter(time) => {
                    sleep(time).await;
                    answer
                }
                Behaviour::VanishTimes(n) if n <= times => answer,
                Behaviour::VanishTimes(_) => vanish(&request).await,
                Behaviour::VanishAfter(time) => {
                    sleep(time).await;
                    vanish(&request).await
                }
                Behaviour::Fail => Reply::error("boom"),
                Behaviour::Refuse(code) => Reply::refused(code, "not now"),
                Behaviour::Hang => std::future::pending().await,
            }
        }
    })
}

async fn vanish(request: &Request) -> Reply {
    request.connection().close();
    std::future::pending().await
}

fn list<'a>(servers: impl IntoIterator<Item = &'a Named>) -> MultipleServersDiscovery {
    MultipleServersDiscovery::new(servers.into_iter().map(|server| server.address.as_str()))
}

/// Always the first that is not excluded: tests know who is asked.
fn first() -> SelectMode {
    SelectMode::by_user(|selection: &Selection<'_>| selection.candidates().next())
}

fn xclient(fail_mode: FailMode, discovery: impl Discovery) -> XClient {
    XClient::new("Who", fail_mode, first(), discovery, XClientOptions::new())
}

async fn name(xclient: &XClient) -> Result<String, CallError> {
    xclient.call("Name", &()).await
}

/// Lets everything run that can run without time passing.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

/// An address whose listener accepts nobody and has no room for more: connecting takes its full time.
async fn full_listener() -> (String, impl Sized) {
    let text = address();
    let address: Address = text.parse().expect("an address");
    let listener = Listener::bind(&address, &ListenOptions::default().backlog(1)).await.expect("the name is free");
    let first = transport::connect(&address, &ConnectOptions::default()).await.expect("there is room for one");
    (text, (listener, first))
}
