//! The pushes of a service as values: they reach users, topics and everyone, and a handler of the same trait gets them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways::{Class, Client, ClientOptions, Context, Push, Router, Server, Stage, Target, session::Failure};
use tokio::time::timeout;

#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Note {
    text: String,
}

#[bothways::service(name = "inbox.v1")]
trait Inbox {
    /// A note.
    async fn deliver(&self, note: Note);

    #[rpc(push, name = "ring-twice")]
    async fn ring(&self, cx: &mut Context) -> Result<(), String>;

    async fn say(&self, text: &str);

    async fn data(&self, data: &[u8]);

    #[cfg(any())]
    async fn never(&self, of: NoSuchType);

    async fn count(&self) -> Result<usize, String>;
}

#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl Kept {
    fn keep(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Inbox for Kept {
    async fn deliver(&self, note: Note) {
        self.keep(note.text);
    }

    async fn ring(&self, _cx: &mut Context) -> Result<(), String> {
        self.keep("ring".to_owned());
        Ok(())
    }

    async fn say(&self, text: &str) {
        self.keep(format!("says {text}"));
    }

    async fn data(&self, data: &[u8]) {
        self.keep(format!("{data:?}"));
    }

    async fn count(&self) -> Result<usize, String> {
        Ok(self.0.lock().unwrap().len())
    }
}

#[tokio::test]
async fn a_push_of_a_service_reaches_users_topics_and_everyone() {
    let server = Server::builder()
        .auth(|request| async move {
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .build();
    let _listening = server.listen("memory@typed pushes").await.expect("listens");
    let kept = Arc::new(Kept::default());
    let handlers = Router::new().service(Arc::clone(&kept).into_service());
    let options = ClientOptions::new().auth("ann");
    let client = Client::with_handlers("memory@typed pushes", options, handlers).await.expect("connects");
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    session.subscribe("news").expect("a topic");

    let note = Note { text: "a note".into() };
    let latest = InboxPush::deliver(&note).unwrap().class(Class::Latest("note".into()));
    let receipts = [
        server.push(&Target::user("ann"), &InboxPush::deliver(&note).unwrap()).unwrap(),
        server.publish("news", &InboxPush::say("hello").unwrap()).unwrap(),
        server.push(&Target::everyone(), &InboxPush::ring().unwrap()).unwrap(),
        server.push(&Target::user("ann"), &InboxPush::data(&[1, 2]).unwrap()).unwrap(),
        server.push(&Target::user("ann"), &latest).unwrap(),
    ];
    for receipt in receipts {
        let outcomes = timeout(Duration::from_secs(20), receipt.handled()).await.expect("in time");
        assert_eq!(outcomes.at(Stage::Handled), 1, "{outcomes:?}");
    }
    assert_eq!(*kept.0.lock().unwrap(), ["a note", "says hello", "ring", "[1, 2]", "a note"]);
    drop(client);
}

/// A Go server pushes bytes without a codec, and nothing else: a handler that takes bytes gets them, and one that takes
/// nothing is run.
#[tokio::test]
async fn bytes_of_a_go_server_reach_typed_handlers() {
    let server = Server::builder().build();
    let _listening = server.listen("memory@pushes of bytes").await.expect("listens");
    let kept = Arc::new(Kept::default());
    let handlers = Router::new().service(Arc::clone(&kept).into_service());
    let client =
        Client::with_handlers("memory@pushes of bytes", ClientOptions::new(), handlers).await.expect("connects");
    for (method, bytes, stage) in [
        ("Data", &b"\xff\x01"[..], Stage::Handled),
        ("Data", b"", Stage::Handled),
        ("ring-twice", b"whatever", Stage::Handled),
        ("Say", b"text", Stage::Failed(Failure::BadArguments)),
        ("Deliver", b"{}", Stage::Failed(Failure::BadArguments)),
    ] {
        let receipt = server.push(&Target::everyone(), &Push::new("inbox.v1", method, bytes)).expect("no topic");
        let outcomes = timeout(Duration::from_secs(20), receipt.handled()).await.expect("in time");
        assert_eq!(outcomes.at(stage), 1, "{method}: {outcomes:?}");
    }
    assert_eq!(*kept.0.lock().unwrap(), ["[255, 1]", "[]", "ring"]);
    drop(client);
}

struct Bell;

#[bothways::service]
impl Bell {
    async fn ring(&self) {}
}

#[test]
fn an_impl_block_has_its_pushes_too() {
    assert!(BellPush::ring().is_ok());
    assert_eq!(Router::new().service(Bell).routes(), [("Bell".to_owned(), "Ring".to_owned())]);
}
