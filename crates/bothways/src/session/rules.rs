//! The options of topics, by pattern; the first one that matches counts.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    Session,
    history::HistoryBounds,
    topic::{self, TopicError},
};
use crate::reply::BoxFuture;

/// Decides whether a session may subscribe.
pub(super) type AuthorizeHook = Arc<dyn Fn(SubscribeRequest) -> BoxFuture<Result<(), String>> + Send + Sync>;

/// A client wants to subscribe: what a topic's [`authorize`](TopicOptions::authorize) hook decides on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubscribeRequest {
    /// The session of the client.
    pub session: Session,
    /// The topic, or the pattern: the client wants all that it matches.
    pub pattern: String,
}

/// Options of the topics that match a pattern: [`ServerBuilder::topic`](crate::ServerBuilder::topic).
///
/// By default a topic has no history and no presence, and clients cannot subscribe to it: only the server subscribes them
/// ([`Session::subscribe`]).
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{Server, session::TopicOptions};
///
/// let rooms = TopicOptions::new()
///     .history(100, Duration::from_secs(3600))
///     .presence(true)
///     .authorize(|request| async move {
///         match request.session.user() {
///             Some(_) => Ok(()),
///             None => Err("sign in first"),
///         }
///     });
/// let server = Server::builder().topic("room.*", rooms)?.topic("news.>", TopicOptions::new().open())?.build();
/// # Ok::<(), bothways::session::TopicError>(())
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct TopicOptions {
    pub(super) history: Option<HistoryBounds>,
    pub(super) latest_only: bool,
    pub(super) subscribers_max: Option<usize>,
    pub(super) presence: bool,
    pub(super) access: Access,
    #[cfg(feature = "cluster")]
    pub(super) goes_apart: bool,
}

/// Which clients may subscribe.
#[derive(Clone, Default)]
pub(super) enum Access {
    #[default]
    Nobody,
    Anyone,
    Asked(AuthorizeHook),
}

/// Bytes of messages that a topic keeps if nothing else is said: with 1,000 topics 1 GiB at most.
const HISTORY_BYTES_MAX: usize = 1 << 20;

impl TopicOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the last `messages_max` messages of each topic, none longer than `time_to_live`, and no more than
    /// [`Self::history_bytes_max`]. A client that sends its last position gets what it missed.
    ///
    /// The messages of one recovery must find room in the session's log
    /// ([`SessionOptions::log`](crate::SessionOptions::log), 1,000 messages unless chosen otherwise). A client that is
    /// further back gets them in parts, as it handles them: with
    /// [`Client::subscribe_from`](crate::Client::subscribe_from), after a lost session, and after a gap. A client of
    /// another library that does not ask for parts gets nothing then, so a server warns when it is built with a history
    /// that is longer than the log.
    ///
    /// The position of a topic is kept for 24 hours after its last message is too old, for 65,536 topics at most: a
    /// client that has this message is told that it misses nothing.
    ///
    /// The messages of a topic with history go in the order of their offsets: each as
    /// [`Priority::Normal`](super::Priority::Normal), and [`Class::Latest`](super::Class::Latest) as `Tracked`.
    ///
    /// With 0 messages, or no time, there is no history: nothing is kept, and no receipt says that something is.
    pub fn history(mut self, messages_max: usize, time_to_live: Duration) -> Self {
        let bytes = self.history.map_or(HISTORY_BYTES_MAX, |history| history.bytes);
        let bounds = HistoryBounds { messages: messages_max, bytes, time_to_live: Some(time_to_live) };
        self.history = (0 < messages_max && !time_to_live.is_zero()).then_some(bounds);
        self.latest_only = false;
        self
    }

    /// Most bytes of messages, as frames, that one topic keeps; its newest message is kept however large.
    /// Default 1 MiB. Without effect on a topic that keeps nothing.
    pub fn history_bytes_max(mut self, bytes: usize) -> Self {
        if let Some(history) = &mut self.history {
            history.bytes = bytes;
        }
        self
    }

    /// Only the newest message of each topic counts. It is kept for as long as the server runs, is sent to each new
    /// subscriber of the topic by name, and replaces older ones that still wait for a client. In place of
    /// [`Self::history`].
    ///
    /// A subscriber by wildcard gets what is published from then on, and no earlier value, neither at first nor after a
    /// lost session. To get the value of a topic, subscribe to it by name.
    pub fn latest_only(mut self) -> Self {
        self.history = Some(HistoryBounds { messages: 1, bytes: usize::MAX, time_to_live: None });
        self.latest_only = true;
        self
    }

    /// Most sessions that subscribe to one topic; more are refused with [`TopicError::Full`]. Default: no
    /// bound. Clients then cannot subscribe to these topics by a wildcard, which would not count.
    pub fn subscribers_max(mut self, sessions: usize) -> Self {
        self.subscribers_max = Some(sessions);
        self
    }

    /// A subscriber of such a topic by name is present: [`Server::presence`](crate::Server::presence) lists them, and
    /// subscribers are told of changes ([`PresenceChange`](super::PresenceChange)). A subscriber by wildcard watches
    /// unseen. Default: no.
    ///
    /// Each change goes to all subscribers: n who come cost n² messages.
    pub fn presence(mut self, shown: bool) -> Self {
        self.presence = shown;
        self
    }

    /// In a cluster, a message that the log of its topic cannot take goes to the subscribers of this node all the same,
    /// without a position and unkept; [`Receipt::stored`](crate::Receipt::stored) is an error as ever. Default: no, nobody
    /// gets it.
    #[cfg(feature = "cluster")]
    pub fn without_log_to_this_node(mut self, goes: bool) -> Self {
        self.goes_apart = goes;
        self
    }

    /// Every client that may call the server may subscribe.
    pub fn open(mut self) -> Self {
        self.access = Access::Anyone;
        self
    }

    /// Clients may subscribe if this hook allows it. The text of a refusal goes to the client.
    ///
    /// It runs at each subscription, also when a client subscribes again after a lost session. It does not run while a
    /// session lives or resumes, or when the server subscribes a session.
    pub fn authorize<F, Fut, E>(mut self, hook: F) -> Self
    where
        F: Fn(SubscribeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        self.access = Access::Asked(Arc::new(move |request| {
            let decision = hook(request);
            Box::pin(async move { decision.await.map_err(|error| error.to_string()) })
        }));
        self
    }

    /// True if a topic has anything to keep.
    pub(super) fn keeps(&self) -> bool {
        self.history.is_some() || self.presence
    }
}

