//! Our server of the contract.
//!
//! A broadcast is cut into shares, one for each thread, each a task of its own on the runtime that drives
//! its connections. A share encodes every
//! message once for all of its connections, gives each connection a batch of them, writes once, and
//! yields. Before the next batch it waits for connections that are behind and still take bytes, so
//! that a message does not age in a queue; one that takes nothing is not waited for.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways::{
    AdmissionOptions, Class, Connection, Limits, Metadata, OutgoingOptions, Overflow, Push, QueueBound, Receipt, Reply,
    Request, Server, ServerBuilder, Stage, Timeouts, codec,
    connection::ConnectionId,
    raw::{PushFrame, fan_out},
    session::{DropReason, TopicOptions},
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::JoinSet, time::MissedTickBehavior};

use crate::{
    contract::{self, BroadcastArgs, Origin, Promise, PublishArgs, Published, Stamps},
    record::{Borrowed, Record},
};

/// Bytes that may wait for one client. 64 MiB: a client that does not read loses nothing of any
/// broadcast of the table (at most 1,000 × 16 KiB), and the frames are shared, so that all such
/// clients together cost about this much once.
const PUSH_BYTES_MAX: usize = 64 << 20;

/// Pushes that may wait for one client: as many of the smallest as [`PUSH_BYTES_MAX`] holds of 64
/// bytes. An entry takes some 70 bytes, so that this is the same bound again in memory.
const PUSH_FRAMES_MAX: usize = 1 << 20;

/// Bytes of one batch to one connection: what the connection writes at once.
const BATCH_BYTES: usize = 64 << 10;

/// Most messages of one batch, so that the first is not old before the last is encoded.
const BATCH_FRAMES: usize = 256;

/// A connection for which more than this waits is behind.
const BEHIND_BYTES: usize = 256 << 10;

/// How often those who are behind are looked at.
const PACE: Duration = Duration::from_millis(1);

/// A connection that is behind and took nothing in so many looks is not waited for. Few, for all others
/// wait with it; one that was only slow to be scheduled has its queue.
const PATIENCE_LOOKS: u32 = 4;

/// Connections that are worth a share of their own.
const SHARE_CONNECTIONS: usize = 32;

/// How many messages the topic with history keeps, and for how long.
const HISTORY: (usize, Duration) = (1_000, Duration::from_secs(60));

/// While clients are away, the receipts are read this often.
const LOOK: Duration = Duration::from_millis(2);

/// The largest reply to `Fill`.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// The largest frame: such a reply must fit.
pub const FRAME_BYTES_MAX: usize = REPLY_BYTES_MAX + (1 << 20);

/// More than a frame of a push has beside its payload.
const FRAME_REST_BYTES: usize = 64;

/// A client that takes no byte for this long while bytes wait is disconnected. Shorter than the default of
/// 10 s, so that a benchmark can wait for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// A load connects all its clients before the first of them calls.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(120);

/// Each who joined, with the runtime that drives its connection.
type Joined = Arc<Mutex<HashMap<ConnectionId, (Connection, Handle)>>>;

/// The server, which listens nowhere yet.
///
/// A client whose queue is full is disconnected: it could not be told which messages it missed.
pub fn server() -> Server {
    server_with(|builder| builder)
}

