//! What a storm adds up to: what was pushed, what each receipt says in the end, and what each client has seen. Without I/O,
//! so that storms in one process and storms of processes are judged alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    time::Duration,
};

/// Faults whose story is told; of the others there is a count.
const STORIES: usize = 8;

/// How a push is named: by its number behind this.
pub(crate) const PUSH_NAME: &str = "Storm.n";

/// How far before and after a push its story goes.
const STORY_BEFORE: Duration = Duration::from_secs(40);
const STORY_AFTER: Duration = Duration::from_secs(60);

/// How long a session may be on its way from one node to another, before its client says so and after.
const MOVES_WITHIN: Duration = Duration::from_secs(10);

/// To whom a push goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// All clients of this user.
    User(usize),
    /// The session that this client had when it was pushed.
    Session(usize),
    /// All clients with this label.
    Group(usize),
    /// All clients.
    Everyone,
}

/// What a receipt says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Nodes that have not said their targets.
    pub(crate) routing: usize,
    /// Targets that are not at their end.
    pub(crate) open: usize,
    pub(crate) handled: usize,
    pub(crate) unknown: usize,
    /// Dropped, expired: the client has not got it.
    pub(crate) dropped: usize,
    /// At any other end, which nothing in a storm has.
    pub(crate) other: usize,
    /// Nodes that were not reached, in words.
    pub(crate) unreached: Vec<String>,
    /// One of them may have got it all the same.
    pub(crate) maybe: bool,
    /// The same nodes by their names, where [`Seen::homes`] has names; and whether each may have got it. `None`: nobody knows
    /// which one it is.
    pub(crate) missed: Vec<(Option<String>, bool)>,
}

impl Told {
    fn targets(&self) -> usize {
        self.open + self.handled + self.unknown + self.dropped + self.other
    }

    /// A node was not reached that may have had the session of this client when it was pushed. `maybe`: and that may have
    /// got it.
    fn misses(&self, client: &Seen, at: Duration, maybe: bool) -> bool {
        let homes: Vec<&str> = client.homes_about(at).collect();
        match homes.is_empty() {
            true if maybe => self.maybe,
            true => !self.unreached.is_empty(),
            false => self.missed.iter().any(|(node, may_have)| {
                let is_its = node.as_deref().is_none_or(|node| homes.contains(&node));
                is_its && (!maybe || *may_have)
            }),
        }
    }
}

/// One push.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// Since the storm began.
    pub(crate) at: Duration,
    pub(crate) aim: Aim,
    pub(crate) told: Told,
}

/// One client, all of its life.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) user: usize,
    pub(crate) group: usize,
    /// It had a session from here on.
    pub(crate) since: Duration,
    /// The pushes that it handled, in order.
    pub(crate) handled: Vec<(Duration, usize)>,
    /// When it was told that its session was lost, and why.
    pub(crate) lost: Vec<(Duration, String)>,
    /// What became of its connection.
    pub(crate) connections: Vec<(Duration, String)>,
    /// The nodes to which it has come, by their names. Empty: nobody has written that down.
    pub(crate) homes: Vec<(Duration, String)>,
    /// When its session may have been no target: its node was dead, or had no lease, or it was parked.
    pub(crate) hidden: Vec<(Duration, Duration)>,
}

impl Seen {
    /// Its connection is lost.
    pub(crate) fn gone(&mut self, now: Duration, reason: impl Display) {
        self.connections.push((now, format!("gone ({reason})")));
    }

    /// It is connected again, to this place.
    pub(crate) fn back(&mut self, now: Duration, place: impl Display) {
        self.connections.push((now, format!("back {place}")));
        self.hidden.iter_mut().filter(|(_, to)| *to == Duration::MAX).for_each(|(_, to)| *to = now);
    }

    /// It is told that its session is lost: that may have ended at once when its client was gone.
    pub(crate) fn session_lost(&mut self, now: Duration, why: String) {
        self.lost.push((now, why));
        let is_gone = |(_, what): &&(Duration, String)| what.starts_with("gone");
        let before = self.connections.iter().rev().skip_while(|connection| !is_gone(connection));
        let since = before.take_while(is_gone).last().map(|(at, _)| *at);
        self.hidden.push((since.unwrap_or_default(), now));
    }

    fn is_aimed(&self, number: usize, aim: Aim) -> bool {
        match aim {
            Aim::User(user) => self.user == user,
            Aim::Session(client) => client == number,
            Aim::Group(group) => self.group == group,
            Aim::Everyone => true,
        }
    }

    /// It had one session, which was a target.
    fn is_target(&self, at: Duration) -> bool {
        self.since <= at && !self.hidden.iter().any(|(from, to)| *from <= at && at <= *to)
    }

