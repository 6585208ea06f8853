//! Calls that leave in one write: the system call is most of what a small call costs.

use std::{
    future::Future,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use super::{
    Asked, Heard, call,
    fairness::{Writes, noted, turn},
    limit,
};
use crate::{
    connection::{Connection, call::this_thread},
    reply::Reply,
};

/// An end that calls, what it wrote since the Hello, and the other end, which the test answers for.
async fn calling() -> (Connection, Writes, Heard, impl Sized) {
    let writes = Writes::default();
    let ([answering, calling], [heard, kept]) = noted('c', &writes);
    while !calling.is_negotiated() {
        turn().await;
    }
    writes.lock().clear();
    (calling, writes, heard, (answering, kept))
}

async fn asked(heard: &mut Heard, calls: usize) -> Vec<Asked> {
    let mut asked = Vec::new();
    while asked.len() < calls {
        asked.push(heard.asked.recv().await.expect("both ends stay"));
    }
    asked
}

/// Answers all before the one who asked has a turn: one read brings it all replies.
fn answer(asked: Vec<Asked>) {
    for call in asked {
        let _ = call.answer.send(Reply::ok(Bytes::new()));
    }
}

/// Replies that come in one read lead to calls that leave in one write: the first of the callers does not write for
/// itself alone, although nobody else waits for a reply at that moment.
#[tokio::test(start_paused = true)]
async fn callers_who_are_answered_together_call_together() {
    let _limit = limit("callers_who_are_answered_together_call_together");
    const CALLERS: usize = 16;
    const ROUNDS: usize = 20;
    let (calling, writes, mut heard, _kept) = calling().await;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let calling = calling.clone();
        callers.spawn(async move {
            for _ in 0..ROUNDS {
                call(&calling, "wait", Bytes::new()).await.expect("an answer");
            }
        });
    }
    // Who calls first knows of no other: their calls leave in two writes.
    answer(asked(&mut heard, CALLERS).await);
    for round in 1..ROUNDS {
        writes.lock().clear();
        let calls = asked(&mut heard, CALLERS).await;
        assert_eq!(writes.lock().len(), 1, "in round {round}");
        answer(calls);
    }
    callers.join_all().await;
}

/// Of two who are answered together one calls again: its call leaves once the other has had its turn, and the next
/// one at once.
#[tokio::test(start_paused = true)]
async fn a_caller_who_does_not_call_again_holds_nobody_up() {
    let _limit = limit("a_caller_who_does_not_call_again_holds_nobody_up");
    let (calling, writes, mut heard, _kept) = calling().await;
    let twice = tokio::spawn({
        let calling = calling.clone();
        async move {
            for _ in 0..2 {
                call(&calling, "wait", Bytes::new()).await.expect("an answer");
            }
        }
    });
    let once = tokio::spawn({
        let calling = calling.clone();
        async move { call(&calling, "wait", Bytes::new()).await.expect("an answer") }
    });
    answer(asked(&mut heard, 2).await);
    once.await.expect("no panic");
    answer(asked(&mut heard, 1).await);
    twice.await.expect("no panic");

    writes.lock().clear();
    let mut third = Box::pin(call(&calling, "wait", Bytes::new()));
    assert!(third.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(writes.lock().len(), 1);
}

/// A call that is held and not polled again, as by a `select!` that is busy with something else, holds up no other
/// call that was made meanwhile.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_polled_no_more_holds_up_no_other() {
    let _limit = limit("a_call_that_is_polled_no_more_holds_up_no_other");
    let (calling, writes, mut heard, _kept) = calling().await;
    let waiting = calling.clone();
    let _waiting = tokio::spawn(async move { call(&waiting, "wait", Bytes::new()).await });
    let _unanswered = asked(&mut heard, 1).await;
    writes.lock().clear();
    let mut cx = Context::from_waker(Waker::noop());
    let mut held = Box::pin(call(&calling, "wait", Bytes::new()));
    assert!(held.as_mut().poll(&mut cx).is_pending());
    let echo = timeout(Duration::from_secs(10), call(&calling, "echo", Bytes::new()));
    echo.await.expect("it leaves").expect("an answer");
    assert_eq!(writes.lock().len(), 1, "both leave together");
}

/// A task that waits for the others' turn and then blocks its thread holds up nobody who calls from another thread.
#[test]
fn a_blocked_thread_holds_up_no_call_of_another() {
    let _limit = limit("a_blocked_thread_holds_up_no_call_of_another");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (blocks, blocked) = oneshot::channel();
    let (calling, _kept) = runtime.block_on(async {
        let ([answering, calling], heard) = noted('c', &Writes::default());
        while !calling.is_negotiated() {
            turn().await;
        }
        // Two that wait: from here on a call is not the only one, and is not written at once.
        for _ in 0..2 {
            let calling = calling.clone();
            tokio::spawn(async move { call(&calling, "wait", Bytes::new()).await });
        }
        while calling.stats().calls_pending < 2 {
            turn().await;
        }
        (calling, (answering, heard))
    });
    let of_blocked = calling.clone();
    runtime.spawn(async move {
        let mut call = Box::pin(call(&of_blocked, "wait", Bytes::new()));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let _ = blocks.send(this_thread());
        let _ = released.recv();
    });
    let blocked = runtime.block_on(blocked).expect("it runs");
    let call_elsewhere = || {
        let echo = async { timeout(Duration::from_secs(10), call(&calling, "echo", Bytes::new())).await };
        (this_thread() != blocked).then(|| runtime.block_on(echo))
    };
    // Of nine threads in a row one has another bit.
    let answer = (0..9).find_map(|_| std::thread::scope(|scope| scope.spawn(call_elsewhere).join().expect("no panic")));
    drop(release);
    assert!(answer.expect("another thread").is_ok(), "the call waits for the blocked thread");
}
