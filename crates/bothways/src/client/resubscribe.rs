//! Subscribes again by itself when the session is lost, and asks for the messages that a gap cost.
//!
//! A request that the server cannot serve for now is repeated soon, and one that it refuses slowly. Only one that can
//! never succeed is given up. Asking ends with its connection: the next one begins anew.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    events::{ConnectionEvent, EventSender},
    subscriptions::{Asker, Place, Recovery, Subscriptions, ToDo, Which, subscribe, unsubscribe},
};
use crate::{
    caller::CallOptions,
    calm::Said,
    clock::{backoff, spread},
    connection::Connection,
    error::{CallError, ErrorCode},
    session::{Position, Subscribed, covers},
};

/// Calls that are under way at once: enough to hide the way there and back, few enough for a server to which many
/// clients come back. What waits to be asked again takes no place.
const AT_ONCE: usize = 64;

/// How long a call may take if calls have no time of their own; and at most, if one took too long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long is waited at first, and at most, before what found no room, or a server that was too busy, is asked again.
const SOON: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The same after a refusal.
const SLOWLY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long a pattern waits for the topics that it covers and that have positions, so that nothing new overtakes what
/// they missed.
const ORDER_WAIT: Duration = Duration::from_secs(5);

/// Why a topic is subscribed to by the client itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Why {
    /// The session is new.
    Lost,
    /// The server has ended what the application wants again.
    Ended,
    /// The application has subscribed from a position, and was sent the first part of what it missed, or nothing yet.
    Rest,
    /// The server dropped something.
    Gap,
    /// The application does not want it, and unsubscribed while there was no connection.
    Unwanted,
}

/// What an error means for a call that the client makes by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trouble {
    /// The connection is over: the next one begins anew.
    NoConnection,
    /// Not now.
    Passing,
    /// The server, or a hook of it, says no. Nobody knows for how long.
    Refused,
    /// It is no better the next time.
    Final,
}

impl Trouble {
    fn of(error: &CallError) -> Self {
        use ErrorCode::{BadArguments, Internal, NotFound, Overloaded, ShuttingDown, Timeout, Unauthenticated};
        match error {
            CallError::Closed { .. } | CallError::NotConnected(_) => Self::NoConnection,
            CallError::TimedOut(_) | CallError::QueueFull { .. } | CallError::TooManyCalls { .. } => Self::Passing,
            CallError::Remote { code, .. } => match code {
                Some(Overloaded | ShuttingDown | Timeout | Internal) => Self::Passing,
                None | Some(Unauthenticated) => Self::Refused,
                Some(NotFound | BadArguments) => Self::Final,
            },
            _ => Self::Final,
        }
    }
}

/// True if the server cannot do it now, and may soon: it is asked again.
pub(super) fn is_passing(error: &CallError) -> bool {
    Trouble::of(error) == Trouble::Passing
}

/// How long is waited before the next try. A random part of it is left out, so that clients do not come together.
#[derive(Debug, Default)]
struct Pauses {
    tries: u32,
    kind: Option<Trouble>,
}

impl Pauses {
    fn next(&mut self, kind: Trouble) -> Duration {
        if self.kind.replace(kind) != Some(kind) {
            self.tries = 0;
        }
        let (least, most) = if kind == Trouble::Refused { SLOWLY } else { SOON };
        let pause = backoff(least, most, self.tries, spread(0.5));
        self.tries = self.tries.saturating_add(1);
        pause
    }

    fn begin_anew(&mut self) {
        *self = Self::default();
    }
}

/// What is asked on one connection.
struct Round {
    connection: Connection,
    places: Semaphore,
}

/// Patterns that wait for a topic.
type Waiting = Vec<mpsc::Sender<()>>;

/// Subscribes again.
#[derive(Clone)]
pub(super) struct Resubscriber {
    pub(super) server: Arc<str>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) events: EventSender,
    pub(super) timeout: Option<Duration>,
    /// Told when there may be room in the session: one topic found some, or messages were acknowledged.
    pub(super) room: Arc<Notify>,
}

