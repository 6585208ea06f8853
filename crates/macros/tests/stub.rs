//! The calling side: what a stub asks of a `Caller`, and what it makes of the answer.

use std::{future::ready, sync::Mutex, time::Duration};

use bothways::{
    CallError, CallOptions, Caller, Context, Metadata, PushError, Router, SerializeType,
    caller::{RawCall, RawReply},
    codec::Raw,
};
use bytes::Bytes;
use hex_literal::hex;

#[bothways::message]
#[derive(Clone, Debug, PartialEq)]
struct Args {
    a: i64,
    b: i64,
}

#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Product {
    c: i64,
}

#[bothways::service]
trait Arith {
    /// Multiplies.
    async fn mul(&self, args: Args) -> Result<Product, String>;

    /// With a context, and without an argument.
    async fn uptime(&self, cx: &mut Context) -> Result<u64, std::fmt::Error> {
        let _ = cx.metadata();
        Ok(1)
    }

    #[rpc(name = "say-hello")]
    async fn greet(&self, _: String);

    #[rpc(push)]
    async fn note(&self, cx: &mut bothways::Context, options: Raw) -> alias::Result<()>;

    #[cfg(any())]
    async fn never(&self, args: NoSuchType) -> Result<(), String>;
}

/// Keeps what it is asked to send, and answers with `{C: 200}`.
#[derive(Default)]
struct Tape {
    sent: Mutex<Vec<String>>,
    answer: Option<&'static [u8]>,
}

impl Tape {
    fn record(&self, what: &str, raw: &RawCall<'_>) {
        let RawCall { service_path, service_method, serialize, payload, .. } = raw;
        let line = format!("{what} {service_path}.{service_method} {serialize} {payload:?}");
        self.sent.lock().unwrap().push(line);
    }

    fn sent(&self) -> Vec<String> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

impl Caller for Tape {
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        self.record("call", &call);
        let payload = Bytes::from_static(self.answer.unwrap_or(&hex!("81 a143 ccc8")));
        let metadata = [("k", "v")].into_iter().collect::<Metadata>();
        ready(Ok(RawReply { serialize: SerializeType::MSGPACK, payload, metadata }))
    }

    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        self.record("push", &push);
        ready(Ok(()))
    }
}

#[tokio::test]
async fn a_stub_sends_the_arguments_and_reads_the_reply() {
    let arith = ArithClient::new(Tape::default());
    assert_eq!(arith.mul(&Args { a: 10, b: 20 }).await.unwrap(), Product { c: 200 });
    assert_eq!(arith.caller().sent(), [r#"call Arith.Mul msgpack (3) b"\x82\xa1A\n\xa1B\x14""#]);
}

#[tokio::test]
async fn the_variant_with_options_gives_the_replys_metadata_too() {
    let arith = ArithClient::new(Tape::default());
    let options = CallOptions::new().timeout(Duration::from_secs(1)).serialize_type(SerializeType::JSON);
    let response = arith.mul_with(&Args { a: 1, b: 2 }, options).await.unwrap();
    assert_eq!((response.value, response.metadata.get("k")), (Product { c: 200 }, Some("v")));
    assert_eq!(arith.caller().sent(), [r#"call Arith.Mul json (1) b"{\"A\":1,\"B\":2}""#]);
}

#[tokio::test]
async fn a_method_without_arguments_sends_nil() {
    let arith = ArithClient::new(Tape { answer: Some(&[7]), ..Tape::default() });
    assert_eq!(arith.uptime().await.unwrap(), 7);
    assert_eq!(arith.caller().sent(), [r#"call Arith.Uptime msgpack (3) b"\xc0""#]);
}

#[tokio::test]
async fn a_method_without_a_reply_is_pushed() {
    let tape = Tape::default();
    let arith = ArithClient::new(&tape);
    arith.greet("hi").await.unwrap();
    arith.note(&Raw::from("hi")).await.unwrap();
    arith.note_with(&Raw::from("hi"), CallOptions::new()).await.unwrap();
    let note = r#"push Arith.Note raw (0) b"hi""#;
    assert_eq!(tape.sent(), [r#"push Arith.say-hello msgpack (3) b"\xa2hi""#, note, note]);
}

#[tokio::test]
async fn a_stub_may_call_a_service_of_another_name() {
    let arith = ArithClient::at(Tape::default(), "Calculator");
    arith.mul(&Args { a: 0, b: 0 }).await.unwrap();
    assert!(arith.caller().sent()[0].starts_with("call Calculator.Mul "));
}

#[tokio::test]
async fn an_empty_or_wrong_reply_is_a_decode_error() {
    let arith = ArithClient::new(Tape { answer: Some(b""), ..Tape::default() });
    let error = arith.mul(&Args { a: 1, b: 2 }).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot decode the reply: msgpack (3): the payload is empty");
    let arith = ArithClient::new(Tape { answer: Some(&hex!("a178")), ..Tape::default() });
    assert!(matches!(arith.mul(&Args { a: 1, b: 2 }).await, Err(CallError::Decode(_))));
}

#[test]
fn a_call_through_a_stub_can_run_on_any_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let arith = ArithClient::new(Tape::default());
    drop(is_send(arith.mul(&Args { a: 1, b: 2 })));
    drop(is_send(Doubler(2).mul(Args { a: 1, b: 2 })));
}

struct Doubler(i64);

impl Arith for Doubler {
    async fn mul(&self, args: Args) -> Result<Product, String> {
        tokio::task::yield_now().await;
        Ok(Product { c: args.a * args.b * self.0 })
    }

    async fn greet(&self, _: String) {}

    async fn note(&self, _cx: &mut Context, _note: Raw) -> alias::Result<()> {
        Ok(())
    }
}

/// An alias that leaves the error out is a `Result` too.
mod alias {
    pub(super) type Result<T> = std::result::Result<T, std::fmt::Error>;
}

struct Inherent;

#[bothways::service(name = "inherent.v1", crate = "bothways")]
impl Inherent {
    #[rpc(name = "ECHO")]
    async fn echo(&self, text: String) -> Result<String, String> {
        self.helper().await;
        Ok(text)
    }

    async fn nothing(&self) {}

    #[rpc(skip)]
    async fn helper(&self) {}

    fn new() -> Self {
        Self
    }

    async fn connect() -> Self {
        Self
    }
}

#[tokio::test]
async fn a_trait_and_an_impl_offer_their_methods_under_the_names_of_the_wire() {
    let router = Router::new().service(Doubler(2).into_service()).service(Inherent::new());
    let routes = router.routes();
    let routes: Vec<_> = routes.iter().map(|(path, method)| format!("{path}/{method}")).collect();
    let arith = ["Arith/Mul", "Arith/Note", "Arith/Uptime", "Arith/say-hello"];
    assert_eq!(routes, [&arith[..], &["inherent.v1/ECHO", "inherent.v1/Nothing"]].concat());

    let client = InherentClient::new(Tape { answer: Some(b"\xa1x"), ..Tape::default() });
    assert_eq!(client.echo("x").await.unwrap(), "x");
    client.nothing().await.unwrap();
    let sent = client.caller().sent();
    assert_eq!(sent[0], r#"call inherent.v1.ECHO msgpack (3) b"\xa1x""#);
    assert_eq!(sent[1], r#"push inherent.v1.Nothing msgpack (3) b"\xc0""#);
    Inherent::connect().await;
}
