//! Errors as values across the wire, beside their texts.

use std::{fmt, time::Duration};

use bothways::{
    CallError, CallOptions, Client, ClientOptions, Context, Reply, Request, Router, SerializeType, Server,
    error::{APP_CODE_BYTES_MAX, ERROR_DETAIL_BYTES_MAX},
};
use tokio::time::timeout;

#[bothways::message]
#[derive(Clone, Debug, PartialEq)]
enum NotPaid {
    TooLittle { missing: u64 },
    Large(String),
    Locked,
}

impl fmt::Display for NotPaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not paid")
    }
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct RateLimited {
    retry_after_ms: u64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Empty {}

/// What another crate calls the same, and has more fields by now.
mod newer {
    #[bothways::message]
    #[derive(Debug, PartialEq)]
    pub(super) struct RateLimited {
        pub(super) retry_after_ms: u64,
        pub(super) why: String,
    }

    #[bothways::message]
    #[derive(Debug, PartialEq)]
    pub(super) enum NotPayed {
        Locked,
    }
}

/// It has a text alone.
#[derive(Debug)]
struct Plain;

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain")
    }
}

type Paid<T> = Result<T, NotPaid>;

#[bothways::service]
trait Bank {
    async fn pay(&self, amount: u64) -> Result<(), NotPaid>;
    async fn lock(&self) -> Paid<u8>;
    async fn large(&self, len: usize) -> Paid<u8>;
    async fn plain(&self, cx: &mut Context) -> Result<(), Plain>;
    async fn text(&self) -> Result<(), String>;
    async fn open(&self) -> Result<(), impl fmt::Display>;
    async fn own(&self, cx: &mut Context) -> Result<(), NotPaid>;
}

struct Branch;

impl Bank for Branch {
    async fn pay(&self, amount: u64) -> Result<(), NotPaid> {
        tokio::task::yield_now().await;
        if amount <= 10 { Ok(()) } else { Err(NotPaid::TooLittle { missing: amount - 10 }) }
    }

    async fn lock(&self) -> Paid<u8> {
        Err(NotPaid::Locked)
    }

    async fn large(&self, len: usize) -> Paid<u8> {
        Err(NotPaid::Large("x".repeat(len)))
    }

    async fn plain(&self, cx: &mut Context) -> Result<(), Plain> {
        cx.set_error_code(&"é".repeat(APP_CODE_BYTES_MAX));
        cx.reply_metadata().insert("_bw.detail", "not the framework's");
        cx.reply_metadata().insert("k", "v");
        Err(Plain)
    }

    async fn text(&self) -> Result<(), String> {
        Err("a text".to_owned())
    }

    async fn open(&self) -> Result<(), impl fmt::Display> {
        Err("open")
    }

    async fn own(&self, cx: &mut Context) -> Result<(), NotPaid> {
        cx.set_error_detail(&7);
        Err(NotPaid::Locked)
    }
}

/// A server and a client that both serve a bank.
async fn pair(name: &str, options: ClientOptions) -> (Server, bothways::server::Listening, Client) {
    let server = Server::builder().service(Branch.into_service()).handler("By", "Hand", by_hand).build();
    let address = format!("memory@{name}");
    let listening = server.listen(&address).await.expect("listens");
    let handlers = Router::new().service(Branch.into_service());
    let client = Client::with_handlers(&address, options, handlers).await.expect("connects");
    (server, listening, client)
}

async fn by_hand(_request: Request) -> Reply {
    Reply::error("by hand").with_detail(&NotPaid::Locked).with_app_code("locked")
}

async fn failed<T>(call: impl Future<Output = Result<T, CallError>>) -> CallError {
    timeout(Duration::from_secs(20), call).await.expect("in time").err().expect("it fails")
}

#[tokio::test]
async fn an_error_that_serde_writes_arrives_as_itself_in_both_directions() {
    let (server, _listening, client) = pair("typed errors", ClientOptions::new()).await;
    let bank = BankClient::new(&client);
    let error = failed(bank.pay(&15)).await;
    assert_eq!((error.remote_text(), error.code(), error.app_code()), (Some("not paid"), None, None));
    assert_eq!(error.detail::<NotPaid>(), Some(NotPaid::TooLittle { missing: 5 }));
    assert_eq!(error.detail::<u8>(), None);
    assert_eq!(bank.pay(&3).await.ok(), Some(()));
    // In whatever codec the call is, and through an alias.
    let json = CallOptions::new().serialize_type(SerializeType::JSON);
    assert_eq!(failed(bank.lock_with(json)).await.detail(), Some(NotPaid::Locked));
    let error = failed(client.call::<()>("By", "Hand", &())).await;
    assert_eq!((error.detail(), error.app_code()), (Some(NotPaid::Locked), Some("locked")));

    let session = server.sessions(&bothways::Target::everyone()).expect("no topic")[0].clone();
    let error = failed(BankClient::new(&session).pay(&12)).await;
    assert_eq!(error.detail(), Some(NotPaid::TooLittle { missing: 2 }));
}

