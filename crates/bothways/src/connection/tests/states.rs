//! What a connection answers in each of its states.

use std::{
    pin::pin,
    sync::atomic::Ordering::Relaxed,
    task::{Poll, Waker},
};

use bothways_proto::{Capabilities, Greeting, Hello, Limits, PREFIX_LEN};

use super::{
    super::{
        BEHIND, PEER_IS_GONE, TO_CLIENT,
        alone::{Deaf, alone, enable, negotiate},
        call::Waiter,
        control::TokenOver,
        end::Phase,
        writer::Writer,
    },
    *,
};

fn reason() -> Box<CloseReason> {
    Box::new(CloseReason::Local)
}

/// All phases, in the order in which a connection may go through them.
fn phases() -> [Phase; 5] {
    [
        Phase::Open,
        Phase::Draining(reason()),
        Phase::Answering(reason()),
        Phase::Closing(reason()),
        Phase::Closed(reason()),
    ]
}

/// Clients of a server, each in another phase of its greeting: what is known of it, and a connection.
fn greetings() -> Vec<(Greeting, Connection, memory::MemorySocket)> {
    let hello = Hello { version: bothways_proto::VERSION, capabilities: Capabilities::ALL };
    let ask = |path: &str| {
        let header = bothways_proto::Header::request(bothways_proto::Seq::new(1), SerializeType::RAW);
        Message::new(header, path, "Echo", &Metadata::new(), b"")
    };
    let mut said = Metadata::new();
    hello.put(&mut said);
    let said = Message::ping(bothways_proto::Seq::new(0), &said, &[]);

    let greetings = [
        Greeting::Unknown,
        Greeting::HelloPending,
        Greeting::Plain { listens: false },
        Greeting::Plain { listens: true },
        Greeting::Enabling { listens: false },
        Greeting::Enabling { listens: true },
        Greeting::Enabled,
        Greeting::Welcoming(Capabilities::ALL),
        Greeting::Negotiated(Capabilities::ALL),
    ];
    let reach = |greeting| {
        let (connection, far) = alone(Role::Server);
        let mut state = connection.shared.state.lock();
        let proto = &mut state.proto;
        match greeting {
            Greeting::Unknown => {}
            Greeting::HelloPending | Greeting::Welcoming(_) | Greeting::Negotiated(_) => {
                proto.handle_message(said.clone()).expect("it is the first");
            }
            _ => proto.on_passed_over(),
        }
        if let Greeting::Plain { listens: true } | Greeting::Enabling { listens: true } = greeting {
            let inbound = proto.handle_message(ask("T")).expect("polite");
            assert!(proto.on_inbound(&inbound));
        }
        if let Greeting::Enabling { .. } | Greeting::Enabled = greeting {
            assert!(proto.on_enable());
        }
        if greeting.agreed().is_some() {
            proto.on_hello_accepted(&hello, Capabilities::ALL);
        }
        match greeting {
            Greeting::Enabled => proto.on_enabled(),
            Greeting::Negotiated(_) => proto.on_welcome_sent(),
            _ => {}
        }
        assert_eq!(proto.greeting(), greeting);
        drop(state);
        (greeting, connection, far)
    };
    greetings.map(reach).into()
}

/// The bits of a number.
fn bits<const N: usize>(number: u32) -> [bool; N] {
    std::array::from_fn(|at| number >> at & 1 == 1)
}

/// Only an open connection takes what its session is owed, once its client listens and has its answer.
#[tokio::test(start_paused = true)]
async fn pushes_wait_for_a_client_that_listens() {
    for (greeting, connection, _far) in greetings() {
        let pending = greeting.is_pending();
        for (place, phase) in phases().into_iter().enumerate() {
            let mut state = connection.shared.state.lock();
            state.phase = phase;
            assert_eq!(state.takes_pushes(), place == 0 && greeting.takes_pushes(), "{greeting:?} {place}");
            let is_welcoming = greeting == Greeting::Welcoming(Capabilities::ALL);
            assert_eq!(state.is_welcoming(), place <= 2 && is_welcoming, "{greeting:?} {place}");
            assert_eq!(state.can_answer(), place <= 2);
            assert_eq!(state.check_open().is_ok(), place == 0);
            drop(state);
            assert_eq!(connection.is_being_let_in(), place == 0 && pending);
            assert_eq!((connection.is_open(), connection.is_closed()), (place == 0, place == 4));
            assert_eq!(connection.is_over(), place != 0);
            assert_eq!(connection.end_reason().is_some(), place != 0);
            assert_eq!(connection.close_reason().is_some(), place == 4);
            assert_eq!(connection.is_busy(), pending && place <= 2);
        }
    }
}

