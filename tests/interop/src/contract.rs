//! The services of every test server: the table of `go/README.md`, in Rust.
//!
//! Types and texts are those of Go's `internal/contract`; a field's name is its key, case and all.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways::{
    Connection, Limits, Metadata, Payload, Router, Server, ServerBuilder,
    codec::{Blob, Nanos, Protobuf, Raw, Thrift, Timestamp},
    handler::{Context, Reply as HandlerReply, Request},
};
use serde::{Deserialize, Serialize};
use thrift::protocol::{TFieldIdentifier, TInputProtocol, TOutputProtocol, TSerializable, TStructIdentifier, TType};
use tokio::time::{Instant, sleep};

/// What a server that was given a token says to every other token.
pub const AUTH_REFUSAL: &str = "invalid token";
/// Where pushes go.
pub const PUSH_PATH: &str = "test_service_path";
/// Where pushes go.
pub const PUSH_METHOD: &str = "test_service_method";
/// What pushes carry that carry no number.
pub const PUSH_PAYLOAD: &str = "abcde";
/// What `Meta.Echo` puts before each key.
pub const GOT_PREFIX: &str = "got-";

/// The arguments of rpcx's own examples.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Args {
    pub a: i64,
    pub b: i64,
}

/// The reply of rpcx's own examples.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Reply {
    pub c: i64,
}

/// A single string.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Text {
    pub s: String,
}

/// What `Meta.Echo` saw of its deadline.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MetaReply {
    /// There was one.
    pub deadline: bool,
    /// Until then.
    pub millis: i64,
}

/// What [`Types`] nests.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Inner {
    pub name: String,
    pub value: i64,
}

/// A struct with Go's tags, and another embedded in it by pointer.
#[bothways::message]
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)]
pub struct Tagged {
    #[message(json = "full_name")]
    pub full_name: String,
    #[message(json = "value", rename = "v")]
    pub value: i64,
    #[message(json = "data")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<u8>,
    #[serde(flatten)]
    pub inner: Option<Inner>,
}

/// The values of Go's `contract.SampleTagged`.
pub fn sample_tagged() -> Tagged {
    let inner = Some(Inner { name: "within".to_owned(), value: 7 });
    Tagged { full_name: "Ada".to_owned(), value: -6, data: vec![0, 255], inner }
}

/// A field of each Go type that the codecs treat in their own way.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Types {
    pub bool: bool,
    pub int: i64,
    pub int8: i8,
    pub int16: i16,
    pub int32: i32,
    pub int64: i64,
    pub uint: u64,
    pub uint8: u8,
    pub uint16: u16,
    pub uint32: u32,
    pub uint64: u64,
    pub float32: f32,
    pub float64: f64,
    pub string: String,
    #[serde(with = "bothways::codec::bytes")]
    pub bytes: Vec<u8>,
    #[serde(with = "bothways::codec::bytes")]
    pub nil_bytes: Vec<u8>,
    #[serde(with = "bothways::codec::bytes")]
    pub empty_bytes: Vec<u8>,
    pub nested: Inner,
    pub pointer: Option<Inner>,
    pub nil_pointer: Option<Inner>,
    pub map: BTreeMap<String, String>,
    pub nil_map: BTreeMap<String, String>,
    pub empty_map: BTreeMap<String, String>,
    pub strings: Vec<String>,
    pub ints: Vec<i64>,
    pub nil_slice: Vec<i64>,
    pub empty_slice: Vec<i64>,
    pub inners: Vec<Inner>,
    #[serde(with = "bothways::codec::duration")]
    pub duration: Duration,
}

/// An instant for each form of MessagePack's timestamp.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct Times {
    #[serde(with = "bothways::codec::time")]
    pub seconds: SystemTime,
    #[serde(with = "bothways::codec::time")]
    pub nanos: SystemTime,
    #[serde(with = "bothways::codec::time")]
    pub far: SystemTime,
    #[serde(with = "bothways::codec::time")]
    pub before: SystemTime,
}

/// `message ProtoArgs { int32 A = 1; int32 B = 2; }`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct ProtoArgs {
    #[prost(int32, tag = "1")]
    pub a: i32,
    #[prost(int32, tag = "2")]
    pub b: i32,
}

/// `message ProtoReply { int32 C = 1; }`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
#[allow(missing_docs)]
pub struct ProtoReply {
    #[prost(int32, tag = "1")]
    pub c: i32,
}

/// `struct ThriftArgs { 1: i32 A, 2: i32 B }`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)]
pub struct ThriftArgs {
    pub a: i32,
    pub b: i32,
}

/// `struct ThriftReply { 1: i32 C }`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)]
pub struct ThriftReply {
    pub c: i32,
}

