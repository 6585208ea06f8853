//! Random scripts of calls, answers, drops, pushes and cuts, against a simple model.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;

/// One step of a script. Numbers choose among what is there, modulo its count.
#[derive(Clone, Debug)]
enum Step {
    Call {
        from: usize,
        len: usize,
    },
    Push {
        from: usize,
        len: usize,
    },
    /// The caller gives up.
    Drop(usize),
    Answer(usize),
    Fail(usize),
    /// Everything happens that can.
    Settle,
    /// The tasks get a turn each.
    Yield,
    Close(usize),
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || prop_oneof![4 => 0..100_usize, 1 => 0..20_000_usize];
    let step = prop_oneof![
        8 => (0..2_usize, len()).prop_map(|(from, len)| Step::Call { from, len }),
        6 => (0..2_usize, len()).prop_map(|(from, len)| Step::Push { from, len }),
        4 => any::<usize>().prop_map(Step::Drop),
        5 => any::<usize>().prop_map(Step::Answer),
        2 => any::<usize>().prop_map(Step::Fail),
        3 => Just(Step::Settle),
        3 => Just(Step::Yield),
    ];
    let end = prop_oneof![2 => Just(vec![]), 1 => (0..2_usize).prop_map(|end| vec![Step::Close(end)]), 1 => Just(vec![Step::Cut])];
    (prop::collection::vec(step.clone(), 0..60), end, prop::collection::vec(step, 0..10))
        .prop_map(|(before, end, after)| [before, end, after].concat())
}

/// What the model knows of a call.
struct Known {
    from: usize,
    task: JoinHandle<Result<Bytes, CallError>>,
    dropped: bool,
    /// The text of its answer, if it was given one: `ok` or `failed`.
    answered: Option<&'static str>,
}

/// A payload that begins with a number.
fn numbered(number: u32, len: usize) -> Bytes {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(4 + len, 0xaa);
    payload.into()
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(*payload.first_chunk().expect("four bytes"))
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn play(script: Vec<Step>, buffer_bytes: usize) {
    let base = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (ends, mut heard, pipe) = engines(buffer_bytes, Settings::default()).await;
    let mut calls: Vec<Known> = Vec::new();
    let mut waiting: HashMap<u32, Asked> = HashMap::new();
    let (mut seen, mut pushed, mut ended) = (HashSet::new(), [Vec::new(), Vec::new()], false);
    for step in script.into_iter().chain([Step::Settle]) {
        for heard in &mut heard {
            while let Ok(asked) = heard.asked.try_recv() {
                let number = number(&asked.payload);
                assert!(seen.insert(number), "call {number} ran twice");
                waiting.insert(number, asked);
            }
        }
        let mut pick = |n: usize| {
            let mut numbers: Vec<u32> = waiting.keys().copied().collect();
            numbers.sort_unstable();
            (!numbers.is_empty()).then(|| waiting.remove(&numbers[n % numbers.len()]).expect("it is there"))
        };
        match step {
            Step::Call { from, len } => {
                let (connection, payload) = (ends[from].clone(), numbered(calls.len() as u32, len));
                let task = tokio::spawn(async move { call(&connection, "wait", payload).await });
                calls.push(Known { from, task, dropped: false, answered: None });
            }
            Step::Push { from, len } => {
                let number = pushed[from].len() as u32;
                let push = ends[from].send_message("T", "news", &Metadata::new(), numbered(number, len));
                assert!(push.is_ok() || ended, "{push:?}");
                if push.is_ok() {
                    pushed[from].push(number);
                }
            }
            Step::Drop(n) if !calls.is_empty() => {
                let len = calls.len();
                let call = &mut calls[n % len];
                call.task.abort();
                call.dropped = true;
            }
            Step::Answer(n) => {
                if let Some(asked) = pick(n) {
                    calls[number(&asked.payload) as usize].answered = Some("ok");
                    let _ = asked.answer.send(Reply::ok(asked.payload));
                }
            }
            Step::Fail(n) => {
                if let Some(asked) = pick(n) {
                    calls[number(&asked.payload) as usize].answered = Some("failed");
                    let _ = asked.answer.send(Reply::error("failed"));
                }
            }
            Step::Drop(_) => {}
            Step::Settle => settle().await,
            Step::Yield => tokio::task::yield_now().await,
            Step::Close(end) => {
                ends[end].close();
                ended = true;
            }
            Step::Cut => {
                pipe.0.reset();
                ended = true;
            }
        }
    }

    // A call that nobody has answered waits for ever, unless the connection ended.
    if !ended {
        let pending = calls.iter().filter(|call| !call.dropped && call.answered.is_none()).count();
        assert_eq!(calls.iter().filter(|call| !call.task.is_finished()).count(), pending);
        assert_eq!(ends.each_ref().map(|end| end.stats().calls_pending).iter().sum::<usize>(), pending);
    }
    waiting.clear();
    ends.iter().for_each(Connection::close);
    for heard in &mut heard {
        // Handlers that run still are let go, so that an end that answers them can end.
        while let Ok(asked) = heard.asked.try_recv() {
            assert!(seen.insert(number(&asked.payload)));
        }
        assert!(heard.closed.recv().await.is_some(), "the end is told");
    }
    for (number, known) in calls.into_iter().enumerate() {
        let outcome = known.task.await;
        let ran = seen.contains(&(number as u32));
        match outcome {
            Err(aborted) => assert!(aborted.is_cancelled() && known.dropped),
            Ok(Ok(payload)) => {
                assert_eq!((self::number(&payload), known.answered), (number as u32, Some("ok")));
            }
            Ok(Err(CallError::Remote { text, .. })) => {
                assert!(known.answered == Some("failed") || text == "the test is over", "{text}");
            }
            Ok(Err(CallError::Closed { written, .. })) => {
                assert!(written || !ran, "call {number} ran, and its caller was told that it was not sent");
            }
            Ok(Err(error)) => panic!("call {number} of end {}: {error}", known.from),
        }
    }
    for (from, heard) in heard.iter_mut().rev().enumerate() {
        assert!(heard.closed.try_recv().is_err(), "the end is told once");
        let mut arrived = Vec::new();
        while let Ok(payload) = heard.pushes.try_recv() {
            arrived.push(number(&payload));
        }
        assert!(pushed[from].starts_with(&arrived), "{arrived:?} of {:?}", pushed[from]);
        if !ended {
            assert_eq!(arrived, pushed[from], "a close writes what waits");
        }
    }
    settle().await;
    for end in &ends {
        let stats = end.stats();
        assert_eq!((stats.calls_pending, stats.calls_running), (0, 0));
        assert!(end.is_closed());
        assert!(end.shared.state.lock().running.is_none());
    }
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), base);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever happens in whatever order: no call runs twice, each ends once, an answer reaches its own
    /// call, a call that is said not to have been sent did not run, pushes arrive in order, and
    /// afterwards nothing is left.
    #[test]
    fn each_call_ends_once_and_truthfully(script in steps(), buffer_bytes in prop_oneof![1..200_usize, Just(64 << 10)]) {
        let _limit = limit("each_call_ends_once_and_truthfully");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let played = tokio::time::timeout(Duration::from_secs(3600), play(script, buffer_bytes));
            played.await.expect("it ends");
        });
    }
}
