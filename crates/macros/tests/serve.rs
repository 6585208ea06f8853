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
        ArithClient::new(cx.connection()).note("from the other end").await
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
    arith.note("from the client").await.unwrap();
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
    assert_eq!(greeter.greet("Ada").await.unwrap(), "Hello, Ada!");
    let options = CallOptions::new().metadata([("mark", "?")].into_iter().collect::<Metadata>());
    assert_eq!(greeter.greet_with("Ada", options).await.unwrap().value, "Hello, Ada?");
    let error = GreeterClient::at(greeter.caller(), "greet.v2").greet("Ada").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
}

/// Aliases of `Result` under any name, and arguments by reference.
mod borrowed {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Debug)]
    pub(super) struct Empty;

    impl fmt::Display for Empty {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("nothing there")
        }
    }

    pub(super) type Result<T> = std::result::Result<T, Empty>;
    type Answer<T> = std::result::Result<T, Empty>;
    type Failed<E> = std::result::Result<(), E>;
    type Length = std::result::Result<usize, Empty>;
    type Swapped<E, T> = std::result::Result<T, E>;

    #[bothways::service]
    pub(super) trait Shelf {
        async fn one(&self, name: &str) -> Result<String>;
        #[expect(clippy::ptr_arg, reason = "what an alias of a text may be")]
        async fn other(&self, cx: &mut Context, _: &String) -> Answer<String>;
        async fn none(&self, args: &Args) -> Failed<Empty>;
        async fn length(&self, data: &[u8]) -> Length;
        async fn sum(&self, numbers: &[i64]) -> Swapped<Empty, i64> {
            Ok(numbers.iter().sum())
        }
        async fn owned(&self, text: String) -> bothways_result::Outcome<String>;
        async fn note(&self, text: &'_ str);
        #[rpc(push)]
        async fn jot(&self, text: &str) -> Failed<Empty>;
        async fn map(&self, of: &BTreeMap<String, i64>) -> Result<i64>;
        #[cfg(any())]
        async fn never(&self, of: &NoSuchType) -> NoSuchResult;
    }

    mod bothways_result {
        pub(in super::super) type Outcome<T> = std::result::Result<T, super::Empty>;
    }

    #[derive(Default)]
    pub(super) struct Books {
        pub(super) notes: Mutex<Vec<String>>,
        pub(super) noted: Notify,
    }

    impl Shelf for Books {
        async fn one(&self, name: &str) -> Result<String> {
            tokio::task::yield_now().await;
            if name.is_empty() { Err(Empty) } else { Ok(format!("one {name}")) }
        }

        async fn other(&self, cx: &mut Context, name: &String) -> Answer<String> {
            cx.reply_metadata().insert("k", "v");
            Ok(format!("other {name}"))
        }

        async fn none(&self, args: &Args) -> Failed<Empty> {
            if args.a == 0 { Err(Empty) } else { Ok(()) }
        }

        async fn length(&self, data: &[u8]) -> Length {
            Ok(data.len())
        }

        async fn owned(&self, text: String) -> bothways_result::Outcome<String> {
            Ok(text)
        }

        async fn note(&self, text: &str) {
            self.notes.lock().unwrap().push(text.to_owned());
            self.noted.notify_one();
        }

        async fn jot(&self, text: &str) -> Failed<Empty> {
            self.note(text).await;
            Ok(())
        }

        async fn map(&self, of: &BTreeMap<String, i64>) -> Result<i64> {
            of.get("a").copied().ok_or(Empty)
        }
    }

    /// The program keeps one half, the server the other.
    pub(super) async fn shelf(name: &str) -> (Listening, ShelfClient<Client>, Arc<Books>) {
        let books = Arc::new(Books::default());
        let server = Server::builder().service(Arc::clone(&books).into_service()).build();
        let address = format!("memory@{name}");
        let listening = server.listen(&address).await.expect("listens");
        let client = Client::connect(&address, ClientOptions::new()).await.expect("connects");
        (listening, ShelfClient::new(client), books)
    }
}

