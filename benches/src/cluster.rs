//! A server of a benchmark as a node of a cluster over NATS.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bothways::{Server, cluster::Cluster};
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use clap::Args;
use tokio::time::sleep;

/// What takes longer than this has failed.
const MOST: Duration = Duration::from_secs(60);

/// How often the broker is asked what it has.
const LOOK: Duration = Duration::from_millis(5);

/// Which cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// The broker of the cluster to join: nats://HOST:PORT. Default: none.
    #[arg(long)]
    cluster: Option<String>,
    /// Other nodes that must be there when it has joined.
    #[arg(long, default_value_t = 0)]
    others: usize,
}

impl ClusterArgs {
    /// The broker.
    pub fn broker(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// Joins the cluster, if there is to be one.
    ///
    /// # Errors
    /// The broker or another node is not there.
    pub async fn join(&self, server: &Server) -> anyhow::Result<()> {
        let Some(broker) = &self.cluster else { return Ok(()) };
        let engine = NatsEngine::connect(NatsOptions::new([broker])).await?;
        server.join(Cluster::new(engine)).await?;
        let begin = Instant::now();
        while server.nodes().is_none_or(|(_, others)| others.len() < self.others) {
            ensure!(begin.elapsed() < MOST, "fewer than {} other nodes after {MOST:?}", self.others);
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The records of sessions, as the broker has them.
#[derive(Debug)]
pub struct Records(async_nats::Client);

impl Records {
    /// Connects to the broker.
    ///
    /// # Errors
    /// It is not there.
    pub async fn connect(broker: &str) -> anyhow::Result<Self> {
        Ok(Self(async_nats::connect(broker).await?))
    }

    /// Waits until so many sessions have a record.
    ///
    /// # Errors
    /// They have none after a minute.
    pub async fn reach(&self, count: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let info = self.0.request("$JS.API.STREAM.INFO.bw_bothways_s", Bytes::new()).await?;
            let info: serde_json::Value = serde_json::from_slice(&info.payload)?;
            let there = info["state"]["messages"].as_u64().unwrap_or(0);
            if count as u64 <= there {
                return Ok(());
            }
            ensure!(begin.elapsed() < MOST, "{there} of {count} records after {MOST:?}");
            sleep(LOOK).await;
        }
    }
}
