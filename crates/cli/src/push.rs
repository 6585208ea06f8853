//! Pushes, and looks at connections, through a server's admin service.

use bothways::{
    CallError, Client, ErrorCode,
    server::{
        ADMIN_PATH, AdminClient, AdminPush, AdminPushOutcome, ConnectionView, Page, PushClass, PushTarget, PushUntil,
    },
};

use crate::{
    args::{AdminArgs, ConnectionsArgs, PushArgs, Until},
    call,
    failure::{Exit, Failure},
    nodes,
    plan::{self, Secret},
    term::{self, Out, Paint},
    value,
};

/// Connects to the admin service.
pub(crate) async fn connect(args: &AdminArgs) -> Result<AdminClient<Client>, Failure> {
    let token = match (&args.admin_token_env, &args.admin_token_file) {
        (Some(name), _) => Secret::from_env(name)?,
        (None, Some(path)) => Secret::from_file(path)?,
        (None, None) => {
            return Err(Failure::usage("an admin token is needed: --admin-token-env or --admin-token-file"));
        }
    };
    let client = args.peer.connect(args.peer.options()?).await?;
    Ok(AdminClient::new(client, token.reveal()).timeout(args.timeout))
}

/// What an operator is told when there is no answer.
pub(crate) fn failed(error: &CallError) -> Failure {
    match error.remote_text() {
        Some(text) if text.starts_with("rpcx: can't find service") => {
            Failure::new(Exit::Peer, "the admin service does not answer at this address")
                .hint("it has one of its own, tcp@127.0.0.1:8973 unless `bothways serve --admin-token-env VAR --admin ADDR` says another")
        }
        Some(text) if text.contains("admin token") => {
            Failure::new(Exit::Peer, error.to_string())
                .hint("the variable or file must hold exactly the token that the server was started with")
        }
        Some(text) if error.code() == Some(ErrorCode::BadArguments) => Failure::usage(text),
        Some(text) if text.contains("stored") => Failure::new(Exit::Peer, error.to_string())
            .hint("the store or the broker is down, or full: the server's log and `bothways nodes` tell more"),
        Some(_) => Failure::new(Exit::Peer, error.to_string())
            .hint("`bothways connections` and `bothways sessions` tell who is there"),
        _ => Failure::call(ADMIN_PATH, error),
    }
}

