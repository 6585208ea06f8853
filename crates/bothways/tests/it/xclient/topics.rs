//! One subscription at many servers.

use std::collections::BTreeSet;

use bothways::{Push, ServerMessages, Target, session::TopicOptions};

use super::*;
use crate::{
    scripted::{ScriptedServer, error_to, session_pairs},
    support::soon,
};

struct Publisher {
    address: String,
    server: Server,
    _listening: Listening,
}

impl Publisher {
    async fn start(address: String, options: TopicOptions) -> Self {
        let server = Server::builder().topic("news.>", options).expect("a pattern").build();
        let listening = server.listen(&address).await.expect("the name is free");
        // As a subscriber hears it.
        let address = listening.address().to_owned();
        Self { address, server, _listening: listening }
    }

    async fn open() -> Self {
        Self::start(address(), TopicOptions::new().open()).await
    }

    fn publish(&self) -> usize {
        self.server
            .publish("news.sport", &Push::new("News", "say", self.address.clone()))
            .expect("small")
            .outcomes()
            .targets()
    }
}

fn listening(discovery: impl Discovery) -> (XClient, ServerMessages) {
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    XClient::bidirectional("News", FailMode::Failover, first(), discovery, options)
}

/// The servers from which the next messages are, each of which says its own name.
async fn heard(messages: &mut ServerMessages, n: usize) -> BTreeSet<String> {
    let mut heard = BTreeSet::new();
    for _ in 0..n {
        let message = soon(messages.next()).await.expect("the client is open");
        assert_eq!(message.payload().expect("not packed"), message.server().as_bytes());
        heard.insert(message.server().to_owned());
    }
    heard
}

async fn resubscribed(events: &mut bothways::ConnectionEvents) -> String {
    loop {
        if let ConnectionEvent::Resubscribed { server, .. } = soon(events.next()).await.expect("the client is open") {
            return server.to_string();
        }
    }
}

/// All that are there are subscribed to at once, one that is down when it comes up, and one that is new when it
/// comes to the list; and none after the end of the subscription.
#[tokio::test(start_paused = true)]
async fn a_topic_is_subscribed_to_at_every_server() {
    let (one, two, down) = (Publisher::open().await, Publisher::open().await, address().replace("memu", "memory"));
    let discovery = MultipleServersDiscovery::new([&*one.address, &two.address, &down]);
    let (xclient, mut messages) = listening(discovery.clone());
    let mut events = xclient.events();
    let outcomes = xclient.subscribe("news.*").await.expect("the client is open");
    let addresses: Vec<_> = outcomes.iter().map(|(address, _)| address.as_str()).collect();
    assert_eq!(addresses, [&*one.address, &two.address, &down]);
    assert!(outcomes[0].1.is_ok() && outcomes[1].1.is_ok(), "{outcomes:?}");
    assert!(matches!(outcomes[2].1, Err(CallError::NotConnected(_))), "{outcomes:?}");
    assert_eq!((one.publish(), two.publish()), (1, 1));
    assert_eq!(heard(&mut messages, 2).await.len(), 2);

    let down = Publisher::start(down, TopicOptions::new().open()).await;
    assert_eq!(resubscribed(&mut events).await, down.address);
    down.publish();
    assert!(heard(&mut messages, 1).await.contains(&down.address));

    let new = Publisher::open().await;
    discovery.update([&*one.address, &two.address, &down.address, &new.address]);
    assert_eq!(resubscribed(&mut events).await, new.address);
    new.publish();
    assert!(heard(&mut messages, 1).await.contains(&new.address));

    xclient.unsubscribe("news.*").await.expect("all are connected");
    let late = Publisher::open().await;
    discovery.update([&*one.address, &two.address, &down.address, &new.address, &late.address]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(late.server.stats().connections, 1);
    for server in [&one, &two, &down, &new, &late] {
        assert_eq!(server.publish(), 0);
    }
    assert!(messages.try_next().is_none());
}

/// Who gives up waiting for the end of a subscription has asked for it at every server.
#[tokio::test(start_paused = true)]
async fn an_unsubscription_that_nobody_waits_for_comes_to_every_server() {
    let all = [Publisher::open().await, Publisher::open().await, Publisher::open().await];
    let discovery = MultipleServersDiscovery::new(all.iter().map(|publisher| &*publisher.address));
    let (xclient, _messages) = listening(discovery);
    xclient.subscribe("news.*").await.expect("the client is open");
    let mut unsubscribing = Box::pin(xclient.unsubscribe("news.*"));
    let polled = unsubscribing.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(polled.is_pending());
    drop(unsubscribing);
    sleep(Duration::from_secs(1)).await;
    for publisher in &all {
        assert_eq!(publisher.publish(), 0);
    }
}

/// A refusal is that server's answer, and nobody else's.
#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_does_not_keep_others_from_it() {
    let (open, closed) = (Publisher::open().await, Publisher::start(address(), TopicOptions::new()).await);
    let (xclient, mut messages) = listening(MultipleServersDiscovery::new([&*closed.address, &open.address]));
    let outcomes = xclient.subscribe("news.sport").await.expect("the client is open");
    assert!(matches!(outcomes[0].1, Err(CallError::Remote { .. })), "{outcomes:?}");
    assert!(outcomes[1].1.is_ok(), "{outcomes:?}");
    assert_eq!((closed.publish(), open.publish()), (0, 1));
    assert_eq!(heard(&mut messages, 1).await, BTreeSet::from([open.address.clone()]));
    xclient.close();
    assert!(matches!(xclient.subscribe("news.sport").await, Err(CallError::NotConnected(_))));
}

