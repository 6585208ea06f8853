//! What the broker answers strangely is told at the start, in words that say what is to be done.

use std::time::Duration;

use bothways::cluster::{Engine as _, engine::Level};
use bothways_brokers::Broker;
use bothways_nats::{ConnectError, NatsEngine, NatsOptions};

fn options(broker: &Broker) -> NatsOptions {
    NatsOptions::new(broker.addresses()).start_max(Duration::from_secs(5))
}

async fn refused(options: NatsOptions) -> ConnectError {
    let error = NatsEngine::connect(options).await.expect_err("it has a reason not to");
    println!("{error}");
    error
}

#[tokio::test]
async fn nobody_is_there() {
    let error = refused(NatsOptions::new(["nats://127.0.0.1:1"])).await;
    assert!(matches!(&error, ConnectError::Unreachable { addresses, .. } if addresses == "127.0.0.1:1"), "{error:?}");
}

/// Credentials are told as wrong, and never shown. With the right ones it starts.
#[tokio::test]
async fn wrong_credentials() {
    let Some(broker) = Broker::with("authorization { user: ann, password: hunter2 }\n") else { return };
    for wrong in
        [options(&broker), options(&broker).user_and_password("ann", "hunter3"), options(&broker).token("hunter2")]
    {
        let error = refused(wrong).await;
        assert_eq!(error, ConnectError::Unauthorized);
        assert!(!error.to_string().contains("hunter"));
    }
    let engine = NatsEngine::connect(options(&broker).user_and_password("ann", "hunter2")).await.expect("it is right");
    assert!(!format!("{engine:?}").contains("hunter"));
}

#[tokio::test]
async fn a_token_and_a_file_that_is_missing() {
    let Some(broker) = Broker::with("authorization { token: hunter2 }\n") else { return };
    NatsEngine::connect(options(&broker).token("hunter2")).await.expect("it is right");
    assert_eq!(refused(options(&broker).token("hunter3")).await, ConnectError::Unauthorized);
    let error = refused(options(&broker).credentials_file("/nowhere/nats.creds")).await;
    assert!(matches!(&error, ConnectError::Credentials { text } if text.contains("/nowhere/nats.creds")), "{error:?}");
    assert!(matches!(refused(options(&broker).credentials("hunter2")).await, ConnectError::Credentials { .. }));
}

#[tokio::test]
async fn no_jetstream() {
    let Some(broker) = Broker::with("# without jetstream\n") else { return };
    assert!(matches!(refused(options(&broker)).await, ConnectError::NoJetStream { .. }));
}

#[tokio::test]
async fn messages_that_are_too_small() {
    let Some(broker) = Broker::with("max_payload: 32KB\n") else { return };
    let error = refused(options(&broker)).await;
    assert!(matches!(&error, ConnectError::TooSmall { what } if what.contains("max_payload")), "{error:?}");
}

/// More is asked for than the disk has, and more copies than there are servers.
#[tokio::test]
async fn no_room_and_no_servers_for_copies() {
    let Some(broker) = Broker::one() else { return };
    let error = refused(options(&broker).stream_bytes_max(8 << 30)).await;
    assert!(matches!(error, ConnectError::NoRoom { .. }), "{error:?}");
    let error = refused(options(&broker).cluster("other").replicas(3)).await;
    assert!(matches!(error, ConnectError::Replicas { wanted: 3, .. }), "{error:?}");
    let engine = NatsEngine::connect(options(&broker).cluster("third")).await.expect("nothing is wrong");
    assert_eq!(engine.limits().level, Level::Memory);
    assert_eq!(engine.limits().message_bytes_max, (1 << 20) - 4096);
    let synced = NatsEngine::connect(options(&broker).cluster("third").synced(true)).await.expect("nothing is wrong");
    assert_eq!(synced.limits().level, Level::Synced);
}

/// Nodes that ask for different things, and a stream that somebody made, are told by the name of the stream and in what.
#[tokio::test]
async fn a_stream_that_somebody_changed() {
    let Some(broker) = Broker::one() else { return };
    let _engine = NatsEngine::connect(options(&broker)).await.expect("nothing is wrong");
    let error = refused(options(&broker).mailbox_entries_max(7)).await;
    let ConnectError::Changed { stream, what } = &error else { panic!("{error:?}") };
    assert!(stream.starts_with("bw_bothways_m") && what.contains("max_msgs_per_subject"), "{error:?}");
    let error = refused(options(&broker).replicas(3)).await;
    assert!(matches!(&error, ConnectError::Changed { what, .. } if what.contains("num_replicas")), "{error:?}");

    let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    let config =
        r#"{"name":"bw_third_k","subjects":["third.>"],"retention":"limits","storage":"file","num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.bw_third_k", config.into()).await.expect("it listens");
    let error = refused(options(&broker).cluster("third")).await;
    assert!(matches!(&error, ConnectError::Changed { what, .. } if what.contains("token")), "{error:?}");
}

/// A permission that is missing is a server that does not answer: what it said is told.
#[tokio::test]
async fn a_permission_that_is_missing() {
    let user = |permissions: &str| {
        format!("authorization {{ users: [{{ user: ann, password: x, permissions: {{ {permissions} }} }}] }}\n")
    };
    let all = "publish: [\"bw.prod.>\", \"$JS.API.>\"], subscribe: [\"bw.prod.>\"]";
    let Some(broker) = Broker::with(&user(all)) else { return };
    let ann = || options(&broker).user_and_password("ann", "x");
    NatsEngine::connect(ann().cluster("prod")).await.expect("the permissions of the documents are enough");

    let error = refused(ann().cluster("other")).await;
    let complaint = match &error {
        ConnectError::Silent { complaint } => complaint.clone().unwrap_or_default(),
        _ => panic!("{error:?}"),
    };
    assert!(complaint.to_lowercase().contains("permissions violation"), "{error:?}");
}

/// What three servers keep is replicated, without being asked.
#[tokio::test]
async fn three_servers_keep_three_copies() {
    let Some(broker) = Broker::three() else { return };
    let engine = NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("nothing is wrong");
    assert_eq!(engine.limits().level, Level::Replicated);
}
