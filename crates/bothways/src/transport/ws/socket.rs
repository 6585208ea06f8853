//! WebSocket over any other socket.

use std::{
    fmt,
    io::{self, IoSlice},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll, Waker, ready},
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    frame::{End, Reader, status},
    out::Out,
};
use crate::transport::Socket;

/// WebSocket over another socket, after the upgrade.
///
/// At a server [`try_write`](Socket::try_write) is one gathered write to the socket below, and an idle connection may
/// rest if that can. At a client what is written is masked, in pieces of 16 KiB; what the socket below does not take of
/// a piece is sent by the connection's task.
///
/// Pings are answered. The peer's Close is the end of what is read; ours goes out when the connection ends its sending
/// direction, or fails, or with the last of the socket if there is room for it.
///
/// ```
/// use bothways::{
///     Client, ClientOptions, Server,
///     transport::{AnySocket, memory, ws::WsSocket},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .build();
/// // What an HTTP server of the application has upgraded is served like this.
/// let (near, far) = memory::pair(1 << 16);
/// server.take(AnySocket::Other(Box::new(WsSocket::server(far))))?;
/// let client = Client::over(AnySocket::Other(Box::new(WsSocket::client(near))), ClientOptions::new()).await?;
/// assert_eq!(client.call::<String>("Text", "Upper", "abc").await?, "ABC");
/// # Ok(()) }
/// ```
pub struct WsSocket<S: Socket> {
    below: S,
    is_client: bool,
    reader: Mutex<Reader>,
    out: Mutex<Out>,
    /// Of `out`, to be known without its lock, which is held while bytes are written.
    has_unsent: AtomicBool,
    /// The socket below has taken so many bytes.
    sent: AtomicU64,
}

impl<S: Socket> WsSocket<S> {
    /// The server's end, once the upgrade was answered. `below` has what follows the request of the client.
    pub fn server(below: S) -> Self {
        Self::new(below, false)
    }

    /// The client's end, once the upgrade was answered. `below` has what follows the answer of the server.
    pub fn client(below: S) -> Self {
        Self::new(below, true)
    }

    fn new(below: S, is_client: bool) -> Self {
        Self {
            below,
            is_client,
            reader: Mutex::new(Reader::new(!is_client)),
            out: Mutex::new(Out::new(is_client)),
            has_unsent: false.into(),
            sent: 0.into(),
        }
    }

