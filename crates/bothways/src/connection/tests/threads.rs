//! Many threads on one connection whose socket is full most of the time.

use super::*;

/// Eight threads push and call over pipes of 64 bytes, four at each end: every call is answered with its
/// own bytes, every push arrives, those of one thread in its order. Who writes changes with nearly
/// every frame: a caller, the driver, another caller.
#[test]
fn nothing_is_lost_over_a_socket_that_is_always_full() {
    let _limit = limit("nothing_is_lost_over_a_socket_that_is_always_full");
    const THREADS: u32 = 4;
    const COUNT: u32 = 400;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let settings = Settings { push_frames_max: 4, ..Settings::default() };
    let (ends, heard, _pipe) = runtime.block_on(engines(64, settings));
    let mut threads = Vec::new();
    for end in &ends {
        for thread in 0..THREADS {
            let (end, handle) = (end.clone(), runtime.handle().clone());
            threads.push(std::thread::spawn(move || {
                for n in 0..COUNT {
                    let payload = [thread.to_be_bytes(), n.to_be_bytes()].concat();
                    let metadata = Metadata::new();
                    let wait = Duration::from_secs(60);
                    let push = end.send_message_within(wait, "T", "news", &metadata, payload.clone());
                    handle.block_on(push).expect("there is room in time");
                    if n % 4 == 0 {
                        let answer =
                            async { tokio::time::timeout(wait, call(&end, "echo", payload.clone().into())).await };
                        let answer = handle.block_on(answer).expect("in time").expect("answered");
                        assert_eq!(answer[..], payload);
                    }
                }
            }));
        }
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
    for mut heard in heard {
        let mut next = [0; THREADS as usize];
        for _ in 0..THREADS * COUNT {
            let payload =
                runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), heard.pushes.recv()).await });
            let payload = payload.expect("in time").expect("the engine lives");
            let (thread, n) = payload.split_at(4);
            let next = &mut next[u32::from_be_bytes(thread.try_into().expect("four")) as usize];
            assert_eq!(u32::from_be_bytes(n.try_into().expect("four")), *next, "in the order of its thread");
            *next += 1;
        }
        assert!(heard.pushes.try_recv().is_err(), "no more than was sent");
    }
    for end in &ends {
        let stats = end.stats();
        assert_eq!((stats.calls_pending, stats.pushes_waiting, stats.pushes_dropped), (0, 0, 0));
    }
}
