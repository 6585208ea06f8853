//! Why a message arrived, or did not: the recent events of a session.
//!
//! Each session has an [`EventLog`]: a ring of its last events, [`EVENTS_MAX`] unless chosen otherwise. A push is one
//! event, which its ticket keeps up to date, so that an event log covers as many pushes as it has places. No payload,
//! metadata or token is ever kept, and every text is cut at [`TEXT_BYTES_MAX`]. An event takes
//! [`EVENT_BYTES_MAX`] at most; memory is taken as events come. The first ones, before anything is sent, are packed: of
//! most sessions there are no others.
//!
//! A session that ended leaves its event log behind, if there is something to tell: see `pasts.rs`.

mod log;
mod packed;

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use bothways_proto::one_line;
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(super) use self::log::Outcome;
use self::log::Record;
pub(super) use self::log::{CallEvent, EventLog, FlightEvent, NEVER, What, name, shared, text};
use super::{
    SessionId,
    receipt::{DropReason, Stage},
};
use crate::codec::time;

/// Events that a session keeps: some minutes of a chat, some seconds of a busy feed.
pub(super) const EVENTS_MAX: usize = 64;

/// Sessions that ended and can still be explained.
pub(super) const ENDED_MAX: usize = 4096;

/// Longer texts in an event are cut: names, reasons.
pub(super) const TEXT_BYTES_MAX: usize = 128;

/// What one event takes at most: its place in the ring, and its two texts.
pub(super) const EVENT_BYTES_MAX: usize = size_of::<Record>() + 2 * (TEXT_BYTES_MAX + 2 * size_of::<usize>());

const _: () = assert!(EVENT_BYTES_MAX <= 352, "the number in docs/slow-clients.md");

/// The recent events of one session.
///
/// ```text
/// session 0b5c… of ann, connected as c12
/// 2026-03-01 12:00:01.003 connected as c12
/// 2026-03-01 12:00:01.004 user ann
/// 2026-03-01 12:00:07.120 push Chat.say (tracked, offset 1, 45 B): written after 0 ms, received after 2 ms, handled after 2 ms
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The session.
    pub session: SessionId,
    /// The user it is, or was last, bound to.
    pub user: Option<String>,
    /// Where it stands now.
    pub standing: Standing,
    /// The oldest push that its client has received, and not handled.
    #[serde(default)]
    pub held: Option<Held>,
    /// Older events that are not kept any more.
    pub forgotten: u64,
    /// The events, oldest first.
    pub events: Vec<Happened>,
}

/// A push that a client has received, and that its application is not done with. It keeps its place in the session's
/// log; later ones that are handled do not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Held {
    /// The number under which it was sent.
    pub offset: u64,
    /// Since when it is known to be the oldest, in milliseconds.
    pub for_ms: u64,
}

/// Where a session stands.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Standing {
    /// It has this connection, such as `c12`.
    Connected(String),
    /// Its client is on this connection and wants another session back. Until it is let in this one is nobody's: no push
    /// or call is for it, and lists leave it out.
    Arriving(String),
    /// Its client is away, and may come back.
    Away,
    /// It ended.
    Ended,
}

/// One event and its time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Happened {
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: u64,
    /// The event.
    pub event: Event,
}

