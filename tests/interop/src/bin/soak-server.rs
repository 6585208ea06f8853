//! A server that pushes numbers to users, each to each in order, and waits for room in what it owes them.
//!
//! `soak-server`. It prints `LISTENING ADDRESS`; at `push N` it pushes 0 to N-1 to each session whose client called
//! `Soak.Ready`, and prints a [`Pushed`] as JSON when all is handled or lost. It ends with its input.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::bail;
use bothways::{Push, Reply, Request, Server, Session, Stage};
use bothways_interop::soak::Pushed;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
};

/// How long a push waits for room before it counts as refused.
const ROOM: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let ready = Arc::<Mutex<HashMap<String, Session>>>::default();
    let by_user = Arc::clone(&ready);
    let server = Server::builder()
        .handler("Soak", "Ready", move |request: Request| {
            let user: String = request.decode().expect("a name");
            let session = request.session().expect("its client is connected");
            // Of a client that asks again after a lost reply, the last one is the one that it knows.
            by_user.lock().expect("nobody panics with it").insert(user, session);
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await?;
    println!("LISTENING {}", listening.address());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split(' ').collect::<Vec<_>>().split_first() {
            Some((&"push", [count])) => {
                let (count, mut pushing) = (count.parse()?, JoinSet::new());
                for session in ready.lock().expect("nobody panics with it").values() {
                    pushing.spawn(push_to(session.clone(), count));
                }
                let mut all = Pushed::default();
                while let Some(pushed) = pushing.join_next().await {
                    all.add(&pushed?);
                }
                all.connections = server.stats().connections_accepted;
                println!("{}", serde_json::to_string(&all)?);
            }
            _ => bail!("{line}?"),
        }
    }
    Ok(())
}

async fn push_to(session: Session, count: u64) -> Pushed {
    let mut receipts = Vec::with_capacity(count as usize);
    for number in 0..count {
        let push = Push::new("Soak", "Number", number.to_string());
        receipts.push(session.push_within(ROOM, &push).await.expect("it is small"));
    }
    let mut pushed = Pushed::default();
    for receipt in receipts {
        pushed.pushed += 1;
        pushed.handled += receipt.handled().await.at(Stage::Handled) as u64;
    }
    pushed.resumes = session.generation() - 1;
    pushed
}
