//! Bodies: requests read within bounds, and what is sent back.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use crate::{events::Events, fault::Fault};

/// Most bytes of a body that HTTP takes at once: a server that copies what it writes copies no more than it has room for.
const PIECE_BYTES: usize = 64 << 10;

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

/// How many bytes of bodies all clients together may make a front hold.
#[derive(Debug)]
pub(crate) struct Budget {
    held: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Holds these bytes until the answer is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, Fault> {
        let mut held = Held { budget: Arc::clone(self), bytes: 0 };
        held.grow(bytes)?;
        Ok(held)
    }
}

/// A part of the budget.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        if self.budget.max < before.saturating_add(bytes) {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Fault::overloaded("too many bytes of bodies are held (`held_bytes_max`)"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Both parts as one.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bounds of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) within: Duration,
}

/// Reads a body to its end.
///
/// # Errors
/// 413 as soon as it is known to be too large, 408 if it does not come in time, 400 if it ends early, and 503 without
/// room for it.
pub(crate) async fn read<B>(body: B, bounds: Bounds, budget: &Arc<Budget>) -> Result<(Bytes, Held), Fault>
where
    B: http_body::Body,
{
    match tokio::time::timeout(bounds.within, read_all(body, bounds.bytes_max, budget)).await {
        Ok(read) => read,
        Err(_) => Err(Fault::new(http::StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time")),
    }
}

async fn read_all<B>(body: B, bytes_max: usize, budget: &Arc<Budget>) -> Result<(Bytes, Held), Fault>
where
    B: http_body::Body,
{
    let too_large = || {
        let text = format!("the body has more than {bytes_max} bytes (`body_bytes_max`)");
        Fault::new(http::StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
    };
    // What the client announces is refused before a byte of it is read.
    if (bytes_max as u64) < body.size_hint().lower() {
        return Err(too_large());
    }

    let (mut body, mut read) = (pin!(body), BytesMut::new());
    let mut held = budget.hold(0)?;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Fault::bad_request("the body ended early"))?;
        // Trailers mean nothing here.
        let Ok(mut data) = frame.into_data() else { continue };
        if bytes_max - read.len() < data.remaining() {
            return Err(too_large());
        }
        held.grow(data.remaining())?;
        while data.has_remaining() {
            let chunk = data.chunk();
            let len = chunk.len();
            read.extend_from_slice(chunk);
            data.advance(len);
        }
    }
    Ok((read.freeze(), held))
}
