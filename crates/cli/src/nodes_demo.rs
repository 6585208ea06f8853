//! Nodes of one cluster behind one address; one of them dies, and its clients go on. Over a NATS server that is started
//! for it, where this machine has one, else over the engine in this process.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bothways::{
    CallOptions, Caller as _, Client, ClientOptions, ConnectionEvent, Push, Receipt, Reply, Request, Router, Server,
    Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
    server::Listening,
};
use bytes::Bytes;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc::{self, UnboundedReceiver},
    task::AbortHandle,
    time::sleep,
};

use crate::{
    demo::{Ended, Step, Story},
    term,
};

/// The shortest that there is, so that nobody waits long for the dead.
const LEASE: Duration = Duration::from_secs(3);

/// What a step with a death in it may take: a lease, and a client's way back.
const DEATH_MAX: Duration = Duration::from_secs(30);

pub(crate) async fn tell(story: &mut Story, nodes: usize, clients: usize) -> Result<(), Ended> {
    story.out.line("Bothways: nodes of one cluster, and clients that know one address.")?;

    story.chapter("Nodes behind one address")?;
    story.allow(Duration::from_secs(15));
    let between = story.step("engine", Between::find()).await?;
    story.allow(Duration::from_secs(15));
    let mut nodes = story.step("nodes", Nodes::start(between, nodes)).await?;
    let mut crowd = story.step("clients", nodes.connect(clients)).await?;

    story.chapter("From any node to any client")?;
    story.step("node 1", nodes.push_far()).await?;
    story.step("node 2", nodes.push_to_all(&crowd, 0)).await?;
    story.step("node 1", nodes.call_far()).await?;

    story.chapter("A node dies")?;
    let victim = story.step("demo", nodes.kill()).await?;
    story.step("node 1", nodes.push_meanwhile(&victim)).await?;
    story.allow(DEATH_MAX);
    story.step("clients", nodes.come_back(&mut crowd, &victim)).await?;
    story.allow(DEATH_MAX);
    story.step("nodes", nodes.forget(&victim)).await?;
    story.step("node 2", nodes.push_to_all(&crowd, 1)).await?;

    story.chapter("The end")?;
    story.step("nodes", nodes.stop(crowd)).await
}

/// The engine between the nodes.
enum Between {
    Memory(MemoryBroker),
    #[cfg(feature = "nats")]
    Nats(Box<nats::Broker>),
}

impl Between {
    async fn find() -> Step<Self> {
        #[cfg(feature = "nats")]
        if let Some(program) = nats::program() {
            let broker = nats::Broker::start(&program).await?;
            let text = format!("{} of this machine listens on {}, for this demo alone", broker.version, broker.url);
            return Ok((text, Self::Nats(Box::new(broker))));
        }
        let text = "is in this process; with a nats-server on the path, 2.11 or newer, it would be that".to_owned();
        Ok((text, Self::Memory(MemoryBroker::new())))
    }

    /// Makes a node of a server.
    async fn join(&self, server: &Server) -> Result<(), String> {
        let cluster = match self {
            Self::Memory(broker) => Cluster::new(broker.engine()),
            #[cfg(feature = "nats")]
            Self::Nats(broker) => {
                let options = bothways_nats::NatsOptions::new([broker.url.as_str()]);
                let engine = bothways_nats::NatsEngine::connect(options).await.map_err(|error| error.to_string())?;
                Cluster::new(engine)
            }
        };
        server.join(cluster.lease(LEASE)).await.map(drop).map_err(|error| error.to_string())
    }
}

/// One server in a runtime of its own: when that is gone, the node is gone without a word, as a process that is killed.
struct Node {
    number: usize,
    server: Server,
    listening: Listening,
    runtime: Option<Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    async fn start(between: Arc<Between>, number: usize) -> Result<Self, String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let starting = runtime.spawn(async move {
            let server = Server::builder().auth(bind_user).build();
            between.join(&server).await?;
            let listening = server.listen("tcp@127.0.0.1:0").await.map_err(|error| error.to_string())?;
            Ok::<_, String>((server, listening))
        });
        let (server, listening) = starting.await.map_err(|error| error.to_string())??;
        Ok(Self { number, server, listening, runtime: Some(runtime) })
    }

    fn push(&self, target: &Target) -> Result<Receipt, String> {
        self.server.push(target, &Push::new("Mail", "New", "a letter")).map_err(|error| error.to_string())
    }

    fn has(&self, user: &str) -> bool {
        self.server.sessions(&Target::user(user)).is_ok_and(|sessions| !sessions.is_empty())
    }

    fn others(&self) -> usize {
        self.server.nodes().map_or(0, |(_, others)| others.len())
    }
}

