//! One neutral load for every server of the contract: raw frames on epoll, a thread or two.
//!
//! It checks as it measures: each reply belongs to its call and has its bytes; each push comes once
//! and in order. Any fault ends the measurement with an error, never with a number.
//!
//! | file | what it is |
//! |---|---|
//! | `fleet.rs` | many connections on one epoll |
//! | `wire.rs` | the protocols: the contract, and those of message brokers |
//! | `closed_loop.rs`, `open_loop.rs` | calls, after each reply and at an even pace |
//! | `paced.rs` | single connections |
//! | `stalled.rs` | connections that do not read |

mod closed_loop;
mod fleet;
mod open_loop;
mod paced;
mod stalled;
mod wire;

use std::{
    cell::Cell,
    io::Write,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;

pub use self::{
    closed_loop::{Call, ClosedLoop},
    open_loop::OpenLoop,
    paced::{Paced, Single, paced},
    stalled::Stalled,
    wire::{CENTRIFUGO, NATS, PLAIN, SESSION, WS, WS_SESSION, Wire, put_ack, put_hello},
};
use self::{
    closed_loop::{Replies, closed_loop, hold},
    fleet::{Fleet, Frame, connect_waiting, read_frame},
};
use crate::{
    contract::{self, BroadcastArgs, PublishArgs, Published, put_request},
    process::Process,
};

/// Connections to one server.
#[derive(Debug)]
pub struct Load {
    /// Whose CPU time is that of the server.
    servers: Vec<Process>,
    /// Of the one that is asked to publish.
    address: SocketAddr,
    wire: &'static Wire,
    /// One for each thread.
    fleets: Vec<Fleet>,
}

/// What was measured of calls or pushes.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Calls answered, or pushes received.
    pub count: u64,
    /// Time it took.
    pub elapsed: Duration,
    /// Nanoseconds from a call to its reply, or from the clock in a push to its arrival. A server may read
    /// that clock once for all, or for each connection when its turn comes: this does not compare servers.
    pub latency: Histogram<u64>,
    /// Nanoseconds from asking for a broadcast to the arrival of each push, by the load's own clock. Of
    /// calls, the same as `latency`.
    pub since_asked: Histogram<u64>,
    /// Nanoseconds from a heartbeat to its answer, of those that were asked for.
    pub heartbeats: Histogram<u64>,
    /// CPU time that the server used.
    pub server_cpu: Duration,
    /// CPU time that the load used: near `elapsed` for each of its threads, the load is what is measured.
    pub load_cpu: Duration,
}

impl Measured {
    /// Adds another measurement of the same thing.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.elapsed += other.elapsed;
        self.latency.add(&other.latency).expect("same bounds");
        self.since_asked.add(&other.since_asked).expect("same bounds");
        self.heartbeats.add(&other.heartbeats).expect("same bounds");
        self.server_cpu += other.server_cpu;
        self.load_cpu += other.load_cpu;
    }

    /// Calls or pushes in a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time of the server for one, in nanoseconds.
    pub fn server_cpu_nanos_each(&self) -> f64 {
        self.server_cpu.as_nanos() as f64 / self.count as f64
    }
}

/// A histogram of nanoseconds from one to a minute, to three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

/// `tcp@HOST:PORT`, as servers print it.
///
/// # Errors
/// It is another network, or names no host.
pub fn socket_address(address: &str) -> anyhow::Result<SocketAddr> {
    let host_port = address.strip_prefix("tcp@").unwrap_or(address);
    host_port.to_socket_addrs()?.next().with_context(|| format!("{address} has no address"))
}

impl Load {
    /// Connects. More threads than one make sense where the server leaves more cores than one.
    ///
    /// # Errors
    /// The server does not listen, or there are no files left.
    pub fn connect(server: Process, address: &str, connections: usize, threads: usize) -> anyhow::Result<Self> {
        Self::connect_by(&PLAIN, server, address, connections, threads)
    }

