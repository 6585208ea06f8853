//! The number that pairs a reply with its call.

use std::fmt;

/// Pairs a reply with its call. Unique per sender within one connection, not across connections.
///
/// Wire: header bytes 4..12, big-endian. Source: Go rpcx `protocol/message.go`, `Header.Seq`.
///
/// Go's clients count from 0 and Go's servers count pushes from 1, both far below bit 62. A
/// Bothways server marks what *it* begins, so that no client can mistake it for a reply to one of
/// its own calls: bit 63 on a push, bits 63 and 62 on a call.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Seq(u64);

impl Seq {
    /// Marks everything that a server begins.
    const FROM_SERVER: u64 = 1 << 63;
    /// Marks, beside [`Self::FROM_SERVER`], a server's call to a client.
    const CALL: u64 = 1 << 62;

    /// The number as it stands on the wire.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number as it stands on the wire.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of a push that a server sends; `number` counts up to 2^62.
    pub const fn of_push(number: u64) -> Self {
        Self(Self::FROM_SERVER | (number & (Self::CALL - 1)))
    }

    /// The number of a call that a server makes to a client; `number` counts up to 2^62.
    pub const fn of_call_to_client(number: u64) -> Self {
        Self(Self::FROM_SERVER | Self::CALL | (number & (Self::CALL - 1)))
    }

    /// True for the number of a call from a server to a client.
    pub const fn is_call_to_client(self) -> bool {
        self.0 & (Self::FROM_SERVER | Self::CALL) == Self::FROM_SERVER | Self::CALL
    }

    /// Writes the number into a frame, which begins with its header.
    ///
    /// # Panics
    /// If the frame is shorter than a header.
    pub fn put(self, frame: &mut [u8]) {
        frame[4..crate::HEADER_LEN].copy_from_slice(&self.0.to_be_bytes());
    }

    /// True for the number of a push that a Bothways server sends.
    pub const fn is_push(self) -> bool {
        self.0 & (Self::FROM_SERVER | Self::CALL) == Self::FROM_SERVER
    }

    /// The number without the marks of its sender.
    pub const fn unmarked(self) -> u64 {
        self.0 & (Self::CALL - 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A push and a call of a server never share a number with a client's call.
    #[test]
    fn what_a_server_begins_is_marked() {
        assert_eq!(Seq::of_push(7).get(), 0x8000_0000_0000_0007);
        assert_eq!(Seq::of_call_to_client(7).get(), 0xc000_0000_0000_0007);
        assert!(Seq::of_call_to_client(7).is_call_to_client());
        assert!(!Seq::of_push(7).is_call_to_client());
        assert_eq!(Seq::of_call_to_client(7).unmarked(), 7);
    }
}
