//! Handlers: the trait [`Handler`], the [`Request`] that it gets and the [`Reply`] that it returns.

use std::{future::Future, pin::Pin, sync::Arc};

use bothways_proto::{CompressType, DecodeError, Message, Metadata, SerializeType};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    beside::Said,
    codec::{CodecError, Encode, Payload, decoded},
    connection::{Connection, Decoded},
    error::ErrorCode,
    extensions::Extensions,
    packing::NotUnpacked,
    reply::BoxFuture,
    session::{Registry, Session},
};

pub use crate::reply::Reply;

/// Answers requests of one method.
///
/// Any `Fn(Request) -> impl Future<Output = Reply>` is a handler. The connection that received the request polls it in
/// line first: a handler that is ready at once costs no task. One that is not ready moves to a task of its own; so does
/// one whose payload takes long to unpack or decode (more than 256 KiB). Until its first `await` a handler delays the
/// later requests of its connection. Wrap one that computes in [`layer::spawn`](crate::layer::spawn()), and run
/// blocking work by [`tokio::task::spawn_blocking`]. Messages that a handler sends are written at once.
///
/// ```
/// use bothways::{Reply, Request, Server, SerializeType};
///
/// /// Returns what it gets, whatever the codec.
/// async fn echo(request: Request) -> Reply {
///     match request.payload() {
///         Ok(payload) => Reply::ok(payload),
///         Err(error) => Reply::error(error.to_string()),
///     }
/// }
///
/// let server = Server::builder().handler("Echo", "Echo", echo).build();
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Handles one request. The reply to a oneway request is dropped.
    fn handle(&self, request: Request) -> impl Future<Output = Reply> + Send;
}

impl<F, Fut> Handler for F
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send,
{
    fn handle(&self, request: Request) -> impl Future<Output = Reply> + Send {
        self(request)
    }
}

/// A [`Handler`] of any type. A clone is the same handler.
#[derive(Clone)]
pub struct BoxHandler(Arc<dyn ErasedHandler>);

impl BoxHandler {
    /// Forgets the type of a handler.
    pub fn new(handler: impl Handler) -> Self {
        Self(Arc::new(handler))
    }

    /// Handles one request. The future does not borrow the handler.
    pub fn handle(&self, request: Request) -> Pin<Box<dyn Future<Output = Reply> + Send + 'static>> {
        Arc::clone(&self.0).handle_boxed(request)
    }
}

impl std::fmt::Debug for BoxHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoxHandler")
    }
}

trait ErasedHandler: Send + Sync + 'static {
    fn handle_boxed(self: Arc<Self>, request: Request) -> BoxFuture<Reply>;
}

impl<H: Handler> ErasedHandler for H {
    fn handle_boxed(self: Arc<Self>, mut request: Request) -> BoxFuture<Reply> {
        if request.message.header().compress() != CompressType::NONE && request.unpacked.is_none() {
            return Box::pin(async move {
                let (unpacked, held) = match request.connection.unpack_request(&request.message).await {
                    Ok((payload, held)) => (Ok(payload), Some(Arc::new(held))),
                    Err(NotUnpacked::Decode(error)) => (Err(error), None),
                    Err(NotUnpacked::NoRoom) => {
                        let why = format!("overloaded: {}", CodecError::NoRoom);
                        return Reply::refused(ErrorCode::Overloaded, why);
                    }
                };

                request.unpacked = Some(Box::new(unpacked));
                let mut reply = self.handle(request).await;
                // To the end of the call: the reply may be made of these bytes.
                reply.held = held;
                reply
            });
        }
        Box::pin(async move { self.handle(request).await })
    }
}