/// Who has negotiated and refuses is not asked again by itself, on the next connection either.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_refused_is_not_asked_again() {
    let server = ScriptedServer::listen().await;
    let (xclient, _messages) = listening(Peer2PeerDiscovery::new(&server.address));
    let subscribing = {
        let xclient = xclient.clone();
        tokio::spawn(async move { xclient.subscribe("news.sport").await })
    };
    let mut peer = server.accept_with(session_pairs("1")).await;
    let asked = peer.next().await;
    peer.say(error_to(&asked, "clients may not subscribe to `news.sport`")).await;
    let outcomes = soon(subscribing).await.expect("no panic").expect("the client is open");
    assert!(matches!(outcomes[0].1, Err(CallError::Remote { .. })), "{outcomes:?}");
    peer.reset();
    let mut next = server.accept_with(session_pairs("2")).await;
    next.hears_nothing().await;
}

/// A plain server has no topics, and says so; the Bothways server that is at its address the next time is asked again.
#[tokio::test(start_paused = true)]
async fn an_address_that_was_a_plain_servers_is_asked_again() {
    let server = ScriptedServer::listen().await;
    let (xclient, _messages) = listening(Peer2PeerDiscovery::new(&server.address));
    let subscribing = {
        let xclient = xclient.clone();
        tokio::spawn(async move { xclient.subscribe("news.sport").await })
    };
    let mut plain = server.accept_plain().await;
    let asked = plain.next().await;
    plain.say(error_to(&asked, "rpcx: can't find service _bothways")).await;
    let outcomes = soon(subscribing).await.expect("no panic").expect("the client is open");
    assert!(matches!(outcomes[0].1, Err(CallError::Remote { .. })), "{outcomes:?}");
    plain.reset();

    let mut restarted = server.accept_with(session_pairs("1")).await;
    let asked = soon(restarted.next()).await;
    assert_eq!((asked.service_path(), asked.service_method()), ("_bothways", "Subscribe"));
}

/// A server that is too busy, stops, or does not answer in time is asked again, on the connection that there is and on
/// the next one; until nobody wants it any more.
#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_subscribe_for_now_is_asked_again() {
    for code in [Some("overloaded"), Some("shutting_down"), None] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().timeout(Duration::from_millis(500));
        let discovery = Peer2PeerDiscovery::new(&server.address);
        let (xclient, _messages) = XClient::bidirectional("News", FailMode::Failover, first(), discovery, options);
        let subscribing = {
            let xclient = xclient.clone();
            tokio::spawn(async move { xclient.subscribe("news.sport").await })
        };
        let mut peer = server.accept_with(session_pairs("1")).await;
        let is_asked = |asked: &bothways_proto::Message| asked.service_method() == "Subscribe";
        let asked = soon(peer.next()).await;
        assert!(is_asked(&asked));
        if let Some(code) = code {
            let (header, said) = (asked.header().reply(), Metadata::new().with("_bw.err", code));
            let said = said.with("__rpcx_error__", "not now");
            let header = header.with_status(bothways_proto::Status::ERROR);
            peer.say(bothways_proto::Message::new(header, "", "", &said, &[]).frame()).await;
        }
        let outcomes = soon(subscribing).await.expect("no panic").expect("the client is open");
        assert!(outcomes[0].1.is_err(), "{outcomes:?}");
        let mut again = soon(peer.next()).await;
        while !is_asked(&again) {
            again = soon(peer.next()).await;
        }
        peer.reset();
        let mut next = server.accept_with(session_pairs("2")).await;
        assert!(is_asked(&soon(next.next()).await), "{code:?}");
    }
}