/// The values that `Codec.Sample` sends: ends of ranges, because that is where codecs differ.
pub fn sample_types() -> Types {
    let inner = |name: &str, value| Inner { name: name.to_owned(), value };
    Types {
        bool: true,
        int: -5,
        int8: i8::MIN,
        int16: i16::MIN,
        int32: i32::MIN,
        int64: i64::MIN,
        uint: 300,
        uint8: u8::MAX,
        uint16: u16::MAX,
        uint32: u32::MAX,
        uint64: u64::MAX,
        float32: 1.5,
        float64: -0.1,
        string: "Grüße <&> 世界".to_owned(),
        bytes: vec![0, 1, 254, 255],
        nested: inner("nested", 7),
        pointer: Some(inner("pointed", -1)),
        map: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        strings: ["a", "", "c"].map(str::to_owned).to_vec(),
        ints: vec![-1, 0, 1, 128, 70_000],
        inners: vec![inner("x", 1), inner("y", 2)],
        duration: Duration::from_millis(1500),
        ..Types::default()
    }
}

/// The instants that `Codec.SampleTimes` sends.
pub fn sample_times() -> Times {
    Times {
        seconds: UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        nanos: UNIX_EPOCH + Duration::new(1_709_210_096, 789_012_345),
        far: UNIX_EPOCH + Duration::from_secs(32_503_680_000),
        before: UNIX_EPOCH - Duration::from_millis(500),
    }
}

/// `size` bytes with a period of 251, a prime, so that a piece that is lost or out of place shows.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// `size` letters, the alphabet over and over.
pub fn letters(size: usize) -> String {
    (0..size).map(|i| char::from(b'a' + (i % 26) as u8)).collect()
}

/// The payload of push number `n`: the number, then byte i at each further place i.
pub fn numbered_payload(n: u64, size: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..size.max(8)).map(|i| i as u8).collect();
    payload[..8].copy_from_slice(&n.to_be_bytes());
    payload
}

/// How long `Order.Sleep` waits: scattered, but the same for the same argument.
pub fn order_delay(a: i64) -> Duration {
    Duration::from_millis(a.wrapping_mul(7919).rem_euclid(21) as u64)
}

macro_rules! differing {
    ($want:expr, $got:expr, $($field:ident $name:literal)*) => {{
        let (want, got) = (&$want, &$got);
        let mut names = Vec::new();
        $(if want.$field != got.$field { names.push($name); })*
        names.join(",")
    }};
}

/// The names of the fields that are not as in the sample.
pub fn diff_types(got: &Types) -> String {
    differing!(sample_types(), *got,
        bool "Bool" int "Int" int8 "Int8" int16 "Int16" int32 "Int32" int64 "Int64"
        uint "Uint" uint8 "Uint8" uint16 "Uint16" uint32 "Uint32" uint64 "Uint64"
        float32 "Float32" float64 "Float64" string "String"
        bytes "Bytes" nil_bytes "NilBytes" empty_bytes "EmptyBytes"
        nested "Nested" pointer "Pointer" nil_pointer "NilPointer"
        map "Map" nil_map "NilMap" empty_map "EmptyMap"
        strings "Strings" ints "Ints" nil_slice "NilSlice" empty_slice "EmptySlice"
        inners "Inners" duration "Duration")
}

/// The names of the instants that are not as in the sample.
pub fn diff_times(got: &Times) -> String {
    differing!(sample_times(), *got, seconds "Seconds" nanos "Nanos" far "Far" before "Before")
}

/// The limits of a test server: payloads of 16 MiB must pass, in the largest of encodings.
pub fn limits() -> Limits {
    Limits::default().body_bytes_max(32 << 20).decompressed_bytes_max(32 << 20)
}

/// A server with all of the contract's services. With a token, it refuses every other.
pub fn server(token: Option<String>) -> ServerBuilder {
    let builder = Server::builder().limits(limits()).router(services());
    let Some(token) = token else { return builder };
    builder.auth(move |request| {
        let right = request.token == token;
        async move { if right { Ok(()) } else { Err(AUTH_REFUSAL) } }
    })
}

/// All of the contract's services.
pub fn services() -> Router {
    push(meta(bare(codecs(arith(Router::new())))))
}