/// An event of a session. Times are milliseconds since the event began.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Event {
    /// Its client connected, as this connection.
    Connected(String),
    /// Its client negotiated `sessions`, and may come back to it.
    Resumable,
    /// Its client wanted another session back, and did not get it.
    NotResumed {
        /// The session that it wanted.
        wanted: String,
        /// Why not: `expired`, `gap`, `unknown` or `revoked`.
        why: String,
    },
    /// The connection was lost.
    Lost {
        /// Which, such as `c12`.
        connection: String,
        /// Why.
        why: String,
        /// True if the session waits for its client to come back.
        waits: bool,
    },
    /// Its client came back to it.
    Resumed {
        /// The new connection.
        connection: String,
        /// How many connections it has had.
        generation: u64,
        /// Tracked pushes that had been sent, and that its client had not received: they are sent again, except for
        /// expired ones.
        repeated: usize,
    },
    /// A new connection took it over while this one was still open.
    TakenOver(String),
    /// It was bound to a user; `None`: to nobody any more.
    Bound(Option<String>),
    /// It subscribed to this pattern.
    Subscribed(String),
    /// It ended a subscription.
    Unsubscribed(String),
    /// Its client was told that so many pushes were dropped since the session began.
    GapTold(u64),
    /// Something was pushed to it.
    Push {
        /// Path and method, with a dot between them.
        name: String,
        /// `fire`, `latest` or `tracked`.
        class: String,
        /// The number under which a tracked push was sent.
        offset: Option<u64>,
        /// The bytes of its frame.
        bytes: u32,
        /// How far it came.
        stage: Stage,
        /// When the kernel had it.
        written_ms: Option<u32>,
        /// When the client's library had it.
        received_ms: Option<u32>,
        /// When it ended, in any way.
        done_ms: Option<u32>,
    },
    /// Its client was called.
    Call {
        /// Path and method, with a dot between them.
        name: String,
        /// How often it was sent: more than once if the connection was lost.
        attempts: u16,
        /// Its result.
        outcome: CallOutcome,
        /// When that was.
        done_ms: Option<u32>,
    },
    /// It ended.
    Ended(String),
}

/// The result of a call to a client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum CallOutcome {
    /// It waits for its reply.
    Waits,
    /// It was answered.
    Answered,
    /// It failed, for this reason.
    Failed(String),
    /// Its caller does not wait for it any more.
    GivenUp,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.session)?;
        if let Some(user) = &self.user {
            write!(f, " of {}", one_line(user))?;
        }
        match &self.standing {
            Standing::Connected(connection) => write!(f, ", connected as {connection}")?,
            Standing::Arriving(connection) => {
                write!(f, ", arriving as {connection}: its client wants another session")?;
            }
            Standing::Away => f.write_str(", its client is away")?,
            Standing::Ended => f.write_str(", ended")?,
        }
        if let Some(Held { offset, for_ms }) = self.held {
            write!(f, "\nits client has held offset {offset} for {} s", for_ms / 1000)?;
        }
        if self.forgotten != 0 {
            write!(f, "\n({} older events are not kept)", self.forgotten)?;
        }
        self.events.iter().try_for_each(|happened| write!(f, "\n{happened}"))
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = time::rfc3339(UNIX_EPOCH + Duration::from_millis(self.at_ms), 3).unwrap_or_default();
        write!(f, "{} ", text.replace('T', " ").trim_end_matches('Z'))?;
        self.event.fmt(f)
    }
}

/// One line, whatever the names and reasons contain.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(&Told(self).to_string()).fmt(f)
    }
}

