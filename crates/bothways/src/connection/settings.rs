//! Bounds and settings that all connections of one server or client share.

use std::sync::Arc;

use bothways_proto::{Capabilities, CompressType, Limits, Rate};

use super::{Overflow, announced::AnnouncedLists, limits::Load, outbox::OutboxBounds, watch, wheel::Wheel};
use crate::{
    packing::Room,
    stats::{Lost, Meters},
};

/// Unpacked payloads of calls that run in all connections of one server or client: 512 MiB.
pub(crate) const UNPACKED_BYTES: usize = 512 << 20;

/// Those of one connection: 64 MiB, two payloads of the largest size, and the others wait.
pub(crate) const UNPACKED_BYTES_OF_CONNECTION: usize = 64 << 20;

/// Bounds and habits that all connections of one server or client share.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) capabilities: Capabilities,
    pub(crate) push_frames_max: usize,
    pub(crate) push_bytes_max: usize,
    pub(crate) overflow: Overflow,
    /// While replies of more bytes than this wait for a peer that does not read them, a server stops reading, and a
    /// client refuses calls.
    pub(crate) reply_bytes_max: usize,
    /// Bytes of calls that may wait for a peer that does not read; more are refused.
    pub(crate) call_bytes_max: usize,
    /// Requests of the peer that may run at once.
    pub(crate) calls_running_max: usize,
    /// Their bytes, with those of their payloads that came packed and of their replies that wait to be packed.
    pub(crate) request_bytes_max: usize,
    /// Most bytes of a frame's body until the auth hook has let its connection in once.
    pub(crate) unauthenticated_body_bytes_max: usize,
    /// Frames of the peer, beyond which requests are refused.
    pub(crate) frames_rate: Option<Rate>,
    /// Bytes of the peer, beyond which it is not read from.
    pub(crate) bytes_rate: Option<Rate>,
    /// Requests that run, and may run, in all connections with these settings.
    pub(crate) load: Arc<Load>,
    /// Room for unpacked payloads of requests, in all of them.
    pub(crate) room: Arc<Room>,
    /// The same for replies, until their callers have them.
    pub(crate) reply_room: Arc<Room>,
    /// What clients announced.
    pub(crate) announced: Arc<AnnouncedLists>,
    /// Drop running handlers when their connection ends.
    pub(crate) cancel_on_disconnect: bool,
    /// Pack payloads of calls above [`COMPRESS_ABOVE`].
    pub(crate) compress: CompressType,
    /// The client's token, which goes with all that it sends but acknowledgements and the like.
    pub(crate) token: Option<Arc<str>>,
    /// Moments of the connection's life; see [`Watch`].
    pub(crate) watch: watch::Deadlines,
    /// Which connections are looked at for these. Each server has its own, and turns it.
    pub(crate) wheel: Arc<Wheel>,
    /// What a server counts of all its connections; a client counts nothing.
    pub(crate) meters: Option<Arc<Meters>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            capabilities: Capabilities::ALL,
            push_frames_max: 1024,
            push_bytes_max: 1 << 20,
            overflow: Overflow::default(),
            reply_bytes_max: 4 << 20,
            call_bytes_max: 16 << 20,
            calls_running_max: 16_384,
            request_bytes_max: 64 << 20,
            unauthenticated_body_bytes_max: 1 << 20,
            frames_rate: None,
            bytes_rate: None,
            load: Arc::default(),
            room: Arc::new(Room::new(UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION, 0)),
            reply_room: Arc::new(Room::new(UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION, 0)),
            announced: Arc::default(),
            cancel_on_disconnect: false,
            compress: CompressType::NONE,
            token: None,
            watch: watch::Deadlines::default(),
            wheel: Arc::new(Wheel::new()),
            meters: None,
        }
    }
}

impl Settings {
    /// Messages were given up.
    pub(super) fn count_drops(&self, why: Lost, messages: u64) {
        if let Some(meters) = self.meters.as_ref().filter(|_| messages != 0) {
            meters.count_drops(why, messages);
        }
    }

    pub(super) fn bounds(&self) -> OutboxBounds<'_> {
        OutboxBounds {
            push_frames: self.push_frames_max,
            push_bytes: self.push_bytes_max,
            overflow: self.overflow,
            reply_bytes: self.reply_bytes_max,
            call_bytes: self.call_bytes_max,
            outgoing: self.load.outgoing(),
            meters: self.meters.as_deref(),
        }
    }
}
