//! Calls to clients of other nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, CallPolicy, Caller, Client, ClientOptions, ErrorCode, Metadata, Reply, Request, Router,
    Server, cluster::memory::MemoryBroker, session::SessionId, testing,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
    time::Instant,
};

use crate::support::{Node, join_with, nodes, until};

/// What became of a run of the method `Ask`.
#[derive(Debug, Eq, PartialEq)]
enum Seen {
    Began(String),
    /// Its handler was dropped before it ended.
    Dropped,
}

struct Told(tokio::sync::mpsc::UnboundedSender<Seen>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(Seen::Dropped);
    }
}

/// A client of this user, whose methods: `Echo` answers at once, `Ask` never, `Fail` with an error, `Large` with 600 KiB.
/// It tells of the runs of `Ask`.
async fn callee(node: &Node, token: &str) -> (Client, UnboundedReceiver<Seen>) {
    let (tell, seen) = unbounded_channel();
    let name = token.to_owned();
    let handlers = Router::new()
        .function("T", "Name", move |(): ()| std::future::ready(Ok::<_, String>(name.clone())))
        .function("T", "Echo", |text: String| async move { Ok::<_, String>(text) })
        .function("T", "Fail", |_: String| async move { Err::<(), _>("no") })
        .handler("T", "Large", |_: Request| std::future::ready(Reply::ok(vec![7; 600 << 10])))
        .function("T", "Ask", move |text: String| {
            let told = Told(tell.clone());
            let _ = told.0.send(Seen::Began(text));
            async move {
                std::future::pending::<()>().await;
                drop(told);
                Ok::<_, String>(())
            }
        });
    let before = node.server().stats().sessions;
    let client = Client::with_handlers(node.network.address(), ClientOptions::new().auth(token), handlers);
    let client = client.await.expect("it listens");
    let (user, _) = token.split_once('/').unwrap_or((token, ""));
    let is_there = || {
        let sessions = node.server().user(user).sessions();
        sessions.iter().filter(|session| session.is_resumable()).count() > 0 && before < node.server().stats().sessions
    };
    until("it is welcomed", is_there).await;
    (client, seen)
}

async fn name(caller: &impl Caller) -> Result<String, CallError> {
    Ok(caller.call_typed("T", "Name", &(), CallOptions::new()).await?.value)
}

fn ask(caller: impl Caller + 'static, text: &str, timeout: Duration) -> JoinHandle<Result<(), CallError>> {
    let text = text.to_owned();
    let options = CallOptions::new().timeout(timeout);
    tokio::spawn(async move { caller.call_typed("T", "Ask", &text, options).await.map(|response| response.value) })
}

fn session_of(node: &Node, user: &str) -> SessionId {
    node.server().user(user).sessions()[0].id()
}

/// Nothing of a call is left at these nodes.
async fn nothing_left(nodes: &[&Node]) {
    until("nothing is under way", || {
        nodes.iter().all(|node| {
            let stats = node.server().cluster_stats().expect("it is a member");
            (stats.calls_out, stats.calls_here, stats.call_bytes_out, stats.call_bytes_here) == (0, 0, 0, 0)
        })
    })
    .await;
}

fn is_unsent(error: &CallError) -> bool {
    matches!(error, CallError::NoClient(_)) && error.is_safe_to_retry()
}

fn may_have_run(error: &CallError) -> bool {
    matches!(error, CallError::Closed { written: true, .. })
}

/// A client is called from any node, by user and by session, and its reply, its error, its metadata are as ever.
#[test]
fn a_client_is_called_from_any_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (_ann, _seen) = callee(&other, "ann").await;
        let id = session_of(&other, "ann");
        for node in [&one, &other, &third] {
            let by_user: String = node
                .server()
                .user("ann")
                .call_typed("T", "Echo", "hey", CallOptions::new())
                .await
                .expect("it answers")
                .value;
            assert_eq!(by_user, "hey");
            assert_eq!(name(&node.server().session_anywhere(id)).await.expect("it answers"), "ann");
            let failed = node.server().user("ann");
            let failed = failed.call_typed::<_, ()>("T", "Fail", "hey", CallOptions::new()).await;
            assert_eq!(failed.expect_err("it fails").remote_text(), Some("no"));
            let none = node.server().user("ann").call_typed::<_, ()>("T", "None", "hey", CallOptions::new()).await;
            assert!(matches!(none, Err(CallError::NotSupported)), "{none:?}");
        }
        let nobody = name(&one.server().user("bob")).await.expect_err("there is none");
        assert!(is_unsent(&nobody), "{nobody}");
        let nobody = name(&one.server().session_anywhere("1".parse().expect("a number"))).await;
        assert!(nobody.as_ref().is_err_and(is_unsent), "{nobody:?}");
        let reserved = CallOptions::new().metadata(Metadata::new().with("_bw.x", "1"));
        let reserved = one.server().session_anywhere(id).call_typed::<_, String>("T", "Echo", "hey", reserved).await;
        assert!(matches!(reserved, Err(CallError::ReservedMetadata(_))), "{reserved:?}");
        nothing_left(&[&one, &other, &third]).await;
    });
}

