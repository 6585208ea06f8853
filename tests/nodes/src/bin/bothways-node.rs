//! One node of a cluster over NATS, for tests: it does what it is told, line by line.
//!
//! Its only argument is JSON, [`Options`]. It prints [`Started`], and then one line for each line of its input. It ends
//! with its input, so that it never outlives the test that started it. `RUST_LOG` says what it logs.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future as _,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use anyhow::Context as _;
use bothways::{
    CallError, CallOptions, Caller as _, Class, Push, Receipt, Server, SessionOptions, Target, cluster::Cluster,
    session::TopicOptions,
};
use bothways_nats::{NatsEngine, NatsOptions};
use bothways_nodes::{
    Answer, As, CallEnd, Command, Drained, Kicked, Known, Line, Missed, Options, SessionSeen, Started, Stats, Stored,
    To, Told,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    sync::mpsc,
};

/// How long letters and messages of topics are kept.
const KEPT: Duration = Duration::from_secs(3600);

/// How long it tries to join when it starts.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

struct Node {
    server: Server,
    /// By number, or why there is none.
    receipts: Mutex<HashMap<u64, Result<Receipt, String>>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let options = std::env::args().nth(1).context("the options")?;
    let (node, started, _listening) = start(&serde_json::from_str(&options)?).await?;
    let (answers, to_write) = mpsc::unbounded_channel();
    let _ = answers.send(serde_json::to_string(&started)?);
    tokio::spawn(write(to_write));

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let Line { id, command } = serde_json::from_str(&line)?;
        if matches!(command, Command::Exit) {
            break;
        }
        let done = Arc::clone(&node).prepare(command);
        let answers = answers.clone();
        tokio::spawn(async move {
            let answer = Answer { id, answer: done.await };
            let _ = answers.send(serde_json::to_string(&answer).expect("plain data"));
        });
    }
    std::process::exit(0);
}

async fn write(mut lines: mpsc::UnboundedReceiver<String>) {
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        if output.write_all((line + "\n").as_bytes()).await.is_err() || output.flush().await.is_err() {
            std::process::exit(0);
        }
    }
}

