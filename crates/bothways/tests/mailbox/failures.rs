//! Letters that a device does not handle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Class, Client, ClientOptions, Push, Router, Stage, Target,
    session::{Failure, MailboxOptions},
    testing,
};
use tokio::time::Instant;

use crate::support::{TTL, client, next, nothing_for, post, stored, until_letters, with_options};

/// A letter whose handler fails comes again with longer and longer waits, as often as it may, while others go on. Then
/// its receipt says so, and it is where an operator finds it, sends it again or deletes it.
#[test]
fn what_fails_too_often_is_with_the_dead_letters() {
    testing::run(async {
        let network = with_options(MailboxOptions::new()).await;
        let mut ann = client(&network, "ann", Some("phone")).await;
        let (bad, good) = (post(&network, "ann", "bad"), post(&network, "ann", "good"));
        let (began, mut tries) = (Instant::now(), Vec::new());
        let mut got_good = 0;
        while tries.len() < 5 {
            let message = ann.messages.next().await.expect("the client is open");
            match &message.payload().expect("not packed")[..] {
                b"bad" => {
                    tries.push(began.elapsed().as_secs());
                    message.fail("it is bad");
                }
                _ => got_good += 1,
            }
        }
        // A second, two, four and eight after the failure before.
        assert_eq!((tries, got_good), (vec![0, 1, 3, 7, 15], 1));
        assert_eq!(bad.handled().await.at(Stage::Failed(Failure::Error)), 1);
        assert_eq!(good.handled().await.at(Stage::Handled), 1);
        nothing_for(&mut ann).await;
        until_letters(&network, "ann", 0).await;

        let mail = network.server().mail().expect("a store");
        let listed = mail.with_dead_letters("", 10).await.expect("it works");
        assert_eq!((listed.len(), &*listed[0].user, listed[0].letters), (1, "ann", 1));
        let dead = mail.dead_letters("ann", 0, 10).await.expect("it works").remove(0);
        assert_eq!((&*dead.device, dead.deliveries, &*dead.why), ("phone", 5, "its handler failed"));
        assert_eq!((&*dead.letter.service_path, &*dead.letter.service_method, dead.letter.bytes), ("Mail", "New", 3));

        let place = dead.letter.place;
        assert_eq!(mail.send_again("ann", place).await, Ok(true));
        assert_eq!(mail.send_again("ann", place).await, Ok(false), "it is dead no more");
        assert_eq!(next(&mut ann).await, "bad");
        nothing_for(&mut ann).await;
        assert!(mail.dead_letters("ann", 0, 10).await.expect("it works").is_empty());
        assert!(mail.with_dead_letters("", 10).await.expect("it works").is_empty());
    });
}

/// A dead letter can be deleted, and a letter that waits too: the device that comes later does not get it.
#[test]
fn an_operator_deletes_letters() {
    testing::run(async {
        let network = with_options(MailboxOptions::new().deliveries_max(1)).await;
        let mail = network.server().mail().expect("a store");
        for text in ["1", "2", "3"] {
            stored(&network, "ann", text).await;
        }
        let letters = mail.letters("ann", 0, 10).await.expect("it works");
        assert_eq!(mail.delete("ann", letters[1].place).await, Ok(true));
        assert_eq!(mail.delete("ann", letters[1].place).await, Ok(false));
        assert_eq!(mail.mailboxes("", 10).await.expect("it works")[0].letters, 2);
        let mut ann = client(&network, "ann", None).await;
        assert_eq!(next(&mut ann).await, "1");
        let message = ann.messages.next().await.expect("the client is open");
        assert_eq!(message.payload().expect("not packed"), "3");
        message.fail("no");
        until_letters(&network, "ann", 0).await;
        let dead = mail.dead_letters("ann", 0, 10).await.expect("it works").remove(0);
        assert_eq!((dead.deliveries, &*dead.device), (1, "default"));
        assert_eq!(mail.delete_dead_letter("ann", dead.letter.place).await, Ok(true));
        assert_eq!(mail.delete_dead_letter("ann", dead.letter.place).await, Ok(false));
        assert_eq!(mail.send_again("ann", dead.letter.place).await, Ok(false));
    });
}

/// A handler that fails at first and then does not has the letter once more, and nobody else has.
#[test]
fn a_handler_that_recovers_has_handled_it() {
    testing::run(async {
        let network = with_options(MailboxOptions::new()).await;
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let handlers = Router::new().function("Mail", "New", move |_: String| {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move { if run < 2 { Err("not now") } else { Ok(()) } }
        });
        let wire = network.wire().await.expect("it is free");
        let _client = Client::with_handlers(wire.address(), ClientOptions::new().auth("ann"), handlers)
            .await
            .expect("it listens");
        let push = Push::of("Mail", "New", "again").expect("a text").class(Class::Durable { ttl: TTL });
        let receipt = network.server().push(&Target::user("ann"), &push).expect("a store");
        receipt.stored().await.expect("there is room");
        until_letters(&network, "ann", 0).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        let outcomes = receipt.handled().await;
        assert_eq!(outcomes.at(Stage::Handled), outcomes.targets());
    });
}

/// The server is gone before it has noted what its client has handled: the client, which lives on, has it once.
#[test]
fn what_a_client_has_handled_it_does_not_handle_again() {
    testing::run(async {
        use bothways::cluster::memory::MemoryBroker;

        let broker = MemoryBroker::new();
        let first = crate::support::with_store(broker.engine()).await;
        let address = first.address().to_owned();
        let mut ann = client(&first, "ann", None).await;
        for text in ["1", "2", "3"] {
            stored(&first, "ann", text).await;
        }
        let message = ann.messages.next().await.expect("the client is open");
        // From here on nothing is noted.
        broker.faults().register_up(false);
        drop(message);
        assert_eq!([next(&mut ann).await, next(&mut ann).await], ["2", "3"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        first.server().shutdown(Duration::ZERO).await;
        drop(first);

        broker.faults().register_up(true);
        let server = crate::support::builder().store(broker.engine()).build();
        let _listening = server.listen(&address).await.expect("the name is free again");
        server
            .push(&bothways::Target::user("ann"), &crate::support::letter("4"))
            .expect("a store")
            .stored()
            .await
            .expect("room");
        assert_eq!(next(&mut ann).await, "4", "and none of the others");
        let mail = server.mail().expect("a store");
        for _ in 0..1000 {
            if mail.letters("ann", 0, 10).await.expect("it works").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("what it had handled is not noted");
    });
}