impl std::fmt::Debug for TopicOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let access = match self.access {
            Access::Nobody => "nobody",
            Access::Anyone => "anyone",
            Access::Asked(_) => "asked",
        };
        f.debug_struct("TopicOptions")
            .field("history", &self.history)
            .field("latest_only", &self.latest_only)
            .field("subscribers_max", &self.subscribers_max)
            .field("presence", &self.presence)
            .field("access", &access)
            .finish()
    }
}

/// Options by pattern, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    list: Vec<(String, TopicOptions)>,
}

impl Rules {
    pub(crate) fn add(&mut self, pattern: &str, options: TopicOptions) -> Result<(), TopicError> {
        topic::check_pattern(pattern)?;
        self.list.push((pattern.to_owned(), options));
        Ok(())
    }

    /// Topics that keep more messages than this, and so more than one recovery can bring.
    pub(crate) fn keeping_more_than(&self, messages: usize) -> impl Iterator<Item = (&str, usize)> {
        let of = |(_, options): &(String, TopicOptions)| options.history.as_ref().map(|h| h.messages);
        self.list
            .iter()
            .filter_map(move |rule| of(rule).map(|kept| (rule.0.as_str(), kept)))
            .filter(move |(_, kept)| messages < *kept)
    }

    /// The options of a topic, or of all topics of a pattern. `Err`: topics of the pattern have different ones.
    pub(super) fn of(&self, pattern: &str) -> Result<Option<&TopicOptions>, &str> {
        match self.list.iter().find(|(rule, _)| topic::overlap(rule, pattern)) {
            Some((rule, options)) if topic::covers(rule, pattern) => Ok(Some(options)),
            Some((rule, _)) => Err(rule),
            None => Ok(None),
        }
    }

    /// The options of a topic.
    pub(super) fn of_topic(&self, topic: &str) -> Option<&TopicOptions> {
        // A rule that overlaps with one topic covers it.
        self.of(topic).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first rule that matches counts, and a pattern cannot reach behind a rule that it does not obey.
    #[test]
    fn the_first_rule_that_matches_counts() {
        let mut rules = Rules::default();
        for (pattern, max) in [("secret.>", 1), ("*.news", 2), ("a.>", 3)] {
            rules.add(pattern, TopicOptions::new().subscribers_max(max)).expect("a pattern");
        }
        let of = |pattern| rules.of(pattern).map(|options| options.and_then(|options| options.subscribers_max));
        assert_eq!(of("secret.news"), Ok(Some(1)));
        assert_eq!(of("a.news"), Ok(Some(2)));
        assert_eq!(of("a.b"), Ok(Some(3)));
        assert_eq!(of("b"), Ok(None));
        assert_eq!(of("a.b.*"), Ok(Some(3)));
        assert_eq!(of(">"), Err("secret.>"), "what is everything has no options in common");
        assert_eq!(of("*.news"), Err("secret.>"));
        assert_eq!(of("a.*"), Err("*.news"));
        assert!(rules.add("a..b", TopicOptions::new()).is_err());
    }

    /// A topic keeps something if it has a history, or says who is there.
    #[test]
    fn a_topic_keeps_what_its_options_say() {
        let minute = std::time::Duration::from_secs(60);
        assert!(!TopicOptions::new().keeps() && !TopicOptions::new().open().subscribers_max(1).keeps());
        assert!(TopicOptions::new().history(1, minute).keeps() && TopicOptions::new().latest_only().keeps());
        assert!(TopicOptions::new().presence(true).keeps() && !TopicOptions::new().presence(false).keeps());
    }
}
