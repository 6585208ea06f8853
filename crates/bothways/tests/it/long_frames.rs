//! Frames that take longer than every heartbeat: bytes that move are life.

use std::{future::poll_fn, io::IoSlice, sync::Arc, time::Duration};

use bothways::{
    Client, ClientOptions, Heartbeat, Limits, Reconnect, ServerBuilder,
    raw::{self, PushFrame},
    transport::{AnySocket, ConnectOptions, ListenOptions, Listener, Socket, connect},
};
use bothways_proto::{Capabilities, Metadata};

use crate::{
    scripted::{Scripted, ScriptedServer, hello, request},
    support::{address, call, connections, echoing, settle, soon, until},
};

const SECOND: Duration = Duration::from_secs(1);

/// Carries bytes, so many a second in each direction, and holds `held` of them: what the buffers of a network do.
async fn carry(from: Arc<AnySocket>, to: Arc<AnySocket>, rate: usize, held: usize) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<u8>>((held / (16 << 10)).max(1));
    let reading = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = poll_fn(|cx| from.poll_read(cx, &mut buffer)).await {
            if sender.send(buffer[..read].to_vec()).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some(bytes) = receiver.recv().await {
            tokio::time::sleep(SECOND * bytes.len() as u32 / rate as u32).await;
            let mut left = &bytes[..];
            while !left.is_empty() {
                let Ok(written) = poll_fn(|cx| to.poll_write(cx, &[IoSlice::new(left)])).await else { return };
                left = &left[written..];
            }
        }
        let _ = poll_fn(|cx| to.poll_shutdown(cx)).await;
    };
    tokio::join!(reading, writing);
}

/// The address of a line to this server over which so many bytes pass in a second.
async fn line_to(server: &str, rate: usize, held: usize) -> String {
    let (own, server) = (address(), server.parse().expect("an address"));
    let listener = Listener::bind(&own.parse().expect("an address"), &ListenOptions::default()).await;
    let listener = listener.expect("the name is free");
    tokio::spawn(async move {
        loop {
            let near = listener.accept().await.handshake(SECOND).await.expect("memory has no handshake");
            let far = connect(&server, &ConnectOptions::default()).await.expect("it listens");
            let (near, far) = (Arc::new(near), Arc::new(far));
            tokio::spawn(carry(Arc::clone(&near), Arc::clone(&far), rate, held));
            tokio::spawn(carry(far, near, rate, held));
        }
    });
    own
}

/// A call and its echo over a slow line, each of which takes longer than heartbeat and timeout together.
async fn passes(builder: ServerBuilder, options: ClientOptions, bytes: usize, rate: usize, held: usize) {
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let line = line_to(listening.address(), rate, held).await;
    let client = Client::connect(&line, options.reconnect(Reconnect::Never)).await.expect("it listens");
    call(&client, "Echo", "small").await.expect("answered");
    let reply = call(&client, "Echo", vec![7; bytes]).await.expect("it passes");
    assert_eq!(reply.len(), bytes);
}

/// With all defaults 7 MiB pass at 200 KiB/s, though that takes longer than any heartbeat.
#[tokio::test(start_paused = true)]
async fn a_long_frame_passes_with_all_defaults() {
    for negotiate in [true, false] {
        passes(echoing(), ClientOptions::new().negotiate(negotiate), 7 << 20, 200 << 10, 64 << 10).await;
    }
}

/// With short heartbeats at both ends a long frame passes as well, also when most of it is in buffers between the ends
/// and neither of them sees it move.
#[tokio::test(start_paused = true)]
async fn a_long_frame_passes_with_short_heartbeats() {
    let half = Duration::from_millis(500);
    for negotiate in [true, false] {
        for held in [64 << 10, 4 << 20] {
            let options = ClientOptions::new().heartbeat(Heartbeat::every(half).timeout(half)).negotiate(negotiate);
            passes(echoing().heartbeat(Heartbeat::every(half).timeout(half)), options, 5 << 20, 1 << 20, held).await;
        }
    }
}