/// The policies mean the sessions of all nodes.
#[test]
fn policies_mean_all_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (_phone, mut on_phone) = callee(&one, "ann/phone").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (desk, mut at_desk) = callee(&other, "ann/desk").await;
        let ann = |policy| third.server().user("ann").policy(policy);
        assert_eq!(name(&ann(CallPolicy::MostRecent)).await.expect("it answers"), "ann/desk");
        assert_eq!(name(&ann(CallPolicy::Device("phone".to_owned()))).await.expect("it answers"), "ann/phone");
        let by_number = session_of(&other, "ann").to_string();
        assert_eq!(name(&ann(CallPolicy::Device(by_number))).await.expect("it answers"), "ann/desk");
        name(&ann(CallPolicy::All { quorum: 2 })).await.expect("both answer");
        let missed = name(&ann(CallPolicy::All { quorum: 3 })).await.expect_err("there are two");
        assert!(is_unsent(&missed) && missed.to_string().contains("3 sessions"), "{missed}");

        // Of both one answers, and the other one's handler is dropped.
        let both = third.server().user("ann");
        let asking = ask(both.clone(), "both", Duration::from_secs(20));
        assert_eq!(on_phone.recv().await, Some(Seen::Began("both".to_owned())));
        assert_eq!(at_desk.recv().await, Some(Seen::Began("both".to_owned())));
        asking.abort();
        assert_eq!((on_phone.recv().await, at_desk.recv().await), (Some(Seen::Dropped), Some(Seen::Dropped)));
        drop(desk);
        until("the desk has left", || other.server().stats().sessions == 0).await;
        assert_eq!(name(&both).await.expect("the phone answers"), "ann/phone");
        nothing_left(&[&one, &other, &third]).await;
    });
}

/// The time of a call travels, and at its end nothing of it runs anywhere.
#[test]
fn a_call_ends_with_its_time_and_its_caller() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (_ann, mut seen) = callee(&other, "ann").await;
        let began = Instant::now();
        let asking = ask(one.server().user("ann"), "late", Duration::from_secs(5));
        assert_eq!(seen.recv().await, Some(Seen::Began("late".to_owned())));
        let late = asking.await.expect("no panic").expect_err("it is late");
        assert!(matches!(late, CallError::TimedOut(time) if time == Duration::from_secs(5)), "{late}");
        assert_eq!(seen.recv().await, Some(Seen::Dropped));
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());

        let asking = ask(one.server().session_anywhere(session_of(&other, "ann")), "dropped", Duration::from_secs(60));
        assert_eq!(seen.recv().await, Some(Seen::Began("dropped".to_owned())));
        asking.abort();
        assert_eq!(seen.recv().await, Some(Seen::Dropped));
        assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
        let zero = one
            .server()
            .user("ann")
            .call_typed::<_, String>("T", "Echo", "hey", CallOptions::new().timeout(Duration::ZERO))
            .await;
        assert!(matches!(&zero, Err(error) if error.is_safe_to_retry()), "{zero:?}");
        nothing_left(&[&one, &other]).await;
    });
}