impl Resubscriber {
    /// A connection stands; see [`Subscriptions::begin`]. What its session does not have is subscribed to in the
    /// background. Must be called within a tokio runtime.
    pub(super) fn begin(&self, connection: &Connection, resumed: bool) {
        let ToDo { missing, with_gaps, unwanted } = self.subscriptions.begin(connection.id(), resumed);
        let mut asking = self.asking(connection);
        unwanted.into_iter().for_each(|topic| asking.ask(topic, Why::Unwanted, Vec::new(), None));

        let (patterns, mut topics): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|(topic, _)| topic.contains(['*', '>']));
        // What has no past needs no room, and what it misses nobody keeps.
        topics.sort_by_key(|(_, has_position)| *has_position);
        let patterns = patterns.into_iter().map(|(pattern, _)| (pattern, mpsc::channel::<()>(1)));
        let patterns: Vec<_> = patterns.collect();

        for (topic, has_position) in topics {
            let covering = patterns.iter().filter(|(pattern, _)| has_position && covers(pattern, &topic));
            let waiting = covering.map(|(_, (sender, _))| sender.clone()).collect();
            asking.ask(topic, Why::Lost, waiting, None);
        }
        for (pattern, (_, topics)) in patterns {
            asking.ask(pattern, Why::Lost, Vec::new(), Some(topics));
        }