fn arith(router: Router) -> Router {
    let total = Arc::new(AtomicI64::new(0));
    let add_total = Arc::clone(&total);
    router
        .function("Arith", "Mul", |args: Args| ok(Reply { c: args.a.wrapping_mul(args.b) }))
        .function("Arith", "Add", |args: Args| ok(Reply { c: args.a.wrapping_add(args.b) }))
        .function("Arith", "Echo", |args: Args| ok(Reply { c: args.a }))
        .function("Arith", "Err", |_: Args| async { Err::<Reply, _>("boom") })
        .function("Arith", "ErrPartial", |_: Args| async { Err::<Reply, _>("partial boom") })
        .function("Arith", "Panic", |_: Args| async { panic_on_purpose() })
        .function("Arith", "Sleep", |args: Args| async move {
            sleep(millis(args.a)).await;
            Ok::<_, String>(Reply { c: args.b })
        })
        .function("Order", "Sleep", |args: Args| async move {
            sleep(order_delay(args.a)).await;
            Ok::<_, String>(Reply { c: args.a })
        })
        .function("Oneway", "Add", move |args: Args| {
            ok(Reply { c: add_total.fetch_add(args.a, Ordering::Relaxed) + args.a })
        })
        .function("Oneway", "Total", move |_: Args| ok(Reply { c: total.load(Ordering::Relaxed) }))
        .function("a.fake.service", "mul", |args: Args| ok(Reply { c: args.a * args.b }))
        .function("a.fake.service", "err", |_: Args| async { Err::<Reply, _>("function boom") })
        .handler("Router", "Echo", |request: Request| async move {
            match request.decode::<Args>() {
                Ok(args) => HandlerReply::encode(&args, request.serialize_type()),
                Err(error) => HandlerReply::error(error.to_string()),
            }
        })
        .handler("Router", "Err", |_: Request| async { HandlerReply::error("router boom") })
}

/// Arguments and replies that are no structs.
fn bare(router: Router) -> Router {
    router
        .function("Bare", "Bytes", |bytes: Blob| ok(bytes))
        .function("Bare", "Lists", |lists: Vec<Blob>| ok(lists))
        .function("Bare", "Time", |time: Timestamp| ok(time))
        .function("Bare", "Duration", |duration: Nanos| ok(duration))
        .function("Bare", "Float", |float: f64| ok(float))
        .function("Bare", "Single", |float: f32| ok(float))
        .function("Bare", "Uint", |number: u64| ok(number))
        .function("Bare", "Int", |number: i64| ok(number))
        .function("Bare", "Map", |map: BTreeMap<i64, String>| ok(map))
        .function("Bare", "Tagged", |tagged: Tagged| ok(tagged))
        .function("Bare", "NaN", |_: Args| ok(f64::NAN))
}

fn codecs(router: Router) -> Router {
    router
        .function("Codec", "Echo", |types: Types| ok(types))
        .function("Codec", "Sample", |_: Args| ok(sample_types()))
        .function("Codec", "Diff", |types: Types| ok(Text { s: diff_types(&types) }))
        .function("Codec", "EchoTimes", |times: Times| ok(times))
        .function("Codec", "SampleTimes", |_: Args| ok(sample_times()))
        .function("Codec", "DiffTimes", |times: Times| ok(Text { s: diff_times(&times) }))
        .function("Codec", "EchoString", |text: String| ok(text))
        .function("Codec", "EchoStrings", |texts: Vec<String>| ok(texts))
        .function("Proto", "Mul", |args: Protobuf<ProtoArgs>| ok(Protobuf(ProtoReply { c: args.a * args.b })))
        .function("Thrift", "Mul", |args: Thrift<ThriftArgs>| ok(Thrift(ThriftReply { c: args.a * args.b })))
        .function("Raw", "Echo", |bytes: Raw| ok(bytes))
        .function("Raw", "Make", |size: Raw| async move {
            let size = str::from_utf8(&size).ok().and_then(|text| text.parse().ok());
            size.map(|size| Raw::from(pattern(size))).ok_or("not a number of bytes")
        })
        .function("Big", "Make", |args: Args| ok(Text { s: letters(usize::try_from(args.a).unwrap_or(0)) }))
        .function("Big", "Len", |text: Text| ok(Reply { c: text.s.len() as i64 }))
}

fn meta(router: Router) -> Router {
    router
        .handler("Meta", "Echo", |request: Request| async move {
            let (mut context, _) = match request.into_typed::<Args>() {
                Ok(parts) => parts,
                Err(refusal) => return refusal,
            };
            for (key, value) in context.metadata().pairs() {
                let key = format!("{GOT_PREFIX}{}", String::from_utf8_lossy(key));
                context.reply_metadata().insert(&key, value);
            }
            let left = context.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let reply = MetaReply { deadline: left.is_some(), millis: left.map_or(0, |left| left.as_millis() as i64) };
            Context::into_reply(context, Ok::<_, String>(reply))
        })
        .handler(
            "Conn",
            "Close",
            with_connection(|connection, args| {
                if args.a == 0 {
                    connection.close();
                } else {
                    tokio::spawn(async move {
                        sleep(millis(args.a)).await;
                        connection.close();
                    });
                }
                Reply { c: args.a }
            }),
        )
}

