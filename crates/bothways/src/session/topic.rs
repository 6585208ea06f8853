//! Topics: names with `.` between segments, and patterns over them.

use std::{collections::HashMap, sync::Arc};

use super::{
    one_or_many::OneOrMany,
    subscribers::{Numbered, Stale, Subscribers},
};
use crate::shrink::is_sparse;

/// Why a text is no topic or pattern.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// It is empty, or has an empty segment, such as in `a..b`.
    #[error("`{0}` has an empty segment: a topic is segments with `.` between them")]
    EmptySegment(String),
    /// A wildcard where there must be a name: in a topic to publish to, or within a segment.
    #[error("`{0}` has a wildcard: `*` and `>` stand for whole segments of a subscription, `>` for the last ones")]
    Wildcard(String),
    /// Longer than [`TOPIC_BYTES_MAX`], or more than [`SEGMENTS_MAX`] segments.
    #[error(
        "a topic of {bytes} bytes and {segments} segments is beyond the limits of {TOPIC_BYTES_MAX} and {SEGMENTS_MAX}"
    )]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// Its segments.
        segments: usize,
    },
    /// The topic has as many subscribers as its options allow.
    #[error("{subscribers} sessions subscribe to the topic already, and no more may")]
    Full {
        /// How many.
        subscribers: usize,
    },
    /// A client has as many subscriptions as it may.
    #[error("the session has {subscriptions} subscriptions already, and may have no more")]
    TooManySubscriptions {
        /// How many.
        subscriptions: usize,
    },
    /// The client's subscriptions have reached the session's bound in bytes.
    #[error("the subscriptions of the session take {bytes} bytes already, and may take no more")]
    TooManySubscriptionBytes {
        /// How many.
        bytes: usize,
    },
    /// All subscriptions of the server have reached its bound in bytes.
    #[error("the subscriptions at this server take {bytes} bytes already, and may take no more")]
    ServerSubscriptionsFull {
        /// How many.
        bytes: usize,
    },
    /// More wildcards than a client's pattern may have.
    #[error("a pattern of {wildcards} wildcards: a client's may have {WILDCARDS_MAX} at most")]
    TooManyWildcards {
        /// How many.
        wildcards: usize,
    },
    /// The client, or its user, has created so many topics with presence or history that others would find no room.
    #[error("{topics} topics are kept for this client already, and others need the room that is left")]
    TooManyTopicsMade {
        /// How many.
        topics: usize,
    },
    /// The server keeps history or presence of as many topics as it may.
    #[error("the server keeps {topics} topics already, and may keep no more")]
    TooManyTopics {
        /// How many.
        topics: usize,
    },
    /// The session is over.
    #[error("the session is over")]
    SessionEnded,
}

/// Most bytes of a topic: a name, not a message.
pub const TOPIC_BYTES_MAX: usize = 256;

/// Most segments of a topic: what a look-up walks.
pub const SEGMENTS_MAX: usize = 16;

/// Checks the name of a topic to publish to: no wildcards.
pub(super) fn check_topic(topic: &str) -> Result<(), TopicError> {
    check(topic)?;
    match topic.contains(['*', '>']) {
        true => Err(TopicError::Wildcard(topic.to_owned())),
        false => Ok(()),
    }
}

/// Checks a pattern to subscribe to: `*` is any one segment, a last `>` is one or more.
pub(super) fn check_pattern(pattern: &str) -> Result<(), TopicError> {
    check(pattern)?;
    let mut segments = pattern.split('.').peekable();
    while let Some(segment) = segments.next() {
        let misplaced = match segment {
            "*" => false,
            ">" => segments.peek().is_some(),
            name => name.contains(['*', '>']),
        };
        if misplaced {
            return Err(TopicError::Wildcard(pattern.to_owned()));
        }
    }
    Ok(())
}

/// True if a checked pattern has a wildcard.
pub(super) fn has_wildcard(pattern: &str) -> bool {
    pattern.split('.').any(|segment| matches!(segment, "*" | ">"))
}