/// A connection is busy while a call of either side runs, and owed what is not written.
#[tokio::test(start_paused = true)]
async fn a_call_of_either_side_makes_a_connection_busy() {
    for number in 0..16 {
        let [runs, waits, is_queued, is_writing] = bits(number);
        let (connection, _far) = alone(Role::Client);
        connection.shared.calls_running.store(u32::from(runs), Relaxed);
        for (place, phase) in phases().into_iter().enumerate() {
            let mut state = connection.shared.state.lock();
            if waits && place == 0 {
                state.proto.begin_call(Waiter::Ping).expect("room");
            }
            if is_queued && place == 0 {
                let parts = bothways_proto::FrameParts {
                    header: bothways_proto::Header::oneway(bothways_proto::Seq::new(1), SerializeType::RAW),
                    names: bothways_proto::Names::new("", ""),
                    metadata: &Metadata::new(),
                    payload_len: 0,
                };
                let settings = Settings::default();
                let lane = super::super::lanes::Lane::Control;
                state.outbox.add(lane, &parts, &Bytes::new(), &settings.limits, &settings.bounds()).expect("room");
            }
            state.outbox.writer = if is_writing { Writer::Busy } else { Writer::Idle };
            state.phase = phase;
            assert_eq!(state.is_quiet(), place == 0 && !is_queued && !is_writing, "{number} {place}");
            drop(state);
            assert_eq!(connection.is_busy(), runs || (waits && place <= 2), "{number} {place}");
            assert_eq!(connection.is_owed(), runs || is_queued || is_writing, "{number} {place}");
            assert!(!connection.waits_for_replies());
            assert_eq!(connection.calls_to_peer(), 0, "a heartbeat is no call");
        }
        connection.shared.state.lock().outbox.writer = Writer::Idle;
    }
}

/// A client that ended its side before its first frame was looked at is as good as gone.
#[tokio::test(start_paused = true)]
async fn what_is_known_of_reading_is_told_apart() {
    for (role, of_role) in [(Role::Server, TO_CLIENT), (Role::Client, 0)] {
        let (connection, _far) = alone(role);
        let shared = &connection.shared;
        assert_eq!([BEHIND, PEER_IS_GONE, TO_CLIENT].map(|flag| shared.reads_as(flag)), [false, false, of_role != 0]);
        for is_set in [true, true, false, false] {
            shared.note_reading(BEHIND, is_set);
            assert_eq!([BEHIND, PEER_IS_GONE].map(|flag| shared.reads_as(flag)), [is_set, false]);
            assert_eq!(shared.reading.load(Relaxed), if is_set { BEHIND | of_role } else { of_role });
            assert!(!connection.is_over());
        }
        shared.note_reading(PEER_IS_GONE, true);
        assert!(connection.is_over());
    }
}

/// A peer's limit counts if it is less than our own, and up to itself.
#[tokio::test(start_paused = true)]
async fn a_peer_may_take_less_than_this_side() {
    let own = Limits::default().body_bytes_max(1000);
    for (said, max) in [("999", Some(999)), ("1000", None), ("1001", None), ("x", None)] {
        let (connection, _far) = alone(Role::Server);
        let mut state = connection.shared.state.lock();
        state.note_limit_of_peer(&Metadata::new().with(bothways_proto::keys::BODY_BYTES_MAX, said), &own);
        assert_eq!(state.has_limit_of_peer(), max.is_some(), "{said}");
        for len in 998..=1001 {
            let fits = max.is_none_or(|max| len <= max);
            assert_eq!(state.check_limit_of_peer(len).is_ok(), fits, "{said} {len}");
            assert_eq!(state.check_frame(&Bytes::from(vec![0; PREFIX_LEN + len])).is_ok(), fits, "{said} {len}");
        }
    }
}

/// A plain client begins its session once.
#[tokio::test(start_paused = true)]
async fn only_a_plain_client_without_a_session_begins_one() {
    for (greeting, connection, _far) in greetings() {
        let begins = matches!(greeting, Greeting::Plain { .. });
        assert_eq!(connection.on_enable(Some("T.m")), begins, "{greeting:?}");
        assert_eq!(connection.methods().is_some(), begins);
        assert_eq!(connection.is_being_let_in(), begins || greeting.is_pending());
        assert_eq!(connection.takes_calls(), greeting == Greeting::Enabled || greeting.agreed().is_some());
        assert!(!connection.on_enable(Some("T.m")), "one at a time");
        connection.on_enable_refused();
        assert_eq!(connection.on_enable(None), begins || matches!(greeting, Greeting::Enabling { .. }));
    }
}