async fn start(options: &Options) -> anyhow::Result<(Arc<Node>, Started, bothways::server::Listening)> {
    let mut server = Server::builder().sessions(SessionOptions::new().resume_window(options.resume_window)).auth(
        |request| async move {
            let session = request.session().ok_or("it has left")?;
            let (user, group) = request.token.split_once('/').unwrap_or((&request.token, ""));
            session.bind_user(user);
            session.set_label("group", group);
            Ok::<_, &str>(())
        },
    );
    for topic in &options.topics {
        let mut rule = TopicOptions::new().open().presence(topic.presence).without_log_to_this_node(topic.apart);
        if 0 < topic.history {
            rule = rule.history(topic.history, KEPT).history_bytes_max(64 << 20);
        }
        server = server.topic(&topic.pattern, rule)?;
    }
    let server = server.build();

    // Bound before the node joins, as its card names the port; nobody knows it before.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = format!("tcp@{}", listener.local_addr()?);
    // While a leader is elected nobody joins: it tries again, as one that is started again.
    let until = tokio::time::Instant::now() + STARTS_WITHIN;
    let node = loop {
        match join(&server, options, &address).await {
            Ok(node) => break node,
            Err(error) if until <= tokio::time::Instant::now() => return Err(error),
            Err(error) => eprintln!("a node does not join yet: {error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let listening = server.listen_on(listener)?;
    let started = Started { node: node.to_string(), address };
    Ok((Arc::new(Node { server, receipts: Mutex::default() }), started, listening))
}

async fn join(server: &Server, options: &Options, address: &str) -> anyhow::Result<bothways::cluster::NodeId> {
    let engine = NatsEngine::connect(NatsOptions::new(&options.brokers).synced(options.is_synced)).await?;
    Ok(server.join(Cluster::new(engine).lease(options.lease).address(address)).await?)
}

fn answer(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

type Done = std::pin::Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

impl Node {
    /// What is synchronous is done at once, in the order of the lines; the rest side by side.
    fn prepare(self: Arc<Self>, command: Command) -> Done {
        let now = match &command {
            Command::Push { to, class, key, first, count } => {
                let target = target(to);
                Some(self.number(*first, *count, |number| {
                    let mut push = take(number).class(class_of(*class));
                    if let Some(key) = key {
                        push = push.idempotency_key(&format!("{key}{number}")).map_err(|error| error.to_string())?;
                    }
                    self.server.push(&target, &push).map_err(|error| error.to_string())
                }))
            }
            Command::PushAll { pushes, class } => Some(pushes.iter().try_for_each(|(to, number)| {
                let push = |number| self.server.push(&target(to), &take(number).class(class_of(*class)));
                self.number(*number, 1, |number| push(number).map_err(|error| error.to_string()))
            })),
            Command::Publish { topic, first, count } => Some(self.number(*first, *count, |number| {
                self.server.publish(topic, &take(number)).map_err(|error| error.to_string())
            })),
            _ => None,
        };
        match now {
            Some(done) => Box::pin(std::future::ready(done.and_then(answer))),
            None => Box::pin(async move { self.run(command).await }),
        }
    }

    async fn run(&self, command: Command) -> Result<Value, String> {
        match command {
            Command::Receipts { first, last } => answer(self.told(first, last)?),
            Command::Call { to, number, within } => answer(self.call(&to, number, within).await?),
            Command::Kick { to, why } => answer(self.kick(&to, &why).await?),
            Command::Sessions { to } => answer(self.sessions(&to).await?),
            Command::Presence { topic } => {
                let presence = self.server.presence(&topic).map_err(|error| error.to_string())?;
                answer(presence.members.iter().filter_map(|member| member.user.as_deref()).collect::<Vec<_>>())
            }
            Command::Members => answer(self.members()),
            Command::Stats => answer(self.stats()),
            Command::Drain { within, per_second } => answer(self.drain(within, per_second).await),
            Command::Push { .. } | Command::PushAll { .. } | Command::Publish { .. } | Command::Exit => {
                Err("it is done by now".to_owned())
            }
        }
    }

    fn number(&self, first: u64, count: u64, make: impl Fn(u64) -> Result<Receipt, String>) -> Result<(), String> {
        let mut receipts = self.receipts.lock();
        for number in first..first + count {
            if receipts.insert(number, make(number)).is_some() {
                return Err(format!("the number {number} is used twice"));
            }
        }
        Ok(())
    }

    fn told(&self, first: u64, last: u64) -> Result<Vec<Told>, String> {
        let receipts = self.receipts.lock();
        let told = |number| match receipts.get(&number) {
            Some(receipt) => Ok(told(number, receipt)),
            None => Err(format!("there is no push {number}")),
        };
        (first..=last).map(told).collect()
    }

    async fn call(&self, to: &To, number: u64, within: Duration) -> Result<CallEnd, String> {
        let (argument, options) = (number.to_string(), CallOptions::new().timeout(within));
        let ended = match to {
            To::User(name) => self.server.user(name).call_typed("Numbers", "Work", &argument, options).await,
            To::Session(id) => {
                self.server.session_anywhere(*id).call_typed("Numbers", "Work", &argument, options).await
            }
            _ => return Err("a user or a session is called".to_owned()),
        };
        Ok(match ended {
            Ok(reply) => {
                let reply: String = reply.value;
                CallEnd::Reply(reply.parse().map_err(|_| format!("no number: {reply}"))?)
            }
            Err(CallError::NoClient(why)) => CallEnd::NoClient(why),
            Err(CallError::Closed { written, .. }) => CallEnd::Closed { written },
            Err(error) => CallEnd::Failed(error.to_string()),
        })
    }

    async fn kick(&self, to: &To, why: &str) -> Result<Kicked, String> {
        let told = self.server.kick_everywhere(&target(to), why).await.map_err(|error| error.to_string())?;
        Ok(Kicked {
            ended: told.answers.iter().map(|(_, ended)| ended).sum(),
            silent: told.silent.iter().map(|(node, _)| node.to_string()).collect(),
        })
    }

    async fn sessions(&self, to: &To) -> Result<Vec<SessionSeen>, String> {
        let told = self.server.explain_everywhere(&target(to)).await.map_err(|error| error.to_string())?;
        let seen = told.answers.into_iter().flat_map(|(node, told)| {
            told.sessions.into_iter().map(move |told| SessionSeen { node: node.to_string(), told })
        });
        Ok(seen.collect())
    }

    fn members(&self) -> Known {
        let (me, others) = self.server.nodes().unzip();
        let mut others: Vec<String> = others.unwrap_or_default().iter().map(ToString::to_string).collect();
        others.sort();
        Known { me: me.map(|me| me.to_string()), others }
    }

    fn stats(&self) -> Stats {
        let cluster = self.server.cluster_stats().unwrap_or_default();
        Stats {
            sessions: self.server.stats().sessions,
            pushes_out: cluster.pushes_out,
            pushes_here: cluster.pushes_here,
            calls_out: cluster.calls_out,
            calls_here: cluster.calls_here,
            waiting: cluster.waiting,
            publishes_waiting: cluster.publishes_waiting,
        }
    }

    async fn drain(&self, within: Duration, per_second: u32) -> Drained {
        let report = self.server.drain(within, per_second).await;
        Drained {
            handed_over: report.sessions_handed_over,
            parked: report.sessions_parked,
            left: report.sessions_left,
            calls_unfinished: report.calls_unfinished,
        }
    }
}

fn take(number: u64) -> Push {
    Push::new("Numbers", "Take", number.to_string())
}

fn class_of(class: As) -> Class {
    match class {
        As::Fire => Class::Fire,
        As::Tracked => Class::Tracked,
        As::Durable => Class::Durable { ttl: KEPT },
    }
}

fn target(to: &To) -> Target {
    match to {
        To::User(name) => Target::user(name),
        To::Users(names) => Target::users(names),
        To::Everyone => Target::everyone(),
        To::Group(name) => Target::everyone().only_labelled("group", name),
        To::Session(id) => Target::session(*id),
        To::SubscribersOf(topic) => Target::subscribers_of(topic),
    }
}

fn told(number: u64, receipt: &Result<Receipt, String>) -> Told {
    let receipt = match receipt {
        Ok(receipt) => receipt,
        Err(why) => {
            let refused = Some(why.clone());
            let (unreached, stages) = (Vec::new(), BTreeMap::new());
            let (stored, may_be_stored) = (Stored::Nowhere, false);
            return Told { number, routing: 0, unreached, stages, open: 0, stored, may_be_stored, refused };
        }
    };
    // In this order: what is over is looked at first, and nothing can be added to it afterwards.
    let (stored, may_be_stored) = stored(receipt);
    let routing = receipt.routing();
    let outcomes = receipt.outcomes();
    let stages = outcomes.iter().map(|(stage, count)| (stage.name().to_owned(), count)).collect();
    let missed = receipt.unreached().into_iter().map(|missed| Missed {
        node: missed.node.to_string(),
        why: format!("{:?}", missed.why),
        maybe: missed.maybe,
    });
    let (unreached, open) = (missed.collect(), outcomes.open());
    Told { number, routing, unreached, stages, open, stored, may_be_stored, refused: None }
}

/// Whether it is stored; if not, whether it may be.
fn stored(receipt: &Receipt) -> (Stored, bool) {
    // Of a page of receipts tokio would let only the first hundred be ready.
    match pin!(tokio::task::unconstrained(receipt.stored())).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => (Stored::Waits, true),
        Poll::Ready(Ok(kept)) => match kept.first() {
            Some(first) => (Stored::In(kept.len(), format!("{:?}", first.level)), false),
            None => (Stored::Nowhere, false),
        },
        Poll::Ready(Err(error)) => (Stored::Not(error.to_string()), error.is_unknown() || !error.stored.is_empty()),
    }
}
