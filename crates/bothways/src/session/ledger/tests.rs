//! Every rule of the ledger as a sentence, then all of them at once: any history against a client that
//! remembers, and a specification that only keeps lists.

use std::collections::VecDeque;

use super::*;
use crate::session::{
    SessionId,
    keys::KeyHash,
    push::{Encoded, Push},
    receipt::{DropReason, Failure, Receipt, Stage},
};

const NOW: Duration = Duration::ZERO;

fn bounds() -> Bounds {
    Bounds {
        fire_messages: 3,
        fire_bytes: 64,
        latest_keys: 2,
        latest_bytes: usize::MAX,
        tracked_messages: 4,
        tracked_bytes: 64,
        idempotency_keys: 3,
        user_bytes: usize::MAX,
    }
}

fn keyed(key: &str, plain: &'static str) -> Option<Arc<Keyed>> {
    let hash = KeyHash::of(key).expect("short");
    Some(Arc::new(Keyed { hash: Some(hash), plain: Bytes::from_static(plain.as_bytes()) }))
}

/// Takes a push with this key in, and gives its receipt.
fn push_keyed(ledger: &mut Ledger, class: Class, text: &str, key: &str) -> Receipt {
    let (mut entry, receipt) = entry(class, text);
    entry.keyed = keyed(key, "plain");
    ledger.push(entry, NOW);
    receipt
}

impl Ledger {
    /// The oldest `count` of what `next` gave to the present connection are with the kernel.
    fn written(&mut self, count: usize) {
        if let Some(book) = self.book_mut() {
            book.written(count, NOW);
        }
    }

    fn is_full_for(&self, len: usize) -> bool {
        self.book().is_some_and(|book| book.is_full_for(len))
    }
}

fn ledger(confirms: bool) -> Ledger {
    let mut ledger = Ledger::new(bounds());
    ledger.connect(confirms);
    ledger
}

fn entry(class: Class, text: &str) -> (Entry, Receipt) {
    let receipt = Receipt::new();
    let (priority, frame) = (Priority::Normal, Bytes::copy_from_slice(text.as_bytes()));
    (
        Entry {
            class,
            priority,
            frame,
            keyed: None,
            expires: None,
            origin: Origin::Push,
            ticket: receipt.ticket(SessionId(7)),
        },
        receipt,
    )
}

/// Takes a push in, and gives its receipt.
fn push(ledger: &mut Ledger, class: Class, text: &str) -> Receipt {
    let (entry, receipt) = entry(class, text);
    ledger.push(entry, NOW);
    receipt
}

fn push_at(ledger: &mut Ledger, priority: Priority, class: Class, text: &str) -> Receipt {
    let (mut entry, receipt) = entry(class, text);
    entry.priority = priority;
    ledger.push(entry, NOW);
    receipt
}

fn latest(key: &str) -> Class {
    Class::Latest(key.to_owned())
}

/// All that goes on the wire now: texts and their offsets; a gap is its number.
fn all(ledger: &mut Ledger) -> Vec<(String, u64)> {
    std::iter::from_fn(|| ledger.next(NOW))
        .map(|next| match next {
            Next::Frame { frame, offset } => (String::from_utf8(frame.to_vec()).expect("a text"), offset),
            Next::Skip { offset } => ("skip".to_owned(), offset),
            Next::Gap { missed } => (format!("gap {missed}"), 0),
        })
        .collect()
}

fn texts(ledger: &mut Ledger) -> Vec<String> {
    all(ledger).into_iter().map(|(text, _)| text).collect()
}

/// The one stage at which a push to one session stands.
fn stage(receipt: &Receipt) -> Stage {
    let outcomes = receipt.outcomes();
    assert_eq!(outcomes.targets(), 1);
    outcomes.iter().next().expect("it is somewhere").0
}

#[test]
fn offsets_have_no_holes_whatever_is_not_tracked() {
    let mut ledger = ledger(true);
    push(&mut ledger, Class::Tracked, "a");
    push(&mut ledger, Class::Fire, "b");
    push(&mut ledger, latest("k"), "c");
    push(&mut ledger, Class::Tracked, "d");
    let expected = [("a", 1), ("b", 0), ("c", 2), ("d", 3)];
    assert_eq!(all(&mut ledger), expected.map(|(text, offset)| (text.to_owned(), offset)));
    assert_eq!(ledger.last_offset(), 3);
}

#[test]
fn the_higher_priority_goes_first_and_the_older_within_one() {
    let mut ledger = ledger(true);
    push_at(&mut ledger, Priority::Bulk, Class::Fire, "bulk");
    push_at(&mut ledger, Priority::Normal, Class::Tracked, "normal 1");
    push_at(&mut ledger, Priority::High, Class::Tracked, "high");
    push_at(&mut ledger, Priority::Normal, Class::Fire, "normal 2");
    assert_eq!(texts(&mut ledger), ["high", "normal 1", "normal 2", "bulk"]);
}

/// It tells when what was put behind the ledger has gone.
fn put_behind(ledger: &mut Ledger) -> std::sync::Weak<&'static str> {
    let behind = Arc::new("a reply");
    let gone = Arc::downgrade(&behind);
    ledger.put_behind(behind);
    gone
}

#[test]
fn what_is_put_behind_goes_when_all_before_it_has_gone() {
    let mut ledger = ledger(true);
    assert_eq!(put_behind(&mut ledger).strong_count(), 0, "nothing is before it");
    push_at(&mut ledger, Priority::Normal, Class::Tracked, "a");
    push_at(&mut ledger, Priority::Bulk, Class::Tracked, "b");
    let behind = put_behind(&mut ledger);
    for text in ["a", "b"] {
        assert_eq!(behind.strong_count().min(1), 1);
        let next = ledger.next(NOW).expect("it waits");
        assert!(matches!(next, Next::Frame { frame, .. } if frame == text.as_bytes()));
    }
    assert!(ledger.has_next(), "it is still to be told");
    assert_eq!((ledger.next(NOW), behind.strong_count()), (None, 0));
    assert!(!ledger.has_next());
}

#[test]
fn what_is_pushed_later_does_not_hold_up_what_was_put_behind() {
    const EARLIER: [&str; 3] = ["a", "b", "c"];
    let mut ledger = ledger(false);
    let _receipts = EARLIER.map(|text| push_at(&mut ledger, Priority::Bulk, Class::Tracked, text));
    let behind = put_behind(&mut ledger);
    let mut sent = 0;
    while 0 < behind.strong_count() {
        push_at(&mut ledger, Priority::High, Class::Fire, "urgent");
        ledger.next(NOW).expect("it waits");
        sent += 1;
        assert!(sent <= 2 * EARLIER.len() + 2, "the urgent ones go first for ever");
    }
}

#[test]
fn what_is_put_behind_goes_with_the_connection_and_the_session() {
    let mut ledger = ledger(true);
    push(&mut ledger, Class::Tracked, "a");
    let behind = put_behind(&mut ledger);
    ledger.disconnect(0);
    assert_eq!((behind.strong_count(), put_behind(&mut ledger).strong_count()), (0, 0));
    ledger.connect(true);
    let behind = put_behind(&mut ledger);
    assert_eq!(behind.strong_count(), 1);
    drop(ledger);
    assert_eq!(behind.strong_count(), 0);
}

#[test]
fn values_that_wait_for_the_client_hold_up_nothing() {
    let mut ledger = ledger(true);
    for text in ["a", "b", "c", "d"] {
        push(&mut ledger, Class::Tracked, text);
    }
    texts(&mut ledger);
    push(&mut ledger, latest("k"), "value");
    let behind = put_behind(&mut ledger);
    assert_eq!((ledger.next(NOW), behind.strong_count()), (None, 0), "it waits for what is handled");
}

#[test]
fn what_overflows_is_the_oldest_fire_of_the_lowest_priority_and_the_client_is_told_first() {
    let mut ledger = ledger(true);
    let kept = push_at(&mut ledger, Priority::High, Class::Fire, "high");
    let dropped = push_at(&mut ledger, Priority::Bulk, Class::Fire, "bulk 1");
    push_at(&mut ledger, Priority::Bulk, Class::Fire, "bulk 2");
    push_at(&mut ledger, Priority::Normal, Class::Fire, "normal");
    assert_eq!((stage(&dropped), stage(&kept)), (Stage::Dropped(DropReason::Full), Stage::Queued));
    assert_eq!(texts(&mut ledger), ["gap 1", "high", "normal", "bulk 2"]);
    assert_eq!(ledger.dropped(), 1);
}

#[test]
fn a_single_push_is_taken_however_large() {
    let mut ledger = ledger(true);
    let large = "x".repeat(1000);
    let (fire, tracked) = (push(&mut ledger, Class::Fire, &large), push(&mut ledger, Class::Tracked, &large));
    assert_eq!((stage(&fire), stage(&tracked)), (Stage::Queued, Stage::Queued));
    let refused = push(&mut ledger, Class::Tracked, "x");
    assert_eq!(stage(&refused), Stage::Dropped(DropReason::Full), "it does not fit beside the large one");
}