/// True if `pattern` matches every topic that `other` does; `other` may be a topic.
pub(crate) fn covers(pattern: &str, other: &str) -> bool {
    let (mut pattern, mut other) = (pattern.split('.'), other.split('.'));
    loop {
        match (pattern.next(), other.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(o)) if o != ">" => {}
            (Some(p), Some(o)) if p == o => {}
            _ => return false,
        }
    }
}

/// True if there can be a topic that both match.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

fn check(text: &str) -> Result<(), TopicError> {
    let segments = text.split('.').count();
    if TOPIC_BYTES_MAX < text.len() || SEGMENTS_MAX < segments {
        return Err(TopicError::TooLong { bytes: text.len(), segments });
    }
    match text.split('.').any(str::is_empty) {
        true => Err(TopicError::EmptySegment(text.to_owned())),
        false => Ok(()),
    }
}

/// What one subscriber has subscribed to: checked patterns, sorted, each with a stamp.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    held: OneOrMany<(Arc<str>, Since)>,
    /// The sum of [`bytes_of`] of all of them: asked for at each subscription, under the lock of all topics.
    bytes: usize,
}

/// The stamp from which on a subscriber was sent everything; and in the three highest bits, which no stamp reaches:
/// whether nothing may overtake what it was not sent, whether there is such a message now, and whether its client asked
/// for the pattern.
#[derive(Clone, Copy, Debug)]
struct Since(u64);

/// The stamp of a pattern that a session has, and of which it was sent nothing yet.
#[cfg(feature = "cluster")]
pub(super) const NEVER: u64 = !Since::MARKS;

impl Since {
    const ORDERED: u64 = 1 << 63;
    const STALLED: u64 = 1 << 62;
    const BY_CLIENT: u64 = 1 << 61;
    const MARKS: u64 = Self::ORDERED | Self::STALLED | Self::BY_CLIENT;

    fn stamp(self) -> u64 {
        self.0 & !Self::MARKS
    }

    fn with_stamp(self, stamp: u64) -> Self {
        Self(self.0 & Self::MARKS | stamp)
    }
}

impl Patterns {
    fn place(&self, pattern: &str) -> Result<usize, usize> {
        self.held.binary_search_by(|(held, _)| (**held).cmp(pattern))
    }

    pub(super) fn get(&self, pattern: &str) -> Option<u64> {
        self.place(pattern).ok().map(|at| self.held[at].1.stamp())
    }

    pub(super) fn contains(&self, pattern: &str) -> bool {
        self.place(pattern).is_ok()
    }

    /// Adds a pattern, or changes its stamp.
    pub(super) fn insert(&mut self, pattern: Arc<str>, stamp: u64) {
        match self.place(&pattern) {
            Ok(at) => self.held[at].1 = self.held[at].1.with_stamp(stamp),
            Err(at) => {
                self.bytes += bytes_of(&pattern);
                self.held.insert(at, (pattern, Since(stamp)));
            }
        }
    }

    /// From here on the subscriber asks for what it was not sent of this topic: nothing of it is to overtake that.
    pub(super) fn set_ordered(&mut self, topic: &str) {
        if let Ok(at) = self.place(topic) {
            self.held[at].1.0 |= Since::ORDERED;
        }
    }

    /// The client itself asked for this pattern.
    pub(super) fn set_by_client(&mut self, pattern: &str) {
        if let Ok(at) = self.place(pattern) {
            self.held[at].1.0 |= Since::BY_CLIENT;
        }
    }

    /// A message of this topic is not sent. If nothing may overtake it, nothing is until [`Self::go_on`].
    pub(super) fn stall(&mut self, topic: &str) {
        if let Ok(at) = self.place(topic)
            && self.held[at].1.0 & Since::ORDERED != 0
        {
            self.held[at].1.0 |= Since::STALLED;
        }
    }

    /// True if nothing of this topic may overtake what was not sent of it.
    #[cfg(feature = "cluster")]
    pub(super) fn is_ordered(&self, topic: &str) -> bool {
        self.place(topic).is_ok_and(|at| self.held[at].1.0 & Since::ORDERED != 0)
    }

