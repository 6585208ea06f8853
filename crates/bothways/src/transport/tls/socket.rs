//! TLS over any other socket.

use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

#[cfg(feature = "ws")]
use std::io::BufRead;

use parking_lot::Mutex;
use rustls::{Connection, InvalidMessage, ProtocolVersion};

use crate::transport::Socket;
#[cfg(feature = "ws")]
use crate::transport::{AnySocket, tcp::TcpSocket};

/// TLS over another socket, after the handshake.
///
/// [`try_write`](Socket::try_write) encrypts in the caller's thread. If the socket below does not take all
/// of that at once, the rest is sent by the connection's task, which is woken for it: each `poll_` method
/// first moves what waits.
///
/// An end of the stream without TLS's own sign of it is `UnexpectedEof`: somebody may have cut it off.
pub struct TlsSocket<S> {
    below: S,
    tls: Mutex<Tls>,
    passed_on: Arc<PassedOn>,
}

/// What became of the encrypted bytes. To be read without the lock, which is held while bytes are encrypted.
#[derive(Default)]
struct PassedOn {
    /// The socket below has taken so many.
    sent: AtomicU64,
    /// It did not take the rest.
    has_unsent: AtomicBool,
}

struct Tls {
    session: Connection,
    passed_on: Arc<PassedOn>,
    /// Of the task that polls, to be woken when others leave it something to send.
    task: Option<Waker>,
    ended: bool,
    /// True if the peer has said anything in TLS.
    heard: bool,
    /// How sending failed after bytes were encrypted: the next write or flush returns it.
    failed: Option<io::Error>,
}

impl<S: fmt::Debug> fmt::Debug for TlsSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSocket").field("below", &self.below).finish_non_exhaustive()
    }
}

/// Speaks until both sides know each other.
pub(super) async fn handshake<S: Socket>(below: S, session: Connection) -> io::Result<TlsSocket<S>> {
    let passed_on = Arc::<PassedOn>::default();
    let of_session = Arc::clone(&passed_on);
    let mut tls = Tls { session, passed_on: of_session, task: None, ended: false, heard: false, failed: None };
    poll_fn(|cx| tls.poll_handshake(&below, cx)).await?;
    Ok(TlsSocket { below, tls: Mutex::new(tls), passed_on })
}

impl<S: Socket> Socket for TlsSocket<S> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut tls = self.tls.lock();
        tls.note_task(cx);
        loop {
            // A failure to send is told to those who send; what the peer said before it can still be read.
            if let Poll::Ready(Err(error)) = tls.poll_send(&self.below, cx) {
                tls.failed.get_or_insert(error);
            }
            match tls.session.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            ready!(tls.poll_receive(&self.below, cx))?;
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut tls = self.tls.lock();
        tls.note_task(cx);
        tls.check_failed()?;
        ready!(tls.poll_send(&self.below, cx))?;
        let len = tls.encrypt(slices)?;
        // From here on some of it may be gone, whatever happens: an error is for the next call.
        if let Poll::Ready(Err(error)) = tls.poll_send(&self.below, cx) {
            tls.failed = Some(error);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(len))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // A caller that finds the task at work leaves the bytes to it instead of waiting.
        let mut tls = self.tls.try_lock().ok_or(io::ErrorKind::WouldBlock)?;
        tls.check_failed()?;
        tls.try_send(&self.below)?;
        let len = tls.encrypt(slices)?;
        // From here on some of it may be gone, whatever happens. The task sends the rest, or finds the error.
        if let Err(error) = tls.try_send(&self.below) {
            if error.kind() != io::ErrorKind::WouldBlock {
                tls.failed = Some(error);
            }
            let task = tls.task.clone();
            drop(tls);
            task.inspect(Waker::wake_by_ref);
        }
        Ok(len)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = self.tls.lock();
        tls.note_task(cx);
        tls.check_failed()?;
        ready!(tls.poll_send(&self.below, cx))?;
        self.below.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = self.tls.lock();
        tls.note_task(cx);
        if !tls.ended {
            tls.ended = true;
            tls.session.send_close_notify();
        }
        ready!(tls.poll_send(&self.below, cx))?;
        ready!(self.below.poll_flush(cx))?;
        self.below.poll_shutdown(cx)
    }

    /// Up to 64 KiB are encrypted at once, and kept until the socket below takes them.
    fn has_unsent(&self) -> bool {
        self.passed_on.has_unsent.load(Ordering::Relaxed) || self.below.has_unsent()
    }

    /// As they travel, encrypted.
    fn sent_bytes(&self) -> Option<u64> {
        self.below.sent_bytes().or_else(|| Some(self.passed_on.sent.load(Ordering::Relaxed)))
    }

    /// That of the socket below, with `tls` for its network.
    fn peer(&self) -> String {
        let peer = self.below.peer();
        let (_, target) = peer.split_once('@').unwrap_or(("", &peer));
        format!("tls@{target}")
    }

    /// They were checked, except by a client that trusts any server.
    fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        let tls = self.tls.lock();
        let chain = tls.session.peer_certificates()?;
        Some(chain.iter().map(|certificate| certificate.to_vec()).collect())
    }
}

