//! What waits in all sessions together, and where they stand.

/// The sessions of a server at one moment, and how much waits in each; see [`Server::queues`](crate::Server::queues).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Sessions of clients that are connected and, as far as is known, speak plain rpcx: they end with their connections.
    pub plain: usize,
    /// Sessions of clients that are connected and may come back.
    pub resumable: usize,
    /// Sessions whose clients are away and may come back.
    pub away: usize,
    /// Pushes that wait or are not yet handled, in all sessions.
    pub pushes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Most of these bytes that one session has.
    pub bytes_max: u64,
    /// Sessions that have at most so many bytes as [`Self::BOUNDS`] says at this place, and more than at the one before.
    pub sessions_by_bytes: [u64; 9],
    /// Sessions that have more than the last of these.
    pub sessions_beyond: u64,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Counted {
    Plain,
    Resumable,
    Away,
}

impl QueueStats {
    /// The bounds of [`Self::sessions_by_bytes`], in bytes: none, and then each four times the one before.
    pub const BOUNDS: [u64; 9] = [0, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

    pub(super) fn add(&mut self, counted: Counted, (pushes, bytes): (usize, usize)) {
        let standing = match counted {
            Counted::Plain => &mut self.plain,
            Counted::Resumable => &mut self.resumable,
            Counted::Away => &mut self.away,
        };
        *standing += 1;

        let bytes = bytes as u64;
        self.pushes += pushes as u64;
        self.bytes += bytes;
        self.bytes_max = self.bytes_max.max(bytes);
        match Self::BOUNDS.iter().position(|bound| bytes <= *bound) {
            Some(place) => self.sessions_by_bytes[place] += 1,
            None => self.sessions_beyond += 1,
        }
    }

    /// So many sessions of plain clients that were never pushed to.
    pub(super) fn add_blank(&mut self, sessions: usize) {
        self.plain += sessions;
        self.sessions_by_bytes[0] += sessions as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each session is in one place by where it stands, and in one by what it has.
    #[test]
    fn each_session_is_counted_once() {
        let mut queues = QueueStats::default();
        queues.add_blank(3);
        queues.add(Counted::Plain, (0, 0));
        queues.add(Counted::Resumable, (2, 1 << 10));
        queues.add(Counted::Resumable, (1, (1 << 10) + 1));
        queues.add(Counted::Away, (9, (16 << 20) + 1));
        assert_eq!((queues.plain, queues.resumable, queues.away), (4, 2, 1));
        assert_eq!((queues.pushes, queues.bytes_max), (12, (16 << 20) + 1));
        assert_eq!((queues.sessions_by_bytes, queues.sessions_beyond), ([4, 1, 1, 0, 0, 0, 0, 0, 0], 1));
    }
}