    pub(super) fn is_stalled(&self, topic: &str) -> bool {
        self.place(topic).is_ok_and(|at| self.held[at].1.0 & Since::STALLED != 0)
    }

    /// The subscriber has got what it was not sent of this topic, or knows that it does not get it.
    pub(super) fn go_on(&mut self, topic: &str) {
        if let Ok(at) = self.place(topic) {
            self.held[at].1.0 &= !Since::STALLED;
        }
    }

    /// Each, and whether its client asked for it.
    #[cfg(feature = "cluster")]
    pub(super) fn asked(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.held.iter().map(|(name, since)| (name, since.0 & Since::BY_CLIENT != 0))
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, pattern: &str) -> bool {
        let place = self.place(pattern);
        if let Ok(at) = place {
            self.bytes -= bytes_of(pattern);
            self.held.remove(at);
        }
        place.is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What they take, at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls `each` with the stamp of every pattern that covers this one, or this topic. Returns how many places it
    /// looked for: that grows with the segments of the pattern and with those that cover it, not with all that are held.
    pub(super) fn each_covering(&self, pattern: &str, mut each: impl FnMut(u64)) -> usize {
        each_covering(&self.held, 0, pattern, &mut each)
    }

    pub(super) fn covers(&self, topic: &str) -> bool {
        let mut is_covered = false;
        self.each_covering(topic, |_| is_covered = true);
        is_covered
    }

    /// Each with its stamp, and whether the client asked for it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64, bool)> {
        self.held.iter().map(|(pattern, since)| (pattern, since.stamp(), since.0 & Since::BY_CLIENT != 0))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> + Clone {
        self.held.iter().map(|(pattern, _)| pattern)
    }
}

/// Of patterns that are sorted, and equal in their first `at` bytes, those whose rest covers `rest`.
fn each_covering(held: &[(Arc<str>, Since)], at: usize, rest: &str, each: &mut impl FnMut(u64)) -> usize {
    let (segment, behind) = match rest.split_once('.') {
        Some((segment, behind)) => (segment, Some(behind)),
        None => (rest, None),
    };
    let literal = Some(segment).filter(|segment| !matches!(*segment, "*" | ">"));
    let star = Some("*").filter(|_| segment != ">");
    let mut looked_for = 0;

    for (own, ends) in [(Some(">"), true), (star, behind.is_none()), (literal, behind.is_none())] {
        let Some(own) = own else { continue };
        looked_for += 1;
        if ends {
            if let Ok(found) = held.binary_search_by(|(pattern, _)| pattern[at..].cmp(own)) {
                each(held[found].1.stamp());
            }
        } else if let Some(behind) = behind {
            let below = |pattern: &str| pattern[at..].bytes().lt(own.bytes().chain([b'.']));
            let begins = |pattern: &str| pattern[at..].strip_prefix(own).is_some_and(|more| more.starts_with('.'));
            let from = &held[held.partition_point(|(pattern, _)| below(pattern))..];
            let alike = &from[..from.partition_point(|(pattern, _)| begins(pattern))];
            if !alike.is_empty() {
                looked_for += each_covering(alike, at + own.len() + 1, behind, each);
            }
        }
    }

    looked_for
}

/// Most wildcards in a pattern of a client: what a publish walks grows with their number, by powers.
pub(super) const WILDCARDS_MAX: usize = 3;

/// The wildcards of a checked pattern.
pub(super) fn wildcards(pattern: &str) -> usize {
    pattern.split('.').filter(|segment| matches!(*segment, "*" | ">")).count()
}

/// What a topic that is subscribed to takes beside the bytes of its name: its places in the table, for its first
/// subscriber and in that one's list.
const TOPIC_BYTES: usize = 256;

/// What a segment of a pattern with wildcards takes, at most, beside its bytes: a node with a table of its own.
const NODE_BYTES: usize = 640;

/// What each further subscriber takes: its places there, in a set and in a list, and the pattern's place in its list.
const SUBSCRIBER_BYTES: usize = 72;

/// What a checked pattern takes, at most, that one session subscribes to.
pub(super) fn bytes_of(pattern: &str) -> usize {
    match has_wildcard(pattern) {
        true => TOPIC_BYTES + 2 * pattern.len() + NODE_BYTES * pattern.split('.').count(),
        false => TOPIC_BYTES + pattern.len(),
    }
}

/// The subscribers of each topic: topics by name, and a tree of segments of the patterns that have wildcards. `S` names
/// a subscriber.
#[derive(Debug)]
pub(super) struct Subscriptions<S> {
    topics: HashMap<Arc<str>, Subscribers<S>>,
    root: Node<S>,
    /// What all this takes, at most.
    bytes: usize,
    /// Lists that are not true any more.
    stale: Vec<Stale<S>>,
}

#[derive(Debug)]
struct Node<S> {
    /// The whole pattern, for all its subscribers.
    pattern: Option<Arc<str>>,
    children: HashMap<Box<str>, Node<S>>,
    /// A topic may have a million of them, who come and go one by one.
    subscribers: Subscribers<S>,
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { pattern: None, children: HashMap::new(), subscribers: Subscribers::default() }
    }
}