    /// Where its session may have been at this moment.
    fn homes_about(&self, at: Duration) -> impl Iterator<Item = &str> {
        let (from, to) = (at.saturating_sub(MOVES_WITHIN), at + MOVES_WITHIN);
        let before = self.homes.iter().rev().find(|(since, _)| *since <= from);
        let about = self.homes.iter().filter(move |(since, _)| from < *since && *since <= to);
        before.into_iter().chain(about).map(|(_, node)| node.as_str())
    }

    fn loses(&self, at: Duration) -> bool {
        self.lost.iter().any(|(lost, _)| at <= *lost)
    }

    fn times(&self, push: usize) -> Vec<Duration> {
        self.handled.iter().filter(|(_, number)| *number == push).map(|(at, _)| *at).collect()
    }

    /// Sessions that it may have had since this moment.
    fn sessions(&self, at: Duration) -> usize {
        1 + self.lost.iter().filter(|(lost, _)| at <= *lost).count()
    }
}

/// How the targets of all pushes ended.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Sum {
    pub(crate) pushes: usize,
    /// Pushes whose targets are known beforehand, each of them, and that reached every node with one of them.
    pub(crate) exact: usize,
    /// Times that clients handled a push.
    pub(crate) came: usize,
    pub(crate) handled: usize,
    pub(crate) unknown: usize,
    pub(crate) dropped: usize,
    /// Pushes that did not reach each node.
    pub(crate) unreached: usize,
    pub(crate) sessions_lost: usize,
}

/// What was done to the servers, and when.
pub(crate) type Blows = Vec<(Duration, String)>;

/// Everything that happened.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) pushes: Vec<Pushed>,
    pub(crate) clients: Vec<Seen>,
    pub(crate) blows: Blows,
    /// What the servers tell of the sessions of each user.
    pub(crate) trails: BTreeMap<usize, String>,
}

impl Accounts {
    /// The sum. Panics with the story of what does not add up.
    pub(crate) fn settle(&self) -> Sum {
        let came = self.came();
        let faults: Vec<(usize, String)> = (0..self.pushes.len())
            .flat_map(|push| self.faults_of(push, &came[push]).into_iter().map(move |fault| (push, fault)))
            .collect();
        assert!(faults.is_empty(), "{}", self.stories(&faults));
        let told = || self.pushes.iter().map(|push| &push.told);
        Sum {
            pushes: self.pushes.len(),
            exact: self.pushes.iter().filter(|push| self.is_exact(push)).count(),
            came: self.clients.iter().map(|client| client.handled.len()).sum(),
            handled: told().map(|told| told.handled).sum(),
            unknown: told().map(|told| told.unknown).sum(),
            dropped: told().map(|told| told.dropped).sum(),
            unreached: told().filter(|told| !told.unreached.is_empty()).count(),
            sessions_lost: self.clients.iter().map(|client| client.lost.len()).sum(),
        }
    }

    /// Which clients handled each push, and how often.
    fn came(&self) -> Vec<BTreeMap<usize, usize>> {
        let mut came = vec![BTreeMap::new(); self.pushes.len()];
        for (number, client) in self.clients.iter().enumerate() {
            for (_, push) in &client.handled {
                *came[*push].entry(number).or_insert(0) += 1;
            }
        }
        came
    }

    fn aimed(&self, aim: Aim) -> BTreeSet<usize> {
        let all = self.clients.iter().enumerate();
        all.filter(|(number, client)| client.is_aimed(*number, aim)).map(|(number, _)| number).collect()
    }

    fn is_exact(&self, push: &Pushed) -> bool {
        let aimed = self.aimed(push.aim);
        aimed.iter().map(|number| &self.clients[*number]).all(|client| {
            let is_reached = !push.told.misses(client, push.at, false);
            is_reached && client.is_target(push.at)
        })
    }

