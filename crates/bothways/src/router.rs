//! Service path and method → handler: the same for a server's services and a client's push handlers.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use bothways_proto::{Message, Names, keys};

use crate::{
    codec::{Encode, Payload},
    handler::{BoxHandler, Context, Handler, Reply, Request},
    layer::Layer,
    session::PresenceChange,
};

/// A named set of methods. `#[bothways::service]` implements it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no service",
    note = "what implements a trait with `#[bothways::service]` becomes one by `.into_service()`"
)]
pub trait Service: Send + Sync + 'static {
    /// The service path that requests name, such as `Arith`.
    fn name(&self) -> &str;

    /// Every method: the name that requests use, and its handler. The handlers share the service.
    fn into_methods(self: Arc<Self>) -> Vec<(&'static str, BoxHandler)>;
}

/// So that the program keeps hold of what it serves.
impl<S: Service + ?Sized> Service for Arc<S> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn into_methods(self: Arc<Self>) -> Vec<(&'static str, BoxHandler)> {
        S::into_methods(Arc::clone(&*self))
    }
}

/// Finds the handler of a request. Built once, then read by every connection without a lock.
///
/// ```
/// use bothways::{Router, layer};
///
/// let math = Router::new()
///     .function("Math", "Double", |number: i64| async move { Ok::<_, String>(2 * number) })
///     .layer(&layer::concurrency(4));
/// let all = Router::new()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .merge(math);
/// let named = |path: &str, method: &str| (path.to_owned(), method.to_owned());
/// assert_eq!(all.routes(), [named("Math", "Double"), named("Text", "Upper")]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// By both names as they travel: a request finds its handler with one look-up, and without texts. Two
    /// look-ups by texts, with the standard hash, cost 400 instructions more; the step `serve16` of `compare
    /// instructions` shows it.
    routes: HashMap<Box<[u8]>, Route, BuildHasherDefault<NamesHasher>>,
    /// Services that have a method: what tells an unknown method from an unknown service.
    services: HashSet<Box<str>>,
    /// What was added that is not as it was meant, in the order of adding.
    problems: Vec<RouteProblem>,
}

/// A route that was added, and is not served as intended.
#[derive(Clone, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteProblem {
    /// There was one of the same names before: the later one counts.
    #[error("{service_path}.{service_method} was added twice: the later one is served")]
    Twice {
        /// The service path of both.
        service_path: String,
        /// The method of both.
        service_method: String,
    },
    /// The service path belongs to the framework: it is not served.
    #[error("{service_path}.{service_method} is not served: the path `_bothways` belongs to the framework")]
    Reserved {
        /// Its service path.
        service_path: String,
        /// Its method.
        service_method: String,
    },
}

#[derive(Clone, Debug)]
struct Route {
    service_path: Box<str>,
    service_method: Box<str>,
    handler: BoxHandler,
}

/// Why there is no handler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoRoute {
    Service,
    Method,
}

/// Of a longer name, which a peer chose, a refusal says the beginning.
const NAME_BYTES_MAX: usize = 256;

impl NoRoute {
    /// Go's own words, which its clients may compare. Source: Go `server/server.go`, `handleRequest`.
    pub(crate) fn text(self, service_path: &str, service_method: &str) -> String {
        let (kind, name) = match self {
            Self::Service => ("service", service_path),
            Self::Method => ("method", service_method),
        };
        format!("rpcx: can't find {kind} {}", &name[..name.floor_char_boundary(NAME_BYTES_MAX)])
    }
}

impl Router {
    /// No routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every method of a service under its own name.
    #[must_use]
    pub fn service(self, service: impl Service) -> Self {
        let name = service.name().to_owned();
        self.service_named(&name, service)
    }

    /// Adds every method of a service under this name.
    #[must_use]
    pub fn service_named(mut self, service_path: &str, service: impl Service) -> Self {
        for (method, handler) in Arc::new(service).into_methods() {
            self.insert(service_path, method, handler);
        }
        self
    }

    /// Adds only these methods of a service, under its own name.
    ///
    /// # Errors
    /// The names that the service does not have, or an empty list: nothing is added. Go refuses the
    /// same (`RegisterWithMethods`).
    pub fn service_with_methods(mut self, service: impl Service, methods: &[&str]) -> Result<Self, WhitelistError> {
        let name = service.name().to_owned();
        let offered: HashMap<&str, BoxHandler> = Arc::new(service).into_methods().into_iter().collect();
        let unknown: Vec<String> = methods.iter().filter(|m| !offered.contains_key(*m)).map(|m| (*m).into()).collect();
        if methods.is_empty() || !unknown.is_empty() {
            let mut known: Vec<String> = offered.keys().map(|m| (*m).into()).collect();
            known.sort();
            return Err(WhitelistError { service: name, unknown, known });
        }
        for method in methods {
            self.insert(&name, method, offered[method].clone());
        }
        Ok(self)
    }

