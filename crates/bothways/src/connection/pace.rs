//! How fast a client may send: frames and bytes a second. Off unless a server asks for it.
//!
//! Requests beyond the rate of frames are refused at once, so that the client knows; what cannot be refused, such as
//! an acknowledgement, counts and is taken. Beyond the rate of bytes the server reads no further until the client has
//! a right to more: nothing is lost, and the client's own writing slows down.

use std::time::Duration;

use bothways_proto::TokenBucket;
use tokio::time::Instant;

use super::{Settings, State};

/// What a connection has used up. Made with the first frame, and only if there is a rate.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    frames: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl Pace {
    fn new(settings: &Settings) -> Self {
        let bucket = |rate: Option<_>| rate.map(TokenBucket::new);
        Self { began: Instant::now(), frames: bucket(settings.frames_rate), bytes: bucket(settings.bytes_rate) }
    }
}

impl State {
    /// One more frame has come. True if it is one too many.
    pub(super) fn frame_is_too_many(&mut self, settings: &Settings) -> bool {
        settings.frames_rate.is_some() && {
            let pace = self.pace(settings);
            let now = pace.began.elapsed();
            pace.frames.as_mut().is_some_and(|frames| frames.take(now, 1).is_err())
        }
    }

    /// So many bytes were read. How long nothing more is to be read, if not at once.
    pub(super) fn pause_after(&mut self, settings: &Settings, bytes: usize) -> Option<Duration> {
        let pace = self.pace(settings);
        let now = pace.began.elapsed();
        let pause = pace.bytes.as_mut()?.charge(now, u32::try_from(bytes).unwrap_or(u32::MAX));
        (!pause.is_zero()).then_some(pause)
    }

    fn pace(&mut self, settings: &Settings) -> &mut Pace {
        self.rare().pace.get_or_insert_with(|| Box::new(Pace::new(settings)))
    }
}

impl Settings {
    /// If a client is held back: bytes that the server itself may take of it in the time for a frame to go on, at the
    /// least.
    pub(super) fn slowest_bytes(&self) -> Option<u32> {
        let seconds = u32::try_from(self.watch.frame_progress_time.as_secs()).unwrap_or(u32::MAX);
        self.bytes_rate.map(|rate| rate.per_second_max().saturating_mul(seconds) / 2)
    }

    /// Most bytes of one read, of so many that there is room for: a client that is held back is so for short times.
    pub(super) fn read_bytes_max(&self, room: usize) -> usize {
        self.bytes_rate.map_or(room, |rate| room.min(rate.burst_max() as usize))
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::Rate;

    use super::*;

    /// Of a client that is held back at half its rate, no more is asked.
    #[test]
    fn who_is_held_back_may_take_so_long() {
        let mut settings = Settings::default();
        assert_eq!((settings.slowest_bytes(), settings.read_bytes_max(100)), (None, 100));
        settings.watch.frame_progress_time = Duration::from_secs(7);
        settings.bytes_rate = Some(Rate::per_second(30).burst(50));
        assert_eq!(settings.slowest_bytes(), Some(7 * 30 / 2));
        assert_eq!((settings.read_bytes_max(100), settings.read_bytes_max(20)), (50, 20));
        settings.watch.frame_progress_time = Duration::MAX;
        assert_eq!(settings.slowest_bytes(), Some(u32::MAX / 2));
    }
}
