//! Our own client as a [`Peer`], for the questions where client and server are of one kind.

use bothways::{Client, ClientOptions, codec::Raw};

use crate::{
    contract,
    pair::{Peer, Record, check_raw, raw_payload},
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