/// Without mail nothing is sent, and what was out ends as one that may have run; a short gap ends nothing.
#[test]
fn a_call_without_mail_says_what_is_known() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (_ann, mut seen) = callee(&other, "ann").await;
        let handle = one.server().session_anywhere(session_of(&other, "ann"));
        name(&handle).await.expect("it answers");
        let asking = ask(handle.clone(), "out", Duration::from_secs(60));
        assert_eq!(seen.recv().await, Some(Seen::Began("out".to_owned())));
        tokio::time::sleep(Duration::from_secs(1)).await;
        broker.faults().mail_up(false);
        tokio::time::sleep(Duration::from_millis(100)).await;
        broker.faults().mail_up(true);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!asking.is_finished(), "it goes on");

        broker.faults().mail_up(false);
        let began = Instant::now();
        let unsent = name(&handle).await.expect_err("there is no mail");
        assert!(is_unsent(&unsent), "{unsent}");
        let unsent = name(&one.server().user("ann")).await.expect_err("there is no mail");
        assert!(is_unsent(&unsent), "{unsent}");
        let cut = asking.await.expect("no panic").expect_err("it is cut");
        assert!(may_have_run(&cut), "{cut}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        broker.faults().mail_up(true);
        assert_eq!(name(&handle).await.expect("it answers again"), "ann");
    });
}

/// The node of a call dies, or is stopped: its caller is told that it may have run, within seconds.
#[test]
fn a_lost_node_ends_its_calls() {
    testing::run(async {
        for is_killed in [true, false] {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let (_ann, mut seen) = callee(&other, "ann").await;
            let handle = one.server().session_anywhere(session_of(&other, "ann"));
            let asking = ask(handle.clone(), "lost", Duration::from_secs(60));
            assert_eq!(seen.recv().await, Some(Seen::Began("lost".to_owned())));
            let began = Instant::now();
            match is_killed {
                true => broker.faults().kill(other.id),
                false => assert!(broker.faults().pause(other.id, true)),
            }
            let lost = asking.await.expect("no panic").expect_err("the node is gone");
            assert!(may_have_run(&lost), "{lost}");
            assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
            let unsent = name(&handle).await.expect_err("the node is gone");
            assert!(is_unsent(&unsent), "{unsent}");
            until("nothing is out", || one.server().cluster_stats().is_some_and(|stats| stats.calls_out == 0)).await;
        }
    });
}

/// The lease of the node that asked has ended: what it asked for is cancelled.
#[test]
fn a_lost_caller_cancels_its_calls() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (_ann, mut seen) = callee(&other, "ann").await;
        let asking = ask(one.server().user("ann"), "lost", Duration::from_secs(600));
        assert_eq!(seen.recv().await, Some(Seen::Began("lost".to_owned())));
        let began = Instant::now();
        broker.faults().cut(one.id, true);
        assert_eq!(seen.recv().await, Some(Seen::Dropped));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(may_have_run(&asking.await.expect("no panic").expect_err("it is cut off")));
        until("nothing runs", || other.server().cluster_stats().is_some_and(|stats| stats.calls_here == 0)).await;
    });
}

/// What is under way has bounds at both ends, and both refuse with nothing sent.
#[test]
fn calls_have_bounds() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = join_with(&broker, |cluster| cluster.calls_pending_max(3).call_bytes_max(100 << 10)).await;
        let other = join_with(&broker, |cluster| cluster.calls_pending_max(2)).await;
        until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let (_ann, mut seen) = callee(&other, "ann").await;
        let handle = one.server().session_anywhere(session_of(&other, "ann"));
        let mut asking = Vec::new();
        for text in ["1", "2"] {
            asking.push(ask(handle.clone(), text, Duration::from_secs(60)));
            assert_eq!(seen.recv().await, Some(Seen::Began(text.to_owned())));
        }
        let full = name(&handle).await.expect_err("it runs two");
        assert_eq!((full.code(), full.is_safe_to_retry()), (Some(ErrorCode::Overloaded), true), "{full}");
        let large = "x".repeat(101 << 10);
        let full = handle.call_typed::<_, String>("T", "Echo", &large, CallOptions::new()).await;
        assert!(matches!(full, Err(CallError::QueueFull { .. })), "{full:?}");

        asking.pop().expect("two").abort();
        assert_eq!(seen.recv().await, Some(Seen::Dropped));
        assert_eq!(name(&handle).await.expect("there is room again"), "ann");
        for _ in 0..2 {
            broker.faults().pause(other.id, true);
            asking.push(ask(handle.clone(), "waits", Duration::from_secs(2)));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let full = name(&handle).await;
        assert!(matches!(full, Err(CallError::TooManyCalls { max: 3 })), "{full:?}");
        broker.faults().pause(other.id, false);
        asking.iter().for_each(JoinHandle::abort);
        nothing_left(&[&one, &other]).await;
    });
}

