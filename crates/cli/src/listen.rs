//! Prints what a server pushes, for as long as it is wanted.

use std::time::Duration;

use bothways::{
    CallOptions, Client, ClientOptions, ConnectionEvent, ConnectionEvents, Reconnect, ServerMessage, SessionLost,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    args::ListenArgs,
    call::{self, Encoded, codec_name},
    failure::{Exit, Failure},
    plan::{self, Method, Source},
    term::{self, Out, Paint},
    value::{MetadataJson, PayloadFields, Shown, metadata_line},
};

/// How long the first call may take, and the same call after a loss.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Most characters of one payload on a line of text.
const PAYLOAD_CHARS_MAX: usize = 1000;

/// Most bytes of one payload in a line of JSON.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

pub(crate) async fn run(args: ListenArgs) -> Result<(), Failure> {
    let first_call = FirstCall::new(&args)?;
    let options =
        args.peer.options()?.reconnect(Reconnect::Lost).backoff(Duration::from_millis(100), Duration::from_secs(5));
    let listener = Listener { paint: Paint::stderr(), out: Out::new(), json: args.json };
    listener.listen(&args, options, first_call).await
}

/// There are no more messages: why not is among the events, or comes.
async fn why_over(events: &mut ConnectionEvents) -> Failure {
    const COMES_WITHIN: Duration = Duration::from_secs(5);
    while let Ok(Some(event)) = tokio::time::timeout(COMES_WITHIN, events.next()).await {
        if let ConnectionEvent::GaveUp { error, .. } = event {
            return Failure::new(Exit::Connection, error.to_string());
        }
    }
    Failure::new(Exit::Connection, "the connection is over")
}

/// The call that makes a service know this connection.
struct FirstCall {
    method: Method,
    args: Encoded,
    options: CallOptions,
}

impl FirstCall {
    fn new(args: &ListenArgs) -> Result<Option<Self>, Failure> {
        let Some(typed) = &args.call else { return Ok(None) };
        let (method, json) = (&typed[0], typed.get(1));
        let method = method.parse().map_err(|why| Failure::usage(format!("--call {method}: {why}")))?;
        let source = json.map(|json| Source::from(json.as_str()));
        Ok(Some(Self {
            method,
            args: call::encode(args.codec, source.as_ref())?,
            options: CallOptions::new().metadata(plan::metadata(&args.metadata)).timeout(CALL_TIMEOUT),
        }))
    }

    async fn make(&self, client: &Client) -> Result<String, Failure> {
        let reply = call::call(client, &self.method, &self.args, self.options.clone()).await?;
        let reply = Shown::new(reply.serialize, &reply.payload).one_line(PAYLOAD_CHARS_MAX);
        Ok(format!("{} answered {reply}", self.method))
    }
}

struct Listener {
    paint: Paint,
    out: Out,
    json: bool,
}

impl Listener {
    async fn listen(
        &self,
        args: &ListenArgs,
        options: ClientOptions,
        first_call: Option<FirstCall>,
    ) -> Result<(), Failure> {
        let deadline = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (client, mut messages) = Client::bidirectional(&args.peer.address.to_string(), options)
            .await
            .map_err(|error| Failure::connect(&error))?;

        let mut events = client.events();
        self.note(&format!("connected to {}", client.address()));
        if let Some(first_call) = &first_call {
            self.note(&first_call.make(&client).await?);
        }

        let mut received = 0;
        loop {
            tokio::select! {
                // What came is printed before what ends the program.
                biased;
                message = messages.next() => {
                    let Some(message) = message else { return Err(why_over(&mut events).await) };
                    received += 1;
                    self.print(&message)?;
                    if args.count == Some(received) {
                        return Ok(());
                    }
                }
                event = events.next() => match event {
                    Some(event) => self.handle_event(event, &client, first_call.as_ref()).await?,
                    None => return Err(Failure::new(Exit::Connection, "the connection is over")),
                },
                () = until(deadline) => return self.end(received, args.count, messages.dropped()),
                _ = tokio::signal::ctrl_c() => return self.end(received, None, messages.dropped()),
            }
        }
    }