/// As many and as much as a bound says, and no more; of values the bytes of what is sent are free again.
#[test]
fn a_bound_is_reached_before_it_refuses() {
    let half = "x".repeat(32);
    for class in [Class::Fire, Class::Tracked] {
        let mut ledger = ledger(true);
        let receipts = [push(&mut ledger, class.clone(), &half), push(&mut ledger, class.clone(), &half)];
        assert!(receipts.iter().all(|receipt| stage(receipt) == Stage::Queued), "{class:?}");
        push(&mut ledger, class, "x");
        assert_eq!(ledger.dropped(), 1);
    }
    let mut ledger = Ledger::new(Bounds { latest_bytes: 33 + 33, latest_keys: 9, ..bounds() });
    ledger.connect(true);
    for _ in 0..3 {
        let values = ["a", "b", "c"].map(|key| stage(&push(&mut ledger, latest(key), &half)));
        assert_eq!(values, [Stage::Queued, Stage::Queued, Stage::Dropped(DropReason::Full)]);
        let sent = texts(&mut ledger);
        assert_eq!(sent.iter().filter(|text| **text == half).count(), 2, "{sent:?}");
        assert!(ledger.ack(ledger.last_offset(), ledger.last_offset(), NOW));
    }
    assert_eq!(stage(&push(&mut ledger, latest("a"), &"x".repeat(1000))), Stage::Queued, "alone, however large");
}

#[test]
fn room_is_claimed_up_to_the_bound() {
    let claims = |messages, bytes| ledger(true).claim_room(messages, bytes);
    assert!(claims(4, 64) && claims(0, 0) && claims(1, 1000), "one alone, however large");
    assert!(!claims(5, 5) && !claims(2, 65));
    let mut ledger = ledger(true);
    push(&mut ledger, Class::Tracked, "1234");
    assert!(ledger.claim_room(3, 60));
    assert!(!ledger.claim_room(4, 4) && !ledger.claim_room(1, 61));
}

#[test]
fn a_full_log_refuses_until_something_is_handled() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3", "4"] {
        push(&mut ledger, Class::Tracked, text);
    }
    let refused = push(&mut ledger, Class::Tracked, "5");
    assert_eq!(stage(&refused), Stage::Dropped(DropReason::Full));
    assert_eq!(texts(&mut ledger), ["gap 1", "1", "2", "3", "4"]);
    ledger.written(5);
    assert!(ledger.ack(4, 0, NOW));
    assert!(ledger.is_full_for(1), "received is not handled");
    assert!(ledger.ack(4, 1, NOW));
    assert_eq!(stage(&push(&mut ledger, Class::Tracked, "6")), Stage::Queued);
}

#[test]
fn a_newer_value_takes_the_place_of_the_one_that_waits() {
    let mut ledger = ledger(true);
    let first = push(&mut ledger, latest("k"), "1");
    push(&mut ledger, Class::Tracked, "between");
    push(&mut ledger, latest("k"), "2");
    assert_eq!(stage(&first), Stage::Superseded);
    assert_eq!(texts(&mut ledger), ["2", "between"]);
    let third = push(&mut ledger, latest("k"), "3");
    assert_eq!((stage(&third), texts(&mut ledger)), (Stage::Queued, vec!["3".to_owned()]), "2 is on its way already");
}

#[test]
fn a_key_too_many_is_refused() {
    let mut ledger = ledger(true);
    push(&mut ledger, latest("a"), "1");
    push(&mut ledger, latest("b"), "2");
    assert_eq!(stage(&push(&mut ledger, latest("c"), "3")), Stage::Dropped(DropReason::Full));
    assert_eq!(stage(&push(&mut ledger, latest("a"), "4")), Stage::Queued);
}

/// And nothing says that there is more to send: a caller that asks as long as there is would never stop.
#[test]
fn values_wait_for_a_client_that_is_behind() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3", "4"] {
        push(&mut ledger, Class::Tracked, text);
    }
    push(&mut ledger, latest("k"), "old");
    assert_eq!(texts(&mut ledger), ["1", "2", "3", "4"]);
    assert!(!ledger.has_next());
    push(&mut ledger, latest("k"), "new");
    ledger.written(4);
    assert!(ledger.ack(1, 1, NOW));
    assert!(ledger.has_next());
    assert_eq!(texts(&mut ledger), ["new"]);
}

/// What waits is counted of each class, whether it was sent or not: messages, and their bytes.
#[test]
fn what_waits_is_counted_of_each_class() {
    let mut ledger = ledger(true);
    push(&mut ledger, Class::Tracked, "1");
    push(&mut ledger, latest("a"), "22");
    assert_eq!(texts(&mut ledger), ["1", "22"]);
    push(&mut ledger, Class::Tracked, "333");
    push(&mut ledger, latest("b"), "4444");
    push(&mut ledger, Class::Fire, "55555");
    assert_eq!(ledger.waiting(), (5, 15));
    assert!(ledger.ack(2, 2, NOW));
    assert_eq!(ledger.waiting(), (3, 12));
}

/// What a burst took is given back once it is over, and what an ordinary queue has is kept.
#[test]
fn what_a_burst_took_is_given_back_when_it_is_over() {
    for (capacity, waiting, kept) in [(1000, 0, false), (1000, 1, true), (16, 0, true)] {
        let mut queue = VecDeque::with_capacity(capacity);
        queue.extend(std::iter::repeat_n(7_u64, waiting));
        book::give_back(&mut queue);
        assert_eq!(capacity <= queue.capacity(), kept, "{waiting} in {capacity}");
    }
}

/// A ledger that was never written to has nothing to send again. A client that comes back to it is connected when it is
/// welcomed, and not before; one that claims what it never had changes nothing. A queue that a burst has made no larger
/// than may be kept is kept.
#[test]
fn what_is_small_is_not_given_back() {
    for (capacity, kept) in [(64, 64), (65, 0)] {
        let mut queue = VecDeque::<u8>::with_capacity(capacity);
        assert_eq!(queue.capacity(), capacity, "as much as was asked for");
        book::give_back(&mut queue);
        assert_eq!(queue.capacity(), kept);
        let mut queue = VecDeque::<u8>::with_capacity(capacity);
        queue.push_back(1);
        book::give_back(&mut queue);
        assert_eq!(queue.len(), 1);
    }
}

/// Values may fill their bytes, and the client is behind when they are more: then no other follows.
#[test]
fn values_are_behind_beyond_their_bytes() {
    for (bytes, sent) in [(2, 3), (3, 4)] {
        let bounds = Bounds { latest_keys: 100, latest_bytes: bytes, ..bounds() };
        let mut ledger = Ledger::new(bounds);
        ledger.connect(true);
        let mut went = 0;
        for number in 0..10 {
            push(&mut ledger, latest(&number.to_string()), "x");
            went += texts(&mut ledger).into_iter().filter(|text| text == "x").count();
        }
        assert_eq!(went, sent, "{bytes}");
    }
}

#[test]
fn who_comes_back_to_a_blank_ledger_is_not_connected_yet() {
    let is_connected = |ledger: &mut Ledger| stage(&push(ledger, Class::Fire, "now")) == Stage::Queued;
    let mut blank = ledger(true);
    assert!(blank.resume(0, None, NOW) && !is_connected(&mut blank));
    let mut blank = ledger(true);
    assert!(!blank.resume(1, None, NOW) && is_connected(&mut blank));
    let mut blank = Ledger::new(bounds());
    assert!(!blank.resume(0, Some(1), NOW) && !is_connected(&mut blank));
}

/// A burst of values leaves one by one, and the room that it took is given back behind the last.
#[test]
fn a_burst_of_values_leaves_one_by_one() {
    let mut ledger = Ledger::new(Bounds { latest_keys: 1000, ..bounds() });
    ledger.connect(true);
    let names: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| _ = push(&mut ledger, latest(name), name));
    assert_eq!(texts(&mut ledger), names);
}

/// Acknowledgements are awaited of what was sent, and of nothing else.
#[test]
fn acknowledgements_are_awaited_of_what_was_sent() {
    let mut ledger = ledger(true);
    assert!(!ledger.awaits_acks());
    push(&mut ledger, Class::Tracked, "1");
    assert!(!ledger.awaits_acks(), "it waits");
    assert_eq!(texts(&mut ledger), ["1"]);
    assert!(ledger.awaits_acks());
    assert!(ledger.ack(1, 1, NOW) && !ledger.awaits_acks());
}

/// What waits makes room at the moment at which it expires, and also if nobody looks before long after.
#[test]
fn what_expires_makes_room_from_that_moment_on() {
    let seconds = Duration::from_secs;
    for (now, left) in [(seconds(9), 2), (seconds(10), 1), (seconds(15), 1), (seconds(20), 0), (seconds(99), 0)] {
        let mut ledger = ledger(true);
        for expires in [20, 10] {
            let (mut entry, _receipt) = entry(Class::Tracked, "x");
            entry.expires = Some(seconds(expires));
            ledger.push(entry, NOW);
        }
        ledger.expire_waiting(now);
        assert_eq!(ledger.waiting().0, left, "{now:?}");
    }
}

/// Each class has its own bound, and neither takes the places of the other.
#[test]
fn values_that_were_sent_take_no_places_of_tracked_pushes() {
    let mut ledger = Ledger::new(Bounds { latest_keys: 6, ..bounds() });
    ledger.connect(true);
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(stage(&push(&mut ledger, latest(key), "value")), Stage::Queued);
    }
    assert_eq!(all(&mut ledger).len(), 6);
    assert_eq!((ledger.room(), ledger.waiting()), ((4, 64), (6, 30)));
    let newer = push(&mut ledger, latest("a"), "newer");
    assert!(!ledger.has_next(), "so many values are sent, and no more before one is handled");
    for text in ["1", "2", "3", "4"] {
        assert_eq!(stage(&push(&mut ledger, Class::Tracked, text)), Stage::Queued);
    }
    assert_eq!(stage(&push(&mut ledger, Class::Tracked, "5")), Stage::Dropped(DropReason::Full));
    assert_eq!(texts(&mut ledger), ["gap 1", "1", "2", "3", "4"]);
    assert!(ledger.ack(10, 10, NOW));
    assert_eq!(texts(&mut ledger), ["newer"]);
    assert!(ledger.ack(11, 11, NOW));
    assert_eq!((stage(&newer), ledger.waiting()), (Stage::Handled, (0, 0)));
}