/// Two servers with topics and a slow method, each with the user `ann`.
async fn two_slow() -> [Publisher; 2] {
    let mut servers = Vec::new();
    for _ in 0..2 {
        let server = Server::builder()
            .topic("news.>", TopicOptions::new().open())
            .expect("a pattern")
            .auth(|request: bothways::server::AuthRequest| {
                if let Some(session) = request.session() {
                    session.bind_user("ann");
                }
                std::future::ready(Ok::<_, &str>(()))
            })
            .function("News", "Slow", |(): ()| async {
                sleep(Duration::from_secs(10)).await;
                Ok::<_, String>(())
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let address = listening.address().to_owned();
        servers.push(Publisher { address, server, _listening: listening });
    }
    servers.try_into().unwrap_or_else(|_| unreachable!("two"))
}

/// A server that leaves the list and comes back, while a call or the application keeps its client, has that one again:
/// one session, to which everything comes once, with what was subscribed to meanwhile.
#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_to_the_list_has_one_client() {
    for by_a_call in [true, false] {
        let [leaves, stays] = two_slow().await;
        let discovery = MultipleServersDiscovery::new([&*leaves.address, &stays.address]);
        let (xclient, mut messages) = listening(discovery.clone());
        xclient.subscribe("news.sport").await.expect("it is open");
        let caller = xclient.clone();
        let calling = tokio::spawn(async move { if by_a_call { caller.call("Slow", &()).await } else { Ok(()) } });
        let kept = if by_a_call { Vec::new() } else { xclient.clients() };
        settle().await;

        let mut events = xclient.events();
        for _ in 0..3 {
            discovery.update([&*stays.address]);
            settle().await;
            xclient.subscribe("news.late").await.expect("it is open");
            assert_eq!(leaves.publish(), 1, "it is not gone yet");
            assert_eq!(heard(&mut messages, 1).await.len(), 1);
            discovery.update([&*leaves.address, &stays.address]);
            sleep(Duration::from_millis(100)).await;
            assert_eq!(leaves.server.user("ann").sessions().len(), 1);
            let late = Push::new("News", "say", leaves.address.clone());
            assert_eq!(leaves.server.publish("news.late", &late).expect("small").outcomes().targets(), 1);
            assert_eq!(leaves.server.push(&Target::user("ann"), &late).expect("small").outcomes().targets(), 1);
            assert_eq!(leaves.publish(), 1);
            assert_eq!(heard(&mut messages, 3).await.len(), 1);
            xclient.unsubscribe("news.late").await.expect("both are there");
        }
        soon(calling).await.expect("no panic").expect("it is answered");
        drop(kept);
        sleep(Duration::from_secs(10)).await;
        assert_eq!((leaves.publish(), heard(&mut messages, 1).await.len()), (1, 1));
        assert!(tokio::time::timeout(Duration::from_secs(10), messages.next()).await.is_err(), "each came once");
        let stats = leaves.server.stats();
        assert_eq!((stats.connections_accepted, stats.sessions, xclient.clients().len()), (1, 1, 2));
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
            let is_subscribed = matches!(&event, Some(ConnectionEvent::Resubscribed { .. }));
            assert!(is_subscribed, "nothing was lost: {event:?}");
        }
    }
}

/// A server that has left the list, and whose client a call keeps, is unsubscribed from as the others are, and its
/// connection ends with the others.
#[tokio::test(start_paused = true)]
async fn what_all_servers_are_told_those_that_have_left_the_list_are_told_too() {
    for closes in [false, true] {
        let [leaves, stays] = two_slow().await;
        let discovery = MultipleServersDiscovery::new([&*leaves.address, &stays.address]);
        let (xclient, mut messages) = listening(discovery.clone());
        xclient.subscribe("news.sport").await.expect("it is open");
        let caller = xclient.clone();
        let calling = tokio::spawn(async move { caller.call::<()>("Slow", &()).await });
        settle().await;
        discovery.update([&*stays.address]);
        settle().await;
        let mut events = xclient.events();
        if closes {
            xclient.close();
            let error = soon(calling).await.expect("no panic").expect_err("it is closed");
            let is_ours = matches!(&error, CallError::Closed { reason: bothways::CloseReason::Local, .. });
            assert!(is_ours, "{error}");
            assert!(soon(messages.next()).await.is_none());
            assert!(soon(events.next()).await.is_none(), "one's own end is no loss");
            settle().await;
            assert_eq!((leaves.server.stats().connections, leaves.server.stats().sessions), (0, 0));
        } else {
            xclient.unsubscribe("news.sport").await.expect("both are there");
            assert_eq!((leaves.publish(), stays.publish()), (0, 0));
            soon(calling).await.expect("no panic").expect("it goes on");
        }
    }
}
