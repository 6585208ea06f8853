//! Durable pushes over a server that is killed: what was said to be stored arrives, each letter once, in order.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bothways::{Class, Client, ClientOptions, Push, Server, ServerMessages, Target, client::Reconnect};
use bothways_redb::RedbStore;
use tokio::time::{Instant, timeout};

/// Where the child that is killed finds its file, and its address.
const CHILD: &str = "BOTHWAYS_REDB_SERVER";

/// Longer than anything here takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A server with its mailboxes in a file, until it is killed. Not a test: see below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_serves_until_it_is_killed() {
    let Ok(said) = std::env::var(CHILD) else { return };
    let (path, address) = said.split_once('|').expect("a file and an address");
    let server = Server::builder()
        .store(RedbStore::open(path).expect("its former process is gone"))
        .auth(|request| async move {
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .handler("Mail", "Post", |request: bothways::Request| async move {
            let text: String = request.decode().expect("a text");
            let server = request.server().expect("it is a server");
            let push = Push::new("Mail", "New", text).class(Class::Durable { ttl: Duration::from_secs(3600) });
            let receipt = server.push(&Target::user("ann"), &push).expect("there is a store");
            match receipt.stored().await {
                Ok(_) => bothways::Reply::encode(&(), request.serialize_type()),
                Err(error) => bothways::Reply::error(error.to_string()),
            }
        })
        .build();
    let listening = server.listen(address).await.expect("the address is free");
    println!("\nlistening {}", listening.address());
    listening.stopped().await;
}

/// A server process; killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL; it may be gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Starts the server, and waits until it listens. Returns its address.
fn start(path: &Path, address: &str) -> (Process, String) {
    let mut child = Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", "server_that_serves_until_it_is_killed", "--nocapture"])
        .env(CHILD, format!("{}|{address}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it can be run again");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let process = Process(child);
    for line in lines {
        if let Some(address) = line.expect("it is a text").strip_prefix("listening ") {
            return (process, address.to_owned());
        }
    }
    panic!("the server has ended");
}

/// Reads what ann gets, until all of these are there.
async fn read(messages: &mut ServerMessages, got: &mut Vec<String>, wanted: &HashSet<String>) {
    let began = Instant::now();
    let mut missing: HashSet<String> = wanted.iter().filter(|text| !got.contains(text)).cloned().collect();
    while !missing.is_empty() {
        let left = LONG.saturating_sub(began.elapsed());
        let message = timeout(left, messages.next()).await;
        let Ok(Some(message)) = message else {
            panic!("{} are missing, such as {:?}", missing.len(), missing.iter().next())
        };
        let text = String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text");
        missing.remove(&text);
        got.push(text);
    }
}

/// A server is killed twenty times while letters are posted, at any point. Every letter that was said to be stored arrives
/// at a client that lives on, none twice, and those of one poster in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_arrives_once_though_its_server_is_killed() {
    let folder = tempfile::tempdir().expect("the system gives a folder");
    let path = folder.path().join("mail");
    let (mut process, address) = start(&path, "tcp@127.0.0.1:0");
    let options = |user: &str| {
        let quick = ClientOptions::new().auth(user).backoff(Duration::from_millis(20), Duration::from_millis(200));
        quick.reconnect(Reconnect::Always)
    };
    let ann = options("ann").device("phone");
    let (_ann, mut messages) = Client::bidirectional(&address, ann).await.expect("it listens");
    let poster = Client::connect(&address, options("poster")).await.expect("it listens");

    let (mut stored, mut got, mut unknown) = (HashSet::new(), Vec::new(), 0);
    for round in 0..20_u32 {
        let posts = tokio::spawn({
            let poster = poster.clone();
            async move {
                let mut stored = Vec::new();
                for number in 0.. {
                    let text = format!("{round} {number}");
                    match poster.call::<()>("Mail", "Post", text.as_str()).await {
                        Ok(()) => stored.push(text),
                        // The server was killed under it: nobody knows.
                        Err(_) => break,
                    }
                }
                stored
            }
        });
        // Ann handles some of it meanwhile. Without a random number: a failure is seen again.
        let count = 1 + (round * 7) % 23;
        for _ in 0..count {
            let message = timeout(LONG, messages.next()).await.expect("it comes").expect("the client is open");
            got.push(String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text"));
        }
        drop(process);
        let of_round = timeout(LONG, posts).await.expect("it ends with the server").expect("no panic");
        unknown += 1;
        stored.extend(of_round);
        process = start(&path, &address).0;
        timeout(LONG, async {
            while poster.call::<()>("Mail", "Post", format!("{round} last").as_str()).await.is_err() {}
        })
        .await
        .expect("the server is back");
        stored.insert(format!("{round} last"));
    }
    read(&mut messages, &mut got, &stored).await;

    let mut once = HashSet::new();
    for text in &got {
        assert!(once.insert(text) || text.ends_with("last"), "{text} was handled twice");
    }
    // Beside what was stored there is what was stored and could not be said.
    assert!(once.len() <= stored.len() + 2 * unknown, "{} of {}", once.len(), stored.len());
    let numbers = got.iter().filter_map(|text| {
        let (round, number) = text.split_once(' ')?;
        Some((round.parse::<u32>().ok()?, number.parse::<u32>().ok()?))
    });
    assert!(numbers.is_sorted(), "in order");
    println!("{} letters were said to be stored, and have arrived; {} arrived", stored.len(), got.len());
    drop(process);
}
