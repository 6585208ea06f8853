//! The whole framework in one process, over a real port. Each step is printed and checked.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bothways::{
    CallOptions, Caller, Client, ClientOptions, CloseReason, Connection, ConnectionEvent, Encode, Metadata,
    OutgoingOptions, QueueBound, Reply, Request, Router, SerializeType, Server, Timeouts, connection::ConnectionId,
    raw, server::Listening,
};
use bothways_proto::{Header, Limits, Seq, frame};
use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use crate::{
    args::DemoArgs,
    failure::{Exit, Failure},
    latency::Latency,
    nodes_demo,
    service::{self, Answer, Numbers, Remembered},
    term::{self, Out, Paint},
    web_demo,
};

/// What a step may take before it counts as not having happened.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Pushes that may wait for one client: few, so that a queue fills within the demo.
const QUEUE_FRAMES: usize = 32;

/// Bytes of each push while one client stalls.
const TICK_BYTES: usize = 8 << 10;

/// How long a client may take no byte before the server gives it up.
const WRITE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The name of the client that stalls.
const STALLER: &str = "staller";

pub(crate) async fn run(args: DemoArgs) -> Result<(), Failure> {
    if let Some(address) = args.web {
        return web_demo::run(address).await;
    }
    let mut story = Story::new()?;
    let (clients, stall) = (usize::from(args.clients), Duration::from_secs(args.seconds));
    let told = match args.nodes.map(usize::from) {
        // Each node has some.
        Some(nodes) => nodes_demo::tell(&mut story, nodes, clients.max(2 * nodes)).await,
        None => tell(&mut story, clients, stall).await,
    };
    let elapsed = term::time(story.began.elapsed());
    match told {
        Ok(()) => {
            let done = story.paint.green(&format!("All {} steps happened, in {elapsed}.", story.steps));
            story.out.line(&format!("\n{done}"))?;
            story.out.line(
                "Next: `bothways serve` in one terminal, and in another\n      \
                 bothways listen 127.0.0.1:8972 --call Arith.Mul '{\"A\":10,\"B\":20}'",
            )
        }
        Err(Ended::Output(failure)) => Err(failure),
        Err(Ended::Step(why)) => {
            Err(Failure::new(Exit::Peer, format!("step {} did not happen: {why}", story.steps + 1)))
        }
    }
}

async fn tell(story: &mut Story, clients: usize, stall: Duration) -> Result<(), Ended> {
    story.out.line("Bothways: a server and its clients, in one process, over a real port.")?;

    story.chapter("Clients call the server")?;
    let mut stage = story.step("server", Stage::set()).await?;
    let mut crowd = story.step("clients", stage.connect(clients)).await?;
    story.step("client 1", crowd.call()).await?;

    story.chapter("The server speaks first")?;
    story.step("server", stage.push_to_one(&mut crowd)).await?;
    story.step("server", stage.push_to_all(&mut crowd)).await?;
    story.step("server", stage.call_client(clients)).await?;

    story.chapter("A connection is cut")?;
    story.step("server", stage.cut(&mut crowd)).await?;
    story.step("client 1", stage.comes_back(&mut crowd)).await?;

    story.chapter("One client stops reading")?;
    let staller = story.step(STALLER, stage.stall()).await?;
    story.allow(stall);
    story.step("server", stage.push_past_staller(&mut crowd, stall)).await?;
    story.step("server", stage.give_up_staller(staller)).await?;

    story.chapter("The end")?;
    story.step("server", stage.stop(&mut crowd)).await
}

/// Why the story ends early.
pub(crate) enum Ended {
    /// A step did not happen.
    Step(String),
    /// Nobody reads it any more.
    Output(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Output(failure)
    }
}

/// What is told: a line for each step, with the time since the beginning.
pub(crate) struct Story {
    began: Instant,
    pub(crate) out: Out,
    paint: Paint,
    steps: usize,
    allowed: Duration,
}

impl Story {
    fn new() -> Result<Self, Failure> {
        Ok(Self { began: Instant::now(), out: Out::new(), paint: Paint::stdout(), steps: 0, allowed: STEP_TIMEOUT })
    }