#[test]
fn a_plain_client_gets_no_offsets_and_no_gap_and_confirms_nothing() {
    let mut ledger = ledger(false);
    let dropped = push(&mut ledger, Class::Fire, "0");
    for text in ["1", "2", "3"] {
        push(&mut ledger, Class::Fire, text);
    }
    let tracked = push(&mut ledger, Class::Tracked, "4");
    assert_eq!(stage(&dropped), Stage::Dropped(DropReason::Full));
    let expected = ["1", "2", "3", "4"].map(|text| (text.to_owned(), 0));
    assert_eq!(all(&mut ledger), expected);
    assert!(!ledger.has_next(), "a gap of which nobody is told is nothing to send");
    ledger.written(4);
    assert_eq!(stage(&tracked), Stage::PlainWritten);
    assert_eq!(ledger.waiting(), (0, 0));

    for text in ["1", "2", "3", "4"] {
        push(&mut ledger, Class::Tracked, text);
    }
    push_at(&mut ledger, Priority::High, latest("k"), "value");
    assert_eq!(texts(&mut ledger)[0], "value", "it has nothing to confirm, and is never behind");
}

#[test]
fn a_gap_alone_is_something_to_send() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3", "4"] {
        push(&mut ledger, Class::Tracked, text);
    }
    all(&mut ledger);
    push(&mut ledger, Class::Tracked, "5");
    assert!(ledger.has_next());
    assert_eq!(texts(&mut ledger), ["gap 1"]);
    assert!(!ledger.has_next());
}

#[test]
fn written_is_what_the_wire_took_first() {
    let mut ledger = ledger(true);
    let (a, b) = (push(&mut ledger, Class::Tracked, "a"), push(&mut ledger, Class::Fire, "b"));
    all(&mut ledger);
    ledger.written(1);
    assert_eq!((stage(&a), stage(&b)), (Stage::Written, Stage::Queued));
    ledger.written(9);
    assert_eq!(stage(&b), Stage::PlainWritten);
}

#[test]
fn what_was_never_sent_cannot_be_confirmed() {
    let mut ledger = ledger(true);
    let (a, b) = (push(&mut ledger, Class::Tracked, "a"), push(&mut ledger, Class::Tracked, "b"));
    ledger.next(NOW);
    assert!(!ledger.ack(2, 0, NOW));
    assert!(!ledger.ack(0, 2, NOW));
    assert!(!ledger.resume(2, None, NOW));
    assert_eq!((stage(&a), stage(&b)), (Stage::Queued, Stage::Queued));
    assert!(ledger.has_next(), "a false claim changes nothing");
}

#[test]
fn confirmations_only_go_on() {
    let mut ledger = ledger(true);
    let receipts = ["a", "b"].map(|text| push(&mut ledger, Class::Tracked, text));
    all(&mut ledger);
    assert!(ledger.ack(0, 1, NOW), "what is handled was received");
    assert!(ledger.ack(2, 0, NOW));
    assert!(ledger.ack(1, 1, NOW));
    assert_eq!(receipts.each_ref().map(stage), [Stage::Handled, Stage::Received]);
}

#[test]
fn what_is_not_handled_is_sent_again_before_anything_new() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3"] {
        push(&mut ledger, Class::Tracked, text);
    }
    ledger.next(NOW);
    ledger.next(NOW);
    ledger.disconnect(0);
    assert_eq!(ledger.next(NOW), None);
    push_at(&mut ledger, Priority::High, Class::Tracked, "new");
    assert!(ledger.resume(1, None, NOW));
    assert_eq!(ledger.next(NOW), None, "nothing goes before the welcome");
    ledger.connect(true);
    let expected = [("2", 2), ("new", 3), ("3", 4)].map(|(text, offset)| (text.to_owned(), offset));
    assert_eq!(all(&mut ledger), expected);
}

#[test]
fn what_the_client_has_received_is_not_sent_again() {
    let mut ledger = ledger(true);
    let receipts = ["1", "2", "3"].map(|text| push(&mut ledger, Class::Tracked, text));
    all(&mut ledger);
    assert!(ledger.resume(1, Some(2), NOW));
    ledger.connect(true);
    assert_eq!(receipts.each_ref().map(stage), [Stage::Handled, Stage::Received, Stage::Queued]);
    assert_eq!(ledger.unrepeated(), 1);
    assert_eq!(all(&mut ledger), [("3".to_owned(), 3)]);
    assert!(!ledger.resume(1, Some(4), NOW), "it was never sent");
    assert!(ledger.resume(1, Some(0), NOW), "what is handled was received");
    ledger.connect(true);
    assert_eq!(all(&mut ledger), [("2".to_owned(), 2), ("3".to_owned(), 3)]);
}

/// Acknowledgements may come between two that are sent again.
#[test]
fn what_is_handled_meanwhile_is_not_sent_again() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3"] {
        push(&mut ledger, Class::Tracked, text);
    }
    all(&mut ledger);
    assert!(ledger.resume(0, None, NOW));
    ledger.connect(true);
    ledger.next(NOW);
    assert!(ledger.ack(2, 2, NOW));
    assert!(ledger.has_next());
    assert_eq!(all(&mut ledger), [("3".to_owned(), 3)]);
    assert!(ledger.resume(2, None, NOW));
    ledger.connect(true);
    assert!(ledger.ack(3, 3, NOW));
    assert!(!ledger.has_next(), "nothing is left");
}

#[test]
fn what_expired_meanwhile_leaves_its_offset_behind() {
    let mut ledger = ledger(true);
    let second = Duration::from_secs(1);
    let mut receipts = Vec::new();
    for text in ["received", "expired", "lives"] {
        let (mut one, receipt) = entry(Class::Tracked, text);
        one.expires = (text != "lives").then_some(second);
        assert!(ledger.push(one, NOW));
        receipts.push(receipt);
    }
    all(&mut ledger);
    ledger.written(3);
    assert!(ledger.resume(0, Some(1), NOW));
    ledger.connect(true);
    let again: Vec<_> = std::iter::from_fn(|| ledger.next(second)).collect();
    assert_eq!(again, [Next::Skip { offset: 2 }, Next::Frame { frame: Bytes::from_static(b"lives"), offset: 3 }]);
    ledger.written(2);
    let stages: Vec<_> = receipts.iter().map(stage).collect();
    assert_eq!(stages, [Stage::Received, Stage::Expired, Stage::Written]);
    assert_eq!(ledger.waiting(), (3, "received".len() + "lives".len()), "its bytes are free, its place is not");

    // The notice may be lost with its connection, and its receipt stays what it is.
    assert!(ledger.resume(1, Some(1), NOW));
    ledger.connect(true);
    assert_eq!(ledger.next(NOW), Some(Next::Skip { offset: 2 }));
    assert!(ledger.ack(3, 3, NOW));
    assert_eq!((stage(&receipts[1]), ledger.waiting()), (Stage::Expired, (0, 0)));
}

/// It may have forgotten them with its process, and asks for them again.
#[test]
fn what_a_client_has_said_to_have_does_not_expire() {
    let mut ledger = ledger(true);
    let (mut one, receipt) = entry(Class::Tracked, "1");
    one.expires = Some(Duration::from_secs(1));
    assert!(ledger.push(one, NOW));
    all(&mut ledger);
    assert!(ledger.ack(1, 0, NOW));
    assert!(ledger.resume(0, Some(0), NOW));
    ledger.connect(true);
    let again = ledger.next(Duration::from_secs(2));
    assert_eq!(again, Some(Next::Frame { frame: Bytes::from_static(b"1"), offset: 1 }));
    assert_eq!(stage(&receipt), Stage::Received);
}

#[test]
fn a_client_that_does_not_know_of_skips_gets_what_was_sent_in_time() {
    let mut ledger = ledger(true);
    let (mut one, receipt) = entry(Class::Tracked, "1");
    one.expires = Some(Duration::from_secs(1));
    assert!(ledger.push(one, NOW));
    all(&mut ledger);
    assert!(ledger.resume(0, None, NOW));
    ledger.connect(true);
    let again = ledger.next(Duration::from_secs(2));
    assert_eq!(again, Some(Next::Frame { frame: Bytes::from_static(b"1"), offset: 1 }));
    assert_eq!(stage(&receipt), Stage::Queued);
}

#[test]
fn of_several_with_one_key_the_first_is_sent() {
    let mut ledger = ledger(true);
    let first = push_keyed(&mut ledger, Class::Tracked, "1", "k");
    let again = push_keyed(&mut ledger, Class::Tracked, "2", "k");
    assert_eq!((stage(&first), stage(&again)), (Stage::Queued, Stage::Queued));
    assert_eq!(all(&mut ledger), [("1".to_owned(), 1)]);
    ledger.written(1);
    assert_eq!(stage(&again), Stage::Written, "it stands where the first one stands");
    assert!(ledger.ack(1, 1, NOW));
    assert_eq!((stage(&first), stage(&again)), (Stage::Handled, Stage::Duplicate));
    assert_eq!(stage(&push_keyed(&mut ledger, Class::Fire, "3", "k")), Stage::Duplicate, "whatever its class");
    assert_eq!((ledger.waiting(), ledger.dropped()), ((0, 0), 0), "a repetition is no loss");
}

