//! Coming back to a session: every order in which a connection, a claim and an end can meet.
//!
//! The traps of rpcx and of sessions, and what keeps us out of each:
//!
//! | trap | the test that fails in it |
//! |---|---|
//! | a server's request without oneway, or its heartbeat, finishes a plain client's own call of that number | `call_back::a_plain_client_is_never_called`, `keepalive::a_plain_client_is_never_asked`, `optin::a_call_is_a_push_and_reply_answers_it` |
//! | some clients take any frame with a pending number for the reply: pushes have bit 63 | `push::a_push_is_the_bytes_that_go_sends`, `proto/tests/pair` |
//! | one process holds several connections of one user | `sessions::targets_name_sessions`, `topics::presence_is_of_users`, `histories` (a user with two clients) |
//! | the order of Go's metadata is random | `interop/tests/golden.rs`: pairs are compared as maps |
//! | a Go reader ends at any compression but none and gzip | `compression::replies_are_packed_as_their_requests` |
//! | what is sent again comes behind what is new | [`what_is_sent_again_comes_before_what_is_new`], `optin::resume_replays_what_was_not_handled` |
//! | a quiet session with an empty log forgets how far it is | [`a_quiet_session_is_resumed`]; for topics `history.rs`, `the_head_outlives_its_message` |
//! | a network that blinks is a leave | `topics::a_blink_is_no_leave`, `topics::presence_is_of_users` |
//! | an old connection that is half open still speaks for the session | [`the_old_connection_speaks_for_nobody`]; between two lines of the taking over: `registry.rs`, `who_found_the_session_by_an_old_connection_does_nothing_to_it` |
//! | a Welcome is lost, and with it the only secret that counts | [`any_number_of_welcomes_may_be_lost_in_a_row`] |
//! | a Hello is read long after its client has given it up, before or behind the one that lives | [`late_hellos_in_any_order_never_cost_the_session`], [`a_hello_whose_connection_is_over_takes_nothing_over`] |
//! | two claims at once are both let in | [`of_two_claims_at_once_the_last_has_the_session`] |
//! | a connection ends while its client is being let in | [`an_end_within_the_hook_leaves_a_session_that_waits`]; before anybody is told of it: `registry.rs`, `who_is_gone_when_it_is_let_in_takes_nothing_over` |
//! | the end of an earlier absence ends a session whose client is away again | [`each_absence_has_a_window_of_its_own`] |
//! | an acknowledgement before the Welcome is taken for one of the new session | `call_users::nothing_is_acknowledged_before_the_welcome` |
//! | a push between a connection and its Hello goes to the client's session and to the connection as well, or to a plain client that it is not | [`what_is_pushed_before_a_hello_comes_once_and_tracked`], [`what_is_pushed_while_the_hook_thinks_waits_though_the_client_has_asked`]; beside the Welcome: `registry.rs`, `what_is_pushed_beside_the_welcome_is_tracked` |
//! | a push to a user goes to the connection that is being let in as well | `call_users::who_is_being_let_in_gets_a_push_once`, `optin::what_is_pushed_while_a_client_comes_back_comes_once` |
//! | a subscription overtakes the hook, and is for a session that is about to go | `topics::a_subscription_behind_a_slow_hello_is_not_lost` |
//! | a thread asks for room under a lock that the answer needs | `sessions::threads_that_push_to_one_session_do_not_block_each_other`, `session/handle.rs`, `what_others_write_meanwhile_blocks_nobody` |
//! | the notice of a gap is lost with its connection | [`a_gap_is_told_again_until_it_is_heard`] |
//! | what an old connection still brings is taken for the session of the new one | [`what_an_old_connection_still_brings_counts_for_nothing`], `reconnect::an_answer_of_the_old_connection_subscribes_the_new_session_to_nothing` |
//! | a client takes what a server repeats for something new | [`a_client_hands_on_once_what_comes_twice`] |
//! | a client that lost its place resumes as if nothing were missing | [`who_lost_its_place_is_told_so`] |

use std::{sync::Arc, time::Duration};

use bothways::{
    Client, ClientOptions, Metadata, Push, QueueBound, Receipt, SerializeType, Server, Session, SessionOptions, Stage,
    Target,
    session::{DropReason, SessionId},
};
use bothways_proto::{Capabilities, Header, Message, Seq, keys};
use tokio::sync::Semaphore;