pub(crate) async fn run(args: PushArgs) -> Result<(), Failure> {
    if args.fire && matches!(args.until, Some(Until::Received | Until::Handled)) {
        return Err(Failure::usage("--until received and --until handled do not go with --fire")
            .hint("no client acknowledges such a push: leave out --fire, or wait --until written"));
    }

    let target = (args.to.clone().map(PushTarget::Connection))
        .or_else(|| args.session.clone().map(PushTarget::Session))
        .or_else(|| args.user.clone().map(PushTarget::User))
        .or_else(|| args.topic.clone().map(PushTarget::Topic))
        .or_else(|| args.everyone.then_some(PushTarget::Everyone))
        .ok_or_else(|| Failure::usage("say to whom: --everyone, --user, --topic, --session or --to"))?;

    let class = match (&args.latest, args.durable) {
        (Some(key), _) => PushClass::Latest(key.clone()),
        (None, Some(ttl)) => PushClass::Durable(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        (None, None) if args.fire => PushClass::Fire,
        (None, None) => PushClass::Tracked,
    };

    let payload = call::encode(args.codec, Some(&args.payload))?;
    let push = AdminPush {
        target,
        service_path: args.method.service_path.clone(),
        service_method: args.method.service_method.clone(),
        metadata: value::pairs(&plan::metadata(&args.metadata), true),
        payload: payload.payload.to_vec(),
        codec: payload.serialize.get(),
        class,
        idempotency_key: args.idempotency_key.clone(),
        until: match args.until.unwrap_or(Until::Written) {
            Until::Queued => PushUntil::Queued,
            Until::Written => PushUntil::Written,
            Until::Received => PushUntil::Received,
            Until::Handled => PushUntil::Handled,
        },
        wait_ms: args.within.as_millis() as u64,
    };

    let admin = connect(&args.admin).await?;
    let outcome = admin.push(&push).await.map_err(|error| failed(&error))?;
    let json = || serde_json::to_string(&outcome).expect("an outcome can be written as JSON");
    let kept_by = if args.durable.is_some() { "its mailbox" } else { "its topic" };
    Out::new().line(&if args.json { json() } else { counts(&outcome, kept_by) })?;
    judge(&outcome)?;
    args.until.map_or(Ok(()), |until| reached(&outcome, until))
}

/// An error if nobody gets the push, or a client's application could not deal with it.
fn judge(outcome: &AdminPushOutcome) -> Result<(), Failure> {
    let (targets, failed) = (outcome.targets(), outcome.failed.total());
    if outcome.unreached != 0 {
        return Err(Failure::new(
            Exit::Peer,
            "not every node was reached: it may have sessions that do not get the push",
        )
        .hint("`bothways nodes` tells which are there"));
    }
    if targets == 0 && !outcome.stored && outcome.routing == 0 {
        return Err(Failure::new(Exit::Peer, "nobody is there to push to")
            .hint("`bothways sessions` tells who is; `bothways explain` where they went"));
    }

    let (what, hint) = match outcome.missed() {
        _ if failed != 0 && failed == targets => {
            ("no client could handle the push", "`bothways explain` tells why for each; the clients' logs tell more")
        }
        missed if missed != 0 && missed == targets => {
            ("nobody gets the push", "`bothways explain` tells why; `bothways sessions` shows how much waits for each")
        }
        _ if failed != 0 => (
            "not every client could handle the push",
            "`bothways explain` tells why for each; the clients' logs tell more",
        ),
        _ if outcome.unknown != 0 && outcome.unknown == targets => {
            ("nobody knows whether the push was handled", "its sessions ended before their clients said so")
        }
        _ => return Ok(()),
    };

    Err(Failure::new(Exit::Peer, what).hint(hint))
}

/// An error if not everybody who is there has come so far as was asked for.
fn reached(outcome: &AdminPushOutcome, until: Until) -> Result<(), Failure> {
    let AdminPushOutcome { queued, written, received, .. } = *outcome;
    let (behind, stage) = match until {
        Until::Queued => (0, "queued"),
        Until::Written => (queued, "written"),
        Until::Received => (queued + written, "received"),
        Until::Handled => (queued + written + received, "handled"),
    };
    if outcome.routing != 0 && !matches!(until, Until::Queued) {
        let text = format!("{} not said in time how far it is", nodes::does_or_do(outcome.routing, "has", "have"));
        return Err(Failure::new(Exit::NotReached, text).hint("allow more time with --within"));
    }
    if behind == 0 {
        return Ok(());
    }
    let text = format!("not {stage} in time by {} of {}", behind, term::count(outcome.targets() as u64, "session"));
    Err(Failure::new(Exit::NotReached, text)
        .hint("it may be on its way still: allow more time with --within; of plain rpcx clients no more than written is known"))
}

/// Where the sessions stand that a push was for, and what keeps it.
fn counts(outcome: &AdminPushOutcome, kept_by: &str) -> String {
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

    if outcome.stored {
        text += &format!("; {kept_by} keeps it");
    }
    let nodes = |count: usize| term::count(count as u64, "node");
    if outcome.routing != 0 {
        text += &format!("; {} not heard of yet", nodes(outcome.routing));
    }
    if outcome.unreached != 0 {
        text += &format!("; {} not reached", nodes(outcome.unreached));
    }
    text
}

pub(crate) async fn connections(args: ConnectionsArgs) -> Result<(), Failure> {
    let admin = connect(&args.admin).await?;
    let mut views: Vec<ConnectionView> = Vec::new();

    loop {
        let page = Page { after: views.last().map(|view| view.id.clone()), ..Page::default() };
        let more = admin.connections(page).await.map_err(|error| failed(&error))?;
        // A server of an earlier version knows no pages, and answers all again.
        if more.is_empty() || views.last().is_some_and(|last| more.contains(last)) {
            break;
        }
        views.extend(more);
    }

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
    use bothways::server::PushFailures;

    use super::*;

    /// What a client could not handle is no success, for a person and for a script.
    #[test]
    fn each_outcome_has_its_text_and_its_exit_code() {
        let none = AdminPushOutcome::default();
        let failed = PushFailures { no_handler: 1, ..PushFailures::default() };
        for (outcome, text, error) in [
            (AdminPushOutcome { handled: 2, ..none }, "2 sessions: 2 handled", None),
            (
                AdminPushOutcome { failed, ..none },
                "1 session: 1 failed: no handler takes it",
                Some("no client could handle the push"),
            ),
            (
                AdminPushOutcome { handled: 1, failed, ..none },
                "2 sessions: 1 handled, 1 failed: no handler takes it",
                Some("not every client could handle the push"),
            ),
            (AdminPushOutcome { dropped: 1, ..none }, "1 session: 1 dropped", Some("nobody gets the push")),
            (
                AdminPushOutcome { unknown: 1, ..none },
                "1 session: 1 unknown: its session ended",
                Some("nobody knows whether the push was handled"),
            ),
            (none, "0 sessions", Some("nobody is there to push to")),
            (
                AdminPushOutcome { handled: 1, unreached: 2, ..none },
                "1 session: 1 handled; 2 nodes not reached",
                Some("not every node was reached: it may have sessions that do not get the push"),
            ),
            (AdminPushOutcome { routing: 1, ..none }, "0 sessions; 1 node not heard of yet", None),
        ] {
            assert_eq!(counts(&outcome, "its topic"), text);
            let judged = judge(&outcome).err();
            assert_eq!(judged.as_ref().map(Failure::text), error, "{text}");
            assert!(judged.is_none_or(|failure| failure.exit() == Some(Exit::Peer)));
        }
    }

    /// The exit code says that a wanted stage was not reached in time.
    #[test]
    fn what_is_not_reached_in_time_is_no_success() {
        let none = AdminPushOutcome::default();
        let away = AdminPushOutcome { queued: 1, handled: 2, ..none };
        for (outcome, until, text) in [
            (away, Until::Queued, None),
            (away, Until::Written, Some("not written in time by 1 of 3 sessions")),
            (away, Until::Handled, Some("not handled in time by 1 of 3 sessions")),
            (AdminPushOutcome { received: 1, ..none }, Until::Received, None),
            (
                AdminPushOutcome { received: 1, routing: 1, ..none },
                Until::Received,
                Some("1 node has not said in time how far it is"),
            ),
            (AdminPushOutcome { received: 1, ..none }, Until::Handled, Some("not handled in time by 1 of 1 session")),
            (AdminPushOutcome { dropped: 1, handled: 1, ..none }, Until::Handled, None),
        ] {
            let failure = reached(&outcome, until).err();
            assert_eq!(failure.as_ref().map(Failure::text), text);
            assert!(failure.is_none_or(|failure| failure.exit() == Some(Exit::NotReached)));
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "PEER", "BY", "N"], ["c12", "p", "a", "7"], ["c1", "peer 2", "bcd", "1234"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let lines = ["ID   PEER    BY      N", "c12  p       a       7", "c1   peer 2  bcd  1234"];
        assert_eq!(table(&rows), lines);
    }
}
