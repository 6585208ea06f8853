//! A waker may look at the connection: none is called under its lock.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
};

use tokio::runtime::{Builder, Runtime};

use super::*;

/// A waker as another executor may have it: it looks at the connection before it wakes.
struct Looks(Connection);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        self.0.stats();
        self.0.is_closed();
    }
}

/// A payload whose owner looks at the connection when it is dropped.
struct Owner(Connection, Vec<u8>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stats();
    }
}

/// A client whose server does not read: whatever does not fit into the pipe waits.
fn unread(runtime: &Runtime) -> (Connection, Heard, MemorySocket) {
    let _within = runtime.enter();
    let (near, far) = memory::pair(1);
    let (handler, heard) = ears();
    let settings = Settings { push_frames_max: 1, ..Settings::default() };
    (Connection::start(Role::Client, near.into(), Arc::new(settings), handler, None, |_| {}), heard, far)
}

/// Does this in a thread of its own; a lock that is taken twice shows as time that runs out.
fn does_not_hang(name: &str, act: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        act();
        // The test is over if nobody listens.
        let _ = done.send(());
    });
    assert!(is_done.recv_timeout(Duration::from_secs(60)).is_ok(), "{name}: it hangs, or panicked");
}

type Act = fn(&Connection);

/// Callers, those who wait for room and those who wait for the end are woken when the lock is free, however the
/// connection ends.
#[test]
fn a_waker_may_look_at_the_connection() {
    let acts: [(&str, Act); 6] = [
        ("cut under another lock", |connection| drop(connection.cut_untold())),
        ("close", |connection| connection.close()),
        ("cut", |connection| connection.cut()),
        ("misbehaved", |connection| connection.end_as_misbehaved()),
        ("the peer ends", |connection| connection.close_now(CloseReason::PeerClosed)),
        ("slow", |connection| connection.end_as_slow("it is")),
    ];
    for (name, act) in acts {
        does_not_hang(name, move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let (connection, _heard, _far) = unread(&runtime);
            let _within = runtime.enter();
            let waker = Waker::from(Arc::new(Looks(connection.clone())));
            let mut cx = Context::from_waker(&waker);
            let mut calling = Box::pin(call(&connection, "wait", Bytes::from_static(&[0; 100])));
            assert!(calling.as_mut().poll(&mut cx).is_pending());
            while connection.send_message("T", "x", &Metadata::new(), vec![0; 100]).is_ok() {}
            let none = Metadata::new();
            let wait = Duration::from_secs(3600);
            let mut sending = Box::pin(connection.send_message_within(wait, "T", "x", &none, vec![0; 100]));
            assert!(sending.as_mut().poll(&mut cx).is_pending());
            let mut leaving = Box::pin(connection.leaving());
            assert!(leaving.as_mut().poll(&mut cx).is_pending());
            let mut closed = Box::pin(connection.closed());
            assert!(closed.as_mut().poll(&mut cx).is_pending());

            act(&connection);

            assert!(calling.as_mut().poll(&mut cx).is_ready(), "{name}");
            assert!(sending.as_mut().poll(&mut cx).is_ready(), "{name}");
        });
    }
}

/// A call that is given up wakes nobody: it leaves the table under the lock.
#[test]
fn a_call_that_is_given_up_wakes_nobody() {
    does_not_hang("given up", || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (connection, _heard, _far) = unread(&runtime);
        let _within = runtime.enter();
        let waker = Waker::from(Arc::new(Looks(connection.clone())));
        let mut calling = Box::pin(call(&connection, "wait", Bytes::from_static(&[0; 100])));
        assert!(calling.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(calling);
    });
}

/// Who waits for room is woken when the lock is free.
#[test]
fn a_waker_for_room_may_look_at_the_connection() {
    does_not_hang("room", || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (connection, _heard, far) = unread(&runtime);
        runtime.block_on(async {
            while connection.send_message("T", "x", &Metadata::new(), vec![0; 30_000]).is_ok() {}
            let waker = Waker::from(Arc::new(Looks(connection.clone())));
            let none = Metadata::new();
            let wait = Duration::from_secs(3600);
            let mut sending = Box::pin(connection.send_message_within(wait, "T", "x", &none, vec![0; 100]));
            assert!(sending.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let mut buf = [0; 1024];
            let mut read = 0;
            while read < 40_000 {
                read += std::future::poll_fn(|cx| far.poll_read(cx, &mut buf)).await.expect("it writes");
            }
            assert!(sending.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        });
    });
}

/// An application's own payload is dropped when the lock is free.
#[test]
fn the_owner_of_a_payload_may_look_at_the_connection() {
    does_not_hang("payload", || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (connection, _heard, _far) = unread(&runtime);
        let _within = runtime.enter();
        let payload = || Bytes::from_owner(Owner(connection.clone(), vec![0; 100_000]));
        while connection.send_message("T", "x", &Metadata::new(), payload()).is_ok() {}
        connection.cut();
    });
}

/// Who ends a connection under a lock of its own lets go of that before a caller's waker runs, or a payload's owner.
#[test]
fn nobody_is_told_of_a_cut_before_who_made_it_lets_them() {
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (connection, _heard, _far) = unread(&runtime);
    let _within = runtime.enter();
    let count = Arc::new(Counts(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut calling = Box::pin(call(&connection, "wait", Bytes::from_static(&[0; 100])));
    assert!(calling.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let before = count.0.load(Ordering::Relaxed);

    let untold = connection.cut_untold();
    assert!(connection.is_closed(), "it is free to be looked at");
    assert_eq!(count.0.load(Ordering::Relaxed), before);
    drop(untold);
    assert!(before < count.0.load(Ordering::Relaxed));
}