use crate::{
    scripted::{Scripted, ScriptedServer, arrive, claim, control, hello, request, session_pairs, welcome},
    support::{address, settle, soon, until},
};

fn session(server: &Server, welcome: &Metadata) -> Session {
    let id: SessionId = welcome.get(keys::SESSION_ID).expect("a session").parse().expect("a number");
    server.session(id).expect("it lives")
}

fn push(session: &Session, text: &str) -> Receipt {
    session.push(&Push::new("Chat", "say", text.to_owned())).expect("small")
}

fn pushed(offset: u64, text: &str) -> Vec<u8> {
    let header = Header::oneway(Seq::of_push(offset), SerializeType::RAW);
    Message::new(header, "Chat", "say", &Metadata::new(), text.as_bytes()).frame().to_vec()
}

fn ack(upto: u64) -> Vec<u8> {
    let header = Header::oneway(Seq::new(9), SerializeType::RAW);
    let pairs = Metadata::new().with(keys::ACK_OFFSETS, format!("{upto},{upto}"));
    Message::new(header, keys::CONTROL_PATH, keys::ACK, &pairs, &[]).frame().to_vec()
}

fn is_resumed(welcome: &Metadata) -> bool {
    welcome.get(keys::SESSION_RESUMED).is_some()
}

/// A server whose hook takes a permit for each Hello.
fn gated() -> (Server, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let checked = Arc::clone(&gate);
    let server = Server::builder().auth(move |_| {
        let checked = Arc::clone(&checked);
        async move {
            checked.acquire().await.expect("it is open").forget();
            Ok::<_, String>(())
        }
    });
    (server.build(), gate)
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_again_comes_before_what_is_new() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    for (offset, text) in [(1, "a"), (2, "b")] {
        push(&session, text);
        client.hears(pushed(offset, text)).await;
    }
    client.reset();
    until(|| session.connection().is_none()).await;
    push(&session, "while away");
    let mut back = Scripted::connect(listening.address()).await;
    back.say(hello(0, Capabilities::ALL, &claim(&welcome, 1))).await;
    push(&session, "before the Welcome");
    assert!(is_resumed(&back.next().await.metadata()));
    push(&session, "behind the Welcome");
    for (offset, text) in (2..).zip(["b", "while away", "before the Welcome", "behind the Welcome"]) {
        back.hears(pushed(offset, text)).await;
    }
    back.hears_nothing().await;
}

/// A client has connected and has not said who it is. What is pushed to everybody waits for that, and is a tracked push
/// of the session that the client gets: of its new one, or of the one that it had, which was meant as well. What waited
/// for the connection beside that ends with it, and its sender is told.
#[tokio::test(start_paused = true)]
async fn what_is_pushed_before_a_hello_comes_once_and_tracked() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let everyone = |text: &'static str| server.push(&Target::everyone(), &Push::new("Chat", "say", text));
    let connect = async || {
        let client = Scripted::connect(listening.address()).await;
        settle().await;
        client
    };
    let mut client = connect().await;
    let waits = everyone("a").expect("small");
    client.hears_nothing().await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let mut welcome = client.next().await.metadata();
    assert_eq!(welcome.get(keys::SESSION_OFFSET), Some("0"), "nothing was sent before it");
    client.hears(pushed(1, "a")).await;
    client.say(ack(1)).await;
    assert_eq!(waits.handled().await.at(Stage::Handled), 1);
    let session = session(&server, &welcome);

    for (handled, is_half_open) in [(1, false), (2, true)] {
        if !is_half_open {
            client.reset();
            until(|| session.connection().is_none()).await;
        }
        let mut back = connect().await;
        let of_both = everyone("b").expect("small");
        let greeted = server.connections().pop().expect("it is the newest").id();
        let greeting = server.push(&Target::connection(greeted), &Push::new("Chat", "say", "hi")).expect("small");
        if is_half_open {
            client.hears(pushed(handled + 1, "b")).await;
        }
        back.say(hello(0, Capabilities::ALL, &claim(&welcome, handled))).await;
        welcome = back.next().await.metadata();
        assert!(is_resumed(&welcome));
        back.hears(pushed(handled + 1, "b")).await;
        back.hears_nothing().await;
        back.say(ack(handled + 1)).await;
        let outcomes = of_both.handled().await;
        let ended = Stage::Dropped(DropReason::SessionEnded);
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled), outcomes.at(ended)), (2, 1, 1));
        assert_eq!(greeting.handled().await.at(ended), 1);
        client = back;
    }
    assert_eq!(server.stats().sessions, 1);
}

