//! Bodies: requests read within bounds, and what is sent back.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bothways::shares::{Full, Share, Shares};
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{events::Events, fault::Fault};

/// Most bytes of a body that HTTP takes at once: a server that copies what it writes copies no more than it has room for.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// A response of a [`Front`](crate::Front).
pub type Response = http::Response<Body>;

/// The body of a [`Response`]: bytes that are there, or events as they come.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Bytes),
    Events(Box<Events>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// Bytes that count for the budget until they are sent, or their client is gone: also while HTTP keeps them to write
    /// them, after it has taken them from here.
    pub(crate) fn held(bytes: Bytes, held: Held) -> Self {
        Bytes::from_owner(HeldBytes { bytes, _held: held }).into()
    }

    pub(crate) fn events(events: Events) -> Self {
        Self(Kind::Events(Box::new(events)))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes))
    }
}

/// Bytes and the room that they take: given back with the last part of them.
struct HeldBytes {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut self.0 {
            Kind::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(bytes.split_to(bytes.len().min(PIECE_BYTES)))),
            Kind::Events(events) => events.poll_next(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Events(_) => SizeHint::default(),
        }
    }
}

/// The bytes of bodies that a front holds, shared by its clients.
///
/// What is read of a body that has not ended makes way where there is no room for an address that has less: it costs its
/// client most time for least bytes to have it there, and nothing runs on it yet.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    shares: Arc<Shares>,
    unfinished: Arc<Unfinished>,
}

/// The bodies that have not ended.
#[derive(Debug, Default)]
struct Unfinished {
    bodies: Mutex<HashMap<u64, Coming>>,
    next: AtomicU64,
    /// One of them has given its room back.
    freed: Notify,
}

#[derive(Debug)]
struct Coming {
    peer: String,
    bytes: usize,
    /// Tells it to make way.
    leave: Arc<Notify>,
}

/// How long a body waits for the room of one that makes way, whose task has to see it.
const ROOM_WAIT: Duration = Duration::from_secs(1);

impl Unfinished {
    /// Tells a body to make way for an address that has so many bytes then: the largest one of the address whose
    /// unfinished bodies have the most. False: no address has more.
    fn make_way(&self, bytes: usize) -> bool {
        let bodies = self.bodies.lock();
        let mut of: HashMap<&str, usize> = HashMap::new();
        bodies.values().for_each(|coming| *of.entry(&coming.peer).or_default() += coming.bytes);
        let most = of.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, most)| bytes < *most);
        let of_most =
            |peer| bodies.values().filter(move |coming| coming.peer == peer).max_by_key(|coming| coming.bytes);
        match most.and_then(|(peer, _)| of_most(peer)) {
            Some(largest) => largest.leave.notify_one(),
            None => return false,
        }
        true
    }

    /// What an address has of them.
    fn of(&self, peer: &str) -> usize {
        self.bodies.lock().values().filter(|coming| coming.peer == peer).map(|coming| coming.bytes).sum()
    }
}

impl Budget {
    /// `of_peer`: what one client's address may have; `None`: half of all at most, and never more than is left for others.
    pub(crate) fn new(max: usize, of_peer: Option<usize>) -> Self {
        Self { shares: shares(max, of_peer, max), unfinished: Arc::default() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shares.taken()
    }

    /// Holds these bytes for this client until the answer is dropped.
    pub(crate) fn hold(&self, peer: &str, bytes: usize) -> Result<Held, Fault> {
        let mut held = Held { share: self.shares.share(peer), more: Vec::new() };
        held.grow(bytes)?;
        Ok(held)
    }
}

/// A bound shared by addresses. `of_peer`: what the application lets one have, which may be all; `usually`: what one has
/// at most if it says nothing.
pub(crate) fn shares(max: usize, of_peer: Option<usize>, usually: usize) -> Arc<Shares> {
    let shares = Shares::new(max).of_peer_max(of_peer.unwrap_or(usually));
    Arc::new(if of_peer.is_some_and(|of_peer| max <= of_peer) { shares.all_to_one() } else { shares })
}

/// A part of the budget.
#[derive(Debug)]
pub(crate) struct Held {
    share: Share,
    more: Vec<Self>,
}

impl Held {
    fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.share.grow(bytes).map_err(|full| {
            Fault::overloaded(match full {
                Full::Peer => "too many bytes of bodies are held for this address (`held_bytes_per_address_max`)",
                _ => "too many bytes of bodies are held (`held_bytes_max`)",
            })
        })
    }