    /// Connects to a server of another protocol, or with sessions.
    ///
    /// # Errors
    /// The server does not listen, says something else than was due, or there are no files left.
    pub fn connect_by(
        wire: &'static Wire,
        server: Process,
        address: &str,
        connections: usize,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let address = socket_address(address)?;
        let threads = threads.clamp(1, connections.max(1));
        let share = |thread| connections / threads + usize::from(thread < connections % threads);
        let fleets = (0..threads).map(|thread| Fleet::connect(address, share(thread), wire));
        let fleets = fleets.collect::<anyhow::Result<_>>()?;
        Ok(Self { servers: vec![server], address, wire, fleets })
    }

    /// Connects to several servers that are nodes of one cluster, as many connections to each, with a thread for each. The
    /// first one is asked to publish. CPU time of the server is that of all of them, and of those beside them.
    ///
    /// # Errors
    /// As [`Self::connect_by`]; or there is no server.
    pub fn connect_each(
        wire: &'static Wire,
        servers: &[(Process, &str)],
        beside: &[Process],
        connections: usize,
    ) -> anyhow::Result<Self> {
        let (_, first) = servers.first().context("no server to connect to")?;
        let address = socket_address(first)?;
        let fleets = servers.iter().map(|(_, address)| Fleet::connect(socket_address(address)?, connections, wire));
        let fleets = fleets.collect::<anyhow::Result<_>>()?;
        let servers = servers.iter().map(|(process, _)| *process).chain(beside.iter().copied()).collect();
        Ok(Self { servers, address, wire, fleets })
    }

    /// One call of `Echo` on each connection.
    ///
    /// # Errors
    /// A reply is wrong or does not come.
    pub fn call_each(&mut self, payload_bytes: usize) -> anyhow::Result<()> {
        let payload = pattern(payload_bytes);
        self.each_fleet(|fleet| fleet.call_each(contract::ECHO, &payload, &payload)).map(drop)
    }

    /// From now on all connections get broadcasts.
    ///
    /// # Errors
    /// A reply is wrong or does not come.
    pub fn join_all(&mut self) -> anyhow::Result<()> {
        self.each_fleet(|fleet| fleet.call_each(contract::JOIN, b"", b"")).map(drop)
    }

    /// From now on all sessions get what is published to this topic. Our server only.
    ///
    /// # Errors
    /// A reply is wrong or does not come.
    pub fn enter_all(&mut self, topic: &str) -> anyhow::Result<()> {
        self.each_fleet(|fleet| fleet.call_each(contract::ENTER, topic.as_bytes(), b"")).map(drop)
    }

    /// Begins so many calls on each connection that run as long as it. Our server only.
    ///
    /// # Errors
    /// The server does not answer a call behind them.
    pub fn hold(&mut self, calls: usize) -> anyhow::Result<()> {
        self.each_fleet(|fleet| hold(fleet, calls)).map(drop)
    }

    /// Calls in a closed loop. Each payload carries its call's number.
    ///
    /// # Errors
    /// A reply is wrong or does not come.
    pub fn closed_loop(&mut self, work: ClosedLoop) -> anyhow::Result<Measured> {
        ensure!(work.in_flight <= usize::from(u16::MAX), "at most {} calls in flight", u16::MAX);
        self.calls(work.warm_up, work.measure, |fleet, begin, end| closed_loop(fleet, work, begin, end))
    }

    /// Calls at an even pace, whether replies come or not. The latency of a call counts from when it was due.
    ///
    /// # Errors
    /// A reply is wrong or does not come.
    pub fn open_loop(&mut self, work: OpenLoop) -> anyhow::Result<Measured> {
        let threads = self.fleets.len() as f64;
        self.calls(work.warm_up, work.measure, |fleet, begin, end| {
            let calls = open_loop::open_loop(fleet, work, work.per_second / threads, begin, end)?;
            Ok(Replies { calls, heartbeats: latencies() })
        })
    }