#[test]
fn what_was_not_sent_does_not_take_its_key() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3", "4"] {
        push(&mut ledger, Class::Tracked, text);
    }
    let refused = push_keyed(&mut ledger, Class::Tracked, "5", "k");
    assert_eq!(stage(&refused), Stage::Dropped(DropReason::Full));
    let dropped = push_keyed(&mut ledger, Class::Fire, "6", "k");
    for text in ["7", "8", "9"] {
        push(&mut ledger, Class::Fire, text);
    }
    assert_eq!(stage(&dropped), Stage::Dropped(DropReason::Full));
    let lost = push_keyed(&mut ledger, Class::Fire, "10", "k");
    all(&mut ledger);
    ledger.disconnect(0);
    assert_eq!(stage(&lost), Stage::Dropped(DropReason::Disconnected));

    let (mut brief, expired) = entry(latest("v"), "11");
    (brief.keyed, brief.expires) = (keyed("k", "plain"), Some(Duration::from_secs(1)));
    assert!(ledger.push(brief, NOW));
    assert_eq!(
        stage(&push_keyed(&mut ledger, latest("v"), "12", "k")),
        Stage::Queued,
        "as the first, which waits still"
    );
    assert_eq!(stage(&expired), Stage::Queued);
    assert!(ledger.resume(4, None, NOW));
    ledger.connect(true);
    assert_eq!(ledger.next(Duration::from_secs(1)), Some(Next::Gap { missed: 3 }));
    assert_eq!(ledger.next(Duration::from_secs(1)), None);
    assert_eq!(stage(&expired), Stage::Expired);
    assert_eq!(stage(&push_keyed(&mut ledger, Class::Tracked, "13", "k")), Stage::Queued);
}

#[test]
fn what_is_skipped_does_not_take_its_key_and_not_its_bytes() {
    let mut ledger = ledger(true);
    let account = Arc::new(Account::new(100));
    ledger.charge(true, Some(Arc::clone(&account)));
    let (mut brief, expired) = entry(Class::Tracked, "12345");
    (brief.keyed, brief.expires) = (keyed("k", "plain"), Some(Duration::from_secs(1)));
    assert!(ledger.push(brief, NOW));
    all(&mut ledger);
    assert_eq!((account.held_bytes(), ledger.waiting()), (10, (1, 10)), "with the form for a plain client");
    assert!(ledger.resume(0, Some(0), NOW));
    ledger.connect(true);
    assert_eq!(ledger.next(Duration::from_secs(1)), Some(Next::Skip { offset: 1 }));
    assert_eq!((stage(&expired), account.held_bytes()), (Stage::Expired, 0));
    assert_eq!(stage(&push_keyed(&mut ledger, Class::Tracked, "again", "k")), Stage::Queued);
}

/// A sender that tries again would put the old value in the place of the new one.
#[test]
fn a_value_that_was_superseded_is_not_repeated() {
    let mut ledger = ledger(true);
    let old = push_keyed(&mut ledger, latest("v"), "old", "k 1");
    push_keyed(&mut ledger, latest("v"), "new", "k 2");
    assert_eq!(stage(&old), Stage::Superseded);
    assert_eq!(stage(&push_keyed(&mut ledger, latest("v"), "old", "k 1")), Stage::Duplicate);
    assert_eq!(texts(&mut ledger), ["new"]);
}

#[test]
fn the_oldest_key_is_forgotten() {
    let mut ledger = ledger(true);
    for key in ["a", "b", "c", "d"] {
        push_keyed(&mut ledger, Class::Tracked, key, key);
    }
    assert_eq!(stage(&push_keyed(&mut ledger, latest("v"), "a", "a")), Stage::Queued);
    let again = push_keyed(&mut ledger, latest("v"), "d", "d");
    drop(ledger);
    assert_eq!(stage(&again), Stage::Dropped(DropReason::SessionEnded), "as the first one");
}

#[test]
fn a_plain_client_does_not_see_the_key() {
    let mut ledger = ledger(false);
    push_keyed(&mut ledger, Class::Tracked, "with its key", "k");
    assert_eq!(all(&mut ledger), [("plain".to_owned(), 0)]);
    ledger.written(1);
    let again = push_keyed(&mut ledger, Class::Tracked, "x", "k");
    assert_eq!(stage(&again), Stage::PlainWritten, "no more is known of the first");
    assert_eq!(all(&mut ledger), []);
}

/// Its connection took it, and nobody knows whether the client did: a repetition stands there too, and after the loss of
/// that connection it is sent. The client hands on one of them.
#[test]
fn what_was_only_written_may_be_pushed_again_after_a_lost_connection() {
    let mut ledger = ledger(true);
    let fire = push_keyed(&mut ledger, Class::Fire, "1", "k");
    let before = push_keyed(&mut ledger, Class::Tracked, "2", "k");
    all(&mut ledger);
    ledger.mark(1);
    assert!(!ledger.written_upto(1, NOW));
    let behind = push_keyed(&mut ledger, Class::Tracked, "3", "k");
    assert_eq!([&fire, &before, &behind].map(stage), [Stage::PlainWritten; 3]);
    assert_eq!(all(&mut ledger), []);
    assert!(ledger.resume(0, Some(0), NOW));
    ledger.connect(true);
    let again = push_keyed(&mut ledger, Class::Tracked, "4", "k");
    assert_eq!(all(&mut ledger), [("4".to_owned(), 1)]);
    assert!(ledger.ack(1, 1, NOW));
    assert_eq!(stage(&again), Stage::Handled);
    assert_eq!(stage(&push_keyed(&mut ledger, Class::Tracked, "5", "k")), Stage::Duplicate);
}

/// What its connection has begun to write when that ends the client may have; the rest it has not got.
#[test]
fn what_may_have_left_with_its_connection_is_not_called_dropped() {
    for (confirms, class) in [(false, Class::Tracked), (true, Class::Fire)] {
        let mut ledger = ledger(confirms);
        let receipts = ["1", "2", "3"].map(|text| push_keyed(&mut ledger, class.clone(), text, text));
        for mark in 1..=3 {
            ledger.next(NOW).expect("it waits");
            ledger.mark(mark);
        }
        ledger.written_upto(1, NOW);
        ledger.disconnect(2);
        let lost = Stage::Dropped(DropReason::Disconnected);
        assert_eq!(receipts.each_ref().map(stage), [Stage::PlainWritten, Stage::Unknown, lost]);
        assert_eq!(ledger.dropped(), 1);
    }
    // A client that comes back on another connection may have left the old one open, which writes on.
    let mut ledger = ledger(true);
    let under_way = push(&mut ledger, Class::Fire, "x");
    all(&mut ledger);
    ledger.mark(1);
    assert!(ledger.resume(0, Some(0), NOW));
    assert_eq!(stage(&under_way), Stage::Unknown);
}

#[test]
fn a_client_that_knows_less_than_it_confirmed_has_lost_its_place() {
    let mut ledger = ledger(true);
    push(&mut ledger, Class::Tracked, "1");
    push(&mut ledger, Class::Tracked, "2");
    all(&mut ledger);
    assert!(ledger.ack(2, 2, NOW));
    assert!(!ledger.resume(1, None, NOW));
    assert!(ledger.resume(2, None, NOW), "an empty log resumes");
}

#[test]
fn fire_ends_with_its_connection_and_the_rest_waits() {
    let mut ledger = ledger(true);
    let (a, b) = (push(&mut ledger, Class::Fire, "a"), push(&mut ledger, Class::Tracked, "b"));
    ledger.next(NOW);
    let (c, d) = (push(&mut ledger, Class::Fire, "c"), push(&mut ledger, latest("k"), "d"));
    ledger.disconnect(0);
    let away = push(&mut ledger, Class::Fire, "away");
    for receipt in [a, c, away] {
        assert_eq!(stage(&receipt), Stage::Dropped(DropReason::Disconnected));
    }
    assert_eq!((stage(&b), stage(&d), ledger.dropped()), (Stage::Queued, Stage::Queued, 3));
    assert!(ledger.resume(0, None, NOW));
    ledger.connect(true);
    assert_eq!(texts(&mut ledger), ["b", "d"]);
}

#[test]
fn a_gap_whose_notice_is_lost_is_told_again() {
    let mut ledger = ledger(true);
    for text in ["1", "2", "3", "4", "5"] {
        push(&mut ledger, Class::Tracked, text);
    }
    assert_eq!(ledger.next(NOW), Some(Next::Gap { missed: 1 }));
    ledger.written(1);
    assert!(ledger.resume(0, None, NOW));
    ledger.connect(true);
    push(&mut ledger, Class::Tracked, "6");
    assert_eq!(ledger.next(NOW), Some(Next::Gap { missed: 2 }), "all of it, so that a repeat does no harm");
    assert_ne!(ledger.next(NOW), Some(Next::Gap { missed: 2 }));
}

#[test]
fn what_is_too_old_is_neither_taken_nor_sent() {
    let mut ledger = ledger(true);
    let second = Duration::from_secs(1);
    let (mut waits, waited) = entry(Class::Tracked, "a");
    waits.expires = Some(second);
    assert!(ledger.push(waits, NOW));
    let (mut late, was_late) = entry(Class::Fire, "b");
    late.expires = Some(second);
    assert!(!ledger.push(late, second));
    push(&mut ledger, Class::Tracked, "c");
    assert_eq!(ledger.next(second), Some(Next::Frame { frame: Bytes::from_static(b"c"), offset: 1 }));
    assert_eq!((stage(&waited), stage(&was_late)), (Stage::Expired, Stage::Expired));
    assert_eq!(ledger.waiting(), (1, 1), "what expired takes no room");
}