    /// Both parts as one.
    pub(crate) fn join(&mut self, other: Self) {
        self.more.push(other);
    }
}

/// A body that has not ended, and the room that it takes. Dropped, it has room for others.
struct Growing {
    held: Option<Held>,
    unfinished: Arc<Unfinished>,
    number: u64,
    leave: Arc<Notify>,
}

impl Growing {
    fn begin(budget: &Budget, peer: &str) -> Result<Self, Fault> {
        let (held, leave) = (budget.hold(peer, 0)?, Arc::new(Notify::new()));
        let unfinished = Arc::clone(&budget.unfinished);
        let number = unfinished.next.fetch_add(1, Ordering::Relaxed);
        let coming = Coming { peer: held.share.peer().to_owned(), bytes: 0, leave: Arc::clone(&leave) };
        unfinished.bodies.lock().insert(number, coming);
        Ok(Self { held: Some(held), unfinished, number, leave })
    }

    /// Takes room, if need be that of a body that makes way.
    async fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let until = Instant::now() + ROOM_WAIT;
        loop {
            let freed = self.unfinished.freed.notified();
            let Err(full) = held.grow(bytes) else { break };
            let then = self.unfinished.of(held.share.peer()) + bytes;
            if !self.unfinished.make_way(then) || tokio::time::timeout_at(until, freed).await.is_err() {
                return Err(full);
            }
        }
        if let Some(coming) = self.unfinished.bodies.lock().get_mut(&self.number) {
            coming.bytes += bytes;
        }
        Ok(())
    }

    /// It has ended, and makes way for nobody any more.
    fn end(mut self) -> Option<Held> {
        self.held.take()
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        // The room first: who waits for it looks at once.
        drop(self.held.take());
        self.unfinished.bodies.lock().remove(&self.number);
        self.unfinished.freed.notify_waiters();
    }
}

/// The bounds of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) within: Duration,
    /// Bytes in a second, less than which are too slow; 0: any are enough.
    pub(crate) rate_min: usize,
}

/// How long a body may be slower than its bound: so long may a network be away.
const SLOW_TIME_MAX: Duration = Duration::from_secs(10);

/// Until when more has to come.
struct Pace {
    rate_min: usize,
    whole_by: Instant,
    more_by: Instant,
}

impl Pace {
    fn begin(bounds: &Bounds) -> Self {
        let now = Instant::now();
        Self { rate_min: bounds.rate_min, whole_by: now + bounds.within, more_by: now + SLOW_TIME_MAX }
    }

    /// So much has come: it gives time, and no more of it than a body has at its beginning.
    fn came(&mut self, bytes: usize) {
        let given = Duration::from_secs_f64(bytes as f64 / self.rate_min.max(1) as f64);
        self.more_by = (self.more_by + given.min(SLOW_TIME_MAX)).min(Instant::now() + SLOW_TIME_MAX);
    }

    /// When it is too late.
    fn limit(&self) -> Instant {
        if self.rate_min == 0 { self.whole_by } else { self.whole_by.min(self.more_by) }
    }

    fn too_late(&self) -> Fault {
        let text = match self.whole_by <= self.limit() {
            true => "the body did not come in time (`body_timeout`)",
            false => "the body came too slowly (`rate_min`)",
        };
        Fault::new(http::StatusCode::REQUEST_TIMEOUT, "timeout", text)
    }
}

