//! A server that knows its clients, and does with them what its input says.
//!
//! A client's token is `USER/DEVICE`: it is bound to the user and gets the label `device`. `Topics.Join` subscribes it to
//! a pattern; `Subscribe` it may call for `news.>`, of which the last thousand messages are kept.
//!
//! Each line of its input is a [`Command`] as JSON and is begun in the order of the lines; each answer is a line of JSON
//! with the number of its command, whenever it is known. It ends with its input.

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Metadata, Push, Reply, Request, Response, Server, Session, Stage, Target,
    session::{DropReason, TopicOptions},
};
use bothways_interop::{
    LONG,
    contract::{self, Args},
    device::{Arith, DeviceClient},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", tag = "do")]
enum Command {
    /// Answers what became of it when nothing more can.
    Push { id: u64, to: To, text: String },
    /// Calls `Device.Mul`, or `Device.Count` without a second number, of each session that is meant.
    Call { id: u64, to: To, a: i64, b: Option<i64> },
    /// Answers user, device, number, generation and what waits of each session.
    Sessions { id: u64 },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum To {
    User(String),
    Topic(String),
    Device(String),
    Everyone,
}

impl To {
    fn target(self) -> Target {
        match self {
            Self::User(name) => Target::user(name),
            Self::Topic(name) => Target::subscribers_of(name),
            Self::Device(name) => Target::everyone().only_labelled("device", name),
            Self::Everyone => Target::everyone(),
        }
    }
}

struct Calculator;

impl Arith for Calculator {
    async fn mul(&self, args: Args) -> Result<contract::Reply, String> {
        Ok(contract::Reply { c: args.a * args.b })
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let news = TopicOptions::new().history(1000, Duration::from_secs(600)).open();
    let server = Server::builder()
        .service(Calculator.into_service())
        .topic("news.>", news)?
        .auth(|request| async move {
            let (user, device) = request.token.split_once('/').ok_or("the token is USER/DEVICE")?;
            if let Some(session) = request.session() {
                session.bind_user(user);
                session.set_label("device", device);
            }
            Ok::<_, &str>(())
        })
        .handler("Topics", "Join", |request: Request| {
            let session = request.session().expect("the client is connected");
            let pattern: String = request.decode().expect("a text");
            let outcome = session.subscribe(&pattern);
            std::future::ready(outcome.map_or_else(|error| Reply::error(error.to_string()), |()| Reply::ok("")))
        })
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await?;
    println!("LISTENING {}", listening.address());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        obey(&server, serde_json::from_str(&line)?)?;
    }
    Ok(())
}

fn obey(server: &Server, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Push { id, to, text } => {
            let push = Push::new("Chat", "say", text).metadata(Metadata::new().with("k", "v"));
            let receipt = match to {
                To::Topic(name) => server.publish(&name, &push)?,
                to => server.push(&to.target(), &push)?,
            };
            tokio::spawn(async move {
                let outcomes = receipt.handled().await;
                let dropped = Stage::Dropped(DropReason::SessionEnded);
                let stages = [Stage::Handled, Stage::PlainWritten, dropped, Stage::Unknown];
                let [handled, plain, dropped, unknown] = stages.map(|stage| outcomes.at(stage));
                let ended = dropped + unknown;
                let targets = outcomes.targets();
                println!(
                    "{}",
                    json!({"id": id, "targets": targets, "handled": handled, "plain": plain, "ended": ended})
                );
            });
        }
        Command::Call { id, to, a, b } => {
            let sessions = server.sessions(&to.target())?;
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for session in sessions {
                    answers.push(match call(session, a, b).await {
                        Ok(reply) => json!({"c": reply.c}),
                        Err(error) => json!({"error": format!("{error:?}")}),
                    });
                }
                println!("{}", json!({"id": id, "answers": answers}));
            });
        }
        Command::Sessions { id } => {
            let told = server.sessions(&Target::everyone())?.into_iter().map(tell).collect::<Vec<_>>();
            println!("{}", json!({"id": id, "sessions": told}));
        }
    }
    Ok(())
}

async fn call(session: Session, a: i64, b: Option<i64>) -> Result<contract::Reply, CallError> {
    let (device, options) = (DeviceClient::new(session), CallOptions::new().timeout(LONG));
    let response: Response<contract::Reply> = match b {
        Some(b) => device.mul_with(&Args { a, b }, options).await?,
        None => device.count_with(&Args { a, b: 0 }, options).await?,
    };
    Ok(response.value)
}

fn tell(session: Session) -> Value {
    json!({
        "user": session.user().as_deref(), "device": session.label("device"), "session": session.id(),
        "generation": session.generation(), "waiting": session.waiting().0,
        "dropped": session.dropped(),
    })
}