        with_gaps.into_iter().for_each(|topic| asking.ask(topic, Why::Gap, Vec::new(), None));
        asking.run();
    }

    /// The server could not let the application have this topic on this connection, and may soon: it is asked again in the
    /// background. Must be called within a tokio runtime.
    pub(super) fn ask_again(&self, connection: &Connection, topic: Arc<str>) {
        let mut asking = self.asking(connection);
        asking.ask(topic, Why::Lost, Vec::new(), None);
        asking.run();
    }

    /// The application has subscribed to this topic from a position, and all of what it missed did not fit into its
    /// session: the rest is asked for in the background. Must be called within a tokio runtime.
    pub(super) fn ask_for_rest(&self, connection: &Connection, topic: Arc<str>) {
        let mut asking = self.asking(connection);
        asking.ask(topic, Why::Rest, Vec::new(), None);
        asking.run();
    }

    /// The server has said that it dropped something. What may be missing of topics with history is asked for.
    pub(super) fn handle_gap(&self, connection: &Connection) {
        let mut asking = self.asking(connection);
        let missed = self.subscriptions.miss(connection.id());
        missed.into_iter().for_each(|topic| asking.ask(topic, Why::Gap, Vec::new(), None));
        asking.run();
    }

    fn asking(&self, connection: &Connection) -> Asking<'_> {
        let round = Round { connection: connection.clone(), places: Semaphore::new(AT_ONCE) };
        Asking { resubscriber: self, round: Arc::new(round), all: JoinSet::new() }
    }

    fn options(&self, timeout: Duration) -> CallOptions {
        CallOptions::new().timeout(timeout)
    }

    fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// Waits before the next try. False: the connection is over, or another one stands.
    async fn pause(&self, round: &Round, pause: Duration) -> bool {
        // Either is an end of the waiting.
        let _ = tokio::time::timeout(pause, round.connection.closed()).await;
        self.goes_on(round)
    }

    /// The same for what found no room: not after another one found some, nor after messages were acknowledged.
    async fn pause_for_room(&self, round: &Round, pause: Duration) -> bool {
        tokio::select! {
            goes_on = self.pause(round, pause) => goes_on,
            () = self.room.notified() => self.goes_on(round),
        }
    }

    fn goes_on(&self, round: &Round) -> bool {
        !round.connection.is_closed() && self.subscriptions.is_newest(round.connection.id())
    }

    /// Waits until nothing else is asked of this topic. `None`: the connection is over, or another one stands.
    async fn turn(&self, round: &Round, topic: &Arc<str>) -> Option<Place> {
        let place = self.subscriptions.join(topic);
        tokio::select! {
            biased;
            () = place.turn() => {}
            _ = round.connection.closed() => return None,
        }
        self.goes_on(round).then_some(place)
    }

    /// Asks for everything after a position, part by part as the session has room, until the server gives it. Returns
    /// the last answer; `None` if the application does not want the topic any more, or the connection is over.
    async fn ask(
        &self,
        round: &Round,
        which: &Which,
        mut from: Option<Position>,
        mut waiting: Waiting,
    ) -> Result<Option<Subscribed>, CallError> {
        let (topic, subscriptions) = (&which.topic, &self.subscriptions);
        let (mut pauses, mut timeout) = (Pauses::default(), self.timeout());
        loop {
            let Some(turn) = self.turn(round, topic).await else { return Ok(None) };
            if !subscriptions.is_wanted(which) {
                return Ok(None);
            }

            let place = round.places.acquire().await;
            let outcome = subscribe(&round.connection, topic, from, true, self.options(timeout)).await;
            // `unsubscribe` below joins the same line, and a pause must hold up no other call.
            drop((place, turn));

            if !subscriptions.is_wanted(which) {
                // Unsubscribed meanwhile: if that call is not to come, it is made good here.
                self.unsubscribe(round, Arc::clone(topic)).await;
                return Ok(None);
            }

            let goes_on = match outcome {
                Ok(answer) if answer.later => self.pause_for_room(round, pauses.next(Trouble::Passing)).await,
                Ok(answer) if answer.more && !is_further(from, answer.subscribed.position) => {
                    // A part of nothing is no part. What is of another life of the topic may be there yet.
                    from = answer.subscribed.position;
                    subscriptions.note_part(which, from);
                    self.pause(round, pauses.next(Trouble::Passing)).await
                }
                Ok(answer) if !answer.more => {
                    self.room.notify_one();
                    return Ok(Some(answer.subscribed));
                }
                Ok(answer) => {
                    from = answer.subscribed.position;
                    subscriptions.note_part(which, from);
                    pauses.begin_anew();
                    // There is no room left for another one, and what this one says of it would end its own pause.
                    self.pause_for_room(round, pauses.next(Trouble::Passing)).await
                }
                Err(error) => {
                    let trouble = Trouble::of(&error);
                    if matches!(error, CallError::TimedOut(_)) {
                        timeout = timeout.saturating_mul(2).min(TIMEOUT.max(self.timeout()));
                    }

                    match trouble {
                        Trouble::NoConnection | Trouble::Final => return Err(error),
                        Trouble::Refused => {
                            // It may last: nothing waits for it.
                            waiting.clear();
                            self.tell_refusal(which, error);
                        }
                        Trouble::Passing => {
                            tracing::debug!(server = &*self.server, topic = &**topic, error = %Said(&error), "asks again");
                        }
                    }
                    self.pause(round, pauses.next(trouble)).await
                }
            };

            if !goes_on {
                return Ok(None);
            }
        }
    }

    fn tell_refusal(&self, which: &Which, error: CallError) {
        if self.subscriptions.note_refusal(which) {
            self.tell_lost(Arc::clone(&which.topic), error, false);
        }
    }

    fn tell_lost(&self, topic: Arc<str>, error: CallError, for_good: bool) {
        let server = Arc::clone(&self.server);
        self.events.tell(&ConnectionEvent::SubscriptionLost { server, topic, error, for_good });
    }

    async fn resubscribe(&self, round: &Round, topic: Arc<str>, why: Why, waiting: Waiting) {
        let Some((claim, from)) = self.subscriptions.claim(&topic) else { return };
        let which = claim.which().clone();

        match self.ask(round, &which, from, waiting).await {
            Ok(None) => {}
            Ok(Some(subscribed)) => {
                if let Some(missed) = claim.hold(round.connection.id(), &subscribed, Asker::Client) {
                    drop(claim);
                    let was_refused = self.subscriptions.end_refusal(&which);
                    let recovered = subscribed.recovered && !missed;
                    if why == Why::Lost || was_refused || !recovered {
                        let server = Arc::clone(&self.server);
                        self.events.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
                    }
                }
            }
            // The next connection begins anew.
            Err(error) if Trouble::of(&error) == Trouble::NoConnection => {}
            Err(error) => {
                let is_forgotten = claim.forget();
                // Before the application hears of it, and may subscribe again.
                drop(claim);
                if is_forgotten {
                    self.tell_lost(topic, error, true);
                }
            }
        }
    }

    /// Asks for what the server dropped, until it is sent or gone.
    async fn recover(&self, round: &Round, topic: Arc<str>) {
        let id = round.connection.id();
        let Some(which) = self.subscriptions.begin_recovery(id, &topic) else { return };
        let (mut recovered, mut answered) = (true, false);

        loop {
            match self.subscriptions.next_recovery(&which) {
                Recovery::Over => break,
                Recovery::Unknown => {}
                Recovery::From(position, gaps) => match self.ask(round, &which, Some(position), Vec::new()).await {
                    Ok(None) => break,
                    Ok(Some(subscribed)) => {
                        recovered &= subscribed.recovered;
                        answered = true;
                        if let Some(position) = subscribed.position {
                            self.subscriptions.note_position(&which, position);
                        }
                        if self.subscriptions.end_recovery(&which, gaps, subscribed.recovered) {
                            break;
                        }
                    }
                    // The next connection asks again.
                    Err(error) if Trouble::of(&error) == Trouble::NoConnection => break,
                    Err(error) => {
                        // It may not have the topic any more: then it does not have a part of it either.
                        let is_given_up = self.subscriptions.give_up(&which);
                        self.unsubscribe(round, Arc::clone(&topic)).await;
                        if is_given_up {
                            self.tell_lost(topic, error, true);
                        }
                        return;
                    }
                },
            }

            if !self.pause(round, SOON.0).await {
                break;
            }
        }

        self.subscriptions.leave_recovery(id, &which);
        let was_refused = answered && self.subscriptions.end_refusal(&which);
        if was_refused || !recovered {
            let server = Arc::clone(&self.server);
            self.events.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
        }
    }

    /// The application does not want it: the session is not to have it. Looks again right before each try whether that
    /// is so.
    async fn unsubscribe(&self, round: &Round, topic: Arc<str>) {
        let mut pauses = Pauses::default();
        let is_lost = loop {
            let Some(turn) = self.turn(round, &topic).await else { return };
            let Some(which) = self.subscriptions.unwanted(&topic) else { return };

            let place = round.places.acquire().await;
            let outcome = unsubscribe(&round.connection, &topic, self.options(self.timeout())).await;
            drop(place);

            let Err(error) = outcome else {
                self.subscriptions.has_ended(&which);
                break self.subscriptions.lose(&topic);
            };
            tracing::debug!(server = &*self.server, topic = &*topic, error = %Said(&error), "could not unsubscribe");
            let pause = match Trouble::of(&error) {
                Trouble::NoConnection | Trouble::Final => return,
                trouble @ (Trouble::Passing | Trouble::Refused) => pauses.next(trouble),
            };

            // The application's own calls about the topic do not wait for this pause.
            drop(turn);
            if !self.pause(round, pause).await {
                return;
            }
        };
        // It is wanted in each session meanwhile, and nobody has asked for it in this one.
        if is_lost {
            Box::pin(self.resubscribe(round, topic, Why::Ended, Vec::new())).await;
        }
    }
}

