//! Whether the current codec is a text format, for types that look different in text.
//!
//! Serde asks the format, but what serde buffers before it decides (`flatten`, untagged and internally tagged
//! enums) says yes whatever the format is.

use std::cell::Cell;

thread_local! {
    /// True while MessagePack is being read or written.
    static MSGPACK: Cell<bool> = const { Cell::new(false) };
}

/// Says what was at work before, also if the application's type panics.
struct Within(bool);

impl Drop for Within {
    #[inline]
    fn drop(&mut self) {
        MSGPACK.set(self.0);
    }
}

/// Does this while MessagePack is at work.
#[inline]
pub(super) fn within_msgpack<T>(act: impl FnOnce() -> T) -> T {
    let _within = Within(MSGPACK.replace(true));
    act()
}

/// Does this while JSON is at work.
#[cfg(feature = "json")]
pub(super) fn within_json<T>(act: impl FnOnce() -> T) -> T {
    let _within = Within(MSGPACK.replace(false));
    act()
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// A type that panics as it is read leaves its thread as it was: what is read next is read by its own format.
    #[test]
    fn a_panic_leaves_the_thread_as_it_was() {
        for before in [false, true] {
            MSGPACK.set(before);
            let panics = || panic!("on purpose");
            assert!(catch_unwind(AssertUnwindSafe(|| within_msgpack(panics))).is_err());
            assert_eq!(MSGPACK.get(), before);
            #[cfg(feature = "json")]
            {
                assert!(catch_unwind(AssertUnwindSafe(|| within_json(panics))).is_err());
                assert_eq!(MSGPACK.get(), before);
            }
            assert!(within_msgpack(|| MSGPACK.get()));
        }
        MSGPACK.set(false);
    }
}