/// The first frame of a plain client may be a long one: it has begun in its time, and goes on.
#[tokio::test(start_paused = true)]
async fn a_long_first_frame_passes() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let line = line_to(listening.address(), 200 << 10, 64 << 10).await;
    let options = ClientOptions::new().negotiate(false).reconnect(Reconnect::Never);
    let client = Client::connect(&line, options).await.expect("it listens");
    let reply = call(&client, "Echo", vec![7; 7 << 20]).await.expect("it passes");
    assert_eq!(reply.len(), 7 << 20);
}

/// A server shows the client that sends it a long frame that it lives: one that counts only what it reads would
/// otherwise give it up.
#[tokio::test(start_paused = true)]
async fn a_server_that_receives_a_long_frame_shows_that_it_lives() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let frame = request(1, "Echo", &[7; 500_000]);
    for piece in frame.chunks(5000) {
        client.say(piece).await;
        tokio::time::sleep(SECOND / 2).await;
    }
    let heard = client.next().await;
    assert!(heard.header().is_heartbeat(), "{heard:?}");
    let heartbeats = 1 + soon(async {
        let mut heartbeats = 0;
        while client.next().await.header().is_heartbeat() {
            heartbeats += 1;
        }
        heartbeats
    })
    .await;
    // A hundred pieces in 50 s, and one each 15 s.
    assert!((2..=4).contains(&heartbeats), "{heartbeats}");
}

/// A plain client would take a heartbeat for a reply: it gets none.
#[tokio::test(start_paused = true)]
async fn a_plain_client_that_sends_a_long_frame_hears_nothing_meanwhile() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Echo", b"")).await;
    client.next().await;
    for piece in request(2, "Echo", &[7; 500_000]).chunks(5000) {
        client.say(piece).await;
        tokio::time::sleep(SECOND / 2).await;
    }
    assert_eq!(client.next().await.wire_payload().len(), 500_000);
}

/// A client shows the server that sends it a long frame that it lives.
#[tokio::test(start_paused = true)]
async fn a_client_that_receives_a_long_frame_shows_that_it_lives() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().reconnect(Reconnect::Never);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
    let client = client.expect("it listens");
    let calling = tokio::spawn(async move { call(&client, "Large", "").await });
    let asked = peer.next().await;
    for piece in crate::scripted::reply_to(&asked, &[7; 500_000]).chunks(5000) {
        peer.say(piece).await;
        tokio::time::sleep(SECOND / 2).await;
    }
    assert_eq!(calling.await.expect("no panic").expect("answered").len(), 500_000);
    let heard = peer.next().await;
    assert!(heard.header().is_heartbeat(), "{heard:?}");
}

/// A peer that is gone is found by the heartbeat though pushes to it go on: what a system's buffer takes is no life.
#[tokio::test(start_paused = true)]
async fn pushes_into_a_buffer_do_not_keep_a_dead_peer() {
    let server = echoing().heartbeat(Heartbeat::every(SECOND).timeout(SECOND)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let frame = PushFrame::new("T", "x", &Metadata::new(), &[0; 100], &Limits::default()).expect("small");
    for is_queued in [false, true] {
        let mut dead = Scripted::connect(listening.address()).await;
        dead.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        dead.next().await;
        let connection = connections(&server, 1).await.remove(0);
        let began = tokio::time::Instant::now();
        while !connection.is_closed() && began.elapsed() < 60 * SECOND {
            // What is queued is there at each look of the watch, and written behind it.
            let _ = match is_queued {
                false => connection.send_message("T", "x", &Metadata::new(), vec![0; 100]).map(|_| ()),
                true => raw::queue(&connection, &frame),
            };
            tokio::time::sleep(SECOND / 4).await;
        }
        assert!(began.elapsed() < 4 * SECOND, "{is_queued} {:?}", began.elapsed());
        drop((dead, connection));
        settle().await;
        until(|| server.stats().connections == 0).await;
    }
}