/// A client's token is its user's name.
async fn bind_user(request: bothways::server::AuthRequest) -> Result<(), &'static str> {
    request.session().ok_or("it has left")?.bind_user(&request.token);
    Ok(())
}

struct Nodes {
    /// Without those that died.
    all: Vec<Node>,
    balancer: Balancer,
    users: Vec<String>,
    _between: Arc<Between>,
}

/// What is left of one.
struct Victim {
    number: usize,
    killed: Instant,
    /// The users that it had.
    users: Vec<String>,
}

impl Nodes {
    async fn start(between: Between, count: usize) -> Step<Self> {
        let (began, between) = (Instant::now(), Arc::new(between));
        let mut all = Vec::new();
        for number in 1..=count {
            all.push(Node::start(Arc::clone(&between), number).await?);
        }
        while all.iter().any(|node| node.others() != count - 1) {
            sleep(Duration::from_millis(10)).await;
        }
        let balancer = Balancer::start(&all).await?;
        let text = format!(
            "{count} have joined and know each other, after {}; a balancer before them listens on {}",
            term::time(began.elapsed()),
            balancer.address
        );
        Ok((text, Self { all, balancer, users: Vec::new(), _between: between }))
    }

    async fn connect(&mut self, count: usize) -> Step<Vec<Guest>> {
        let mut crowd = Vec::new();
        for number in 1..=count {
            let user = format!("client-{number}");
            crowd.push(Guest::connect(self.balancer.address, &user).await?);
            self.users.push(user);
        }
        self.until_all_are_somewhere().await;
        let at = |node: &Node| self.users.iter().filter(|user| node.has(user)).count();
        let at: Vec<String> = self.all.iter().map(|node| at(node).to_string()).collect();
        Ok((format!("{count} connect by the balancer's address: the nodes have {}", at.join(", ")), crowd))
    }