#[test]
fn a_session_that_ends_tells_the_sender_of_all_it_owed() {
    let mut ledger = ledger(true);
    let receipts = [Class::Tracked, Class::Fire, latest("k")].map(|class| push(&mut ledger, class, "x"));
    ledger.next(NOW);
    drop(ledger);
    let dropped = Stage::Dropped(DropReason::SessionEnded);
    assert_eq!(receipts.each_ref().map(stage), [Stage::Unknown, dropped, dropped], "the first is under way");
}

/// What is on a connection, or was written or received, the client may have handled; the rest it has not got.
#[test]
fn a_session_that_ends_calls_unknown_what_its_client_may_have_handled() {
    let mut ledger = ledger(true);
    let mut receipts = ["received", "written", "lost with its connection"]
        .map(|text| push(&mut ledger, Class::Tracked, text))
        .to_vec();
    receipts.push(push(&mut ledger, Class::Fire, "lost as well"));
    all(&mut ledger);
    ledger.written(2);
    assert!(ledger.ack(1, 0, NOW));
    ledger.disconnect(0);
    drop(ledger);
    let stages: Vec<_> = receipts.iter().map(stage).collect();
    let dropped = [DropReason::SessionEnded, DropReason::Disconnected].map(Stage::Dropped);
    assert_eq!(stages, [Stage::Unknown, Stage::Unknown, dropped[0], dropped[1]]);

    let mut ledger = super::tests::ledger(true);
    let under_way = push(&mut ledger, Class::Fire, "x");
    all(&mut ledger);
    drop(ledger);
    assert_eq!(stage(&under_way), Stage::Unknown);
}

/// One message that the application keeps holds up neither the receipts nor the room of the others.
#[test]
fn what_is_handled_out_of_order_makes_room_at_once() {
    let mut ledger = ledger(true);
    let held = push(&mut ledger, Class::Tracked, "held");
    for offset in 2..100 {
        let receipt = push(&mut ledger, Class::Tracked, "x");
        all(&mut ledger);
        assert!(ledger.settle(&[(offset..=offset, Stage::Handled)], NOW) && ledger.ack(offset, 0, NOW));
        assert_eq!((stage(&receipt), ledger.waiting()), (Stage::Handled, (1, 4)));
    }
    assert_eq!(stage(&held), Stage::Received);
    assert!(!ledger.settle(&[(99..=100, Stage::Handled)], NOW), "it was never sent");
    assert!(ledger.ack(99, 99, NOW));
    assert_eq!((stage(&held), ledger.waiting()), (Stage::Handled, (0, 0)));
}

#[test]
fn what_failed_counts_as_handled_for_the_log_and_gives_its_key_back() {
    let mut ledger = ledger(true);
    let failed = push_keyed(&mut ledger, Class::Tracked, "1", "k");
    let again = push_keyed(&mut ledger, Class::Tracked, "2", "k");
    let other = push(&mut ledger, Class::Tracked, "3");
    all(&mut ledger);
    let ends = [(1..=1, Stage::Failed(Failure::Error)), (1..=1, Stage::Handled)];
    assert!(ledger.settle(&ends, NOW) && ledger.ack(2, 2, NOW), "what is said first counts");
    let error = Stage::Failed(Failure::Error);
    assert_eq!([&failed, &again, &other].map(stage), [error, error, Stage::Handled]);
    assert_eq!(ledger.waiting(), (0, 0));
    assert_eq!(stage(&push_keyed(&mut ledger, Class::Tracked, "3", "k")), Stage::Queued);
    assert!(ledger.resume(2, Some(2), NOW), "it does not come again");
    ledger.connect(true);
    assert_eq!(all(&mut ledger), [("3".to_owned(), 3)]);
}

/// A repetition was final although the first came to nothing: who took that for success lost the message.
#[test]
fn a_repetition_is_sent_if_the_first_is_too_old_and_ends_as_the_first_does() {
    for class in [Class::Tracked, latest("v")] {
        let mut ledger = ledger(true);
        ledger.disconnect(0);
        let (mut brief, first) = entry(class.clone(), "old");
        (brief.keyed, brief.expires) = (keyed("k", "plain"), Some(Duration::from_millis(1)));
        ledger.push(brief, NOW);
        let (mut lasting, second) = entry(class, "new");
        lasting.keyed = keyed("k", "plain");
        assert!(ledger.push(lasting, Duration::from_millis(100)));
        assert_eq!((stage(&first), stage(&second)), (Stage::Expired, Stage::Queued));
        assert!(ledger.resume(0, None, NOW));
        ledger.connect(true);
        assert_eq!(texts(&mut ledger), ["new"]);
    }
    let mut ledger = ledger(true);
    let first = push_keyed(&mut ledger, Class::Fire, "1", "k");
    let second = push_keyed(&mut ledger, Class::Fire, "2", "k");
    ledger.disconnect(0);
    let lost = Stage::Dropped(DropReason::Disconnected);
    assert_eq!([first, second].each_ref().map(stage), [lost, lost]);
}

#[test]
fn so_many_repetitions_wait_for_the_first() {
    let mut ledger = ledger(true);
    let first = ["a", "b"].map(|key| push_keyed(&mut ledger, Class::Tracked, "1", key));
    let repeat = |number: usize| push_keyed(&mut ledger, Class::Tracked, "1", ["a", "b"][number % 2]);
    let repeated: Vec<_> = (0..65).map(repeat).collect();
    assert!(first.iter().chain(&repeated[..64]).all(|receipt| stage(receipt) == Stage::Queued));
    assert_eq!(stage(&repeated[64]), Stage::Dropped(DropReason::Full));
}

#[test]
fn a_newer_value_of_a_higher_priority_moves_up() {
    let mut ledger = ledger(true);
    push_at(&mut ledger, Priority::Bulk, latest("k"), "v1");
    push_at(&mut ledger, Priority::Normal, Class::Tracked, "normal");
    push_at(&mut ledger, Priority::High, latest("k"), "v2");
    push_at(&mut ledger, Priority::High, Class::Tracked, "behind it");
    push_at(&mut ledger, Priority::Bulk, latest("k"), "v3");
    assert_eq!(texts(&mut ledger), ["v3", "behind it", "normal"], "and not down again");
}

/// A user's sessions are bounded as one: what one of them holds, another has no room for, until it is handled.
#[test]
fn the_logs_of_a_user_are_bounded_together() {
    let account = Arc::new(Account::new(10));
    let [mut phone, mut desk] = [(); 2].map(|()| {
        let mut ledger = ledger(true);
        ledger.charge(true, Some(Arc::clone(&account)));
        ledger
    });
    push(&mut phone, Class::Tracked, "12345678");
    push(&mut phone, latest("k"), "a value waits for nobody's bytes");
    assert!(desk.refuses(3) && !desk.is_full_for(3) && !desk.refuses(2));
    let refused = push(&mut desk, Class::Tracked, "123");
    assert_eq!(stage(&refused), Stage::Dropped(DropReason::Full));
    assert_eq!(texts(&mut desk), ["gap 1"]);
    assert_eq!(stage(&push(&mut desk, Class::Tracked, "12")), Stage::Queued);
    assert_eq!(account.held_bytes(), 10);
    assert_eq!(phone.next(NOW), Some(Next::Frame { frame: Bytes::from_static(b"12345678"), offset: 1 }));
    assert_eq!(account.held_bytes(), 10, "sent is not handled");
    assert!(phone.ack(1, 1, NOW));
    assert_eq!(stage(&push(&mut desk, Class::Tracked, "12345678")), Stage::Queued);
    drop(desk);
    assert_eq!(account.held_bytes(), 0, "a session that ended holds nothing");
    let large = push(&mut phone, Class::Tracked, "a single push is taken however large");
    assert_eq!(stage(&large), Stage::Queued);
}

/// Room that was claimed is used or given back, and what is owed goes along to another user.
#[test]
fn an_account_holds_what_the_log_holds() {
    let [ann, bob] = [(); 2].map(|()| Arc::new(Account::new(10)));
    let mut ledger = ledger(true);
    ledger.charge(true, Some(Arc::clone(&ann)));
    assert!(ledger.claim_room(2, 8));
    let ((a, _a), (mut b, was_late)) = (entry(Class::Tracked, "1234"), entry(Class::Tracked, "5678"));
    b.expires = Some(NOW);
    ledger.push_claimed(a, NOW);
    ledger.push_claimed(b, NOW);
    assert_eq!((ann.held_bytes(), stage(&was_late)), (4, Stage::Expired));
    assert!(!ledger.claim_room(1, 7) && ann.held_bytes() == 4, "the user has no room");
    bob.take_anyway(9);
    ledger.charge(true, Some(Arc::clone(&bob)));
    assert_eq!((ann.held_bytes(), bob.held_bytes()), (0, 13), "also beyond the bound: it is owed");
    ledger.charge(false, None);
    assert_eq!(bob.held_bytes(), 9);
}

/// Any history, against what was promised.
mod histories {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Command {
        Push {
            class: Kind,
            priority: Priority,
            lives: Option<u64>,
            len: usize,
            key: Option<u8>,
            /// It goes straight to the connection, if nothing is before it.
            direct: bool,
        },
        /// Give this many to the wire.
        Next(usize),
        /// The kernel took this many more.
        Written(usize),
        /// This many more arrive at the client.
        Arrive(usize),
        /// The application is done with this many more.
        Handle(usize),
        /// It is done with one of those that it holds, in whatever order, or fails to handle it.
        Settle {
            which: usize,
            fails: bool,
        },
        /// The client confirms what it has.
        Ack,
        /// The client claims what it was never sent.
        FalseAck,
        Disconnect,
        /// The client comes back with the offsets it has handled and received; twice in a row is two claims.
        Resume,
        /// It claims to have handled what it was never sent, or less than it confirmed.
        FalseResume,
        /// It is welcomed.
        Connect,
        Advance(u64),
        /// The session goes on at another node.
        Move,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Fire,
        Latest(u8),
        Tracked,
    }

