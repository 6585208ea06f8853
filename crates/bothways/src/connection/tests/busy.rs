//! When a connection counts as busy.

use std::sync::atomic::Ordering;

use bothways_proto::{FrameParts, Header, Metadata, Names, Role, Seq, SerializeType};
use bytes::Bytes;

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
    connection.shared.state.lock().proto.on_passed_over();
    for (number, (phase, can_answer, lets_in)) in phases.into_iter().enumerate() {
        let mut state = connection.shared.state.lock();
        state.phase = phase;
        assert!(state.proto.on_enable());
        drop(state);
        assert_eq!(connection.is_busy(), can_answer, "{number}");
        assert_eq!(connection.is_being_let_in(), lets_in, "{number}");
        assert_eq!(connection.end_reason().is_none(), lets_in, "{number}");

        connection.shared.state.lock().proto.on_enable_refused();
        assert!(!connection.is_busy() && !connection.is_being_let_in(), "{number}");
        connection.shared.calls_running.store(1, Ordering::Release);
        assert!(connection.is_busy() && !connection.is_being_let_in(), "{number}");
        connection.shared.calls_running.store(0, Ordering::Release);
    }
}

/// The peer sends nothing more: a reply that is kept back behind a push is still an answer that it is owed.
#[tokio::test(start_paused = true)]
async fn a_reply_that_is_kept_back_is_still_owed() {
    let (connection, _far) = alone(Role::Server);
    assert!(!connection.answer_the_rest(&CloseReason::PeerClosed), "it has asked for nothing");
    assert!(matches!(connection.shared.state.lock().phase, Phase::Open));
    let (header, metadata) = (Header::oneway(Seq::new(1), SerializeType::RAW), Metadata::new());
    let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: 1 };
    let settings = &connection.shared.settings;
    let mut state = connection.shared.state.lock();
    let outbox = &mut state.outbox;
    let held = outbox.hold_reply(&parts, &Bytes::from_static(b"R"), connection.limits(), &settings.bounds());
    held.expect("there is room");
    drop(state);
    assert!(connection.answer_the_rest(&CloseReason::PeerClosed));
    assert!(matches!(connection.shared.state.lock().phase, Phase::Answering(_)));
}
