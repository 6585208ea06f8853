//! A graceful stop: answers the calls that run, says goodbye, closes. All clients at once, or one by one.
//!
//! ```text
//!  shutdown   accepting ends, calls are refused ──► goodbye to all ──► nothing runs ──► all are closed
//!                                    a plain client is closed once nothing of its own runs
//!  drain      accepting ends ──► in its turn, each: goodbye and its slot ──► nothing runs of it ──► it is closed
//!                                         at the deadline: what is left is cut, and counted
//!
//!             in a cluster, its session waits here until its client has come to another node, and is parked then
//! ```

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bothways_proto::Capabilities;
use rand::seq::SliceRandom;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::{Shared, handler::RETRY_ELSEWHERE, silence::Silence};
#[cfg(feature = "cluster")]
use crate::session::SessionId;
use crate::{
    clock::{is_outside, later},
    connection::{Connection, SHUTTING_DOWN, after},
    guard::Guarded,
};

/// The result of a shutdown.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let server = bothways::Server::builder().build();
/// let report = server.shutdown(Duration::from_secs(10)).await;
/// println!("{} closed, {} cut", report.connections_closed, report.connections_cut);
/// assert_eq!((report.connections_cut, report.calls_unfinished), (0, 0));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Clients that were told goodbye, or whose Hello was being checked and was refused for now. Plain rpcx clients
    /// cannot be told: they see the end of the connection.
    pub clients_told: usize,
    /// Connections that ended before the deadline, or at it, with everything for them written and answered.
    pub connections_closed: usize,
    /// Connections that had to be cut at the deadline, with bytes for them unwritten, or calls of theirs unanswered; and
    /// HTTP connections that their front still served.
    pub connections_cut: usize,
    /// Requests whose handlers still ran at the deadline, and calls to clients without a reply by then: their callers
    /// got no reply.
    pub calls_unfinished: usize,
    /// Sessions that went on at other nodes of the cluster meanwhile.
    pub sessions_handed_over: usize,
    /// Sessions that wait in the store of the cluster, where their clients find them from any node.
    pub sessions_parked: usize,
    /// Sessions that ended with the server although their clients might have come back to them.
    pub sessions_left: usize,
    /// Pushes that these sessions had not seen handled, or not even sent: the receipts of those that were sent say
    /// [`Unknown`](crate::Stage::Unknown), of the others `Dropped`.
    pub pushes_unhandled: usize,
}

const WHY: &str = "the server is shutting down";

/// Clients that are told, or closed, before others have their turn.
const AT_ONCE: usize = 256;

/// How often a drain looks whether those who were told are done.
const SWEEP: Duration = Duration::from_millis(20);

/// How long a client that was told may take to acknowledge what it has, before its connection is closed: several times
/// what our clients take.
const ACK_GRACE: Duration = Duration::from_millis(500);

/// How long nothing may come of a client that was told, and says which request is its last, until it has said so.
const LAST_SILENCE: Duration = Duration::from_secs(1);

/// How long after its slot a client may take to come to another node of the cluster. Until then its session is here, a
/// target of pushes, and goes there directly; afterwards it is parked, and no target. Several times what clients take.
#[cfg(feature = "cluster")]
const COMES_MAX: Duration = Duration::from_secs(2);

/// How long the hooks of connections that are cut at the deadline may take, beyond it.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Stops on any thread: one without a runtime has it done in one where the server listens.
pub(super) async fn anywhere(
    shared: &Arc<Shared>,
    stop: impl Future<Output = ShutdownReport> + Send + 'static,
) -> ShutdownReport {
    if !is_outside() {
        return stop.await;
    }
    if let Some(runtime) = shared.sessions.runtimes.any() {
        let mut stopping = JoinSet::new();
        stopping.spawn_on(stop, &runtime);
        if let Some(Ok(report)) = stopping.join_next().await {
            return report;
        }
        // That runtime is gone, and what ran in it.
    }
    cut(shared).await
}

/// Stops where nobody can wait for anything.
async fn cut(shared: &Arc<Shared>) -> ShutdownReport {
    shared.stop_listening();
    let hooks = std::mem::take(&mut *shared.hooks.on_shutdown.lock());
    for hook in hooks {
        let outcome = match Guarded::begin(hook) {
            Ok(running) => running.await,
            Err(panicked) => Err(panicked),
        };
        if let Err(panicked) = outcome {
            tracing::error!(panic = panicked.text(), "a shutdown hook panicked");
        }
    }
    let connections = shared.all_connections();
    let calls_unfinished = shared.settings.load.running();
    let report = ShutdownReport { connections_cut: connections.len(), calls_unfinished, ..ShutdownReport::default() };
    end_rest(shared, &connections, report).await
}

