//! The contract of every socket, as tests.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use proptest::prelude::*;

use super::Socket;

/// What one end of an exchange sends, and in what pieces it writes and reads.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    bytes: usize,
    writes: Vec<usize>,
    reads: Vec<usize>,
    /// The end writes as a caller does first, and as its task only when that would block.
    tries: bool,
}

impl Plan {
    /// The same with fewer bytes.
    #[cfg(feature = "ws")]
    pub(super) fn of_at_most(self, bytes: usize) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }
}

pub(super) fn plans() -> impl Strategy<Value = [Plan; 2]> {
    let sizes = || prop::collection::vec(prop_oneof![1..8_usize, 1..4096_usize, 1..100_000_usize], 1..5);
    let plan = (0..300_000_usize, sizes(), sizes(), any::<bool>())
        .prop_map(|(bytes, writes, reads, tries)| Plan { bytes, writes, reads, tries })
        // Many small pieces prove no more than some, and take long.
        .prop_map(|plan| Plan {
            bytes: plan.bytes.min(4096 * plan.writes.iter().chain(&plan.reads).min().unwrap_or(&1)),
            ..plan
        });
    [plan.clone(), plan]
}

/// Runs a test of a property; one that hangs fails.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("goes on") });
}

/// The byte at a place of every stream here: no short period, so that a lost piece shows.
fn byte_at(place: usize) -> u8 {
    (place ^ place >> 8 ^ place >> 13) as u8
}

/// Both ends send what they mean to, end their direction, and read to the end of the other.
pub(super) async fn exchange<S: Socket, T: Socket>(a: S, b: T, [plan_a, plan_b]: [Plan; 2]) {
    let (bytes_a, bytes_b) = (plan_a.bytes, plan_b.bytes);
    let (a, b) = (tokio::spawn(drive(a, plan_a)), tokio::spawn(drive(b, plan_b)));
    let ((received_a, a), (received_b, b)) = (a.await.expect("no panic"), b.await.expect("no panic"));
    assert_eq!((received_a, received_b), (bytes_b, bytes_a));
    drop((a, b));
}

/// One end, driven in both directions by one task as a connection is. The bytes received, each of them
/// the right one.
async fn drive<S: Socket>(socket: S, plan: Plan) -> (usize, S) {
    let outgoing: Vec<u8> = (0..plan.bytes).map(byte_at).collect();
    let (mut sent, mut received) = (0, 0);
    let (mut writes, mut reads) = (plan.writes.iter().cycle(), plan.reads.iter().cycle());
    let (mut ended, mut at_end) = (false, false);
    poll_fn(|cx| {
        while !ended {
            if sent < outgoing.len() {
                let len = (*writes.next().expect("endless")).min(outgoing.len() - sent);
                match write_pieces(&socket, cx, &outgoing[sent..sent + len], plan.tries) {
                    Poll::Ready(len) => sent += len,
                    Poll::Pending => break,
                }
            } else if socket.poll_flush(cx).map(|r| r.expect("flushes")).is_ready()
                && socket.poll_shutdown(cx).map(|r| r.expect("shuts down")).is_ready()
            {
                ended = true;
            } else {
                break;
            }
        }
        while !at_end {
            let mut buf = vec![0; *reads.next().expect("endless")];
            let Poll::Ready(len) = socket.poll_read(cx, &mut buf) else { break };
            let len = len.expect("reads");
            at_end = len == 0;
            assert!(buf[..len].iter().enumerate().all(|(n, byte)| *byte == byte_at(received + n)), "at {received}");
            received += len;
        }
        if ended && at_end { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (received, socket)
}

/// Writes a piece as three slices, one of them empty.
fn write_pieces(socket: &impl Socket, cx: &mut Context<'_>, piece: &[u8], tries: bool) -> Poll<usize> {
    let (head, tail) = piece.split_at(piece.len() / 3);
    let slices = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)];
    if tries {
        match socket.try_write(&slices) {
            Ok(len) => return Poll::Ready(len),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    let len = ready!(socket.poll_write(cx, &slices)).expect("writes");
    assert!(0 < len && len <= piece.len());
    Poll::Ready(len)
}

/// Fills one direction until nothing more is taken; then its task waits, and is woken by room.
pub(super) async fn fill_then_drain<S: Socket, T: Socket>(writer: S, reader: T) {
    let writer = Arc::new(writer);
    let piece = [7; 10_000];
    let mut taken = 0;
    poll_fn(|cx| {
        while let Poll::Ready(len) = writer.poll_write(cx, &[IoSlice::new(&piece)]) {
            taken += len.expect("writes");
        }
        Poll::Ready(())
    })
    .await;
    let error = writer.try_write(&[IoSlice::new(&piece)]).expect_err("is full");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    let waiting = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move {
            let mut polls = 0;
            let len = poll_fn(|cx| {
                polls += 1;
                writer.poll_write(cx, &[IoSlice::new(b"the rest")])
            })
            .await
            .expect("writes");
            poll_fn(|cx| writer.poll_flush(cx)).await.expect("flushes");
            poll_fn(|cx| writer.poll_shutdown(cx)).await.expect("shuts down");
            (len, polls)
        }
    });
    tokio::task::yield_now().await;
    let mut received = Vec::new();
    loop {
        match read(&reader, 8192).await.expect("reads") {
            bytes if bytes.is_empty() => break,
            bytes => received.extend(bytes),
        }
    }
    let (len, polls) = waiting.await.expect("no panic");
    assert!(1 < polls, "it was not full");
    assert_eq!(received.len(), taken + len);
    assert!(received.ends_with(&b"the rest"[..len]));
}

/// One end ends its direction; the other still answers, and then ends its own.
pub(super) async fn half_close<S: Socket, T: Socket>(a: S, b: T) {
    write_all(&a, b"last words").await.expect("writes");
    poll_fn(|cx| a.poll_shutdown(cx)).await.expect("shuts down");
    assert_eq!(read_to_end(&b).await.expect("reads"), b"last words");
    assert!(write_all(&a, b"more").await.is_err(), "nothing follows an end");

    write_all(&b, b"an answer").await.expect("writes");
    poll_fn(|cx| b.poll_shutdown(cx)).await.expect("shuts down");
    assert_eq!(read_to_end(&a).await.expect("reads"), b"an answer");
    poll_fn(|cx| a.poll_shutdown(cx)).await.expect("ending twice is no failure");
}

pub(super) async fn write_all(socket: &impl Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[len..];
    }
    poll_fn(|cx| socket.poll_flush(cx)).await
}

/// What one read gives; empty at the end of the stream.
pub(super) async fn read(socket: &impl Socket, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; bytes_max];
    let len = poll_fn(|cx| socket.poll_read(cx, &mut buf)).await?;
    buf.truncate(len);
    Ok(buf)
}

pub(super) async fn read_to_end(socket: &impl Socket) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        match read(socket, 4096).await? {
            bytes if bytes.is_empty() => return Ok(all),
            bytes => all.extend(bytes),
        }
    }
}
