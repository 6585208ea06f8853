//! Calls a method and prints its reply.

use std::{io::IsTerminal, time::Instant};

use bothways::{CallOptions, Caller, Client, SerializeType, caller::RawCall, caller::RawReply};
use bytes::Bytes;
use serde::Serialize;

use crate::{
    args::{CallArgs, Codec},
    failure::{Exit, Failure},
    latency::{Latency, Quantiles},
    plan::{self, Method, Source},
    term::{self, Out, Paint},
    value::{MetadataJson, PayloadFields, Shown, Value, metadata_line},
};

/// Arguments on their way: their codec and their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) serialize: SerializeType,
    pub(crate) payload: Bytes,
}

/// Turns what was typed into a payload.
pub(crate) fn encode(codec: Codec, args: Option<&Source>) -> Result<Encoded, Failure> {
    let text = match (args, codec) {
        (Some(source), _) => source.read()?,
        (None, Codec::Raw) => Vec::new(),
        (None, _) => b"null".to_vec(),
    };

    let json = |text: &[u8]| {
        Value::from_json(text).map_err(|error| {
            Failure::usage(format!("what is sent is not JSON: {error}"))
                .hint(r#"quote them for the shell, as in '{"A":10,"B":20}'; text is JSON only in quotes: '"text"'"#)
        })
    };

    Ok(match codec {
        Codec::Msgpack => Encoded { serialize: SerializeType::MSGPACK, payload: json(&text)?.to_msgpack() },
        Codec::Json => {
            json(&text)?; // checked, and then sent as it was typed
            Encoded { serialize: SerializeType::JSON, payload: text.into() }
        }
        Codec::Raw => Encoded { serialize: SerializeType::RAW, payload: text.into() },
    })
}

/// One call with arguments that are encoded already.
pub(crate) async fn call(
    client: &Client,
    method: &Method,
    args: &Encoded,
    options: CallOptions,
) -> Result<RawReply, Failure> {
    let call = RawCall {
        service_path: &method.service_path,
        service_method: &method.service_method,
        serialize: args.serialize,
        payload: args.payload.clone(),
        options,
    };
    client.call_raw(call).await.map_err(|error| Failure::call(&method.to_string(), &error))
}

pub(crate) async fn run(args: CallArgs) -> Result<(), Failure> {
    let encoded = encode(args.codec, args.args.as_ref())?;
    let client = args.peer.connect(args.peer.options()?).await?;
    let options = CallOptions::new().metadata(plan::metadata(&args.metadata)).timeout(args.timeout);
    if args.oneway {
        return send_oneway(&client, &args, &encoded, options).await;
    }

    let mut latency = Latency::new();
    let began = Instant::now();
    let mut outcome = None;
    let mut errors = 0;

    for _ in 0..args.repeat {
        let called = Instant::now();
        let reply = call(&client, &args.method, &encoded, options.clone()).await;
        latency.record(called.elapsed());
        match reply {
            Ok(reply) if errors == 0 => outcome = Some(Ok(reply)),
            Ok(_) => {}
            // An answer is an answer: the next call may fare better. Without a connection none will.
            Err(failure) if failure.exit() == Some(Exit::Peer) && !client_is_over(&client) => {
                errors += 1;
                outcome = Some(Err(failure));
            }
            Err(failure) => {
                errors += 1;
                outcome = Some(Err(failure));
                break;
            }
        }
    }

    let elapsed = began.elapsed();
    client.close();
    let summary = latency.quantiles();
    let outcome = outcome.expect("at least one call was made");

    if args.json {
        let shown = outcome.as_ref().ok().map(|reply| Shown::new(reply.serialize, &reply.payload));
        let report = Report::new(&outcome, shown.as_ref(), &summary, errors);
        Out::new().line(&serde_json::to_string(&report).expect("a report can be written as JSON"))?;
    } else if let Ok(reply) = &outcome {
        print(reply)?;
    }

    if 1 < args.repeat {
        let calls = summary.count;
        let rate = calls as f64 / elapsed.as_secs_f64();
        term::complain(&format!(
            "{} in {}, one after the other ({} per second), {}\n{summary}",
            term::count(calls, "call"),
            term::time(elapsed),
            term::grouped(rate as u64),
            term::count(errors, "error"),
        ));
    }

    outcome.map(|_| ())
}

fn client_is_over(client: &Client) -> bool {
    client.connection().map_or(true, |connection| connection.is_closed())
}

async fn send_oneway(client: &Client, args: &CallArgs, encoded: &Encoded, options: CallOptions) -> Result<(), Failure> {
    for _ in 0..args.repeat {
        let push = RawCall {
            service_path: &args.method.service_path,
            service_method: &args.method.service_method,
            serialize: encoded.serialize,
            payload: encoded.payload.clone(),
            options: options.clone(),
        };
        client.push_raw(push).await.map_err(|error| Failure::push(&args.method.to_string(), &error))?;
    }

    // Closing writes what is queued; the end of the connection says that it is gone.
    if let Ok(connection) = client.connection() {
        client.close();
        if tokio::time::timeout(args.timeout, connection.closed()).await.is_err() {
            return Err(Failure::new(Exit::Timeout, format!("{}: the server did not take it in time", args.method)));
        }
    }

    if args.json {
        Out::new().line(&format!("{{\"sent\":{}}}", args.repeat))?;
    } else {
        term::complain(&format!("sent {}; nothing comes back", term::count(args.repeat.into(), "oneway request")));
    }
    Ok(())
}

/// The reply: JSON if it can be, text, and other bytes as they are unless a terminal would get them.
fn print(reply: &RawReply) -> Result<(), Failure> {
    let metadata = metadata_line(&reply.metadata, false, 1024);
    if !metadata.is_empty() {
        term::complain(&Paint::stderr().dim(&format!("reply metadata {metadata}")));
    }
    let terminal = std::io::stdout().is_terminal();
    let out = Out::new();
    match Shown::new(reply.serialize, &reply.payload) {
        Shown::Value(value) => {
            let line = value.to_json();
            if terminal && 100 < line.len() { out.line(&value.to_pretty_json()) } else { out.line(&line) }
        }
        Shown::Text(text) if terminal => out.line(&term::printable(&text)),
        Shown::Text(text) => out.line(&text),
        shown @ Shown::Binary(_) if terminal => out.line(&shown.one_line(4096)),
        Shown::Binary(bytes) => out.bytes(&bytes),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    #[serde(flatten)]
    payload: Option<PayloadFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<MetadataJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    calls: u64,
    errors: u64,
    latency: &'a Quantiles,
}

impl<'a> Report<'a> {
    fn new(
        outcome: &'a Result<RawReply, Failure>,
        shown: Option<&'a Shown>,
        latency: &'a Quantiles,
        errors: u64,
    ) -> Self {
        let mut report = Self {
            ok: outcome.is_ok(),
            codec: None,
            payload: shown.map(|shown| shown.fields(usize::MAX)),
            metadata: None,
            error: outcome.as_ref().err().map(Failure::text),
            calls: latency.count,
            errors,
            latency,
        };

        if let Ok(reply) = outcome {
            report.codec = Some(codec_name(reply.serialize));
            report.metadata = Some(MetadataJson { metadata: &reply.metadata, show_secrets: false });
        }
        report
    }
}

/// `msgpack`, or the number of a codec without a name.
pub(crate) fn codec_name(serialize: SerializeType) -> String {
    serialize.name().map_or_else(|| serialize.get().to_string(), str::to_owned)
}