    /// Measures from the end of the warm-up to the end.
    fn calls(
        &mut self,
        warm_up: Duration,
        measure: Duration,
        work: impl Fn(&mut Fleet, Instant, Instant) -> anyhow::Result<Replies> + Sync,
    ) -> anyhow::Result<Measured> {
        let begin = Instant::now() + warm_up;
        let end = begin + measure;
        let servers = self.servers.clone();

        thread::scope(|scope| {
            // It sleeps through the warm-up, so that only what is measured counts.
            let cpu = scope.spawn(move || {
                thread::sleep(begin.saturating_duration_since(Instant::now()));
                let before = (cpu_of(&servers)?, Process::current().cpu()?);
                thread::sleep(end.saturating_duration_since(Instant::now()));
                anyhow::Ok((cpu_of(&servers)? - before.0, Process::current().cpu()? - before.1))
            });

            let results = self.each_fleet(|fleet| work(fleet, begin, end))?;
            let (server_cpu, load_cpu) = cpu.join().expect("the watcher does not panic")?;
            let (mut latency, mut heartbeats) = (latencies(), latencies());
            for of_thread in &results {
                latency.add(&of_thread.calls).expect("same bounds");
                heartbeats.add(&of_thread.heartbeats).expect("same bounds");
            }

            let (count, since_asked) = (latency.len(), latency.clone());
            Ok(Measured { count, elapsed: measure, latency, since_asked, heartbeats, server_cpu, load_cpu })
        })
    }

    /// Asks for a broadcast and receives it on all connections, which have joined or subscribed.
    ///
    /// With `wait_for_reply` the server's own answer is waited for too, after the clock has stopped, but not that of
    /// CPU time; a server may not answer while a client does not read.
    ///
    /// # Errors
    /// A push is wrong, twice, out of order, or does not come.
    pub fn broadcast(&mut self, args: BroadcastArgs, wait_for_reply: bool) -> anyhow::Result<Measured> {
        let wire = self.wire;
        let answer = |stream: &mut TcpStream| if wait_for_reply { (wire.published)(stream) } else { Ok(()) };
        Ok(self.receive(args, |stream| (wire.publish)(stream, args), answer)?.1)
    }

    /// Asks that something is published, receives it on all connections, which have entered, and tells what
    /// became of all of it, that for others among it. Our server only.
    ///
    /// # Errors
    /// A push is wrong, twice, out of order, or does not come.
    pub fn publish(&mut self, args: PublishArgs) -> anyhow::Result<(Measured, Published)> {
        let PublishArgs { count, size, .. } = args;
        let ask = |stream: &mut TcpStream| {
            let mut request = Vec::new();
            put_request(&mut request, 1, contract::PUBLISH, args.to_string().as_bytes());
            Ok(stream.write_all(&request)?)
        };
        let answer = |stream: &mut TcpStream| {
            let frame = read_frame(stream).context("no answer to the publishing")?;
            let frame = Frame::parse(&frame)?;
            frame.must_be_reply()?;
            Published::parse(frame.payload).context("an answer that is no account")
        };
        let (published, measured) = self.receive(BroadcastArgs { count, size }, ask, answer)?;
        Ok((measured, published))
    }

    /// Asks on a connection of its own, and receives pushes on all others.
    fn receive<T>(
        &mut self,
        args: BroadcastArgs,
        ask: impl FnOnce(&mut TcpStream) -> anyhow::Result<()>,
        answer: impl FnOnce(&mut TcpStream) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, Measured)> {
        // A connection of its own asks: those of the fleet receive.
        let mut control = connect_waiting(self.address)?;
        let before = (cpu_of(&self.servers)?, Process::current().cpu()?);
        let (start, wire) = (Instant::now(), self.wire);

        ask(&mut control)?;
        let results = self.each_fleet(|fleet| receive(fleet, wire, args, start))?;
        let elapsed = start.elapsed();
        let answer = answer(&mut control)?;
        let (server_cpu, load_cpu) = (cpu_of(&self.servers)? - before.0, Process::current().cpu()? - before.1);

        let (mut latency, mut since_asked) = (latencies(), latencies());
        for of_thread in &results {
            latency.add(&of_thread.latency).expect("same bounds");
            since_asked.add(&of_thread.since_asked).expect("same bounds");
        }
        let (count, heartbeats) = (latency.len(), latencies());
        Ok((answer, Measured { count, elapsed, latency, since_asked, heartbeats, server_cpu, load_cpu }))
    }

