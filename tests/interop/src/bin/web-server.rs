//! The server of the JavaScript client's tests: it knows its clients, and does with them what its input says.
//!
//! ```text
//! web-server [--addr tcp@127.0.0.1:0]... [--log MESSAGES] [--window MILLIS] [--heartbeat MILLIS] [--open]
//!            [--origin ORIGIN]
//! ```
//!
//! A client's token is `USER` or `USER/NUMBER`; one whose number is below that of the last `expire` is refused. With
//! `--open` everybody is let in, and is the user `anyone`. Clients may subscribe to `news.>`, of which the last
//! thousand messages are kept, to `room.>`, which shows presence, and to `live.>`, of which nothing is kept.
//!
//! Each line of its input is a [`Command`] as JSON. Its answer is a line of JSON with the number of the command, whenever
//! it is known. It ends with its input, so that it never outlives the test that started it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use bothways::{
    CallOptions, Caller, Class, Heartbeat, Metadata, Push, Receipt, Reply, Request, SerializeType, Server,
    ServerBuilder, SessionOptions, Stage, Target,
    options::QueueBound,
    session::{Failure, TopicOptions},
    transport::{ListenOptions, ws::WsOrigins},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", tag = "do")]
enum Command {
    /// Pushes so many times, with the values `from`, `from + 1` and so on; answers what became of them when nothing more
    /// can. Of each target at most 200 are not handled at any time.
    Push {
        id: u64,
        to: To,
        path: String,
        method: String,
        #[serde(default)]
        from: u64,
        #[serde(default = "one")]
        count: u64,
        /// In place of the numbers.
        value: Option<Value>,
        #[serde(default)]
        json: bool,
        latest: Option<String>,
        #[serde(default)]
        fire: bool,
        key: Option<String>,
        #[serde(default)]
        meta: BTreeMap<String, String>,
    },
    /// Calls the user, and answers its reply or the error.
    Call { id: u64, user: String, path: String, method: String, args: Value, millis: u64 },
    /// Answers user, id, generation and what waits of each session, and whether its client is here.
    Sessions { id: u64 },
    /// Who is in this topic.
    Presence { id: u64, topic: String },
    /// Ends the sessions of a user, who may begin a new one.
    End { id: u64, user: String },
    /// Sends a user away.
    Kick { id: u64, user: String },
    /// Cuts the connections.
    Cut { id: u64 },
    /// Refuses tokens with lower numbers from now on.
    Expire { id: u64, below: u64 },
    /// Says goodbye, waits so long, and ends.
    Shutdown { id: u64, millis: u64 },
}

fn one() -> u64 {
    1
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum To {
    User(String),
    Topic(String),
    Everyone,
}

/// Pushes of one command that are not handled yet.
const OPEN_MAX: usize = 200;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let (mut addresses, mut sessions, mut heartbeat, mut open) = (Vec::new(), SessionOptions::new(), None, false);
    let mut origin = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--addr" => addresses.push(value()?),
            "--log" => sessions = sessions.log(QueueBound::messages(value()?.parse()?).bytes(1 << 20)),
            "--window" => sessions = sessions.resume_window(Duration::from_millis(value()?.parse()?)),
            "--heartbeat" => heartbeat = Some(Duration::from_millis(value()?.parse()?)),
            "--open" => open = true,
            "--origin" => origin = Some(value()?),
            other => bail!("{other}?"),
        }
    }
    if addresses.is_empty() {
        addresses.push("tcp@127.0.0.1:0".to_owned());
    }

    let least = Arc::new(AtomicU64::new(0));
    let mut builder = builder(sessions, heartbeat, open, &least)?;
    if let Some(origin) = origin {
        builder = builder.listen_options(ListenOptions::default().ws_origins(WsOrigins::these([origin])));
    }
    let server = builder.build();
    let mut listening = Vec::new();
    for address in addresses {
        listening.push(server.listen(&address).await?);
    }
    for listening in &listening {
        println!("LISTENING {}", listening.address());
    }
    println!("READY");

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        obey(&server, &least, serde_json::from_str(&line)?).await?;
    }
    Ok(())
}