fn push(router: Router) -> Router {
    router
        .handler(
            "Push",
            "Start",
            with_connection(|connection, args| {
                tokio::spawn(push_numbered(connection, args));
                Reply { c: args.a }
            }),
        )
        .handler(
            "Push",
            "Tick",
            with_connection(|connection, args| {
                tokio::spawn(push_ticks(connection, millis(args.b.max(1))));
                Reply { c: args.a.wrapping_mul(args.b) }
            }),
        )
        .handler(
            "Push",
            "Then",
            with_connection(|connection, args| {
                // A client that has gone needs no push.
                let _ = connection.send_message(PUSH_PATH, PUSH_METHOD, &Metadata::new(), PUSH_PAYLOAD);
                Reply { c: args.a.wrapping_mul(args.b) }
            }),
        )
}

/// `args.a` pushes of `args.b` bytes, as fast as the client reads.
async fn push_numbered(connection: Connection, args: Args) {
    for n in 0..u64::try_from(args.a).unwrap_or(0) {
        let metadata = Metadata::new().with("n", n.to_string());
        let payload = numbered_payload(n, usize::try_from(args.b).unwrap_or(0));
        let room = Duration::from_secs(60);
        if connection.send_message_within(room, PUSH_PATH, PUSH_METHOD, &metadata, payload).await.is_err() {
            return;
        }
    }
}

/// A push at each interval, until the connection fails.
async fn push_ticks(connection: Connection, interval: Duration) {
    loop {
        sleep(interval).await;
        if connection.send_message(PUSH_PATH, PUSH_METHOD, &Metadata::new(), PUSH_PAYLOAD).is_err() {
            return;
        }
    }
}

/// A handler that wants to know who calls.
fn with_connection(
    act: impl Fn(Connection, Args) -> Reply + Clone + Send + Sync + 'static,
) -> impl Fn(Request) -> std::future::Ready<HandlerReply> + Send + Sync + 'static {
    move |request: Request| {
        std::future::ready(match request.into_typed::<Args>() {
            Ok((context, args)) => {
                let reply = act(context.connection().clone(), args);
                context.into_reply(Ok::<_, String>(reply))
            }
            Err(refusal) => refusal,
        })
    }
}

fn ok<T: Payload>(value: T) -> std::future::Ready<Result<T, String>> {
    std::future::ready(Ok(value))
}

fn panic_on_purpose() -> Result<Reply, String> {
    panic!("panic on purpose")
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

impl TSerializable for ThriftArgs {
    fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        let [_, a, b] = read_i32s(input)?;
        Ok(Self { a, b })
    }

    fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        write_i32s(output, "ThriftArgs", &[("A", self.a), ("B", self.b)])
    }
}

impl TSerializable for ThriftReply {
    fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        let [_, c, _] = read_i32s(input)?;
        Ok(Self { c })
    }

    fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        write_i32s(output, "ThriftReply", &[("C", self.c)])
    }
}

/// The fields of a struct by their ids; what is not an `i32` is skipped.
fn read_i32s(input: &mut dyn TInputProtocol) -> thrift::Result<[i32; 3]> {
    let mut fields = [0; 3];
    input.read_struct_begin()?;
    loop {
        let field = input.read_field_begin()?;
        let at = field.id.and_then(|id| usize::try_from(id).ok()).and_then(|id| fields.get_mut(id));
        match (at, field.field_type) {
            (_, TType::Stop) => break,
            (Some(at), TType::I32) => *at = input.read_i32()?,
            (_, other) => input.skip(other)?,
        }
        input.read_field_end()?;
    }
    input.read_struct_end()?;
    Ok(fields)
}

fn write_i32s(output: &mut dyn TOutputProtocol, name: &str, fields: &[(&str, i32)]) -> thrift::Result<()> {
    output.write_struct_begin(&TStructIdentifier::new(name))?;
    for (id, (name, value)) in (1..).zip(fields) {
        output.write_field_begin(&TFieldIdentifier::new(*name, TType::I32, id))?;
        output.write_i32(*value)?;
        output.write_field_end()?;
    }
    output.write_field_stop()?;
    output.write_struct_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A diff names what differs, and nothing else.
    #[test]
    fn a_diff_names_the_fields_that_differ() {
        assert_eq!(diff_types(&sample_types()), "");
        assert_eq!(diff_types(&Types { int: -6, nil_slice: vec![0], ..sample_types() }), "Int,NilSlice");
        assert_eq!(diff_times(&sample_times()), "");
    }

    /// The delays of `Order.Sleep` are the remainder of a division, also below zero.
    #[test]
    fn a_delay_is_never_negative() {
        assert_eq!(order_delay(1), Duration::from_millis(7919 % 21));
        assert_eq!(order_delay(-1), Duration::from_millis(21 - 7919 % 21));
    }
}
