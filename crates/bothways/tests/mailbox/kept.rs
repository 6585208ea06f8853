//! What is kept until its user comes.

use std::time::Duration;

use bothways::{
    Class, ClientOptions, Push, PushError, Server, Stage, Target,
    cluster::{Engine, engine::EngineLimits, memory::MemoryBroker},
    error::NotDurable,
    session::{MailboxOptions, SendError},
    store::{AppendError, Level, Log},
    testing,
};

use crate::support::{
    TTL, alone, builder, client, letter, network, next, next_of, nothing_for, post, stored, until_letters, with_store,
};

/// Who is not there gets it when it comes, once, whatever comes later; and the receipt says where it is kept.
#[test]
fn a_letter_waits_for_its_user() {
    testing::run(async {
        let network = alone().await;
        let receipt = post(&network, "ann", "hello");
        let kept = receipt.stored().await.expect("there is room");
        assert_eq!((kept.len(), &kept[0].log, kept[0].level), (1, &Log::Mailbox("ann".to_owned()), Level::Memory));
        assert_eq!(receipt.handled().await.targets(), 0, "nobody is there");

        let mut ann = client(&network, "ann", None).await;
        assert_eq!(next(&mut ann).await, "hello");
        until_letters(&network, "ann", 0).await;
        nothing_for(&mut ann).await;
        let mut again = client(&network, "ann", None).await;
        nothing_for(&mut again).await;
    });
}

/// The sessions that are there are targets of the receipt, which says that they have handled it.
#[test]
fn who_is_there_gets_it_at_once() {
    testing::run(async {
        let network = alone().await;
        let (mut ann, mut other) = (client(&network, "ann", None).await, client(&network, "ann", Some("phone")).await);
        let mut bob = client(&network, "bob", None).await;
        let receipt = post(&network, "ann", "hello");
        assert_eq!((next(&mut ann).await, next(&mut other).await), ("hello".to_owned(), "hello".to_owned()));
        let outcomes = receipt.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (2, 2), "{outcomes:?}");
        nothing_for(&mut bob).await;
    });
}

/// What was missed comes in order, and before what is new, however much it is.
#[test]
fn what_was_missed_comes_before_what_is_new() {
    testing::run(async {
        let network = alone().await;
        let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        for text in &expected[..150] {
            stored(&network, "ann", text).await;
        }
        let mut ann = client(&network, "ann", None).await;
        let mut got = next_of(&mut ann, 3).await;
        let receipts: Vec<_> = expected[150..].iter().map(|text| post(&network, "ann", text)).collect();
        got.extend(next_of(&mut ann, 197).await);
        assert_eq!(got, expected);
        for receipt in receipts {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        }
    });
}

/// Another server over the same store has what the first one was given, and not again what was handled there.
#[test]
fn a_mailbox_outlives_its_server() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let first = with_store(broker.engine()).await;
        let mut ann = client(&first, "ann", None).await;
        for text in ["1", "2"] {
            stored(&first, "ann", text).await;
        }
        assert_eq!(next_of(&mut ann, 2).await, ["1", "2"]);
        until_letters(&first, "ann", 0).await;
        ann.client.close();
        for text in ["3", "4"] {
            stored(&first, "ann", text).await;
        }
        first.server().shutdown(Duration::from_secs(1)).await;
        drop(first);

        let second = with_store(broker.engine()).await;
        let mut ann = client(&second, "ann", None).await;
        assert_eq!(next_of(&mut ann, 2).await, ["3", "4"]);
        nothing_for(&mut ann).await;
    });
}

