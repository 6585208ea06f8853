//! Sends traces to a collector of OpenTelemetry, by OTLP over HTTP.
//!
//! ```text
//! cargo run -p bothways-otel --example otlp
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run -p bothways-otel --example otlp
//! ```
//!
//! The first runs by itself: it takes the traces in place of a collector, and says that they came. The second sends them to
//! yours, such as Jaeger, which shows a purchase, its call and the call's handler as one trace, and what became of a push with
//! a link to it.

use std::{env, error::Error, pin::Pin, time::Duration};

use bothways::{Client, ClientOptions, Push, Server, Target};
use bothways_otel::{TracedPush, span_of, traces};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Handle,
};
use tracing::Instrument;
use tracing_subscriber::prelude::*;

/// How long an export may take.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);

/// Exports come from a thread of the SDK, and sockets belong to a runtime.
#[derive(Debug)]
struct InRuntime {
    runtime: Handle,
    client: HyperClient,
}

impl HttpClient for InRuntime {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        let (client, runtime) = (self.client.clone(), self.runtime.clone());
        Box::pin(async move { runtime.spawn(async move { client.send_bytes(request).await }).await? })
    }
}

/// Sends spans to this place.
fn exporting_to(endpoint: &str) -> Result<SdkTracerProvider, Box<dyn Error>> {
    let client =
        InRuntime { runtime: Handle::current(), client: HyperClient::with_default_connector(EXPORT_WITHIN, None) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(EXPORT_WITHIN)
        .build()?;
    let resource = Resource::builder().with_service_name("shop").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let collector = TcpListener::bind("127.0.0.1:0").await?;
    let own = format!("http://{}", collector.local_addr()?);
    let (endpoint, is_own) = match env::var("OTEL_EXPORTER_OTLP_ENDPOINT") {
        Ok(endpoint) => (endpoint.trim_end_matches('/').to_owned(), false),
        Err(_) => (own, true),
    };
    let taken = tokio::spawn(take_one(collector));

    let provider = exporting_to(&endpoint)?;
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    tracing_subscriber::registry().with(layer).init();
    buy().instrument(tracing::info_span!("a purchase")).await?;

    // What was not exported yet is now; it blocks.
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    if is_own {
        let body = tokio::time::timeout(EXPORT_WITHIN, taken).await???;
        println!("{} bytes of traces came by OTLP", body.len());
        let has = |name: &str| body.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        for name in ["a purchase", "rpcx.client.Stock.Take", "rpcx.service.Stock.Take", "rpcx.client.News.Sold"] {
            println!("{name}: {}", if has(name) { "is there" } else { "is missing" });
            assert!(has(name), "{name} is missing");
        }
    } else {
        println!("the traces are at {endpoint}");
    }
    Ok(())
}

/// A call, and a push that its outcome leads to.
async fn buy() -> Result<(), Box<dyn Error>> {
    let server = Server::builder()
        .layer(traces())
        .function("Stock", "Take", |count: u32| async move { Ok::<_, String>(100 - count) })
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await?;
    let options = ClientOptions::new().layer(traces());
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await?;

    let left: u32 = client.call("Stock", "Take", &3).await?;
    server.push(&Target::everyone(), &Push::of("News", "Sold", &left)?.traced())?;
    let message = messages.next().await.ok_or("the client is closed")?;
    let show = async {
        println!("{} are left", message.decode::<u32>()?);
        Ok::<_, Box<dyn Error>>(())
    };
    show.instrument(span_of(&message)).await
}

/// Takes one request in place of a collector, and gives its body.
async fn take_one(collector: TcpListener) -> Result<Vec<u8>, std::io::Error> {
    let (mut stream, _) = collector.accept().await?;
    let mut read = Vec::new();
    loop {
        let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4);
        let head = String::from_utf8_lossy(&read[..end.unwrap_or(0)]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if let Some((end, length)) = end.zip(length)
            && end + length <= read.len()
        {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
            return Ok(read.split_off(end));
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