    /// What of one push does not add up.
    fn faults_of(&self, number: usize, came: &BTreeMap<usize, usize>) -> Vec<String> {
        let push = &self.pushes[number];
        let told = &push.told;
        let aimed = self.aimed(push.aim);
        let mut faults = Vec::new();
        if told.routing + told.open != 0 {
            faults.push("its receipt is open".to_owned());
        }
        if told.other != 0 {
            faults.push("it ended as nothing ends here".to_owned());
        }
        for (client, times) in came {
            if !aimed.contains(client) {
                faults.push(format!("client {client} has it, for whom it is not"));
            }
            if self.clients[*client].sessions(push.at) < *times {
                faults.push(format!("client {client} has it {times} times"));
            }
        }

        let all: usize = came.values().sum();
        if all < told.handled {
            faults.push(format!("it is said to be handled {} times, and was {all} times", told.handled));
        }
        let may_be_unsaid = |client: &usize| told.misses(&self.clients[*client], push.at, true);
        let unsaid: usize = came.iter().filter(|(client, _)| may_be_unsaid(client)).map(|(_, times)| times).sum();
        if told.handled + told.unknown + unsaid < all {
            faults.push(format!("it was handled {all} times, which is not said"));
        }
        let is_missing = |client: &&usize| {
            let seen = &self.clients[**client];
            !came.contains_key(client) && seen.is_target(push.at) && !told.misses(seen, push.at, false)
        };
        let missing = aimed.iter().filter(is_missing).count();
        if told.unknown + told.dropped < missing {
            faults.push(format!("{missing} clients have not got it, which is not said"));
        }
        if self.is_exact(push) {
            if told.targets() != aimed.len() {
                faults.push(format!("it has {} targets, and not {}", told.targets(), aimed.len()));
            }
            let ended = aimed.iter().filter(|client| self.clients[**client].loses(push.at)).count();
            if ended < told.dropped {
                faults.push(format!("it is said to be dropped {} times, and {ended} sessions ended", told.dropped));
            }
        }
        faults
    }

    /// The stories of some faults, each of a push.
    pub(crate) fn stories(&self, faults: &[(usize, String)]) -> String {
        let mut text = format!("{} things do not add up:\n", faults.len());
        for (push, fault) in faults.iter().take(STORIES) {
            let _ = writeln!(text, "push {push}: {fault}\n{}", self.story(*push));
        }
        if STORIES < faults.len() {
            let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
            for (_, fault) in faults {
                let kind = fault.chars().filter(|letter| !letter.is_ascii_digit()).collect();
                *kinds.entry(kind).or_insert(0) += 1;
            }
            let _ = writeln!(text, "in all: {kinds:?}");
        }
        text
    }