fn builder(
    sessions: SessionOptions,
    heartbeat: Option<Duration>,
    open: bool,
    least: &Arc<AtomicU64>,
) -> anyhow::Result<ServerBuilder> {
    let history = TopicOptions::new().history(1000, Duration::from_secs(600)).open();
    let least = Arc::clone(least);
    let runs = AtomicU64::new(0);
    let mut builder = Server::builder()
        .sessions(sessions)
        .topic("news.>", history)?
        .topic("room.>", TopicOptions::new().presence(true).open())?
        .topic("live.>", TopicOptions::new().open())?
        .function("Arith", "Mul", |args: Value| async move {
            let number = |name: &str| args[name].as_i64().ok_or("a number is missing");
            Ok::<_, &str>(json!({"C": number("A")?.wrapping_mul(number("B")?)}))
        })
        .function("Echo", "Echo", |value: Value| async move { Ok::<_, String>(value) })
        .function("Fail", "Fail", |text: String| async move { Err::<(), _>(text) })
        .function("Run", "Count", move |(): ()| {
            let count = runs.fetch_add(1, Ordering::Relaxed) + 1;
            std::future::ready(Ok::<_, String>(count))
        })
        .function("Wait", "Millis", |millis: u64| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok::<_, String>(millis)
        })
        .handler("Meta", "Echo", |request: Request| {
            let got = Metadata::new().with("got", request.metadata().get("k").unwrap_or("nothing"));
            std::future::ready(Reply::ok("").with_metadata(got))
        })
        .auth(move |request| {
            let is_right = let_in(&request.token, open, least.load(Ordering::Acquire));
            if let (Some(user), Some(session)) = (&is_right, request.session()) {
                session.bind_user(user);
            }
            std::future::ready(is_right.map(|_| ()).ok_or("this token is not accepted"))
        });
    if let Some(interval) = heartbeat {
        builder = builder.heartbeat(Heartbeat::every(interval));
    }
    Ok(builder)
}

/// The user of a token, if it is accepted.
fn let_in(token: &str, open: bool, least: u64) -> Option<String> {
    let (user, number) = token.split_once('/').unwrap_or((token, "18446744073709551615"));
    if user.is_empty() {
        return open.then(|| "anyone".to_owned());
    }
    (least <= number.parse().ok()?).then(|| user.to_owned())
}

async fn obey(server: &Server, least: &AtomicU64, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Push { .. } => {
            let server = server.clone();
            tokio::spawn(async move { println!("{}", push(&server, command).await) });
        }
        Command::Call { id, user, path, method, args, millis } => {
            let user = server.user(&user);
            tokio::spawn(async move {
                let options = CallOptions::new().timeout(Duration::from_millis(millis));
                let reply: Result<bothways::Response<Value>, _> = user.call_typed(&path, &method, &args, options).await;
                match reply {
                    Ok(reply) => println!("{}", json!({"id": id, "ok": reply.value})),
                    Err(error) => println!("{}", json!({"id": id, "error": format!("{error:?}")})),
                }
            });
        }
        Command::Sessions { id } => {
            let told = server.sessions(&Target::everyone())?.into_iter().map(|session| {
                json!({
                    "user": session.user().as_deref(), "session": session.id(), "generation": session.generation(),
                    "waiting": session.waiting().0, "dropped": session.dropped(),
                    "isHere": session.connection().is_some(),
                })
            });
            println!("{}", json!({"id": id, "sessions": told.collect::<Vec<_>>()}));
        }
        Command::Presence { id, topic } => {
            let presence = server.presence(&topic)?;
            println!("{}", json!({"id": id, "presence": format!("{presence:?}")}));
        }
        Command::End { id, user } => {
            let sessions = server.sessions(&Target::user(user))?;
            sessions.iter().for_each(|session| session.end("the test ends it"));
            println!("{}", json!({"id": id, "ended": sessions.len()}));
        }
        Command::Kick { id, user } => {
            println!("{}", json!({"id": id, "kicked": server.kick(&Target::user(user), "the test kicks it")?}));
        }
        Command::Cut { id } => {
            let connections = server.connections();
            connections.iter().for_each(|connection| connection.close());
            println!("{}", json!({"id": id, "cut": connections.len()}));
        }
        Command::Expire { id, below } => {
            least.store(below, Ordering::Release);
            println!("{}", json!({"id": id}));
        }
        Command::Shutdown { id, millis } => {
            let report = server.shutdown(Duration::from_millis(millis)).await;
            println!("{}", json!({"id": id, "report": format!("{report:?}")}));
            std::process::exit(0);
        }
    }
    Ok(())
}