    pub(crate) fn chapter(&self, title: &str) -> Result<(), Failure> {
        self.out.line(&format!("\n{}", self.paint.bold(title)))
    }

    /// The next step may take this much longer.
    pub(crate) fn allow(&mut self, more: Duration) {
        self.allowed = STEP_TIMEOUT + more;
    }

    /// Takes one step and tells it. A step that takes too long has not happened.
    pub(crate) async fn step<T>(&mut self, who: &str, step: impl Future<Output = Step<T>>) -> Result<T, Ended> {
        // A longer time was allowed for one step only.
        let allowed = std::mem::replace(&mut self.allowed, STEP_TIMEOUT);
        let taken = tokio::time::timeout(allowed, step).await;
        let taken = taken.unwrap_or_else(|_| Err(format!("it was not done within {}", term::time(allowed))));

        let at = self.began.elapsed().as_secs_f64();
        let (mark, text) = match &taken {
            Ok((text, _)) => (self.paint.green("ok"), text.as_str()),
            Err(why) => (self.paint.red("NO"), why.as_str()),
        };
        let at = self.paint.dim(&format!("{at:>7.3} s"));
        // The time, the mark and the name take 25 columns.
        let lines = text.lines().flat_map(|line| term::wrap_at(&term::one_line(line), 0, 80 - 25));
        for (number, line) in lines.enumerate() {
            match number {
                0 => self.out.line(&format!("{at}  {mark}  {who:<9} {line}"))?,
                _ => self.out.line(&format!("{:>25}{line}", ""))?,
            }
        }

        let (_, value) = taken.map_err(Ended::Step)?;
        self.steps += 1;
        Ok(value)
    }
}

/// What a step says, and what it leaves; or why it did not happen.
pub(crate) type Step<T> = Result<(String, T), String>;

/// The server and what it knows.
struct Stage {
    server: Server,
    listening: Option<Listening>,
    members: Members,
    ended: UnboundedReceiver<(ConnectionId, CloseReason)>,
}

/// Who joined, by name.
type Members = Arc<Mutex<HashMap<String, Connection>>>;