impl<S> Default for Subscriptions<S> {
    fn default() -> Self {
        Self { topics: HashMap::new(), root: Node::default(), bytes: 0, stale: Vec::new() }
    }
}

impl<S: Numbered> Subscriptions<S> {
    /// A checked pattern as a text that its subscribers share.
    pub(super) fn shared(&self, pattern: &str) -> Arc<str> {
        let known = match has_wildcard(pattern) {
            true => self.node(pattern).and_then(|node| node.pattern.as_ref()),
            false => self.topics.get_key_value(pattern).map(|(name, _)| name),
        };
        known.map_or_else(|| pattern.into(), Arc::clone)
    }

    /// Adds a subscriber to a checked pattern, once.
    pub(super) fn add(&mut self, pattern: &Arc<str>, subscriber: S) {
        let of_pattern = match has_wildcard(pattern) {
            false => self.topics.entry(Arc::clone(pattern)).or_default(),
            true => {
                let node = pattern.split('.').fold(&mut self.root, |node, segment| {
                    if !node.children.contains_key(segment) {
                        node.children.insert(segment.into(), Node::default());
                    }
                    node.children.get_mut(segment).expect("it was just added")
                });
                node.pattern.get_or_insert_with(|| Arc::clone(pattern));
                &mut node.subscribers
            }
        };

        let is_first = of_pattern.is_empty();
        let (is_new, stale) = of_pattern.insert(subscriber);
        self.stale.extend(stale);
        if is_new {
            self.bytes += if is_first { bytes_of(pattern) } else { SUBSCRIBER_BYTES };
        }
    }

    /// Removes a subscriber from a pattern, and what is left without subscribers.
    pub(super) fn remove(&mut self, pattern: &str, subscriber: &S) {
        let left = match has_wildcard(pattern) {
            true => remove(&mut self.root, &pattern.split('.').collect::<Vec<_>>(), subscriber),
            false => self.topics.get_mut(pattern).and_then(|all| all.remove(subscriber)),
        };
        let Some((left, stale)) = left else { return };
        self.stale.extend(stale);
        match left {
            0 => {
                self.topics.remove(pattern);
                self.bytes -= bytes_of(pattern);
            }
            _ => self.bytes -= SUBSCRIBER_BYTES,
        }
        if is_sparse(self.topics.len(), self.topics.capacity()) {
            self.topics.shrink_to_fit();
        }
    }

    /// Shows the subscribers of each pattern that matches a checked topic: one who has several of these is shown as
    /// often. Returns how many places it looked at.
    pub(super) fn each<'a>(&'a self, topic: &str, mut show: impl FnMut(&'a Subscribers<S>)) -> usize {
        let named = self.topics.get(topic);
        named.into_iter().for_each(&mut show);
        if self.root.children.is_empty() {
            return 1;
        }
        let segments: Vec<&str> = topic.split('.').collect();
        1 + each(&self.root, &segments, &mut show)
    }

