//! The values that travel with the text of an error: a value, an application's code, and metadata.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use bothways_proto::{CompressType, Limits, Message, Metadata, SerializeType, keys};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{Encode, Payload};

/// Most bytes of an error's value, as MessagePack. Of an error with a larger one the text and the code arrive.
pub const ERROR_DETAIL_BYTES_MAX: usize = 8 << 10;
/// Most bytes of an application's error code: what is longer is cut.
pub const APP_CODE_BYTES_MAX: usize = 64;
/// Most bytes of a failed reply's payload that its error keeps.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a failed reply's metadata with the value: an error with a long text and many pairs goes without.
const METADATA_BYTES_MAX: usize = 32 << 10;

/// What a handler says of its error besides the text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    code: Option<String>,
    /// MessagePack.
    detail: Option<Bytes>,
}

impl Said {
    pub(crate) fn set_code(&mut self, code: &str) {
        self.code = Some(code[..code.floor_char_boundary(APP_CODE_BYTES_MAX)].to_owned());
    }

    /// One that cannot be encoded, or is too large, is left out.
    pub(crate) fn set_detail(&mut self, detail: &(impl Serialize + Send + ?Sized)) {
        let encoded = detail.encode(SerializeType::MSGPACK).ok();
        self.detail = encoded.filter(|encoded| encoded.len() <= ERROR_DETAIL_BYTES_MAX);
    }

    #[cfg(feature = "macros")]
    pub(crate) fn has_detail(&self) -> bool {
        self.detail.is_some()
    }

    /// Beside the text, which is there already. A value that is the text is not said twice.
    pub(crate) fn put(&self, text: &str, metadata: &mut Metadata) {
        if let Some(code) = &self.code {
            metadata.insert(keys::APP_CODE, code);
        }
        let is_text = |detail: &Bytes| text.encode(SerializeType::MSGPACK).is_ok_and(|text| text == detail);
        let Some(detail) = self.detail.as_ref().filter(|detail| !is_text(detail)) else {
            return;
        };
        let detail = BASE64_STANDARD.encode(detail);
        if metadata.as_block().len() + detail.len() <= METADATA_BYTES_MAX {
            metadata.insert(keys::ERROR_DETAIL, detail);
        }
    }
}

/// What came beside the text of a failed reply. Empty for most.
///
/// ```
/// use bothways::CallError;
///
/// /// As a Go service fills its reply in before it returns an error.
/// #[bothways::message]
/// struct Progress {
///     done: u32,
/// }
///
/// fn show(error: &CallError) {
///     let Some(beside) = error.beside() else { return };
///     let done = beside.payload::<Progress>().map_or(0, |progress| progress.done);
///     println!("{done} were done; {:?}", beside.metadata().get("request-id"));
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Beside(Option<Arc<Parts>>);

struct Parts {
    /// All pairs.
    metadata: Metadata,
    serialize: SerializeType,
    payload: Bytes,
}

/// Short: the payload may be large.
impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} and {} bytes", self.metadata, self.payload.len())
    }
}

impl Beside {
    /// Of the reply that failed.
    pub(crate) fn of(message: Message, is_negotiated: bool, limits: &Limits) -> Self {
        let (header, mut metadata) = (message.header(), message.metadata());
        if !is_negotiated {
            // In what a plain peer says, the framework's pairs are an application's.
            metadata = metadata.without_reserved();
        }
        let is_packed = header.compress() != CompressType::NONE;
        let payload = if is_packed { None } else { message.into_payload(limits).ok() };
        let payload = payload.filter(|payload| payload.len() <= PAYLOAD_BYTES_MAX).unwrap_or_default();
        let has_more =
            metadata.pairs().any(|(key, _)| key != keys::ERROR.as_bytes() && key != keys::ERROR_CODE.as_bytes());
        if payload.is_empty() && !has_more {
            return Self::default();
        }
        // The error may be kept: it holds its own bytes, and not those of a large read.
        metadata.compact();
        let payload = Bytes::copy_from_slice(&payload);
        Self(Some(Arc::new(Parts { metadata, serialize: header.serialize(), payload })))
    }

    /// Of an answer that is a request, from a plain client.
    pub(crate) fn of_pairs(mut metadata: Metadata) -> Self {
        metadata.compact();
        Self(Some(Arc::new(Parts { metadata, serialize: SerializeType::RAW, payload: Bytes::new() })))
    }

    /// The error as a value; see [`CallError::detail`](crate::CallError::detail).
    pub fn detail<E: DeserializeOwned + Send + Serialize>(&self) -> Option<E> {
        let detail = self.0.as_ref()?.metadata.value(keys::ERROR_DETAIL)?;
        let detail = BASE64_STANDARD.decode(detail).ok()?;
        E::decode(SerializeType::MSGPACK, detail.into()).ok()
    }

    /// The application's code; see [`CallError::app_code`](crate::CallError::app_code).
    pub fn app_code(&self) -> Option<&str> {
        self.0.as_ref()?.metadata.get(keys::APP_CODE)
    }

    /// The handler's pairs, without those of the framework.
    pub fn metadata(&self) -> Metadata {
        self.0.as_ref().map(|parts| parts.metadata.clone().without_reserved()).unwrap_or_default()
    }

    /// The reply that came with the error, if it has at most 64 KiB and came unpacked. Only Go's servers send one: what
    /// the method had put into its reply before it failed, or the zero value. `None` too if it is no `T`.
    pub fn payload<T: Payload>(&self) -> Option<T> {
        let parts = self.0.as_ref().filter(|parts| !parts.payload.is_empty())?;
        T::decode(parts.serialize, parts.payload.clone()).ok()
    }
}
