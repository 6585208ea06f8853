//! Which server a call goes to.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{least_loaded::LeastLoaded, outcome::Outcome};
use crate::discovery::ServerEntry;

/// How servers are chosen. Except for [`LeastLoaded`](Self::LeastLoaded), the names are rpcx's.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum SelectMode {
    /// Any, each as likely as the others.
    #[default]
    RandomSelect,
    /// One after the other in the order of the list, beginning anywhere, so that many clients that start
    /// together do not all begin with the same server.
    RoundRobin,
    /// Of two servers chosen at random, the one with fewer calls in flight; with as many, the one with the shorter
    /// latency. Only calls of this `XClient` count.
    ///
    /// A server that refused a call, failed (a handler that panicked, a method that it does not have), or lost its
    /// connection, is avoided for 1 s. One that returns errors sooner than answers come is no quicker for that: each of
    /// them counts as in flight for as long as an answer takes. A latency is an average over the last
    /// calls, and is forgotten after 10 s without any, so that a server that was slow once is tried again.
    LeastLoaded,
    /// As this selector says; see [`SelectMode::by_user`].
    SelectByUser(UserSelector),
}

impl SelectMode {
    /// As this selector says: any `Fn(&Selection) -> Option<usize>`, or a [`Selector`] that also wants to
    /// know when the list changes.
    ///
    /// ```
    /// use bothways::{SelectMode, xclient::Selection};
    ///
    /// // The server with the largest weight.
    /// let heaviest = SelectMode::by_user(|selection: &Selection<'_>| {
    ///     let weight = |server: usize| {
    ///         let metadata = selection.servers()[server].metadata();
    ///         metadata.get("weight").and_then(|weight| weight.parse::<u32>().ok()).unwrap_or(1)
    ///     };
    ///     selection.candidates().max_by_key(|server| weight(*server))
    /// });
    /// ```
    pub fn by_user(selector: impl Selector) -> Self {
        Self::SelectByUser(UserSelector(Arc::new(selector)))
    }

    pub(super) fn into_selector(self) -> Arc<dyn Selector> {
        match self {
            Self::RandomSelect => Arc::new(RandomSelect),
            Self::RoundRobin => Arc::new(RoundRobin { next: rand::random_range(0..1 << 16).into() }),
            Self::LeastLoaded => Arc::new(LeastLoaded::default()),
            Self::SelectByUser(UserSelector(selector)) => selector,
        }
    }

    /// True if the selector wants to know of each try: those that do not cost their calls nothing.
    pub(super) fn learns(&self) -> bool {
        !matches!(self, Self::RandomSelect | Self::RoundRobin)
    }
}

/// A [`Selector`] of the application's own. A clone is the same selector.
#[derive(Clone)]
pub struct UserSelector(Arc<dyn Selector>);

impl fmt::Debug for UserSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserSelector")
    }
}

