//! When a connection counts as busy.

use std::sync::atomic::Ordering;

use bothways_proto::Role;

use crate::{
    connection::{alone::alone, end::Phase},
    error::CloseReason,
};

/// Who waits for an answer keeps a connection busy while it can still be answered; what runs does so in any case.
#[tokio::test(start_paused = true)]
async fn a_connection_is_busy_while_somebody_can_be_answered() {
    let (connection, _far) = alone(Role::Server);
    let reason = || Box::new(CloseReason::Local);
    let phases = [
        (Phase::Open, true, true),
        (Phase::Draining(reason()), true, false),
        (Phase::Answering(reason()), true, false),
        (Phase::Closing(reason()), false, false),
        (Phase::Closed(reason()), false, false),
    ];
    assert!(!connection.is_busy() && !connection.is_being_let_in(), "nobody has asked for anything");
    for (number, (phase, can_answer, lets_in)) in phases.into_iter().enumerate() {
        let mut state = connection.shared.state.lock();
        state.phase = phase;
        state.hello_pending = true;
        drop(state);
        assert_eq!(connection.is_busy(), can_answer, "{number}");
        assert_eq!(connection.is_being_let_in(), lets_in, "{number}");

        connection.shared.state.lock().hello_pending = false;
        assert!(!connection.is_busy() && !connection.is_being_let_in(), "{number}");
        connection.shared.calls_running.store(1, Ordering::Release);
        assert!(connection.is_busy() && !connection.is_being_let_in(), "{number}");
        connection.shared.calls_running.store(0, Ordering::Release);
    }
}