    /// A push, its receipt, what its clients saw, and what was done meanwhile.
    fn story(&self, number: usize) -> String {
        let push = &self.pushes[number];
        let is_near = |at: &Duration| push.at.saturating_sub(STORY_BEFORE) <= *at && *at <= push.at + STORY_AFTER;
        let mut text = format!("  pushed at {:?} to {:?}; {:?}\n", push.at, push.aim, push.told);
        for client in self.aimed(push.aim) {
            let seen = &self.clients[client];
            let target = if seen.is_target(push.at) { "a target" } else { "perhaps no target" };
            let _ = write!(text, "  client {client}: handled at {:?}; {target}", seen.times(number));
            for (at, why) in &seen.lost {
                let _ = write!(text, "; lost at {at:?} ({why})");
            }
            for (at, what) in seen.connections.iter().filter(|(at, _)| is_near(at)) {
                let _ = write!(text, "; {what} at {at:?}");
            }
            text.push('\n');
            let its_own = format!("{PUSH_NAME}{number} ");
            let told = self.trails.get(&seen.user).into_iter().flat_map(|trail| trail.lines());
            for line in told.filter(|line| !line.contains(PUSH_NAME) || format!("{line} ").contains(&its_own)) {
                let _ = writeln!(text, "    {line}");
            }
        }
        for (at, what) in self.blows.iter().filter(|(at, _)| is_near(at)) {
            let _ = writeln!(text, "  {at:?}: {what}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn push(told: Told) -> Pushed {
        Pushed { at: secs(10), aim: Aim::User(0), told }
    }

    /// Two clients of one user, who have handled what is said, each at second 11 and later.
    fn faults(told: Told, handled: [usize; 2], change: impl FnOnce(&mut Accounts)) -> Vec<String> {
        let seen = |times| Seen { handled: vec![(secs(11), 0); times], ..Seen::default() };
        let other = Seen { user: 1, ..Seen::default() };
        let clients = handled.into_iter().map(seen).chain([other]).collect();
        let mut accounts = Accounts { pushes: vec![push(told)], clients, ..Accounts::default() };
        change(&mut accounts);
        accounts.faults_of(0, &accounts.came()[0])
    }

    fn handled(handled: usize) -> Told {
        Told { handled, ..Told::default() }
    }

    fn lose(accounts: &mut Accounts) {
        accounts.clients[0].lost.push((secs(20), "node_lost".to_owned()));
    }

    #[test]
    fn what_adds_up_is_no_fault() {
        assert!(faults(handled(2), [1, 1], |_| ()).is_empty());
        let unknown = Told { handled: 1, unknown: 1, ..Told::default() };
        assert!(faults(unknown.clone(), [1, 1], |_| ()).is_empty(), "unknown may be handled");
        assert!(faults(unknown.clone(), [1, 0], |_| ()).is_empty(), "and may be not");
        assert!(faults(unknown, [2, 0], lose).is_empty(), "once in each session");
        let dropped = Told { handled: 1, dropped: 1, ..Told::default() };
        assert!(faults(dropped, [0, 1], lose).is_empty());
        let unreached = Told { handled: 1, unreached: vec!["a node".to_owned()], ..Told::default() };
        assert!(faults(unreached.clone(), [1, 0], |_| ()).is_empty());
        assert!(faults(Told { maybe: true, ..unreached }, [1, 1], |_| ()).is_empty());
        let hide = |accounts: &mut Accounts| accounts.clients[1].hidden.push((secs(9), secs(12)));
        assert!(faults(handled(1), [1, 0], hide).is_empty(), "it was no target");
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let one = |told, came: [usize; 2], change: fn(&mut Accounts), word: &str| {
            let found = faults(told, came, change);
            assert!(found.iter().any(|fault| fault.contains(word)), "{word}: {found:?}");
        };
        one(Told { routing: 1, ..handled(2) }, [1, 1], |_| (), "open");
        one(Told { open: 1, ..handled(1) }, [1, 0], |_| (), "open");
        one(Told { other: 1, ..handled(1) }, [1, 0], |_| (), "nothing ends here");
        one(handled(2), [2, 1], |_| (), "2 times");
        one(handled(2), [3, 1], lose, "3 times");
        one(handled(2), [1, 0], |_| (), "said to be handled 2 times");
        one(handled(1), [1, 1], |_| (), "not said");
        one(Told { unreached: vec!["a node".to_owned()], ..handled(1) }, [1, 1], |_| (), "not said");
        one(handled(1), [1, 0], |_| (), "have not got it");
        one(handled(1), [1, 0], |_| (), "1 targets, and not 2");
        one(Told { unknown: 1, ..handled(2) }, [1, 1], |_| (), "3 targets, and not 2");
        one(Told { dropped: 1, ..handled(1) }, [1, 0], |_| (), "0 sessions ended");
        let stray = |accounts: &mut Accounts| accounts.clients[2].handled.push((secs(12), 0));
        one(handled(2), [1, 1], stray, "for whom it is not");
    }

    /// A node that was not reached excuses nothing of clients that are elsewhere.
    #[test]
    fn only_a_client_of_the_node_is_excused() {
        let missed = |node: Option<&str>, maybe| Told {
            handled: 1,
            unreached: vec!["a node".to_owned()],
            maybe,
            missed: vec![(node.map(str::to_owned), maybe)],
            ..Told::default()
        };
        let at = |homes: &[(u64, &str)]| {
            let homes: Vec<_> = homes.iter().map(|(at, node)| (secs(*at), (*node).to_owned())).collect();
            move |accounts: &mut Accounts| accounts.clients.iter_mut().for_each(|client| client.homes = homes.clone())
        };
        for (homes, is_excused) in [
            (&[(0, "one")][..], true),
            (&[(0, "other")], false),
            (&[(0, "one"), (5, "other")], true),
            (&[(0, "other"), (12, "one")], true),
            (&[(0, "other"), (30, "one")], false),
        ] {
            let found = faults(missed(Some("one"), false), [1, 0], at(homes));
            assert_eq!(found.is_empty(), is_excused, "{homes:?}: {found:?}");
            let found = faults(missed(Some("one"), true), [1, 1], at(homes));
            assert_eq!(found.is_empty(), is_excused, "{homes:?}: {found:?}");
            assert!(!faults(missed(Some("one"), false), [1, 1], at(homes)).is_empty(), "it may not have got it");
        }
        assert!(faults(missed(None, false), [1, 0], at(&[(0, "other")])).is_empty(), "nobody knows which one it is");
    }

    #[test]
    fn the_sum_counts_what_is_sure_apart() {
        let mut accounts = Accounts {
            pushes: vec![push(handled(1)), push(Told { unknown: 1, ..Told::default() })],
            clients: vec![Seen { handled: vec![(secs(11), 0)], ..Seen::default() }],
            ..Accounts::default()
        };
        let sum = accounts.settle();
        assert_eq!((sum.pushes, sum.exact, sum.came, sum.handled, sum.unknown), (2, 2, 1, 1, 1));
        lose(&mut accounts);
        accounts.clients[0].hidden.push((secs(9), secs(20)));
        assert_eq!((accounts.settle().exact, accounts.settle().sessions_lost), (0, 1));
        accounts.clients[0].handled.push((secs(12), 0));
        accounts.clients[0].handled.push((secs(13), 0));
        let story = std::panic::catch_unwind(|| accounts.settle()).expect_err("it was handled three times");
        let story = story.downcast_ref::<String>().expect("a text");
        assert!(story.contains("client 0 has it 3 times") && story.contains("node_lost"), "{story}");
    }
}