/// Arguments and replies that are larger than what nodes send each other are errors, and no harm to others.
#[test]
fn what_is_too_large_is_an_error() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (_ann, _seen) = callee(&other, "ann").await;
        let handle = one.server().session_anywhere(session_of(&other, "ann"));
        let large = "x".repeat(600 << 10);
        let refused = handle.call_typed::<_, String>("T", "Echo", &large, CallOptions::new()).await;
        assert!(matches!(refused, Err(CallError::TooLarge(_))), "{refused:?}");
        let lost = handle.call_typed::<_, Vec<u8>>("T", "Large", &(), CallOptions::new()).await;
        assert!(lost.as_ref().is_err_and(may_have_run), "{lost:?}");
        let fits = "x".repeat(400 << 10);
        let echoed = handle.call_typed::<_, String>("T", "Echo", &fits, CallOptions::new()).await;
        assert_eq!(echoed.expect("it fits").value.len(), fits.len());
        nothing_left(&[&one, &other]).await;
    });
}

/// Mail that is lost, doubled and late: each call is run once at most, and one that says that nothing was sent was not run.
#[test]
fn bad_mail_runs_no_call_twice() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let runs: Arc<Vec<AtomicUsize>> = Arc::new((0..300).map(|_| AtomicUsize::new(0)).collect());
        let counted = Arc::clone(&runs);
        let handlers = Router::new().function("T", "Count", move |number: usize| {
            counted[number].fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, String>(number) }
        });
        let options = ClientOptions::new().auth("ann");
        let _ann = Client::with_handlers(other.network.address(), options, handlers).await.expect("it listens");
        let is_there = || other.server().user("ann").sessions().iter().any(bothways::Session::is_resumable);
        until("it is there", is_there).await;
        let handle = one.server().session_anywhere(session_of(&other, "ann"));
        let (mut answered, mut unsent, mut unknown) = (0, 0, 0);
        for round in 0..30 {
            match round % 4 {
                0 => broker.faults().lose_mail(2),
                1 => broker.faults().lose_answers(2),
                2 => broker.faults().repeat_mail(3),
                _ => {}
            }
            let calls: Vec<_> = (round * 10..round * 10 + 10)
                .map(|number: usize| {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        let options = CallOptions::new().timeout(Duration::from_secs(20));
                        (number, handle.call_typed::<_, usize>("T", "Count", &number, options).await)
                    })
                })
                .collect();
            for call in calls {
                let (number, outcome) = call.await.expect("no panic");
                let ran = runs[number].load(Ordering::Relaxed);
                match outcome {
                    Ok(reply) => {
                        assert_eq!((reply.value, ran), (number, 1));
                        answered += 1;
                    }
                    Err(error) if error.is_safe_to_retry() => {
                        assert_eq!(ran, 0, "{error}");
                        unsent += 1;
                    }
                    Err(_) => {
                        assert!(ran <= 1, "{ran}");
                        unknown += 1;
                    }
                }
            }
        }
        assert!(200 <= answered, "{answered} answered, {unsent} not sent, {unknown} unknown");
        nothing_left(&[&one, &other]).await;
    });
}

/// A node that does not answer is left out after a second where that can be, and named where it cannot.
#[test]
fn a_silent_node_is_left_out_or_named() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (_ann, _seen) = callee(&other, "ann").await;
        broker.faults().pause(third.id, true);
        let began = Instant::now();
        assert_eq!(name(&one.server().user("ann")).await.expect("it answers"), "ann");
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
        for unsure in [one.server().user("ann").policy(CallPolicy::All { quorum: 0 }), one.server().user("bob")] {
            let error = name(&unsure).await.expect_err("nobody knows");
            assert!(is_unsent(&error) && error.to_string().contains(&third.id.to_string()), "{error}");
        }
    });
}

