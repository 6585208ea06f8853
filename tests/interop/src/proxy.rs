//! Stands between a client and a server, and remembers every frame.

use std::{
    io,
    sync::{Arc, Mutex},
};

use bothways_proto::{Deframer, Message};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::wire::unlimited;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the client.
    ToServer,
    /// From the server.
    ToClient,
}

/// A recording proxy.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    frames: Frames,
    accepting: tokio::task::JoinHandle<()>,
}

type Frames = Arc<Mutex<Vec<(Way, Message)>>>;

impl Proxy {
    /// Listens, and leads every connection to the server at `HOST:PORT`.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = format!("tcp@{}", listener.local_addr().expect("it is bound"));
        let frames = Frames::default();
        let (server, record) = (server.to_owned(), Arc::clone(&frames));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, record) = (server.clone(), Arc::clone(&record));
                tokio::spawn(async move { join(client, &server, &record).await });
            }
        });
        Self { address, frames, accepting }
    }

    /// Where to connect to, in rpcx's form.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The frames that went this way so far, heartbeats left out.
    pub fn messages(&self, way: Way) -> Vec<Message> {
        self.all(way).into_iter().filter(|message| !message.header().is_heartbeat()).collect()
    }

    /// All frames that went this way so far.
    pub fn all(&self, way: Way) -> Vec<Message> {
        let frames = self.frames.lock().expect("nobody panics with it");
        frames.iter().filter(|(went, _)| *went == way).map(|(_, message)| message.clone()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn join(client: TcpStream, server: &str, frames: &Frames) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    let (mut client_in, mut client_out) = client.into_split();
    let (mut server_in, mut server_out) = server.into_split();
    tokio::select! {
        end = copy(&mut client_in, &mut server_out, Way::ToServer, frames) => end,
        end = copy(&mut server_in, &mut client_out, Way::ToClient, frames) => end,
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    way: Way,
    frames: &Frames,
) -> io::Result<()> {
    let limits = unlimited();
    let (mut deframer, mut buffer) = (Deframer::new(), vec![0; 64 << 10]);
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        deframer.feed(&buffer[..n], &limits);
        while let Ok(Some(message)) = deframer.next_message(&limits) {
            frames.lock().expect("nobody panics with it").push((way, message));
        }
        to.write_all(&buffer[..n]).await?;
    }
}