/// The server with something that is chosen otherwise.
pub fn server_with(choose: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    let joined = Joined::default();
    let (join, leave) = (Arc::clone(&joined), Arc::clone(&joined));
    let zeros = Bytes::from(vec![0; REPLY_BYTES_MAX]);

    // The server holds itself, as it lives as long as its process.
    let this = Arc::new(OnceLock::<Server>::new());
    let publisher = Arc::clone(&this);

    let builder = Server::builder()
        .limits(Limits::default().body_bytes_max(FRAME_BYTES_MAX))
        .topic(Promise::History.topic(), TopicOptions::new().history(HISTORY.0, HISTORY.1))
        .expect("it is a topic")
        .outgoing(
            OutgoingOptions::new()
                .push_queue(QueueBound::messages(PUSH_FRAMES_MAX).bytes(PUSH_BYTES_MAX))
                .overflow(Overflow::Disconnect),
        )
        .timeouts(Timeouts::new().write(WRITE_TIMEOUT).first_frame(FIRST_FRAME_TIMEOUT))
        // All of a crowd come at once here, and as fast as they can.
        .admission(AdmissionOptions::new().new_sessions_rate(None).resumes_rate(None))
        .handler(contract::SERVICE, contract::ECHO, |request: Request| ready(echo(&request)))
        .function(contract::SERVICE, contract::RECORD, |record: Record| ready(Ok::<_, String>(record)))
        .handler(contract::SERVICE, contract::BORROWED, |request: Request| ready(borrowed(&request)))
        .handler(contract::SERVICE, contract::FILL, move |request: Request| ready(fill(&request, &zeros)))
        .handler(contract::SERVICE, contract::HOLD, |request: Request| async move {
            request.connection().closed().await;
            Reply::ok("")
        })
        .handler(contract::SERVICE, contract::ENTER, |request: Request| ready(enter(&request)))
        .handler(contract::SERVICE, contract::PUBLISH, move |request: Request| {
            let server = publisher.get().cloned();
            async move {
                match (server, request.payload().ok().and_then(|payload| PublishArgs::parse(&payload))) {
                    (Some(server), Some(args)) => publish(&server, args).await,
                    _ => Reply::error("the payload is not COUNT SIZE MICROS CLASS ORIGIN AWAY"),
                }
            }
        })
        .handler(contract::SERVICE, contract::JOIN, move |request: Request| {
            let connection = request.connection();
            join.lock().insert(connection.id(), (connection.clone(), Handle::current()));
            ready(Reply::ok(""))
        })
        .handler(contract::SERVICE, contract::BROADCAST, move |request: Request| {
            let joined = Arc::clone(&joined);
            async move {
                match request.payload().ok().and_then(|payload| BroadcastArgs::parse(&payload)) {
                    None => Reply::error("the payload is not COUNT SIZE"),
                    Some(args) => {
                        // A copy: the lock must not be held while the broadcast waits.
                        let joined = joined.lock().values().cloned().collect();
                        broadcast(joined, args).await
                    }
                }
            }
        })
        .on_disconnect(move |connection, _| {
            leave.lock().remove(&connection.id());
        });

    let server = choose(builder).build();
    this.get_or_init(|| server.clone());
    server
}

fn fill(request: &Request, zeros: &Bytes) -> Reply {
    let payload = request.payload().unwrap_or_default();
    match str::from_utf8(&payload).ok().and_then(|size| size.parse::<usize>().ok()) {
        Some(size) if size <= zeros.len() => Reply::ok(zeros.slice(..size)),
        _ => Reply::error(format!("the payload is not SIZE of at most {REPLY_BYTES_MAX}")),
    }
}

fn enter(request: &Request) -> Reply {
    let Some(session) = request.session() else { return Reply::error("the session has ended") };
    session.bind_user(&format!("user-{}", session.id()));
    let payload = request.payload().unwrap_or_default();
    let topic = str::from_utf8(&payload).ok().filter(|topic| !topic.is_empty());
    match session.subscribe(topic.unwrap_or(Promise::Fire.topic())) {
        Ok(()) => Reply::ok(""),
        Err(error) => Reply::error(error.to_string()),
    }
}

/// Publishes, and waits until every push to a connected client has an outcome.
async fn publish(server: &Server, args: PublishArgs) -> Reply {
    let publishing = publish_all(server.clone(), args);
    let receipts = match args.origin {
        Origin::Handler => publishing.await,
        Origin::Task | Origin::YieldingTask => match tokio::spawn(publishing).await {
            Ok(receipts) => receipts,
            Err(error) => Err(error.to_string()),
        },
    };

    let receipts = match receipts {
        Ok(receipts) => receipts,
        Err(error) => return Reply::error(error),
    };

    let session_bytes_max = server.session_bytes_max(args.size + FRAME_REST_BYTES) as u64;
    let mut published = Published { session_bytes_max, ..Published::default() };
    // Fire does not wait for who is away.
    let waiting = if args.promise == Promise::Fire { 0 } else { args.away };
    for receipt in receipts {
        let mut outcomes = if waiting == 0 { receipt.handled().await } else { receipt.outcomes() };
        while waiting < outcomes.open() {
            tokio::time::sleep(LOOK).await;
            outcomes = receipt.outcomes();
        }

        let full = outcomes.at(Stage::Dropped(DropReason::Full));
        published.written += outcomes.at(Stage::PlainWritten) as u64;
        published.handled += outcomes.at(Stage::Handled) as u64;
        published.waiting += outcomes.open() as u64;
        published.dropped_full += full as u64;
        published.dropped_ended += (outcomes.dropped() - full) as u64;
    }
    Reply::ok(published.to_string())
}