/// Stops at once.
pub(super) async fn shutdown(shared: &Arc<Shared>, deadline: Duration) -> ShutdownReport {
    let deadline = after(deadline);
    begin(shared, deadline).await;
    let connections = shared.all_connections();

    let mut report = ShutdownReport::default();
    let mut leaving = Leaving { shared, told: Vec::new() };
    for chunk in connections.chunks(AT_ONCE) {
        for connection in chunk {
            let told = connection.turn_away(RETRY_ELSEWHERE) || connection.say_goodbye_for(SHUTTING_DOWN, WHY, None);
            report.clients_told += usize::from(told);
            if !connection.is_negotiated() {
                // Its next call is to find the end, and not to wait for the calls of others.
                leaving.add(connection.clone());
            }
        }
        tokio::task::yield_now().await;
    }

    leaving.until_all(deadline).await;
    let report = finish(shared, deadline, connections.len(), report).await;
    end_rest(shared, &shared.all_connections(), report).await
}

/// Stops client by client.
pub(super) async fn drain(shared: &Arc<Shared>, deadline: Duration, reconnects_per_second: u32) -> ShutdownReport {
    let deadline = after(deadline);
    shared.draining.store(true, Ordering::Release);
    begin(shared, deadline).await;
    let mut connections = shared.all_connections();
    connections.shuffle(&mut rand::rng());
    let count = connections.len();
    let began = Instant::now();
    // Half of the time is for telling the clients, the other half for what still runs.
    let schedule = DrainSchedule::new(count, reconnects_per_second, deadline.saturating_duration_since(began) / 2);

    let mut report = ShutdownReport::default();
    let mut leaving = Leaving { shared, told: Vec::new() };
    #[cfg(feature = "cluster")]
    let mut on_their_way = OnTheirWay::default();
    for (place, connection) in connections.into_iter().enumerate() {
        let (turn, slot) = schedule.of(place);
        leaving.until(later(began, turn)).await;
        connection.take_no_calls();
        let wait = slot - turn;
        let told = connection.turn_away(wait) || connection.say_goodbye_for(SHUTTING_DOWN, WHY, Some(wait));
        report.clients_told += usize::from(told);
        #[cfg(feature = "cluster")]
        on_their_way.add(shared, &connection, later(began, slot));
        leaving.add(connection);
    }

    leaving.until_all(deadline).await;
    let report = finish(shared, deadline, count, report).await;
    #[cfg(feature = "cluster")]
    on_their_way.until_all(shared, deadline).await;
    end_rest(shared, &shared.all_connections(), report).await
}

/// Sessions whose clients were told to go elsewhere, and until when they may come there.
#[cfg(feature = "cluster")]
#[derive(Default)]
struct OnTheirWay(Vec<(SessionId, Instant)>);

#[cfg(feature = "cluster")]
impl OnTheirWay {
    fn add(&mut self, shared: &Shared, connection: &Connection, slot: Instant) {
        let session = shared.node.get().and_then(|_| shared.sessions.made_of(connection));
        self.0.extend(session.map(|session| (session.id(), later(slot, COMES_MAX))));
    }

    /// Waits until each is at another node, or has had its time.
    async fn until_all(&mut self, shared: &Shared, deadline: Instant) {
        let is_alone = || shared.node.get().is_none_or(|node| node.others().is_empty());
        loop {
            let now = Instant::now();
            self.0.retain(|(id, until)| now < *until && shared.sessions.session_lives(*id));
            if self.0.is_empty() || deadline <= now || is_alone() {
                return;
            }
            sleep_until(deadline.min(now + SWEEP)).await;
        }
    }
}

/// When each of many clients is told, and when it is to come back, counted from the beginning.
///
/// The slots follow each other at the rate. A client is told in its slot, and used to the server until then; but all
/// are told within `telling`, so that what runs has the time behind it. What is missing to its slot, a client waits.
struct DrainSchedule {
    nanos_between: u64,
    /// What part of its slot is the turn of each.
    part: f64,
}

impl DrainSchedule {
    fn new(count: usize, per_second: u32, telling: Duration) -> Self {
        let nanos_between = 1_000_000_000 / u64::from(per_second.max(1));
        let last = Duration::from_nanos(nanos_between.saturating_mul(count as u64));
        let part = if last <= telling { 1.0 } else { telling.as_secs_f64() / last.as_secs_f64() };
        Self { nanos_between, part }
    }