    async fn until_all_are_somewhere(&self) {
        while !self.users.iter().all(|user| self.all.iter().any(|node| node.has(user))) {
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn first(&self) -> Result<&Node, String> {
        self.all.first().ok_or_else(|| "no node is left".to_owned())
    }

    /// A user who is at the last node and not at the first one.
    fn far(&self) -> Result<(&str, usize), String> {
        let (first, last) = (self.first()?, self.all.last().ok_or("no node is left")?);
        let user = self.users.iter().find(|user| last.has(user) && !first.has(user));
        Ok((user.ok_or("no client is at another node")?, last.number))
    }

    async fn push_far(&self) -> Step<()> {
        let (user, number) = self.far()?;
        let began = Instant::now();
        let outcomes = self.first()?.push(&Target::user(user))?.handled().await;
        let time = term::time(began.elapsed());
        match (outcomes.at(Stage::Handled), outcomes.targets()) {
            (1, 1) => Ok((format!("pushes to {user}, who is at node {number}: handled by 1 of 1, after {time}"), ())),
            (handled, all) => Err(format!("handled by {handled} of {all}")),
        }
    }

    /// `lost`: so many nodes have died lately, of which the receipt says that it does not know whether they did.
    async fn push_to_all(&self, crowd: &[Guest], lost: usize) -> Step<()> {
        let node = self.all.get(1).ok_or("no second node is left")?;
        let began = Instant::now();
        let receipt = node.push(&Target::everyone())?;
        let outcomes = receipt.handled().await;
        let (handled, all, time) = (outcomes.at(Stage::Handled), crowd.len(), term::time(began.elapsed()));
        if handled != all || receipt.unreached().len() != lost {
            return Err(format!("handled by {handled} of {all}; {} nodes not reached", receipt.unreached().len()));
        }
        let nodes = term::count(self.all.len() as u64, "node");
        Ok((format!("pushes to everyone: handled by {handled} of {all}, at {nodes}, after {time}"), ()))
    }

    async fn call_far(&self) -> Step<()> {
        let (user, number) = self.far()?;
        let began = Instant::now();
        let caller = self.first()?.server.user(user);
        let answer = caller.call_typed::<_, String>("Client", "Name", "who are you?", CallOptions::new()).await;
        let answer = answer.map_err(|error| error.to_string())?.value;
        if answer != user {
            return Err(format!("{user} answered `{answer}`"));
        }
        let time = term::time(began.elapsed());
        Ok((format!("calls {user} at node {number}: Client.Name \"who are you?\" = \"{answer}\", after {time}"), ()))
    }

    async fn kill(&mut self) -> Step<Victim> {
        let node = self.all.pop().ok_or("no node is left")?;
        let users: Vec<String> = self.users.iter().filter(|user| node.has(user)).cloned().collect();
        let number = node.number;
        let runtime = node.runtime.is_some();
        drop(node);
        if !runtime || users.is_empty() {
            return Err(format!("node {number} has no clients"));
        }
        let text = format!("kills node {number}, which has {}: no goodbye, its sockets are gone", named(&users));
        Ok((text, Victim { number, killed: Instant::now(), users }))
    }

    async fn push_meanwhile(&self, victim: &Victim) -> Step<()> {
        let receipt = self.first()?.push(&Target::everyone())?;
        let began = Instant::now();
        let outcomes = receipt.handled().await;
        let said = match (receipt.unreached().first(), outcomes.at(Stage::Unknown)) {
            (Some(lost), _) => format!("a node is missing ({:?})", lost.why),
            // It had taken the push as it died.
            (None, unknown @ 1..) => format!("a node is gone with what it had taken ({unknown} Unknown)"),
            (None, 0) => return Err(format!("nothing is said of node {}", victim.number)),
        };
        Ok((
            format!(
                "pushes to everyone: handled by {} of those who are there, and the receipt says after {} that {said}",
                outcomes.at(Stage::Handled),
                term::time(began.elapsed()),
            ),
            (),
        ))
    }

    async fn come_back(&self, crowd: &mut [Guest], victim: &Victim) -> Step<()> {
        for guest in crowd.iter_mut().filter(|guest| victim.users.contains(&guest.user)) {
            loop {
                match guest.events.recv().await {
                    Some(ConnectionEvent::Restored { .. }) => break,
                    Some(_) => {}
                    None => return Err(format!("{} is gone", guest.user)),
                }
            }
        }
        self.until_all_are_somewhere().await;
        let time = term::time(victim.killed.elapsed());
        Ok((
            format!(
                "{} lost their connection, and are back at other nodes by themselves after {time}",
                named(&victim.users)
            ),
            (),
        ))
    }

    async fn forget(&self, victim: &Victim) -> Step<()> {
        let left = self.all.len() - 1;
        for node in &self.all {
            // It is missing from the list first, and dead when nothing is sent there any more.
            while node.server.cluster_stats().is_none_or(|stats| stats.members != left) {
                sleep(Duration::from_millis(10)).await;
            }
        }
        let time = term::time(victim.killed.elapsed());
        let number = victim.number;
        Ok((format!("count node {number} as dead after {time}: its lease has ended, and a gravestone is on it"), ()))
    }

    async fn stop(self, crowd: Vec<Guest>) -> Step<()> {
        let began = Instant::now();
        crowd.iter().for_each(|guest| guest.client.close());
        for node in &self.all {
            let (server, grace) = (node.server.clone(), Duration::from_secs(2));
            let Some(runtime) = &node.runtime else { continue };
            let report = runtime.spawn(async move { server.shutdown(grace).await }).await;
            report.map_err(|error| error.to_string())?;
        }
        Ok((format!("leave the cluster and stop, in {}", term::time(began.elapsed())), ()))
    }
}

fn named(users: &[String]) -> String {
    match users {
        [one] => one.clone(),
        [first, .., last] => format!("{first} … {last} ({})", users.len()),
        [] => "nobody".to_owned(),
    }
}

/// One address before all nodes: each connection goes to the next that takes it.
struct Balancer {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Balancer {
    async fn start(nodes: &[Node]) -> Result<Self, String> {
        let place = |node: &Node| node.listening.address().rsplit('@').next().unwrap_or_default().to_owned();
        let places: Arc<Vec<String>> = Arc::new(nodes.iter().map(place).collect());
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let next = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, Arc::clone(&places), Arc::clone(&next)));
            }
        });
        Ok(Self { address, task: task.abort_handle() })
    }
}