    /// Adds one function: arguments in, value or error text out. It takes its arguments as an owned value, `String` and not
    /// `&str`; methods of a [`service`](macro@crate::service) may borrow.
    #[must_use]
    pub fn function<A, R, E, F, Fut>(self, service_path: &str, service_method: &str, function: F) -> Self
    where
        A: Payload + 'static,
        R: Encode,
        E: std::fmt::Display,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        let function = Arc::new(function);
        self.handler(service_path, service_method, move |request: Request| {
            let function = Arc::clone(&function);
            async move {
                let (context, args) = match request.into_typed() {
                    Ok(parts) => parts,
                    Err(refusal) => return refusal,
                };

                let outcome = function(args).await;
                Context::into_reply(context, outcome)
            }
        })
    }

    /// Adds one raw handler: it gets the request's bytes and returns bytes.
    #[must_use]
    pub fn handler(mut self, service_path: &str, service_method: &str, handler: impl Handler) -> Self {
        self.insert(service_path, service_method, BoxHandler::new(handler));
        self
    }

    /// Handles what a server tells a client of presence: who joined a topic that it subscribes to, and who left. Only for
    /// clients.
    ///
    /// ```
    /// use bothways::{Router, session::PresenceChange};
    ///
    /// let handlers = Router::new().presence(|change: PresenceChange| async move {
    ///     println!("{} is {:?} in {}", change.user, change.status, change.topic);
    /// });
    /// ```
    #[must_use]
    pub fn presence<F, Fut>(self, handler: F) -> Self
    where
        F: Fn(PresenceChange) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.own(keys::CONTROL_PATH, keys::PRESENCE, move |request: Request| {
            let handler = Arc::clone(&handler);
            async move {
                let (context, change) = match request.into_typed() {
                    Ok(parts) => parts,
                    Err(refusal) => return refusal,
                };
                handler(change).await;
                Context::into_reply(context, Ok::<(), String>(()))
            }
        })
    }

    /// Adds every route of `other`; where both have one, `other`'s counts, and [`Self::problems`] names it.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.problems.extend(other.problems);
        for (names, route) in other.routes {
            self.add(names, route);
        }
        self.services.extend(other.services);
        self
    }

    /// Routes that were added twice, or under a path that belongs to the framework. A server logs them as warnings when it is
    /// built, and [`ServerBuilder::try_build`](crate::ServerBuilder::try_build) refuses them.
    pub fn problems(&self) -> &[RouteProblem] {
        &self.problems
    }

    /// Tells of what was added and is not served as it was meant.
    pub(crate) fn warn_of_problems(&self) {
        for problem in &self.problems {
            tracing::warn!(%problem, "a route is not as it was added");
        }
    }

    /// Wraps every handler that has been added so far; the layer that is added last sees a request first. (With
    /// [`ServerBuilder::layer`](crate::ServerBuilder::layer), which keeps a list, the first one does.)
    #[must_use]
    pub fn layer(mut self, layer: &dyn Layer) -> Self {
        for route in self.routes.values_mut() {
            let Route { service_path, service_method, handler } = route;
            *handler = layer.wrap_route(service_path, service_method, handler.clone());
        }
        self
    }

    /// Every path and method, sorted.
    pub fn routes(&self) -> Vec<(String, String)> {
        let names = |route: &Route| (route.service_path.to_string(), route.service_method.to_string());
        let mut routes: Vec<_> = self.routes.values().map(names).collect();
        routes.sort();
        routes
    }

    /// True if there is no route.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The handler of a message.
    pub(crate) fn find(&self, message: &Message) -> Result<&BoxHandler, NoRoute> {
        match self.routes.get(message.names_block()) {
            Some(route) => Ok(&route.handler),
            None if self.services.contains(message.service_path()) => Err(NoRoute::Method),
            None => Err(NoRoute::Service),
        }
    }

    fn insert(&mut self, service_path: &str, service_method: &str, handler: BoxHandler) {
        // Presence is reported to the application.
        let is_presence = (service_path, service_method) == (keys::CONTROL_PATH, keys::PRESENCE);
        if keys::is_reserved_path(service_path) && !is_presence {
            let (service_path, service_method) = (service_path.to_owned(), service_method.to_owned());
            self.problems.push(RouteProblem::Reserved { service_path, service_method });
            return;
        }
        let route = Route { service_path: service_path.into(), service_method: service_method.into(), handler };
        self.add(Names::new(service_path, service_method).to_block().into(), route);
    }

    /// A route of the framework's own service.
    #[must_use]
    pub(crate) fn own(mut self, service_path: &str, service_method: &str, handler: impl Handler) -> Self {
        let handler = BoxHandler::new(handler);
        let route = Route { service_path: service_path.into(), service_method: service_method.into(), handler };
        self.add(Names::new(service_path, service_method).to_block().into(), route);
        self
    }

    fn add(&mut self, names: Box<[u8]>, route: Route) {
        self.services.insert(route.service_path.clone());
        if let Some(before) = self.routes.insert(names, route) {
            self.problems.push(RouteProblem::Twice {
                service_path: before.service_path.into(),
                service_method: before.service_method.into(),
            });
        }
    }
}

