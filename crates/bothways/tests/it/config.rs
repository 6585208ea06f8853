//! Options that a program reads from a file.

use std::time::Duration;

use bothways::{
    AdmissionOptions, Heartbeat, Limits, OutgoingOptions, Overflow, QueueBound, Rate, Reconnect, Server, ServerLimits,
    ServerOptions, SessionOptions, Timeouts,
};

const FILE: &str = r#"
heartbeat = { interval = "5s", timeout = "2s" }

[limits]
frames = { body_bytes_max = 1, decompressed_bytes_max = 2, metadata_bytes_max = 3, metadata_pairs_max = 4, calls_pending_max = 5 }
connections_max = 6
calls_max = 7
calls_per_connection_max = 8
calls_per_user_max = 9
request_bytes_max = 10
request_bytes_per_connection_max = 11
unpacked_bytes_max = 12
unpacked_bytes_per_connection_max = 13
partial_bytes_max = 14
unauthenticated_body_bytes_max = 15
frames_per_connection_rate = { per_second = 16, burst = 17 }
bytes_per_connection_rate = { per_second = 18 }

[outgoing]
push_queue = { messages = 19, bytes = 20 }
overflow = "drop_oldest"
reply_bytes_max = 21
call_bytes_max = 22
all_bytes_max = 23

[admission]
new_sessions = "unlimited"
resumes = { per_second = 24, burst = 25 }

[timeouts]
first_frame = "26s"
unauthenticated = "27m"
idle = "28s"
write = "29ms"
frame_progress_min = 30
frame_progress_time = "31s"

[sessions]
resume_window = "5m 30s"
away_max = 32
log = { messages = 33, bytes = 34 }
user_log_bytes_max = 35
fire_queue = { messages = 36, bytes = 37 }
latest_queue = { messages = 38, bytes = 39 }
idempotency_keys_max = 40
events_max = 41
ended_max = 42
subscriptions_max = 43
subscription_bytes_max = 44
all_subscription_bytes_max = 45
"#;

fn by_hand() -> ServerOptions {
    let frames = Limits::default()
        .body_bytes_max(1)
        .decompressed_bytes_max(2)
        .metadata_bytes_max(3)
        .metadata_pairs_max(4)
        .calls_pending_max(5);
    let limits = ServerLimits::new()
        .frames(frames)
        .connections_max(6)
        .calls_max(7)
        .calls_per_connection_max(8)
        .calls_per_user_max(9)
        .request_bytes_max(10)
        .request_bytes_per_connection_max(11)
        .unpacked_bytes_max(12)
        .unpacked_bytes_per_connection_max(13)
        .partial_bytes_max(14)
        .unauthenticated_body_bytes_max(15)
        .frames_per_connection_rate(Rate::per_second(16).burst(17))
        .bytes_per_connection_rate(Rate::per_second(18));
    let outgoing = OutgoingOptions::new()
        .push_queue(QueueBound::messages(19).bytes(20))
        .overflow(Overflow::DropOldest)
        .reply_bytes_max(21)
        .call_bytes_max(22)
        .all_bytes_max(23);
    let admission = AdmissionOptions::new().new_sessions_rate(None).resumes_rate(Rate::per_second(24).burst(25));
    let timeouts = Timeouts::new()
        .first_frame(Duration::from_secs(26))
        .unauthenticated(Duration::from_secs(27 * 60))
        .idle(Duration::from_secs(28))
        .write(Duration::from_millis(29))
        .frame_progress(30, Duration::from_secs(31));
    let sessions = SessionOptions::new()
        .resume_window(Duration::from_secs(330))
        .away_max(32)
        .log(QueueBound::messages(33).bytes(34))
        .user_log_bytes_max(35)
        .fire_queue(QueueBound::messages(36).bytes(37))
        .latest_queue(QueueBound::messages(38).bytes(39))
        .idempotency_keys_max(40)
        .events_max(41)
        .ended_max(42)
        .subscriptions_max(43)
        .subscription_bytes_max(44)
        .all_subscription_bytes_max(45);
    ServerOptions::new()
        .limits(limits)
        .outgoing(outgoing)
        .admission(admission)
        .timeouts(timeouts)
        .heartbeat(Heartbeat::every(Duration::from_secs(5)).timeout(Duration::from_secs(2)))
        .sessions(sessions)
}

/// Every option that code can set, a file can set; and a server takes what a file says.
#[test]
fn a_file_sets_what_code_sets() {
    let read: ServerOptions = toml::from_str(FILE).expect("it is well formed");
    assert_eq!(format!("{read:?}"), format!("{:?}", by_hand()));
    // Nothing in it is as by default, or this test would not see that it is ignored.
    let (read, default) = (format!("{read:#?}"), format!("{:#?}", ServerOptions::new()));
    let same: Vec<&str> = read
        .lines()
        .zip(default.lines())
        .filter(|(a, b)| a == b && a.trim_end().ends_with(',') && a.contains(": "))
        .map(|(a, _)| a)
        .collect();
    assert!(same.is_empty(), "{same:?}");
    drop(Server::builder().options(by_hand()).build());
}

#[test]
fn what_a_file_does_not_say_has_its_default() {
    let shown = |text: &str| format!("{:?}", toml::from_str::<ServerOptions>(text).expect("it is well formed"));
    let default = format!("{:?}", ServerOptions::new());
    assert_eq!(shown(""), default);
    assert_eq!(shown("[limits]\n[limits.frames]\n[sessions]\n[timeouts]\n[outgoing]\n[admission]\n"), default);
    assert_eq!(shown("heartbeat = {}"), default);
    let never = format!("{:?}", ServerOptions::new().heartbeat(Heartbeat::never()));
    assert_eq!(shown("heartbeat = \"never\""), never);
    let log = SessionOptions::new().log(QueueBound::messages(7));
    assert_eq!(shown("[sessions]\nlog = { messages = 7 }"), format!("{:?}", ServerOptions::new().sessions(log)));
}

/// A misspelt name is an error, in every group, and so is a value that cannot be meant; the error says where.
#[test]
fn a_name_that_is_not_known_is_an_error() {
    for (text, says) in [
        ("resume_windw = \"5m\"", "resume_windw"),
        ("[sessions]\nresume_windw = \"5m\"", "resume_windw"),
        ("[sessions]\nlog = { message = 1 }", "message"),
        ("[limits]\nconnection_max = 1", "connection_max"),
        ("[limits.frames]\nbody_bytes = 1", "body_bytes"),
        ("[outgoing]\noverflow = \"drop_newest\"", "drop_newest"),
        ("[outgoing]\nqueue = 1", "queue"),
        ("[timeouts]\nread = \"1s\"", "read"),
        ("[timeouts]\nwrite = \"1 parsec\"", "parsec"),
        ("[admission]\nnew_sessions = \"many\"", "unlimited"),
        ("[admission]\nnew_sessions = { burst = 3 }", "per_second"),
        ("heartbeat = \"seldom\"", "never"),
        ("heartbeat = { every = \"1s\" }", "interval"),
    ] {
        let error = toml::from_str::<ServerOptions>(text).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_file_says_when_to_reconnect() {
    #[derive(serde::Deserialize)]
    struct Program {
        reconnect: Vec<Reconnect>,
    }

    let program: Program = toml::from_str(r#"reconnect = ["never", "lost", "always"]"#).expect("all three");
    assert_eq!(program.reconnect, [Reconnect::Never, Reconnect::Lost, Reconnect::Always]);
}
