//! One server process, and three client processes that it serves at once: an unmodified Go client, a Go client with the
//! helper of `go/bothways`, and a Rust client.

use std::{collections::HashMap, time::Duration};

use bothways_interop::{
    LONG,
    app::App,
    fault_proxy::{FaultPlan, FaultProxy},
    go::go,
    peers::{ServerProcess, rust_program},
    until,
};
use serde_json::{Value, json};
use tokio::process::Command;

/// `session-server`, and what it has answered.
struct Sessions {
    server: ServerProcess,
    asked: u64,
    answers: HashMap<u64, Value>,
}

impl Sessions {
    async fn start() -> Self {
        let server = ServerProcess::start(Command::new(rust_program("session-server"))).await;
        Self { server, asked: 0, answers: HashMap::new() }
    }

    /// Gives it a command; answers its number.
    async fn tell(&mut self, mut command: Value) -> u64 {
        self.asked += 1;
        command["id"] = self.asked.into();
        self.server.process.tell(&command.to_string()).await;
        self.asked
    }

    /// What it says to the command of this number.
    async fn answer(&mut self, id: u64) -> Value {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            let line = self.server.process.line(LONG).await;
            let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            self.answers.insert(answer["id"].as_u64().expect("a number"), answer);
        }
    }

    async fn ask(&mut self, command: Value) -> Value {
        let id = self.tell(command).await;
        self.answer(id).await
    }

    /// Its sessions by their devices.
    async fn sessions(&mut self) -> HashMap<String, Value> {
        let all = self.ask(json!({"do": "sessions"})).await["sessions"].take();
        let Value::Array(all) = all else { panic!("{all}") };
        all.into_iter().map(|told| (told["device"].as_str().expect("a label").to_owned(), told)).collect()
    }
}

const DEVICES: [&str; 3] = ["plain", "helped", "rust"];

/// Each way to name clients, and which of the three it names.
fn targets() -> [(Value, [bool; 3]); 7] {
    [
        (json!({"user": "ann"}), [true, true, false]),
        (json!({"user": "bob"}), [false, false, true]),
        (json!({"topic": "news.sport"}), [true, true, true]),
        (json!({"topic": "news.art"}), [false, false, true]),
        (json!({"device": "plain"}), [true, false, false]),
        (json!({"device": "helped"}), [false, true, false]),
        (json!("everyone"), [true, true, true]),
    ]
}