/// Pushes one after the other, and returns the answer.
async fn push(server: &Server, command: Command) -> Value {
    let Command::Push { id, to, path, method, from, count, value, json, latest, fire, key, meta } = command else {
        return json!(null);
    };
    let mut pairs = Metadata::new();
    meta.iter().for_each(|(key, value)| pairs.insert(key, value));

    let (mut ends, mut open) = (BTreeMap::<String, usize>::new(), VecDeque::new());
    for number in from..from + count {
        let value = value.clone().unwrap_or_else(|| json!(number));
        let codec = if json { SerializeType::JSON } else { SerializeType::MSGPACK };
        let made = made(&path, &method, codec, &value).metadata(pairs.clone());
        let made = match (&latest, fire) {
            (Some(key), _) => made.class(Class::Latest(key.clone())),
            (None, true) => made.class(Class::Fire),
            (None, false) => made,
        };
        let made = match &key {
            Some(key) => match made.idempotency_key(key) {
                Ok(made) => made,
                Err(error) => return json!({"id": id, "error": error.to_string()}),
            },
            None => made,
        };

        let sent = match &to {
            To::User(name) => server.push(&Target::user(name), &made),
            To::Topic(name) => server.publish(name, &made),
            To::Everyone => server.push(&Target::everyone(), &made),
        };
        match sent {
            Ok(receipt) => open.push_back(receipt),
            Err(error) => return json!({"id": id, "error": error.to_string()}),
        }
        if OPEN_MAX <= open.len()
            && let Some(oldest) = open.pop_front()
        {
            count_ends(oldest, &mut ends).await;
        }
    }
    for receipt in open {
        count_ends(receipt, &mut ends).await;
    }
    json!({"id": id, "ends": ends})
}

fn made(path: &str, method: &str, codec: SerializeType, value: &Value) -> Push {
    match value {
        // What Go sends is bytes as they are.
        Value::Object(of) if of.contains_key("raw") => Push::new(path, method, of["raw"].to_string().into_bytes()),
        value if codec == SerializeType::JSON => {
            Push::new(path, method, value.to_string().into_bytes()).serialize_type(codec)
        }
        value => Push::of(path, method, value).expect("JSON has a form in MessagePack"),
    }
}

async fn count_ends(receipt: Receipt, ends: &mut BTreeMap<String, usize>) {
    let failures = [Failure::NoHandler, Failure::BadArguments, Failure::Error, Failure::Panicked];
    let stages =
        [Stage::Handled, Stage::Superseded, Stage::PlainWritten, Stage::Unknown, Stage::Duplicate, Stage::Written];
    let outcomes = receipt.handled().await;
    for stage in stages.into_iter().chain(failures.map(Stage::Failed)) {
        let at = outcomes.at(stage);
        if 0 < at {
            *ends.entry(format!("{stage:?}")).or_default() += at;
        }
    }
    if 0 < outcomes.dropped() {
        *ends.entry("Dropped".to_owned()).or_default() += outcomes.dropped();
    }
    if outcomes.targets() == 0 {
        *ends.entry("Nobody".to_owned()).or_default() += 1;
    }
}
