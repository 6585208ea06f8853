//! A peer that says exactly these bytes and sees exactly those, at either end of a connection.
//!
//! It is written with the frames of the protocol crate only: no client, no server, no engine.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    time::Duration,
};

use bothways::{
    Metadata, SerializeType,
    transport::{AnySocket, ConnectOptions, ListenOptions, Listener, Socket, connect},
};
use bothways_proto::{Capabilities, Deframer, Header, Hello, Limits, Message, Seq, Welcome, keys};

use crate::support::address;

/// Far beyond every deadline in these tests: who waits so long waits for ever.
const FOR_EVER: Duration = Duration::from_secs(600);

/// One end of a connection, led by the test.
pub(crate) struct Scripted {
    socket: AnySocket,
    deframer: Deframer,
    waiting: VecDeque<Message>,
}

impl Scripted {
    /// A client that has connected and said nothing yet.
    pub(crate) async fn connect(address: &str) -> Self {
        let address = address.parse().expect("an address");
        Self::over(connect(&address, &ConnectOptions::default()).await.expect("somebody listens"))
    }

    /// A Bothways client with all capabilities, already welcomed.
    pub(crate) async fn connect_negotiated(address: &str) -> Self {
        let mut client = Self::connect(address).await;
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        let answer = client.next().await;
        assert!(Welcome::from_metadata(&answer.metadata()).is_some(), "{answer:?}");
        client
    }

    pub(crate) fn over(socket: impl Into<AnySocket>) -> Self {
        Self { socket: socket.into(), deframer: Deframer::new(), waiting: VecDeque::new() }
    }

