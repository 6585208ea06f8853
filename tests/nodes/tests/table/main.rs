//! The table "When something fails" of `docs/cluster.md`, row by row, over nodes and brokers that are processes. A test
//! asserts every cell of its row that says something, by the name of its column; leases and elections have their real times.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use bothways_brokers::Broker;
use bothways_nodes::{LONG, Node, Options, Proxy, SessionSeen, To, Told, Topic, User};
use tokio::time::sleep;

mod broker;
mod clients;
mod clock;
mod deaths;

const COLUMNS: [&str; 5] = ["tracked push", "Durable", "topic with history", "call under way", "presence"];

/// A topic with history, and one in which members are seen.
const NEWS: &str = "news.sport";
const ROOM: &str = "room.1";

/// A call has longer than anything here takes.
const CALL_MAX: Duration = Duration::from_secs(80);
const LEASE: Duration = Duration::from_secs(15);

/// The cells of a row, which are taken away as they are asserted.
struct Row {
    event: &'static str,
    cells: RefCell<BTreeMap<&'static str, String>>,
}

/// Names the cell if what it says is not so.
struct Cell<'a> {
    event: &'a str,
    column: &'a str,
    says: String,
}

impl Drop for Cell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the row \"{}\" the cell \"{}\" says: {}", self.event, self.column, self.says);
        }
    }
}

impl Row {
    /// As the page has it.
    fn of(event: &'static str) -> Self {
        let cells = rows().remove(event).unwrap_or_else(|| panic!("the page has no row \"{event}\""));
        let cells = COLUMNS.into_iter().zip(cells).filter(|(_, cell)| cell != "-");
        Self { event, cells: RefCell::new(cells.collect()) }
    }

    /// Asserts a cell, in parts if need be.
    async fn cell<T>(&self, column: &'static str, holds: impl Future<Output = T>) -> T {
        let says = self.cells.borrow().get(column).cloned().expect("this cell says something");
        let _cell = Cell { event: self.event, column, says };
        holds.await
    }

    /// Every cell of this row was asserted.
    fn done(self, asserted: &[&str]) {
        let mut cells = self.cells.into_inner();
        cells.retain(|column, _| !asserted.contains(column));
        assert!(cells.is_empty(), "not asserted of \"{}\": {cells:?}", self.event);
    }
}

/// The rows of the page by their events.
fn rows() -> BTreeMap<String, Vec<String>> {
    let page = include_str!("../../../../docs/cluster.md");
    let (_, section) = page.split_once("## When something fails").expect("it is there");
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let split = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut rows: Vec<Vec<String>> = rows.map(split).collect();
    let head = rows.remove(0);
    assert_eq!(head[1..], COLUMNS, "the columns of the page");
    rows.remove(0);
    rows.into_iter().map(|mut row| (row.remove(0), row)).collect()
}

/// The page has the rows that are tested here, and no others.
#[test]
fn each_row_of_the_page_is_tested() {
    let tested = [&clients::ROWS[..], &deaths::ROWS, &broker::ROWS, &clock::ROWS].concat();
    let rows = rows();
    for row in rows.keys() {
        assert!(tested.contains(&&**row), "no test of the row \"{row}\"");
    }
    assert_eq!(rows.len(), tested.len());
}

fn options(brokers: Vec<String>) -> Options {
    let rule =
        |pattern: &str, history, presence, apart| Topic { pattern: pattern.to_owned(), history, presence, apart };
    Options::new(brokers).topic(rule("room.>", 0, true, false)).topic(rule("apart.>", 1000, false, true))
}

/// Three nodes, and ann, who is at one of them.
struct Field {
    broker: Broker,
    /// Where pushes come from.
    origin: Node,
    /// Where ann is.
    owner: Node,
    /// Where she may go.
    other: Node,
    /// Her way.
    way: Proxy,
    ann: User,
}

impl Field {
    async fn over(broker: Broker) -> Self {
        let addresses = broker.addresses();
        Self::with(broker, &options(addresses)).await
    }

    async fn with(broker: Broker, options: &Options) -> Self {
        let [origin, owner, other] = Node::start_all(options).await;
        // Before anything is published to a topic nobody has a position in it.
        origin.publish(NEWS, 200, 1).await;
        origin.receipt_over(200).await;
        let way = Proxy::to([owner.address()]).await;
        let ann = user(&way, "ann").await;
        Self { broker, origin, owner, other, way, ann }
    }
}

/// A client that subscribes to both topics.
async fn user(way: &Proxy, name: &str) -> User {
    let user = User::connect(way.address(), name).await;
    for topic in [NEWS, ROOM] {
        user.client.subscribe(topic).await.expect("it is open");
    }
    user
}

/// The nodes at which this user is connected.
async fn connected(asked: &Node, name: &str) -> Vec<String> {
    let seen = asked.sessions(To::user(name)).await;
    let is_there = |seen: &SessionSeen| matches!(seen.told.standing, bothways::session::Standing::Connected(_));
    seen.into_iter().filter(is_there).map(|seen| seen.node).collect()
}

/// Each of these has one target, which has handled it, and no node is left out.
fn assert_handled(told: &[Told]) {
    for told in told {
        assert!(told.targets() == 1 && told.at("handled") == 1 && told.unreached.is_empty(), "{told:?}");
    }
}

/// Each of these was handled once.
async fn handled_once(user: &User, numbers: RangeInclusive<u64>) {
    let deadline = Instant::now() + LONG;
    loop {
        let times: Vec<usize> = numbers.clone().map(|number| user.times(number)).collect();
        assert!(times.iter().all(|times| *times <= 1), "of {numbers:?} each is handled so often: {times:?}");
        if times.iter().all(|times| *times == 1) {
            return;
        }
        assert!(Instant::now() < deadline, "of {numbers:?} each is handled so often after {LONG:?}: {times:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// These came of a topic, in order and once, and nothing else.
async fn came_in_order(user: &User, topic: &str, numbers: Vec<u64>) {
    let deadline = Instant::now() + LONG;
    loop {
        let came = user.of_topic(topic);
        if came == numbers {
            return;
        }
        let is_part = numbers.starts_with(&came);
        assert!(is_part && Instant::now() < deadline, "of {topic} came {came:?}; {:?}", user.recovered(topic));
        sleep(Duration::from_millis(20)).await;
    }
}
