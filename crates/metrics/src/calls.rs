//! Calls by route: how many, how they ended, how long they took.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Instant,
};

use bothways::{
    CallError, ErrorCode, PushError, Reply, Request,
    call::{BoxFuture, Call, CallLayer, CallService},
    caller::RawReply,
    handler::BoxHandler,
    layer::Layer,
};
use parking_lot::RwLock;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Routes of clients that have names of their own, at most: 1,024. More are told as `unknown`.
pub const ROUTES_MAX: usize = 1024;

/// What stands for every route that is none of the registered ones.
const UNKNOWN: &str = "unknown";

/// The upper bounds of `bothways_call_seconds`: 100 µs, and each twice the one before, up to 13 s.
fn buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(1e-4, 2.0, 18)
}

type Labels<const N: usize> = [(&'static str, Arc<str>); N];
type Counters = Family<Labels<3>, Counter>;
type Times = Family<Labels<2>, Histogram, fn() -> Histogram>;

/// A layer that counts and times calls, by route. Add a clone of it to a server ([`ServerBuilder::layer`]), to clients
/// ([`ClientOptions::layer`], [`XClientOptions::layer`]), or to both, and give it to
/// [`Metrics::with_calls`](crate::Metrics::with_calls).
///
/// A call costs two additions and a look at the clock at each of its ends; one of a client also a look into a table.
///
/// A server's routes are those that it has when the layer is added. A route of a client has a name of its own from its first
/// call on that succeeds, if there are not [`ROUTES_MAX`] already; so a client that passes on names of strangers makes no
/// series of them.
///
/// [`ServerBuilder::layer`]: bothways::ServerBuilder::layer
/// [`ClientOptions::layer`]: bothways::ClientOptions::layer
/// [`XClientOptions::layer`]: bothways::XClientOptions::layer
#[derive(Clone)]
pub struct Calls {
    shared: Arc<Shared>,
}

struct Shared {
    handled: Side,
    made: Side,
    /// Of clients, by service and method.
    routes: RwLock<Routes>,
    unrouted: Counter,
    /// Calls of clients on routes without names.
    unknown: Arc<Route>,
}

type Routes = HashMap<Arc<str>, HashMap<Arc<str>, Arc<Route>>>;

/// What is counted on one side.
struct Side {
    calls: Counters,
    times: Times,
}

/// The handles of one route, looked up once.
struct Route {
    path: Arc<str>,
    method: Arc<str>,
    /// By the places of [`CODES`]. What has never happened has no series.
    counts: [OnceLock<Counter>; CODES.len()],
    times: Histogram,
    calls: Counters,
}

/// How a call may end: well, by the application's error without a code, ...
const BEFORE_CODES: [&str; 2] = ["ok", "application"];

/// ... by one with a code, or in a way that no peer tells.
const AFTER_CODES: [&str; 8] =
    ["dropped", "timed_out", "closed", "not_connected", "no_server", "refused_here", "decode", OTHER];

/// What this version has no name for.
const OTHER: &str = "other";

/// All of them.
const CODES: [&str; BEFORE_CODES.len() + ErrorCode::ALL.len() + AFTER_CODES.len()] = {
    let (first, last) = (BEFORE_CODES.len(), BEFORE_CODES.len() + ErrorCode::ALL.len());
    let mut names = [OTHER; BEFORE_CODES.len() + ErrorCode::ALL.len() + AFTER_CODES.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = if at < first {
            BEFORE_CODES[at]
        } else if at < last {
            ErrorCode::ALL[at - first].name()
        } else {
            AFTER_CODES[at - last]
        };
        at += 1;
    }
    names
};

/// The place of this code; what is not known is counted as that, and as no other.
fn place(code: &str) -> usize {
    CODES.iter().position(|known| *known == code).unwrap_or(CODES.len() - 1)
}

fn of_error_code(code: Option<ErrorCode>) -> usize {
    place(code.map_or("application", ErrorCode::name))
}

fn of_reply(reply: &Reply) -> usize {
    if reply.is_ok() { 0 } else { of_error_code(reply.code()) }
}

fn of_call_error(error: &CallError) -> usize {
    match error {
        CallError::Remote { code, .. } => of_error_code(*code),
        CallError::TimedOut(_) => place("timed_out"),
        CallError::Closed { .. } => place("closed"),
        CallError::NotConnected(_) => place("not_connected"),
        CallError::NoServer(_) | CallError::NoClient(_) => place("no_server"),
        CallError::Decode(_) => place("decode"),
        _ => place("refused_here"),
    }
}

fn of_push_error(error: &PushError) -> usize {
    match error {
        PushError::Closed(_) => place("closed"),
        PushError::NotConnected(_) => place("not_connected"),
        PushError::NoServer(_) | PushError::NoClient(_) => place("no_server"),
        _ => place("refused_here"),
    }
}

impl Side {
    fn new() -> Self {
        Self { calls: Family::default(), times: Family::new_with_constructor(|| Histogram::new(buckets())) }
    }

    fn route(&self, path: &str, method: &str) -> Route {
        let (path, method): (Arc<str>, Arc<str>) = (path.into(), method.into());
        let labels = [("path", Arc::clone(&path)), ("method", Arc::clone(&method))];
        let times = self.times.get_or_create_owned(&labels);
        Route { path, method, counts: Default::default(), times, calls: self.calls.clone() }
    }
}

impl Route {
    fn count(&self, place: usize) -> &Counter {
        self.counts[place].get_or_init(|| {
            let labels =
                [("path", Arc::clone(&self.path)), ("method", Arc::clone(&self.method)), ("code", CODES[place].into())];
            self.calls.get_or_create_owned(&labels)
        })
    }

    fn end(&self, place: usize, began: Instant) {
        self.count(place).inc();
        self.times.observe(began.elapsed().as_secs_f64());
    }
}

impl Calls {
    /// Counts nothing yet.
    pub fn new() -> Self {
        let (handled, made) = (Side::new(), Side::new());
        let unrouted = [("path", UNKNOWN.into()), ("method", UNKNOWN.into()), ("code", "not_found".into())];
        let unrouted = handled.calls.get_or_create_owned(&unrouted);
        let unknown = Arc::new(made.route(UNKNOWN, UNKNOWN));
        Self { shared: Arc::new(Shared { handled, made, routes: RwLock::default(), unrouted, unknown }) }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let Shared { handled, made, .. } = &*self.shared;
        let sides =
            [("bothways_call", "handled by the server", handled), ("bothways_client_call", "made by clients", made)];
        for (name, whose, side) in sides {
            registry.register(format!("{name}s"), format!("Calls {whose}, by how they ended"), side.calls.clone());
            let help = format!("Time of calls {whose}, from the first poll of the handler or the call on");
            registry.register(format!("{name}_seconds"), help, side.times.clone());
        }
    }

    /// So many requests that no route took, says the server.
    pub(crate) fn set_unrouted(&self, count: u64) {
        self.shared.unrouted.inner().store(count, Ordering::Relaxed);
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calls")
    }
}

impl Layer for Calls {
    /// Without a route, which a router always names.
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        self.wrap_route(UNKNOWN, UNKNOWN, inner)
    }

    fn wrap_route(&self, service_path: &str, service_method: &str, inner: BoxHandler) -> BoxHandler {
        let route = Arc::new(self.shared.handled.route(service_path, service_method));
        BoxHandler::new(move |request: Request| {
            let running = Running::begin(&route);
            let answer = inner.handle(request);
            async move {
                let reply = answer.await;
                running.end(of_reply(&reply));
                reply
            }
        })
    }
}

/// A call that runs. It was dropped, unless it is told how it ended.
struct Running {
    route: Arc<Route>,
    began: Instant,
    place: usize,
}

impl Running {
    fn begin(route: &Arc<Route>) -> Self {
        Self { route: Arc::clone(route), began: Instant::now(), place: place("dropped") }
    }

    fn end(mut self, place: usize) {
        self.place = place;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.route.end(self.place, self.began);
    }
}

impl CallLayer for Calls {
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        Arc::new(OfClient { calls: self.clone(), inner })
    }
}