/// Chooses the server of a call, and may learn from what becomes of it.
///
/// No lock of the `XClient` is held while [`select`](Self::select), [`begun`](Self::begun) and [`ended`](Self::ended)
/// run: a slow one holds up its own call and no other. [`update`](Self::update) runs before the new list is used, and
/// calls wait for it: it must be quick, and must not use the `XClient`. A panic is logged; one of `select` fails its
/// call with [`CallError::NoServer`](crate::CallError::NoServer).
///
/// State belongs under the [address](ServerEntry::address) of a server, because places change with each list.
///
/// ```
/// use std::{collections::HashMap, sync::Mutex};
///
/// use bothways::{
///     SelectMode, Selector, ServerEntry,
///     xclient::{Outcome, OutcomeKind, Selection},
/// };
///
/// /// The server with the fewest calls that went wrong.
/// #[derive(Default)]
/// struct FewestFailures(Mutex<HashMap<String, u64>>);
///
/// impl Selector for FewestFailures {
///     fn select(&self, selection: &Selection<'_>) -> Option<usize> {
///         let failures = self.0.lock().ok()?;
///         let of = |server: &usize| failures.get(selection.servers()[*server].address()).copied();
///         selection.candidates().min_by_key(of)
///     }
///
///     fn ended(&self, server: &ServerEntry, outcome: &Outcome) {
///         let failed = matches!(outcome.kind, OutcomeKind::Refused | OutcomeKind::Lost | OutcomeKind::TimedOut);
///         if let (true, Ok(mut failures)) = (failed, self.0.lock()) {
///             *failures.entry(server.address().to_owned()).or_default() += 1;
///         }
///     }
/// }
///
/// let select_mode = SelectMode::by_user(FewestFailures::default());
/// ```
///
/// Source: Go rpcx `client/selector.go`, `Selector` (`Select`, `UpdateServer`).
pub trait Selector: Send + Sync + 'static {
    /// The place of the chosen server in [`Selection::servers`], which is never empty; `None` if none will do, which
    /// fails the call.
    ///
    /// After a failure the servers that were tried already are [excluded](Selection::is_excluded). To
    /// choose one of them all the same is not an error: the call goes there again.
    fn select(&self, selection: &Selection<'_>) -> Option<usize>;

    /// The list is another one from now on; the first one is told too. A choice that began before may still be made in
    /// the list before. Default: nothing.
    fn update(&self, servers: &[ServerEntry]) {
        let _ = servers;
    }

    /// A try begins at this server: a call or a oneway message, a retry or a backup too. Default: nothing.
    fn begun(&self, server: &ServerEntry) {
        let _ = server;
    }

    /// A try that [began](Self::begun) has ended; each is told once, however it ends. It may have left the list
    /// meanwhile. Default: nothing.
    fn ended(&self, server: &ServerEntry, outcome: &Outcome) {
        let _ = (server, outcome);
    }
}

impl<F> Selector for F
where
    F: Fn(&Selection<'_>) -> Option<usize> + Send + Sync + 'static,
{
    fn select(&self, selection: &Selection<'_>) -> Option<usize> {
        self(selection)
    }
}

/// What a [`Selector`] chooses by: the call, and the servers.
#[derive(Clone, Copy)]
pub struct Selection<'a> {
    pub(super) service_path: &'a str,
    pub(super) service_method: &'a str,
    pub(super) args: &'a [u8],
    pub(super) servers: &'a [ServerEntry],
    pub(super) excluded: Option<&'a dyn Fn(usize) -> bool>,
}

impl<'a> Selection<'a> {
    /// A choice among these servers, for tests of a selector.
    pub fn new(service_path: &'a str, service_method: &'a str, args: &'a [u8], servers: &'a [ServerEntry]) -> Self {
        Self { service_path, service_method, args, servers, excluded: None }
    }

    /// The same without the servers at the places that `excluded` names.
    #[must_use]
    pub fn excluding(mut self, excluded: &'a dyn Fn(usize) -> bool) -> Self {
        self.excluded = Some(excluded);
        self
    }

    /// The service that is called.
    pub fn service_path(&self) -> &'a str {
        self.service_path
    }

    /// The method that is called.
    pub fn service_method(&self) -> &'a str {
        self.service_method
    }

    /// The arguments, encoded.
    pub fn args(&self) -> &'a [u8] {
        self.args
    }

    /// Every server that is active and of the right group; at least one.
    pub fn servers(&self) -> &'a [ServerEntry] {
        self.servers
    }

    /// True if another server is to be preferred: this one was tried for this call, or is known to be down
    /// while others are not.
    pub fn is_excluded(&self, server: usize) -> bool {
        self.excluded.is_some_and(|excluded| excluded(server))
    }

    /// The places of the servers that are not excluded.
    pub fn candidates(&self) -> impl Iterator<Item = usize> {
        (0..self.servers.len()).filter(|server| !self.is_excluded(*server))
    }
}

