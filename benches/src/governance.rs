//! The CPU time that server selection, fail modes, layers, deadlines and tokens add to a call, on both ends.
//!
//! Everything is in one thread and goes over memory, so that little else takes time. The ways to call take turns in
//! short slices, so that other load on the machine affects all of them.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use bothways::{
    Client, ClientOptions, FailMode, MultipleServersDiscovery, SelectMode, ServerBuilder, XClient, codec::Raw, layer,
    server::Listening,
};
use tokio::task::JoinSet;

use crate::{
    compare::Figure,
    contract,
    pair::{check_raw, raw_payload},
    process::own_cpu,
    server::server_with,
};

const PAYLOAD_BYTES: usize = 581;

/// Far away: it is the timer that costs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Calls of a slice: some milliseconds.
const SLICE_CALLS: usize = 4_000;

/// One way to call.
#[derive(Clone)]
enum Way {
    /// One client for each server, in turn by hand.
    Bare(Arc<Vec<Client>>),
    XClient(XClient),
}

/// The CPU time that each way of calling takes, and what that is above a bare client's.
///
/// # Errors
/// A call failed, or its reply was not what was due.
pub(crate) fn measure(servers: usize, in_flight: usize, time: Duration) -> anyhow::Result<Vec<Figure>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let plain = listen("plain", servers, |builder| builder).await?;
        let layered = listen("layered", servers, |builder| {
            builder.layer(layer::trace()).layer(layer::timeout(DEADLINE)).layer(layer::concurrency(1 << 16))
        })
        .await?;

        let options = ClientOptions::new;
        let xclient = |servers: &[Listening], fail_mode, select_mode| {
            let discovery = MultipleServersDiscovery::new(servers.iter().map(Listening::address));
            Way::XClient(XClient::new(contract::SERVICE, fail_mode, select_mode, discovery, options()))
        };

        let bare = bare(&plain, options()).await?;
        let ways = [
            ("governance, CPU µs/call", xclient(&plain, FailMode::Failover, SelectMode::RoundRobin)),
            ("with layers, CPU µs/call", xclient(&layered, FailMode::Failover, SelectMode::RoundRobin)),
            ("random and failtry, CPU µs/call", xclient(&plain, FailMode::Failtry, SelectMode::RandomSelect)),
            ("failbackup, CPU µs/call", xclient(&plain, FailMode::Failbackup, SelectMode::RoundRobin)),
            ("a deadline, CPU µs/call", self::bare(&plain, options().timeout(DEADLINE)).await?),
            ("a token, CPU µs/call", self::bare(&plain, options().auth("bearer tGzv3JOkF0XG5Qx2TlKWIA")).await?),
            ("bare, CPU µs/call", bare),
        ];

        // Not counted: everything warms up.
        for (_, way) in &ways {
            slice(way, in_flight, SLICE_CALLS / 10).await?;
        }

        let mut cpu = [Duration::ZERO; 7];
        let mut slices = 0;
        while slices == 0 || cpu.iter().sum::<Duration>() < time {
            for ((_, way), cpu) in ways.iter().zip(&mut cpu) {
                let before = own_cpu();
                slice(way, in_flight, SLICE_CALLS).await?;
                *cpu += own_cpu() - before;
            }
            slices += 1;
        }

        let mut micros = cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / (slices * SLICE_CALLS) as f64);
        // The bare call is part of each way: what it takes is subtracted.
        let [more @ .., bare] = &mut micros;
        more.iter_mut().for_each(|of| *of -= *bare);
        Ok(ways.iter().zip(micros).map(|((metric, _), micros)| Figure::new(metric, micros)).collect())
    })
}

/// A client for each server.
async fn bare(servers: &[Listening], options: ClientOptions) -> anyhow::Result<Way> {
    let mut clients = Vec::new();
    for listening in servers {
        clients.push(Client::connect(listening.address(), options.clone()).await?);
    }
    Ok(Way::Bare(Arc::new(clients)))
}

async fn listen(
    name: &str,
    servers: usize,
    choose: impl Fn(ServerBuilder) -> ServerBuilder,
) -> anyhow::Result<Vec<Listening>> {
    let mut listening = Vec::new();
    for server in 0..servers {
        listening.push(server_with(&choose).listen(&format!("memory@governance-{name}-{server}")).await?);
    }
    Ok(listening)
}

/// So many calls in one way, by tasks that call again as soon as they have their reply.
async fn slice(way: &Way, in_flight: usize, calls: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let way = way.clone();
        tasks.spawn(async move {
            for call in 0..calls / in_flight {
                let number = (task * calls + call) as u64;
                let sent = Raw::from(raw_payload(number, PAYLOAD_BYTES));
                let got: Raw = match &way {
                    Way::Bare(clients) => {
                        let client = &clients[(task + call) % clients.len()];
                        client.call(contract::SERVICE, contract::ECHO, &sent).await?
                    }
                    Way::XClient(xclient) => xclient.call(contract::ECHO, &sent).await?,
                };
                check_raw(&sent, &got)?;
            }
            anyhow::Ok(calls / in_flight)
        });
    }

    let mut answered = 0;
    for of_task in tasks.join_all().await {
        answered += of_task?;
    }
    ensure!(answered == calls / in_flight * in_flight, "a task has not called as often as it should");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn governance_has_a_price_for_each_way() {
        let figures = measure(2, 4, Duration::ZERO).expect("all calls are answered");
        assert_eq!(figures.len(), 7);
    }
}