    /// Writes to the socket below, as its task.
    fn polled<'a>(&'a self, cx: &'a mut Context<'_>) -> impl FnMut(&[IoSlice<'_>]) -> io::Result<usize> + 'a {
        |slices| match self.below.poll_write(cx, slices) {
            Poll::Ready(result) => self.counted(result),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes to the socket below, as anybody.
    fn tried(&self) -> impl FnMut(&[IoSlice<'_>]) -> io::Result<usize> + '_ {
        |slices| self.counted(self.below.try_write(slices))
    }

    fn counted(&self, result: io::Result<usize>) -> io::Result<usize> {
        if let Ok(sent) = result {
            self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        }
        result
    }

    /// Of what a look at `out` has to be noted where it can be seen without its lock.
    fn note(&self, out: &Out) {
        self.has_unsent.store(out.has_unsent(), Ordering::Relaxed);
    }

    /// Sends what is left to send, as the task; what it is told is told to those who write.
    fn send_pending(&self, out: &mut MutexGuard<'_, Out>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = out.send_pending(&mut self.polled(cx));
        self.note(out);
        or_pending(sent)
    }

    /// What the peer asked for, and what it is told if it has broken the rules.
    fn answer(&self, reader: &mut Reader, cx: &mut Context<'_>) {
        let pings = reader.take_pings();
        let fault = match reader.end() {
            Some(End::Broken(status, _)) => Some(*status),
            _ => None,
        };
        if pings.is_empty() && fault.is_none() {
            return;
        }

        let mut out = self.out.lock();
        note_task(&mut out, cx);
        pings.iter().for_each(|ping| out.pong(ping));
        if let Some(status) = fault {
            out.close(status);
        }
        if let Poll::Ready(Err(error)) = self.send_pending(&mut out, cx) {
            out.fail(error);
        }
    }
}

fn note_task(out: &mut Out, cx: &Context<'_>) {
    match &mut out.task {
        Some(waker) => waker.clone_from(cx.waker()),
        None => out.task = Some(cx.waker().clone()),
    }
}

fn or_pending<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// What a reader of the stream is told of its end.
fn told(end: &End) -> io::Result<usize> {
    match end {
        // What an application or a browser says when it leaves, and what says nothing.
        End::Closed(None | Some((status::NORMAL | status::GOING_AWAY | 3000.., _))) => Ok(0),
        End::Closed(Some((status, reason))) => {
            let why = format!("the peer closed the WebSocket with status {status}: {}", reason.escape_debug());
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
        }
        End::Broken(_, why) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("the peer broke the rules of WebSocket: {why}")))
        }
    }
}

impl<S: Socket> Socket for WsSocket<S> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_client || self.has_unsent.load(Ordering::Relaxed) {
            let mut out = self.out.lock();
            note_task(&mut out, cx);
            // A failure to send is told to those who send; what the peer said before it can still be read.
            if let Poll::Ready(Err(error)) = self.send_pending(&mut out, cx) {
                out.fail(error);
            }
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }

        let mut reader = self.reader.lock();
        loop {
            if let Some(end) = reader.end() {
                return Poll::Ready(told(end));
            }
            let here = ready!(self.below.poll_read(cx, buf))?;
            // Without a Close: whether anything is missing is seen by the frames of rpcx.
            if here == 0 {
                return Poll::Ready(Ok(0));
            }
            let len = reader.take(&mut buf[..here]);
            self.answer(&mut reader, cx);
            if 0 < len {
                return Poll::Ready(Ok(len));
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut out = self.out.lock();
        note_task(&mut out, cx);
        let written = out.write(slices, &mut self.polled(cx));
        // Control frames may have waited for the end of a frame that is complete now.
        if written.is_ok()
            && out.has_unsent()
            && let Poll::Ready(Err(error)) = self.send_pending(&mut out, cx)
        {
            out.fail(error);
            cx.waker().wake_by_ref();
        }
        self.note(&out);
        or_pending(written)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // A caller that finds the task at work leaves the bytes to it instead of waiting.
        let mut out = self.out.try_lock().ok_or(io::ErrorKind::WouldBlock)?;
        let written = out.write(slices, &mut self.tried());
        let mut task = None;
        if written.is_ok() && out.has_unsent() {
            // The task sends the rest, or finds the error.
            match out.send_pending(&mut self.tried()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => task = out.task.clone(),
                Err(error) => {
                    out.fail(error);
                    task = out.task.clone();
                }
            }
        }
        self.note(&out);
        drop(out);
        task.inspect(Waker::wake_by_ref);
        written
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.out.lock();
        note_task(&mut out, cx);
        out.check_failed()?;
        ready!(self.send_pending(&mut out, cx))?;
        self.below.poll_flush(cx)
    }

    /// The peer's Close, if it was first, is answered with its status: that is what a browser shows of it.
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let status = match self.reader.lock().end() {
            Some(End::Closed(Some((status, _)))) => *status,
            _ => status::NORMAL,
        };
        let mut out = self.out.lock();
        note_task(&mut out, cx);
        out.close(status);
        ready!(self.send_pending(&mut out, cx))?;
        ready!(self.below.poll_flush(cx))?;
        self.below.poll_shutdown(cx)
    }

    /// A client's masked piece, and Pongs.
    fn has_unsent(&self) -> bool {
        self.has_unsent.load(Ordering::Relaxed) || self.below.has_unsent()
    }

    /// As they travel, with headers.
    fn sent_bytes(&self) -> Option<u64> {
        self.below.sent_bytes().or_else(|| Some(self.sent.load(Ordering::Relaxed)))
    }

    /// That of the socket below, with `ws` for `tcp` and `wss` for `tls`.
    fn peer(&self) -> String {
        let peer = self.below.peer();
        match peer.split_once('@') {
            Some(("tls", target)) => format!("wss@{target}"),
            Some((_, target)) => format!("ws@{target}"),
            None => format!("ws@{peer}"),
        }
    }

    fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        self.below.peer_certificates()
    }

    /// Whatever was read was handed over, except for a header that is cut off.
    fn can_rest(&self) -> bool {
        !self.is_client && !self.has_unsent.load(Ordering::Relaxed) && self.below.can_rest()
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.below.poll_readable(cx)
    }
}