/// What nobody waits for is counted.
#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_counted() {
    let (connection, _far) = alone(Role::Server);
    let answer = || Err(CallError::NotSupported);
    assert!(!connection.answer_call(1, answer()));
    enable(&connection);
    for count in 1..3 {
        assert!(!connection.answer_call(1, answer()));
        connection.count_refused_oneway();
        connection.count_unheard();
        connection.count_repeated();
        let mut state = connection.shared.state.lock();
        let rare = state.rare();
        assert_eq!(
            [rare.late_replies, rare.oneways_refused, rare.messages_unheard, rare.messages_repeated],
            [count; 4]
        );
    }
    assert!(!connection.has_refused_token());
    let refused = [b"t0", b"t0", b"t1", b"t0"].map(|token| connection.say_token_is_over(token, "no"));
    assert_eq!(refused, [TokenOver::NotTold, TokenOver::Known, TokenOver::Another, TokenOver::Known]);
    assert!(connection.has_refused_token());
}

/// What runs is answered after the end of what its client sent, if somebody reads it and something is to answer.
#[tokio::test(start_paused = true)]
async fn what_runs_is_answered_if_somebody_reads_it() {
    for number in 0..128 {
        let [is_server, cancels, negotiated, checking, runs, is_queued, is_end] = bits(number);
        for (place, phase) in phases().into_iter().enumerate() {
            let (near, _far) = memory::pair(1 << 16);
            let settings = Arc::new(Settings { cancel_on_disconnect: cancels, ..Settings::default() });
            let role = if is_server { Role::Server } else { Role::Client };
            let connection = Connection::start(role, near.into(), settings, Arc::new(Deaf), None, |_| {});
            if negotiated {
                negotiate(&connection, Capabilities::ALL);
            }
            connection.shared.is_checking.store(checking, Relaxed);
            connection.shared.calls_running.store(u32::from(runs), Relaxed);
            let mut state = connection.shared.state.lock();
            if is_queued {
                connection.heartbeat(&mut state, Waiter::Ping, &Metadata::new());
            }
            state.phase = phase;
            drop(state);
            let reason = if is_end { CloseReason::PeerClosed } else { CloseReason::NoRoom { bytes: 1 } };
            let is_unread = checking || (is_end && negotiated);
            let expected = is_server && !cancels && !is_unread && place == 0 && (runs || is_queued);
            assert_eq!(connection.answer_the_rest(&reason), expected, "{number} {place}");
            let is_answering = matches!(connection.shared.state.lock().phase, Phase::Answering(_));
            assert_eq!(is_answering, expected || place == 2);
        }
    }
}

/// Nothing more is taken of a peer from which no answer is waited for.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_once_it_has_answered() {
    for waits in [false, true] {
        for (place, phase) in phases().into_iter().enumerate() {
            let (connection, _far) = alone(Role::Server);
            let mut state = connection.shared.state.lock();
            if waits {
                state.proto.begin_call(Waiter::Ping).expect("room");
            }
            state.phase = phase;
            drop(state);
            connection.end_once_answered();
            let is_answering = matches!(connection.shared.state.lock().phase, Phase::Answering(_));
            assert_eq!(is_answering, place == 2 || (place == 0 && !waits), "{waits} {place}");
        }
    }
}

/// A server that has said when to come back is left; of another that is about to end, what it still answers is read.
#[tokio::test(start_paused = true)]
async fn a_server_is_left_that_has_said_when_to_come_back() {
    let text = || "no".to_owned();
    let refusals = || {
        [
            CloseReason::NotAdmitted { why: text(), retry_after: Duration::ZERO },
            CloseReason::Unauthenticated(text()),
            CloseReason::HelloRefused(text()),
        ]
    };
    let (connection, _far) = alone(Role::Client);
    let leaves = |phase: Phase| {
        connection.shared.state.lock().phase = phase;
        let leaving = pin!(connection.leaving());
        matches!(leaving.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
    };
    for refusal in refusals() {
        assert!(leaves(Phase::Draining(Box::new(refusal.clone()))), "{refusal}");
        for phase in [Phase::Answering(Box::new(refusal.clone())), Phase::Closing(Box::new(refusal))] {
            assert!(!leaves(phase));
        }
    }
    assert_eq!(phases().map(leaves), [false, false, false, false, true]);
}

/// Why the peer sends nothing more is why the connection ended, and it ends once.
#[tokio::test(start_paused = true)]
async fn the_first_reason_counts() {
    for (phase, expected) in [
        (Phase::Open, CloseReason::PeerClosed),
        (Phase::Draining(reason()), CloseReason::PeerClosed),
        (Phase::Closing(reason()), CloseReason::PeerClosed),
        (Phase::Answering(reason()), CloseReason::Local),
        (Phase::Closed(reason()), CloseReason::Local),
    ] {
        let (connection, _far) = alone(Role::Server);
        connection.shared.state.lock().phase = phase;
        connection.close_now(CloseReason::PeerClosed);
        let told = connection.close_reason().expect("it is over");
        assert_eq!(told.to_string(), expected.to_string());
        connection.close_now(CloseReason::Unauthenticated("late".to_owned()));
        assert_eq!(connection.close_reason().map(|reason| reason.to_string()), Some(told.to_string()));
    }
}
