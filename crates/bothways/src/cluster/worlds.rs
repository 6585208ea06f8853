//! Searches all that can happen to the machines of this folder, breadth first, so that a trace is a shortest one.
//!
//! A world is the machines of some nodes, the mail between them, and what may still go wrong. The search says which
//! states break a rule, and from which ones a good end cannot be reached any more. Short searches run with the other
//! tests; with `BOTHWAYS_WORLDS=full` they run to their end.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
};

/// What can be searched.
pub(super) trait World: Clone + Hash {
    /// What can happen.
    type Step: Clone + Debug;

    /// All that can happen now, and the worlds after it.
    fn steps(&self) -> Vec<(Self::Step, Self)>;

    /// What is wrong with this state.
    fn fault(&self) -> Option<String>;

    /// True if all is well, and stays so if nothing more goes wrong.
    fn is_good_end(&self) -> bool;
}

/// What a search has found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) states: usize,
    /// False: there were more states than it was to look at.
    pub(super) is_whole: bool,
    /// The first state that breaks a rule: which rule, and how it came.
    pub(super) fault: Option<(String, Vec<String>)>,
    /// A state from which no good end can be reached, and how it came. Only of a whole search.
    pub(super) stuck: Option<Vec<String>>,
}

impl Found {
    /// Nothing is wrong.
    pub(super) fn assert_well(&self, what: &str) {
        assert!(self.fault.is_none() && self.stuck.is_none(), "{what}: {self:#?}");
        println!("{what}: {} states{}", self.states, if self.is_whole { ", all" } else { "" });
    }

    /// Something is wrong, as it should be.
    pub(super) fn assert_found(&self, what: &str) {
        assert!(self.fault.is_some() || self.stuck.is_some(), "{what} was not found in {} states", self.states);
        let trace = self.fault.as_ref().map_or_else(|| self.stuck.as_ref(), |(_, trace)| Some(trace));
        println!("{what}: found in {} states, {} steps", self.states, trace.map_or(0, Vec::len));
    }
}

/// So many states, or all of them if the search is to be full.
pub(super) fn bound(short: usize) -> usize {
    let full = std::env::var("BOTHWAYS_WORLDS").is_ok_and(|how| how == "full");
    if full { 4_000_000 } else { short }
}

fn name_of<W: Hash>(world: &W) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// Looks at up to `most` states.
pub(super) fn search<W: World>(first: W, most: usize) -> Found {
    // Of each state: the one before it and the step from there.
    let mut came: Vec<(usize, Option<W::Step>)> = vec![(0, None)];
    let mut known = HashMap::from([(name_of(&first), 0)]);
    let mut waiting = VecDeque::from([(0, first)]);
    let (mut edges, mut good): (Vec<(u32, u32)>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut is_whole = true;

    while let Some((at, world)) = waiting.pop_front() {
        if let Some(fault) = world.fault() {
            return Found { states: came.len(), is_whole: false, fault: Some((fault, trace(&came, at))), stuck: None };
        }
        if world.is_good_end() {
            good.push(at);
        }
        for (step, next) in world.steps() {
            let number = match known.get(&name_of(&next)) {
                Some(number) => *number,
                None if most <= came.len() => {
                    is_whole = false;
                    continue;
                }
                None => {
                    let number = came.len();
                    known.insert(name_of(&next), number);
                    came.push((at, Some(step)));
                    waiting.push_back((number, next));
                    number
                }
            };
            edges.push((at as u32, number as u32));
        }
    }

    let stuck = if is_whole { stuck(came.len(), &edges, good) } else { None };
    Found { states: came.len(), is_whole, fault: None, stuck: stuck.map(|at| trace(&came, at)) }
}

/// The first state from which no good one can be reached.
fn stuck(states: usize, edges: &[(u32, u32)], good: Vec<usize>) -> Option<usize> {
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); states];
    edges.iter().for_each(|(from, to)| before[*to as usize].push(*from));
    let (mut reaches, mut left) = (vec![false; states], good);
    while let Some(at) = left.pop() {
        if !std::mem::replace(&mut reaches[at], true) {
            left.extend(before[at].iter().map(|from| *from as usize));
        }
    }
    reaches.iter().position(|reaches| !reaches)
}

fn trace<S: Debug>(came: &[(usize, Option<S>)], mut at: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while let (before, Some(step)) = &came[at] {
        steps.push(format!("{step:?}"));
        at = *before;
    }
    steps.reverse();
    steps
}

mod claim;
mod cuts;
mod last;
mod mail;

/// A counter that may be lost: the search finds the way to the fault, and the state without a way out.
#[derive(Clone, Hash)]
struct Counter {
    value: u8,
    wrong: u8,
    trap: bool,
}

impl World for Counter {
    type Step = &'static str;

    fn steps(&self) -> Vec<(&'static str, Self)> {
        let mut steps = Vec::new();
        if self.value < 4 {
            steps.push(("up", Self { value: self.value + 1, ..self.clone() }));
        }
        if self.trap && self.value == 2 {
            steps.push(("fall", Self { value: 9, ..self.clone() }));
        }
        steps
    }

    fn fault(&self) -> Option<String> {
        (self.value == self.wrong).then(|| "it is wrong".to_owned())
    }

    fn is_good_end(&self) -> bool {
        self.value == 4
    }
}

#[test]
fn a_search_finds_what_is_wrong_and_what_is_stuck() {
    let world = |wrong, trap| Counter { value: 0, wrong, trap };
    let well = search(world(7, false), 100);
    assert!(well.is_whole && well.states == 5 && well.fault.is_none() && well.stuck.is_none(), "{well:?}");
    let (fault, trace) = search(world(3, false), 100).fault.expect("it is there");
    assert_eq!((&fault[..], trace.len()), ("it is wrong", 3));
    assert_eq!(search(world(7, true), 100).stuck.expect("nothing leads out"), ["\"up\"", "\"up\"", "\"fall\""]);
    assert!(!search(world(7, false), 3).is_whole);
}