    /// The turn and the slot of the client at this place.
    fn of(&self, place: usize) -> (Duration, Duration) {
        let slot = Duration::from_nanos(self.nanos_between.saturating_mul(place as u64));
        (if self.part < 1.0 { slot.mul_f64(self.part) } else { slot }, slot)
    }
}

/// Those whose clients were told, and who are not closed yet.
struct Leaving<'a> {
    shared: &'a Shared,
    told: Vec<Told>,
}

/// A client that was told.
struct Told {
    connection: Connection,
    since: Instant,
    silence: Silence,
}

impl Told {
    fn now(connection: Connection) -> Self {
        let silence = Silence::begin(&connection);
        Self { connection, since: Instant::now(), silence }
    }

    /// True while requests of the client may be on their way.
    fn may_send(&mut self) -> bool {
        let silence = self.silence.lasts(&self.connection);
        let says_so = self.connection.is_open() && self.connection.peer_can(Capabilities::LAST);
        says_so && !self.connection.has_read_last() && silence < LAST_SILENCE
    }
}

impl Leaving<'_> {
    fn add(&mut self, connection: Connection) {
        self.told.push(Told::now(connection));
    }

    /// Closes those who are done, until this moment.
    async fn until(&mut self, moment: Instant) {
        while self.sweep() < moment {
            let next = Instant::now() + SWEEP;
            sleep_until(if self.told.is_empty() { moment } else { moment.min(next) }).await;
        }
    }

    /// Closes those who are done, until all are or the deadline is there.
    async fn until_all(&mut self, deadline: Instant) {
        while self.sweep() < deadline && !self.told.is_empty() {
            sleep_until(deadline.min(Instant::now() + SWEEP)).await;
        }
    }

    /// Closes those of whom nothing runs, and from whom nothing more is to be heard. Answers the time.
    fn sweep(&mut self) -> Instant {
        let now = Instant::now();
        self.told.retain_mut(|told| {
            let may_send = told.may_send();
            let (connection, since) = (&told.connection, told.since);
            let acknowledges = || {
                let session = self.shared.sessions.made_of(connection);
                let is_negotiated = connection.is_negotiated();
                session.is_some_and(|session| session.awaits_acks() || (is_negotiated && 0 < session.waiting().0))
            };
            let stays = may_send || connection.is_busy() || (now - since < ACK_GRACE && acknowledges());
            if !stays {
                connection.close();
            }
            stays
        });
        now
    }
}

/// Nobody new comes in, and the application is told.
async fn begin(shared: &Shared, deadline: Instant) {
    // Those who leave now are not told of each other.
    shared.sessions.hub.be_quiet();
    shared.stop_listening();
    #[cfg(feature = "cluster")]
    if let Some(node) = shared.node.get() {
        node.begin_leaving();
    }
    let (connections, draining) = (shared.connections.lock().len(), shared.draining.load(Ordering::Acquire));
    tracing::info!(connections, draining, "the server begins to stop");

    // Moved out first, so that no lock is held while a hook runs.
    let hooks = std::mem::take(&mut *shared.hooks.on_shutdown.lock());
    for hook in hooks {
        // In a task of its own, so that its panic ends no shutdown.
        let running = tokio::spawn(async move {
            match Guarded::begin(hook) {
                Ok(running) => running.await,
                Err(panicked) => Err(panicked),
            }
        });

        match timeout_at(deadline, running).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(panicked))) => tracing::error!(panic = panicked.text(), "a shutdown hook panicked"),
            Ok(Err(ended)) => tracing::error!(%ended, "a shutdown hook ended with its runtime"),
            Err(_) => tracing::warn!("a shutdown hook was not done within the deadline"),
        }
    }
}

