//! What changes from second to second: counters, and the feed of events.

use std::collections::BTreeMap;

use super::{
    Asking,
    views::{AdminStats, EventView, EventsAsked, EventsListed},
};
use crate::clock::unix_ms;

/// Events in one answer.
const EVENTS_MAX: usize = 200;

pub(super) fn stats(asking: &Asking) -> AdminStats {
    let stats = asking.server.stats();
    let ended = |name: &str| stats.pushes.iter().map(|(_, ends)| ends.get(name)).sum::<u64>();
    let all_ended: u64 = stats.pushes.iter().map(|(_, ends)| ends.total()).sum();
    let (handled, written) = (ended("handled"), ended("plain_written"));
    // A newer value, and one that was sent before, took the place of the others.
    let replaced = ended("superseded") + ended("duplicate");
    let counters = [
        ("connections_accepted", stats.connections_accepted),
        ("connections_refused", stats.connections_refused),
        ("clients_not_admitted", stats.clients_not_admitted),
        ("tokens_refused", stats.tokens_refused),
        ("admin_requests_refused", stats.admin_requests_refused),
        ("overloads", stats.overloads),
        ("frames_in", stats.frames_in),
        ("frames_out", stats.frames_out),
        ("bytes_in", stats.bytes_in),
        ("bytes_out", stats.bytes_out),
        ("errors", stats.errors.total()),
        ("pushes_handled", handled),
        ("pushes_written", written),
        ("pushes_missed", all_ended.saturating_sub(handled + written + replaced)),
    ];
    AdminStats {
        at_ms: unix_ms(),
        up_ms: asking.door.up().as_millis() as u64,
        is_stopping: asking.server.shared.is_stopping(),
        connections: stats.connections,
        sessions: stats.sessions,
        sessions_away: stats.sessions_away,
        calls_running: stats.calls_running,
        outgoing_bytes: stats.outgoing_bytes,
        memory_bytes: resident_bytes(),
        counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect::<BTreeMap<_, _>>(),
    }
}

/// What this process keeps in memory, where the system says so.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

pub(super) fn events(asking: &Asking, asked: &EventsAsked) -> EventsListed {
    let sessions = &asking.server.shared.sessions;
    let read = sessions.feed.read(asked.from, asked.max.clamp(1, EVENTS_MAX));

    // Whose each session is now: it had no user yet when its first events happened.
    let mut users = BTreeMap::new();
    let mut user_of = |id| users.entry(id).or_insert_with(|| sessions.user_of(id)).clone();
    let view = |fed: crate::session::Fed| EventView {
        at_ms: fed.at_ms,
        session: fed.session,
        user: user_of(fed.session).map(|user| user.to_string()),
        text: fed.event.to_string(),
        event: fed.event,
    };
    EventsListed { next: read.next, missed: read.missed, events: read.events.into_iter().map(view).collect() }
}