    /// Shows each topic and pattern that somebody subscribes to, and how many do, in any order.
    pub(super) fn each_name(&self, show: &mut impl FnMut(&Arc<str>, usize)) {
        self.topics.iter().for_each(|(name, subscribers)| show(name, subscribers.len()));
        each_name(&self.root, show);
    }

    /// How many subscribe to exactly this pattern.
    pub(super) fn count(&self, pattern: &str) -> usize {
        self.of(pattern).map_or(0, Subscribers::len)
    }

    /// True if who has this number subscribes to exactly this pattern.
    pub(super) fn contains(&self, pattern: &str, number: u128) -> bool {
        self.of(pattern).is_some_and(|subscribers| subscribers.contains(number))
    }

    fn of(&self, pattern: &str) -> Option<&Subscribers<S>> {
        match has_wildcard(pattern) {
            true => self.node(pattern).map(|node| &node.subscribers),
            false => self.topics.get(pattern),
        }
    }

    /// Lists that are not true any more, which may be long: to be dropped when nothing is locked.
    pub(super) fn take_stale(&mut self) -> Vec<Stale<S>> {
        std::mem::take(&mut self.stale)
    }

    /// What all subscriptions take, at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn node(&self, pattern: &str) -> Option<&Node<S>> {
        pattern.split('.').try_fold(&self.root, |node, segment| node.children.get(segment))
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.children.is_empty() && self.topics.is_empty() && self.bytes == 0
    }
}

/// As [`Subscribers::remove`], and forgets the nodes that are empty afterwards.
fn remove<S: Numbered>(node: &mut Node<S>, segments: &[&str], subscriber: &S) -> Option<(usize, Option<Stale<S>>)> {
    let Some((segment, rest)) = segments.split_first() else {
        let left = node.subscribers.remove(subscriber);
        if node.subscribers.is_empty() {
            node.pattern = None;
        }
        return left;
    };
    // The number of segments bounds the depth.
    let child = node.children.get_mut(*segment)?;
    let left = remove(child, rest, subscriber);
    if child.subscribers.is_empty() && child.children.is_empty() {
        node.children.remove(*segment);
    }
    left
}

/// As [`Subscriptions::each_name`], below a node.
fn each_name<S>(node: &Node<S>, show: &mut impl FnMut(&Arc<str>, usize)) {
    if let Some(pattern) = &node.pattern {
        show(pattern, node.subscribers.len());
    }
    // The number of segments bounds the depth.
    node.children.values().for_each(|child| each_name(child, show));
}