    fn command() -> impl Strategy<Value = Command> {
        let class =
            prop_oneof![Just(Kind::Fire), (0..3_u8).prop_map(Kind::Latest), Just(Kind::Tracked), Just(Kind::Tracked),];
        let priority = prop::sample::select(vec![Priority::Normal, Priority::High, Priority::Bulk]);
        let key = prop::option::weighted(0.3, 0..6_u8);
        let push = (class, priority, prop::option::weighted(0.2, 0..20_u64), 2..30_usize, key, any::<bool>());
        let push = push.prop_map(|(class, priority, lives, len, key, direct)| Command::Push {
            class,
            priority,
            lives,
            len,
            key,
            direct,
        });
        prop_oneof![
            8 => push,
            4 => (1..6_usize).prop_map(Command::Next),
            3 => (1..6_usize).prop_map(Command::Written),
            3 => (1..6_usize).prop_map(Command::Arrive),
            3 => (1..6_usize).prop_map(Command::Handle),
            2 => (0..6_usize, any::<bool>()).prop_map(|(which, fails)| Command::Settle { which, fails }),
            3 => Just(Command::Ack),
            1 => Just(Command::FalseAck),
            1 => Just(Command::Disconnect),
            2 => Just(Command::Resume),
            1 => Just(Command::FalseResume),
            3 => Just(Command::Connect),
            1 => (0..20_u64).prop_map(Command::Advance),
            1 => Just(Command::Move),
        ]
    }

    /// Begins with the number of its push.
    fn frame_of(number: usize, len: usize) -> Bytes {
        let mut frame = number.to_be_bytes()[6..].to_vec();
        frame.resize(len, number as u8);
        frame.into()
    }

    /// What the specification remembers of one push.
    struct Pushed {
        class: Kind,
        priority: Priority,
        expires: Option<Duration>,
        frame: Bytes,
        receipt: Receipt,
        /// It stands in the queue behind all that were pushed before this one: its own number, or that of the
        /// value of its key that it replaced.
        place: usize,
        queue: Priority,
        waits: bool,
        offset: Option<u64>,
        on_wire: bool,
        written: bool,
        received: bool,
        handled: u32,
        failed: u32,
        /// It has the key of this one, and goes its way.
        repeats: Option<usize>,
    }

    impl Pushed {
        /// It stands at this place, and nothing became of it yet.
        fn new(class: Kind, priority: Priority, frame: Bytes, receipt: Receipt, place: usize) -> Self {
            Self {
                class,
                priority,
                expires: None,
                frame,
                receipt,
                place,
                queue: priority,
                waits: false,
                offset: None,
                on_wire: false,
                written: false,
                received: false,
                handled: 0,
                failed: 0,
                repeats: None,
            }
        }
    }

    #[derive(Clone, Copy)]
    enum Wire {
        Push(usize),
        Skip(u64),
        Gap(u64),
    }

    struct World {
        ledger: Ledger,
        account: Arc<Account>,
        confirms: bool,
        connected: bool,
        now: Duration,
        pushes: Vec<Pushed>,
        /// Those that are taken, and by which push.
        keys: Vec<(u8, usize)>,
        /// On the present connection, not yet arrived; the first `written` of them are with the kernel.
        wire: VecDeque<Wire>,
        written: usize,
        /// The connection's counter of pushes, and where it stood behind the last that is with the kernel.
        mark: u64,
        mark_written: u64,
        event_log: Arc<EventLog>,
        /// The offset that the next tracked frame must have.
        next_offset: u64,
        last_offset: u64,
        client: Remembering,
        refused: u64,
        told: u64,
        /// The tickets that stay at former nodes, and the receipts by which these hear what becomes of them.
        relays: Vec<(Ticket, Receipt)>,
    }

    /// The client: it drops repeats by offset, and handles in whatever order.
    #[derive(Default)]
    struct Remembering {
        received: u64,
        handled: u64,
        confirmed: u64,
        /// Dealt with beyond `handled`.
        ahead: BTreeSet<u64>,
        failed: Vec<u64>,
        /// Received, and not handled; nothing for an offset that was skipped.
        held: VecDeque<(u64, Option<usize>)>,
    }

    impl Remembering {
        fn failures(&self) -> Vec<End> {
            let failed = |offset: &u64| (*offset..=*offset, Stage::Failed(Failure::Error));
            self.failed.iter().map(failed).collect()
        }
    }

    impl World {
        fn new(confirms: bool) -> Self {
            let account = Arc::new(Account::new(usize::MAX));
            let mut ledger = ledger(confirms);
            ledger.charge(true, Some(Arc::clone(&account)));
            Self {
                ledger,
                account,
                confirms,
                connected: true,
                now: NOW,
                pushes: Vec::new(),
                keys: Vec::new(),
                wire: VecDeque::new(),
                written: 0,
                mark: 0,
                mark_written: 0,
                event_log: Arc::new(EventLog::new(4)),
                next_offset: 1,
                last_offset: 0,
                client: Remembering::default(),
                refused: 0,
                told: 0,
                relays: Vec::new(),
            }
        }

        fn run(&mut self, command: &Command) {
            match *command {
                Command::Push { class, priority, lives, len, key, direct } => {
                    let may_go = direct && lives.is_none() && key.is_none() && !matches!(class, Kind::Latest(_));
                    if !may_go || !self.send(class, priority, len) {
                        self.push(class, priority, lives, len, key);
                    }
                }
                Command::Next(count) => {
                    for _ in 0..count {
                        self.next();
                    }
                }
                Command::Written(count) => {
                    let count = count.min(self.wire.len() - self.written);
                    self.mark_written += count as u64;
                    self.ledger.written_upto(self.mark_written, NOW);
                    for item in self.wire.iter().skip(self.written).take(count) {
                        if let Wire::Push(number) = *item {
                            self.pushes[number].written = true;
                        }
                    }
                    self.written += count;
                }
                Command::Arrive(count) => (0..count).for_each(|_| self.arrive()),
                Command::Handle(count) => {
                    for _ in 0..count.min(self.client.held.len()) {
                        self.settle(0, false);
                    }
                }
                Command::Settle { which, fails } => {
                    if let Some(which) = which.checked_rem(self.client.held.len()) {
                        self.settle(which, fails);
                    }
                }
                Command::Ack if self.connected && self.confirms => {
                    let mut ends = self.client.failures();
                    ends.extend(self.client.ahead.iter().map(|offset| (*offset..=*offset, Stage::Handled)));
                    assert!(self.ledger.settle(&ends, NOW));
                    assert!(self.ledger.ack(self.client.received, self.client.handled, NOW));
                    self.client.confirmed = self.client.handled;
                    // What is confirmed meanwhile is not sent again.
                    self.next_offset = self.next_offset.max(self.client.handled + 1);
                }
                Command::FalseAck if self.confirms => {
                    let false_one = self.last_offset + 1;
                    assert!(!self.ledger.ack(false_one, 0, NOW));
                    assert!(!self.ledger.settle(&[(1..=false_one, Stage::Handled)], NOW));
                }
                Command::Disconnect => self.disconnect(),
                Command::Resume if self.confirms => {
                    self.resume();
                    self.lose_wire();
                }
                Command::FalseResume if self.confirms => {
                    assert!(!self.ledger.resume(self.last_offset + 1, None, NOW));
                    assert!(!self.ledger.resume(self.client.handled, Some(self.last_offset + 1), NOW));
                    if let Some(less) = self.client.confirmed.checked_sub(1) {
                        assert!(!self.ledger.resume(less, Some(self.client.received), NOW));
                    }
                }
                Command::Connect if self.confirms && !self.connected => {
                    self.resume();
                    self.ledger.connect(true);
                    self.connected = true;
                }
                Command::Advance(time) => self.now += Duration::from_secs(time),
                #[cfg(feature = "cluster")]
                Command::Move if self.confirms => self.go_elsewhere(),
                Command::Move => {}
                Command::Ack | Command::FalseAck | Command::Resume | Command::FalseResume | Command::Connect => {}
            }
            self.relay();
            self.check();
        }

        /// The session loses its connection and goes on at another node, which has clocks and tickets of its own. What
        /// is owed there is what was owed here.
        #[cfg(feature = "cluster")]
        fn go_elsewhere(&mut self) {
            self.disconnect();
            let mut asked = Vec::new();
            let image = self.ledger.export(self.now, &mut |ticket| {
                let number = self.pushes.iter().position(|pushed| ticket.is_of(&pushed.receipt));
                asked.push(number.expect("it was pushed"));
                asked.len() as u64
            });
            let again = self.ledger.export(self.now, &mut {
                let mut numbers = 0;
                move |_| {
                    numbers += 1;
                    numbers
                }
            });
            assert_eq!(image, again, "it can be asked for again");
            let bytes = image.as_ref().map(|image| rmp_serde::to_vec(image).expect("it can be written"));
            let image = bytes.map(|bytes| rmp_serde::from_slice::<LedgerImage>(&bytes).expect("it was written here"));

            let tickets = self.ledger.depart();
            assert_eq!((tickets.len(), self.ledger.waiting(), self.account.held_bytes()), (asked.len(), (0, 0), 0));
            for (ticket, number) in tickets.into_iter().zip(&asked) {
                let receipt = Receipt::new();
                self.relays.push((ticket, receipt.clone()));
                self.pushes[*number].receipt = receipt;
            }
            let ledger = Ledger::import(&Arc::new(bounds()), image.clone(), self.now, &mut |entry| {
                let receipt = match entry.number {
                    0 => Receipt::new(),
                    number => self.pushes[asked[number as usize - 1]].receipt.clone(),
                };
                let mut ticket = receipt.ticket(SessionId(7));
                ticket.advance(entry.stage());
                ticket
            });
            self.ledger = ledger.expect("it is a ledger");
            self.ledger.charge(true, Some(Arc::clone(&self.account)));
            if let Some(image) = &image {
                let mut number = 0;
                let mut same = self.ledger.export(self.now, &mut |_| {
                    number += 1;
                    number
                });
                assert_eq!(same.as_mut(), Some(&mut image.clone()), "nothing is lost or added on the way");
            }
        }

