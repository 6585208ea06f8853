//! What the broker does not take: it is said why, and nothing is said to be down.

use std::{sync::Arc, time::Duration};

use bothways::{
    Class, Push, Server, Target,
    cluster::{
        Cluster, Engine as _, NodeId, Store as _,
        engine::{AppendError, AskError, BoxFuture, ClaimError, EngineState, Inbox, Log, NewEntry},
    },
    session::{SessionId, TopicOptions},
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use tokio::time::timeout;

const KEEP: Duration = Duration::from_secs(3600);
/// As long as a broker may take to begin again.
const LONG: Duration = Duration::from_secs(40);

/// A store that stands still is tried for ten seconds: this ends sooner.
const AT_ONCE: Duration = Duration::from_secs(5);

struct Nothing;

impl Inbox for Nothing {
    fn take(&self, _: Bytes) -> BoxFuture<Option<Bytes>> {
        Box::pin(async { None })
    }
}

fn log(kind: fn(String) -> Log) -> Log {
    kind("ann".to_owned())
}

fn large() -> NewEntry {
    NewEntry::new(vec![7; 200 << 10]).with_time_to_live(KEEP)
}

/// A node may come to a server that takes less than the first one. What is too large for that one says so, whatever it is, and
/// the register and the mail are up all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_less_than_the_first_one() {
    let Some(mut broker) = Broker::one() else { return };
    let one = NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works");
    one.append(log(Log::Mailbox), large()).await.expect("there is room");

    let mut mail = one.mail_state();
    broker.kill(0);
    broker.set_options("max_payload: 100KB\n");
    timeout(LONG, mail.wait_for(|state| !state.is_up())).await.expect("it is gone").expect("the engine is there");
    broker.start(0);
    let mut register = one.register_state();
    timeout(LONG, mail.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");
    timeout(LONG, register.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");
    let up: EngineState = *register.borrow_and_update();

    for kind in [Log::Mailbox, Log::History, Log::Dead] {
        assert_eq!(one.append(log(kind), large()).await, Err(AppendError::TooLarge));
        let [first, second] = one.append_all(log(kind), vec![large(), NewEntry::new("x")]).await[..] else {
            panic!("two were asked for")
        };
        assert_eq!(first, Err(AppendError::TooLarge));
        assert!(second.is_ok(), "{second:?}");
    }
    let (me, bytes) = (NodeId::random(), large().bytes);
    one.listen(me, Arc::new(Nothing)).await.expect("it works");
    assert_eq!(one.ask(me, bytes.clone(), AT_ONCE).await, Err(AskError::TooLarge));
    assert_eq!(
        one.claim("1".parse::<SessionId>().expect("a session"), None, bytes, KEEP).await,
        Err(ClaimError::TooLarge)
    );
    assert_eq!(*register.borrow(), up, "nothing was down");
}

/// The receipts of a server's pushes and publishes say that it is too large, or full, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_say_why_the_store_did_not_take_it() {
    let Some(broker) = Broker::one() else { return };
    let options = NatsOptions::new(broker.addresses()).mailbox_entries_max(3);
    let engine = NatsEngine::connect(options).await.expect("the broker works");
    let class = Class::Durable { ttl: KEEP };
    let server = Server::builder().topic("news", TopicOptions::new().history(10, KEEP)).expect("a topic").build();
    server.join(Cluster::new(engine)).await.expect("the broker works");
    // An operator bounds what one message may have.
    let operator = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    for stream in (0..4).flat_map(|number| [format!("bw_bothways_h{number}"), format!("bw_bothways_m{number}")]) {
        let info = operator.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await.expect("it listens");
        let mut config: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
        config["config"]["max_msg_size"] = 4096.into();
        let config = config["config"].to_string();
        let edited = operator.request(format!("$JS.API.STREAM.UPDATE.{stream}"), config.into()).await;
        let edited: serde_json::Value = serde_json::from_slice(&edited.expect("it listens").payload).expect("JSON");
        assert!(edited["error"].is_null(), "{edited}");
    }

    let push = |bytes: usize| Push::new("Mail", "New", vec![7; bytes]);
    let letter =
        |bytes| server.push(&Target::user("ann"), &push(bytes).class(class.clone())).expect("it may be stored");
    let refused = timeout(AT_ONCE, letter(8192).stored()).await.expect("at once").expect_err("it is too large");
    assert_eq!(refused.failed, [(log(Log::Mailbox), AppendError::TooLarge)]);
    let receipt = server.publish("news", &push(8192)).expect("it may be stored");
    let refused = timeout(AT_ONCE, receipt.stored()).await.expect("at once").expect_err("it is too large");
    assert_eq!(refused.failed, [(Log::History("news".to_owned()), AppendError::TooLarge)]);

    for _ in 0..3 {
        timeout(AT_ONCE, letter(10).stored()).await.expect("at once").expect("there is room");
    }
    let refused = timeout(AT_ONCE, letter(10).stored()).await.expect("at once").expect_err("it is full");
    assert_eq!(refused.failed, [(log(Log::Mailbox), AppendError::Full)]);
    assert!(refused.to_string().contains("full"), "{refused}");
    // What was refused keeps no later one from being stored.
    let receipt = server.publish("news", &push(10)).expect("it may be stored");
    timeout(AT_ONCE, receipt.stored()).await.expect("at once").expect("there is room");
}