/// The lease of a node has ended, and it may be at work: what fails for want of a session names it, for half a minute.
#[test]
fn a_node_without_a_lease_is_named_by_calls() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (_ann, _seen) = callee(&other, "ann").await;
        let user = |name: &str, policy| one.server().user(name).policy(policy);
        let wanted = CallPolicy::All { quorum: 2 };
        let missed = name(&user("ann", wanted.clone())).await.expect_err("there is one").to_string();
        assert!(missed.contains("2 sessions of the user ann are wanted"), "{missed}");

        let gone = third.id.to_string();
        broker.faults().kill(third.id);
        until("it is no member", || one.server().members().len() == 2).await;
        let began = Instant::now();
        let nobody = "1".parse().expect("a number");
        let errors = [
            name(&user("bob", CallPolicy::First)).await,
            name(&user("ann", CallPolicy::Device("watch".to_owned()))).await,
            name(&user("ann", CallPolicy::All { quorum: 0 })).await,
            name(&user("ann", wanted.clone())).await,
            name(&one.server().session_anywhere(nobody)).await,
        ];
        for error in errors {
            let error = error.expect_err("nobody knows");
            assert!(is_unsent(&error) && error.to_string().contains(&gone), "{error}");
        }
        let none = user("ann", CallPolicy::First).call_typed::<_, ()>("T", "None", &(), CallOptions::new()).await;
        let none = none.expect_err("ann has no such method");
        assert!(is_unsent(&none) && none.to_string().contains(&gone), "{none}");
        assert_eq!(name(&user("ann", CallPolicy::MostRecent)).await.expect("she is there"), "ann");
        assert!(began.elapsed() < Duration::from_secs(1), "nobody is waited for: {:?}", began.elapsed());

        tokio::time::sleep(Duration::from_secs(30)).await;
        let error = name(&user("bob", CallPolicy::First)).await.expect_err("there is none");
        assert_eq!(error.to_string(), CallError::NoClient("the user bob has no session".to_owned()).to_string());
        name(&user("ann", CallPolicy::All { quorum: 0 })).await.expect("that are all");
    });
}

/// A stub pushes to a user who may be at a node that is not reached, and at no other one: it is told which.
#[test]
fn a_push_by_a_stub_names_who_was_not_reached() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        broker.faults().kill(other.id);
        until("it is no member", || one.server().members().len() == 1).await;
        let missed = one.server().user("bob").push_typed("Mail", "New", "a letter", CallOptions::new()).await;
        let missed = missed.expect_err("nobody has it").to_string();
        assert!(missed.contains(&other.id.to_string()), "{missed}");
    });
}

/// A stub over a user or a session pushes to the clients of all nodes, and says so if there is none.
#[test]
fn a_user_is_pushed_to_from_any_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        let id = session_of(&other, "ann");
        one.server().user("ann").push_typed("Mail", "New", "one", CallOptions::new()).await.expect("it goes");
        let phone = one.server().user("ann").policy(CallPolicy::Device("phone".to_owned()));
        phone.push_typed("Mail", "New", "two", CallOptions::new()).await.expect("it goes");
        let anywhere = one.server().session_anywhere(id);
        anywhere.push_typed("Mail", "New", "three", CallOptions::new()).await.expect("it goes");
        for expected in ["one", "two", "three"] {
            let message = ann.messages.next().await.expect("it is open");
            assert_eq!(message.decode::<String>().expect("a text"), expected);
        }
        let watch = other.server().user("ann").policy(CallPolicy::Device("watch".to_owned()));
        one.server().shutdown(Duration::from_secs(1)).await;
        until("it is alone", || other.server().cluster_stats().is_some_and(|stats| stats.members == 0)).await;
        watch.push_typed("Mail", "New", "four", CallOptions::new()).await.expect_err("there is no watch");
    });
}

/// A server without a cluster calls its own clients by the same handles.
#[test]
fn a_server_alone_calls_its_own() {
    testing::run(async {
        let server: Server = crate::support::server();
        let network = testing::Network::new(server.clone()).await.expect("it runs");
        let handlers = Router::new().function("T", "Name", |(): ()| async { Ok::<_, String>("ann".to_owned()) });
        let options = ClientOptions::new().auth("ann");
        let _ann = Client::with_handlers(network.address(), options, handlers).await.expect("it listens");
        until("it is there", || server.user("ann").sessions().iter().any(bothways::Session::is_resumable)).await;
        let id = server.user("ann").sessions()[0].id();
        assert_eq!(name(&server.session_anywhere(id)).await.expect("it answers"), "ann");
        let none = name(&server.session_anywhere("1".parse().expect("a number"))).await.expect_err("there is none");
        assert!(is_unsent(&none), "{none}");
        assert!(server.cluster_stats().is_none());
    });
}