struct OfClient {
    calls: Calls,
    inner: Arc<dyn CallService>,
}

impl OfClient {
    fn begin(&self, call: &Call) -> Made {
        let (path, method) = (call.service_path(), call.service_method());
        let routes = self.calls.shared.routes.read();
        let known = routes.get(path).and_then(|methods| methods.get(method)).cloned();
        let names = if known.is_none() { Some((path.into(), method.into())) } else { None };
        let route = known.unwrap_or_else(|| Arc::clone(&self.calls.shared.unknown));
        Made { calls: self.calls.clone(), names, running: Running::begin(&route) }
    }
}

/// A call that a client makes.
struct Made {
    calls: Calls,
    /// Of a route that has no name of its own yet.
    names: Option<(Arc<str>, Arc<str>)>,
    running: Running,
}

impl Made {
    fn end(mut self, place: usize) {
        // Only success says that there is such a route.
        let names = self.names.take().filter(|_| place == 0);
        if let Some(route) = names.and_then(|(path, method)| self.calls.name(path, method)) {
            self.running.route = route;
        }
        self.running.end(place);
    }
}

impl Calls {
    /// The route of these names; `None`: there are too many.
    fn name(&self, path: Arc<str>, method: Arc<str>) -> Option<Arc<Route>> {
        let mut routes = self.shared.routes.write();
        if let Some(route) = routes.get(&path).and_then(|methods| methods.get(&method)) {
            return Some(Arc::clone(route));
        }
        if ROUTES_MAX <= routes.values().map(HashMap::len).sum() {
            return None;
        }
        let route = Arc::new(self.shared.made.route(&path, &method));
        routes.entry(path).or_default().insert(method, Arc::clone(&route));
        Some(route)
    }
}

impl CallService for OfClient {
    fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let made = self.begin(&call);
        let reply = self.inner.call(call);
        Box::pin(async move {
            let reply = reply.await;
            made.end(reply.as_ref().map_or_else(of_call_error, |_| 0));
            reply
        })
    }

    fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>> {
        let made = self.begin(&push);
        let sent = self.inner.push(push);
        Box::pin(async move {
            let sent = sent.await;
            // That it was sent does not say that there is such a route.
            match &sent {
                Ok(()) => Made { names: None, ..made }.end(0),
                Err(error) => made.end(of_push_error(error)),
            }
            sent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each code of an error has its own count, and what has none is counted as nothing else.
    #[test]
    fn each_code_has_its_count() {
        for code in ErrorCode::ALL {
            assert_eq!(CODES[of_error_code(Some(*code))], code.name());
        }
        assert_eq!(
            (CODES[0], CODES[of_error_code(None)], CODES[place("of a later version")]),
            ("ok", "application", OTHER)
        );
        for (at, code) in CODES.iter().enumerate() {
            assert_eq!(place(code), at, "{code} stands there once");
        }
    }
}
