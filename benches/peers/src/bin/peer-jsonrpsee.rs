//! jsonrpsee: JSON-RPC over WebSocket. It has no bytes: a raw payload is a text.

use bothways_bench_peers::host_port;
use bothways_benches::pair::{Peer, Record, ServeArgs, check_raw, raw_payload, say_listening};
use jsonrpsee::{
    RpcModule,
    core::client::ClientT,
    rpc_params,
    server::Server,
    ws_client::{WsClient, WsClientBuilder},
};

struct JsonrpseePeer(WsClient);

impl Peer for JsonrpseePeer {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        Ok(Self(WsClientBuilder::default().build(format!("ws://{}", host_port(address))).await?))
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = String::from_utf8(raw_payload(number, len))?;
        let got: String = self.0.request("echo", rpc_params![&sent]).await?;
        check_raw(sent.as_bytes(), got.as_bytes())
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::sample(number);
        sent.check(&self.0.request("record", rpc_params![&sent]).await?)
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let server = Server::builder().build(args.host_port()).await?;
    say_listening(format!("tcp@{}", server.local_addr()?))?;
    let mut module = RpcModule::new(());
    module.register_method("echo", |params, (), _| params.one::<String>())?;
    module.register_method("record", |params, (), _| params.one::<Record>())?;
    server.start(module).stopped().await;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    bothways_bench_peers::main::<JsonrpseePeer, _>(serve)
}