/// Browsers tell an end without a Close from one with it: the peer gets one if there is room.
impl<S: Socket> Drop for WsSocket<S> {
    fn drop(&mut self) {
        let mut out = self.out.lock();
        if !out.is_closed() {
            out.close(status::GOING_AWAY);
            _ = out.send_pending(&mut self.tried());
        }
    }
}

impl<S: Socket> fmt::Debug for WsSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WsSocket").field(&self.peer()).finish()
    }
}

#[cfg(test)]
impl<S: Socket> WsSocket<S> {
    pub(super) fn held_bytes(&self) -> usize {
        self.out.lock().held_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::transport::{
        check,
        memory::{self, MemorySocket},
    };

    /// Both ends over a pipe with room for so many bytes: the client and the server.
    fn pair(buffer_bytes: usize) -> (WsSocket<MemorySocket>, WsSocket<MemorySocket>) {
        let (near, far) = memory::pair(buffer_bytes);
        (WsSocket::client(near), WsSocket::server(far))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn bytes_arrive_in_order_both_ways(
            plans in check::plans(),
            buffer_bytes in prop_oneof![1..100_usize, 64..1000_usize, Just(memory::BUFFER_BYTES)],
        ) {
            check::run(async {
                // A pipe of a few bytes is for short streams.
                let plans = if buffer_bytes < 100 { plans.map(|plan| plan.of_at_most(2_000)) } else { plans };
                let (client, server) = pair(buffer_bytes);
                check::exchange(client, server, plans).await;
            });
        }
    }

    #[tokio::test]
    async fn a_full_socket_blocks_and_wakes_its_task_when_there_is_room() {
        let (client, server) = pair(1000);
        check::fill_then_drain(client, server).await;
        let (client, server) = pair(1000);
        check::fill_then_drain(server, client).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (client, server) = pair(1000);
        check::half_close(client, server).await;
        let (client, server) = pair(1000);
        check::half_close(server, client).await;
    }

    /// A server writes what it is given behind one header, without a copy, and holds nothing of it.
    #[test]
    fn a_server_writes_all_slices_in_one_frame() {
        let (near, far) = memory::pair(1000);
        let server = WsSocket::server(near);
        let slices = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        assert_eq!(server.try_write(&slices).expect("there is room"), 5);
        assert!(!server.has_unsent());
        assert_eq!(server.sent_bytes(), Some(7));
        let mut buf = [0; 16];
        assert!(matches!(far.poll_read(&mut Context::from_waker(Waker::noop()), &mut buf), Poll::Ready(Ok(7))));
        assert_eq!(buf[..7], *b"\x82\x05abcde");
    }

    /// What a client could not send is sent by its task, which is woken for it.
    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_masked_piece_is_sent_by_the_task() {
        let (client, server) = pair(100);
        let mut none = [0; 1];
        poll_fn(|cx| {
            assert!(client.poll_read(cx, &mut none).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(client.try_write(&[IoSlice::new(&[7; 1000])]).expect("it takes a piece"), 1000);
        assert!(client.has_unsent());
        assert_eq!(
            client.try_write(&[IoSlice::new(&[7; 1000])]).expect_err("it is full").kind(),
            io::ErrorKind::WouldBlock
        );

        let task = async {
            let mut read = [0; 10];
            poll_fn(|cx| client.poll_read(cx, &mut read)).await.expect("nothing is said before the end");
        };
        let reads = async {
            let mut all = Vec::new();
            while all.len() < 1000 {
                all.extend(check::read(&server, 4096).await.expect("it is open"));
            }
            assert!(all == [7; 1000]);
            drop(server);
        };
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(task, reads) }).await.expect("goes on");
        assert!(!client.has_unsent());
    }

    /// Only a server's end rests, and only over a socket that can.
    #[tokio::test]
    async fn it_rests_as_the_socket_below_does() {
        let (client, server) = pair(100);
        assert!(!client.can_rest() && !server.can_rest());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let near = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let tcp = crate::transport::tcp::TcpSocket::new(near).expect("it is connected");
        let server = WsSocket::server(tcp);
        assert!(server.can_rest() && server.peer().starts_with("ws@127.0.0.1:"));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(server.poll_readable(&mut cx).is_pending());
    }
}