/// Hashes the names of a request: eight bytes at a time, each folded in by one multiplication.
///
/// The peer chooses the names that are looked up, but only the application adds any: a name that was made to collide costs
/// its sender's own request a comparison of bytes, and nobody else anything. That is why the hash of a route
/// need not be keyed, and can cost a tenth of the standard one.
#[derive(Clone, Copy, Debug, Default)]
struct NamesHasher(u64);

impl NamesHasher {
    fn fold(&mut self, word: u64) {
        // An odd number without pattern: the fraction of the golden ratio.
        const FACTOR: u128 = 0x9e37_79b9_7f4a_7c15;
        let product = u128::from(self.0 ^ word).wrapping_mul(FACTOR);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for NamesHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        // The names with their lengths are never shorter, and the last eight bytes hold whatever is left.
        if let Some(last) = bytes.last_chunk::<8>() {
            self.fold(u64::from_le_bytes(*last));
        }
    }

    fn write_usize(&mut self, len: usize) {
        self.fold(len as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A whitelist that is empty, or names methods that the service does not have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the whitelist for `{service}` {}; it has {known:?}", if .unknown.is_empty() { "is empty".to_owned() } else { format!("names unknown methods {unknown:?}") })]
pub struct WhitelistError {
    /// The service.
    pub service: String,
    /// Requests for names that it does not have.
    pub unknown: Vec<String>,
    /// Names that it has.
    pub known: Vec<String>,
}

/// The reply to a request that no handler takes.
pub(crate) fn no_route(request: &Request, why: NoRoute) -> Reply {
    Reply::refused(crate::error::ErrorCode::NotFound, why.text(request.service_path(), request.service_method()))
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Metadata, Seq, SerializeType};

    use super::*;

    fn message(service_path: &str, service_method: &str) -> Message {
        Message::new(
            Header::request(Seq::new(1), SerializeType::RAW),
            service_path,
            service_method,
            &Metadata::new(),
            b"",
        )
    }

    /// A route is found by both names and by nothing else; a miss says which of them is unknown.
    #[test]
    fn a_route_is_found_by_both_names() {
        let router = Router::new().handler("Arith", "Mul", |_| async { Reply::ok("") });
        let router = router.merge(Router::new().handler("Chat", "say", |_| async { Reply::ok("") }));
        assert_eq!(router.routes(), [("Arith", "Mul"), ("Chat", "say")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        let found = |path, method| router.find(&message(path, method)).map(drop);
        assert_eq!(found("Arith", "Mul"), Ok(()));
        assert_eq!(found("Chat", "say"), Ok(()));
        assert_eq!(found("Arith", "say"), Err(NoRoute::Method));
        assert_eq!(found("Arith", ""), Err(NoRoute::Method));
        assert_eq!(found("ArithM", "ul"), Err(NoRoute::Service));
        assert_eq!(found("", ""), Err(NoRoute::Service));
    }

    /// A route that is added twice, by whatever way, is named; so is one of the framework's path, which is not served.
    #[test]
    fn what_is_not_served_as_it_was_added_is_named() {
        let one = || Router::new().handler("A", "b", |_| async { Reply::ok("") });
        assert_eq!(one().problems(), []);
        let twice = RouteProblem::Twice { service_path: "A".into(), service_method: "b".into() };
        assert_eq!(one().handler("A", "b", |_| async { Reply::ok("") }).problems(), std::slice::from_ref(&twice));
        assert_eq!(one().merge(one()).problems(), [twice]);
        for path in ["_bothways", "_bothways.Admin"] {
            let router = one().handler(path, "Enable", |_| async { Reply::ok("") });
            assert!(matches!(router.problems(), [RouteProblem::Reserved { .. }]), "{path}");
            assert_eq!(router.routes().len(), 1);
        }
        assert_eq!(one().handler("_bothwaysX", "b", |_| async { Reply::ok("") }).problems(), []);
        assert_eq!(one().handler("_bothways", "Presence", |_| async { Reply::ok("") }).problems(), []);
    }

    /// Names that differ a little have hashes that differ in the bits that a table looks at first, and in those
    /// that it looks at next: the lowest, which say the place, and the highest seven.
    #[test]
    fn names_that_differ_a_little_are_told_apart_by_their_hashes() {
        use std::hash::BuildHasher;

        let hasher = BuildHasherDefault::<NamesHasher>::default();
        let blocks = (0..64).flat_map(|service| {
            (0..64).map(move |method| Names::new(&format!("Service{service}"), &format!("method{method}")).to_block())
        });
        let hashes: Vec<u64> = blocks.map(|block| hasher.hash_one(&*block)).collect();
        let spread = |part: fn(u64) -> u64| hashes.iter().map(|hash| part(*hash)).collect::<HashSet<_>>().len();
        assert_eq!(spread(|hash| hash), 4096);
        // Thrown at random, 4096 balls leave 4096 boxes about 63 % full.
        assert!(2400 < spread(|hash| hash % 4096), "{}", spread(|hash| hash % 4096));
        assert_eq!(spread(|hash| hash >> 57), 128);
    }
}
