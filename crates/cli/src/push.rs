//! Pushes, and looks at connections, through a server's admin service.

use std::time::Duration;

use bothways::{
    CallOptions, Client, Encode, Metadata, Payload,
    server::{
        ADMIN_PATH, ADMIN_TOKEN_KEY, AdminPush, AdminPushOutcome, ConnectionView, PushClass, PushTarget, PushUntil,
    },
};

use crate::{
    args::{AdminArgs, ConnectionsArgs, PushArgs, Until},
    failure::{Exit, Failure},
    plan::{self, Secret},
    term::{self, Out, Paint},
    value,
};

/// A connection to the admin service.
pub(crate) struct Admin {
    client: Client,
    options: CallOptions,
}

impl Admin {
    /// Its answers may take `more` than other answers.
    pub(crate) async fn connect(args: &AdminArgs, more: Duration) -> Result<Self, Failure> {
        let token = match (&args.admin_token_env, &args.admin_token_file) {
            (Some(name), _) => Secret::from_env(name)?,
            (None, Some(path)) => Secret::from_file(path)?,
            (None, None) => {
                return Err(Failure::usage("an admin token is needed: --admin-token-env or --admin-token-file"));
            }
        };
        // No Hello: it would be asked for the token of ordinary clients, which an operator need not have.
        let client = args.peer.connect(args.peer.options()?.negotiate(false)).await?;
        let metadata = Metadata::new().with(ADMIN_TOKEN_KEY, token.reveal());
        Ok(Self { client, options: CallOptions::new().metadata(metadata).timeout(args.timeout + more) })
    }

    pub(crate) async fn call<R: Payload>(
        &self,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
    ) -> Result<R, Failure> {
        let reply = self.client.call_with(ADMIN_PATH, service_method, args, self.options.clone()).await;
        reply.map(|reply| reply.value).map_err(|error| match error.remote_text() {
            Some(text) if text.starts_with("rpcx: can't find service") => {
                Failure::new(Exit::Peer, "the server's admin service is closed")
                    .hint("it opens with a token: `bothways serve --admin-token-env VAR`, or ServerBuilder::admin")
            }
            Some(text) if text.contains("admin token") => {
                Failure::new(Exit::Peer, format!("the peer answered: {text}"))
                    .hint("the variable or file must hold exactly the token that the server was started with")
            }
            Some(text) if error.code().is_none() => Failure::new(Exit::Peer, format!("the peer answered: {text}"))
                .hint("`bothways connections` and `bothways sessions` tell who is there"),
            _ => Failure::call(&format!("{ADMIN_PATH}.{service_method}"), &error),
        })
    }
}

pub(crate) async fn run(args: PushArgs) -> Result<(), Failure> {
    let target = (args.to.clone().map(PushTarget::Connection))
        .or_else(|| args.session.clone().map(PushTarget::Session))
        .or_else(|| args.user.clone().map(PushTarget::User))
        .or_else(|| args.topic.clone().map(PushTarget::Topic))
        .or_else(|| args.everyone.then_some(PushTarget::Everyone))
        .ok_or_else(|| Failure::usage("say to whom: --everyone, --user, --topic, --session or --to"))?;
    let class = match &args.latest {
        Some(key) => PushClass::Latest(key.clone()),
        None if args.fire => PushClass::Fire,
        None => PushClass::Tracked,
    };
    let push = AdminPush {
        target,
        service_path: args.method.service_path.clone(),
        service_method: args.method.service_method.clone(),
        metadata: value::pairs(&plan::metadata(&args.metadata), true),
        payload: args.payload.read()?,
        class,
        idempotency_key: args.idempotency_key.clone(),
        until: match args.until {
            Until::Queued => PushUntil::Queued,
            Until::Written => PushUntil::Written,
            Until::Received => PushUntil::Received,
            Until::Handled => PushUntil::Handled,
        },
        wait_ms: args.within.as_millis() as u64,
    };
    let admin = Admin::connect(&args.admin, args.within).await?;
    let outcome: AdminPushOutcome = admin.call("Push", &push).await?;
    let json = || serde_json::to_string(&outcome).expect("an outcome can be written as JSON");
    Out::new().line(&if args.json { json() } else { counts(&outcome) })?;
    if outcome.targets() == 0 && !args.everyone {
        return Err(Failure::new(Exit::Peer, "nobody is there to push to")
            .hint("`bothways sessions` tells who is; `bothways explain` where they went"));
    }
    match outcome.missed() {
        missed if missed != 0 && missed == outcome.targets() => Err(Failure::new(Exit::Peer, "nobody gets the push")
            .hint("`bothways explain` tells why; `bothways sessions` shows how much waits for each")),
        _ => Ok(()),
    }
}

/// Where the sessions stand that a push was for.
fn counts(outcome: &AdminPushOutcome) -> String {
    let AdminPushOutcome { queued, written, received, handled, expired, superseded, dropped, duplicate, .. } = *outcome;
    let AdminPushOutcome { failed, unknown, .. } = *outcome;
    let stages = [
        (handled, "handled"),
        (failed.no_handler, "failed: no handler takes it"),
        (failed.bad_arguments, "failed: its handler cannot decode it"),
        (failed.error, "failed: its handler returned an error"),
        (failed.panicked, "failed: its handler panicked"),
        (unknown, "unknown: its session ended"),
        (received, "received"),
        (written, "written"),
        (queued, "queued"),
        (expired, "expired"),
        (superseded, "superseded"),
        (dropped, "dropped"),
        (duplicate, "sent before"),
    ];
    let mut text = term::count(outcome.targets() as u64, "session");
    let mut separator = ": ";
    for (number, stage) in stages.iter().filter(|(number, _)| *number != 0) {
        text += &format!("{separator}{number} {stage}");
        separator = ", ";
    }
    text
}

pub(crate) async fn connections(args: ConnectionsArgs) -> Result<(), Failure> {
    let admin = Admin::connect(&args.admin, Duration::ZERO).await?;
    let views: Vec<ConnectionView> = admin.call("Connections", &()).await?;
    let out = Out::new();
    if args.json {
        return out.line(&serde_json::to_string(&views).expect("views can be written as JSON"));
    }
    let header = ["ID", "PEER", "SPEAKS", "SENT", "WAITING", "DROPPED", "CALLS"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(views.iter().map(row));
    let paint = Paint::stdout();
    for (number, line) in table(&rows).iter().enumerate() {
        out.line(&if number == 0 { paint.bold(line) } else { line.clone() })?;
    }
    Ok(())
}

fn row(view: &ConnectionView) -> [String; 7] {
    [
        view.id.clone(),
        term::one_line(&view.peer) + if view.is_asking { " (this one)" } else { "" },
        if view.negotiated { "bothways" } else { "rpcx" }.to_owned(),
        view.pushes_sent.to_string(),
        view.pushes_waiting.to_string(),
        view.pushes_dropped.to_string(),
        view.calls_running.to_string(),
    ]
}

/// Columns as wide as their widest cell: text to the left, numbers to the right.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cell = |(column, text): (usize, &String)| match column {
            0..3 => format!("{text:<width$}", width = widths[column]),
            _ => format!("{text:>width$}", width = widths[column]),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "PEER", "BY", "N"], ["c12", "p", "a", "7"], ["c1", "peer 2", "bcd", "1234"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let lines = ["ID   PEER    BY      N", "c12  p       a       7", "c1   peer 2  bcd  1234"];
        assert_eq!(table(&rows), lines);
    }
}
