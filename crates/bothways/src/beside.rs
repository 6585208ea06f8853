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
/// Most bytes of the name of an error's type: of a longer one the beginning is sent and compared.
const DETAIL_TYPE_BYTES_MAX: usize = 64;
/// Most bytes of a failed reply's payload that its error keeps.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a failed reply's metadata with the value: an error with a long text and many pairs goes without.
const METADATA_BYTES_MAX: usize = 32 << 10;

/// What a handler says of its error besides the text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    code: Option<String>,
    detail: Option<Detail>,
}

/// An error as a value.
#[derive(Clone, Debug)]
struct Detail {
    /// MessagePack.
    encoded: Bytes,
    type_name: Option<&'static str>,
}

impl Said {
    pub(crate) fn set_code(&mut self, code: &str) {
        self.code = Some(code[..code.floor_char_boundary(APP_CODE_BYTES_MAX)].to_owned());
    }

    /// One that cannot be encoded, or is too large, is left out.
    pub(crate) fn set_detail<E: Serialize + Send + ?Sized>(&mut self, detail: &E) {
        let encoded = detail.encode(SerializeType::MSGPACK).ok();
        let encoded = encoded.filter(|encoded| encoded.len() <= ERROR_DETAIL_BYTES_MAX);
        self.detail =
            encoded.map(|encoded| Detail { encoded, type_name: detail_type_name(std::any::type_name::<E>()) });
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
        let is_text = |detail: &Detail| text.encode(SerializeType::MSGPACK).is_ok_and(|text| text == detail.encoded);
        let Some(detail) = self.detail.as_ref().filter(|detail| !is_text(detail)) else {
            return;
        };
        let encoded = BASE64_STANDARD.encode(&detail.encoded);
        if metadata.as_block().len() + encoded.len() <= METADATA_BYTES_MAX {
            metadata.insert(keys::ERROR_DETAIL, encoded);
            if let Some(name) = detail.type_name {
                metadata.insert(keys::ERROR_DETAIL_TYPE, name);
            }
        }
    }
}

/// The name under which an error of this type travels: the last segment of its path, without generic arguments, and
/// for a pointer that of what it points to. Empty for types without a name of the application: numbers, texts, lists,
/// tuples and whatever else is of the standard library. `None`: nobody knows what a `dyn Trait` is.
fn detail_type_name(path: &'static str) -> Option<&'static str> {
    const POINTERS: [&str; 6] =
        ["&mut ", "&", "alloc::boxed::Box<", "alloc::sync::Arc<", "alloc::rc::Rc<", "alloc::borrow::Cow<"];

    let mut path = path;
    while let Some(inner) = POINTERS.iter().find_map(|pointer| path.strip_prefix(pointer)) {
        path = inner;
    }
    if path.starts_with("dyn ") {
        return None;
    }
    let is_standard =
        path.starts_with(['(', '[']) || ["core::", "alloc::", "std::"].iter().any(|of| path.starts_with(of));
    let without_arguments = path.split(['<', '>', ',']).next().unwrap_or_default();
    let Some((_, name)) = without_arguments.rsplit_once("::").filter(|_| !is_standard) else {
        return Some("");
    };
    Some(&name[..name.floor_char_boundary(DETAIL_TYPE_BYTES_MAX)])
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

    /// As it came to another node.
    #[cfg(feature = "cluster")]
    pub(crate) fn of_carried(metadata: Metadata, serialize: SerializeType, payload: Bytes) -> Self {
        Self(Some(Arc::new(Parts { metadata, serialize, payload })))
    }

    /// What goes to another node: the pairs, and the reply with its serialize type.
    #[cfg(feature = "cluster")]
    pub(crate) fn carried(&self) -> Option<(Bytes, u8, Bytes)> {
        let parts = self.0.as_ref()?;
        Some((Bytes::copy_from_slice(parts.metadata.as_block()), parts.serialize.get(), parts.payload.clone()))
    }

    /// The error as a value; see [`CallError::detail`](crate::CallError::detail).
    pub fn detail<E: DeserializeOwned + Send + Serialize>(&self) -> Option<E> {
        let metadata = &self.0.as_ref()?.metadata;
        let detail = metadata.value(keys::ERROR_DETAIL)?;
        // Older peers do not say of which type it is.
        if let (Some(sent), Some(wanted)) =
            (metadata.value(keys::ERROR_DETAIL_TYPE), detail_type_name(std::any::type_name::<E>()))
            && sent != wanted.as_bytes()
        {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use std::{any::type_name, borrow::Cow};

    use super::*;

    struct NoSuchUser;
    struct Wrapped<T>(T);

    fn name_of<T: ?Sized>() -> Option<&'static str> {
        detail_type_name(type_name::<T>())
    }

    #[test]
    fn the_type_of_an_error_is_the_last_segment_of_its_path() {
        let Wrapped(_) = Wrapped(NoSuchUser);
        for name in [name_of::<NoSuchUser>(), name_of::<&&mut NoSuchUser>(), name_of::<Box<NoSuchUser>>()] {
            assert_eq!(name, Some("NoSuchUser"));
        }
        assert_eq!(name_of::<Arc<Box<NoSuchUser>>>(), Some("NoSuchUser"));
        for name in [name_of::<Wrapped<NoSuchUser>>(), name_of::<Wrapped<Vec<u8>>>()] {
            assert_eq!(name, Some("Wrapped"));
        }
    }

    #[test]
    fn what_has_no_name_of_the_application_is_told_apart_by_its_form_alone() {
        let standard = [
            name_of::<u8>(),
            name_of::<str>(),
            name_of::<String>(),
            name_of::<()>(),
            name_of::<Cow<'_, str>>(),
            name_of::<[NoSuchUser; 2]>(),
            name_of::<(NoSuchUser, u8)>(),
            name_of::<Option<NoSuchUser>>(),
        ];
        assert_eq!(standard, [Some(""); 8]);
        assert_eq!(name_of::<dyn std::fmt::Debug>(), None);
    }

    #[test]
    fn a_detail_of_a_peer_that_names_no_type_is_read_by_its_form() {
        let mut said = Said::default();
        said.set_detail(&"ann");
        let mut metadata = Metadata::new();
        said.put("no such user", &mut metadata);
        let of_before =
            Metadata::new().with(keys::ERROR_DETAIL, metadata.get(keys::ERROR_DETAIL).expect("it is there"));
        assert_eq!(Beside::of_pairs(of_before).detail::<String>().as_deref(), Some("ann"));
    }
}
