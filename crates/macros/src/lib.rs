//! The attribute macros of Bothways. Use them through `bothways`, feature `macros`.
//!
//! This file has only the entry points. [`service`] goes through `parse.rs` (what the attribute and the
//! item say), `check.rs` (which methods go over the wire, and what is wrong with the others), and then both
//! `stub.rs` (the calling side), `push.rs` (pushes) and `serve.rs` (the answering side). [`message`] is `message.rs`.

mod argument;
mod check;
mod message;
mod parse;
mod push;
mod serve;
mod stub;

use proc_macro::TokenStream;
use quote::quote;

/// Turns a trait or an `impl` block into a service: something to register, and a stub to call it with.
///
/// # On a trait
///
/// The trait is what both ends share. For a trait `Arith` the macro generates, with the same visibility:
///
/// - `ArithService<T>(pub T)`, a `bothways::Service` over any `T: Arith`; the trait's own method
///   `into_service` makes one.
/// - `ArithClient<C>`, the stub, over any `C: bothways::Caller`: a client, or a server's connection to one
///   of its clients. `mul(&args)` returns the reply; `mul_with(&args, options)` takes
///   `bothways::CallOptions` and returns a `bothways::Response` with the reply's metadata.
///
/// ```
/// use bothways::{CallError, Caller, Context};
///
/// #[bothways::message]
/// pub struct Args {
///     a: i64,
///     b: i64,
/// }
///
/// #[bothways::message]
/// pub struct Product {
///     c: i64,
/// }
///
/// #[bothways::service]
/// pub trait Arith {
///     /// Multiplies.
///     async fn mul(&self, args: Args) -> Result<Product, String>;
///
///     /// A push: its sender waits for nothing.
///     async fn note(&self, cx: &mut Context, text: String);
/// }
///
/// struct Calculator;
///
/// impl Arith for Calculator {
///     async fn mul(&self, args: Args) -> Result<Product, String> {
///         args.a.checked_mul(args.b).map(|c| Product { c }).ok_or("too large".to_owned())
///     }
///
///     async fn note(&self, cx: &mut Context, text: String) {
///         println!("{:?} says {text}", cx.connection());
///     }
/// }
///
/// let router = bothways::Router::new().service(Calculator.into_service());
///
/// async fn square(caller: impl Caller, a: i64) -> Result<i64, CallError> {
///     let arith = ArithClient::new(caller);
///     Ok(arith.mul(&Args { a, b: a }).await?.c)
/// }
/// ```
///
/// The trait gets the supertraits `Send + Sync + 'static`, and its futures are `Send`, so that handlers
/// can run on any thread. Implementations write plain `async fn`. A method may have a default body. The trait is
/// implemented for an `Arc` of what implements it: `Arc::clone(&calculator).into_service()` serves what the program keeps
/// hold of. (An `impl` block's type is served so too: `.service(Arc::clone(&echo))`.)
///
/// # On an `impl` block
///
/// For a service that is implemented by one type: the type itself becomes the `bothways::Service`. The same stub is
/// generated, and is `pub`.
///
/// ```
/// struct Echo;
///
/// #[bothways::service]
/// impl Echo {
///     async fn echo(&self, text: String) -> Result<String, String> {
///         Ok(text)
///     }
///
///     #[rpc(skip)]
///     async fn tidy_up(&self) {}
///
///     fn new() -> Self {
///         Self
///     }
/// }
///
/// let router = bothways::Router::new().service(Echo::new());
/// assert_eq!(router.routes(), [("Echo".to_owned(), "Echo".to_owned())]);
/// ```
///
/// **Every `async fn` with `&self` is offered to peers, `pub` or not**, unless it says `#[rpc(skip)]`.
/// Functions that are not async, or have no `self`, are left alone.
///
/// # What a method looks like
///
/// `async fn name(&self, cx: &mut Context, args: Args) -> Result<Reply, Error>`, where the context and the
/// arguments may each be left out. `Args` and `Reply` are `bothways::Payload`s; `Error` is whatever has `Display`: its
/// text goes to the caller. The return type may be an alias of a `Result`, under any name. rpcx has one value each way:
/// for more, use a struct.
///
/// An `Error` that serde can write (a `#[bothways::message]`, or with serde's `Serialize`) arrives as itself beside its
/// text, at a caller in Rust: `error.detail::<Error>()` of the `bothways::CallError`. So what is in it goes to peers, and
/// not its text alone. Clients in Go see the text. `cx.set_error_code("...")` adds a code of your own.
///
/// The argument may be taken by reference: `&str` for a text, `&[u8]` for Go's `[]byte`, `&[T]` for a list, `&Args` for
/// anything else. The stub takes a `&str` for a `String` too:
///
/// ```
/// # struct Failed;
/// # impl std::fmt::Display for Failed {
/// #     fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) }
/// # }
/// type Result<T> = std::result::Result<T, Failed>;
///
/// #[bothways::service]
/// trait Words {
///     async fn count(&self, text: &str) -> Result<usize>;
///     async fn upper(&self, text: String) -> Result<String>;
/// }
///
/// async fn use_them(words: WordsClient<bothways::Client>) -> std::result::Result<(), bothways::CallError> {
///     words.count("how many?").await?;
///     words.upper("abc").await?;
///     Ok(())
/// }
/// ```
///
/// What Go cannot read does not compile: a `Vec<u8>`, a `SystemTime` or a `Duration` that is the whole argument or
/// reply (take `bytes::Bytes`, and `Timestamp` and `Nanos` of `bothways::codec`; as fields of a
/// `#[bothways::message]` they are right), tuples, `char`, integers of 128 bits, enums with data, and maps whose keys
/// are neither text nor integers. The check sees the types and not their names, through aliases, generics, containers and
/// messages within messages, up to eight. A type with serde impls of its own is trusted, and so is a
/// container of one. `#[rpc(plain)]` is for peers that speak Rust.
///
/// ```compile_fail
/// type Photo = Vec<u8>;
///
/// #[bothways::message]
/// struct Album {
///     photos: Vec<Photo>, // no helper: the macro sees an alias
/// }
///
/// #[bothways::service]
/// trait Albums {
///     async fn store(&self, album: Album) -> Result<(), String>; // "Go cannot read this ..., `Album.photos`"
/// }
/// ```
///
/// Without a return type, or with `#[rpc(push)]` and `Result<(), Error>`, a method is a push: the stub
/// sends it oneway and returns as soon as it is queued, with a `bothways::PushError` if it was not.
///
/// # Pushes to users and topics
///
/// For a trait or a type with pushes there is a third type: for `Inbox` it is `InboxPush`, with a function for each push
/// that makes a `bothways::Push`. So what goes to users, topics, groups or everyone is checked by the compiler too, and
/// may have a class, a priority and whatever else a `Push` has. A client handles it with the same trait.
///
/// ```
/// use bothways::{Class, Server, Target};
///
/// #[bothways::message]
/// pub struct Note {
///     text: String,
/// }
///
/// #[bothways::service]
/// pub trait Inbox {
///     async fn deliver(&self, note: Note);
/// }
///
/// fn tell(server: &Server, note: &Note) -> Result<(), Box<dyn std::error::Error>> {
///     server.push(&Target::user("ann"), &InboxPush::deliver(note)?)?;
///     let weather = InboxPush::deliver(note)?.class(Class::Latest("weather".to_owned()));
///     server.publish("news.weather", &weather)?;
///     Ok(())
/// }
/// ```
///
/// The functions fail where `bothways::Push::of` does: if the argument cannot be encoded.
///
/// # Names on the wire
///
/// As in Go, a service has the name of its trait or type, and a method that of its function in PascalCase: `mul` is `Mul`,
/// `find_user` is `FindUser`.
///
/// | attribute | on | meaning |
/// |---|---|---|
/// | `#[service(name = "...")]` | trait, impl | another service path |
/// | `#[service(crate = "...")]` | trait, impl | where `bothways` is, if not at `::bothways` |
/// | `#[rpc(name = "...")]` | method | another method name |
/// | `#[rpc(push)]` | method | oneway, though it returns a `Result` |
/// | `#[rpc(skip)]` | method of an impl | not offered to peers |
/// | `#[rpc(plain)]` | method | arguments and reply may be of a type that Go cannot read |
///
/// A stub made with `ArithClient::at(caller, "Other")` calls the same methods under another service path.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let (mut service, mut errors) = match parse::service(attribute.into(), item.into()) {
        Ok(parsed) => parsed,
        Err(error) => return error.into_compile_error().into(),
    };
    let methods = check::methods(&mut service, &mut errors);
    if let Some(errors) = errors.combined() {
        // The item as it was, so that what uses it does not fail too.
        let (errors, item) = (errors.into_compile_error(), service.item);
        return quote!(#item #errors).into();
    }
    let stub = stub::stub(&service, &methods);
    let push = push::push(&service, &methods);
    let serve = serve::serve(&service, &methods);
    let item = serve::item(service);
    quote!(#item #serve #stub #push).into()
}

/// Turns a struct or an enum into a payload that Go reads and writes as its own.
///
/// ```
/// use bytes::Bytes;
/// use std::time::{Duration, SystemTime};
///
/// #[bothways::message]
/// #[derive(Clone, Debug, Default, PartialEq)]
/// struct User {
///     #[message(rename = "ID")]
///     id: u64,
///     full_name: String, // "FullName"
///     avatar: Vec<u8>,
///     friends: Vec<String>,
/// }
///
/// #[bothways::message]
/// struct Event {
///     at: SystemTime,
///     took: Duration,
///     user: Option<User>,
///     #[message(required)]
///     kind: Kind,
/// }
///
/// #[bothways::message]
/// enum Kind {
///     LoggedIn,
///     Bought { price: f64 },
/// }
///
/// # use bothways::{Payload, SerializeType};
/// // As Go sends it: a nil slice is nil, an unset field may be missing.
/// let wire = b"\x82\xa2ID\x07\xa7Friends\xc0";
/// let user = User::decode(SerializeType::MSGPACK, Bytes::from_static(wire))?;
/// assert_eq!(user, User { id: 7, ..User::default() });
/// # Ok::<(), bothways::codec::CodecError>(())
/// ```
///
/// # What it does
///
/// - Derives serde's `Serialize` and `Deserialize`, and nothing else: derive `Clone`, `Debug`, `Default` and the like
///   yourself. Your crate needs no dependency on serde, and `#[serde(...)]` works as usual.
/// - For a struct with named fields it also generates code of its own for MessagePack, which is faster than serde's. The
///   bytes, the values and the errors are the same. A struct with type parameters, with a `#[cfg(...)]` within it, or
///   with a `#[serde(...)]` other than `rename_all` and `deny_unknown_fields` (on the type) and `rename`, `default`,
///   `with`, `serialize_with`, `deserialize_with`, `skip`, `skip_serializing_if` and `borrow` (on fields) goes by serde
///   alone, and so does a tuple struct or an enum. A field whose type has no such code (an enum, a tuple, a type with
///   serde impls of its own) goes by serde, and the others do not.
/// - Field names become Go's: `full_name` is `FullName`. Go writes initials in capitals, which nothing here can
///   guess: `id` is `Id` unless you say `#[message(rename = "ID")]` (or `#[serde(rename = "ID")]`). A
///   `#[serde(rename_all = "...")]` on the type replaces the rule. Names of variants stay.
/// - Go's `json` tags are names in JSON only: `#[message(json = "full_name")]`, not for types with generic
///   parameters. In JSON a name is also taken in other upper and lower case, as Go does.
/// - A field that is missing, or `nil` (`null`), becomes its type's `Default`, as in Go. So the types of fields
///   need `Default`; where there is none, or a missing field shall be an error, write `#[message(required)]`.
/// - A field that the type does not have is skipped, as in Go, so that either end may be newer. With
///   `#[bothways::message(strict)]` it is an error that names it: of a request the refusal `bad_arguments`.
/// - `Vec<u8>`, `Bytes`, `Box<[u8]>` and `[u8; N]` travel as `[]byte`, `SystemTime` as `time.Time`, and
///   `Duration` as `time.Duration`, also within `Option`, `Vec`, `HashMap` and `BTreeMap`. They are told by their
///   name; for a type of your own with such a name write `#[message(plain)]`. A field with a
///   `#[serde(with = "...")]` (or one of its halves) keeps it.
/// - Within MessagePack a message has Go's names and forms for every format of serde's, since what serde buffers does not
///   say which format it comes from: a `#[serde(with = "...")]` that calls serde_json on a message writes `FullName`, and
///   wants that. For JSON within MessagePack let it call the codec, by `value.encode(SerializeType::JSON)` and
///   `T::decode(SerializeType::JSON, bytes)`.
///
/// Go has no enums with data: an enum here travels as serde writes it, a variant without data as its name,
/// another as a map of one entry, and is for peers that speak Rust: `#[bothways::service]` refuses it, unless the
/// method is `#[rpc(plain)]`.
///
/// | attribute | on | meaning |
/// |---|---|---|
/// | `#[message(crate = "...")]` | type | where `bothways` is, if not at `::bothways` |
/// | `#[message(rename = "...")]` | field, variant | another name on the wire, as a `msgpack` tag of Go's |
/// | `#[message(json = "...")]` | field, variant | another name in JSON, as a `json` tag of Go's |
/// | `#[message(strict)]` | type | a field that the type does not have is an error in a map, where it is skipped otherwise. Not checked: the fields of a type that is a `#[serde(flatten)]` field of another one, and variants without data of an enum with `#[serde(tag = "..")]` |
/// | `#[message(json = "snake_case")]` | type | the names of all other fields in JSON, by one of serde's rules |
/// | `#[message(required)]` | field | missing is an error, and so is `nil` where the type has no zero for it |
/// | `#[message(plain)]` | field | no helper for Go's types, and no refusal by `#[service]` |
#[proc_macro_attribute]
pub fn message(attribute: TokenStream, item: TokenStream) -> TokenStream {
    message::message(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