/// Whether a part that ended here is more than nothing.
fn is_further(from: Option<Position>, reached: Option<Position>) -> bool {
    match (from, reached) {
        (Some(from), Some(reached)) => from.epoch == reached.epoch && from.offset < reached.offset,
        (from, reached) => from.is_none() && reached.is_some(),
    }
}

/// All that is to be asked at once.
struct Asking<'a> {
    resubscriber: &'a Resubscriber,
    round: Arc<Round>,
    all: JoinSet<()>,
}

impl Asking<'_> {
    /// Asks for this one, when the topics that it waits for are known to the server; `waiting` are those who wait for it.
    fn ask(&mut self, topic: Arc<str>, why: Why, waiting: Waiting, waits_for: Option<mpsc::Receiver<()>>) {
        let (this, round) = (self.resubscriber.clone(), Arc::clone(&self.round));
        self.all.spawn(async move {
            if let Some(mut topics) = waits_for {
                // Nothing is ever sent: it ends when nobody is waited for any more.
                let _ = tokio::time::timeout(ORDER_WAIT, topics.recv()).await;
            }
            match why {
                Why::Lost | Why::Ended | Why::Rest => this.resubscribe(&round, topic, why, waiting).await,
                Why::Gap => this.recover(&round, topic).await,
                Why::Unwanted => this.unsubscribe(&round, topic).await,
            }
        });
    }

    /// What was asked goes on by itself.
    fn run(mut self) {
        self.all.detach_all();
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::Role;

    use super::{super::events::ConnectionEvents, *};
    use crate::{Client, ClientOptions, Push, Server, connection::alone::alone, session::TopicOptions};

    fn remote(code: Option<ErrorCode>) -> Trouble {
        Trouble::of(&CallError::Remote { text: String::new(), code, beside: Default::default() })
    }

    #[test]
    fn only_what_can_never_be_is_given_up() {
        use ErrorCode::{BadArguments, Internal, NotFound, Overloaded, ShuttingDown, Timeout, Unauthenticated};
        for code in [Overloaded, ShuttingDown, Timeout, Internal] {
            assert_eq!(remote(Some(code)), Trouble::Passing, "{code:?}");
        }
        for error in
            [CallError::TimedOut(TIMEOUT), CallError::QueueFull { bytes: 1 }, CallError::TooManyCalls { max: 1 }]
        {
            assert_eq!(Trouble::of(&error), Trouble::Passing, "{error}");
        }
        assert_eq!((remote(None), remote(Some(Unauthenticated))), (Trouble::Refused, Trouble::Refused));
        assert_eq!((remote(Some(NotFound)), remote(Some(BadArguments))), (Trouble::Final, Trouble::Final));
    }

    #[test]
    fn pauses_double_up_to_their_bound() {
        for (kind, (least, most)) in [(Trouble::Passing, SOON), (Trouble::Refused, SLOWLY)] {
            let mut pauses = Pauses::default();
            assert!(pauses.next(kind) <= least);
            for _ in 0..40 {
                pauses.next(kind);
            }
            let last = pauses.next(kind);
            assert!(most / 2 <= last && last <= most, "{last:?}");
        }
    }

    fn resubscriber() -> Resubscriber {
        Resubscriber {
            server: "tcp@a:1".into(),
            subscriptions: Arc::default(),
            events: EventSender::default(),
            timeout: Some(Duration::from_secs(1)),
            room: Arc::default(),
        }
    }

    fn round(connection: &Connection) -> Round {
        Round { connection: connection.clone(), places: Semaphore::new(AT_ONCE) }
    }

    /// The events that were told so far, in words.
    async fn told(events: &mut ConnectionEvents) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
            told.push(match event {
                ConnectionEvent::Resubscribed { topic, recovered, .. } => format!("{topic}: recovered {recovered}"),
                ConnectionEvent::SubscriptionLost { topic, for_good, .. } => format!("{topic}: lost {for_good}"),
                other => format!("{other:?}"),
            });
        }
        told
    }

    /// A connection to a server with a topic `news` that keeps one message, and where that topic is.
    async fn with_news(address: &str) -> (Server, Client, Connection, Position) {
        let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder().topic("news", history).expect("a pattern").build();
        let listening = server.listen(address).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        server.publish("news", &Push::new("N", "say", "1")).expect("small");
        let position = client.subscribe("news").await.expect("it is open").position.expect("it has a history");
        client.unsubscribe("news").await.expect("it is subscribed");
        let connection = client.connection().expect("it is up");
        (server, client, connection, position)
    }

    /// The session on this connection has the topic, up to this position.
    fn hold(of: &Resubscriber, connection: &Connection, position: Position) {
        of.subscriptions.want("news");
        let subscribed = Subscribed { recovered: true, position: Some(position) };
        let (claim, _) = of.subscriptions.claim("news").expect("it is missing");
        claim.hold(connection.id(), &subscribed, Asker::Client);
    }

    #[tokio::test(start_paused = true)]
    async fn asking_ends_with_its_connection() {
        let this = resubscriber();
        let (connection, far) = alone(Role::Client);
        let (other, _other_far) = alone(Role::Client);
        let round = round(&connection);
        assert!(this.goes_on(&round), "no other has stood");
        this.subscriptions.begin(connection.id(), false);
        assert!(this.goes_on(&round));
        this.subscriptions.begin(other.id(), true);
        assert!(!this.goes_on(&round), "another one stands");
        this.subscriptions.begin(connection.id(), true);
        assert!(this.pause(&round, SOON.0).await);
        drop(far);
        tokio::time::timeout(Duration::from_secs(60), connection.closed()).await.expect("its socket is gone");
        assert!(!this.goes_on(&round) && !this.pause(&round, SOON.0).await);
    }

    /// What the server dropped and has is asked for, and nothing is told; of what it does not have the client is told.
    #[tokio::test(start_paused = true)]
    async fn a_gap_is_told_only_if_something_is_missing() {
        let (_server, _client, connection, position) = with_news("memory@recover").await;
        for (epoch, expected) in [(position.epoch, vec![]), (position.epoch ^ 1, vec!["news: recovered false"])] {
            let this = resubscriber();
            let mut events = this.events.subscribe();
            this.subscriptions.begin(connection.id(), false);
            hold(&this, &connection, Position { epoch, offset: 0 });
            assert_eq!(this.subscriptions.miss(connection.id()).len(), 1);
            let asking = round(&connection);
            let recovering = this.recover(&asking, "news".into());
            tokio::time::timeout(Duration::from_secs(60), recovering).await.expect("it ends");
            assert_eq!(told(&mut events).await, expected);
            let left = this.subscriptions.begin(connection.id(), true);
            assert!(left.with_gaps.is_empty() && left.missing.is_empty(), "all is asked for");
            let again = this.subscriptions.begin_recovery(connection.id(), &"news".into());
            assert!(again.is_some(), "nobody asks any more");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_of_a_lost_connection_waits_for_the_next() {
        let (_server, _client, connection, position) = with_news("memory@recover-not").await;
        let this = resubscriber();
        let mut events = this.events.subscribe();
        this.subscriptions.begin(connection.id(), false);
        hold(&this, &connection, position);
        this.subscriptions.miss(connection.id());
        connection.close();
        tokio::time::timeout(Duration::from_secs(60), connection.closed()).await.expect("it closes");
        let asking = round(&connection);
        let recovering = this.recover(&asking, "news".into());
        tokio::time::timeout(Duration::from_secs(60), recovering).await.expect("it ends");
        assert!(told(&mut events).await.is_empty());
        let again = this.subscriptions.begin_recovery(connection.id(), &"news".into());
        assert!(again.is_some_and(|which| this.subscriptions.is_wanted(&which)), "the next connection asks again");
    }

    /// Whether all was recovered is what the server says, and whether the session before had got everything.
    #[tokio::test(start_paused = true)]
    async fn a_topic_is_recovered_if_nothing_was_missing_before() {
        let (_server, _client, connection, position) = with_news("memory@resubscribe").await;
        for misses in [false, true] {
            let this = resubscriber();
            let mut events = this.events.subscribe();
            this.subscriptions.begin(connection.id(), false);
            hold(&this, &connection, position);
            if misses {
                this.subscriptions.miss(connection.id());
            }
            this.subscriptions.begin(connection.id(), false);
            let asking = round(&connection);
            let again = this.resubscribe(&asking, "news".into(), Why::Lost, Vec::new());
            tokio::time::timeout(Duration::from_secs(60), again).await.expect("it ends");
            assert_eq!(told(&mut events).await, [format!("news: recovered {}", !misses)]);
            this.resubscribe(&asking, "news".into(), Why::Ended, Vec::new()).await;
            assert!(told(&mut events).await.is_empty(), "it was not lost, and nothing is missing");
        }

        // It was not lost, and something is missing, or not.
        for (epoch, expected) in [(position.epoch, vec![]), (position.epoch ^ 1, vec!["news: recovered false"])] {
            let this = resubscriber();
            let mut events = this.events.subscribe();
            this.subscriptions.begin(connection.id(), false);
            hold(&this, &connection, Position { epoch, ..position });
            this.subscriptions.begin(connection.id(), false);
            this.resubscribe(&round(&connection), "news".into(), Why::Ended, Vec::new()).await;
            assert_eq!(told(&mut events).await, expected);
        }
    }

    /// A server that does not answer is told again, until the application wants the topic again or the connection ends.
    #[tokio::test(start_paused = true)]
    async fn unsubscribing_is_asked_again_until_nobody_needs_it() {
        for closes in [false, true] {
            let this = resubscriber();
            let (connection, far) = alone(Role::Client);
            this.subscriptions.begin(connection.id(), false);
            drop(this.subscriptions.begin_unsubscribe("news"));
            let (of_task, round) = (this.clone(), round(&connection));
            let mut task = tokio::spawn(async move { of_task.unsubscribe(&round, "news".into()).await });
            let waited = tokio::time::timeout(Duration::from_secs(20), &mut task).await;
            assert!(waited.is_err(), "it asks on and on");
            let _far = Some(far).filter(|_| !closes);
            if !closes {
                let which = this.subscriptions.unwanted(&"news".into()).expect("it was not told");
                this.subscriptions.has_ended(&which);
            }
            tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends").expect("no panic");
            assert_eq!(this.subscriptions.unwanted(&"news".into()).is_some(), closes);
        }
    }

    /// A part leads on if it ends after where it began, in the same life of its topic.
    #[test]
    fn a_part_of_nothing_leads_no_further() {
        let at = |epoch, offset| Some(Position { epoch, offset });
        for (from, reached, expected) in [
            (at(1, 5), at(1, 6), true),
            (at(1, 5), at(1, 5), false),
            (at(1, 5), at(1, 4), false),
            (at(1, 5), at(2, 6), false),
            (at(1, 5), None, false),
            (None, at(1, 1), true),
            (None, None, false),
        ] {
            assert_eq!(is_further(from, reached), expected, "{from:?} {reached:?}");
        }
    }

    /// What was dropped is asked for by the next connection, if this one ends before it has answered.
    #[tokio::test(start_paused = true)]
    async fn a_gap_whose_connection_ends_meanwhile_waits_for_the_next() {
        let this = resubscriber();
        let mut events = this.events.subscribe();
        let (connection, far) = alone(Role::Client);
        this.subscriptions.begin(connection.id(), false);
        hold(&this, &connection, Position { epoch: 1, offset: 5 });
        this.subscriptions.miss(connection.id());
        let (of_task, asking) = (this.clone(), round(&connection));
        let recovering = tokio::spawn(async move { of_task.recover(&asking, "news".into()).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!recovering.is_finished(), "nobody answers");
        drop(far);
        tokio::time::timeout(Duration::from_secs(60), recovering).await.expect("it ends").expect("no panic");
        assert!(told(&mut events).await.is_empty());
        let again = this.subscriptions.begin_recovery(connection.id(), &"news".into());
        assert!(again.is_some_and(|which| this.subscriptions.is_wanted(&which)), "it is wanted as before");
    }
}