    /// Sends these bytes, all of them.
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_say(bytes).await.expect("the other end is there");
    }

    pub(crate) async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut bytes = bytes.as_ref();
        while !bytes.is_empty() {
            let written = poll_fn(|cx| self.socket.poll_write(cx, &[IoSlice::new(bytes)])).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Ends the own direction; the other one stays.
    pub(crate) async fn end(&self) {
        poll_fn(|cx| self.socket.poll_shutdown(cx)).await.expect("memory does not fail");
    }

    /// Breaks the connection as a network does.
    pub(crate) fn reset(&self) {
        match &self.socket {
            AnySocket::Memory(socket) => socket.reset(),
            other => panic!("{other:?} is not in memory"),
        }
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn try_next(&mut self) -> Option<Message> {
        let limits = Limits::default().body_bytes_max(64 << 20);
        let mut buffer = vec![0; 16 << 10];
        while self.waiting.is_empty() {
            let read = poll_fn(|cx| self.socket.poll_read(cx, &mut buffer));
            let read = tokio::time::timeout(FOR_EVER, read).await.expect("nothing came");
            let Ok(len @ 1..) = read else { return None };
            self.deframer.feed(&buffer[..len], &limits);
            while let Some(message) = self.deframer.next_message(&limits).expect("the engine sends frames") {
                self.waiting.push_back(message);
            }
        }
        self.waiting.pop_front()
    }

    /// What comes up to the end of the connection, frames or not.
    pub(crate) async fn bytes_to_the_end(&mut self) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            let read = poll_fn(|cx| self.socket.poll_read(cx, &mut buffer));
            match tokio::time::timeout(FOR_EVER, read).await.expect("nothing came") {
                Ok(len @ 1..) => all.extend_from_slice(&buffer[..len]),
                _ => return all,
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Message {
        self.try_next().await.expect("the connection lives")
    }

    /// The next frame is this one, byte by byte.
    pub(crate) async fn hears(&mut self, frame: impl AsRef<[u8]>) {
        let message = self.next().await;
        assert_eq!(message.frame()[..], *frame.as_ref(), "{message:?}");
    }

    /// The other end says nothing, and goes on.
    pub(crate) async fn hears_nothing(&mut self) {
        match tokio::time::timeout(Duration::from_millis(100), self.try_next()).await {
            Err(_) => {}
            Ok(Some(message)) => panic!("unexpected: {message:?}"),
            Ok(None) => panic!("the connection ended"),
        }
    }

    /// The next thing is the end of the connection.
    pub(crate) async fn hears_the_end(&mut self) {
        if let Some(message) = self.try_next().await {
            panic!("unexpected: {message:?}");
        }
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_next().await {
            messages.push(message);
        }
        messages
    }
}

/// A server that the test leads.
pub(crate) struct ScriptedServer {
    listener: Listener,
    pub(crate) address: String,
}

impl ScriptedServer {
    pub(crate) async fn listen() -> Self {
        Self::listen_on(&address()).await
    }

    pub(crate) async fn listen_on(address: &str) -> Self {
        let parsed = address.parse().expect("an address");
        let listener = Listener::bind(&parsed, &ListenOptions::default()).await.expect("the name is free");
        Self { listener, address: address.to_owned() }
    }

    /// A client as it comes.
    pub(crate) async fn accept(&self) -> Scripted {
        let accepted = tokio::time::timeout(FOR_EVER, self.listener.accept()).await.expect("nobody came");
        Scripted::over(accepted.handshake(FOR_EVER).await.expect("memory has no handshake"))
    }

    /// A client whose Hello is echoed, as a Go server does.
    pub(crate) async fn accept_plain(&self) -> Scripted {
        let mut client = self.accept().await;
        let hello = client.next().await;
        client.say(hello.pong()).await;
        client
    }

    /// A client whose Hello is welcomed with all capabilities.
    pub(crate) async fn accept_negotiated(&self) -> Scripted {
        let mut client = self.accept().await;
        let message = client.next().await;
        let mut metadata = message.metadata();
        let hello = Hello::from_metadata(&metadata).expect("a Hello comes first");
        Welcome::answer(&hello, Capabilities::ALL.without(Capabilities::LAST)).put(&mut metadata);
        client.say(Message::new(message.header().reply(), "", "", &metadata, &[]).frame()).await;
        client
    }

    /// A client that is welcomed with all capabilities and these pairs.
    pub(crate) async fn accept_with(&self, pairs: Metadata) -> Scripted {
        let mut client = self.accept().await;
        let hello = client.next().await;
        client.say(welcome(&hello, pairs)).await;
        client
    }
}

/// A request of service `T` that wants a reply.
pub(crate) fn request(seq: u64, method: &str, payload: &[u8]) -> Vec<u8> {
    request_with(seq, method, &Metadata::new(), payload)
}

pub(crate) fn request_with(seq: u64, method: &str, metadata: &Metadata, payload: &[u8]) -> Vec<u8> {
    let header = Header::request(Seq::new(seq), SerializeType::RAW);
    Message::new(header, "T", method, metadata, payload).frame().to_vec()
}

/// A request of service `T` that wants none.
pub(crate) fn oneway(seq: u64, method: &str, payload: &[u8]) -> Vec<u8> {
    let header = Header::oneway(Seq::new(seq), SerializeType::RAW);
    Message::new(header, "T", method, &Metadata::new(), payload).frame().to_vec()
}

/// The reply to a request of service `T`.
pub(crate) fn reply(seq: u64, method: &str, payload: &[u8]) -> Vec<u8> {
    let header = Header::request(Seq::new(seq), SerializeType::RAW).reply();
    Message::new(header, "T", method, &Metadata::new(), payload).frame().to_vec()
}

/// A successful reply to this very request.
pub(crate) fn reply_to(request: &Message, payload: &[u8]) -> Vec<u8> {
    let (path, method) = (request.service_path(), request.service_method());
    Message::new(request.header().reply(), path, method, &Metadata::new(), payload).frame().to_vec()
}

/// A failed reply to this very request.
pub(crate) fn error_to(request: &Message, text: &str) -> Vec<u8> {
    Message::error_reply(request.header(), request.service_path(), request.service_method(), text).frame().to_vec()
}

pub(crate) fn hello(seq: u64, capabilities: Capabilities, more: &Metadata) -> Vec<u8> {
    let mut metadata = more.clone();
    // It says no Last, and hears no Taken: that is for tests of these.
    let capabilities = capabilities.without(Capabilities::LAST);
    Hello { version: bothways_proto::VERSION, capabilities }.put(&mut metadata);
    Message::ping(Seq::new(seq), &metadata, &[]).frame().to_vec()
}

/// The Welcome to this Hello, with all capabilities and these pairs.
pub(crate) fn welcome(hello: &Message, mut pairs: Metadata) -> Vec<u8> {
    let said = Hello::from_metadata(&hello.metadata()).expect("a Hello comes first");
    Welcome::answer(&said, Capabilities::ALL.without(Capabilities::LAST)).put(&mut pairs);
    Message::new(hello.header().reply(), "", "", &pairs, &[]).frame().to_vec()
}

/// The pairs of a Welcome to a session of this name, in which nothing was sent yet.
pub(crate) fn session_pairs(id: &str) -> Metadata {
    Metadata::new().with(keys::SESSION_ID, id).with(keys::SESSION_KEY, "k").with(keys::SESSION_OFFSET, "0")
}

/// A client that says Hello with these pairs, and the pairs of its Welcome.
pub(crate) async fn arrive(address: &str, pairs: &Metadata) -> (Scripted, Metadata) {
    let mut client = Scripted::connect(address).await;
    client.say(hello(0, Capabilities::ALL, pairs)).await;
    let welcome = client.next().await.metadata();
    assert!(Welcome::from_metadata(&welcome).is_some(), "{welcome:?}");
    (client, welcome)
}

/// What a client says that comes back, and has handled this much.
pub(crate) fn claim(welcome: &Metadata, handled: u64) -> Metadata {
    [keys::SESSION_ID, keys::SESSION_KEY]
        .iter()
        .fold(Metadata::new(), |pairs, key| pairs.with(key, welcome.get(key).expect("it is in each Welcome")))
        .with(keys::SESSION_OFFSET, handled.to_string())
}

pub(crate) fn ping(seq: u64) -> Vec<u8> {
    Message::ping(Seq::new(seq), &Metadata::new(), b"\xd3\0\0\0\0\0\0\0\x05").frame().to_vec()
}

/// A control message: `Cancel` or `Goodbye`.
pub(crate) fn control(seq: u64, method: &str, key: &str, value: &str) -> Vec<u8> {
    let header = Header::oneway(Seq::new(seq), SerializeType::RAW);
    Message::new(header, keys::CONTROL_PATH, method, &Metadata::new().with(key, value), &[]).frame().to_vec()
}

/// Whether a message is a control message of this method.
pub(crate) fn is_control(message: &Message, method: &str) -> bool {
    message.header().is_oneway() && message.service_path() == keys::CONTROL_PATH && message.service_method() == method
}