/// The hook thinks about a client that has sent a request behind its Hello. It has asked, and still nothing goes before
/// it is known whether it speaks sessions: that would be a push of a plain client.
#[tokio::test(start_paused = true)]
async fn what_is_pushed_while_the_hook_thinks_waits_though_the_client_has_asked() {
    let (server, gate) = gated();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    client.say(request(1, "Echo", b"x")).await;
    settle().await;
    let receipt = server.push(&Target::everyone(), &Push::new("Chat", "say", "a")).expect("small");
    client.hears_nothing().await;
    gate.add_permits(1);
    assert!(client.next().await.metadata().get(keys::SESSION_ID).is_some(), "the Welcome");
    client.hears(pushed(1, "a")).await;
    assert_eq!(receipt.outcomes().at(Stage::Written), 1);
    gate.add_permits(1);
    assert_eq!(client.next().await.header().seq(), Seq::new(1));
}

/// All is handled and the log is empty: the session still knows its place, and its client comes back to it.
#[tokio::test(start_paused = true)]
async fn a_quiet_session_is_resumed() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    for (offset, text) in [(1, "a"), (2, "b")] {
        let receipt = push(&session, text);
        client.hears(pushed(offset, text)).await;
        client.say(ack(offset)).await;
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    }
    assert_eq!(session.waiting(), (0, 0));
    client.reset();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let (mut back, again) = arrive(listening.address(), &claim(&welcome, 2)).await;
    assert!(is_resumed(&again));
    assert_eq!(again.get(keys::SESSION_OFFSET), Some("2"));
    push(&session, "c");
    back.hears(pushed(3, "c")).await;
}

/// A client whose old connection is half open, at the server, has taken its session away from it. What that connection
/// still says counts for nothing, and it gets nothing.
#[tokio::test(start_paused = true)]
async fn the_old_connection_speaks_for_nobody() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut old, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    let receipt = push(&session, "a");
    old.hears(pushed(1, "a")).await;
    let (mut new, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
    assert!(is_resumed(&again));
    // It may be gone already.
    let _ = old.try_say(ack(1)).await;
    settle().await;
    assert_eq!(receipt.outcomes().at(Stage::Written), 1, "nobody has confirmed it");
    let live = push(&session, "b");
    new.hears(pushed(1, "a")).await;
    new.hears(pushed(2, "b")).await;
    let rest = old.rest().await;
    assert!(rest.iter().all(|message| message.service_path() == keys::CONTROL_PATH), "{rest:?}");
    assert_eq!((session.generation(), server.stats().sessions), (2, 1));
    new.say(ack(2)).await;
    assert_eq!(live.handled().await.at(Stage::Handled), 1);
}

/// The secret of a session stays as it is: however many Welcomes are lost, and whatever is shown meanwhile, the client
/// comes back by what it has.
#[tokio::test(start_paused = true)]
async fn any_number_of_welcomes_may_be_lost_in_a_row() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, first) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &first);
    client.reset();
    for lost in 0..20 {
        let (client, welcome) = arrive(listening.address(), &claim(&first, 0)).await;
        assert!(is_resumed(&welcome), "after {lost}");
        assert_eq!(welcome.get(keys::SESSION_KEY), first.get(keys::SESSION_KEY));
        client.reset();
        until(|| session.connection().is_none()).await;
    }
    let wrong = claim(&first, 0).with(keys::SESSION_KEY, "guessed");
    let (_, refused) = arrive(listening.address(), &wrong).await;
    assert_eq!(refused.get(keys::SESSION_WHY), Some("unknown"));
    assert!(is_resumed(&arrive(listening.address(), &claim(&first, 0)).await.1));
}

/// Says Hello as the attempt of this number. Returns the answer, and whether it is a Welcome.
async fn attempt(address: &str, pairs: &Metadata, number: &str) -> (Scripted, Message) {
    let mut client = Scripted::connect(address).await;
    client.say(hello(0, Capabilities::ALL, &pairs.clone().with(keys::SESSION_TRY, number))).await;
    let answer = client.next().await;
    (client, answer)
}

