//! Layers around a client's calls: traces, metadata, measurements.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Call`], [`CallService`] and [`CallLayer`]; the list of layers of a client |
//! | `traceparent.rs` | [`traceparent()`]: a trace that travels with each call |
//!
//! [`ClientOptions::layer`](crate::ClientOptions::layer) wraps the calls of a client,
//! [`XClientOptions::layer`](crate::XClientOptions::layer) those of an [`XClient`](crate::XClient), and
//! [`XClientOptions::try_layer`](crate::XClientOptions::try_layer) each of its tries. A client without layers pays
//! nothing for them.

mod traceparent;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bothways_proto::{Metadata, SerializeType};
use bytes::Bytes;
use tokio::time::timeout_at;

pub use self::traceparent::{TRACEPARENT, Traceparent, traceparent};
pub use crate::reply::BoxFuture;
use crate::{
    caller::{CallOptions, RawCall, RawReply},
    connection::CallTime,
    error::{CallError, PushError},
    extensions::Extensions,
};

/// One call, or one oneway message, on its way through layers.
///
/// Its arguments are encoded. A layer may change it before it gives it to the next one.
#[derive(Clone)]
pub struct Call {
    service_path: Arc<str>,
    service_method: Arc<str>,
    serialize: SerializeType,
    payload: Bytes,
    options: CallOptions,
    /// What the last layer gives it to.
    end: Arc<dyn CallService>,
}

impl Call {
    fn new(raw: RawCall<'_>, end: Arc<dyn CallService>) -> Self {
        let RawCall { service_path, service_method, serialize, payload, options } = raw;
        let (service_path, service_method) = (service_path.into(), service_method.into());
        Self { service_path, service_method, serialize, payload, options, end }
    }

    /// The call as it is made after the last layer.
    pub(crate) fn as_raw(&mut self) -> RawCall<'_> {
        RawCall {
            service_path: &self.service_path,
            service_method: &self.service_method,
            serialize: self.serialize,
            payload: std::mem::take(&mut self.payload),
            options: std::mem::take(&mut self.options),
        }
    }

    /// What is left of the time that the call had, or of what a layer gave it if that ends first. `timeout`: the time
    /// that it had. From here on its errors tell of the one that counts.
    pub(crate) fn time_left(&mut self, time: Option<CallTime>, timeout: Option<Duration>) -> Option<CallTime> {
        let given = self.options.timeout.and_then(CallTime::new);
        if let Some(given) = given.filter(|given| time.is_none_or(|time| given.end < time.end)) {
            return Some(given);
        }
        self.options.timeout = timeout;
        time.map(CallTime::rest)
    }

    /// The service, such as `Arith`.
    pub fn service_path(&self) -> &str {
        &self.service_path
    }

    /// The method, such as `Mul`.
    pub fn service_method(&self) -> &str {
        &self.service_method
    }

    /// The codec of the arguments.
    pub fn serialize_type(&self) -> SerializeType {
        self.serialize
    }

    /// The arguments, encoded.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Replaces the arguments: they must be encoded in [`Self::serialize_type`].
    pub fn set_payload(&mut self, payload: impl Into<Bytes>) {
        self.payload = payload.into();
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.options.metadata
    }

    /// Its metadata, to change it.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.options.metadata
    }

    /// The time limit that the caller gave it; `None` for the client's own.
    pub fn timeout(&self) -> Option<Duration> {
        self.options.timeout
    }

    /// Gives it a time limit, from when it goes on. The one that the call had holds all the same: it began with the call,
    /// and its layers count. In a layer of an `XClient`'s tries this limits one try; one that took too long is not followed
    /// by another, as the server may be at it. Of a oneway message it limits the wait for room.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.options.timeout = Some(timeout);
    }

    /// Values that the caller gave it by [`CallOptions::extension`], and those of other layers.
    pub fn extensions(&self) -> &Extensions {
        &self.options.extensions
    }

    /// The same, to add to them.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.options.extensions
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("service_path", &self.service_path)
            .field("service_method", &self.service_method)
            .field("serialize", &self.serialize)
            .field("bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Makes calls: what a layer wraps, and what it makes of it.
///
/// Dropping a future gives its call up, as that of any call.
pub trait CallService: Send + Sync + 'static {
    /// Makes a call.
    fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>>;

    /// Sends a oneway message. Done when it is queued.
    fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>>;
}

/// Wraps the calls and oneway messages of a client.
///
/// The time limit of a call includes its layers: when it is over, what a layer waits for is dropped. A oneway message
/// has none.
///
/// ```
/// use std::sync::Arc;
///
/// use bothways::{
///     CallError, ClientOptions, PushError,
///     call::{BoxFuture, Call, CallLayer, CallService},
///     caller::RawReply,
/// };
///
/// /// Prints how each call ends.
/// struct Told;
///
/// struct Telling(Arc<dyn CallService>);
///
/// impl CallLayer for Told {
///     fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
///         Arc::new(Telling(inner))
///     }
/// }
///
/// impl CallService for Telling {
///     fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>> {
///         let name = format!("{}.{}", call.service_path(), call.service_method());
///         let reply = self.0.call(call);
///         Box::pin(async move {
///             let reply = reply.await;
///             match &reply {
///                 Ok(reply) => println!("{name}: {} bytes", reply.payload.len()),
///                 Err(error) => println!("{name}: {error}"),
///             }
///             reply
///         })
///     }
///
///     fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>> {
///         self.0.push(push)
///     }
/// }
///
/// let options = ClientOptions::new().layer(Told);
/// ```
pub trait CallLayer: Send + Sync + 'static {
    /// The service, wrapped. Called once for all clients of the same options, and again for each layer that is added.
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService>;
}