/// Waits for what runs, and closes who is still there.
async fn finish(shared: &Shared, deadline: Instant, connections: usize, mut report: ShutdownReport) -> ShutdownReport {
    all_read(shared, deadline).await;
    let _ = timeout_at(deadline, shared.settings.load.idle()).await;
    if let Some(door) = &shared.door {
        let _ = timeout_at(deadline, door.load.idle()).await;
    }
    #[cfg(feature = "ws")]
    let _ = timeout_at(deadline, shared.fronts.idle()).await;
    let calls_to_clients = answered(shared, deadline).await;
    report.calls_unfinished = shared.settings.load.running() + calls_to_clients;

    acknowledged(shared, deadline).await;
    for chunk in shared.all_connections().chunks(AT_ONCE) {
        chunk.iter().for_each(Connection::close);
        tokio::task::yield_now().await;
    }
    let _ = timeout_at(deadline, emptied(shared)).await;

    let left = shared.all_connections();
    report.connections_cut = left.iter().filter(|connection| connection.is_owed()).count();
    report.connections_closed = connections.saturating_sub(report.connections_cut);
    for connection in &left {
        connection.cut();
    }
    #[cfg(feature = "ws")]
    {
        report.connections_cut += shared.fronts.open();
        shared.fronts.end();
        let _ = timeout_at(Instant::now() + CUT_GRACE, shared.fronts.idle()).await;
    }
    let _ = timeout_at(Instant::now() + CUT_GRACE, emptied(shared)).await;
    report
}

/// Cuts who is left, and ends the sessions.
async fn end_rest(shared: &Shared, left: &[Connection], mut report: ShutdownReport) -> ShutdownReport {
    for connection in left {
        connection.cut();
    }
    #[cfg(feature = "ws")]
    shared.fronts.end();
    #[cfg(feature = "cluster")]
    if let Some(node) = shared.node.get() {
        let parking = node.park_all().await;
        (report.sessions_handed_over, report.sessions_parked) = (parking.handed_over, parking.parked);
    }
    (report.sessions_left, report.pushes_unhandled) = shared.sessions.end_all("with its server").await;
    if let Some(door) = &shared.door {
        door.close();
    }
    #[cfg(feature = "cluster")]
    if let Some(node) = shared.node.get() {
        node.leave().await;
    }
    tracing::info!(?report, "the server has stopped");
    report
}

/// Waits until the clients have sent their last requests, which are handed back.
async fn all_read(shared: &Shared, deadline: Instant) {
    let mut told: Vec<Told> = shared.all_connections().into_iter().map(Told::now).collect();
    loop {
        let now = Instant::now();
        told.retain_mut(|told| told.may_send());
        if told.is_empty() || deadline <= now {
            return;
        }
        sleep_until(deadline.min(now + SWEEP)).await;
    }
}

/// Waits until the clients have answered the calls of the server itself. Returns how many calls are left.
async fn answered(shared: &Shared, deadline: Instant) -> usize {
    let mut asked = Vec::new();
    loop {
        asked.retain(|connection: &Connection| connection.calls_to_peer() != 0);
        if asked.is_empty() {
            asked = shared.all_connections();
            asked.retain(|connection| connection.calls_to_peer() != 0);
        }
        if asked.is_empty() || deadline <= Instant::now() {
            return asked.iter().map(Connection::calls_to_peer).sum();
        }
        sleep_until(deadline.min(Instant::now() + SWEEP)).await;
    }
}

/// Waits until the clients that acknowledge have said what became of all that they were sent, but not for long: one may
/// take its time to handle something.
async fn acknowledged(shared: &Shared, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + ACK_GRACE);
    let waits = |connection: &Connection| {
        let session = shared.sessions.made_of(connection);
        connection.is_open() && session.is_some_and(|session| session.awaits_acks())
    };
    while Instant::now() < deadline && shared.all_connections().iter().any(waits) {
        sleep_until(deadline.min(Instant::now() + SWEEP)).await;
    }
}

async fn emptied(shared: &Shared) {
    loop {
        let emptied = shared.emptied.notified();
        if shared.is_emptied() {
            return;
        }
        emptied.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// With time for all, each is told in its slot; with less, earlier, and waits for the slot itself.
    #[test]
    fn slots_follow_the_rate_and_turns_the_deadline() {
        let schedule = DrainSchedule::new(300, 100, ms(3000));
        assert_eq!(
            [0, 1, 299].map(|place| schedule.of(place)),
            [(ms(0), ms(0)), (ms(10), ms(10)), (ms(2990), ms(2990))]
        );
        let schedule = DrainSchedule::new(300, 100, ms(1000));
        for place in 0..300 {
            let (turn, slot) = schedule.of(place);
            assert_eq!(slot, ms(10 * place as u64));
            assert!(turn <= slot && turn <= ms(1000), "{turn:?}");
        }
        assert!(ms(990) < schedule.of(299).0);
        assert_eq!(DrainSchedule::new(3, 0, ms(0)).of(2), (ms(0), ms(2000)), "0 a second is 1");
    }
}
