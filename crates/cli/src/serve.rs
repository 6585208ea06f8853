//! Serves the demo services until a signal stops it.

#[cfg(feature = "tls")]
use std::path::Path;
use std::{hash::BuildHasher, net::IpAddr, time::Duration};

#[cfg(feature = "tls")]
use bothways::transport::tls::{TlsIdentity, TlsServer};
use bothways::{
    AdmissionOptions, Push, Rate, ServeError, Server, ServerBuilder,
    server::{AdminOptions, EmptyAdminToken, Listening},
    session::TopicOptions,
    transport::{Address, ListenOptions, ws::WsOrigins},
};
use bothways_http::{ADMIN_PAGE_PATH, AdminPage, HttpListening};
use bothways_metrics::Calls;
use bothways_redb::RedbStore;
use bytes::Bytes;
use listenfd::ListenFd;

use crate::{
    args::ServeArgs,
    failure::Failure,
    plan::{Operator, Secret},
    service::{self, Remembered},
    term::{self, Out},
    web,
};

/// Where operators ask, unless `--admin` says another place.
const DEFAULT_ADMIN: &str = "tcp@127.0.0.1:8973";

/// How long the topics of the demo keep a message.
const HISTORY_TIME: Duration = Duration::from_secs(3600);

pub(crate) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let (callers, joined, calls) = (Remembered::default(), Remembered::default(), Calls::new());
    let server = build(&args, &callers, &joined, &calls)?;

    // Before it listens: a signal that comes from then on stops it in order.
    let mut signals = Signals::new()?;
    // Before that too: no client comes to a node that is alone.
    #[cfg(feature = "nats")]
    let node = crate::cluster::join(&args.cluster, &args.address, &server).await?;
    #[cfg(not(feature = "nats"))]
    let node: Option<String> = None;
    let served = serve(&args, &server, (callers, calls), node.as_deref(), &mut signals).await;
    if served.is_err() {
        // As a node it has a lease, for whose time others would take it for one that may come back.
        server.shutdown(Duration::ZERO).await;
    }
    served
}

/// Listens, and serves until it is to stop.
async fn serve(
    args: &ServeArgs,
    server: &Server,
    (callers, calls): (Remembered, Calls),
    node: Option<&str>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let listening = match args.activated {
        true => listen_on_what_was_passed(server)?,
        false => vec![server.listen(&args.address.to_string()).await.map_err(|error| Failure::serve(&error))?],
    };

    let has_admin_token = args.admin_token_env.is_some() || args.admin_token_file.is_some();
    let operators = match has_admin_token {
        true => Some(listen_admin(server, args.admin.as_ref()).await?),
        false => None,
    };

    let http = match args.http {
        Some(address) => Some(web::listen(args, address, server, calls).await?),
        None => None,
    };

    let out = Out::new();
    print_start(&out, args, &listening, operators.as_ref(), http.as_ref())?;
    if let Some(node) = node {
        out.line(node)?;
    }
    out.line("Ctrl-C stops")?;

    let pushing = tokio::spawn(push_all(server.clone(), callers, args.push_every));
    let is_drained = tokio::select! {
        () = signals.next() => false,
        () = stopping(&listening) => true,
    };
    pushing.abort();
    out.line(match is_drained {
        false => "stopping: no new connections, running calls are answered",
        true => "stopping: an operator drains the server",
    })?;
    drop(listening);

    stop(args, server, signals, &out).await
}

/// Builds the server with the demo services, and with the access rules and the TLS that the arguments ask for.
fn build(args: &ServeArgs, callers: &Remembered, joined: &Remembered, calls: &Calls) -> Result<Server, Failure> {
    let (left, gone) = (callers.clone(), joined.clone());
    let mut builder = Server::builder().router(service::routes(callers, joined)).on_disconnect(move |connection, _| {
        left.forget(connection);
        gone.forget(connection);
    });
    let demo = TopicOptions::new().history(100, HISTORY_TIME).open();
    builder = builder.topic("demo.*", demo).expect("it is a pattern");
    if args.http.is_some() {
        builder = builder.layer(calls.clone());
    }

    if let Some(path) = &args.store {
        let store = RedbStore::open(path).map_err(|error| Failure::usage(format!("cannot open the store: {error}")))?;
        builder = builder.store(store);
    }
    if let Some(clients) = args.new_clients_per_second {
        builder = builder.admission(AdmissionOptions::new().new_sessions_rate(Rate::per_second(clients)));
    }
    if let Some(name) = &args.auth_token_env {
        builder = with_auth_token(builder, &Secret::from_env(name)?);
    }

    let admin_token = match (&args.admin_token_env, &args.admin_token_file) {
        (Some(name), _) => Some(Secret::from_env(name)?),
        (None, Some(path)) => Some(Secret::from_file(path)?),
        (None, None) => None,
    };
    if let Some(token) = admin_token {
        builder = builder.admin(admin_options(args, &token)?);
    }

    let origins = args.origins.iter().fold(WsOrigins::same_host(), WsOrigins::and);
    let listen = ListenOptions::default().ws_origins(origins);
    #[cfg(feature = "tls")]
    let listen = match (&args.tls_cert, &args.tls_key) {
        (Some(chain), Some(key)) => listen.tls(tls_of(chain, key)?),
        _ => listen,
    };

    Ok(builder.listen_options(listen).build())
}