/// The server stood still while its client tried again and again, and reads the Hellos in any order: only one that is
/// later than all before it takes the session, the others are asked to try again, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn late_hellos_in_any_order_never_cost_the_session() {
    for order in [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 1, 6, 2, 5, 4], [2, 6, 1, 1, 6, 7]] {
        let server = Server::builder().build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
        let session = session(&server, &welcome);
        let owed = push(&session, "owed");
        client.reset();
        let mut newest: Option<(u64, Scripted)> = None;
        for number in order {
            let (client, answer) = attempt(listening.address(), &claim(&welcome, 0), &number.to_string()).await;
            let said = answer.metadata();
            if newest.as_ref().is_none_or(|(let_in, _)| *let_in < number) {
                assert!(is_resumed(&said), "{number} of {order:?}: {answer:?}");
                newest = Some((number, client));
                continue;
            }
            assert!(answer.error_text().is_some(), "{number} of {order:?}: {answer:?}");
            assert_eq!(said.get(keys::ERROR_CODE), Some("overloaded"), "not now, for old clients as well");
            assert!(said.get(keys::RETRY_AFTER).is_some() && said.get(keys::SESSION_ID).is_none());
        }
        let (_, mut client) = newest.expect("one was let in");
        client.hears(pushed(1, "owed")).await;
        client.say(ack(1)).await;
        assert_eq!(soon(owed.handled()).await.at(Stage::Handled), 1);
        assert_eq!(server.stats().sessions, 1, "the others have left none");
    }
}

/// A client that does not count its attempts, like older ones, is always the latest; one that counts goes on where it
/// was.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_count_its_attempts_is_let_in() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_first, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let claim = claim(&welcome, 0);
    assert!(is_resumed(&attempt(listening.address(), &claim, "7").await.1.metadata()));
    assert!(is_resumed(&arrive(listening.address(), &claim).await.1));
    assert!(attempt(listening.address(), &claim, "7").await.1.error_text().is_some());
    assert!(is_resumed(&attempt(listening.address(), &claim, "8").await.1.metadata()));
    let nonsense = attempt(listening.address(), &claim, "18446744073709551616").await.1.metadata();
    assert_eq!(nonsense.get(keys::SESSION_WHY), Some("unknown"));
}

/// Our client counts its attempts, tries again when it is told that it was not the latest, and takes whatever secret a
/// Welcome brings, as older servers give a new one each time.
#[tokio::test(start_paused = true)]
async fn a_client_counts_its_attempts_and_takes_the_secret_of_each_welcome() {
    let server = ScriptedServer::listen().await;
    let connecting = tokio::spawn({
        let (address, wait) = (server.address.clone(), Duration::from_millis(1));
        async move { Client::bidirectional(&address, ClientOptions::new().backoff(wait, wait)).await }
    });
    let mut peer = server.accept_with(session_pairs("1")).await;
    let client = connecting.await.expect("no panic").expect("it listens");
    let mut events = client.0.events();
    let mut key = "k".to_owned();
    settle().await;
    for number in ["1", "2", "3", "4"] {
        peer.reset();
        peer = server.accept().await;
        let said = peer.next().await;
        assert_eq!(said.metadata().get(keys::SESSION_TRY), Some(number));
        assert_eq!(said.metadata().get(keys::SESSION_KEY), Some(&*key));
        if number == "2" {
            let refusal = Metadata::new()
                .with(keys::ERROR, "a later attempt was let in")
                .with(keys::ERROR_CODE, "overloaded")
                .with(keys::RETRY_AFTER, "50");
            let header = said.header().reply().with_status(bothways_proto::Status::ERROR);
            peer.say(Message::new(header, "", "", &refusal, &[]).frame()).await;
            settle().await;
            continue;
        }
        key = format!("k{number}");
        let pairs = session_pairs("1").with(keys::SESSION_KEY, &key).with(keys::SESSION_RESUMED, "1");
        peer.say(welcome(&said, pairs)).await;
        settle().await;
    }
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(10), events.next()).await {
        assert!(!matches!(event, bothways::ConnectionEvent::SessionLost { .. }), "{event:?}");
    }
}