/// A client that comes back to a session of the same server goes on where it was.
#[test]
fn a_lost_connection_loses_and_doubles_nothing() {
    testing::run(async {
        let network = alone().await;
        let mut ann = client(&network, "ann", None).await;
        ann.wire.cut_after_push(7);
        let receipts: Vec<_> = (0..40).map(|number| post(&network, "ann", &number.to_string())).collect();
        let got = next_of(&mut ann, 40).await;
        assert_eq!(got, (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
        for receipt in receipts {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        }
        nothing_for(&mut ann).await;
        assert_eq!(ann.wire.connections(), 2);
    });
}

/// A full mailbox refuses at once, and nothing is sent; what others have is not touched.
#[test]
fn a_full_mailbox_refuses() {
    testing::run(async {
        let limits = EngineLimits::new(Level::Memory).mailbox_entries_max(3);
        let network = with_store(MemoryBroker::with_limits(limits).engine()).await;
        for text in ["1", "2", "3"] {
            stored(&network, "ann", text).await;
        }
        let receipt = network.server().push(&Target::users(["ann", "bob"]), &letter("4")).expect("there is a store");
        let error = receipt.stored().await.expect_err("one is full");
        assert_eq!(error.failed, [(Log::Mailbox("ann".to_owned()), AppendError::Full)]);
        assert_eq!(error.stored[0].log, Log::Mailbox("bob".to_owned()));
        let (mut ann, mut bob) = (client(&network, "ann", None).await, client(&network, "bob", None).await);
        assert_eq!(next_of(&mut ann, 3).await, ["1", "2", "3"]);
        assert_eq!(next(&mut bob).await, "4");
        nothing_for(&mut ann).await;
        stored(&network, "ann", "5").await;
        assert_eq!(next(&mut ann).await, "5");
    });
}

/// What the store does not take is an error, and not sent.
#[test]
fn a_store_that_is_down_is_said() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let network = with_store(broker.engine()).await;
        let mut ann = client(&network, "ann", None).await;
        broker.faults().register_up(false);
        let error = post(&network, "ann", "lost").stored().await.expect_err("it is down");
        assert_eq!(error.failed, [(Log::Mailbox("ann".to_owned()), AppendError::Down)]);
        broker.faults().register_up(true);
        stored(&network, "ann", "kept").await;
        assert_eq!(next(&mut ann).await, "kept");
        nothing_for(&mut ann).await;
    });
}

/// A reader goes on when the store does, and passes nothing over.
#[test]
fn a_reader_waits_for_its_store() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let network = with_store(broker.engine()).await;
        for text in ["1", "2"] {
            stored(&network, "ann", text).await;
        }
        broker.faults().register_up(false);
        let mut ann = client(&network, "ann", None).await;
        nothing_for(&mut ann).await;
        broker.faults().register_up(true);
        assert_eq!(next_of(&mut ann, 2).await, ["1", "2"]);
        broker.faults().register_up(false);
        tokio::time::sleep(Duration::from_secs(30)).await;
        broker.faults().register_up(true);
        until_letters(&network, "ann", 0).await;
    });
}

/// A store that lost its data begins anew: what comes then arrives, also to those who were there before.
#[test]
fn a_store_that_lost_its_data_begins_anew() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let network = with_store(broker.engine()).await;
        let mut ann = client(&network, "ann", Some("phone")).await;
        for text in ["1", "2", "3"] {
            stored(&network, "ann", text).await;
        }
        assert_eq!(next_of(&mut ann, 3).await, ["1", "2", "3"]);
        until_letters(&network, "ann", 0).await;
        broker.faults().wipe();
        for text in ["4", "5"] {
            stored(&network, "ann", text).await;
        }
        assert_eq!(next_of(&mut ann, 2).await, ["4", "5"]);
        nothing_for(&mut ann).await;
    });
}

/// Of several with one key the first is kept; the key of one user says nothing of another one.
#[test]
fn a_key_is_kept_once_for_each_user() {
    testing::run(async {
        let network = alone().await;
        let push = letter("paid").idempotency_key("order-17").expect("a key");
        let both = Target::users(["ann", "bob", "ann"]);
        let first = network.server().push(&both, &push).expect("there is a store").stored().await.expect("room");
        let again = network.server().push(&both, &push).expect("there is a store").stored().await.expect("room");
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|kept| !kept.repeated) && again.iter().all(|kept| kept.repeated));
        assert_eq!(first[0].position, again[0].position);
        for user in ["ann", "bob"] {
            let mut client = client(&network, user, None).await;
            assert_eq!(next(&mut client).await, "paid");
            nothing_for(&mut client).await;
        }
    });
}

/// A letter whose time is over is handed to nobody.
#[test]
fn a_letter_ends_with_its_time() {
    testing::run(async {
        let network = alone().await;
        stored(&network, "ann", "short").await;
        let long = letter("long").class(Class::Durable { ttl: TTL * 2 });
        network.server().push(&Target::user("ann"), &long).expect("a store").stored().await.expect("room");
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
        let mut ann = client(&network, "ann", None).await;
        assert_eq!(next(&mut ann).await, "long");
        nothing_for(&mut ann).await;
    });
}