/// Reads a body to its end. Room for it is taken as it comes, whatever it announces.
///
/// # Errors
/// 413 as soon as it is known to be too large, 408 if it does not come in time or too slowly, 400 if it ends early, and
/// 503 without room for it.
pub(crate) async fn read<B>(body: B, bounds: Bounds, budget: &Budget, peer: &str) -> Result<(Bytes, Held), Fault>
where
    B: http_body::Body,
{
    let too_large = || {
        let text = format!("the body has more than {} bytes (`body_bytes_max`)", bounds.bytes_max);
        Fault::new(http::StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
    };
    // What the client announces is refused before a byte of it is read.
    let announced = body.size_hint().lower();
    if (bounds.bytes_max as u64) < announced {
        return Err(too_large());
    }

    let (mut body, mut read) = (pin!(body), Vec::new());
    let (mut growing, mut pace) = (Growing::begin(budget, peer)?, Pace::begin(&bounds));
    let leave = Arc::clone(&growing.leave);
    loop {
        let next = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
        let next = tokio::select! {
            next = tokio::time::timeout_at(pace.limit(), next) => next.map_err(|_| pace.too_late())?,
            () = leave.notified() => return Err(Fault::overloaded("this body made way for those of others")),
        };
        let Some(frame) = next else {
            return match growing.end() {
                Some(held) => Ok((read.into(), held)),
                None => Err(Fault::overloaded("this body made way for those of others")),
            };
        };
        let frame = frame.map_err(|_| Fault::bad_request("the body ended early"))?;
        // Trailers mean nothing here.
        let Ok(mut data) = frame.into_data() else { continue };
        if bounds.bytes_max - read.len() < data.remaining() {
            return Err(too_large());
        }

        pace.came(data.remaining());
        make_room(&mut read, data.remaining(), announced as usize, &mut growing).await?;
        while data.has_remaining() {
            let chunk = data.chunk();
            let len = chunk.len();
            read.extend_from_slice(chunk);
            data.advance(len);
        }
    }
}

/// Room for so many bytes more: twice what there was, and no more than was announced. All of it is held.
async fn make_room(read: &mut Vec<u8>, more: usize, announced: usize, growing: &mut Growing) -> Result<(), Fault> {
    let (needed, before) = (read.len() + more, read.capacity());
    if needed <= before {
        return Ok(());
    }
    let wanted = needed.max((2 * before).min(announced));
    growing.grow(wanted - before).await?;
    read.reserve_exact(wanted - read.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;

    /// A body whose parts come when they are sent.
    struct Sent {
        parts: mpsc::UnboundedReceiver<Bytes>,
        announced: u64,
    }

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.parts.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.announced)
        }
    }

    const MIB: usize = 1 << 20;
    const BOUNDS: Bounds = Bounds { bytes_max: 8 * MIB, within: Duration::from_secs(30), rate_min: 1 << 10 };

    fn body(announced: usize) -> (mpsc::UnboundedSender<Bytes>, Sent) {
        let (sender, parts) = mpsc::unbounded_channel();
        (sender, Sent { parts, announced: announced as u64 })
    }

    /// Bodies of one address that never end, however many, leave room for those of others at once; and they are over when
    /// nothing more of them comes.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_never_end_hold_up_nobody_else() {
        let budget = Budget::new(64 * MIB, None);
        let mut endless = Vec::new();
        for number in 0..9 {
            let (sender, body) = body(8 * MIB);
            sender.send(vec![0; 8 * MIB - 1].into()).expect("it is read");
            let (budget, peer) = (budget.clone(), format!("http@192.0.2.1:{number}"));
            endless.push((sender, tokio::spawn(async move { read(body, BOUNDS, &budget, &peer).await.map(drop) })));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(budget.bytes() <= 32 * MIB, "{} bytes", budget.bytes());

        let (sender, whole) = body(8 * MIB);
        sender.send(vec![1; 8 * MIB].into()).expect("it is read");
        drop(sender);
        let (read_whole, held) = read(whole, BOUNDS, &budget, "http@192.0.2.2:1").await.expect("there is room");
        assert_eq!(read_whole.len(), 8 * MIB);
        drop(held);

        tokio::time::sleep(SLOW_TIME_MAX).await;
        let (mut refused, mut slow) = (0, 0);
        for (_sender, reading) in endless {
            match reading.await.expect("no panic").expect_err("it never ended").status.as_u16() {
                503 => refused += 1,
                408 => slow += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!((refused, slow, budget.bytes()), (5, 4, 0));
    }

    /// However many addresses send bodies that never end, those of one more have room: what has not ended makes way.
    #[tokio::test(start_paused = true)]
    async fn unfinished_bodies_make_way() {
        let budget = Budget::new(64 * MIB, None);
        let mut endless = Vec::new();
        for number in 0..100 {
            let (sender, body) = body(8 * MIB);
            sender.send(vec![0; 8 * MIB - 1].into()).expect("it is read");
            let (budget, peer) = (budget.clone(), format!("http@192.0.2.{number}:1"));
            endless.push((sender, tokio::spawn(async move { read(body, BOUNDS, &budget, &peer).await.map(drop) })));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for number in 0..20 {
            let (sender, whole) = body(4 * MIB);
            for _ in 0..64 {
                sender.send(vec![1; 64 << 10].into()).expect("it is read");
            }
            drop(sender);
            let peer = format!("http@198.51.100.{number}:1");
            let (read, _) = read(whole, BOUNDS, &budget, &peer).await.unwrap_or_else(|fault| panic!("{}", fault.text));
            assert_eq!((read.len(), budget.bytes() <= 64 * MIB), (4 * MIB, true));
        }
        drop(endless);
    }

    /// What is announced takes no room before it is there.
    #[tokio::test(start_paused = true)]
    async fn a_body_takes_room_as_it_comes() {
        let budget = Budget::new(64 * MIB, None);
        let (sender, announced) = body(8 * MIB);
        sender.send(Bytes::from_static(b"x")).expect("it is read");
        let reading = read(announced, BOUNDS, &budget, "http@192.0.2.1:1");
        tokio::time::timeout(Duration::from_secs(1), reading).await.map(drop).expect_err("it has not ended");
        drop(sender);

        let (sender, announced) = body(8 * MIB);
        let reading = tokio::spawn({
            let budget = budget.clone();
            async move { read(announced, BOUNDS, &budget, "http@192.0.2.1:1").await.map(drop) }
        });
        for bytes in [1, 1000, 100_000] {
            sender.send(vec![0; bytes].into()).expect("it is read");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(bytes <= budget.bytes() && budget.bytes() <= 2 * (bytes + 1001), "{bytes}: {}", budget.bytes());
        }
        drop((sender, reading.await));
    }

    /// A byte now and then is no progress, a slow line is, and no line has more than the time of a whole body.
    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_too_slow_and_a_slow_line_is_not() {
        for (bytes, every, outcome, seconds) in
            [(1, 9, Err("rate_min"), 10), (4 << 10, 3, Ok(()), 15), (4 << 10, 4, Err("body_timeout"), 30)]
        {
            let budget = Budget::new(64 * MIB, None);
            let (sender, body) = body(MIB);
            let parts = if outcome.is_ok() { 5 } else { 1000 };
            tokio::spawn(async move {
                for _ in 0..parts {
                    tokio::time::sleep(Duration::from_secs(every)).await;
                    _ = sender.send(vec![0; bytes].into());
                }
            });
            let began = Instant::now();
            let read = read(body, BOUNDS, &budget, "http@192.0.2.1:1").await;
            assert_eq!(began.elapsed().as_secs(), seconds, "{bytes} each {every} s");
            match (read, outcome) {
                (Ok(_), Ok(())) => {}
                (Err(fault), Err(why)) => assert!(fault.status == 408 && fault.text.contains(why), "{}", fault.text),
                (read, _) => panic!("{bytes} each {every} s: {:?}", read.map(|(bytes, _)| bytes.len())),
            }
        }
    }
}
