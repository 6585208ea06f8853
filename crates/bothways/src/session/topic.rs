//! Topics: names with `.` between segments, and patterns over them.

use std::collections::HashMap;

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

/// Who subscribes to what: a tree of segments. `S` names a subscriber.
#[derive(Debug)]
pub(super) struct Subscriptions<S> {
    root: Node<S>,
}

#[derive(Debug)]
struct Node<S> {
    children: HashMap<Box<str>, Node<S>>,
    subscribers: Vec<S>,
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { children: HashMap::new(), subscribers: Vec::new() }
    }
}

impl<S> Default for Subscriptions<S> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<S: PartialEq> Subscriptions<S> {
    /// Adds a subscriber to a checked pattern, once.
    pub(super) fn add(&mut self, pattern: &str, subscriber: S) {
        let node = pattern.split('.').fold(&mut self.root, |node, segment| {
            if !node.children.contains_key(segment) {
                node.children.insert(segment.into(), Node::default());
            }
            node.children.get_mut(segment).expect("it was just added")
        });
        if !node.subscribers.contains(&subscriber) {
            node.subscribers.push(subscriber);
        }
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

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }
}

/// True if the node is empty afterwards.
fn remove<'a, S: PartialEq>(node: &mut Node<S>, mut segments: impl Iterator<Item = &'a str>, subscriber: &S) -> bool {
    match segments.next() {
        None => {
            if let Some(at) = node.subscribers.iter().position(|s| s == subscriber) {
                node.subscribers.swap_remove(at);
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
                tree.add(pattern, *number);
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
