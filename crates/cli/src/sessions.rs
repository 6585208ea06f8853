//! Lists, explains and ends sessions, through a server's admin service.

use std::time::Duration;

use bothways::{
    Explanation,
    server::{AdminKick, PushTarget, SessionView, SessionsAsked, SessionsListed},
};

use crate::{
    args::{ExplainArgs, KickArgs, SessionsArgs},
    failure::{Exit, Failure},
    push::{Admin, table},
    term::{self, Out, Paint},
};

pub(crate) async fn list(args: SessionsArgs) -> Result<(), Failure> {
    let target = match (&args.user, &args.topic) {
        (Some(user), _) => PushTarget::User(user.clone()),
        (None, Some(topic)) => PushTarget::Topic(topic.clone()),
        (None, None) => PushTarget::Everyone,
    };
    let admin = Admin::connect(&args.admin, Duration::ZERO).await?;
    let listed: SessionsListed = admin.call("Sessions", &SessionsAsked { target, max: args.max as usize }).await?;
    let out = Out::new();
    if args.json {
        return out.line(&serde_json::to_string(&listed).expect("a list can be written as JSON"));
    }
    let header = ["ID", "USER", "CONNECTION", "GEN", "WAITING", "BYTES", "DROPPED", "SUBSCRIPTIONS"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(listed.sessions.iter().map(row));
    let paint = Paint::stdout();
    for (number, line) in table(&rows).iter().enumerate() {
        out.line(&if number == 0 { paint.bold(line) } else { line.clone() })?;
    }
    if listed.sessions.len() < listed.total {
        out.line(&format!("{} of {}; --max shows more", listed.sessions.len(), listed.total))?;
    }
    Ok(())
}

fn row(view: &SessionView) -> [String; 8] {
    let speaks = if view.resumable { "" } else { " (rpcx)" };
    [
        view.id.to_string(),
        term::one_line(view.user.as_deref().unwrap_or("-")),
        view.connection.as_deref().map_or_else(|| "away".to_owned(), |id| term::one_line(id) + speaks),
        view.generation.to_string(),
        view.waiting.to_string(),
        view.waiting_bytes.to_string(),
        view.dropped.to_string(),
        term::one_line(&view.subscriptions.join(" ")),
    ]
}

pub(crate) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let admin = Admin::connect(&args.admin, Duration::ZERO).await?;
    let told: Vec<Explanation> = admin.call("Explain", &whose(args.user.as_ref(), args.session.as_ref())?).await?;
    let out = Out::new();
    if args.json {
        out.line(&serde_json::to_string(&told).expect("a story can be written as JSON"))?;
    } else {
        for (number, explanation) in told.iter().enumerate() {
            if number != 0 {
                out.line("")?;
            }
            out.line(&term::printable(&explanation.to_string()))?;
        }
    }
    match told.is_empty() {
        true => Err(nobody().hint("a server remembers sessions that ended only for a while")),
        false => Ok(()),
    }
}

pub(crate) async fn kick(args: KickArgs) -> Result<(), Failure> {
    let kick = AdminKick { target: whose(args.user.as_ref(), args.session.as_ref())?, why: args.why.clone() };
    let admin = Admin::connect(&args.admin, Duration::ZERO).await?;
    let ended: usize = admin.call("Kick", &kick).await?;
    let text = match args.json {
        true => serde_json::json!({ "ended": ended }).to_string(),
        false => format!("ended {}", term::count(ended as u64, "session")),
    };
    Out::new().line(&text)?;
    match ended {
        0 => Err(nobody().hint("`bothways sessions` tells who is there")),
        _ => Ok(()),
    }
}

fn whose(user: Option<&String>, session: Option<&String>) -> Result<PushTarget, Failure> {
    let user = user.map(|name| PushTarget::User(name.clone()));
    user.or_else(|| session.map(|id| PushTarget::Session(id.clone())))
        .ok_or_else(|| Failure::usage("say whose: --user or --session"))
}

fn nobody() -> Failure {
    Failure::new(Exit::Peer, "the server knows no such session")
}
