//! tonic: gRPC over HTTP/2, Protocol Buffers.

use anyhow::ensure;
use bothways_bench_peers::host_port;
use bothways_benches::pair::{self, Peer, ServeArgs, check_raw, raw_payload, say_listening};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server, server::TcpIncoming},
};

use crate::generated::{bench_client::BenchClient, bench_server::BenchServer};

mod generated {
    include!(concat!(env!("OUT_DIR"), "/bench.Bench.rs"));
}

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

/// The fields of [`pair::Record`].
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(string, repeated, tag = "4")]
    tags: Vec<String>,
    #[prost(sint64, repeated, tag = "5")]
    scores: Vec<i64>,
    #[prost(double, tag = "6")]
    balance: f64,
    #[prost(bool, tag = "7")]
    active: bool,
    #[prost(string, tag = "8")]
    notes: String,
}

impl From<pair::Record> for Record {
    fn from(record: pair::Record) -> Self {
        let pair::Record { id, name, address, tags, scores, balance, active, notes } = record;
        Self { id, name, address, tags, scores, balance, active, notes }
    }
}

struct Echo;

#[tonic::async_trait]
impl generated::bench_server::Bench for Echo {
    async fn echo(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn record(&self, request: Request<Record>) -> Result<Response<Record>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

struct TonicPeer(BenchClient<Channel>);

impl Peer for TonicPeer {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        Ok(Self(BenchClient::connect(format!("http://{}", host_port(address))).await?))
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = raw_payload(number, len);
        let got = self.0.clone().echo(Payload { bytes: sent.clone() }).await?.into_inner();
        check_raw(&sent, &got.bytes)
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::from(pair::Record::sample(number));
        let got = self.0.clone().record(sent.clone()).await?.into_inner();
        ensure!(got == sent, "a reply with another record than its call");
        Ok(())
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.host_port()).await?;
    say_listening(format!("tcp@{}", listener.local_addr()?))?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(Server::builder().add_service(BenchServer::new(Echo)).serve_with_incoming(incoming).await?)
}

fn main() -> anyhow::Result<()> {
    bothways_bench_peers::main::<TonicPeer, _>(serve)
}
