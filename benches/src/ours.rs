//! Our own clients as [`Peer`]s, for the questions where client and server are of one kind.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use bothways::{
    Client, ClientOptions, FailMode, MultipleServersDiscovery, SelectMode, XClient, XClientOptions, codec::Raw,
};

use crate::{
    contract,
    pair::{Peer, check_raw, raw_payload},
    record::Record,
};

/// One connection of ours.
pub struct OurClient(Client);

impl Peer for OurClient {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        Ok(Self(Client::connect(address, ClientOptions::new()).await?))
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = Raw::from(raw_payload(number, len));
        let got: Raw = self.0.call(contract::SERVICE, contract::ECHO, &sent).await?;
        check_raw(&sent, &got)
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::sample(number);
        let got = self.0.call(contract::SERVICE, contract::RECORD, &sent).await?;
        sent.check(&got)
    }
}

/// Ten connections of ours to one server; each call goes over the next one.
pub struct OurTurns {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl OurTurns {
    fn next(&self) -> &Client {
        &self.clients[self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len()]
    }
}

impl Peer for OurTurns {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(Client::connect(address, ClientOptions::new()).await?);
        }
        Ok(Self { clients, next: AtomicUsize::new(0) })
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = Raw::from(raw_payload(number, len));
        let got: Raw = self.next().call(contract::SERVICE, contract::ECHO, &sent).await?;
        check_raw(&sent, &got)
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::sample(number);
        let got = self.next().call(contract::SERVICE, contract::RECORD, &sent).await?;
        sent.check(&got)
    }
}

/// One client of ten servers, each with a connection. Each address of the loopback counts as a server.
pub struct OurXClient(XClient);

impl Peer for OurXClient {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let (_, port) = address.rsplit_once(':').context("an address has a port")?;
        let servers = MultipleServersDiscovery::new((1..=10).map(|host| format!("tcp@127.0.0.{host}:{port}")));
        let options = XClientOptions::new().eager(true);
        Ok(Self(XClient::new(contract::SERVICE, FailMode::Failover, SelectMode::RoundRobin, servers, options)))
    }

    async fn call_raw(&self, number: u64, len: usize) -> anyhow::Result<()> {
        let sent = Raw::from(raw_payload(number, len));
        let got: Raw = self.0.call(contract::ECHO, &sent).await?;
        check_raw(&sent, &got)
    }

    async fn call_record(&self, number: u64) -> anyhow::Result<()> {
        let sent = Record::sample(number);
        let got = self.0.call(contract::RECORD, &sent).await?;
        sent.check(&got)
    }
}
