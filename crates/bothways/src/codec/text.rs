//! Whether the current codec is a text format, for types that look different in text.
//!
//! Serde asks the format, but what serde buffers before it decides (`flatten`, untagged and internally tagged
//! enums) says yes whatever the format is.

use std::cell::Cell;

thread_local! {
    /// True while MessagePack is being read or written.
    static MSGPACK: Cell<bool> = const { Cell::new(false) };
}

/// Does this while MessagePack is at work.
#[inline]
pub(super) fn within_msgpack<T>(act: impl FnOnce() -> T) -> T {
    let before = MSGPACK.replace(true);
    let result = act();
    MSGPACK.set(before);
    result
}

/// Does this while JSON is at work.
#[cfg(feature = "json")]
pub(super) fn within_json<T>(act: impl FnOnce() -> T) -> T {
    let before = MSGPACK.replace(false);
    let result = act();
    MSGPACK.set(before);
    result
}

/// Whether MessagePack is at work.
#[cfg(feature = "macros")]
#[inline]
pub(super) fn is_msgpack() -> bool {
    MSGPACK.get()
}

/// Whether the format is a text, which says so itself.
pub(crate) fn is_text(says_so: bool) -> bool {
    says_so && !MSGPACK.get()
}