/// The client has given the connection up before its Hello was read: the session stays where it is, and no session is
/// begun that waits for nobody.
#[tokio::test(start_paused = true)]
async fn a_hello_whose_connection_is_over_takes_nothing_over() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    for pairs in [claim(&welcome, 0), Metadata::new()] {
        let mut late = Scripted::connect(listening.address()).await;
        late.say(hello(0, Capabilities::ALL, &pairs)).await;
        late.end().await;
        for answer in late.rest().await {
            assert_eq!(answer.metadata().get(keys::SESSION_ID), None, "{answer:?}");
        }
    }
    settle().await;
    assert_eq!((session.generation(), server.stats().sessions, server.stats().sessions_away), (1, 1, 0));
    push(&session, "a");
    client.hears(pushed(1, "a")).await;
}

/// Two connections claim one session while the hook thinks. Both are let in, one after the other, and the last has it:
/// it alone gets what the session owes, each once, and the other is closed.
#[tokio::test(start_paused = true)]
async fn of_two_claims_at_once_the_last_has_the_session() {
    let (server, gate) = gated();
    gate.add_permits(1);
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    client.reset();
    until(|| session.connection().is_none()).await;
    let owed = push(&session, "owed");
    let mut claims = Vec::new();
    for _ in 0..2 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &claim(&welcome, 0))).await;
        settle().await;
        claims.push(client);
    }
    // Both hooks are done in one turn.
    gate.add_permits(2);
    settle().await;
    let [mut first, mut last] = claims.try_into().ok().expect("two");
    assert!(is_resumed(&last.next().await.metadata()));
    last.hears(pushed(1, "owed")).await;
    push(&session, "new");
    last.hears(pushed(2, "new")).await;
    last.hears_nothing().await;
    for message in first.rest().await {
        let is_push = message.service_path() == "Chat";
        assert!(!is_push || message.header().seq() == Seq::of_push(1), "only what was its while it had the session");
    }
    assert_eq!((session.generation(), server.stats().sessions), (3, 1));
    last.say(ack(2)).await;
    assert_eq!(owed.handled().await.at(Stage::Handled), 1);
}

/// The connection breaks while the hook thinks about its client. The session is not left with a connection that is
/// over: it waits, its client comes back to it, and its window ends.
#[tokio::test(start_paused = true)]
async fn an_end_within_the_hook_leaves_a_session_that_waits() {
    let (server, gate) = gated();
    gate.add_permits(1);
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    client.reset();
    until(|| session.connection().is_none()).await;
    let mut broken = Scripted::connect(listening.address()).await;
    broken.say(hello(0, Capabilities::ALL, &claim(&welcome, 0))).await;
    settle().await;
    broken.reset();
    settle().await;
    gate.add_permits(1);
    settle().await;
    assert!(session.connection().is_none(), "what it would get goes nowhere");
    let receipt = push(&session, "owed");
    assert_eq!(receipt.outcomes().at(Stage::Queued), 1);

    gate.add_permits(1);
    let (mut back, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
    assert!(is_resumed(&again));
    back.hears(pushed(1, "owed")).await;
    back.reset();
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!((server.stats().sessions, server.stats().connections), (0, 0), "nothing is left");
}

/// A client is away, comes back, and is away again: the window of its first absence does not end the second.
#[tokio::test(start_paused = true)]
async fn each_absence_has_a_window_of_its_own() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    client.reset();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(115)).await;
        let (client, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
        assert!(is_resumed(&again));
        client.reset();
        welcome = again;
        until(|| session.connection().is_none()).await;
    }
    tokio::time::sleep(Duration::from_secs(125)).await;
    let (_client, late) = arrive(listening.address(), &claim(&welcome, 0)).await;
    assert_eq!(late.get(keys::SESSION_WHY), Some("expired"));
}