/// All at once: the server pushes to the three by user, topic, label and broadcast; it calls the two that can be called;
/// each of the three calls it; and the connections of two break under all of that. Each client gets exactly what was
/// pushed to it, once and in order, each call runs once and has its own answer, and receipts say who did what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_serves_all_three_at_once() {
    const TURNS: i64 = 20;
    const PUSHES_A_TURN: usize = 35;
    let Some(go) = go() else { return };
    let mut sessions = Sessions::start().await;
    // What lies between the Rust client and the server; the one with the helper breaks its connection by itself.
    let plan = FaultPlan { seed: 3, cuts: 0, frames_max: 100, pause: Duration::from_millis(50) };
    let proxy = FaultProxy::start(sessions.server.socket_address(), plan).await;
    let address = sessions.server.address.clone();
    let mut plain = App::go(go, &address, &["-token", "ann/plain", "-topic", "news.sport", "-plain"]);
    let mut helped = App::go(go, &address, &["-token", "ann/helped"]);
    let mut rust = App::rust(proxy.address(), "bob/rust");
    plain.next("joined").await;
    for (app, topic) in [(&mut helped, "news.sport"), (&mut rust, "news.*")] {
        app.next("connected").await;
        app.tell(&format!("subscribe {topic}")).await;
        app.next("subscribed").await;
    }
    let before = sessions.sessions().await;
    assert_eq!(before.len(), 3, "{before:?}");

    let (mut pushed, mut expected) = (Vec::new(), [const { Vec::new() }; 3]);
    let (mut counted, mut breaks) = ([const { Vec::new() }; 2], 0);
    for turn in 0..TURNS {
        for (to, named) in targets().iter().cycle().take(PUSHES_A_TURN) {
            let text = format!("push {}", pushed.len());
            for (expected, _) in expected.iter_mut().zip(named).filter(|(_, named)| **named) {
                expected.push(text.clone());
            }
            let id = sessions.tell(json!({"do": "push", "to": to, "text": text})).await;
            pushed.push((id, *named));
        }
        let mut calls = Vec::new();
        for device in DEVICES {
            let call = json!({"do": "call", "to": {"device": device}, "a": turn, "b": 3});
            let count = json!({"do": "call", "to": {"device": device}, "a": 20});
            calls.push((sessions.tell(call).await, sessions.tell(count).await));
        }
        for app in [&mut plain, &mut helped, &mut rust] {
            app.tell(&format!("call {turn} 7")).await;
        }
        if turn % 5 == 2 {
            helped.tell("cut").await;
            proxy.cut_more(1);
            breaks += 1;
        }
        for (device, (call, count)) in calls.into_iter().enumerate() {
            let (product, run) = (sessions.answer(call).await, sessions.answer(count).await);
            let (product, run) = (&product["answers"][0], &run["answers"][0]);
            if device == 0 {
                assert_eq!(product["error"], "NotSupported");
                continue;
            }
            assert_eq!(*product, json!({"c": 3 * turn}), "{}", DEVICES[device]);
            counted[device - 1].push(run["c"].as_i64().unwrap_or_else(|| panic!("{run}")));
        }
        for app in [&mut plain, &mut helped, &mut rust] {
            let said = app.next_of("answered").await;
            assert_eq!((&said["a"], &said["b"], &said["c"]), (&json!(turn), &json!(7), &json!(7 * turn)), "{said}");
        }
    }

    // Each receipt: who can confirm has confirmed, and of who cannot it is known to be written.
    for (id, named) in pushed {
        let [plain, helped, rust] = named.map(u64::from);
        let told = sessions.answer(id).await;
        let ended = told["ended"].as_u64().expect("a number");
        assert_eq!(
            (&told["targets"], &told["handled"], &told["plain"]),
            (&json!(plain + helped + rust + ended), &json!(helped + rust), &json!(plain)),
            "{told} of {named:?}"
        );
        // Of a connection that has not said yet whose it is; only what goes to everyone can meet one.
        assert!(ended == 0 || named == [true; 3] && ended <= 2, "{told} of {named:?}");
    }
    for (at, app) in [&mut plain, &mut helped, &mut rust].into_iter().enumerate() {
        for (offset, text) in (1..).zip(&expected[at]) {
            let said = app.next_of("push").await;
            assert_eq!(said["text"], **text, "{}: {said}", DEVICES[at]);
            match DEVICES[at] {
                // It sees what Go's own server would send.
                "plain" => assert_eq!((&said["offset"], &said["metadata"]), (&json!(0), &json!({"k": "v"})), "{said}"),
                "helped" => assert_eq!(said["offset"], offset, "{said}"),
                _ => {}
            }
        }
    }
    for _ in 0..breaks {
        assert_eq!(helped.next_of("connected").await["lost"], "");
    }
    for run in 1..=TURNS {
        assert_eq!(helped.next_of("counting").await["runs"], run);
    }
    // A call that ran twice would leave out a number.
    for counted in counted {
        assert_eq!(counted, (1..=TURNS).collect::<Vec<_>>());
    }

    assert_eq!(proxy.cuts().len(), breaks);
    let after = sessions.sessions().await;
    for device in DEVICES {
        let (before, after) = (&before[device], &after[device]);
        assert_eq!(
            (&after["session"], &after["waiting"], &after["dropped"]),
            (&before["session"], &json!(0), &json!(0))
        );
        let generations = match device {
            "plain" => 1..=1,
            "helped" => breaks + 1..=breaks + 1,
            // A connection may break before the server hears the claim.
            _ => 2..=breaks + 1,
        };
        assert!(generations.contains(&(after["generation"].as_u64().expect("a number") as usize)), "{after}");
    }
    for app in [plain, helped, rust] {
        app.end().await;
    }
    // The plain one is not waited for, and both others have said that they leave.
    until("all sessions are over", LONG, async || sessions.sessions().await.is_empty()).await;
    assert!(sessions.server.process.stop(LONG).await.success());
}