/// A request, as a handler gets it.
///
/// ```
/// use bothways::{Reply, Request};
///
/// async fn double(request: Request) -> Reply {
///     if request.metadata().get("tenant").is_none() {
///         return Reply::error("which tenant?");
///     }
///     match request.decode::<i64>() {
///         Ok(number) => Reply::encode(&(2 * number), request.serialize_type()),
///         Err(error) => Reply::error(error.to_string()),
///     }
/// }
/// # let _ = bothways::Server::builder().handler("Math", "Double", double);
/// ```
#[derive(Debug)]
pub struct Request {
    pub(crate) message: Message,
    pub(crate) connection: Connection,
    pub(crate) deadline: Option<Instant>,
    /// The payload of a message that travelled packed, before a handler sees it.
    unpacked: Option<Box<Result<Bytes, DecodeError>>>,
    extensions: Extensions,
}

impl Request {
    pub(crate) fn new(message: Message, connection: Connection, deadline: Option<Instant>) -> Self {
        Self { message, connection, deadline, unpacked: None, extensions: Extensions::new() }
    }

    /// The service asked for, such as `Arith`.
    pub fn service_path(&self) -> &str {
        self.message.service_path()
    }

    /// The method asked for, such as `Mul`.
    pub fn service_method(&self) -> &str {
        self.message.service_method()
    }

    /// The caller's pairs.
    pub fn metadata(&self) -> Metadata {
        self.message.metadata()
    }

    /// The codec of the payload, in which the reply travels too.
    pub fn serialize_type(&self) -> SerializeType {
        self.message.header().serialize()
    }

    /// True if the caller wants no reply.
    pub fn is_oneway(&self) -> bool {
        self.message.header().is_oneway()
    }

    /// When the caller gives up, if it said so (`__ServerTimeout`, milliseconds from arrival). The handler is dropped
    /// then, except that of a oneway request, for which nobody waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The connection of the request. Keep a clone to push to this peer later.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The session of the calling client; `None` at a client, and after the session has ended.
    pub fn session(&self) -> Option<Session> {
        self.connection.owner::<Registry>()?.of(&self.connection)
    }

    /// Values that the auth hook and outer layers left for inner ones and the handler.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// The same, to leave values for inner layers and the handler.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// Bytes of the payload as it came, which may be packed.
    pub fn payload_bytes(&self) -> usize {
        self.message.wire_payload().len()
    }

    /// The payload, unpacked if it came compressed.
    ///
    /// # Errors
    /// [`CodecError::Compressed`].
    pub fn payload(&self) -> Result<Bytes, CodecError> {
        match &self.unpacked {
            None => Ok(self.message.payload(self.connection.limits())?),
            Some(unpacked) => Ok((**unpacked).clone()?),
        }
    }

    /// The payload as a value.
    ///
    /// # Errors
    /// Any [`CodecError`].
    pub fn decode<T: Payload>(&self) -> Result<T, CodecError> {
        T::decode(self.serialize_type(), self.payload()?)
    }

    /// Splits the request into the value and the context of a typed handler.
    ///
    /// # Errors
    /// The reply that says why the payload is not a `T`.
    pub fn into_typed<T: Payload>(self) -> Result<(Context, T), Reply> {
        let (decoded, bytes) = decoded::measured(|| self.decode());
        let value = decoded.map_err(|error| Reply::refused(ErrorCode::BadArguments, refusal_text(&error)))?;
        match self.connection.hold_decoded(&self.message, bytes) {
            Ok(held) => Ok((Context { held, ..Context::new(self) }, value)),
            Err(why) => Err(Reply::refused(ErrorCode::Overloaded, why)),
        }
    }
}

/// Go's own words for a codec that nobody has; ours for the rest. Source: Go `server/server.go`, `handleRequest`.
fn refusal_text(error: &CodecError) -> String {
    match error {
        CodecError::Unsupported { serialize, .. } if serialize.name().is_none() => {
            format!("can not find codec for {}", serialize.get())
        }
        error => error.to_string(),
    }
}