/// Publishes at an even pace, or as fast as it goes.
async fn publish_all(server: Server, args: PublishArgs) -> Result<Vec<Receipt>, String> {
    let class = if args.promise == Promise::Fire { Class::Fire } else { Class::Tracked };
    let mut ticks = (!args.every.is_zero()).then(|| tokio::time::interval(args.every));
    // After a late tick the pace stays even: there is no burst.
    ticks.iter_mut().for_each(|ticks| ticks.set_missed_tick_behavior(MissedTickBehavior::Delay));

    let (mut stamps, mut receipts) = (Stamps::default(), Vec::new());
    for _ in 0..args.count {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }

        let mut payload = vec![0; args.size];
        stamps.stamp(&mut payload);
        let push = Push::new(contract::SERVICE, contract::TICK, payload).class(class.clone());
        receipts.push(server.publish(args.promise.topic(), &push).map_err(|error| error.to_string())?);
        if args.origin == Origin::YieldingTask {
            tokio::task::yield_now().await;
        }
    }
    Ok(receipts)
}

fn echo(request: &Request) -> Reply {
    match request.payload() {
        Ok(payload) => Reply::ok(payload),
        Err(error) => Reply::error(error.to_string()),
    }
}

fn borrowed(request: &Request) -> Reply {
    let serialize = request.serialize_type();
    let payload = match request.payload() {
        Ok(payload) => payload,
        Err(error) => return Reply::error(error.to_string()),
    };
    match codec::decode_borrowed::<Borrowed<'_>>(serialize, &payload) {
        Ok(record) => Reply::encode(&record, serialize),
        Err(error) => Reply::error(error.to_string()),
    }
}

/// Pushes to all, in shares; the reply comes when everything is queued.
async fn broadcast(joined: Vec<(Connection, Handle)>, args: BroadcastArgs) -> Reply {
    let mut runtimes = HashMap::new();
    for (connection, runtime) in joined {
        runtimes.entry(runtime.id()).or_insert_with(|| (runtime, Vec::new())).1.push(connection);
    }
    let mut shares = JoinSet::new();
    for (runtime, connections) in runtimes.into_values() {
        let share = connections.len().div_ceil(runtime.metrics().num_workers()).max(SHARE_CONNECTIONS);
        for connections in connections.chunks(share) {
            shares.spawn_on(broadcast_share(connections.to_vec(), args), &runtime);
        }
    }
    match shares.join_all().await.into_iter().find_map(Result::err) {
        None => Reply::ok(""),
        Some(error) => Reply::error(error),
    }
}

async fn broadcast_share(connections: Vec<Connection>, args: BroadcastArgs) -> Result<(), String> {
    let Some(limits) = connections.first().map(|connection| connection.limits().clone()) else {
        return Ok(());
    };

    let metadata = Metadata::new();
    let mut payload = vec![0; args.size];
    let mut stamps = Stamps::default();
    let mut encode = || {
        stamps.stamp(&mut payload);
        PushFrame::new(contract::SERVICE, contract::TICK, &metadata, &payload, &limits)
    };

    let mut pace = Pace::new(&connections);
    let batch_frames = (BATCH_BYTES / args.size).clamp(1, BATCH_FRAMES);
    let mut left = args.count;

    while 0 < left {
        let batch = batch_frames.min(left);
        let frames: Result<Vec<_>, _> = (0..batch).map(|_| encode()).collect();
        let _ = fan_out(&connections, &frames.map_err(|error| error.to_string())?);
        left -= batch;
        tokio::task::yield_now().await;
        // Nobody is waited for after the last batch: what is queued is done.
        if 0 < left {
            pace.wait().await;
        }
    }
    Ok(())
}