        /// The former nodes hear what became of their tickets.
        fn relay(&mut self) {
            for (ticket, receipt) in self.relays.iter_mut().rev() {
                ticket.advance(stage(receipt));
            }
        }

        /// The application is done with one of those that it holds.
        fn settle(&mut self, which: usize, fails: bool) {
            let (offset, number) = self.client.held.remove(which).expect("it is held");
            self.client.ahead.insert(offset);
            if let Some(number) = number {
                let pushed = &mut self.pushes[number];
                *(if fails { &mut pushed.failed } else { &mut pushed.handled }) += 1;
                if fails {
                    self.client.failed.push(offset);
                }
            }
            while self.client.ahead.remove(&(self.client.handled + 1)) {
                self.client.handled += 1;
            }
        }

        fn resume(&mut self) {
            assert!(self.ledger.settle(&self.client.failures(), NOW));
            assert!(self.ledger.resume(self.client.handled, Some(self.client.received), NOW));
            self.client.confirmed = self.client.handled;
            self.next_offset = self.client.received + 1;
        }

        fn push(&mut self, class: Kind, priority: Priority, lives: Option<u64>, len: usize, key: Option<u8>) {
            let number = self.pushes.len();
            let (receipt, frame) = (Receipt::new(), frame_of(number, len));
            let expires = lives.map(|lives| self.now + Duration::from_secs(lives));
            let of_class = match class {
                Kind::Fire => Class::Fire,
                Kind::Latest(key) => latest(&key.to_string()),
                Kind::Tracked => Class::Tracked,
            };
            let keyed = key.map(|key| {
                let hash = KeyHash::of(&key.to_string()).expect("short");
                Arc::new(Keyed { hash: Some(hash), plain: frame.clone() })
            });
            let (frame_of, ticket) = (frame.clone(), receipt.ticket(SessionId(7)));
            let origin = Origin::Push;
            let entry = Entry { class: of_class, priority, frame: frame_of, keyed, expires, origin, ticket };
            // What failed on a connection that is over is known since the client is back.
            self.note_dropped();
            // A key is taken by the last three that took one and did not come to nothing.
            let (pushes, now) = (&self.pushes, self.now);
            self.keys.retain(|(_, number)| {
                let holder = &pushes[*number];
                // One that waits, and is too old, gives its key up.
                !holder.waits || holder.expires.is_none_or(|expires| now < expires)
            });
            let holder = key.and_then(|key| self.keys.iter().find(|(other, _)| *other == key));
            let repeats = holder.map(|(_, number)| *number);
            let taken = self.ledger.push(entry, self.now);
            assert!(!taken || repeats.is_none(), "{:?}", self.keys);
            let (mut place, mut queue) = (number, priority);
            // A value that is too old has left its place.
            let has_left = |pushed: &Pushed| {
                stage(&pushed.receipt) == Stage::Expired && pushed.expires.is_some_and(|expires| expires <= now)
            };
            let stands = |pushed: &&mut Pushed| pushed.waits && pushed.class == class && !has_left(pushed);
            if taken
                && let Kind::Latest(_) = class
                && let Some(older) = self.pushes.iter_mut().find(stands)
            {
                assert_eq!(stage(&older.receipt), Stage::Superseded);
                older.waits = false;
                if older.queue.index() <= priority.index() {
                    (place, queue) = (older.place, older.queue);
                }
            }
            if !taken && repeats.is_none() {
                assert!(stage(&receipt).is_final());
            }
            let pushed = Pushed::new(class, priority, frame, receipt, place);
            self.pushes.push(Pushed { expires, queue, waits: taken, repeats, ..pushed });
            self.note_dropped();
            if let Some(key) = key.filter(|_| taken) {
                self.keys.push((key, number));
                let old = self.keys.len().saturating_sub(bounds().idempotency_keys);
                self.keys.drain(..old);
            }
        }

        /// What the ledger gave up waits no more; what it gave up for want of room is owed a notice.
        fn note_dropped(&mut self) {
            self.relay();
            self.refused = 0;
            for pushed in &mut self.pushes {
                let stage = stage(&pushed.receipt);
                if stage == Stage::Dropped(DropReason::Full) && pushed.repeats.is_none() {
                    self.refused += 1;
                    assert!(!(pushed.class == Kind::Tracked && pushed.waits), "a tracked push was taken, and dropped");
                }
                pushed.waits &= !stage.is_final();
            }
            let pushes = &self.pushes;
            self.keys.retain(|(_, number)| {
                !matches!(
                    stage(&pushes[*number].receipt),
                    Stage::Expired | Stage::Dropped(_) | Stage::Failed(_) | Stage::Unknown
                )
            });
        }

        /// Of those that wait, the one whose turn it is.
        fn turn(&self, with_latest: bool) -> Option<usize> {
            let waiting = self.pushes.iter().enumerate().filter(|(_, pushed)| {
                let expired = pushed.expires.is_some_and(|expires| expires <= self.now);
                pushed.waits && !expired && (with_latest || !matches!(pushed.class, Kind::Latest(_)))
            });
            waiting.min_by_key(|(_, pushed)| (pushed.queue.index(), pushed.place)).map(|(number, _)| number)
        }

        fn next(&mut self) -> bool {
            let next = self.ledger.next(self.now);
            let item = match &next {
                None => {
                    // What it looked at may have expired.
                    self.note_dropped();
                    assert!(!self.ledger.has_next(), "it has more, and gives nothing");
                    assert!(!self.connected || self.turn(false).is_none(), "something is not sent");
                    return false;
                }
                Some(Next::Gap { missed }) => Wire::Gap(*missed),
                Some(Next::Skip { offset }) => {
                    assert_eq!(*offset, self.next_offset, "offsets have no holes");
                    assert!(*offset <= self.last_offset, "nothing is skipped the first time");
                    self.next_offset += 1;
                    let skipped = self.pushes.iter().find(|pushed| pushed.offset == Some(*offset));
                    assert_eq!(stage(&skipped.expect("it was sent before").receipt), Stage::Expired);
                    Wire::Skip(*offset)
                }
                Some(Next::Frame { frame, offset }) => {
                    let number = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
                    let turns = [self.turn(true), self.turn(false)];
                    let pushed = &mut self.pushes[number];
                    assert_eq!(pushed.frame, frame, "it was changed on its way");
                    if *offset == 0 {
                        assert!(pushed.class == Kind::Fire || !self.confirms, "it needs an offset");
                    } else {
                        assert_eq!(*offset, self.next_offset, "offsets have no holes");
                        assert_ne!(pushed.class, Kind::Fire);
                        self.next_offset += 1;
                    }
                    if *offset == 0 || self.last_offset < *offset {
                        assert!(!pushed.on_wire, "what is not a repeat is sent once");
                        assert!(turns.contains(&Some(number)), "{} is not the next: {turns:?}", number);
                        pushed.waits = false;
                        self.last_offset = self.last_offset.max(*offset);
                        pushed.offset = Some(*offset).filter(|offset| 0 < *offset);
                    } else {
                        assert_eq!(pushed.offset, Some(*offset), "a repeat has its offset");
                        assert!(
                            pushed.expires.is_none_or(|expires| self.now < expires),
                            "it is too old to be repeated"
                        );
                    }
                    pushed.on_wire = true;
                    Wire::Push(number)
                }
            };
            assert!(self.connected, "nothing is sent to nobody");
            self.wire.push_back(item);
            self.mark += 1;
            self.ledger.mark(self.mark);
            self.note_dropped();
            true
        }

        /// Hands a push straight to the wire. False: something is before it, or there is no room.
        fn send(&mut self, class: Kind, priority: Priority, len: usize) -> bool {
            let number = self.pushes.len();
            let (receipt, frame) = (Receipt::new(), frame_of(number, len));
            let of_class = if class == Kind::Fire { Class::Fire } else { Class::Tracked };
            let push = Push::new("T", "m", Bytes::new()).class(of_class).priority(priority);
            let encoded = Encoded { frame: frame.clone(), keyed: None };
            let flight = Flight::of(&push, &encoded, &receipt, Origin::Push).expect("nothing else is asked of it");
            receipt.enter(1);
            if !self.connected && class == Kind::Tracked {
                let Some(waits) = self.ledger.keep(&flight, &self.event_log) else { return false };
                self.pushes.push(Pushed::new(class, priority, frame, receipt, number));
                self.pushes[number].waits = waits;
                assert_eq!(stage(&self.pushes[number].receipt).is_final(), !waits);
                self.note_dropped();
                return true;
            }
            let (mark, mut given) = (self.mark + 1, None);
            let is_sent = self.ledger.send(&flight, &self.event_log, |frame, seq| {
                given = Some((frame.clone(), seq));
                Some(mark)
            });
            if !is_sent {
                assert!(given.is_none(), "it is sent and said not to be");
                return false;
            }
            assert!(self.connected && self.turn(true).is_none(), "it overtakes another one");
            let (given, seq) = given.expect("it was sent");
            assert_eq!(given, frame, "it was changed on its way");
            let is_logged = self.confirms && class == Kind::Tracked;
            let offset = is_logged.then_some(self.next_offset);
            assert_eq!(seq, Seq::of_push(offset.unwrap_or(0)), "offsets have no holes");
            if let Some(offset) = offset {
                self.next_offset += 1;
                self.last_offset = offset;
            }
            self.mark = mark;
            self.wire.push_back(Wire::Push(number));
            let pushed = Pushed::new(class, priority, frame, receipt, number);
            self.pushes.push(Pushed { offset, on_wire: true, ..pushed });
            true
        }