/// Who may use the admin service, with its page.
fn admin_options(args: &ServeArgs, token: &Secret) -> Result<AdminOptions, Failure> {
    let empty = |error: EmptyAdminToken| Failure::usage(error.to_string());
    let mut options = AdminOptions::token(token.reveal()).map_err(empty)?;
    for Operator { name, role, variable } in &args.operators {
        options = options.and_operator(name, *role, Secret::from_env(variable)?.reveal()).map_err(empty)?;
    }
    let page = args.admin_hosts.iter().fold(AdminPage::new(), AdminPage::host);
    Ok(page.add_to(options))
}

#[cfg(feature = "tls")]
fn has_tls(args: &ServeArgs) -> bool {
    args.tls_cert.is_some()
}

#[cfg(not(feature = "tls"))]
fn has_tls(_: &ServeArgs) -> bool {
    false
}

/// The address of the admin page, if a browser can reach it.
fn page_url(args: &ServeArgs, operators: &Listening) -> Option<String> {
    let (network, place) = operators.address().split_once('@')?;
    let scheme = if has_tls(args) { "https" } else { "http" };
    matches!(network, "tcp" | "tcp4" | "tcp6" | "tls").then(|| format!("{scheme}://{place}{ADMIN_PAGE_PATH}"))
}

/// Refuses clients that do not present this token.
fn with_auth_token(builder: ServerBuilder, expected: &Secret) -> ServerBuilder {
    // Compared in a time that tells nothing of the right token.
    let is_right = keyed_compare(expected.reveal().as_bytes());
    builder.auth(move |request| {
        let right = is_right(request.token.as_bytes());
        std::future::ready(if right { Ok(()) } else { Err("the token is missing or wrong") })
    })
}

/// The certificate chain and the key of these PEM files.
#[cfg(feature = "tls")]
fn tls_of(chain: &Path, key: &Path) -> Result<TlsServer, Failure> {
    let tls = TlsIdentity::from_pem_files(chain, key).and_then(TlsServer::new);
    tls.map_err(|error| Failure::usage(format!("cannot serve with TLS: {error}")))
}

/// Prints the addresses, the services and how to stop.
fn print_start(
    out: &Out,
    args: &ServeArgs,
    listening: &[Listening],
    operators: Option<&Listening>,
    http: Option<&HttpListening>,
) -> Result<(), Failure> {
    for listening in listening {
        out.line(&format!("listening on {}", listening.address()))?;
    }
    out.line("services: Arith (Add, Sub, Mul, Div), Echo (Echo), Bench (Echo, Join, Broadcast), Demo (Login)")?;
    out.line(&format!("callers of Arith get the push \"abcde\" every {}", term::time(args.push_every)))?;

    if let Some(operators) = operators {
        out.line(&format!("operators who have the token ask at {}", operators.address()))?;
        if let Some(url) = page_url(args, operators) {
            out.line(&format!("the page for operators is {url}"))?;
        }
    }
    if let Some(http) = http {
        out.line(&format!("HTTP at http://{}: /rpc/Arith/Mul, /events?topics=demo.clock, /readyz", http.address()))?;
    }
    let is_open = http.is_some_and(|http| !http.address().ip().is_loopback());
    if args.auth_token_env.is_none() && (is_open || !listening.iter().all(is_local)) {
        term::complain("note: anyone who reaches this address may call everything; --auth-token-env asks for a token");
    }
    Ok(())
}

/// Waits until the server begins to stop by itself: an operator may drain it.
async fn stopping(listening: &[Listening]) {
    match listening.first() {
        Some(listening) => listening.stopped().await,
        None => std::future::pending().await,
    }
}