/// A layer from a function that gets each call and the service that it wraps. Oneway messages pass as they are.
///
/// ```
/// use bothways::{ClientOptions, call};
///
/// let options = ClientOptions::new().layer(call::from_fn(|call, next| async move {
///     let reply = next.call(call).await;
///     println!("{:?}", reply.as_ref().err());
///     reply
/// }));
/// ```
pub fn from_fn<F, Fut>(function: F) -> impl CallLayer
where
    F: Fn(Call, Arc<dyn CallService>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<RawReply, CallError>> + Send + 'static,
{
    FromFn(Arc::new(function))
}

/// A layer that changes each call and each oneway message before it goes on.
///
/// ```
/// use bothways::{ClientOptions, call};
///
/// let options = ClientOptions::new().layer(call::map(|call| {
///     call.metadata_mut().insert("tenant", "blue");
/// }));
/// ```
pub fn map<F: Fn(&mut Call) + Send + Sync + 'static>(change: F) -> impl CallLayer {
    Map(Arc::new(change))
}

struct FromFn<F>(Arc<F>);

struct FromFnService<F> {
    function: Arc<F>,
    inner: Arc<dyn CallService>,
}

impl<F, Fut> CallLayer for FromFn<F>
where
    F: Fn(Call, Arc<dyn CallService>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<RawReply, CallError>> + Send + 'static,
{
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        Arc::new(FromFnService { function: Arc::clone(&self.0), inner })
    }
}

impl<F, Fut> CallService for FromFnService<F>
where
    F: Fn(Call, Arc<dyn CallService>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<RawReply, CallError>> + Send + 'static,
{
    fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        Box::pin((self.function)(call, Arc::clone(&self.inner)))
    }

    fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>> {
        self.inner.push(push)
    }
}

struct Map<F>(Arc<F>);

struct MapService<F> {
    change: Arc<F>,
    inner: Arc<dyn CallService>,
}

impl<F: Fn(&mut Call) + Send + Sync + 'static> CallLayer for Map<F> {
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        Arc::new(MapService { change: Arc::clone(&self.0), inner })
    }
}

impl<F: Fn(&mut Call) + Send + Sync + 'static> CallService for MapService<F> {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        (self.change)(&mut call);
        self.inner.call(call)
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        (self.change)(&mut push);
        self.inner.push(push)
    }
}

/// The layers of a client, the first one outermost.
#[derive(Clone, Default)]
pub(crate) struct CallLayers {
    list: Vec<Arc<dyn CallLayer>>,
    /// All of them around the end of each call; `None` without any.
    wrapped: Option<Arc<dyn CallService>>,
}

impl CallLayers {
    /// Adds one inside of those that are there.
    pub(crate) fn add(&mut self, layer: Arc<dyn CallLayer>) {
        self.list.push(layer);
        let end: Arc<dyn CallService> = Arc::new(End);
        self.wrapped = Some(self.list.iter().rev().fold(end, |inner, layer| layer.wrap(inner)));
    }

    /// Adds all of these inside of those that are there.
    pub(crate) fn add_all(&mut self, inner: &Self) {
        for layer in &inner.list {
            self.add(Arc::clone(layer));
        }
    }

    /// False if a call goes its way as it is: without layers, and where the framework itself asks.
    #[inline]
    pub(crate) fn see(&self, options: &CallOptions) -> bool {
        self.wrapped.is_some() && !options.is_own
    }

    /// Makes a call through all layers, and then by `end`, in so much time, of what it had at first. Must be polled with a
    /// runtime.
    pub(crate) async fn call(
        &self,
        call: RawCall<'_>,
        time: Option<CallTime>,
        timeout: Option<Duration>,
        end: impl CallService,
    ) -> Result<RawReply, CallError> {
        let end: Arc<dyn CallService> = Arc::new(end);
        let wrapped = self.wrapped.as_ref().unwrap_or(&end);
        let calling = wrapped.call(Call::new(call, Arc::clone(&end)));
        let Some(time) = time else { return calling.await };
        let late = |_| Err(CallError::TimedOut(timeout.unwrap_or_default()));
        timeout_at(time.end, calling).await.unwrap_or_else(late)
    }

    /// Sends a oneway message through all layers, and then by `end`.
    pub(crate) async fn push(&self, push: RawCall<'_>, end: impl CallService) -> Result<(), PushError> {
        let end: Arc<dyn CallService> = Arc::new(end);
        let wrapped = self.wrapped.as_ref().unwrap_or(&end);
        wrapped.push(Call::new(push, Arc::clone(&end))).await
    }
}

impl fmt::Debug for CallLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} layers", self.list.len())
    }
}

/// Inside of all layers: the end that a call brings with it.
struct End;

impl CallService for End {
    fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let end = Arc::clone(&call.end);
        end.call(call)
    }

    fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>> {
        let end = Arc::clone(&push.end);
        end.push(push)
    }
}