    async fn handle_event(
        &self,
        event: ConnectionEvent,
        client: &Client,
        first_call: Option<&FirstCall>,
    ) -> Result<(), Failure> {
        match event {
            ConnectionEvent::Refused { reason, .. } => {
                self.warn(&format!("the server refuses this client: {reason}; trying again"));
                Ok(())
            }
            ConnectionEvent::GaveUp { error, .. } => Err(Failure::new(Exit::Connection, error.to_string())),
            // What follows says why this client gives up.
            ConnectionEvent::Lost { reason, .. } if reason.sent_away().is_some() => Ok(()),
            ConnectionEvent::Lost { reason, .. } => {
                self.warn(&format!("connection lost: {reason}; connecting again"));
                Ok(())
            }
            ConnectionEvent::SessionLost { why: SessionLost::Kicked | SessionLost::Revoked, .. } => Ok(()),
            ConnectionEvent::SessionLost { why, .. } => {
                self.warn(&format!("the session is lost ({why}): pushes in between are missing"));
                Ok(())
            }
            ConnectionEvent::Restored { losses, .. } => {
                let times = if losses == 1 { String::new() } else { format!(" (lost {losses} times)") };
                // A plain server keeps nothing for who is away; another one says what it could not keep.
                let keeps = client.connection().is_ok_and(|connection| connection.is_negotiated());
                let missing = if keeps { "" } else { "; pushes in between are missing" };
                self.note(&format!("connection restored{times}{missing}"));

                match first_call {
                    None => Ok(()),
                    Some(first_call) => match first_call.make(client).await {
                        Ok(text) => {
                            self.note(&text);
                            Ok(())
                        }
                        // Lost again meanwhile: the next restoration brings the next try.
                        Err(failure) if failure.exit() == Some(Exit::Connection) => {
                            self.warn(failure.text());
                            Ok(())
                        }
                        Err(failure) => Err(failure),
                    },
                }
            }
            _ => Ok(()),
        }
    }

    fn print(&self, message: &ServerMessage) -> Result<(), Failure> {
        if message.dropped_before() != 0 {
            let missing = term::count(message.dropped_before(), "message");
            self.warn(&format!("{missing} missing here: this program could not keep up"));
        }

        let (payload, error) = match message.payload() {
            Ok(payload) => (payload, None),
            Err(error) => (bytes::Bytes::new(), Some(error.to_string())),
        };
        let shown = Shown::new(message.serialize_type(), &payload);
        let metadata = message.metadata();

        if self.json {
            let line = Line {
                time: term::now(),
                server: message.server(),
                path: message.service_path(),
                method: message.service_method(),
                codec: codec_name(message.serialize_type()),
                metadata: MetadataJson { metadata: &metadata, show_secrets: false },
                payload: shown.fields(PAYLOAD_BYTES_MAX),
                payload_bytes: payload.len(),
                error,
            };
            return self.out.line(&serde_json::to_string(&line).expect("a message can be written as JSON"));
        }

        let paint = Paint::stdout();
        let name = term::one_line(&format!("{}.{}", message.service_path(), message.service_method()));
        let payload = error.map_or_else(|| shown.one_line(PAYLOAD_CHARS_MAX), |error| format!("({error})"));
        let metadata = metadata_line(&metadata, false, PAYLOAD_CHARS_MAX);
        let space = if metadata.is_empty() { "" } else { " " };
        self.out.line(&format!("{} {} {metadata}{space}{payload}", paint.dim(&term::now()), paint.cyan(&name)))
    }

    fn end(&self, received: u64, wanted: Option<u64>, dropped: u64) -> Result<(), Failure> {
        let missed = if dropped == 0 { String::new() } else { format!(", {} dropped", term::grouped(dropped)) };
        let came = format!("{} received{missed}", term::count(received, "message"));
        match wanted {
            Some(wanted) => Err(Failure::new(Exit::Timeout, format!("{came} of {} wanted", term::grouped(wanted)))
                .hint("does the service know this connection? --call makes it known")),
            None => {
                self.note(&came);
                Ok(())
            }
        }
    }

    fn note(&self, text: &str) {
        term::complain(&self.paint.dim(&format!("{} -- {}", term::now(), term::one_line(text))));
    }

    fn warn(&self, text: &str) {
        term::complain(&format!("{} -- {}", self.paint.dim(&term::now()), self.paint.red(&term::one_line(text))));
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// One message as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    server: &'a str,
    path: &'a str,
    method: &'a str,
    codec: String,
    metadata: MetadataJson<'a>,
    #[serde(flatten)]
    payload: PayloadFields<'a>,
    payload_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}