/// The request of a typed handler, except for its arguments, and the metadata of the reply.
///
/// ```
/// use bothways::{Context, service};
///
/// struct Greeter;
///
/// #[service]
/// impl Greeter {
///     async fn hello(&self, cx: &mut Context, name: String) -> Result<String, String> {
///         let user = cx.session().and_then(|session| session.user()).ok_or("sign in first")?;
///         let greeting = cx.metadata().get("greeting").unwrap_or("hello").to_owned();
///         cx.reply_metadata().insert("lang", "en");
///         Ok(format!("{greeting} {name}, says {user}"))
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Context {
    request: Request,
    reply_metadata: Metadata,
    /// What goes beside the text of the error, if it ends with one.
    said: Option<Box<Said>>,
    /// Room for the arguments, until the handler is done.
    #[expect(dead_code, reason = "it is kept to be dropped")]
    held: Option<Decoded>,
}

impl Context {
    /// The context of a request.
    pub fn new(request: Request) -> Self {
        Self { request, reply_metadata: Metadata::new(), said: None, held: None }
    }

    /// The request, with its metadata, deadline and payload.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The connection the request came on. Keep a clone to push to this peer later.
    pub fn connection(&self) -> &Connection {
        &self.request.connection
    }

    /// The session of the calling client; see [`Request::session`].
    pub fn session(&self) -> Option<Session> {
        self.request.session()
    }

    /// The caller's pairs.
    pub fn metadata(&self) -> Metadata {
        self.request.metadata()
    }

    /// When the caller gives up, if it said so.
    pub fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    /// Values that the auth hook and layers left for this handler.
    pub fn extensions(&self) -> &Extensions {
        &self.request.extensions
    }

    /// The metadata of the reply, whether it is a value or an error. Keys that begin with `_bw.` belong to the
    /// framework and are left out, and so are `__AUTH` and `__ServerTimeout`.
    pub fn reply_metadata(&mut self) -> &mut Metadata {
        &mut self.reply_metadata
    }

    /// If the handler fails: a value beside the error's text, for [`CallError::detail`](crate::CallError::detail). A method
    /// of a `#[bothways::service]` whose error is `Serialize` need not say it. A value that cannot be written, or has
    /// more than [`ERROR_DETAIL_BYTES_MAX`](crate::error::ERROR_DETAIL_BYTES_MAX), is left out.
    pub fn set_error_detail<E: serde::Serialize + Send + ?Sized>(&mut self, detail: &E) {
        self.said.get_or_insert_default().set_detail(detail);
    }

    /// If the handler fails: the application's own code of the error, for
    /// [`CallError::app_code`](crate::CallError::app_code), at most
    /// [`APP_CODE_BYTES_MAX`](crate::error::APP_CODE_BYTES_MAX).
    ///
    /// ```
    /// use bothways::{Context, service};
    ///
    /// struct Shop;
    ///
    /// #[service]
    /// impl Shop {
    ///     async fn buy(&self, cx: &mut Context, item: &str) -> Result<(), String> {
    ///         cx.set_error_code("out_of_stock");
    ///         Err(format!("no {item} left"))
    ///     }
    /// }
    /// ```
    pub fn set_error_code(&mut self, code: &str) {
        self.said.get_or_insert_default().set_code(code);
    }

    /// What the macros say of an error, unless the handler has said it.
    #[cfg(feature = "macros")]
    pub(crate) fn set_default_detail<E: serde::Serialize + Send>(&mut self, detail: &E) {
        if !self.said.as_ref().is_some_and(|said| said.has_detail()) {
            self.set_error_detail(detail);
        }
    }

    /// The reply of a typed handler: the value in the request's codec, or the error's text.
    pub fn into_reply<T: Encode, E: std::fmt::Display>(self, outcome: Result<T, E>) -> Reply {
        let reply = match outcome {
            Ok(value) => Reply::encode(&value, self.request.serialize_type()),
            Err(error) => Reply::error(error.to_string()).saying(self.said),
        };
        reply.with_metadata(self.reply_metadata)
    }
}