impl Stage {
    async fn set() -> Step<Self> {
        let members = Members::default();
        let joining = Arc::clone(&members);
        let (end, ended) = mpsc::unbounded_channel();
        let server = Server::builder()
            .router(service::routes(&Remembered::default(), &Remembered::default()))
            .handler("Demo", "Join", move |request: Request| std::future::ready(join(&joining, request)))
            .on_disconnect(move |connection, reason| {
                // At the very end nobody listens any more.
                let _ = end.send((connection.id(), reason.clone()));
            })
            .outgoing(OutgoingOptions::new().push_queue(QueueBound::messages(QUEUE_FRAMES).bytes(1 << 20)))
            .timeouts(Timeouts::new().write(WRITE_TIMEOUT))
            .build();
        let listening = server.listen("tcp@127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let text = format!("listens on {}", listening.address());
        Ok((text, Self { server, listening: Some(listening), members, ended }))
    }

    fn address(&self) -> &str {
        self.listening.as_ref().map_or("", Listening::address)
    }

    fn member(&self, name: &str) -> Result<Connection, String> {
        lock(&self.members).get(name).cloned().ok_or_else(|| format!("`{name}` has not joined"))
    }

    async fn connect(&self, clients: usize) -> Step<Crowd> {
        let began = Instant::now();
        let mut crowd = Vec::new();
        for number in 1..=clients {
            crowd.push(Guest::connect(self.address(), format!("client {number}")).await?);
        }
        let joined = lock(&self.members).len();
        if joined != clients {
            return Err(format!("{joined} of {clients} clients joined"));
        }
        let text = format!("{clients} connected and joined, in {}", term::time(began.elapsed()));
        Ok((text, Crowd { guests: crowd }))
    }

    async fn push_to_one(&self, crowd: &mut Crowd) -> Step<()> {
        let began = Instant::now();
        let connection = self.member("client 1")?;
        let metadata = Metadata::new().with("for", "client 1");
        self.server
            .send_message(&connection, "test_service_path", "test_service_method", &metadata, "abcde")
            .map_err(|error| error.to_string())?;
        let (first, others) = crowd.guests.split_first_mut().ok_or("there are no clients")?;
        first.expect("abcde").await?;
        let time = term::time(began.elapsed());
        // Whatever went to others was sent before this call is answered.
        for other in others {
            other.call().await?;
            if other.heard.try_recv().is_ok() {
                return Err(format!("{} got it too", other.name));
            }
        }
        Ok((format!("pushes \"abcde\" to client 1 ({}): there after {time}, and nowhere else", connection.id()), ()))
    }

    async fn push_to_all(&self, crowd: &mut Crowd) -> Step<()> {
        let began = Instant::now();
        let metadata = Metadata::new();
        let outcome =
            raw::broadcast(&self.server, "test_service_path", "test_service_method", &metadata, b"hello, all of you")
                .map_err(|error| error.to_string())?;
        for guest in &mut crowd.guests {
            guest.expect("hello, all of you").await?;
        }
        let all = crowd.guests.len();
        if outcome.queued != all {
            return Err(format!("{} of {all} connections took it", outcome.queued));
        }
        Ok((format!("pushes to all, encoded once: {all} of {all} have it after {}", term::time(began.elapsed())), ()))
    }

    async fn call_client(&self, clients: usize) -> Step<()> {
        let name = format!("client {clients}");
        let connection = self.member(&name)?;
        let began = Instant::now();
        let options = CallOptions::new().timeout(Duration::from_secs(2));
        let question = "who are you?".to_owned();
        let answer = connection.call_typed::<_, String>("Client", "Name", &question, options).await;
        let answer = answer.map_err(|error| error.to_string())?.value;
        if answer != name {
            return Err(format!("`{name}` answered `{answer}`"));
        }
        let time = term::time(began.elapsed());
        Ok((format!("calls a client: Client.Name \"who are you?\" = \"{answer}\"   {time}"), ()))
    }

    async fn cut(&mut self, crowd: &mut Crowd) -> Step<()> {
        let connection = self.member("client 1")?;
        connection.close();
        match crowd.guests[0].events.recv().await {
            Some(Event::Lost(CloseReason::PeerClosed)) => {
                Ok((format!("closes the connection {}; the client is told: lost", connection.id()), ()))
            }
            other => Err(format!("the client was told {other:?}")),
        }
    }

    async fn comes_back(&mut self, crowd: &mut Crowd) -> Step<()> {
        let began = Instant::now();
        let guest = &mut crowd.guests[0];
        match guest.events.recv().await {
            Some(Event::Back) => {}
            other => return Err(format!("the client was told {other:?}")),
        }
        let time = term::time(began.elapsed());
        let connection = self.member(&guest.name)?;
        connection
            .send_message("test_service_path", "test_service_method", &Metadata::new(), "welcome back")
            .map_err(|error| error.to_string())?;
        guest.expect("welcome back").await?;
        Ok((format!("comes back by itself after {time} as {}, joins again, and pushes reach it", connection.id()), ()))
    }

    /// A plain socket that joins and then never reads.
    async fn stall(&self) -> Step<Staller> {
        let port = self.address().rsplit(':').next().unwrap_or_default();
        let address = format!("127.0.0.1:{port}").parse().map_err(|_| "the server has no port")?;
        let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;

        // Little room in the system, so that the server's own queue is what fills.
        socket.set_recv_buffer_size(4096).map_err(|error| error.to_string())?;
        let mut socket = socket.connect(address).await.map_err(|error| error.to_string())?;

        let name = STALLER.to_owned().encode(SerializeType::MSGPACK).map_err(|error| error.to_string())?;
        let header = Header::oneway(Seq::new(0), SerializeType::MSGPACK);
        let join = frame(header, "Demo", "Join", &Metadata::new(), &name, &Limits::default());
        socket.write_all(&join.map_err(|error| error.to_string())?).await.map_err(|error| error.to_string())?;

        // Its reply is not read, so only the server can tell that it has joined.
        let connection = loop {
            match self.member(STALLER) {
                Ok(connection) => break connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };

        let text = format!("joins as {} and reads nothing from now on", connection.id());
        Ok((text, Staller { _socket: socket, connection }))
    }

    async fn push_past_staller(&self, crowd: &mut Crowd, stall: Duration) -> Step<()> {
        let rate = (8000 / crowd.guests.len()).clamp(20, 200);
        let mut beats = tokio::time::interval(Duration::from_secs(1) / rate as u32);
        let (began, all) = (Instant::now(), crowd.guests.len());
        let mut latency = Latency::new();
        let (mut pushes, mut refused, mut waiting) = (0_u64, 0, 0);
        let payload = "x".repeat(TICK_BYTES);

        while began.elapsed() < stall {
            beats.tick().await;
            let sent = Instant::now();
            let outcome = raw::broadcast(&self.server, "Demo", "Tick", &Metadata::new(), payload.as_bytes())
                .map_err(|error| error.to_string())?;
            pushes += 1;
            refused += outcome.full;

            if let Ok(connection) = self.member(STALLER) {
                waiting = waiting.max(connection.stats().pushes_waiting);
            }
            for guest in &mut crowd.guests {
                let heard = guest.expect(&payload).await?;
                latency.record(heard.duration_since(sent));
            }
        }

        // While one client reads nothing, calls must be answered too.
        let calling = Instant::now();
        crowd.guests[0].call().await?;
        let called = term::time(calling.elapsed());
        // Only a full queue shows what the staller does to the others.
        if refused == 0 {
            return Err("its queue never filled".into());
        }

        let quantiles = latency.quantiles();
        let times = |micros: f64| term::time(Duration::from_nanos((micros * 1e3) as u64));
        Ok((
            format!(
                "pushes {pushes} times {} KiB to all: each of the other {all} got every one \
                 after p50 {}, p99 {}; a call meanwhile took {called}.\n\
                 Of the staller's pushes {waiting} wait;\n\
                 {refused} were refused and counted",
                TICK_BYTES >> 10,
                times(quantiles.p50_us),
                times(quantiles.p99_us),
            ),
            (),
        ))
    }

    async fn give_up_staller(&mut self, staller: Staller) -> Step<()> {
        loop {
            match self.ended.recv().await {
                Some((id, CloseReason::SlowPeer(why))) if id == staller.connection.id() => {
                    return Ok((format!("gave the staller up: {why} ({})", term::time(WRITE_TIMEOUT)), ()));
                }
                // The connection that was cut before.
                Some((id, _)) if id != staller.connection.id() => {}
                Some((_, reason)) => return Err(format!("it ended, but so: {reason}")),
                None => return Err("the server ended first".into()),
            }
        }
    }

    async fn stop(mut self, crowd: &mut Crowd) -> Step<()> {
        self.listening = None;
        let began = Instant::now();
        let report = self.server.shutdown(Duration::from_secs(2)).await;
        for guest in &mut crowd.guests {
            match guest.events.recv().await {
                Some(Event::Lost(CloseReason::Goodbye { .. })) => guest.client.close(),
                other => return Err(format!("{} was told {other:?} instead of goodbye", guest.name)),
            }
        }
        if report.calls_unfinished != 0 || report.connections_cut != 0 {
            return Err(format!("it did not stop in good order: {report:?}"));
        }
        let (time, all) = (term::time(began.elapsed()), crowd.guests.len());
        Ok((format!("stops in {time}: said goodbye to all {all}, no call unfinished, no connection cut"), ()))
    }
}

/// The socket that nobody reads, and the server's side of it.
struct Staller {
    _socket: TcpStream,
    connection: Connection,
}

/// Remembers the caller under the name that it gives.
fn join(members: &Members, request: Request) -> Reply {
    match request.into_typed::<String>() {
        Ok((context, name)) => {
            lock(members).insert(name, context.connection().clone());
            context.into_reply(Ok::<_, String>(()))
        }
        Err(refusal) => refusal,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All clients but the one that stalls.
struct Crowd {
    guests: Vec<Guest>,
}

impl Crowd {
    async fn call(&self) -> Step<()> {
        let mut first = None;
        for guest in &self.guests {
            let time = guest.call().await?;
            first.get_or_insert(time);
        }
        let time = term::time(first.unwrap_or_default());
        let others = term::count(self.guests.len() as u64 - 1, "other");
        Ok((format!("calls Arith.Mul 10 * 20 = 200   {time}   (and so do the {others})"), ()))
    }
}

/// One client, as an application would have it: handlers for what comes, and an ear for losses.
struct Guest {
    name: String,
    client: Client,
    heard: UnboundedReceiver<(Bytes, Instant)>,
    events: UnboundedReceiver<Event>,
}

/// What a client was told of its connection.
#[derive(Debug)]
enum Event {
    Lost(CloseReason),
    /// The connection stands again, and the server has been told who this is.
    Back,
}

impl Guest {
    async fn connect(address: &str, name: String) -> Result<Self, String> {
        let (hear, heard) = mpsc::unbounded_channel();
        let answer = name.clone();
        let handlers = Router::new()
            .handler("test_service_path", "test_service_method", hearing(hear.clone()))
            .handler("Demo", "Tick", hearing(hear))
            .function("Client", "Name", move |_question: String| {
                let answer = answer.clone();
                async move { Ok::<_, String>(answer) }
            });
        let options = ClientOptions::new().timeout(STEP_TIMEOUT).backoff(Duration::from_millis(50), STEP_TIMEOUT);
        let client = Client::with_handlers(address, options, handlers).await.map_err(|error| error.to_string())?;
        let (tell, events) = mpsc::unbounded_channel();
        let guest = Self { name, client, heard, events };
        guest.watch(tell);
        join_as(&guest.client, &guest.name).await?;
        Ok(guest)
    }

    /// A server knows nothing of a connection before this one: a client that comes back joins again.
    fn watch(&self, tell: UnboundedSender<Event>) {
        let (mut events, client, name) = (self.client.events(), self.client.clone(), self.name.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let event = match event {
                    ConnectionEvent::Lost { reason, .. } => Event::Lost(reason),
                    ConnectionEvent::Restored { .. } if join_as(&client, &name).await.is_ok() => Event::Back,
                    _ => continue,
                };
                if tell.send(event).is_err() {
                    return;
                }
            }
        });
    }

    async fn call(&self) -> Result<Duration, String> {
        let began = Instant::now();
        let answer: Answer = self
            .client
            .call("Arith", "Mul", &Numbers { a: 10, b: 20 })
            .await
            .map_err(|error| format!("{}: {error}", self.name))?;
        let time = began.elapsed();
        if answer.c == 200 { Ok(time) } else { Err(format!("{}: 10 * 20 = {}", self.name, answer.c)) }
    }

    /// The next message must be this one.
    async fn expect(&mut self, payload: &str) -> Result<Instant, String> {
        match tokio::time::timeout(Duration::from_secs(3), self.heard.recv()).await {
            Ok(Some((heard, at))) if heard == payload.as_bytes() => Ok(at),
            Ok(Some((heard, _))) => Err(format!("{} got {} bytes that were not sent now", self.name, heard.len())),
            Ok(None) => Err(format!("{} is gone", self.name)),
            Err(_) => Err(format!("{} did not get the push within 3 s", self.name)),
        }
    }
}

async fn join_as(client: &Client, name: &str) -> Result<(), String> {
    client.call::<()>("Demo", "Join", &name.to_owned()).await.map_err(|error| format!("{name} cannot join: {error}"))
}

fn hearing(hear: UnboundedSender<(Bytes, Instant)>) -> impl Fn(Request) -> std::future::Ready<Reply> {
    move |request: Request| {
        if let Ok(payload) = request.payload() {
            // The demo may have ended.
            let _ = hear.send((payload, Instant::now()));
        }
        std::future::ready(Reply::ok(Bytes::new()))
    }
}