#[cfg(feature = "ws")]
impl crate::transport::opening::Peek for TlsSocket<TcpSocket> {
    fn local_ip(&self) -> Option<std::net::IpAddr> {
        self.below.local_ip()
    }

    fn under_ws(ws: crate::transport::ws::WsSocket<Self>) -> AnySocket {
        AnySocket::Wss(Box::new(ws))
    }

    fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut tls = self.tls.lock();
        tls.note_task(cx);
        loop {
            _ = tls.poll_send(&self.below, cx)?;
            match tls.session.reader().fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(here) => {
                    let len = here.len().min(buf.len());
                    buf[..len].copy_from_slice(&here[..len]);
                    return Poll::Ready(Ok(len));
                }
            }
            ready!(tls.poll_receive(&self.below, cx))?;
        }
    }
}

/// True if the peer has shown a certificate with `CA:TRUE` as its own. The verifier has no kind of its own for it.
fn is_of_authority(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(why) if format!("{why:?}").contains("CaUsedAsEndEntity"))
}

impl Tls {
    fn note_task(&mut self, cx: &Context<'_>) {
        match &mut self.task {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.task = Some(cx.waker().clone()),
        }
    }

    /// Ready when both sides are, as far as this one can bring that about: its last words of the handshake
    /// are sent. The tickets for later sessions, which a server of TLS 1.3 sends then, belong to no
    /// handshake and go with the first poll: a client that is ready need not read before it writes.
    fn poll_handshake(&mut self, below: &impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sent = self.poll_send(below, cx)?;
            if !self.session.is_handshaking() && !self.has_only_tickets_to_send() {
                ready!(sent);
                return below.poll_flush(cx);
            }
            // What a socket has taken but not moved may be what the peer waits for.
            _ = below.poll_flush(cx)?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(below, cx))?;
        }
    }

    /// After the handshake: in TLS 1.3 the client has the last word, in TLS 1.2 either side.
    fn has_only_tickets_to_send(&self) -> bool {
        let session = &self.session;
        matches!(session, Connection::Server(_)) && session.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Reads once from below and decrypts. At the end of the stream the session knows that it is there.
    fn poll_receive(&mut self, below: &impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let len = match self.session.read_tls(&mut Below { socket: below, cx: Some(cx) }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            read => read.map_err(|error| self.named(error))?,
        };

        if let Err(error) = self.session.process_new_packets() {
            // The peer is told why, if there is room.
            _ = self.poll_send(below, cx);
            return Poll::Ready(Err(match (&error, self.heard) {
                (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), false) => {
                    io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak TLS, and this side does")
                }
                _ if is_of_authority(&error) => io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the peer's certificate is that of an authority, which signs others: make it with \
                     basicConstraints=critical,CA:FALSE (`openssl req -x509` wants `-addext` for that)",
                ),
                _ => io::Error::new(io::ErrorKind::InvalidData, error),
            }));
        }

        if len == 0 && self.session.is_handshaking() {
            return Poll::Ready(Err(self.named(io::ErrorKind::UnexpectedEof.into())));
        }
        self.heard |= 0 < len;
        Poll::Ready(Ok(()))
    }

    /// An end of the connection, which is all that a server without TLS may have to say to a client with it.
    fn named(&self, error: io::Error) -> io::Error {
        let is_end = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        match &self.session {
            Connection::Client(_) if is_end && !self.heard => io::Error::new(
                error.kind(),
                "the server ended the connection without a word of TLS: it may not speak it at this address",
            ),
            _ => error,
        }
    }

    /// Tells once how sending failed.
    fn check_failed(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Takes bytes, as many as the session has room for.
    fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.session.writer().write_vectored(slices)
    }

    fn poll_send(&mut self, below: &impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send(&mut Below { socket: below, cx: Some(cx) }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            sent => Poll::Ready(sent),
        }
    }

    fn try_send(&mut self, below: &impl Socket) -> io::Result<()> {
        self.send(&mut Below { socket: below, cx: None })
    }

    /// Sends all that is encrypted, or as much as goes before `WouldBlock`.
    fn send(&mut self, below: &mut dyn Write) -> io::Result<()> {
        let mut sent = Ok(());
        while sent.is_ok() && self.session.wants_write() {
            sent = match self.session.write_tls(below) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => {
                    self.passed_on.sent.fetch_add(len as u64, Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        self.passed_on.has_unsent.store(sent.is_err(), Ordering::Relaxed);
        sent
    }
}

/// The socket below as rustls wants it: with a context it is polled, without one it is tried.
struct Below<'a, 'b, S> {
    socket: &'a S,
    cx: Option<&'a mut Context<'b>>,
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<S: Socket> Read for Below<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.cx {
            Some(cx) => or_would_block(self.socket.poll_read(cx, buf)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: Socket> Write for Below<'_, '_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.cx {
            Some(cx) => or_would_block(self.socket.poll_write(cx, slices)),
            None => self.socket.try_write(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{thread, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::transport::{
        AnySocket, check,
        memory::{self, MemorySocket},
        tls::{Authority, TlsClient, TlsServer, config::tests::shake_hands_in},
    };

    pub(crate) type Ends = (TlsSocket<MemorySocket>, TlsSocket<MemorySocket>);

    fn configs() -> (TlsClient, TlsServer) {
        let authority = Authority::new();
        let client = TlsClient::new(&authority.roots()).expect("a client");
        (client, TlsServer::new(authority.identity("localhost")).expect("a server"))
    }

    /// Both ends over a pipe with room for so many bytes.
    pub(crate) async fn pair(buffer_bytes: usize) -> Ends {
        let (client, server) = configs();
        let (client, server) = shake_hands_in(buffer_bytes, &client, &server).await;
        (client.expect("trusts"), server.expect("is trusted"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn bytes_arrive_in_order_both_ways(plans in check::plans(), buffer_bytes in prop_oneof![64..1000_usize, Just(memory::BUFFER_BYTES)]) {
            check::run(async {
                let (client, server) = pair(buffer_bytes).await;
                check::exchange(client, server, plans).await;
            });
        }
    }

    #[tokio::test]
    async fn a_full_socket_blocks_and_wakes_its_task_when_there_is_room() {
        let (client, server) = pair(1000).await;
        check::fill_then_drain(client, server).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (client, server) = pair(1000).await;
        check::half_close(client, server).await;
    }

    /// With certificates on both sides, in either version: neither end waits for the other to read what
    /// belongs to no handshake, and neither stops before the other has what it needs.
    #[tokio::test]
    async fn a_handshake_goes_through_the_smallest_pipe() {
        let authority = Authority::new();
        let server = authority.server_that_requires_certificates();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = authority.client_of_version(version);
            for buffer_bytes in [1, 7, 100, 1000] {
                let ends = shake_hands_in(buffer_bytes, &client, &server);
                let (client, server) = tokio::time::timeout(Duration::from_secs(60), ends).await.expect("goes on");
                let (client, server) = (client.expect("trusts"), server.expect("is trusted"));
                assert_eq!(server.tls.lock().session.protocol_version(), Some(version.version));
                let (written, read) = tokio::join!(check::write_all(&client, b"hello"), check::read(&server, 8));
                written.expect("writes");
                assert_eq!(read.expect("reads"), b"hello");
            }
        }
    }

    /// What a caller wrote and the socket did not take at once is sent by the task, even if all that the
    /// task does is read.
    #[tokio::test]
    async fn the_rest_of_a_callers_write_is_sent_by_the_task_that_reads() {
        let (client, server) = pair(1000).await;
        let client = Arc::new(client);
        let reading = tokio::spawn({
            let client = Arc::clone(&client);
            async move { check::read(&*client, 16).await.expect("reads") }
        });
        tokio::task::yield_now().await;
        let sent = vec![7; 10_000];
        assert_eq!(client.try_write(&[IoSlice::new(&sent)]).expect("takes all"), sent.len());
        let error = client.try_write(&[IoSlice::new(b"more")]).expect_err("the first is not sent yet");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

        let mut received = Vec::new();
        while received.len() < sent.len() {
            received.extend(check::read(&server, 4096).await.expect("reads"));
        }
        assert_eq!(received, sent);
        check::write_all(&server, b"thanks").await.expect("writes");
        assert_eq!(reading.await.expect("no panic"), b"thanks");
    }

    /// A socket that takes so many bytes and then fails, once.
    struct Breaks {
        below: MemorySocket,
        left: Mutex<Option<usize>>,
    }

    impl Breaks {
        fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut left = self.left.lock();
            match &mut *left {
                None => Err(io::ErrorKind::WouldBlock.into()),
                Some(0) => {
                    *left = None;
                    Err(io::ErrorKind::ConnectionReset.into())
                }
                Some(left) => {
                    let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                    let taken = self.below.try_write(&[IoSlice::new(&first[..first.len().min(*left)])])?;
                    *left -= taken;
                    Ok(taken)
                }
            }
        }
    }

    impl Socket for Breaks {
        fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            self.below.poll_read(cx, buf)
        }

        fn poll_write(&self, _: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            Poll::Ready(self.write(slices))
        }

        fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.write(slices)
        }

        fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.below.poll_flush(cx)
        }

        fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.below.poll_shutdown(cx)
        }

        fn peer(&self) -> String {
            self.below.peer()
        }
    }

    /// A client's socket that takes so many bytes more and then fails, once, and what holds the other end.
    pub(crate) async fn half_sent(bytes: usize) -> (AnySocket, impl Sized) {
        let (client, server) = configs();
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        let (near, far) = tokio::join!(client.handshake(near, "localhost"), server.handshake(far));
        let TlsSocket { below, tls, passed_on } = near.expect("trusts");
        let near = TlsSocket { below: Breaks { below, left: Mutex::new(Some(bytes)) }, tls, passed_on };
        (AnySocket::Other(Box::new(near)), far)
    }

    /// Once bytes are encrypted some of them may be gone: they count as written, and the failure comes with the next
    /// call, of whatever kind, once.
    #[tokio::test]
    async fn bytes_that_may_have_left_count_as_written() {
        for (tries, reads, flushes) in
            [(true, false, false), (false, false, false), (true, true, false), (false, false, true)]
        {
            let (client, server) = configs();
            let (near, far) = memory::pair(memory::BUFFER_BYTES);
            let (near, _far) = tokio::join!(client.handshake(near, "localhost"), server.handshake(far));
            let TlsSocket { below, tls, passed_on } = near.expect("trusts");
            let near = TlsSocket { below: Breaks { below, left: Mutex::new(Some(20_000)) }, tls, passed_on };
            let sent = [7; 40_000];
            let slices = [IoSlice::new(&sent)];
            let write = || async {
                match tries {
                    true => near.try_write(&slices),
                    false => poll_fn(|cx| near.poll_write(cx, &slices)).await,
                }
            };
            assert_eq!(write().await.expect("some may have left"), sent.len());
            if reads {
                let mut buf = [0; 16];
                let reading = poll_fn(|cx| Poll::Ready(near.poll_read(cx, &mut buf)));
                assert!(reading.await.is_pending(), "what can be read is read first");
            }
            let error = match flushes {
                true => poll_fn(|cx| near.poll_flush(cx)).await.expect_err("it failed"),
                false => write().await.expect_err("it failed"),
            };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    /// What is encrypted and did not leave is told, and how much has left.
    #[tokio::test]
    async fn what_did_not_leave_is_unsent() {
        let (near, far) = pair(1000).await;
        assert_eq!(near.try_write(&[IoSlice::new(&[7; 10_000])]).expect("it takes all"), 10_000);
        let sent = near.sent_bytes().expect("it counts them");
        assert!(near.has_unsent());

        let flush = || poll_fn(|cx| Poll::Ready(near.poll_flush(cx)));
        assert!(flush().await.is_pending());
        assert_eq!(near.sent_bytes(), Some(sent), "nobody has read");
        let mut read = 0;
        while read < 10_000 {
            // Before a record is all there the other end has nothing to show, and waits.
            let mut buf = [0; 4096];
            let polled = poll_fn(|cx| Poll::Ready(far.poll_read(cx, &mut buf))).await;
            read += if let Poll::Ready(len) = polled { len.expect("reads") } else { 0 };
            _ = flush().await;
        }
        assert!(flush().await.is_ready() && !near.has_unsent());
        assert!(near.sent_bytes().is_some_and(|now| sent + 9_000 <= now));
    }

    /// A caller on another thread writes while the task reads.
    #[tokio::test]
    async fn any_thread_may_write() {
        let (client, server) = pair(memory::BUFFER_BYTES).await;
        let client = Arc::new(client);
        let writer = thread::spawn({
            let client = Arc::clone(&client);
            move || {
                for n in 0..2000_u32 {
                    while client.try_write(&[IoSlice::new(&n.to_be_bytes())]).is_err() {
                        thread::yield_now();
                    }
                }
            }
        });
        let task = tokio::spawn(async move {
            assert_eq!(check::read(&*client, 16).await.expect("reads"), b"enough");
            check::write_all(&*client, b"").await.expect("flushes");
        });
        let mut received = Vec::new();
        while received.len() < 8000 {
            received.extend(check::read(&server, 4096).await.expect("reads"));
        }
        check::write_all(&server, b"enough").await.expect("writes");
        writer.join().expect("no panic");
        task.await.expect("no panic");
        let numbers = received.chunks_exact(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
        assert!(numbers.eq(0..2000));
    }

    #[tokio::test]
    async fn an_end_without_a_sign_is_an_error() {
        let (client, server) = pair(memory::BUFFER_BYTES).await;
        drop(client);
        assert_eq!(check::read(&server, 1).await.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn an_end_within_the_handshake_is_an_error() {
        let (client, server) = configs();
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        drop(far);
        assert!(client.handshake(near, "localhost").await.is_err());
        // As Go's plain server does when it reads what it does not understand.
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        poll_fn(|cx| far.poll_shutdown(cx)).await.expect("shuts down");
        let error = client.handshake(near, "localhost").await.expect_err("no TLS");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("without a word of TLS"), "{error}");
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        drop(near);
        assert_eq!(server.handshake(far).await.expect_err("nobody").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_peer_that_speaks_no_tls_is_an_error() {
        let (client, server) = configs();
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        check::write_all(&near, &[8; 32]).await.expect("writes");
        let at_server = server.handshake(far).await.expect_err("no TLS");
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        check::write_all(&far, b"HTTP/1.0 400 ").await.expect("writes");
        let at_client = client.handshake(near, "localhost").await.expect_err("no TLS");
        for error in [at_server, at_client] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(error.to_string(), "the peer does not speak TLS, and this side does");
        }
    }

    #[tokio::test]
    async fn the_peer_is_shown_with_tls() {
        let (client, server) = pair(memory::BUFFER_BYTES).await;
        assert_eq!(client.peer(), "tls@pair");
        assert!(server.peer().starts_with("tls@pair#"), "{}", server.peer());
    }
}
