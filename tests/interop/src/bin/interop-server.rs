//! The Rust server of the interop tests: the services of the contract, one line when it serves.
//!
//! ```text
//! interop-server [--addr tcp@127.0.0.1:0] [--auth TOKEN] [--first-frame MILLIS] [--idle MILLIS] [--write MILLIS]
//!                [--heartbeat MILLIS] [--cancel-on-disconnect] [--default-limits]
//!                [--one-port] [--plain-beside-tls] [-tls-cert FILE -tls-key FILE [-tls-client-ca FILE]]
//! ```
//!
//! Each line `stats` on its input is answered with one line of JSON. It ends with its input, so that it
//! never outlives the test that started it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use bothways::{
    Heartbeat, Limits, Server, Timeouts,
    transport::{
        ListenOptions,
        tls::{TlsIdentity, TlsRoots, TlsServer},
    },
};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Default)]
struct Seen {
    open: HashSet<u64>,
    connected: u64,
    disconnected: u64,
    out_of_order: u64,
    ended: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Stats {
    tasks: usize,
    connections: usize,
    calls_running: usize,
    accepted: u64,
    refused: u64,
    connected: u64,
    disconnected: u64,
    out_of_order: u64,
    ended: BTreeMap<String, u64>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let mut address = "tcp@127.0.0.1:0".to_owned();
    let (mut token, mut first_frame, mut idle, mut write, mut heartbeat) = (None, None, None, None, None);
    let (mut cancel, mut default_limits) = (false, false);
    let mut listen = ListenOptions::default();
    let (mut certificate, mut key, mut client_authority) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
        let millis = |text: String| anyhow::Ok(Some(Duration::from_millis(text.parse()?)));
        match argument.as_str() {
            "--addr" => address = value()?,
            "--auth" => token = Some(value()?),
            "--first-frame" => first_frame = millis(value()?)?,
            "--idle" => idle = millis(value()?)?,
            "--write" => write = millis(value()?)?,
            "--heartbeat" => heartbeat = millis(value()?)?,
            "--cancel-on-disconnect" => cancel = true,
            "--default-limits" => default_limits = true,
            "--one-port" => listen = listen.one_port(true),
            "--plain-beside-tls" => listen = listen.plain_beside_tls(true),
            "-tls-cert" => certificate = Some(value()?),
            "-tls-key" => key = Some(value()?),
            "-tls-client-ca" => client_authority = Some(value()?),
            other => bail!("{other}?"),
        }
    }

    let seen = Arc::<Mutex<Seen>>::default();
    let (on_connect, on_disconnect) = (Arc::clone(&seen), Arc::clone(&seen));
    let mut builder = bothways_interop::contract::server(token)
        .timeouts(Timeouts::new().idle(idle))
        .cancel_on_disconnect(cancel)
        .on_connect(move |connection| {
            let mut seen = on_connect.lock().expect("nobody panics with it");
            seen.connected += 1;
            if !seen.open.insert(connection.id().get()) {
                seen.out_of_order += 1;
            }
        })
        .on_disconnect(move |connection, reason| {
            let mut seen = on_disconnect.lock().expect("nobody panics with it");
            seen.disconnected += 1;
            if !seen.open.remove(&connection.id().get()) {
                seen.out_of_order += 1;
            }
            let name: String = format!("{reason:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
            *seen.ended.entry(name).or_default() += 1;
        });
    if default_limits {
        builder = builder.limits(Limits::default());
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        let identity = TlsIdentity::from_pem_files(certificate, key)?;
        let tls = match client_authority {
            Some(file) => TlsServer::with_required_client_certificates(identity, &TlsRoots::from_pem_file(file)?)?,
            None => TlsServer::new(identity)?,
        };
        listen = listen.tls(tls);
    }
    builder = builder.listen_options(listen);
    let mut timeouts = Timeouts::new();
    if let Some(limit) = first_frame {
        timeouts = timeouts.first_frame(limit);
    }
    if let Some(limit) = write {
        timeouts = timeouts.write(limit);
    }
    builder = builder.timeouts(timeouts);
    if let Some(limit) = heartbeat {
        builder = builder.heartbeat(Heartbeat::every(limit).timeout(limit));
    }
    let server = builder.build();
    let listening = server.listen(&address).await?;
    println!("LISTENING {}", listening.address());

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.as_str() {
            "stats" => println!("{}", serde_json::to_string(&stats(&server, &seen))?),
            other => bail!("{other}?"),
        }
    }
    Ok(())
}

fn stats(server: &Server, seen: &Mutex<Seen>) -> Stats {
    let of_server = server.stats();
    let seen = seen.lock().expect("nobody panics with it");
    Stats {
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        connections: of_server.connections,
        calls_running: of_server.calls_running,
        accepted: of_server.connections_accepted,
        refused: of_server.connections_refused,
        connected: seen.connected,
        disconnected: seen.disconnected,
        out_of_order: seen.out_of_order,
        ended: seen.ended.clone(),
    }
}
