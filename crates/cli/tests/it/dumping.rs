//! `bothways dump`: recorded frames of Go's rpcx, and the proxy.

use crate::support::{Running, Serving, bothways, finish, run};

/// A frame that Go's rpcx sent.
fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"))
}

fn dump(name: &str, more: &[&str]) -> String {
    let path = golden(name);
    run(&[&["dump", "--hex", &path], more].concat()).ended(0).trim_end().to_owned()
}

#[test]
fn golden_frames_are_readable() {
    for (name, line) in [
        ("request_msgpack", r#"@0  request  Arith.Mul  seq 2  msgpack  47 B  {"A":10,"B":20}"#),
        ("response_msgpack", r#"@0  reply    Arith.Mul  seq 2  msgpack  45 B  {"C":200}"#),
        ("response_error_method", r#"@0  error    Arith.Err  seq 3  msgpack  70 B  {__rpcx_error__="boom"}  {"C":0}"#),
        ("push", r#"@0  oneway   p.m  seq 1  raw  49 B  {k="v"}  "abcde""#),
        ("push_empty", "@0  oneway   seq 2  raw  32 B"),
        ("heartbeat_request", "@0  ping     seq 3  msgpack  41 B  5"),
        ("request_auth", r#"@0  request  Arith.Mul  seq 0  msgpack  74 B  {__AUTH="***"}  {"A":10,"B":20}"#),
    ] {
        assert_eq!(dump(name, &[]).trim_start(), line, "{name}");
    }
}

#[test]
fn golden_frames_are_what_was_recorded_of_them() {
    let mut seen = 0;
    for entry in std::fs::read_dir(golden("push").trim_end_matches("push.hex")).expect("a directory") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let Some(recorded) = text.lines().find_map(|line| line.strip_prefix("# decoded: ")) else { continue };
        let recorded: serde_json::Value = serde_json::from_str(recorded).expect("JSON");
        if recorded["seq"].is_null() {
            continue;
        }
        let ran = run(&["dump", "--hex", "--json", "--show-secrets", path.to_str().expect("UTF-8")]);
        let Some(line) = ran.out.lines().next() else { panic!("{path:?}: {ran:?}") };
        let shown: serde_json::Value = serde_json::from_str(line).expect("JSON");
        if let Some(error) = shown["error"].as_str() {
            panic!("{path:?}: {error}");
        }
        for field in ["version", "heartbeat", "oneway", "compress", "status", "reserved", "seq", "path", "method"] {
            assert_eq!(shown[field], recorded[field], "{field} of {path:?}");
        }
        assert_eq!(shown["response"], recorded["type"] == "response", "{path:?}");
        let no_pairs = serde_json::json!({});
        let metadata = if recorded["metadata"].is_null() { &no_pairs } else { &recorded["metadata"] };
        assert_eq!(&shown["metadata"], metadata, "{path:?}");
        seen += 1;
    }
    assert!(40 < seen, "only {seen} frames were compared");
}

#[test]
fn secrets_are_shown_only_when_asked_for() {
    let masked = dump("request_auth", &["--json"]);
    assert!(masked.contains(r#""__AUTH":"***""#), "{masked}");
    assert!(!dump("request_auth", &["--show-secrets"]).contains("***"));
}

/// One frame, as Bothways and rpcx write it.
fn frame(flags: u8, path: &str, method: &str, pairs: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let pairs: Vec<u8> = pairs.iter().flat_map(|(k, v)| [part(k.as_bytes()), part(v.as_bytes())].concat()).collect();
    let body = [part(path.as_bytes()), part(method.as_bytes()), part(&pairs), part(payload)].concat();
    [&[8, 0, flags, 0][..], &7_u64.to_be_bytes(), &part(&body)].concat()
}

/// A request that its server did not run comes back as a whole frame within another one, and its token may be valid: it
/// is shown as the request that it is, at any depth, or as a length, and never as bytes.
#[test]
fn a_token_that_a_server_returns_is_masked() {
    let request = frame(0x20, "Chat", "Say", &[("__AUTH", "SECRET"), ("k", "v")], b"hello");
    let returned = |payload: &[u8]| frame(0x20, "_bothways", "Return", &[("_bw.seq", "7")], payload);
    let secret = ["SECRET", "534543524554", "U0VDUkVU", "NFQ1JFV", "TRUNSRV"];

    let line = finish(bothways(&["dump"]), &returned(&request)).ended(0).to_owned();
    assert!(line.trim_end().ends_with(r#"[oneway  Chat.Say  seq 7  {__AUTH="***" k="v"}  "hello"]"#), "{line}");
    let line = finish(bothways(&["dump", "--show-secrets"]), &returned(&request)).ended(0).to_owned();
    assert!(line.contains("SECRET"), "{line}");
    let line = finish(bothways(&["dump", "--json"]), &returned(&request)).ended(0).to_owned();
    let shown: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&shown["returned"]["path"], &shown["returned"]["payload"]), (&"Chat".into(), &"hello".into()));
    assert_eq!(shown["returned"]["metadata"]["__AUTH"], "***");

    let cut = &request[..request.len() - 1];
    for payload in [&request[..], cut, &returned(&request), &returned(&returned(&request)), &[cut, cut].concat()] {
        for more in [&[][..], &["--json"]] {
            let ran = finish(bothways(&[&["dump"], more].concat()), &returned(payload));
            let line = ran.ended(0);
            assert!(!secret.iter().any(|secret| line.contains(secret)), "{line}");
        }
    }
}

#[test]
fn what_is_shown_of_a_payload_is_bounded() {
    let line = dump("push_large", &["--payload-max", "8"]);
    assert!(line.ends_with("hex:00010203… (1025 bytes in all)"), "{line}");
}

#[test]
fn bytes_come_from_a_file_or_from_standard_input() {
    let frame = b"\x08\x00\x20\x00\0\0\0\0\0\0\0\x01\0\0\0\x13\0\0\0\x01p\0\0\0\x01m\0\0\0\0\0\0\0\x01x";
    let twice = [&frame[..], frame].concat();
    let ran = finish(bothways(&["dump"]), &twice);
    let lines: Vec<&str> = ran.ended(0).lines().map(str::trim_start).collect();
    assert_eq!(lines, [r#"@0  oneway   p.m  seq 1  raw  35 B  "x""#, r#"@35  oneway   p.m  seq 1  raw  35 B  "x""#]);
    assert_eq!(finish(bothways(&["dump", "-", "--count", "1"]), &twice).ended(0).lines().count(), 1);

    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &twice[..60]).expect("written");
    let ran = run(&["dump", file.path().to_str().expect("UTF-8")]);
    ran.failed(2, &["ends within the frame at byte offset 35: 25 of 35 bytes"]);
    assert_eq!(ran.out.lines().count(), 1);

    std::fs::write(file.path(), [&twice[..], b"HTTP/1.1"].concat()).expect("written");
    let ran = run(&["dump", file.path().to_str().expect("UTF-8")]);
    ran.failed(2, &["at byte offset 70", "0x48", "hint:"]);
}

#[test]
fn a_frame_that_is_wrong_inside_does_not_hide_the_next() {
    let wrong = b"\x08\x00\x20\x00\0\0\0\0\0\0\0\x01\0\0\0\x04\xff\xff\xff\xff";
    let right = b"\x08\x00\x20\x00\0\0\0\0\0\0\0\x01\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let ran = finish(bothways(&["dump"]), &[&wrong[..], right].concat());
    ran.failed(2, &["1 frame could not be read"]);
    let lines: Vec<&str> = ran.out.lines().map(str::trim_start).collect();
    assert!(lines[0].starts_with("@0  bad frame") && lines[1].starts_with("@20  oneway"), "{lines:?}");
}

#[test]
fn the_proxy_shows_both_directions() {
    let server = Serving::with(&["--push-every", "20ms"], &[]);
    let proxy = Running::start(bothways(&["dump", "--proxy", "127.0.0.1:0", "--to", &server.address, "--json"]));
    let line = proxy.err.until("listening on");
    let address = line.trim_start_matches("listening on ").split(',').next().expect("an address").to_owned();
    let ran = run(&["listen", &address, "--call", "Arith.Mul", r#"{"A":6,"B":7}"#, "--count", "1", "--plain"]);
    ran.ended(0);
    let frame = |line: String| serde_json::from_str::<serde_json::Value>(&line).expect("JSON");
    let request = frame(proxy.out.until("\"request\""));
    assert_eq!((&request["to"], &request["payload"]["A"]), (&"server".into(), &6.into()));
    let reply = frame(proxy.out.until("\"reply\""));
    assert_eq!((&reply["to"], &reply["payload"]["C"]), (&"client".into(), &42.into()));
    let push = frame(proxy.out.until("\"oneway\""));
    assert_eq!((&push["to"], &push["payload"]), (&"client".into(), &"abcde".into()));
    proxy.err.until("#1 ended");
}
