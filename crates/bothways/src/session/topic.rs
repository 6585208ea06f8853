//! Topics: names with `.` between segments, and patterns over them.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use super::few::Few;

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
    /// As many sessions subscribe to the topic as its options let.
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
pub(super) fn covers(pattern: &str, other: &str) -> bool {
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
pub(super) struct Patterns(Few<(Arc<str>, u64)>);

impl Patterns {
    fn place(&self, pattern: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(held, _)| (**held).cmp(pattern))
    }

    pub(super) fn get(&self, pattern: &str) -> Option<u64> {
        self.place(pattern).ok().map(|at| self.0[at].1)
    }

    pub(super) fn contains(&self, pattern: &str) -> bool {
        self.place(pattern).is_ok()
    }

    /// Adds a pattern, or changes its stamp.
    pub(super) fn insert(&mut self, pattern: Arc<str>, stamp: u64) {
        match self.place(&pattern) {
            Ok(at) => self.0[at].1 = stamp,
            Err(at) => self.0.insert(at, (pattern, stamp)),
        }
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, pattern: &str) -> bool {
        let place = self.place(pattern);
        if let Ok(at) = place {
            self.0.remove(at);
        }
        place.is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.0.iter().map(|(pattern, stamp)| (pattern, *stamp))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> + Clone {
        self.0.iter().map(|(pattern, _)| pattern)
    }
}

/// Who subscribes to what: a tree of segments. `S` names a subscriber.
#[derive(Debug)]
pub(super) struct Subscriptions<S> {
    root: Node<S>,
}

#[derive(Debug)]
struct Node<S> {
    /// The whole pattern, for all its subscribers.
    pattern: Option<Arc<str>>,
    children: HashMap<Box<str>, Node<S>>,
    /// A set: a topic may have a million of them, who come and go one by one.
    subscribers: HashSet<S>,
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { pattern: None, children: HashMap::new(), subscribers: HashSet::new() }
    }
}

impl<S> Default for Subscriptions<S> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<S: Eq + Hash> Subscriptions<S> {
    /// A checked pattern as a text that its subscribers share.
    pub(super) fn shared(&self, pattern: &str) -> Arc<str> {
        let known = self.find(pattern).and_then(|node| node.pattern.clone());
        known.unwrap_or_else(|| pattern.into())
    }

    /// Adds a subscriber to a checked pattern, once.
    pub(super) fn add(&mut self, pattern: &Arc<str>, subscriber: S) {
        let node = pattern.split('.').fold(&mut self.root, |node, segment| {
            if !node.children.contains_key(segment) {
                node.children.insert(segment.into(), Node::default());
            }
            node.children.get_mut(segment).expect("it was just added")
        });
        node.pattern.get_or_insert_with(|| Arc::clone(pattern));
        node.subscribers.insert(subscriber);
    }

    /// Removes a subscriber from a pattern, and what is left without subscribers.
    pub(super) fn remove(&mut self, pattern: &str, subscriber: &S) {
        remove(&mut self.root, pattern.split('.'), subscriber);
    }

    /// Shows each subscriber of a checked topic; one with several matching patterns several times.
    pub(super) fn each(&self, topic: &str, mut show: impl FnMut(&S)) {
        let segments: Vec<&str> = topic.split('.').collect();
        each(&self.root, &segments, &mut show);
    }

    /// How many subscribe to exactly this pattern.
    pub(super) fn count(&self, pattern: &str) -> usize {
        self.find(pattern).map_or(0, |node| node.subscribers.len())
    }

    fn find(&self, pattern: &str) -> Option<&Node<S>> {
        pattern.split('.').try_fold(&self.root, |node, segment| node.children.get(segment))
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }
}

/// True if the node is empty afterwards.
fn remove<'a, S: Eq + Hash>(node: &mut Node<S>, mut segments: impl Iterator<Item = &'a str>, subscriber: &S) -> bool {
    match segments.next() {
        None => {
            node.subscribers.remove(subscriber);
            if node.subscribers.is_empty() {
                node.pattern = None;
            }
            if node.subscribers.len() < node.subscribers.capacity() / 8 {
                node.subscribers.shrink_to_fit();
            }
        }
        Some(segment) => {
            // The number of segments bounds the depth.
            let segments: Box<dyn Iterator<Item = &'a str>> = Box::new(segments.collect::<Vec<_>>().into_iter());
            if node.children.get_mut(segment).is_some_and(|child| remove(child, segments, subscriber)) {
                node.children.remove(segment);
            }
        }
    }
    node.subscribers.is_empty() && node.children.is_empty()
}

fn each<S>(node: &Node<S>, segments: &[&str], show: &mut impl FnMut(&S)) {
    let Some((first, rest)) = segments.split_first() else {
        return node.subscribers.iter().for_each(show);
    };
    if let Some(tail) = node.children.get(">") {
        tail.subscribers.iter().for_each(&mut *show);
    }
    for segment in [first, "*"] {
        if let Some(child) = node.children.get(segment) {
            each(child, rest, show);
        }
    }
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
            let mut found = Vec::new();
            tree.each(&topic, |number| found.push(*number));
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

    /// A subscriber that counts how often it is compared.
    #[derive(Clone, Copy, Debug, Eq)]
    struct Compared(u32);

    thread_local! {
        static COMPARISONS: Cell<usize> = const { Cell::new(0) };
    }

    impl PartialEq for Compared {
        fn eq(&self, other: &Self) -> bool {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Compared {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    /// Who subscribes is not compared with all who do: a crowd would take the square of its number.
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
        assert!(COMPARISONS.get() < 5 * CROWD as usize, "{} comparisons", COMPARISONS.get());
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
}
