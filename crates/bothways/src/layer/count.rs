//! The requests of each route, by how they ended.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Layer;
use crate::{
    error::ErrorCode,
    handler::{BoxHandler, Reply, Request},
};

/// By service and method.
type Routes = BTreeMap<(String, String), Arc<Counters>>;

/// Counts requests by route; see [`count`]. A clone counts into the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Count {
    routes: Arc<Mutex<Routes>>,
}

/// The requests of one route since its server was built.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RouteCounts {
    /// The service.
    pub service_path: String,
    /// The method.
    pub service_method: String,
    /// Requests that have begun; those that are neither ended nor dropped run now.
    pub begun: u64,
    /// Requests that ended with a value.
    pub ok: u64,
    /// Requests that ended with an error of the handler.
    pub failed: u64,
    /// Requests that ended with a refusal, by its code: arguments that cannot be read, a limit, a deadline.
    pub refused: Vec<(ErrorCode, u64)>,
    /// Requests whose handlers were dropped: the caller gave up, its connection ended, or the handler panicked.
    pub dropped: u64,
    /// Bytes of payloads that came, as they came.
    pub bytes_in: u64,
    /// Bytes of the payloads of replies, before they are packed.
    pub bytes_out: u64,
    /// Time of all that ended or were dropped, together.
    pub time: Duration,
}

/// A layer that counts the requests of each route by how they ended, for a metrics page. Keep a clone to read the
/// numbers. A request costs a few additions.
///
/// ```
/// use bothways::{Server, layer};
///
/// let counts = layer::count();
/// let server = Server::builder()
///     .function("Math", "Double", |number: i64| async move { Ok::<_, String>(2 * number) })
///     .layer(counts.clone())
///     .build();
/// for route in counts.by_route() {
///     println!("{}.{}: {} of {} ok", route.service_path, route.service_method, route.ok, route.begun);
/// }
/// ```
pub fn count() -> Count {
    Count::default()
}

#[derive(Debug, Default)]
struct Counters {
    begun: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
    refused: Mutex<Vec<(ErrorCode, u64)>>,
    dropped: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Count {
    /// The numbers of every route that was wrapped, sorted by service and method.
    pub fn by_route(&self) -> Vec<RouteCounts> {
        let routes = self.routes.lock();
        routes.iter().map(|((path, method), counters)| counters.read(path, method)).collect()
    }

    fn counters(&self, service_path: &str, service_method: &str) -> Arc<Counters> {
        let names = (service_path.to_owned(), service_method.to_owned());
        Arc::clone(self.routes.lock().entry(names).or_default())
    }
}

impl Layer for Count {
    /// Without a route, which a router always names.
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        self.wrap_route("", "", inner)
    }

    fn wrap_route(&self, service_path: &str, service_method: &str, inner: BoxHandler) -> BoxHandler {
        let counters = self.counters(service_path, service_method);
        BoxHandler::new(move |request: Request| {
            let running = Running::begin(&counters, request.payload_bytes());
            let answer = inner.handle(request);
            async move {
                let reply = answer.await;
                running.end(&reply);
                reply
            }
        })
    }
}

impl Counters {
    fn read(&self, service_path: &str, service_method: &str) -> RouteCounts {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RouteCounts {
            service_path: service_path.to_owned(),
            service_method: service_method.to_owned(),
            begun: number(&self.begun),
            ok: number(&self.ok),
            failed: number(&self.failed),
            refused: self.refused.lock().clone(),
            dropped: number(&self.dropped),
            bytes_in: number(&self.bytes_in),
            bytes_out: number(&self.bytes_out),
            time: Duration::from_nanos(number(&self.nanoseconds)),
        }
    }

    fn refuse(&self, code: ErrorCode) {
        let mut refused = self.refused.lock();
        match refused.iter_mut().find(|(known, _)| *known == code) {
            Some((_, times)) => *times += 1,
            None => refused.push((code, 1)),
        }
    }
}

/// One request; it is dropped, unless it ends.
struct Running {
    counters: Arc<Counters>,
    began: Instant,
    ended: bool,
}

impl Running {
    fn begin(counters: &Arc<Counters>, bytes: usize) -> Self {
        counters.begun.fetch_add(1, Ordering::Relaxed);
        counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        Self { counters: Arc::clone(counters), began: Instant::now(), ended: false }
    }

    fn end(mut self, reply: &Reply) {
        self.ended = true;
        let counters = &self.counters;
        counters.bytes_out.fetch_add(reply.payload().len() as u64, Ordering::Relaxed);
        match reply.code() {
            Some(code) => counters.refuse(code),
            None if reply.is_ok() => _ = counters.ok.fetch_add(1, Ordering::Relaxed),
            None => _ = counters.failed.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.nanoseconds.fetch_add(took, Ordering::Relaxed);
        if !self.ended {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
