//! tarpc: bincode over TCP.

use bothways_bench_peers::host_port;
use bothways_benches::pair::{Peer, Record, ServeArgs, check_raw, raw_payload, say_listening};
use futures_util::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::{
    client,
    context::{self, Context},
    serde_transport,
    server::{BaseChannel, Channel},
    tokio_serde::formats::Bincode,
    tokio_util::codec::{Decoder, LengthDelimitedCodec},
};
use tokio::net::{TcpListener, TcpStream};

#[tarpc::service]
trait Bench {
    async fn echo(payload: ByteBuf) -> ByteBuf;
    async fn record(record: Record) -> Record;
}

#[derive(Clone)]
struct Echo;

impl Bench for Echo {
    async fn echo(self, _: Context, payload: ByteBuf) -> ByteBuf {
        payload
    }

    async fn record(self, _: Context, record: Record) -> Record {
        record
    }
}

struct TarpcPeer(BenchClient);

impl Peer for TarpcPeer {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(host_port(address)).await?;
        // tarpc's own `connect` leaves Nagle's algorithm on, and would wait for acknowledgements.
        stream.set_nodelay(true)?;
        let transport = serde_transport::new(LengthDelimitedCodec::new().framed(stream), Bincode::default());
        Ok(Self(BenchClient::new(client::Config::default(), transport).spawn()))
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = ByteBuf::from(raw_payload(number, len));
        let got = self.0.echo(context::current(), sent.clone()).await?;
        check_raw(&sent, &got)
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::sample(number);
        sent.check(&self.0.record(context::current(), sent.clone()).await?)
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.host_port()).await?;
    say_listening(format!("tcp@{}", listener.local_addr()?))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let transport = serde_transport::new(LengthDelimitedCodec::new().framed(stream), Bincode::default());
        let channel = BaseChannel::with_defaults(transport);
        tokio::spawn(channel.execute(Echo.serve()).for_each(|answer| async {
            tokio::spawn(answer);
        }));
    }
}

fn main() -> anyhow::Result<()> {
    bothways_bench_peers::main::<TarpcPeer, _>(serve)
}
