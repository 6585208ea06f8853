//! A node: a process, which is asked and answers.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command as Process},
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use crate::{
    LONG,
    say::{Answer, As, CallEnd, Command, Drained, Kicked, Known, Line, Options, SessionSeen, Started, Stats, To, Told},
    until,
};

/// A server that has joined, as a process of its own. Dropped, it is killed.
#[derive(Debug)]
pub struct Node {
    started: Started,
    child: Child,
    lines: mpsc::UnboundedSender<String>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Result<serde_json::Value, String>>>,
    /// The process has closed its output.
    has_ended: bool,
}

impl Node {
    /// Starts one, and waits until it serves.
    pub async fn start(options: &Options) -> Self {
        Self::start_in(options, &[]).await
    }

    /// As [`Self::start`], with more variables in its environment.
    pub async fn start_in(options: &Options, variables: &[(&str, &str)]) -> Self {
        let mut process = Process::new(program());
        process.arg(serde_json::to_string(options).expect("plain data"));
        process.envs(variables.iter().copied());
        // A stopped process whose test has been killed is hung up on by the kernel if its group has nobody else.
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).process_group(0);
        let mut child = process.spawn().expect("it was built with this test");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));

        let mut output = BufReader::new(output).lines();
        let first = timeout(LONG, output.next_line()).await.expect("it starts").expect("a pipe");
        let first = first.expect("it says on stderr why it does not start");
        let started = serde_json::from_str(&first).expect("a line of ours");

        let waiting = Arc::<Mutex<Waiting>>::default();
        let (lines, to_write) = mpsc::unbounded_channel();
        tokio::spawn(write(input, to_write));
        tokio::spawn(read(output, Arc::clone(&waiting)));
        Self { started, child, lines, waiting, next: AtomicU64::new(1) }
    }

    /// Starts some, side by side, and waits until they know each other.
    pub async fn start_all<const N: usize>(options: &Options) -> [Self; N] {
        let starting: Vec<_> = (0..N)
            .map(|_| {
                let options = options.clone();
                tokio::spawn(async move { Self::start(&options).await })
            })
            .collect();
        let mut nodes = Vec::new();
        for node in starting {
            nodes.push(node.await.expect("it starts"));
        }
        Self::know_each_other(&nodes.iter().collect::<Vec<_>>()).await;
        nodes.try_into().expect("so many were started")
    }

    /// Waits until each of these counts the others as members, and nobody else.
    pub async fn know_each_other(nodes: &[&Self]) {
        let all: BTreeSet<&str> = nodes.iter().map(|node| node.id()).collect();
        until("they know each other", async || {
            for node in nodes {
                let known = node.members().await;
                let names = known.me.iter().chain(&known.others).map(String::as_str);
                if names.collect::<BTreeSet<_>>() != all {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Its number in the cluster, as it was when it started.
    pub fn id(&self) -> &str {
        &self.started.node
    }

    /// Where it serves.
    pub fn address(&self) -> &str {
        &self.started.address
    }

    /// SIGKILL. What it has not answered it never will.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("our own process");
    }

    /// SIGSTOP: it answers nothing, and its connections stay open.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(id, signal).expect("our own process");
    }

    /// Asks it, and waits for the answer. It may be stopped: the answer is awaited for [`LONG`].
    ///
    /// # Errors
    /// The node's words; or the process has ended.
    pub async fn ask<T: DeserializeOwned>(&self, command: Command) -> Result<T, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.has_ended {
                return Err("the process has ended".to_owned());
            }
            waiting.answers.insert(id, sender);
        }
        let what = format!("{command:?}");
        let line = serde_json::to_string(&Line { id, command }).expect("plain data");
        let _ = self.lines.send(line + "\n");
        let answer = timeout(LONG, answer).await.unwrap_or_else(|_| panic!("not answered within {LONG:?}: {what}"));
        let answer = answer.map_err(|_| "the process has ended".to_owned())??;
        Ok(serde_json::from_value(answer).expect("an answer of ours"))
    }

    async fn tell<T: DeserializeOwned>(&self, command: Command) -> T {
        self.ask(command).await.unwrap_or_else(|error| panic!("node {}: {error}", self.id()))
    }

    /// Pushes with `count` numbers from `first` on, and returns when they are queued.
    pub async fn push(&self, to: To, class: As, first: u64, count: u64) {
        self.tell(Command::Push { to, class, key: None, first, count }).await
    }

    /// Pushes each of these, with its number, and returns when they are queued.
    pub async fn push_all(&self, pushes: Vec<(To, u64)>, class: As) {
        self.tell(Command::PushAll { pushes, class }).await
    }

    /// Publishes with `count` numbers from `first` on, and returns when they are queued.
    pub async fn publish(&self, topic: &str, first: u64, count: u64) {
        self.tell(Command::Publish { topic: topic.to_owned(), first, count }).await
    }

    /// What the receipts of these numbers say now.
    pub async fn receipts(&self, first: u64, last: u64) -> Vec<Told> {
        self.tell(Command::Receipts { first, last }).await
    }

    /// What one says now.
    pub async fn receipt(&self, number: u64) -> Told {
        self.receipts(number, number).await.pop().expect("it was pushed")
    }

    /// What these say when nothing of them will change any more.
    pub async fn receipts_over(&self, first: u64, last: u64) -> Vec<Told> {
        let deadline = Instant::now() + LONG;
        loop {
            let told = self.receipts(first, last).await;
            let Some(open) = told.iter().find(|told| !told.is_over()) else { return told };
            assert!(Instant::now() < deadline, "not over within {LONG:?}: {open:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What one says when nothing of it will change any more.
    pub async fn receipt_over(&self, number: u64) -> Told {
        self.receipts_over(number, number).await.pop().expect("it was pushed")
    }

    /// Calls a client with this number, and waits for the end.
    pub async fn call(&self, to: To, number: u64, within: Duration) -> CallEnd {
        self.tell(Command::Call { to, number, within }).await
    }

    /// Ends sessions, at all nodes.
    pub async fn kick(&self, to: To, why: &str) -> Kicked {
        self.tell(Command::Kick { to, why: why.to_owned() }).await
    }

    /// What all nodes that answer know of these sessions: also of those that have gone.
    pub async fn sessions(&self, to: To) -> Vec<SessionSeen> {
        self.tell(Command::Sessions { to }).await
    }

    /// Who is present in a topic at this node.
    pub async fn presence(&self, topic: &str) -> Vec<String> {
        self.tell(Command::Presence { topic: topic.to_owned() }).await
    }

    /// Who belongs to the cluster, as this node knows.
    pub async fn members(&self) -> Known {
        self.tell(Command::Members).await
    }

    /// What is under way.
    pub async fn stats(&self) -> Stats {
        self.tell(Command::Stats).await
    }

    /// Drains. The process stays.
    pub async fn drain(&self, within: Duration, per_second: u32) -> Drained {
        self.tell(Command::Drain { within, per_second }).await
    }
}

/// Cargo builds it beside the tests of this package.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("it is in target/debug/deps");
    folder.join(format!("bothways-node{}", std::env::consts::EXE_SUFFIX))
}

async fn write(mut input: ChildStdin, mut lines: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = lines.recv().await {
        if input.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(mut output: Lines<BufReader<ChildStdout>>, waiting: Arc<Mutex<Waiting>>) {
    while let Ok(Some(line)) = output.next_line().await {
        let answer: Answer = serde_json::from_str(&line).expect("a line of ours");
        if let Some(sender) = waiting.lock().answers.remove(&answer.id) {
            let _ = sender.send(answer.answer);
        }
    }
    let mut waiting = waiting.lock();
    waiting.has_ended = true;
    waiting.answers.clear();
}
