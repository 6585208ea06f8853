//! What a server counts, as metrics. Nothing is counted here: the numbers are read when the text is made.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bothways::{WeakServer, server::ServerStats, session::QueueStats, stats::Counts};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, TypedMetric, counter::ConstCounter, gauge::ConstGauge},
};

/// See the module.
pub(crate) struct OfServer {
    server: WeakServer,
    queues: Mutex<Queues>,
}

/// The last look at all sessions.
struct Queues {
    last: Option<(Instant, QueueStats)>,
    kept_for: Duration,
}

impl OfServer {
    pub(crate) fn new(server: WeakServer, kept_for: Duration) -> Self {
        Self { server, queues: Mutex::new(Queues { last: None, kept_for }) }
    }

    pub(crate) fn keep_queues(&self, time: Duration) {
        self.queues.lock().kept_for = time;
    }

    /// Requests that no route took; `None` without a server.
    pub(crate) fn unrouted(&self) -> Option<u64> {
        Some(self.server.upgrade()?.stats().requests_unrouted)
    }

    /// What waits in all sessions, by a look that is not too old.
    fn queues(&self) -> Option<QueueStats> {
        let server = self.server.upgrade()?;
        // Held while the sessions are looked at: others who ask meanwhile take the same look.
        let mut queues = self.queues.lock();
        if let Some((at, stats)) = queues.last
            && at.elapsed() < queues.kept_for
        {
            return Some(stats);
        }
        let stats = server.queues();
        queues.last = Some((Instant::now(), stats));
        Some(stats)
    }
}

impl fmt::Debug for OfServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfServer").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Collector for OfServer {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let mut page = Page(encoder);
        let stats = server.stats();
        // Not kept while the sessions are looked at: the end of a server need not wait for that.
        drop(server);
        put_connections(&mut page, &stats)?;
        put_messages(&mut page, &stats)?;
        self.queues().map_or(Ok(()), |queues| put_sessions(&mut page, &stats, &queues))
    }
}

fn put_connections(page: &mut Page<'_>, stats: &ServerStats) -> fmt::Result {
    page.gauge("bothways_connections", "Connections that are open", stats.connections)?;
    let http = "HTTP connections of fronts at the server's port that are open";
    page.gauge("bothways_http_connections", http, stats.http_connections)?;
    page.counter("bothways_connections_accepted", "Connections that were taken", stats.connections_accepted)?;
    page.counters("bothways_close", "Connections that ended, by why", "reason", stats.closes.iter())?;
    let refused = [
        ("connection", stats.connections_refused),
        ("admission", stats.clients_not_admitted),
        ("token", stats.tokens_refused),
        ("admin", stats.admin_requests_refused),
        ("overload", stats.overloads),
    ];
    page.counters("bothways_refused", "What was refused, by what it was for", "reason", refused.into_iter())?;
    page.gauges("bothways_tasks", "Tasks that live, by kind", "kind", stats.tasks.iter())
}

fn put_messages(page: &mut Page<'_>, stats: &ServerStats) -> fmt::Result {
    let frames = [("in", stats.frames_in), ("out", stats.frames_out)];
    page.counters("bothways_frames", "Frames that were read and written", "direction", frames.into_iter())?;
    let bytes = [("in", stats.bytes_in), ("out", stats.bytes_out)];
    page.counters("bothways_bytes", "Bytes of frames that were read and written", "direction", bytes.into_iter())?;
    page.gauge("bothways_calls_running", "Requests whose handlers run", stats.calls_running)?;
    page.counters("bothways_errors", "Replies that were errors, by code", "code", stats.errors.iter())?;
    page.pushes(stats.pushes.iter())?;
    page.counters("bothways_drops", "Messages without a receipt that were given up", "reason", stats.drops.iter())?;
    page.gauge("bothways_outgoing_bytes", "Bytes that wait for sockets, of each beyond 64 KiB", stats.outgoing_bytes)
}

fn put_sessions(page: &mut Page<'_>, stats: &ServerStats, queues: &QueueStats) -> fmt::Result {
    let states = [("plain", queues.plain), ("resumable", queues.resumable), ("away", queues.away)];
    let states = states.map(|(state, sessions)| (state, sessions as u64));
    page.gauges("bothways_sessions", "Sessions that live, by state", "state", states.into_iter())?;
    page.counters("bothways_resumes", "Clients that named a session, by result", "result", stats.resumes.iter())?;
    page.gauge("bothways_pushes_waiting", "Pushes that wait or are not yet handled", queues.pushes)?;
    page.queues(queues)
}

/// The text that is being made.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl TryInto<i64>) -> fmt::Result {
        let gauge = ConstGauge::new(value.try_into().unwrap_or(i64::MAX));
        gauge.encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let gauge = |count| ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        self.family(name, help, label, values.map(|(value, count)| (value, gauge(count))))
    }

    fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        self.family(name, help, label, values.map(|(value, count)| (value, ConstCounter::new(count))))
    }

    /// One metric for each value of a label.
    fn family<'v, M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        metrics: impl Iterator<Item = (&'v str, M)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, M::TYPE)?;
        for (value, metric) in metrics {
            metric.encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    fn pushes<'v>(&mut self, classes: impl Iterator<Item = (&'static str, &'v Counts)>) -> fmt::Result {
        let help = "Pushes to sessions that ended, each once for every session, by class and last stage";
        let mut metric = self.0.encode_descriptor("bothways_pushes", help, None, MetricType::Counter)?;
        for (class, counts) in classes {
            for (stage, count) in counts.iter() {
                ConstCounter::new(count).encode(metric.encode_family(&[("class", class), ("stage", stage)])?)?;
            }
        }
        Ok(())
    }

    /// Each session is one observation of this moment.
    fn queues(&mut self, queues: &QueueStats) -> fmt::Result {
        let help = "Bytes of pushes that wait or are not yet handled, of each session that lives now";
        let mut metric = self.0.encode_descriptor("bothways_queue_bytes", help, None, MetricType::Histogram)?;
        let bounds = QueueStats::BOUNDS.map(|bound| bound as f64).into_iter().chain([f64::INFINITY]);
        let counts = queues.sessions_by_bytes.into_iter().chain([queues.sessions_beyond]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let sessions = buckets.iter().map(|(_, sessions)| sessions).sum();
        metric.encode_histogram::<NoLabelSet>(queues.bytes as f64, sessions, &buckets, None)
    }
}