#[tokio::test]
async fn a_method_may_return_any_alias_of_result() {
    use borrowed::ShelfClient;

    let (_listening, shelf, _) = borrowed::shelf("aliases").await;
    assert_eq!(shelf.one("book").await.unwrap(), "one book");
    assert_eq!(shelf.one("").await.unwrap_err().remote_text(), Some("nothing there"));
    let response = ShelfClient::new(shelf.caller()).other_with("book", CallOptions::new()).await.unwrap();
    assert_eq!((response.value.as_str(), response.metadata.get("k")), ("other book", Some("v")));
    assert_eq!(shelf.none(&Args { a: 1, b: 0 }).await.ok(), Some(()));
    assert_eq!(shelf.none(&Args::default()).await.unwrap_err().remote_text(), Some("nothing there"));
    assert_eq!(shelf.sum(&[1, 2, 3]).await.unwrap(), 6);
}

#[tokio::test]
async fn a_method_may_take_its_argument_by_reference_and_a_stub_takes_a_str() {
    let (_listening, shelf, books) = borrowed::shelf("references").await;
    assert_eq!(shelf.owned("by a str").await.unwrap(), "by a str");
    assert_eq!(shelf.owned("by a String").await.unwrap(), "by a String");
    // Go's `[]byte` on the way, in both codecs.
    let json = CallOptions::new().serialize_type(SerializeType::JSON);
    assert_eq!(shelf.length(&[1, 2, 3]).await.unwrap(), 3);
    assert_eq!(shelf.length_with(&[1, 2, 3], json).await.unwrap().value, 3);
    assert_eq!(shelf.caller().call::<usize>("Shelf", "Length", &bytes::Bytes::from_static(b"hi")).await.unwrap(), 2);
    assert_eq!(shelf.map(&[("a".to_owned(), 7)].into()).await.unwrap(), 7);

    shelf.note("a note").await.unwrap();
    books.noted.notified().await;
    shelf.jot("another").await.unwrap();
    books.noted.notified().await;
    assert_eq!(*books.notes.lock().unwrap(), ["a note", "another"]);
}

#[tokio::test]
async fn a_service_may_be_an_arc_that_the_program_keeps() {
    use borrowed::{Books, ShelfService};

    let greeter = Arc::new(Greeter { greeting: "Hello".into() });
    let books = Arc::new(ShelfService(Books::default()));
    let server = Server::builder().service(Arc::clone(&greeter)).service(Arc::clone(&books)).build();
    let _listening = server.listen("memory@arcs").await.unwrap();
    let client = Client::connect("memory@arcs", ClientOptions::new()).await.unwrap();
    assert_eq!(GreeterClient::new(&client).greet("Ada").await.unwrap(), "Hello, Ada!");
    borrowed::ShelfClient::new(&client).note("kept").await.unwrap();
    books.0.noted.notified().await;
    assert_eq!(*books.0.notes.lock().unwrap(), ["kept"]);
}

/// A method may be called as one of the standard library's. In a module: an `Arc` has two of them here.
mod copies {
    use super::*;

    #[bothways::service]
    trait Copies {
        async fn clone(&self, of: u8) -> Result<u8, String>;
    }

    struct Copier;

    impl Copies for Copier {
        async fn clone(&self, of: u8) -> Result<u8, String> {
            Ok(of)
        }
    }

    #[tokio::test]
    async fn a_method_may_be_called_clone() {
        let server = Server::builder().service(Arc::new(Copier).into_service()).build();
        let listening = server.listen("memory@copies").await.expect("listens");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("connects");
        let copies = CopiesClient::new(&client);
        let copy = tokio::time::timeout(std::time::Duration::from_secs(20), copies.clone(&7)).await;
        assert_eq!(copy.expect("in time").ok(), Some(7));
    }
}