/// Stops the server within the grace period, or at once at the next signal, and prints what became of its connections.
async fn stop(args: &ServeArgs, server: &Server, signals: &mut Signals, out: &Out) -> Result<(), Failure> {
    let stopping = async {
        match args.reconnects_per_second {
            Some(rate) => server.drain(args.grace, rate).await,
            None => server.shutdown(args.grace).await,
        }
    };
    let report = tokio::select! {
        report = stopping => report,
        () = signals.next() => {
            out.line("stopped at once: connections were cut")?;
            return Ok(());
        }
    };

    let unhandled = match report.pushes_unhandled {
        0 => String::new(),
        pushes => format!(", {} not handled by clients", term::count(pushes as u64, "message")),
    };
    out.line(&format!(
        "stopped: {} served, {} unfinished, {} cut{unhandled}",
        term::count(server.stats().connections_accepted, "connection"),
        term::count(report.calls_unfinished as u64, "call"),
        term::count(report.connections_cut as u64, "connection"),
    ))
}

/// Opens the admin service where it was asked for.
async fn listen_admin(server: &Server, address: Option<&Address>) -> Result<Listening, Failure> {
    let address = address.map_or_else(|| DEFAULT_ADMIN.to_owned(), ToString::to_string);
    server.listen_admin(&address).await.map_err(|error| {
        let failure = Failure::serve(&error);
        match error {
            ServeError::Listen { .. } => failure.hint("--admin ADDR chooses where operators ask; port 0 is a free one"),
            _ => failure,
        }
    })
}

/// Serves on each socket that systemd, or another parent process, has bound for this one.
fn listen_on_what_was_passed(server: &Server) -> Result<Vec<Listening>, Failure> {
    let mut passed = ListenFd::from_env();
    if passed.len() == 0 {
        let failure =
            Failure::usage("no socket was passed on (LISTEN_FDS and LISTEN_PID are not set for this process)");
        return Err(failure.hint("a socket unit of systemd passes them; without one, name an address to listen on"));
    }
    (0..passed.len()).map(|at| listen_on(server, &mut passed, at)).collect()
}

fn listen_on(server: &Server, passed: &mut ListenFd, at: usize) -> Result<Listening, Failure> {
    let listening = match passed.take_tcp_listener(at) {
        Ok(Some(socket)) => Some(server.listen_on(socket)),
        _ => {
            #[cfg(unix)]
            let unix = passed.take_unix_listener(at).ok().flatten().map(|socket| server.listen_on(socket));
            #[cfg(not(unix))]
            let unix = None;
            unix
        }
    };
    match listening {
        Some(listening) => listening.map_err(|error| Failure::serve(&error)),
        None => Err(Failure::usage(format!("socket {at} of those that were passed on is no listening stream socket"))),
    }
}

/// True if only programs on this machine can connect.
fn is_local(listening: &Listening) -> bool {
    listening.address().parse().is_ok_and(|address: Address| is_of_this_machine(&address))
}

fn is_of_this_machine(address: &Address) -> bool {
    match address.host() {
        None | Some("localhost") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

/// Pushes to everyone remembered, and counts in the topic `demo.clock`, for ever.
async fn push_all(server: Server, callers: Remembered, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let payload = Bytes::from_static(b"abcde");
    for count in 1_u64.. {
        ticks.tick().await;
        // A JSON value as it is: every client reads it.
        let tick = Push::new("Demo", "Clock", format!(r#"{{"Count":{count}}}"#));
        if let Err(error) = server.publish("demo.clock", &tick) {
            tracing::debug!(%error, "the clock was not published");
        }
        let outcome = callers.push("test_service_path", "test_service_method", &payload);
        if outcome.full != 0 {
            tracing::info!(connections = outcome.full, "some clients read too slowly and missed a push");
        }
    }
}

/// Compares by keyed hashes whose key nobody knows: how long that takes says nothing of what is right.
fn keyed_compare(expected: &[u8]) -> impl Fn(&[u8]) -> bool + Send + Sync + 'static {
    let key = std::hash::RandomState::new();
    let other = std::hash::RandomState::new();
    let hash = move |bytes: &[u8]| (key.hash_one(bytes), other.hash_one(bytes));
    let expected = hash(expected);
    move |presented| hash(presented) == expected
}

/// The signals that ask a server to stop.
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| Failure::usage(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {})
    }

    pub(crate) async fn next(&mut self) {
        // Without Ctrl-C there is nothing to wait for, and the server goes on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        let local = |text: &str| is_of_this_machine(&text.parse().expect("an address"));
        assert!(local("127.0.0.1:1") && local("tcp@[::1]:1") && local("localhost:1") && local("memory@x"));
        assert!(!local(":1") && !local("0.0.0.0:1") && !local("example.org:1") && !local("[::]:1"));
    }
}