#[tokio::test]
async fn an_error_of_another_type_is_none() {
    let handlers = Router::new()
        .handler("T", "limited", |_: Request| async {
            Reply::error("limited").with_detail(&RateLimited { retry_after_ms: 5 })
        })
        .handler("T", "boxed", |_: Request| async {
            Reply::error("limited").with_detail(&Box::new(RateLimited { retry_after_ms: 5 }))
        })
        .handler("T", "list", |_: Request| async { Reply::error("list").with_detail(&["apples", "pears"]) });
    let server = Server::builder().router(handlers).handler("By", "Hand", by_hand).build();
    let listening = server.listen("memory@other errors").await.expect("listens");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("connects");

    for method in ["limited", "boxed"] {
        let error = failed(client.call::<()>("T", method, &())).await;
        assert_eq!(error.detail::<Empty>(), None);
        assert_eq!(error.detail::<()>(), None);
        assert_eq!(error.detail::<NotPaid>(), None);
        assert_eq!(error.detail::<Option<RateLimited>>(), None);
        assert_eq!(error.detail(), Some(RateLimited { retry_after_ms: 5 }));
        // The same type at another age, and through a pointer.
        assert_eq!(error.detail(), Some(newer::RateLimited { retry_after_ms: 5, why: String::new() }));
        assert_eq!(error.detail::<Box<RateLimited>>().map(|limited| limited.retry_after_ms), Some(5));
    }

    let error = failed(client.call::<()>("By", "Hand", &())).await;
    assert_eq!((error.detail::<newer::NotPayed>(), error.detail()), (None, Some(NotPaid::Locked)));
    let error = failed(client.call::<()>("T", "list", &())).await;
    assert_eq!((error.detail::<RateLimited>(), error.detail::<Empty>()), (None, None));
    assert_eq!(error.detail(), Some(vec!["apples".to_owned(), "pears".to_owned()]));
}

/// A text that the hook hides would otherwise leave as the value beside the new one.
#[tokio::test]
async fn what_on_error_hides_does_not_leave_beside_the_new_text() {
    let server = Server::builder()
        .service(Branch.into_service())
        .handler("By", "Hand", by_hand)
        .on_error(|_, method, text| if method == "Own" { text } else { "internal error".to_owned() })
        .build();
    let listening = server.listen("memory@hidden errors").await.expect("listens");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("connects");

    let bank = BankClient::new(&client);
    let hidden = [
        failed(bank.text()).await,
        failed(bank.pay(&15)).await,
        failed(bank.plain()).await,
        failed(client.call::<()>("By", "Hand", &())).await,
    ];
    for error in hidden {
        assert_eq!((error.remote_text(), error.code(), error.app_code()), (Some("internal error"), None, None));
        assert_eq!((error.detail::<String>(), error.detail::<NotPaid>()), (None, None));
    }
    // What the hook lets pass stays whole.
    let error = failed(bank.own()).await;
    assert_eq!((error.remote_text(), error.detail()), (Some("not paid"), Some(7)));
}

#[tokio::test]
async fn an_error_without_a_value_is_its_text() {
    let (_server, _listening, client) = pair("plain errors", ClientOptions::new()).await;
    let bank = BankClient::new(&client);
    let error = failed(bank.plain()).await;
    assert_eq!((error.remote_text(), error.detail::<String>()), (Some("plain"), None));
    assert_eq!(error.app_code(), Some(&*"é".repeat(APP_CODE_BYTES_MAX / 2)));
    let metadata = error.beside().expect("the peer answered").metadata();
    assert_eq!((metadata.get("k"), metadata.get("_bw.app")), (Some("v"), None));
    // The value would be the text once more.
    let error = failed(bank.text()).await;
    assert_eq!((error.remote_text(), error.detail::<String>()), (Some("a text"), None));
    assert_eq!(failed(bank.open()).await.remote_text(), Some("open"));
    // What the handler says itself goes before its error.
    assert_eq!(failed(bank.own()).await.detail(), Some(7));
}

#[tokio::test]
async fn what_is_too_large_beside_a_text_is_left_out() {
    let (_server, _listening, client) = pair("large errors", ClientOptions::new()).await;
    let bank = BankClient::new(&client);
    let error = failed(bank.large(&(ERROR_DETAIL_BYTES_MAX - 100))).await;
    assert!(matches!(error.detail(), Some(NotPaid::Large(_))));
    let error = failed(bank.large(&ERROR_DETAIL_BYTES_MAX)).await;
    assert_eq!((error.remote_text(), error.detail::<NotPaid>()), (Some("not paid"), None));
}

#[tokio::test]
async fn a_plain_client_sees_the_text_alone() {
    let (_server, _listening, client) = pair("plain client", ClientOptions::new().negotiate(false)).await;
    let bank = BankClient::new(&client);
    for error in [failed(bank.pay(&15)).await, failed(client.call::<()>("By", "Hand", &())).await] {
        assert_eq!((error.detail::<NotPaid>(), error.app_code()), (None, None));
        assert!(error.remote_text().is_some() && error.beside().expect("it answered").metadata().is_empty());
    }
    let error = failed(bank.plain()).await;
    assert_eq!(error.beside().expect("it answered").metadata().get("k"), Some("v"));
}
