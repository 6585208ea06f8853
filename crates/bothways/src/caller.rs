//! The trait that generated stubs call through.

use std::{future::Future, time::Duration};

use bothways_proto::{Metadata, SerializeType};
use bytes::Bytes;

use crate::{
    codec::{Encode, Payload},
    error::{CallError, PushError, ReservedName},
    extensions::Extensions,
};

/// Anything that can make calls: a [`Client`](crate::Client), an [`XClient`](crate::XClient), or a server's
/// [`Connection`](crate::Connection), [`Session`](crate::Session) or [`User`](crate::User).
///
/// ```
/// use bothways::{CallError, CallOptions, Caller};
///
/// // Works over a `Client`, an `XClient`, and a server's `Connection`, `Session` or `User`.
/// async fn upper(caller: impl Caller, text: &str) -> Result<String, CallError> {
///     Ok(caller.call_typed("Text", "Upper", text, CallOptions::new()).await?.value)
/// }
/// ```
pub trait Caller: Send + Sync {
    /// Makes one call with encoded arguments.
    ///
    /// Dropping the future cancels the call: its place in the table of pending calls is free at once, a late reply is
    /// dropped, and a peer that understands it is told to stop the handler.
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send;

    /// Sends one message that wants no reply. Returns when it is queued, not when it has arrived.
    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send;

    /// The serialize type for values that can choose. Default MessagePack, as in Go.
    fn serialize_type(&self) -> SerializeType {
        SerializeType::MSGPACK
    }

    /// Makes one call: encodes the arguments, waits, decodes the reply.
    fn call_typed<A: Encode + Sync + ?Sized, R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &A,
        options: CallOptions,
    ) -> impl Future<Output = Result<Response<R>, CallError>> + Send {
        async move {
            let (serialize, payload) = encoded(args, options.serialize.unwrap_or(self.serialize_type()))?;
            let reply = self.call_raw(RawCall { service_path, service_method, serialize, payload, options }).await?;
            let value = R::decode(reply.serialize, reply.payload).map_err(CallError::Decode)?;
            Ok(Response { value, metadata: reply.metadata })
        }
    }

    /// Sends one message that wants no reply: encodes it and queues it.
    fn push_typed<A: Encode + Sync + ?Sized>(
        &self,
        service_path: &str,
        service_method: &str,
        message: &A,
        options: CallOptions,
    ) -> impl Future<Output = Result<(), PushError>> + Send {
        async move {
            let serialize = A::serialize_type(options.serialize.unwrap_or(self.serialize_type()));
            let payload = message.encode(serialize).map_err(PushError::Encode)?;
            self.push_raw(RawCall { service_path, service_method, serialize, payload, options }).await
        }
    }
}

/// The arguments of a call, encoded as the caller would like if they can be.
pub(crate) fn encoded<A: Encode + ?Sized>(
    args: &A,
    preferred: SerializeType,
) -> Result<(SerializeType, Bytes), CallError> {
    let serialize = A::serialize_type(preferred);
    Ok((serialize, args.encode(serialize).map_err(CallError::Encode)?))
}

impl<C: Caller> Caller for &C {
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        (**self).call_raw(call)
    }

    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        (**self).push_raw(push)
    }

    fn serialize_type(&self) -> SerializeType {
        (**self).serialize_type()
    }
}

/// One call, its arguments encoded.
#[derive(Clone, Debug)]
pub struct RawCall<'a> {
    /// The service, such as `Arith`.
    pub service_path: &'a str,
    /// The method, such as `Mul`.
    pub service_method: &'a str,
    /// The codec of `payload`.
    pub serialize: SerializeType,
    /// The arguments.
    pub payload: Bytes,
    /// Deadline, metadata and the like.
    pub options: CallOptions,
}

impl RawCall<'_> {
    /// That it names nothing that only the framework may.
    pub(crate) fn check_reserved(&self) -> Result<(), ReservedName> {
        if self.options.is_own {
            return Ok(());
        }
        ReservedName::check(self.service_path, &self.options.metadata)
    }

    /// As [`Self::check_reserved`], of what goes to a client: nor a caller's token.
    pub(crate) fn check_for_client(&self) -> Result<(), ReservedName> {
        if self.options.is_own {
            return Ok(());
        }
        ReservedName::check_for_client(self.service_path, &self.options.metadata)
    }
}

/// The reply to a [`RawCall`].
#[derive(Clone, Debug)]
pub struct RawReply {
    /// The codec of `payload`.
    pub serialize: SerializeType,
    /// The value, unpacked if it travelled compressed.
    pub payload: Bytes,
    /// The pairs beside it.
    pub metadata: Metadata,
}

/// A reply's value and the pairs beside it.
#[derive(Clone, Debug)]
pub struct Response<R> {
    /// The value.
    pub value: R,
    /// The pairs beside it.
    pub metadata: Metadata,
}

/// The options of one call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use bothways::{CallOptions, Client, ClientOptions, Metadata};
/// # let server = bothways::Server::builder()
/// #     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
/// #     .build();
/// # let listening = server.listen("memu@call options").await?;
/// # let client = Client::connect(listening.address(), ClientOptions::new()).await?;
///
/// let options = CallOptions::new()
///     .timeout(Duration::from_secs(1))
///     .metadata(Metadata::new().with("tenant", "blue"));
/// let response = client.call_with::<String>("Text", "Upper", "abc", options).await?;
/// println!("{} {:?}", response.value, response.metadata);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    pub(crate) metadata: Metadata,
    pub(crate) timeout: Option<Duration>,
    pub(crate) serialize: Option<SerializeType>,
    /// The call is the framework's own: it may name what applications may not.
    pub(crate) is_own: bool,
    /// For layers.
    pub(crate) extensions: Extensions,
}

impl CallOptions {
    /// No metadata, and the caller's own defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The metadata of the call. A key that begins with `_bw.` belongs to the framework: the call fails with
    /// [`CallError::ReservedMetadata`]. So does a call to a client with `__AUTH`, `__ServerTimeout` or
    /// `__rpcx_error__`; a client may bring a token of its own.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The metadata of the call, to change it.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// Give up after this long; the peer is told (`__ServerTimeout`, in whole milliseconds). Zero gives up before
    /// anything is sent.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Adds a value for the [layers](crate::call) of the client, in place of another one of its type. It is not sent.
    #[must_use]
    pub fn extension<T: std::any::Any + Send + Sync>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }

    /// Encode in this serialize type, if the type of the arguments can.
    #[must_use]
    pub fn serialize_type(mut self, serialize: SerializeType) -> Self {
        self.serialize = Some(serialize);
        self
    }
}