/// What cannot be durable is refused by name, and nothing is sent.
#[test]
fn what_cannot_be_durable_is_refused() {
    testing::run(async {
        let refused = |outcome: Result<bothways::Receipt, SendError>| match outcome {
            Err(SendError::Push(PushError::NotDurable(why))) => why,
            other => panic!("{other:?}"),
        };
        let without = network(builder().build()).await;
        assert_eq!(refused(without.server().push(&Target::user("ann"), &letter("x"))), NotDurable::NoStore);
        assert!(without.server().mail().is_none());

        let options = MailboxOptions::new().ttl_max(TTL);
        let server = builder().store(MemoryBroker::new().engine()).mailboxes(options).build();
        let network = network(server).await;
        let ann = client(&network, "ann", None).await;
        let session = network.server().sessions(&Target::user("ann")).expect("no topic").remove(0);
        for target in [
            Target::everyone(),
            Target::session(session.id()),
            Target::subscribers_of("news"),
            Target::user("ann").except(session.id()),
            Target::user("ann").only_labelled("a", "b"),
        ] {
            assert_eq!(refused(network.server().push(&target, &letter("x"))), NotDurable::Target, "{target:?}");
        }
        assert_eq!(refused(network.server().publish("news", &letter("x"))), NotDurable::Target);
        assert!(matches!(session.push(&letter("x")), Err(PushError::NotDurable(NotDurable::Target))));
        let waited = session.push_within(Duration::from_secs(1), &letter("x")).await;
        assert!(matches!(waited, Err(PushError::NotDurable(NotDurable::Target))));
        for ttl in [Duration::ZERO, TTL + Duration::from_millis(1)] {
            let push = Push::new("Mail", "New", "x").class(Class::Durable { ttl });
            let why = refused(network.server().push(&Target::user("ann"), &push));
            assert_eq!(why, NotDurable::TimeToLive(TTL));
        }
        assert_eq!(refused(network.server().push(&Target::user(""), &letter("x"))), NotDurable::User);
        let long = "x".repeat(257);
        assert_eq!(refused(network.server().push(&Target::user(long), &letter("x"))), NotDurable::User);
        let nobody = network.server().push(&Target::users(Vec::<String>::new()), &letter("x")).expect("nobody");
        assert_eq!(nobody.stored().await, Ok(Vec::new()));
        assert_eq!(session.waiting(), (0, 0));
        drop(ann);
    });
}

/// A plain client cannot say that it has handled a letter: it gets none, and the letter stays.
#[test]
fn a_plain_client_takes_no_letter_away() {
    testing::run(async {
        let network = alone().await;
        let plain = ClientOptions::new().auth("ann").negotiate(false);
        let mut plain = network.client(plain).await.expect("the server listens");
        let error = plain.client.call::<()>("No", "Such", &()).await;
        error.expect_err("there is no such service");
        let only_calls = bothways::Client::connect(network.address(), ClientOptions::new().auth("ann")).await;
        let only_calls = only_calls.expect("the server listens");
        only_calls.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        stored(&network, "ann", "hello").await;
        nothing_for(&mut plain).await;
        let mut ann = client(&network, "ann", None).await;
        assert_eq!(next(&mut ann).await, "hello");
    });
}

/// A session that is bound to its user later gets the mail then; one that is bound to another user gets that one's.
#[test]
fn the_mail_follows_the_user() {
    testing::run(async {
        let server = Server::builder()
            .store(MemoryBroker::new().engine())
            .handler("Users", "Login", |request: bothways::Request| async move {
                let name: String = request.decode().expect("a name");
                request.session().expect("the client is there").bind_user(&name);
                bothways::Reply::encode(&(), request.serialize_type())
            })
            .build();
        let network = network(server).await;
        for user in ["ann", "bob"] {
            stored(&network, user, user).await;
        }
        let mut client = network.client(ClientOptions::new()).await.expect("the server listens");
        client.welcomed().await;
        nothing_for(&mut client).await;
        for user in ["ann", "bob"] {
            client.client.call::<()>("Users", "Login", user).await.expect("it is let in");
            assert_eq!(next(&mut client).await, user);
        }
        stored(&network, "ann", "more").await;
        nothing_for(&mut client).await;
        stored(&network, "bob", "more").await;
        assert_eq!(next(&mut client).await, "more");
    });
}

/// What waits for the store has a bound.
#[test]
fn what_waits_for_the_store_has_a_bound() {
    testing::run(async {
        let network = alone().await;
        let large = Push::new("Mail", "New", vec![0; 900 << 10]).class(Class::Durable { ttl: TTL });
        let push = || network.server().push(&Target::user("ann"), &large);
        let mut receipts = Vec::new();
        let error = loop {
            match push() {
                Ok(receipt) => receipts.push(receipt),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SendError::Push(PushError::Full { .. })), "{error}");
        assert_eq!(receipts.len(), (64 << 20) / (900 << 10));
        for receipt in receipts {
            receipt.stored().await.expect("there is room");
        }
        push().expect("there is room again").stored().await.expect("there is room");
        let limits = MemoryBroker::new().engine().limits();
        let larger = Push::new("Mail", "New", vec![0; limits.message_bytes_max]).class(Class::Durable { ttl: TTL });
        let receipt = network.server().push(&Target::user("ann"), &larger).expect("the server would send it");
        let error = receipt.stored().await.expect_err("the store does not take it");
        assert_eq!(error.failed[0].1, AppendError::TooLarge);
    });
}