        fn arrive(&mut self) {
            if self.written == 0 {
                return;
            }
            self.written -= 1;
            match self.wire.pop_front().expect("what is written is on the wire") {
                Wire::Gap(missed) => self.told = self.told.max(missed),
                Wire::Skip(offset) => {
                    if self.client.received < offset {
                        self.client.received = offset;
                        self.client.held.push_back((offset, None));
                    }
                }
                Wire::Push(number) => {
                    let pushed = &mut self.pushes[number];
                    pushed.received = true;
                    if let Some(offset) = pushed.offset
                        && self.client.received < offset
                    {
                        self.client.received = offset;
                        self.client.held.push_back((offset, Some(number)));
                    }
                }
            }
        }

        fn lose_wire(&mut self) {
            self.connected = false;
            self.wire.clear();
            self.written = 0;
            (self.mark, self.mark_written) = (0, 0);
            // Nobody knows whether it got what ended with being written: it may be pushed again.
            let pushes = &self.pushes;
            self.keys.retain(|(_, number)| stage(&pushes[*number].receipt) != Stage::PlainWritten);
            self.note_dropped();
        }

        fn disconnect(&mut self) {
            self.ledger.disconnect(0);
            self.lose_wire();
        }

        /// Bounds hold, and no receipt is better than the truth.
        fn check(&self) {
            let bounds = bounds();
            assert_eq!(
                self.account.held_bytes(),
                self.ledger.tracked_bytes(),
                "the user is charged what the log holds"
            );
            let (messages, bytes) = self.ledger.waiting();
            assert!(messages <= bounds.tracked_messages + bounds.fire_messages + 2 * bounds.latest_keys);
            // One value may be sent while there is any room; values that wait are bounded by their number.
            assert!(bytes <= bounds.tracked_bytes + bounds.fire_bytes + 30 * (2 * bounds.latest_keys + 1));
            for pushed in &self.pushes {
                let stage = stage(&pushed.receipt);
                if let Some(holder) = pushed.repeats {
                    assert!(!pushed.on_wire, "a repetition is not sent");
                    let of_holder = match super::stage(&self.pushes[holder].receipt) {
                        Stage::Handled | Stage::Superseded => Stage::Duplicate,
                        other => other,
                    };
                    assert_eq!(stage, of_holder);
                    continue;
                }
                let is_true = match stage {
                    Stage::Queued => pushed.waits || pushed.on_wire,
                    Stage::Written | Stage::PlainWritten => pushed.written,
                    Stage::Received => pushed.received,
                    Stage::Handled => pushed.handled == 1,
                    Stage::Expired => !pushed.received && pushed.expires.is_some_and(|expires| expires <= self.now),
                    Stage::Failed(how) => (how, pushed.failed) == (Failure::Error, 1),
                    Stage::Unknown => pushed.on_wire && pushed.offset.is_none(),
                    Stage::Duplicate => false,
                    Stage::Superseded => !pushed.on_wire && matches!(pushed.class, Kind::Latest(_)),
                    Stage::Dropped(DropReason::Full) => !pushed.on_wire,
                    Stage::Dropped(DropReason::Disconnected) => pushed.class == Kind::Fire || !self.confirms,
                    Stage::Dropped(DropReason::SessionEnded) => false,
                };
                assert!(is_true, "{:?} {:?} says {stage:?}", pushed.class, pushed.priority);
                assert!(pushed.handled + pushed.failed <= 1, "it was handled twice");
            }
        }

        /// All comes to rest: nothing is left without a final stage, and what is tracked was handled once.
        fn finish(&mut self) {
            self.run(&Command::Connect);
            for _ in 0..100 {
                while self.next() {}
                for command in [Command::Written(1000), Command::Arrive(1000), Command::Handle(1000), Command::Ack] {
                    self.run(&command);
                }
            }
            if !self.connected {
                return;
            }
            for pushed in &self.pushes {
                let stage = stage(&pushed.receipt);
                assert!(stage.is_final(), "{:?} stays {stage:?}", pushed.class);
                let lost_in_time = stage == Stage::Expired && !pushed.received;
                let owed = self.confirms && pushed.class != Kind::Fire && pushed.on_wire && !lost_in_time;
                let is_dealt_with = matches!(stage, Stage::Handled | Stage::Failed(_)) && pushed.repeats.is_none();
                assert_eq!(is_dealt_with, owed, "{:?} is {stage:?}", pushed.class);
                assert_eq!(pushed.handled + pushed.failed, u32::from(owed));
            }
            assert!(!self.confirms || self.refused == self.told, "{} are missing, {} told", self.refused, self.told);
            assert_eq!(self.ledger.waiting(), (0, 0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// Nothing is invented, changed, reordered, sent twice as new, or lost without a word; offsets have no
        /// holes; receipts never say more than is true; and when all is at rest nothing is left over.
        #[test]
        fn promises_hold(confirms in prop::bool::weighted(0.8), commands in prop::collection::vec(command(), 0..80)) {
            let mut world = World::new(confirms);
            for command in &commands {
                world.run(command);
            }
            world.finish();
        }
    }
}

/// A ledger to which nothing was pushed, and to which nothing is owed, takes no memory.
#[test]
fn nothing_missed_opens_no_book() {
    let mut ledger = Ledger::new(bounds());
    let is_blank = |ledger: &Ledger| matches!(ledger.0, Pages::Blank(_));
    ledger.miss_all(Unsent::default());
    assert!(ledger.claim_room(0, 0) && is_blank(&ledger));
    let mut unsent = Unsent::default();
    unsent.miss(3);
    ledger.miss_all(unsent);
    assert!(!is_blank(&ledger) && ledger.is_unsent(3) && !ledger.is_unsent(2));
}

/// As many of the oldest give way as a new one needs, and no more; one that is larger than the bound goes alone.
#[test]
fn as_many_give_way_as_are_needed() {
    let mut ledger = ledger(true);
    let older = [20, 20, 20].map(|bytes| push(&mut ledger, Class::Fire, &"x".repeat(bytes)));
    let newer = push(&mut ledger, Class::Fire, &"y".repeat(40));
    let full = Stage::Dropped(DropReason::Full);
    assert_eq!(older.each_ref().map(stage), [full, full, Stage::Queued]);
    let largest = push(&mut ledger, Class::Fire, &"z".repeat(100));
    assert_eq!((stage(&older[2]), stage(&newer), stage(&largest)), (full, full, Stage::Queued));
    assert_eq!(ledger.missed(), 4);
    let small = push(&mut ledger, Class::Fire, "a");
    assert_eq!((stage(&largest), stage(&small)), (full, Stage::Queued));
}

/// The newest values have a bound in keys and in bytes; a value that replaces another needs only the difference.
#[test]
fn the_newest_values_are_bounded() {
    let mut ledger = Ledger::new(Bounds { latest_bytes: 12, ..bounds() });
    ledger.connect(true);
    let full = Stage::Dropped(DropReason::Full);
    let first = push(&mut ledger, latest("a"), "12345");
    let second = push(&mut ledger, latest("b"), "12345");
    assert_eq!((stage(&first), stage(&second)), (Stage::Queued, Stage::Queued), "twelve bytes, with their keys");
    let third = push(&mut ledger, latest("c"), "");
    assert_eq!(stage(&third), full, "two keys");
    let larger = push(&mut ledger, latest("a"), "123456");
    assert_eq!((stage(&larger), stage(&first)), (full, Stage::Queued), "one byte more");
    let smaller = push(&mut ledger, latest("a"), "1");
    assert_eq!((stage(&smaller), stage(&first)), (Stage::Queued, Stage::Superseded));
    let largest = push(&mut ledger, latest("b"), "123456789");
    assert_eq!((stage(&largest), stage(&second)), (Stage::Queued, Stage::Superseded), "twelve bytes again");
    assert_eq!(texts(&mut ledger), ["gap 2", "1", "123456789"]);
    let alone = push(&mut ledger, latest("b"), "123456789012");
    assert_eq!(stage(&alone), Stage::Queued, "one that is larger than the bound goes alone");
}

/// What a connection was writing as it ended its client may have: when the session ends, nobody calls that dropped.
#[test]
fn a_tracked_push_that_was_being_written_is_not_called_dropped() {
    let mut ledger = ledger(true);
    let receipts = ["1", "2", "3"].map(|text| push(&mut ledger, Class::Tracked, text));
    for mark in 1..=3 {
        ledger.next(NOW).expect("it waits");
        ledger.mark(mark);
    }
    ledger.written_upto(1, NOW);
    // The writer had begun up to the second: the kernel may have all of it.
    ledger.disconnect(2);
    drop(ledger);
    let ends = receipts.each_ref().map(stage);
    assert_eq!(ends, [Stage::Unknown, Stage::Unknown, Stage::Dropped(DropReason::SessionEnded)]);
}