async fn forward(mut client: TcpStream, places: Arc<Vec<String>>, next: Arc<AtomicUsize>) {
    for _ in 0..places.len() {
        let at = next.fetch_add(1, Ordering::Relaxed) % places.len();
        if let Ok(mut node) = TcpStream::connect(&places[at]).await {
            // Both ends are told by the end of the other one.
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}

/// A client, and what it is told of its connection.
struct Guest {
    user: String,
    client: Client,
    events: UnboundedReceiver<ConnectionEvent>,
}

impl Guest {
    async fn connect(address: SocketAddr, user: &str) -> Result<Self, String> {
        let name = user.to_owned();
        let handlers = Router::new()
            .handler("Mail", "New", |_: Request| std::future::ready(Reply::ok(Bytes::new())))
            .function("Client", "Name", move |_question: String| {
                let name = name.clone();
                async move { Ok::<_, String>(name) }
            });
        let options = ClientOptions::new().auth(user).backoff(Duration::from_millis(50), Duration::from_secs(1));
        let client = Client::with_handlers(&format!("tcp@{address}"), options, handlers).await;
        let client = client.map_err(|error| error.to_string())?;
        let (mut heard, (tell, events)) = (client.events(), mpsc::unbounded_channel());
        tokio::spawn(async move {
            while let Some(event) = heard.next().await {
                if tell.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self { user: user.to_owned(), client, events })
    }
}

#[cfg(feature = "nats")]
mod nats {
    //! A NATS server for this demo, in a folder of its own.

    use std::{
        env, fs,
        path::{Path, PathBuf},
        process::Stdio,
        time::Duration,
    };

    use tempfile::TempDir;
    use tokio::process::{Child, Command};

    /// A server, which ends with it.
    pub(super) struct Broker {
        pub(super) url: String,
        pub(super) version: String,
        _child: Child,
        _folder: TempDir,
    }

    /// The first that is new enough: named by a variable, or on the path.
    pub(super) fn program() -> Option<(PathBuf, String)> {
        let name = format!("nats-server{}", env::consts::EXE_SUFFIX);
        let named = env::var_os("BOTHWAYS_NATS_SERVER").map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let all = named.into_iter().chain(env::split_paths(&path).map(|folder| folder.join(&name)));
        all.into_iter().filter(|program| program.is_file()).find_map(|program| {
            let version = version(&program)?;
            Some((program, version))
        })
    }

    /// What it says of itself, if it is new enough.
    fn version(program: &Path) -> Option<String> {
        let said = std::process::Command::new(program).arg("--version").output().ok()?;
        let said = String::from_utf8(said.stdout).ok()?;
        let mut numbers = said.split_once(": v")?.1.split('.').map(|part| part.parse::<u32>().ok());
        let is_new = (Some(2), Some(11)) <= (numbers.next().flatten(), numbers.next().flatten());
        is_new.then(|| said.trim().replace(':', ""))
    }

    impl Broker {
        pub(super) async fn start((program, version): &(PathBuf, String)) -> Result<Self, String> {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let child = Command::new(program)
                .args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir"])
                .arg(folder.path())
                .arg("--ports_file_dir")
                .arg(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .map_err(|error| format!("nats-server does not start: {error}"))?;
            // It takes a free port, and writes here which one.
            let ports = format!("nats-server_{}.ports", child.id().unwrap_or_default());
            let ports = folder.path().join(ports);
            let url = loop {
                if let Some(url) = fs::read(&ports).ok().and_then(|ports| url_in(&ports)) {
                    break url;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            Ok(Self { url, version: version.clone(), _child: child, _folder: folder })
        }
    }

    fn url_in(ports: &[u8]) -> Option<String> {
        let ports: serde_json::Value = serde_json::from_slice(ports).ok()?;
        ports["nats"][0].as_str().map(str::to_owned)
    }
}