impl fmt::Debug for Selection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection")
            .field("service_path", &self.service_path)
            .field("service_method", &self.service_method)
            .field("candidates", &self.candidates().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

struct RandomSelect;

impl Selector for RandomSelect {
    fn select(&self, selection: &Selection<'_>) -> Option<usize> {
        if selection.excluded.is_none() {
            return Some(rand::random_range(0..selection.servers.len()));
        }
        match selection.candidates().count() {
            0 => None,
            candidates => selection.candidates().nth(rand::random_range(0..candidates)),
        }
    }
}

/// The place survives updates, as in Go: the rotation goes on in the new list.
struct RoundRobin {
    next: AtomicUsize,
}

impl Selector for RoundRobin {
    fn select(&self, selection: &Selection<'_>) -> Option<usize> {
        let servers = selection.servers.len();
        // Every choice moves on by one, whichever servers are excluded: the calls of a server that is down are spread
        // over all others, and not given to the one after it.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % servers;
        (first..servers).chain(0..first).find(|server| !selection.is_excluded(*server))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn servers(n: usize) -> Vec<ServerEntry> {
        (0..n).map(|n| ServerEntry::new(format!("memu@{n}"))).collect()
    }

    fn selection(servers: &[ServerEntry]) -> Selection<'_> {
        Selection::new("Arith", "Mul", b"", servers)
    }

    fn how_often(chosen: impl IntoIterator<Item = usize>) -> BTreeMap<usize, usize> {
        let mut counts = BTreeMap::new();
        chosen.into_iter().for_each(|server| *counts.entry(server).or_default() += 1);
        counts
    }

    #[test]
    fn random_choice_is_even() {
        let (selector, servers) = (SelectMode::RandomSelect.into_selector(), servers(4));
        let counts = how_often((0..4000).filter_map(|_| selector.select(&selection(&servers))));
        // Six standard deviations of a fair choice are 165.
        assert!(counts.len() == 4 && counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn random_choice_keeps_to_the_candidates() {
        let (selector, servers) = (SelectMode::RandomSelect.into_selector(), servers(4));
        let excluded = |server| server == 1 || server == 2;
        let selection = selection(&servers).excluding(&excluded);
        let counts = how_often((0..1000).filter_map(|_| selector.select(&selection)));
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(selector.select(&selection.excluding(&|_| true)), None);
    }

    /// The calls of a server that is down are spread over all others.
    #[test]
    fn round_robin_spreads_the_calls_of_an_excluded_server() {
        let (selector, servers) = (RoundRobin { next: 0.into() }, servers(4));
        let excluded = |server| server == 1;
        let mut chosen = Vec::new();
        for _ in 0..1200 {
            let first = selector.select(&selection(&servers)).expect("all are candidates");
            let second = (first == 1).then(|| selector.select(&selection(&servers).excluding(&excluded)));
            chosen.push(second.flatten().unwrap_or(first));
        }
        assert_eq!(how_often(chosen), BTreeMap::from([(0, 400), (2, 400), (3, 400)]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Choose,
        Update(usize),
    }

    proptest! {
        /// Whatever lists follow one another: the choice is always in the list, and while a list stays,
        /// no server has two turns more than another.
        #[test]
        fn round_robin_is_fair_and_within_the_list(
            start in any::<u16>(),
            steps in prop::collection::vec(
                prop_oneof![8 => Just(Step::Choose), 1 => (1_usize..7).prop_map(Step::Update)],
                1..200,
            ),
        ) {
            let selector = RoundRobin { next: usize::from(start).into() };
            let mut list = servers(3);
            let mut turns = vec![0; 3];
            for step in steps {
                match step {
                    Step::Update(n) => {
                        list = servers(n);
                        selector.update(&list);
                        turns = vec![0; n];
                    }
                    Step::Choose => turns[selector.select(&selection(&list)).expect("nobody is excluded")] += 1,
                }
                let spread = turns.iter().max().expect("not empty") - turns.iter().min().expect("not empty");
                prop_assert!(spread <= 1, "{turns:?}");
            }
        }

        /// An excluded server is not chosen while another one is left.
        #[test]
        fn the_excluded_are_not_chosen(excluded in prop::collection::vec(any::<bool>(), 1..8), random in any::<bool>()) {
            let mode = if random { SelectMode::RandomSelect } else { SelectMode::RoundRobin };
            let (selector, list) = (mode.into_selector(), servers(excluded.len()));
            let is_excluded = |server: usize| excluded[server];
            let selection = selection(&list).excluding(&is_excluded);
            for _ in 0..10 {
                match selector.select(&selection) {
                    Some(server) => prop_assert!(!excluded[server]),
                    None => prop_assert!(excluded.iter().all(|excluded| *excluded)),
                }
            }
        }
    }
}