fn each<'a, S>(node: &'a Node<S>, segments: &[&str], show: &mut impl FnMut(&'a Subscribers<S>)) -> usize {
    let Some((first, rest)) = segments.split_first() else {
        if !node.subscribers.is_empty() {
            show(&node.subscribers);
        }
        return 1;
    };
    let mut seen = 1;
    if let Some(tail) = node.children.get(">") {
        show(&tail.subscribers);
        seen += 1;
    }
    for segment in [first, "*"] {
        if let Some(child) = node.children.get(segment) {
            seen += each(child, rest, show);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// The definition, without a tree.
    fn matches(pattern: &str, topic: &str) -> bool {
        let (mut pattern, mut topic) = (pattern.split('.'), topic.split('.'));
        loop {
            match (pattern.next(), topic.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(p), Some(t)) if p == "*" || p == t => {}
                _ => return false,
            }
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let segments = prop::collection::vec(prop::sample::select(vec!["a", "b", "*"]), 0..4);
        (segments, prop::sample::select(vec!["a", "b", "*", ">"])).prop_map(|(mut segments, last)| {
            segments.push(last);
            segments.join(".")
        })
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5).prop_map(|s| s.join("."))
    }

    proptest! {
        /// The tree finds exactly the patterns that match, whatever was added and removed.
        #[test]
        fn the_tree_finds_what_matches(
            patterns in prop::collection::vec(pattern(), 0..12),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            topic in topic(),
        ) {
            let mut tree = Subscriptions::default();
            let mut left: Vec<(usize, String)> = patterns.into_iter().enumerate().collect();
            for (number, pattern) in &left {
                prop_assert_eq!(check_pattern(pattern), Ok(()));
                tree.add(&tree.shared(pattern), *number);
            }
            for index in removed {
                if !left.is_empty() {
                    let (number, pattern) = left.swap_remove(index.index(left.len()));
                    tree.remove(&pattern, &number);
                }
            }
            let mut found: Vec<usize> = Vec::new();
            tree.each(&topic, |numbers| found.extend(numbers.listing(usize::MAX).iter()));
            found.sort_unstable();
            let mut expected: Vec<_> =
                left.iter().filter(|(_, pattern)| matches(pattern, &topic)).map(|(number, _)| *number).collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
            for (number, pattern) in left {
                tree.remove(&pattern, &number);
            }
            prop_assert!(tree.is_empty());
        }
    }

    /// A subscriber that counts how often it is looked at.
    #[derive(Clone, Copy, Debug)]
    struct Compared(u32);

    thread_local! {
        static COMPARISONS: Cell<usize> = const { Cell::new(0) };
    }

    impl Numbered for Compared {
        fn number(&self) -> u128 {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0.into()
        }
    }

    /// A new subscriber is not compared with all others: a crowd would take the square of its number.
    #[test]
    fn a_subscriber_comes_and_goes_at_the_same_price_in_a_crowd() {
        const CROWD: u32 = 10_000;
        let mut tree = Subscriptions::default();
        for number in (0..CROWD).chain(0..CROWD) {
            tree.add(&"news".into(), Compared(number));
        }
        assert_eq!(tree.count("news"), CROWD as usize);
        (0..CROWD).for_each(|number| tree.remove("news", &Compared(number)));
        assert!(tree.is_empty());
        // Three rounds, of a look at itself and ten in its part.
        assert!(COMPARISONS.get() < 3 * 12 * CROWD as usize, "{} looks", COMPARISONS.get());
    }

    /// A subscription is looked up among those that a session holds, and their bytes are known: what that takes does not
    /// grow with their number.
    #[test]
    fn a_subscription_costs_the_same_however_many_are_held() {
        let mut patterns = Patterns::default();
        let mut bytes = 0;
        for number in 0..1000 {
            for pattern in [format!("room.{number}.chat"), format!("room.{number}.*"), format!("{number}.>")] {
                bytes += bytes_of(&pattern);
                patterns.insert(pattern.as_str().into(), number);
            }
        }
        let mut found = Vec::new();
        let looked_for = patterns.each_covering("room.7.chat", |stamp| found.push(stamp));
        assert!(found == [7, 7] && looked_for <= 12, "{found:?} at {looked_for} places");
        assert!(patterns.covers("7.x") && !patterns.covers("room.7"));
        assert_eq!(patterns.bytes(), bytes);
        patterns.insert("room.7.chat".into(), 3);
        assert_eq!(patterns.bytes(), bytes, "it was there");
        assert!(patterns.remove("room.7.chat") && !patterns.remove("room.7.chat"));
        assert_eq!(patterns.bytes(), bytes - bytes_of("room.7.chat"));
    }

    /// What a publish walks is bounded by the wildcards that a client's pattern may have, however many patterns there are.
    #[test]
    fn a_publish_looks_at_few_places_whatever_clients_subscribe_to() {
        let mut tree = Subscriptions::default();
        let mut patterns = 0;
        for bits in 0..1_u32 << (SEGMENTS_MAX - 1) {
            let segment = |at| if bits >> at & 1 == 1 { "*" } else { "a" };
            let mut pattern: Vec<&str> = (0..SEGMENTS_MAX - 1).map(segment).collect();
            pattern.push("zz");
            let pattern = pattern.join(".");
            if wildcards(&pattern) <= WILDCARDS_MAX {
                tree.add(&pattern.as_str().into(), patterns);
                patterns += 1;
            }
        }
        for name in 0..100_000 {
            tree.add(&format!("a.{name}").into(), name);
        }
        let mut found = 0;
        let seen = tree.each(&["a"; SEGMENTS_MAX].join("."), |_| found += 1);
        assert_eq!((patterns, found), (576, 0));
        assert!(seen <= 2517, "{seen} places");
        assert!(tree.each("a.7", |_| found += 1) <= 8, "a name is one place, beside the patterns that begin alike");
        assert_eq!(found, 1);
    }

    /// All topics of up to four segments of three names.
    fn topics() -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut longest = vec![String::new()];
        for _ in 0..4 {
            let longer = longest.iter().flat_map(|topic| ["a", "b", "c"].map(|name| format!("{topic}.{name}")));
            longest = longer.map(|topic| topic.trim_start_matches('.').to_owned()).collect();
            all.extend_from_slice(&longest);
        }
        all
    }

    proptest! {
        /// Those that cover a pattern are found among all that are held.
        #[test]
        fn the_covering_are_found(
            held in prop::collection::vec(pattern(), 0..30),
            other in pattern(),
        ) {
            let mut patterns = Patterns::default();
            for (stamp, pattern) in held.iter().enumerate() {
                patterns.insert(pattern.as_str().into(), stamp as u64);
            }
            let mut expected: Vec<u64> =
                patterns.iter().filter(|(pattern, ..)| covers(pattern, &other)).map(|(_, stamp, _)| stamp).collect();
            let mut found = Vec::new();
            patterns.each_covering(&other, |stamp| found.push(stamp));
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(patterns.bytes(), patterns.names().map(|pattern| bytes_of(pattern)).sum::<usize>());
        }

        /// Patterns compare as the sets of topics that they match.
        #[test]
        fn patterns_compare_as_sets(a in short_pattern(), b in short_pattern()) {
            let all = topics();
            let (of_a, of_b): (Vec<_>, Vec<_>) =
                (all.iter().filter(|t| matches(&a, t)).collect(), all.iter().filter(|t| matches(&b, t)).collect());
            prop_assert_eq!(overlap(&a, &b), of_a.iter().any(|topic| of_b.contains(topic)));
            prop_assert_eq!(covers(&a, &b), of_b.iter().all(|topic| of_a.contains(topic)));
            for topic in &all {
                prop_assert_eq!(covers(&a, topic), matches(&a, topic));
            }
        }
    }

    /// Patterns of up to three segments, so that a topic of four tells a last `>` from a `*`.
    fn short_pattern() -> impl Strategy<Value = String> {
        let segments = prop::collection::vec(prop::sample::select(vec!["a", "b", "*"]), 0..3);
        (segments, prop::sample::select(vec!["a", "b", "*", ">"])).prop_map(|(mut segments, last)| {
            segments.push(last);
            segments.join(".")
        })
    }

    /// What is no topic and no pattern is told so.
    #[test]
    fn wildcards_stand_for_whole_segments() {
        for bad in ["", "a..b", ".a", "a."] {
            assert_eq!(check_pattern(bad), Err(TopicError::EmptySegment(bad.to_owned())));
        }
        for bad in ["a*", "a.>.b", ">x"] {
            assert_eq!(check_pattern(bad), Err(TopicError::Wildcard(bad.to_owned())));
        }
        assert_eq!(check_topic("a.*"), Err(TopicError::Wildcard("a.*".to_owned())));
        let deep = vec!["a"; 17].join(".");
        assert_eq!(check_topic(&deep), Err(TopicError::TooLong { bytes: 33, segments: 17 }));
        assert_eq!(check_topic("prices.de.EUR"), Ok(()));
    }

    #[test]
    fn a_pattern_costs_what_it_takes() {
        assert_eq!(bytes_of("a.bc"), TOPIC_BYTES + 4);
        assert_eq!(bytes_of("a.*"), TOPIC_BYTES + 2 * 3 + 2 * NODE_BYTES);
        assert_eq!(bytes_of("a.b.>"), TOPIC_BYTES + 2 * 5 + 3 * NODE_BYTES);
        let mut all = Subscriptions::default();
        for (pattern, subscriber, bytes) in [
            ("a.*", 1, bytes_of("a.*")),
            ("a.*", 1, bytes_of("a.*")),
            ("a.*", 2, bytes_of("a.*") + SUBSCRIBER_BYTES),
            ("b", 1, bytes_of("a.*") + SUBSCRIBER_BYTES + bytes_of("b")),
            ("b", 2, bytes_of("a.*") + 2 * SUBSCRIBER_BYTES + bytes_of("b")),
        ] {
            all.add(&all.shared(pattern), subscriber);
            assert_eq!(all.bytes(), bytes, "{pattern} {subscriber}");
        }
        assert_eq!([all.count("a.*"), all.count("b"), all.count("c"), all.count("c.*")], [2, 2, 0, 0]);
        all.remove("b", &3);
        all.remove("c", &1);
        all.remove("c.*", &1);
        assert_eq!(all.bytes(), bytes_of("a.*") + 2 * SUBSCRIBER_BYTES + bytes_of("b"));
        for (pattern, subscriber) in [("b", 1), ("a.*", 2), ("b", 2), ("a.*", 1)] {
            all.remove(pattern, &subscriber);
        }
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn wildcards_are_counted() {
        for (pattern, many) in [("a", 0), ("a.*", 1), ("*.b.>", 2), ("a*.b", 0)] {
            assert_eq!((wildcards(pattern), has_wildcard(pattern)), (many, 0 < many), "{pattern}");
        }
    }

    /// What a publish costs is the number of places that it looks at.
    #[test]
    fn the_places_that_are_looked_at_are_counted() {
        let mut tree = Subscriptions::default();
        let looked_at = |tree: &Subscriptions<u32>, topic: &str| {
            let mut shown = 0;
            (tree.each(topic, |_| shown += 1), shown)
        };
        tree.add(&tree.shared("a.b"), 1);
        assert_eq!([looked_at(&tree, "a.b"), looked_at(&tree, "c")], [(1, 1), (1, 0)]);
        tree.add(&tree.shared("a.*"), 2);
        assert_eq!(looked_at(&tree, "a.b"), (4, 2), "the name, the root, `a`, and its `*`");
        tree.add(&tree.shared("a.>"), 3);
        assert_eq!(looked_at(&tree, "a.b"), (5, 3), "and its `>`");
        assert_eq!(looked_at(&tree, "x.y"), (2, 0));
    }

    /// The longest name is one, and whatever is longer is none.
    #[test]
    fn a_name_has_a_bound_in_bytes_and_in_segments() {
        for beyond in 0..3 {
            let long = "x".repeat(TOPIC_BYTES_MAX + beyond);
            let deep = vec!["x"; SEGMENTS_MAX + beyond].join(".");
            for name in [long, deep] {
                assert_eq!((check_topic(&name).is_ok(), check_pattern(&name).is_ok()), (beyond == 0, beyond == 0));
            }
        }
    }

    /// A pattern that is held already gets another stamp, and stays as ordered and stalled as it was.
    #[test]
    fn another_stamp_changes_nothing_else() {
        let mut patterns = Patterns::default();
        patterns.insert("a".into(), 5);
        assert_eq!((patterns.get("a"), patterns.is_stalled("a")), (Some(5), false));
        patterns.stall("a");
        assert!(!patterns.is_stalled("a"), "whose order does not matter");
        patterns.set_ordered("a");
        patterns.stall("a");
        patterns.insert("a".into(), 6);
        assert_eq!((patterns.get("a"), patterns.is_stalled("a")), (Some(6), true));
        patterns.go_on("a");
        patterns.insert("a".into(), 9);
        assert_eq!((patterns.get("a"), patterns.is_stalled("a")), (Some(9), false));
        patterns.stall("a");
        assert!(patterns.is_stalled("a"), "it is still ordered");
    }
}