/// A window that is over is over, though no sweep has come by since; and without one no session waits at all.
#[tokio::test(start_paused = true)]
async fn a_window_ends_when_it_says() {
    let window = Duration::from_millis(300);
    for (window, away, comes_back) in [
        (window, window - Duration::from_millis(2), true),
        (window, window + Duration::from_millis(2), false),
        (Duration::ZERO, Duration::ZERO, false),
    ] {
        let server = Server::builder().sessions(SessionOptions::new().resume_window(window)).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
        let session = session(&server, &welcome);
        let owed = push(&session, "owed");
        client.reset();
        until(|| session.connection().is_none()).await;
        assert_eq!(
            (server.stats().sessions_away, owed.outcomes().open()),
            (usize::from(!window.is_zero()), usize::from(!window.is_zero()))
        );
        tokio::time::sleep(away.saturating_sub(Duration::from_millis(1))).await;
        let (_client, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
        assert_eq!(is_resumed(&again), comes_back, "{window:?} {away:?}");
    }
}

/// What a log had no room for is told; a notice that is lost with its connection is told on the next one.
#[tokio::test(start_paused = true)]
async fn a_gap_is_told_again_until_it_is_heard() {
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(1).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, mut welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = session(&server, &welcome);
    push(&session, "a");
    push(&session, "refused");
    client.hears(pushed(1, "a")).await;
    for _ in 0..3 {
        let gap = client.next().await;
        assert_eq!((gap.service_method(), gap.metadata().get(keys::GAP_MISSED)), (keys::GAP, Some("1")));
        client.hears_nothing().await;
        client.reset();
        until(|| session.connection().is_none()).await;
        (client, welcome) = arrive(listening.address(), &claim(&welcome, 1)).await;
        assert!(is_resumed(&welcome));
    }
}

/// A server that repeats what the client has had, be it because it does not know: the application gets each once, and in
/// order, and the server is told again how far the client is.
#[tokio::test(start_paused = true)]
async fn a_client_hands_on_once_what_comes_twice() {
    let server = ScriptedServer::listen().await;
    let connecting = tokio::spawn({
        let (address, wait) = (server.address.clone(), Duration::from_millis(1));
        async move { Client::bidirectional(&address, ClientOptions::new().backoff(wait, wait)).await }
    });
    let mut peer = server.accept_with(session_pairs("1")).await;
    let (_client, mut messages) = connecting.await.expect("no panic").expect("it listens");
    for offset in [1, 2, 1, 2, 3] {
        peer.say(pushed(offset, &offset.to_string())).await;
    }
    settle().await;
    peer.reset();
    let mut peer = server.accept_with(session_pairs("1").with(keys::SESSION_RESUMED, "1")).await;
    for offset in [1, 2, 3, 4, 3, 5] {
        peer.say(pushed(offset, &offset.to_string())).await;
    }
    for expected in 1..=5 {
        let message = soon(messages.next()).await.expect("the client is open");
        assert_eq!(message.payload().expect("not packed"), expected.to_string());
    }
    settle().await;
    assert!(messages.try_next().is_none());
    loop {
        let ack = peer.next().await;
        if ack.metadata().get(keys::ACK_OFFSETS) == Some("5,5") {
            break;
        }
    }
}

/// The connection that the server ends still brings something when the client has said on the next one how far it is,
/// and when it has another session there: neither is handed on, acknowledged, or counted as an offset of the new session,
/// whose own pushes would pass for repetitions.
#[tokio::test(start_paused = true)]
async fn what_an_old_connection_still_brings_counts_for_nothing() {
    let server = ScriptedServer::listen().await;
    let connecting = tokio::spawn({
        let (address, wait) = (server.address.clone(), Duration::from_millis(1));
        async move { Client::bidirectional(&address, ClientOptions::new().backoff(wait, wait)).await }
    });
    let mut first = server.accept_with(session_pairs("1")).await;
    let (_client, mut messages) = connecting.await.expect("no panic").expect("it listens");
    let mut texts = async || {
        settle().await;
        let texts = std::iter::from_fn(|| messages.try_next()).map(|message| message.payload().expect("not packed"));
        texts.map(|text| String::from_utf8(text.to_vec()).expect("a text")).collect::<Vec<_>>()
    };
    first.say(pushed(1, "1")).await;
    assert_eq!(texts().await, ["1"]);

    first.say(control(1 << 63, keys::GOODBYE, keys::GOODBYE_WHY, "so long")).await;
    let mut second = server.accept().await;
    let said = second.next().await;
    assert_eq!(said.metadata().get(keys::SESSION_RECEIVED), Some("1"));
    first.say(pushed(2, "2, too late")).await;
    assert_eq!(texts().await, [""; 0], "the client has said that it has one");
    second.say(welcome(&said, session_pairs("1").with(keys::SESSION_RESUMED, "1"))).await;
    first.say(pushed(2, "2, too late")).await;
    second.say(pushed(2, "2")).await;
    assert_eq!(texts().await, ["2"]);

    second.say(control(1 << 63, keys::GOODBYE, keys::GOODBYE_WHY, "so long")).await;
    let mut third = server.accept_with(session_pairs("2").with(keys::SESSION_WHY, "unknown")).await;
    settle().await;
    second.say(pushed(3, "3 of the one before")).await;
    second.say(control(1 << 63, keys::GAP, keys::GAP_MISSED, "9")).await;
    settle().await;
    third.say(pushed(1, "new")).await;
    assert_eq!(texts().await, ["new"]);
    assert_eq!(third.next().await.metadata().get(keys::ACK_OFFSETS), Some("1,1"));
    third.say(control(1 << 63, keys::GAP, keys::GAP_MISSED, "4")).await;
    settle().await;
    assert_eq!(messages.dropped(), 4, "and not what the session before has missed");
}

/// A client that claims less than it has confirmed wants what is gone, and one that claims more was never here. Either
/// gets a new session, and hears why.
#[tokio::test(start_paused = true)]
async fn who_lost_its_place_is_told_so() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for wrong in [1, 4] {
        let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
        let of_client = session(&server, &welcome);
        for (offset, text) in [(1, "a"), (2, "b"), (3, "c")] {
            push(&of_client, text);
            client.hears(pushed(offset, text)).await;
        }
        client.say(ack(2)).await;
        settle().await;
        client.reset();
        let (mut client, fresh) = arrive(listening.address(), &claim(&welcome, wrong)).await;
        assert_eq!((is_resumed(&fresh), fresh.get(keys::SESSION_WHY)), (false, Some("gap")));
        let fresh = session(&server, &fresh);
        assert_ne!(fresh.id(), of_client.id());
        push(&fresh, "new");
        client.hears(pushed(1, "new")).await;
        client.hears_nothing().await;
        // The other one waits for who knows its place.
        assert!(is_resumed(&arrive(listening.address(), &claim(&welcome, 2)).await.1));
    }
    assert!(1 < server.sessions(&Target::everyone()).expect("no topic").len());
}

