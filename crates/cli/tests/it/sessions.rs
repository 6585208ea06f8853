//! `bothways sessions`, `explain`, `kick` and `push` to users and topics, against `bothways serve`.

use crate::{
    pushing::{TOKEN, listener, operate, serving},
    support::{Running, Serving, run},
};

/// A client that has logged in as this user, and hears of news.
fn logged_in(server: &Serving, user: &str) -> Running {
    let login = format!("{{\"User\":\"{user}\",\"Topics\":[\"news.*\"]}}");
    let listener = listener(server, &["--call", "Demo.Login", &login]);
    listener.err.until("answered");
    listener
}

/// Nobody subscribes to any number of topics by it.
#[test]
fn a_login_has_a_bound_in_topics() {
    let server = serving();
    let login = |topics: std::ops::Range<usize>| {
        let topics: Vec<String> = topics.map(|number| format!("\"news.{number}\"")).collect();
        run(&[
            "call",
            &server.address,
            "Demo.Login",
            &format!("{{\"User\":\"eve\",\"Topics\":[{}]}}", topics.join(",")),
        ])
    };
    login(0..100).ended(0);
    let refused = login(0..101);
    assert!(refused.code != Some(0) && refused.err.contains("at most 100 topics"), "{refused:?}");
}

/// Who is there, what they were sent, and that they were sent away: an operator sees it all from outside.
#[test]
fn a_user_is_found_pushed_to_explained_and_kicked() {
    let server = serving();
    let (ann, bob) = (logged_in(&server, "ann"), logged_in(&server, "bob"));
    let push = ["push", &server.admin, "--user", "ann", "Chat.Say", "hi ann", "--until", "handled", "--within", "9s"];
    assert_eq!(operate(&push, TOKEN).ended(0), "1 session: 1 handled\n");
    assert!(ann.out.until("Chat.Say").ends_with("\"hi ann\""));
    let latest = ["push", &server.admin, "--topic", "news.sport", "News.Set", "3:1", "--latest", "score", "--json"];
    let ran = operate(&latest, TOKEN);
    let outcome: serde_json::Value = serde_json::from_str(ran.ended(0)).expect("JSON");
    assert_eq!(outcome["dropped"], 0);
    for client in [&ann, &bob] {
        assert!(client.out.until("News.Set").ends_with("\"3:1\""));
    }

    let table = operate(&["sessions", &server.admin], TOKEN);
    let lines: Vec<&str> = table.ended(0).lines().collect();
    assert!(lines[0].starts_with("ID ") && lines[0].ends_with("TOPICS"), "{table:?}");
    assert!(lines[1].contains(" ann ") && lines[1].ends_with("news.*"), "{table:?}");
    assert!(lines[2].contains(" bob ") && lines.len() == 3, "{table:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{table:?}");
    let first = operate(&["sessions", &server.admin, "--max", "1"], TOKEN);
    let lines: Vec<&str> = first.ended(0).lines().collect();
    assert!(lines[1].contains(" ann ") && lines[2] == "1 of 2; --max shows more", "{first:?}");
    let listed = operate(&["sessions", &server.admin, "--user", "ann", "--json"], TOKEN);
    let listed: serde_json::Value = serde_json::from_str(listed.ended(0)).expect("JSON");
    let session = &listed["sessions"][0];
    assert_eq!((&listed["total"], &session["user"], &session["resumable"]), (&1.into(), &"ann".into(), &true.into()));
    let id = session["id"].as_str().expect("a text");

    let here = operate(&["sessions", &server.admin, "--user", "ann", "--json", "--here"], TOKEN);
    let here: serde_json::Value = serde_json::from_str(here.ended(0)).expect("JSON");
    // What waits for it is a moment older.
    let same = |listed: &serde_json::Value| {
        (listed["total"].clone(), listed["silent"].clone(), listed["sessions"][0]["id"].clone())
    };
    assert_eq!(same(&here), same(&listed), "a server alone");
    let nodes = operate(&["nodes", &server.admin], TOKEN);
    let lines: Vec<&str> = nodes.ended(0).lines().collect();
    assert!(lines[0].starts_with("NODE ") && lines[1].starts_with("alone*  up ") && lines.len() == 2, "{nodes:?}");
    let json = operate(&["nodes", &server.admin, "--json"], TOKEN);
    let json: serde_json::Value = serde_json::from_str(json.ended(0)).expect("JSON");
    assert_eq!((&json[0]["sessions"], &json[0]["is_here"]), (&2.into(), &true.into()));

    let kick = ["kick", &server.admin, "--session", id, "--why", "too loud"];
    assert_eq!(operate(&kick, TOKEN).ended(0), "ended 1 session\n");
    // It is told why, once, and does not come back.
    let last = ann.err.until("too loud");
    assert!(last.starts_with("error: ") && !last.contains("connecting again"), "{last}");
    operate(&kick, TOKEN).failed(1, &["no such session", "bothways sessions"]);
    let story = operate(&["explain", &server.admin, "--session", id], TOKEN);
    let story = story.ended(0);
    for part in ["of ann, ended", "user ann", "subscribed to news.*", "push Chat.Say (tracked", "ended: too loud"] {
        assert!(story.contains(part), "`{part}` is not in\n{story}");
    }
    assert!(!story.contains("hi ann"), "{story}");
    let json = operate(&["explain", &server.admin, "--user", "bob", "--json"], TOKEN);
    let json: serde_json::Value = serde_json::from_str(json.ended(0)).expect("JSON");
    assert_eq!(json[0]["user"], "bob");
    operate(&["explain", &server.admin, "--user", "nobody"], TOKEN).failed(1, &["no such session"]);
    operate(&["explain", &server.admin, "--user", "bob"], "wr0ng").failed(1, &["the admin token"]);
}