/// An event as it is told, with its names as they came.
struct Told<'a>(&'a Event);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Connected(connection) => write!(f, "connected as {connection}"),
            Event::Resumable => f.write_str("its client speaks sessions and may come back to it"),
            Event::NotResumed { wanted, why } => write!(f, "its client wanted session {wanted} back: {why}"),
            Event::Lost { connection, why, waits } => {
                let then = if *waits { "; the session waits for its client" } else { "" };
                write!(f, "connection {connection} lost: {why}{then}")
            }
            Event::Resumed { connection, generation, repeated } => {
                write!(f, "resumed as {connection}, generation {generation}; {repeated} pushes are sent again")
            }
            Event::TakenOver(connection) => write!(f, "taken over from {connection}, which was still open"),
            Event::Bound(Some(user)) => write!(f, "user {user}"),
            Event::Bound(None) => f.write_str("no user any more"),
            Event::Subscribed(pattern) => write!(f, "subscribed to {pattern}"),
            Event::Unsubscribed(pattern) => write!(f, "unsubscribed from {pattern}"),
            Event::GapTold(missed) => write!(f, "told its client that {missed} pushes were dropped so far"),
            Event::Push { name, class, offset, bytes, stage, written_ms, received_ms, done_ms } => {
                write!(f, "push {name} ({class}")?;
                if let Some(offset) = offset {
                    write!(f, ", offset {offset}")?;
                }
                write!(f, ", {bytes} B): ")?;

                for (what, after) in [("written", written_ms), ("received", received_ms)] {
                    if let Some(after) = after {
                        write!(f, "{what} after {after} ms, ")?;
                    }
                }
                if let Stage::Failed(how) = stage {
                    write!(f, "failed: {how},")?;
                }

                f.write_str(match stage {
                    Stage::Failed(_) => "",
                    Stage::Unknown => "the session ended before its client said what became of it,",
                    Stage::Queued => "waits",
                    Stage::Written => "its client has not confirmed it",
                    Stage::Received => "its client has not handled it yet",
                    Stage::Handled => "handled",
                    Stage::PlainWritten => "written, and nothing more is ever confirmed,",
                    Stage::Expired => "expired",
                    Stage::Superseded => "superseded by a newer value of its key",
                    Stage::Duplicate => "not sent, as one of the same idempotency key was,",
                    Stage::Dropped(DropReason::Full) => "dropped because too much waited already,",
                    Stage::Dropped(DropReason::Disconnected) => "dropped with its connection",
                    Stage::Dropped(DropReason::SessionEnded) => "dropped with the session",
                })?;

                done_ms.map_or(Ok(()), |after| write!(f, " after {after} ms"))
            }
            Event::Call { name, attempts, outcome, done_ms } => {
                write!(f, "call {name}")?;
                if 1 < *attempts {
                    write!(f, " (sent {attempts} times)")?;
                }

                match outcome {
                    CallOutcome::Waits => f.write_str(": waits for its reply")?,
                    CallOutcome::Answered => f.write_str(": answered")?,
                    CallOutcome::Failed(why) => write!(f, ": failed: {why};")?,
                    CallOutcome::GivenUp => f.write_str(": given up by its caller")?,
                }
                done_ms.map_or(Ok(()), |after| write!(f, " after {after} ms"))
            }
            Event::Ended(why) => write!(f, "ended: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{
        log::{Ring, Stored},
        *,
    };
    use crate::{
        connection::ConnectionId,
        session::{flight::Flight, push::Class},
    };

    fn told(event_log: &EventLog) -> Explanation {
        event_log.snapshot(SessionId::next(), None, Standing::Ended)
    }

    /// Of pushes that end together the last ones stay, and the others count as forgotten, however full the log was.
    #[test]
    fn the_last_of_those_that_end_together_stay() {
        let began = Instant::now();
        for (noted, ending) in [(0, 1), (0, 3), (0, 9), (2, 2), (2, 9), (7, 1), (7, 2), (7, 3), (7, 4), (7, 50)] {
            let event_log = EventLog::begun(3, began, What::Resumable);
            (0..noted).for_each(|_| _ = event_log.note(What::Resumable));
            let mut ended = event_log.ended(ending);
            for number in 1..=ending as u64 {
                let flight = Flight::for_test("Chat.say", began);
                ended.push(|| FlightEvent { offset: number, ..FlightEvent::for_test(&flight) });
            }
            drop(ended);
            let (story, all) = (told(&event_log), 1 + noted + ending);
            assert_eq!(
                (story.forgotten, story.events.len()),
                (all.saturating_sub(3) as u64, all.min(3)),
                "{noted} {ending}"
            );
            let offsets = story.events.iter().filter_map(|happened| match happened.event {
                Event::Push { offset, .. } => offset,
                _ => None,
            });
            let last = (ending as u64 - ending.min(3) as u64 + 1)..=ending as u64;
            assert_eq!(offsets.collect::<Vec<_>>(), last.collect::<Vec<_>>(), "{noted} {ending}");
            // What follows finds its place, and is found there.
            let next = event_log.note_push(&"A.b".into(), &Class::Fire, 1, Duration::ZERO);
            event_log.reached(next, Stage::PlainWritten, Duration::ZERO);
            let is_found =
                |event: &Event| matches!(event, Event::Push { name, stage: Stage::PlainWritten, .. } if name == "A.b");
            assert_eq!(told(&event_log).events.iter().filter(|happened| is_found(&happened.event)).count(), 1);
        }
    }

    /// An event log keeps the newest, says how many it forgot, and what is forgotten is not mistaken for what stays.
    #[tokio::test(start_paused = true)]
    async fn the_newest_events_stay() {
        let event_log = EventLog::new(3);
        let name: Arc<str> = "Chat.say".into();
        let first = event_log.note_push(&name, &Class::Fire, 40, event_log.now());
        let others: Vec<u64> =
            (0..3).map(|_| event_log.note_push(&name, &Class::Tracked, 41, event_log.now())).collect();
        tokio::time::advance(Duration::from_millis(7)).await;
        event_log.reached(first, Stage::PlainWritten, event_log.now());
        event_log.numbered(others[1], 17);
        event_log.reached(others[1], Stage::Written, event_log.now());
        let story = told(&event_log);
        assert_eq!((story.forgotten, story.events.len()), (1, 3));
        let texts: Vec<String> = story.events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(
            texts,
            [
                "push Chat.say (tracked, 41 B): waits",
                "push Chat.say (tracked, offset 17, 41 B): written after 7 ms, its client has not confirmed it",
                "push Chat.say (tracked, 41 B): waits",
            ]
        );
    }

    /// An event log of no events keeps none.
    #[test]
    fn a_trail_can_be_turned_off() {
        let event_log = EventLog::new(0);
        let number = event_log.note_push(&"A.b".into(), &Class::Fire, 1, event_log.now());
        event_log.reached(number, Stage::Written, event_log.now());
        drop(event_log.call("A", "b"));
        assert_eq!(told(&event_log).events, []);
        assert!(matches!(&*event_log.stored.lock(), Stored::Packed(packed) if packed.len() == 0));
    }

    /// However long a name is, an event is small.
    #[test]
    fn texts_are_cut_between_characters() {
        let long = "ü".repeat(1000);
        assert_eq!(name(&long, "x").len(), TEXT_BYTES_MAX);
        assert_eq!(text(&format!("x{long}")).len(), TEXT_BYTES_MAX - 1);
    }

    /// A call that nobody waits for any more says so.
    #[tokio::test(start_paused = true)]
    async fn a_call_tells_its_end() {
        let event_log = EventLog::new(8);
        let given_up = event_log.call("A", "b");
        given_up.sent();
        tokio::time::advance(Duration::from_millis(3)).await;
        drop(given_up);
        let failed = event_log.call("A", "c");
        failed.sent();
        failed.sent();
        failed.ended(&Err::<(), _>("no"));
        let texts: Vec<String> = told(&event_log).events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(
            texts,
            ["call A.b: given up by its caller after 3 ms", "call A.c (sent 2 times): failed: no; after 0 ms"]
        );
    }

    #[test]
    fn an_event_has_its_date_and_time() {
        let happened = Happened { at_ms: 951_782_400_000 + 45_296_789, event: Event::Resumable };
        assert!(happened.to_string().starts_with("2000-02-29 12:34:56.789 "), "{happened}");
    }

    /// What happens is told as it was noted, from the packed beginning and from the ring alike.
    #[tokio::test(start_paused = true)]
    async fn each_event_has_its_words() {
        let connection = ConnectionId::new;
        let name = |text: &str| Arc::<str>::from(text);
        let noted: Vec<(What, &str)> = vec![
            (What::Connected(connection(300)), "connected as c300"),
            (What::Resumable, "its client speaks sessions and may come back to it"),
            (What::Bound(Some(name("ann"))), "user ann"),
            (What::Bound(None), "no user any more"),
            (What::Subscribed(name("room.*")), "subscribed to room.*"),
            (What::Unsubscribed(name("room.*")), "unsubscribed from room.*"),
            (What::NotResumed { wanted: name("17"), why: "expired" }, "its client wanted session 17 back: expired"),
            (
                What::Lost { connection: connection(2), why: name("it broke"), waits: true },
                "connection c2 lost: it broke; the session waits for its client",
            ),
            (
                What::Lost { connection: connection(2), why: name("it broke"), waits: false },
                "connection c2 lost: it broke",
            ),
            (
                What::Resumed { connection: connection(3), generation: 4, repeated: 5 },
                "resumed as c3, generation 4; 5 pushes are sent again",
            ),
            (What::TakenOver(connection(3)), "taken over from c3, which was still open"),
            (What::GapTold(9), "told its client that 9 pushes were dropped so far"),
            (What::Ended(name("two\nlines")), "ended: two\\nlines"),
        ];
        let event_log = EventLog::new(64);
        let expected: Vec<&str> = noted.iter().map(|(_, text)| *text).collect();
        for (number, (what, _)) in noted.into_iter().enumerate() {
            assert_eq!(event_log.note(what), number as u64);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let story = told(&event_log);
        let texts: Vec<String> = story.events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(texts, expected);
        let times: Vec<u64> = story.events.iter().map(|happened| happened.at_ms).collect();
        assert!(times.windows(2).all(|pair| pair[0] + 10 == pair[1]), "{times:?}");
    }

    /// A push that came to any stage says so.
    #[tokio::test(start_paused = true)]
    async fn each_stage_of_a_push_has_its_words() {
        use super::super::receipt::Failure;

        let event_log = EventLog::new(64);
        let stages = [
            (Stage::Queued, "waits"),
            (Stage::Written, "written after 1 ms, its client has not confirmed it"),
            (Stage::Received, "received after 1 ms, its client has not handled it yet"),
            (Stage::Handled, "handled after 1 ms"),
            (Stage::PlainWritten, "written, and nothing more is ever confirmed, after 1 ms"),
            (Stage::Expired, "expired after 1 ms"),
            (Stage::Superseded, "superseded by a newer value of its key after 1 ms"),
            (Stage::Duplicate, "not sent, as one of the same idempotency key was, after 1 ms"),
            (Stage::Failed(Failure::Panicked), "failed: its handler panicked, after 1 ms"),
            (Stage::Unknown, "the session ended before its client said what became of it, after 1 ms"),
            (Stage::Dropped(DropReason::Full), "dropped because too much waited already, after 1 ms"),
            (Stage::Dropped(DropReason::Disconnected), "dropped with its connection after 1 ms"),
            (Stage::Dropped(DropReason::SessionEnded), "dropped with the session after 1 ms"),
        ];
        for (stage, _) in stages {
            let number = event_log.note_push(&"A.b".into(), &Class::Latest("k".to_owned()), 7, event_log.now());
            tokio::time::advance(Duration::from_millis(1)).await;
            if stage != Stage::Queued {
                event_log.reached(number, stage, event_log.now());
            }
        }
        let texts: Vec<String> = told(&event_log).events.iter().map(|happened| happened.event.to_string()).collect();
        let expected: Vec<String> = stages.iter().map(|(_, text)| format!("push A.b (latest, 7 B): {text}")).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_story_begins_with_where_its_session_stands() {
        let session = SessionId(0x17);
        let text = |standing, user: Option<&str>, held, forgotten| {
            let happened = Happened { at_ms: 0, event: Event::Resumable };
            let user = user.map(str::to_owned);
            Explanation { session, user, standing, held, forgotten, events: vec![happened] }.to_string()
        };
        let event = "1970-01-01 00:00:00.000 its client speaks sessions and may come back to it";
        assert_eq!(text(Standing::Away, None, None, 0), format!("session {session}, its client is away\n{event}"));
        assert_eq!(
            text(Standing::Connected("c7".into()), Some("a\nn"), Some(Held { offset: 3, for_ms: 2999 }), 4),
            format!(
                "session {session} of a\\nn, connected as c7\nits client has held offset 3 for 2 s\n\
                 (4 older events are not kept)\n{event}"
            )
        );
        assert_eq!(
            text(Standing::Arriving("c7".into()), None, None, 0),
            format!("session {session}, arriving as c7: its client wants another session\n{event}")
        );
        assert_eq!(text(Standing::Ended, None, None, 0), format!("session {session}, ended\n{event}"));
    }

    /// What is kept of a story that ended depends on what there is to tell; older events that are forgotten count.
    #[test]
    fn a_story_has_its_worth() {
        let with = |events: Vec<What>, events_max: usize| {
            let event_log = EventLog::new(events_max);
            for what in events {
                event_log.note(what);
            }
            event_log.worth()
        };
        let connected = || What::Connected(ConnectionId::new(1));
        let bound = || What::Bound(Some("ann".into()));
        let lost = || What::Lost { connection: ConnectionId::new(1), why: "x".into(), waits: false };
        assert_eq!(with(vec![], 8), None);
        assert_eq!(with(vec![connected()], 8), None);
        assert_eq!(with(vec![connected(), lost()], 8), None, "a ring that has forgotten nothing");
        assert_eq!(with(vec![connected(), bound()], 8), Some(false));
        assert_eq!(with(vec![connected(), bound(), lost()], 8), Some(false));
        assert_eq!(with(vec![connected(), What::Subscribed("a".into())], 8), Some(true));
        assert_eq!(with(vec![connected(), lost(), What::GapTold(1)], 8), Some(true));
        assert_eq!(with(vec![connected(), lost(), lost()], 2), Some(false), "something is forgotten");
        assert_eq!(with(vec![connected(), lost(), What::GapTold(1)], 2), Some(true));
        assert_eq!(with(vec![What::GapTold(1), lost(), lost()], 2), Some(false));
    }

    /// A number finds its own record and no other, whatever stands in its place.
    #[test]
    fn a_record_is_found_by_its_number() {
        let mut ring = Ring { records: Vec::new(), next: 0 };
        assert!(ring.get_mut(0, 3).is_none());
        for number in 0..5 {
            let record = Record { at: number, what: What::GapTold(number) };
            assert_eq!(ring.push(record, 3), number);
        }
        let found: Vec<Option<u64>> = (0..7).map(|number| ring.get_mut(number, 3).map(|record| record.at)).collect();
        assert_eq!(found, [None, None, Some(2), Some(3), Some(4), None, None]);
        assert_eq!((ring.first(), ring.in_order().map(|record| record.at).collect::<Vec<_>>()), (2, vec![2, 3, 4]));
    }

    /// A story that is sealed has room for two events more, and keeps those that it has.
    #[test]
    fn a_sealed_story_has_room_for_two_events() {
        let event_log = EventLog::new(64);
        assert_eq!(event_log.seal(), 2, "of none");
        for packed in [true, false] {
            let event_log = EventLog::new(64);
            for number in 0..3 {
                event_log.note(if packed { What::Bound(None) } else { What::GapTold(number) });
            }
            assert_eq!(event_log.seal(), 5);
            if let Stored::Ring(ring) = &*event_log.stored.lock() {
                assert_eq!((packed, ring.records.capacity()), (false, 5));
            }
            for number in 3..7 {
                event_log.note(What::GapTold(number));
            }
            let story = told(&event_log);
            assert_eq!((story.events.len(), story.forgotten), (5, 2));
            assert_eq!(story.events[4].event, Event::GapTold(6));
        }
        let full = EventLog::new(3);
        for number in 0..3 {
            full.note(What::GapTold(number));
        }
        assert_eq!(full.seal(), 3, "never more than it may keep");
    }

    /// A text that fits is shared, and of a longer one its beginning is kept.
    #[test]
    fn a_text_that_an_event_keeps_has_a_bound() {
        for (len, is_shared) in [(TEXT_BYTES_MAX - 1, true), (TEXT_BYTES_MAX, true), (TEXT_BYTES_MAX + 1, false)] {
            let whole: Arc<str> = "x".repeat(len).into();
            let kept = shared(&whole);
            assert_eq!((Arc::ptr_eq(&kept, &whole), kept.len()), (is_shared, len.min(TEXT_BYTES_MAX)), "{len}");
        }
    }
}
