//! Service path and method → handler: the same for a server's services and a client's push handlers.

use std::{collections::HashMap, future::Future, sync::Arc};

use crate::{
    codec::{Encode, Payload},
    handler::{BoxHandler, Context, Handler, Reply, Request},
    layer::Layer,
};

/// A named set of methods. `#[bothways::service]` implements it.
pub trait Service: Send + Sync + 'static {
    /// The service path that requests name, such as `Arith`.
    fn name(&self) -> &str;

    /// Every method: the name that requests use, and what answers them.
    fn into_methods(self) -> Vec<(&'static str, BoxHandler)>;
}

/// Finds the handler of a request. Built once, then read by every connection without a lock.
#[derive(Clone, Debug, Default)]
pub struct Router {
    services: HashMap<Box<str>, HashMap<Box<str>, BoxHandler>>,
}

/// Why there is no handler.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoRoute {
    Service,
    Method,
}

impl NoRoute {
    /// Go's own words, which its clients may compare. Source: Go `server/server.go`, `handleRequest`.
    pub(crate) fn text(self, service_path: &str, service_method: &str) -> String {
        match self {
            Self::Service => format!("rpcx: can't find service {service_path}"),
            Self::Method => format!("rpcx: can't find method {service_method}"),
        }
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
        for (method, handler) in service.into_methods() {
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
        let offered: HashMap<&str, BoxHandler> = service.into_methods().into_iter().collect();
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

    /// Adds one function: arguments in, value or error text out.
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

    /// Adds one raw handler: it sees the request's bytes and answers with bytes.
    #[must_use]
    pub fn handler(mut self, service_path: &str, service_method: &str, handler: impl Handler) -> Self {
        self.insert(service_path, service_method, BoxHandler::new(handler));
        self
    }

    /// Adds every route of `other`; where both have one, `other`'s counts.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (path, methods) in other.services {
            self.services.entry(path).or_default().extend(methods);
        }
        self
    }

    /// Wraps every handler that is there already; the layer that is added last sees a request first.
    #[must_use]
    pub fn layer(mut self, layer: &dyn Layer) -> Self {
        for handler in self.services.values_mut().flat_map(HashMap::values_mut) {
            *handler = layer.wrap(handler.clone());
        }
        self
    }

    /// Every path and method, sorted.
    pub fn routes(&self) -> Vec<(String, String)> {
        let mut routes = Vec::new();
        for (path, methods) in &self.services {
            routes.extend(methods.keys().map(|method| (path.to_string(), method.to_string())));
        }
        routes.sort();
        routes
    }

    /// True if there is no route.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub(crate) fn find(&self, service_path: &str, service_method: &str) -> Result<&BoxHandler, NoRoute> {
        let methods = self.services.get(service_path).ok_or(NoRoute::Service)?;
        methods.get(service_method).ok_or(NoRoute::Method)
    }

    fn insert(&mut self, service_path: &str, service_method: &str, handler: BoxHandler) {
        self.services.entry(service_path.into()).or_default().insert(service_method.into(), handler);
    }
}

/// A whitelist that cannot be meant: it is empty, or names methods that the service does not have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the whitelist for `{service}` {}; it has {known:?}", if .unknown.is_empty() { "is empty".to_owned() } else { format!("names unknown methods {unknown:?}") })]
pub struct WhitelistError {
    /// The service.
    pub service: String,
    /// Names that it does not have.
    pub unknown: Vec<String>,
    /// Names that it has.
    pub known: Vec<String>,
}

/// The reply to a request that no handler takes.
pub(crate) fn no_route(request: &Request, why: NoRoute) -> Reply {
    Reply::refused(crate::error::ErrorCode::NotFound, why.text(request.service_path(), request.service_method()))
}