/// Waits for those who are behind, but not for ever.
struct Pace<'a>(Vec<Receiver<'a>>);

struct Receiver<'a> {
    connection: &'a Connection,
    written_bytes: u64,
    /// Looks at it since it last took a byte.
    looks: u32,
}

impl<'a> Pace<'a> {
    fn new(connections: &'a [Connection]) -> Self {
        Self(connections.iter().map(|connection| Receiver { connection, written_bytes: 0, looks: 0 }).collect())
    }

    /// Done when nobody is behind but those who take nothing.
    async fn wait(&mut self) {
        loop {
            let mut behind = false;
            for receiver in &mut self.0 {
                behind |= receiver.is_worth_waiting();
            }
            if !behind {
                return;
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

impl Receiver<'_> {
    /// True if it is behind, and took something not long ago.
    fn is_worth_waiting(&mut self) -> bool {
        let stats = self.connection.stats();
        let took = stats.written_bytes != self.written_bytes;
        self.written_bytes = stats.written_bytes;
        self.looks = if took { 0 } else { self.looks.saturating_add(1) };
        BEHIND_BYTES < stats.push_bytes_waiting && self.looks < PATIENCE_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use bothways::{Client, ClientOptions, codec::Raw};
    use tokio::{io::AsyncWriteExt, net::TcpStream};

    use super::*;

    async fn join(address: &str) -> (Client, bothways::ServerMessages) {
        let options = ClientOptions::new().message_queue(QueueBound::messages(usize::MAX).bytes(usize::MAX));
        let (client, messages) = Client::bidirectional(address, options).await.expect("connects");
        client.call::<Raw>(contract::SERVICE, contract::JOIN, &Raw::from("")).await.expect("joins");
        (client, messages)
    }

    #[tokio::test]
    async fn a_call_comes_back_as_it_went() {
        let listening = server().listen("tcp@127.0.0.1:0").await.expect("listens");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("connects");
        let sent = Raw::from(vec![7; 581]);
        assert_eq!(client.call::<Raw>(contract::SERVICE, contract::ECHO, &sent).await.expect("answers"), sent);
        let wrong = client.call::<Raw>(contract::SERVICE, contract::BROADCAST, &Raw::from("1")).await;
        assert!(wrong.expect_err("refused").to_string().contains("COUNT SIZE"));
    }

    /// One client never reads, and the broadcast is more than sockets hold: the others get all of it.
    #[tokio::test]
    async fn a_client_that_never_reads_hurts_nobody() {
        let listening = server().listen("tcp@127.0.0.1:0").await.expect("listens");
        let address = listening.address();
        let mut stalled = TcpStream::connect(address.trim_start_matches("tcp@")).await.expect("connects");
        let join_frame = bothways_proto::frame(
            bothways_proto::Header::request(bothways_proto::Seq::new(1), bothways::SerializeType::RAW),
            contract::SERVICE,
            contract::JOIN,
            &Metadata::new(),
            b"",
            &bothways::Limits::default(),
        );
        stalled.write_all(&join_frame.expect("small")).await.expect("writes");

        let (client, mut first) = join(address).await;
        let (_other, mut second) = join(address).await;
        let args = BroadcastArgs { count: 2_000, size: 16 << 10 };
        let payload = Raw::from(args.to_string());
        client.call::<Raw>(contract::SERVICE, contract::BROADCAST, &payload).await.expect("is queued");
        for messages in [&mut first, &mut second] {
            let mut last = 0;
            for _ in 0..args.count {
                let payload = messages.next().await.expect("the connection stays").payload().expect("is plain");
                let clock = contract::stamped(&payload).expect("a clock");
                assert!(last < clock && payload.len() == args.size);
                last = clock;
            }
            assert_eq!(messages.dropped(), 0);
        }
    }
}
