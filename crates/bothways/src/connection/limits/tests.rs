//! Bounds of what runs, to the last byte, call and millisecond.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
};

use bothways_proto::{Header, Metadata, Role, Seq, SerializeType};

use super::*;
use crate::{
    connection::{Settings, alone::Deaf},
    transport::memory,
};

fn connection(settings: &Arc<Settings>) -> (Connection, memory::MemorySocket) {
    let (near, far) = memory::pair(1 << 16);
    let start = Connection::start(Role::Server, near.into(), Arc::clone(settings), Arc::new(Deaf), None, |_| {});
    (start, far)
}

fn request() -> Message {
    Message::new(Header::request(Seq::new(1), SerializeType::RAW), "T", "Echo", &Metadata::new(), b"")
}

/// One frame alone may be as large as any; several are bounded together, and those of strangers by half of that.
#[test]
fn frames_that_are_not_all_there_are_bounded_together() {
    let load = Load::new(1).with_bytes(0, 1000);
    let bytes = || load.partial_bytes.load(Ordering::Relaxed);
    assert!(load.count_partial(0, 5000, false), "it is alone");
    assert!(load.count_partial(5000, 600, true));
    for (is_trusted, held, fits) in [(true, 600, 400), (false, 300, 200)] {
        assert!(load.count_partial(bytes(), held, true));
        for (more, expected) in [(fits - 1, true), (fits, true), (fits + 1, false)] {
            assert_eq!(load.count_partial(0, more, is_trusted), expected, "{more} beside {held}");
            assert_eq!(bytes(), held + more, "it counts until it is given up");
            assert!(load.count_partial(more, more, is_trusted), "it stays as it is");
            assert!(load.count_partial(more, 0, is_trusted));
        }
    }
    assert!(load.count_partial(300, 0, true));
    assert_eq!(bytes(), 0);
}

/// Requests that run are bounded by what they hold, of a connection and of all; one alone is not.
#[tokio::test(start_paused = true)]
async fn what_requests_hold_is_bounded_to_the_byte() {
    let load = Arc::new(Load::new(9).with_bytes(8192, 0));
    let settings = Arc::new(Settings { request_bytes_max: 4096, load, ..Settings::default() });
    let ((one, _far), (other, _other_far)) = (connection(&settings), connection(&settings));
    let check = |of: &Connection, own, bytes| of.check_request_bytes(own, bytes).map_err(|refused| refused.text);
    assert!(check(&one, 0, 1 << 30).is_ok(), "it is alone");
    let kib = one.shared.hold_request_bytes(1025);
    assert_eq!((kib, one.shared.hold_request_bytes(0)), (2, 0));
    assert!(check(&one, 0, 2048).is_ok() && check(&one, 2, 1 << 30).is_ok());
    assert!(check(&one, 0, 2049).is_err_and(|why| why.contains("of this connection that hold 2048 bytes")));
    let more = other.shared.hold_request_bytes(6 << 10);
    assert!(check(&one, 0, 0).is_ok() && check(&one, 0, 1).is_err_and(|why| why.contains("calls that hold 8192")));
    other.shared.give_request_room_back(more);
    assert!(check(&other, 0, 6 << 10).is_ok() && check(&other, 0, (6 << 10) + 1).is_err());
    one.shared.give_request_room_back(kib);
    assert!(check(&one, 0, 1 << 30).is_ok() && check(&other, 0, 1 << 30).is_ok());
}

/// So many calls run, of a connection and of all, and one more is refused and not counted.
#[tokio::test(start_paused = true)]
async fn what_runs_is_bounded_to_the_call() {
    let load = Arc::new(Load::new(3));
    let settings = Arc::new(Settings { calls_running_max: 2, load: Arc::clone(&load), ..Settings::default() });
    let ((one, _far), (other, _other_far)) = (connection(&settings), connection(&settings));
    let message = request();
    let acquire = |of: &Connection| Permit::acquire(of, &message).map_err(|refused| refused.text);
    let mut first = acquire(&one).expect("room");
    let second = acquire(&one).expect("room");
    assert!(acquire(&one).is_err_and(|why| why.contains("2 calls of this connection")));
    let third = acquire(&other).expect("room");
    assert!(acquire(&other).is_err_and(|why| why.contains("3 calls run")));
    assert_eq!(load.running(), 3);
    assert_eq!(one.shared.calls_running.load(Ordering::Relaxed), 2);

    drop((second, third));
    let mut idle = pin!(load.idle());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(idle.as_mut().poll(&mut cx).is_pending(), "one runs");
    assert!(first.retire());
    assert_eq!((load.running(), one.shared.calls_running.load(Ordering::Relaxed)), (0, 0));
    assert!(idle.as_mut().poll(&mut cx).is_pending(), "it is late, and not over");
    drop(first);
    assert!(idle.as_mut().poll(&mut cx).is_ready());
    assert_eq!((load.running(), load.late.load(Ordering::Relaxed)), (0, 0));
}

/// Only so many wait until they say that they are late.
#[tokio::test(start_paused = true)]
async fn so_many_refusals_wait() {
    let settings = Arc::new(Settings::default());
    let (connection, _far) = connection(&settings);
    settings.load.late.store(LATE_REFUSALS - 1, Ordering::Relaxed);
    let message = request();
    let mut permits = [(); 2].map(|()| Permit::acquire(&connection, &message).expect("room"));
    assert_eq!(permits.each_mut().map(Permit::retire), [true, false]);
}