    fn each_fleet<T: Send>(&mut self, work: impl Fn(&mut Fleet) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
        let work = &work;
        if let [fleet] = &mut *self.fleets {
            return Ok(vec![work(fleet)?]);
        }
        thread::scope(|scope| {
            let threads: Vec<_> = self.fleets.iter_mut().map(|fleet| scope.spawn(move || work(fleet))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a load thread does not panic")).collect()
        })
    }
}

fn cpu_of(processes: &[Process]) -> anyhow::Result<Duration> {
    processes.iter().map(|process| process.cpu()).sum()
}

struct Arrivals {
    latency: Histogram<u64>,
    since_asked: Histogram<u64>,
}

/// A client acknowledges after this many pushes, as the library does.
const ACK_EVERY: usize = 32;

fn receive(fleet: &mut Fleet, wire: &Wire, args: BroadcastArgs, asked: Instant) -> anyhow::Result<Arrivals> {
    #[derive(Clone, Copy, Default)]
    struct Received {
        count: usize,
        clock: u64,
        offset: Option<u64>,
    }

    let mut received = vec![Received::default(); fleet.len()];
    let mut rests = vec![Vec::new(); fleet.len()];
    let left = Cell::new(fleet.len() * args.count);
    let (mut latency, mut since_asked) = (latencies(), latencies());
    let is_done = || left.get() == 0;

    fleet.run_bytes(is_done, |place, frame, now, out| {
        wire.each_push(frame, &mut rests[place], &mut |push| {
            ensure!(push.len == args.size, "a push of {} bytes, not {}", push.len, args.size);
            let of_connection = &mut received[place];
            let Received { count, clock, offset } = *of_connection;
            // The clock goes forward, so this also finds one that came twice.
            ensure!(clock < push.clock, "a push of {} ns after one of {clock} ns", push.clock);
            let follows = offset.is_none_or(|offset| push.offset == Some(offset + 1));
            ensure!(follows, "offset {:?} after {offset:?}", push.offset);

            let count = count + 1;
            *of_connection = Received { count, clock: push.clock, offset: push.offset };
            ensure!(count <= args.count, "more pushes than were asked for");

            latency.saturating_record(now.wall.saturating_sub(push.clock).max(1));
            since_asked.saturating_record(now.instant.duration_since(asked).as_nanos() as u64);
            if let Some(offset) = push.offset.filter(|_| count == args.count || count % ACK_EVERY == 0) {
                put_ack(out, offset);
            }
            left.set(left.get() - 1);
            Ok(())
        })
    })?;
    Ok(Arrivals { latency, since_asked })
}

/// Bytes that are not all alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::{
        contract::{Origin, Promise},
        limit, server,
    };

    /// Each of our two servers, within this process.
    fn servers() -> [String; 2] {
        let (send, receive) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listening = server::server().listen("tcp@127.0.0.1:0").await.expect("listens");
                send.send(listening.address().to_owned()).expect("somebody waits");
                listening.stopped().await;
            });
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let limit = limit::address_of(listener.local_addr().expect("it listens"));
        thread::spawn(move || limit::serve(listener, 2));
        [receive.recv().expect("it listens"), limit]
    }

    #[test]
    fn every_call_is_answered_with_its_bytes() {
        for address in servers() {
            for (connections, threads, in_flight, payload_bytes) in [(1, 1, 1, 0), (3, 2, 16, 581), (2, 1, 3, 100_000)]
            {
                let mut load = Load::connect(Process::current(), &address, connections, threads).expect("connects");
                let (warm_up, measure) = (Duration::from_millis(20), Duration::from_millis(80));
                let work = ClosedLoop {
                    heartbeat_every: Some(Duration::from_millis(5)),
                    ..ClosedLoop::new(in_flight, payload_bytes, warm_up, measure)
                };
                // A busy machine may leave all of a measurement to others.
                let mut measured = (0..50).map(|_| load.closed_loop(work).expect("all is as it should be"));
                assert!(measured.any(|measured| 0 < measured.count && !measured.heartbeats.is_empty()));
                let work = OpenLoop { per_second: 500.0, payload_bytes, warm_up, measure };
                let measured = load.open_loop(work).expect("all is as it should be");
                assert!(measured.count <= 41, "{} calls", measured.count);
            }
        }
    }

    #[test]
    fn every_push_comes_once_and_in_order() {
        for address in servers() {
            let mut load = Load::connect(Process::current(), &address, 70, 2).expect("connects");
            load.call_each(581).expect("all is as it should be");
            load.join_all().expect("all is as it should be");
            for (count, size) in [(1, 8), (300, 128), (40, 16 << 10)] {
                let measured = load.broadcast(BroadcastArgs { count, size }, true).expect("all is as it should be");
                assert_eq!(measured.count, count as u64 * 70);
            }
        }
    }

    /// More than sockets hold waits for those who do not read, and the others get all of it.
    #[test]
    fn clients_that_never_read_hurt_nobody() {
        for address in servers() {
            let mut load = Load::connect(Process::current(), &address, 5, 1).expect("connects");
            load.join_all().expect("all is as it should be");
            let stalled = Stalled::connect(&address, 2, contract::JOIN).expect("connects");
            let args = BroadcastArgs { count: 1_000, size: 16 << 10 };
            let measured = load.broadcast(args, false).expect("all is as it should be");
            assert_eq!((measured.count, stalled.len()), (5_000, 2));
        }
    }

    /// Of what is published to sessions all is accounted for, and who never reads is disconnected.
    #[test]
    fn what_is_published_has_an_outcome_for_everyone() {
        let [address, _] = servers();
        let mut load = Load::connect(Process::current(), &address, 5, 1).expect("connects");
        load.enter_all("").expect("all is as it should be");
        let stalled = Stalled::connect(&address, 2, contract::ENTER).expect("connects");
        let args = PublishArgs::new(300, 8 << 10, Duration::from_millis(2));
        let (measured, published) = load.publish(args).expect("all is as it should be");
        assert_eq!(measured.count, 1_500);
        let outcomes = published.written + published.dropped_full + published.dropped_ended;
        // A client that was disconnected before the last push is no longer a target of it.
        assert!(outcomes <= 2_100 && 1_500 <= published.written && 0 < published.dropped_full, "{published:?}");
        assert!(0 < stalled.read_to_the_end().expect("disconnected"));
    }

    /// Tracked pushes are acknowledged, and those to clients that are away stay queued.
    #[test]
    fn what_is_published_is_acknowledged() {
        let [address, _] = servers();
        for (promise, origin) in [(Promise::Tracked, Origin::Handler), (Promise::History, Origin::YieldingTask)] {
            let enter = |connections| {
                let load = Load::connect_by(&SESSION, Process::current(), &address, connections, 1);
                let mut load = load.expect("connects");
                load.enter_all(promise.topic()).expect("all is as it should be");
                load
            };
            drop(enter(2));
            let args = PublishArgs { promise, origin, away: 2, ..PublishArgs::new(100, 128, Duration::ZERO) };
            let (measured, published) = enter(3).publish(args).expect("all is as it should be");
            assert_eq!((measured.count, published.handled, published.waiting), (300, 300, 200));
        }
    }

    #[test]
    fn calls_beyond_the_limit_are_refused() {
        let [address, _] = servers();
        let mut load = Load::connect(Process::current(), &address, 2, 1).expect("connects");
        load.hold(16_384).expect("they run");
        let (warm_up, measure) = (Duration::ZERO, Duration::from_millis(50));
        let work = ClosedLoop { call: Call::EchoRefused, ..ClosedLoop::new(3, 581, warm_up, measure) };
        assert!(0 < load.closed_loop(work).expect("all are refused").count);
    }

    #[test]
    fn a_large_reply_is_as_large_as_was_asked_for() {
        let [address, _] = servers();
        let mut load = Load::connect(Process::current(), &address, 1, 1).expect("connects");
        let work = ClosedLoop::fill(16 << 20, Duration::ZERO, Duration::from_secs(1));
        assert!(0 < load.closed_loop(work).expect("all are answered").count);
    }
}
