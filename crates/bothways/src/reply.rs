//! The reply to a request, and the future that returns it.
//!
//! Below the connection, which sends replies, and below the handlers, which make them.

use std::{future::Future, pin::Pin, sync::Arc};

use bothways_proto::{Metadata, SerializeType, keys};
use bytes::Bytes;

use crate::{
    beside::Said,
    codec::Encode,
    error::{CloseReason, ErrorCode},
    packing::Held,
};

/// A future on the heap.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// The answer to a request.
///
/// ```
/// use bothways::{ErrorCode, Metadata, Reply, SerializeType};
///
/// let fine = Reply::encode(&42, SerializeType::MSGPACK).with_metadata(Metadata::new().with("took", "3 ms"));
/// let failed = Reply::error("no such account");
/// let refused = Reply::refused(ErrorCode::Overloaded, "try again");
/// assert!(fine.is_ok() && !failed.is_ok() && refused.error_text() == Some("try again"));
/// ```
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) outcome: Result<Bytes, Failure>,
    pub(crate) metadata: Metadata,
    /// `None`: the request's.
    pub(crate) serialize: Option<SerializeType>,
    /// The payload is gzip already.
    pub(crate) packed: bool,
    /// The room that the unpacked payload of its request takes: the reply may be made of the same bytes.
    pub(crate) held: Option<Arc<Held>>,
    /// The connection ends after this reply, for this reason.
    pub(crate) then_close: Option<Box<CloseReason>>,
    /// What a session owes its client follows this reply.
    pub(crate) then_welcome: bool,
}

/// An error on its way to the caller.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) code: Option<ErrorCode>,
    /// What goes beside the text. Few have it.
    pub(crate) said: Option<Box<Said>>,
}

impl Failure {
    fn new(text: impl Into<String>, code: Option<ErrorCode>) -> Self {
        Self { text: text.into(), code, said: None }
    }
}

impl Reply {
    /// Success, with these bytes in the request's codec.
    pub fn ok(payload: impl Into<Bytes>) -> Self {
        Self {
            outcome: Ok(payload.into()),
            metadata: Metadata::new(),
            serialize: None,
            packed: false,
            held: None,
            then_close: None,
            then_welcome: false,
        }
    }

    /// Success, with this value. A type that cannot travel in the request's codec travels in its own.
    pub fn encode<T: Encode + ?Sized>(value: &T, request: SerializeType) -> Self {
        let serialize = T::serialize_type(request);
        match value.encode(serialize) {
            Ok(payload) => Self { serialize: Some(serialize), ..Self::ok(payload) },
            Err(error) => Self::error(format!("cannot encode the reply: {error}")),
        }
    }

    /// An error: the text goes to the caller as `__rpcx_error__`.
    pub fn error(text: impl Into<String>) -> Self {
        Self { outcome: Err(Failure::new(text, None)), ..Self::ok(Bytes::new()) }
    }

    /// A refusal, with a code that a Bothways caller can branch on.
    pub fn refused(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { outcome: Err(Failure::new(text, Some(code))), ..Self::ok(Bytes::new()) }
    }

    /// A refusal of a token: the connection ends after it.
    pub(crate) fn refused_for_good(text: String) -> Self {
        let reason = CloseReason::Unauthenticated(text.clone());
        Self::refused(ErrorCode::Unauthenticated, text).closing(reason)
    }

    /// The same reply, and the connection ends after it.
    pub(crate) fn closing(mut self, reason: CloseReason) -> Self {
        self.then_close = Some(Box::new(reason));
        self
    }

    /// The bytes of the payload, or of the error's text.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.outcome.as_ref().map_or_else(|failure| failure.text.len(), Bytes::len)
    }

    /// The same reply with these pairs beside it; pairs that it has already stay. Those whose keys begin with `_bw.`
    /// belong to the framework, and do not leave, nor do `__AUTH` and `__ServerTimeout`.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata.merge_missing(&metadata);
        self
    }

    /// The same error with a value beside its text, for [`CallError::detail`](crate::CallError::detail). Nothing changes
    /// for a success, nor with a value that cannot be written or has more than
    /// [`ERROR_DETAIL_BYTES_MAX`](crate::error::ERROR_DETAIL_BYTES_MAX).
    ///
    /// ```
    /// use bothways::Reply;
    ///
    /// let reply = Reply::error("out of stock").with_detail(&["apples", "pears"]).with_app_code("stock");
    /// assert!(!reply.is_ok());
    /// ```
    #[must_use]
    pub fn with_detail<E: serde::Serialize + Send + ?Sized>(mut self, detail: &E) -> Self {
        if let Err(failure) = &mut self.outcome {
            failure.said.get_or_insert_default().set_detail(detail);
        }
        self
    }

    /// The same error with a code of the application, for [`CallError::app_code`](crate::CallError::app_code), at most
    /// [`APP_CODE_BYTES_MAX`](crate::error::APP_CODE_BYTES_MAX). Nothing changes for a success.
    #[must_use]
    pub fn with_app_code(mut self, code: &str) -> Self {
        if let Err(failure) = &mut self.outcome {
            failure.said.get_or_insert_default().set_code(code);
        }
        self
    }

    /// The same error with what a handler says of it.
    pub(crate) fn saying(mut self, said: Option<Box<Said>>) -> Self {
        if let Err(failure) = &mut self.outcome {
            failure.said = said;
        }
        self
    }

    /// True unless it is an error.
    pub fn is_ok(&self) -> bool {
        self.outcome.is_ok()
    }

    /// The text of an error.
    pub fn error_text(&self) -> Option<&str> {
        self.outcome.as_ref().err().map(|failure| failure.text.as_str())
    }

    /// The payload; empty if it is an error.
    pub fn payload(&self) -> &[u8] {
        self.outcome.as_deref().unwrap_or_default()
    }

    /// The handler's pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The code of a refusal; an error of a handler has none.
    pub fn code(&self) -> Option<ErrorCode> {
        self.outcome.as_ref().err().and_then(|failure| failure.code)
    }

    /// What travels: the payload, and the pairs, which are the handler's and the error's.
    #[inline(always)]
    pub(crate) fn into_wire(self) -> (Bytes, Metadata) {
        // What a handler gives back may be its caller's: a code in it would be taken for the framework's.
        let metadata = if self.then_welcome { self.metadata } else { self.metadata.without_reserved() };
        match self.outcome {
            Ok(payload) => (payload, metadata),
            Err(failure) => (Bytes::new(), failure.put(metadata)),
        }
    }
}

impl Failure {
    #[cold]
    fn put(self, mut metadata: Metadata) -> Metadata {
        metadata.insert(keys::ERROR, &self.text);
        if let Some(code) = self.code {
            metadata.insert(keys::ERROR_CODE, code.name());
        }
        if let Some(said) = self.said {
            said.put(&self.text, &mut metadata);
        }
        metadata
    }
}
