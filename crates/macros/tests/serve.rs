//! Both sides together, over a connection in memory: what a stub sends is what a service gets, in both
//! directions.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use bothways::{
    CallError, CallOptions, Client, ClientOptions, Context, ErrorCode, Metadata, Router, SerializeType, Server,
    server::Listening,
};
use tokio::sync::Notify;

#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Args {
    a: i64,
    b: i64,
}

#[derive(Debug)]
enum Refused {
    TooLarge(Args),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooLarge(args) = self;
        write!(f, "{} times {} is too large", args.a, args.b)
    }
}

/// Both ends serve this one, and both call it.
#[bothways::service]
trait Arith {
    async fn mul(&self, args: Args) -> Result<i64, Refused>;

    /// Multiplies at the caller's own `Arith`, and says so beside the reply.
    async fn mul_at_yours(&self, cx: &mut Context, args: Args) -> Result<i64, CallError> {
        let product = ArithClient::new(cx.connection().clone()).mul(&args).await?;
        cx.reply_metadata().insert("multiplied", "at yours");
        Ok(product)
    }

    async fn note(&self, text: String);

    #[rpc(push)]
    async fn note_at_yours(&self, cx: &mut Context) -> Result<(), bothways::PushError> {
        ArithClient::new(cx.connection()).note(&"from the other end".to_owned()).await
    }

    async fn count(&self) -> Result<usize, Refused>;
}

#[derive(Clone, Default)]
struct Calculator {
    notes: Arc<Mutex<Vec<String>>>,
    noted: Arc<Notify>,
}

impl Calculator {
    async fn next_note(&self) -> String {
        self.noted.notified().await;
        self.notes.lock().unwrap().pop().expect("a note")
    }
}

impl Arith for Calculator {
    async fn mul(&self, args: Args) -> Result<i64, Refused> {
        // Not ready at once: the handler moves to a task of its own.
        tokio::task::yield_now().await;
        args.a.checked_mul(args.b).ok_or(Refused::TooLarge(args))
    }

    async fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
        self.noted.notify_one();
    }

    async fn count(&self) -> Result<usize, Refused> {
        Ok(self.notes.lock().unwrap().len())
    }
}

/// A server and a client that both serve a calculator, and the two calculators.
async fn pair(name: &str) -> (Listening, Client, Calculator, Calculator) {
    let (at_server, at_client) = (Calculator::default(), Calculator::default());
    let server = Server::builder().service(at_server.clone().into_service()).build();
    let address = format!("memory@{name}");
    let listening = server.listen(&address).await.expect("listens");
    let handlers = Router::new().service(at_client.clone().into_service());
    let client = Client::with_handlers(&address, ClientOptions::new(), handlers).await.expect("connects");
    (listening, client, at_server, at_client)
}

#[tokio::test]
async fn a_call_reaches_the_service_and_its_value_comes_back() {
    let (_listening, client, ..) = pair("call").await;
    let arith = ArithClient::new(&client);
    assert_eq!(arith.mul(&Args { a: 6, b: 7 }).await.unwrap(), 42);
    assert_eq!(arith.count().await.unwrap(), 0);
    let json = CallOptions::new().serialize_type(SerializeType::JSON);
    assert_eq!(arith.mul_with(&Args { a: 6, b: 7 }, json).await.unwrap().value, 42);
}

#[tokio::test]
async fn an_error_comes_back_as_its_text() {
    let (_listening, client, ..) = pair("error").await;
    let error = ArithClient::new(client).mul(&Args { a: i64::MAX, b: 2 }).await.unwrap_err();
    assert_eq!(error.remote_text(), Some("9223372036854775807 times 2 is too large"));
    assert_eq!(error.code(), None);
}

#[tokio::test]
async fn arguments_that_cannot_be_read_are_refused_before_the_method_runs() {
    let (_listening, client, ..) = pair("refusal").await;
    let error = client.call::<i64>("Arith", "Mul", &"no struct".to_owned()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BadArguments), "{error}");
}

#[tokio::test]
async fn a_method_can_call_the_peer_back_and_put_metadata_beside_its_reply() {
    let (_listening, client, ..) = pair("call back").await;
    let options = CallOptions::new().metadata([("k", "v")].into_iter().collect::<Metadata>());
    let response = ArithClient::new(&client).mul_at_yours_with(&Args { a: 6, b: 7 }, options).await.unwrap();
    assert_eq!((response.value, response.metadata.get("multiplied")), (42, Some("at yours")));
}

#[tokio::test]
async fn pushes_go_both_ways() {
    let (_listening, client, at_server, at_client) = pair("push").await;
    let arith = ArithClient::new(&client);
    arith.note(&"from the client".to_owned()).await.unwrap();
    assert_eq!(at_server.next_note().await, "from the client");
    arith.note_at_yours().await.unwrap();
    assert_eq!(at_client.next_note().await, "from the other end");
}

struct Greeter {
    greeting: String,
}

#[bothways::service(name = "greet.v1")]
impl Greeter {
    async fn greet(&self, cx: &mut Context, name: String) -> Result<String, String> {
        let mark = cx.metadata().get("mark").unwrap_or("!").to_owned();
        Ok(format!("{}, {name}{mark}", self.greeting))
    }
}

#[tokio::test]
async fn an_impl_block_serves_under_its_name() {
    let server = Server::builder().service(Greeter { greeting: "Hello".into() }).build();
    let _listening = server.listen("memory@greet").await.unwrap();
    let client = Client::connect("memory@greet", ClientOptions::new()).await.unwrap();
    let greeter = GreeterClient::new(client);
    assert_eq!(greeter.greet(&"Ada".to_owned()).await.unwrap(), "Hello, Ada!");
    let options = CallOptions::new().metadata([("mark", "?")].into_iter().collect::<Metadata>());
    assert_eq!(greeter.greet_with(&"Ada".to_owned(), options).await.unwrap().value, "Hello, Ada?");
    let error = GreeterClient::at(greeter.caller(), "greet.v2").greet(&"Ada".to_owned()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
}