/// The session that a hook was given for the Hello of a client that comes back stands for the one that the client gets:
/// code that kept it pushes, waits for room, calls, subscribes, labels and ends there.
#[tokio::test(start_paused = true)]
async fn what_a_hook_kept_stands_for_the_session_that_its_client_gets() {
    let kept = Arc::<std::sync::Mutex<Vec<Session>>>::default();
    let of_hook = Arc::clone(&kept);
    let builder = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(1).bytes(1 << 20))).auth(
        move |request| {
            of_hook.lock().expect("no panic").extend(request.session());
            std::future::ready(Ok::<_, String>(()))
        },
    );
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut first = Scripted::connect(listening.address()).await;
    first.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let welcome = first.next().await.metadata();
    let session = session(&server, &welcome);
    first.reset();
    until(|| session.connection().is_none()).await;
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &claim(&welcome, 0))).await;
    assert!(is_resumed(&client.next().await.metadata()));

    let stands_in = kept.lock().expect("no panic").last().expect("it was asked").clone();
    assert_ne!(stands_in.id(), session.id());
    assert_eq!(stands_in.connection(), session.connection());
    stands_in.set_label("place", "here");
    stands_in.subscribe("news").expect("a topic");
    assert_eq!((session.label("place").as_deref(), session.subscriptions()), (Some("here"), vec!["news".to_owned()]));

    push(&stands_in, "a");
    client.hears(pushed(1, "a")).await;
    let late = Push::new("Chat", "say", "b");
    let began = tokio::time::Instant::now();
    let (receipt, ()) = tokio::join!(stands_in.push_within(Duration::from_secs(60), &late), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        client.say(ack(1)).await;
        client.hears(pushed(2, "b")).await;
    });
    assert_eq!((receipt.expect("small").outcomes().dropped(), began.elapsed().as_secs()), (0, 2));

    let calling = stands_in.clone();
    let call = tokio::spawn(async move { crate::support::call(&calling, "Ask", "x").await });
    let asked = client.next().await;
    client.say(crate::scripted::reply_to(&asked, b"y")).await;
    assert_eq!(soon(call).await.expect("no panic").expect("answered"), "y");
    stands_in.end("a test");
    assert!(server.session(session.id()).is_none());
}
