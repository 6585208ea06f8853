//! Lists, explains and ends sessions, through a server's admin service.

use bothways::{
    server::{AdminKick, PushTarget, SessionPlace, SessionView, SessionsAsked, SessionsListed},
    session::Explanation,
};

use crate::{
    args::{ExplainArgs, KickArgs, SessionsArgs},
    failure::{Exit, Failure},
    nodes::{self, all_answered},
    push::{connect, failed, table},
    term::{self, Out, Paint},
};

pub(crate) async fn list(args: SessionsArgs) -> Result<(), Failure> {
    let target = match (&args.user, &args.topic) {
        (Some(user), _) => PushTarget::User(user.clone()),
        (None, Some(topic)) => PushTarget::Topic(topic.clone()),
        (None, None) => PushTarget::Everyone,
    };

    let admin = connect(&args.admin).await?;
    let (max, mut listed) = (args.max as usize, SessionsListed { total: 0, sessions: Vec::new(), silent: Vec::new() });
    while listed.sessions.len() < max {
        let after = listed.sessions.last().map(|last| SessionPlace { user: last.user.clone(), id: last.id });
        let asked = SessionsAsked {
            target: target.clone(),
            user_prefix: String::new(),
            max: max - listed.sessions.len(),
            after,
            silent: listed.silent.clone(),
        };
        let page = match args.here {
            true => admin.sessions(&asked).await,
            false => admin.sessions_everywhere(&asked).await,
        };
        let page = page.map_err(|error| failed(&error))?;
        listed.total = page.total;
        // A server of an earlier version does not name again what it is told.
        for one in page.silent {
            if listed.silent.iter().all(|named| named.node != one.node) {
                listed.silent.push(one);
            }
        }
        // A server that knows no pages would answer the same again.
        if page.sessions.is_empty() || listed.sessions.last().is_some_and(|last| page.sessions.contains(last)) {
            break;
        }
        listed.sessions.extend(page.sessions);
        // The next page would be empty.
        if listed.total <= listed.sessions.len() {
            break;
        }
    }

    let out = Out::new();
    if args.json {
        out.line(&serde_json::to_string(&listed).expect("a list can be written as JSON"))?;
        return all_answered(&listed.silent);
    }

    let header = ["ID", "USER", "CONN", "GEN", "WAIT", "BYTES", "DROP"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(listed.sessions.iter().map(row));
    let paint = Paint::stdout();
    for (number, line) in table(&rows).iter().enumerate() {
        match number.checked_sub(1).and_then(|number| listed.sessions.get(number)) {
            None => out.line(&paint.bold(&format!("{line}  TOPICS")))?,
            Some(view) => {
                for line in with_more(line, view) {
                    out.line(&line)?;
                }
            }
        }
    }

    if listed.sessions.len() < listed.total {
        out.line(&format!("{} of {}; --max shows more", listed.sessions.len(), listed.total))?;
    }
    all_answered(&listed.silent)
}

/// Characters of a user's name in its column; the whole of a longer one is in a further line.
const USER_CHARS: usize = 24;

fn user(view: &SessionView) -> String {
    term::one_line(view.user.as_deref().unwrap_or("-"))
}

fn short(user: &str) -> String {
    match user.char_indices().nth(USER_CHARS) {
        None => user.to_owned(),
        Some(_) => user.chars().take(USER_CHARS - 1).chain(['…']).collect(),
    }
}

/// The line of a session, with its topics if they have room in it, and what has none in further lines.
fn with_more(line: &str, view: &SessionView) -> Vec<String> {
    let topics = term::one_line(&view.subscriptions.join(" "));
    let labels: Vec<String> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = term::one_line(&labels.join(" "));
    let one = format!("{line}  {topics}");

    let mut more = Vec::new();
    let name = user(view);
    if short(&name) != name {
        more.push(format!("user {name}"));
    }

    let mut lines = match one.chars().count() <= term::width() {
        true => vec![one.trim_end().to_owned()],
        false => {
            more.push(format!("topics {topics}"));
            vec![line.to_owned()]
        }
    };

    if !labels.is_empty() {
        more.push(format!("labels {labels}"));
    }
    lines.extend(more.iter().flat_map(|text| term::wrap(&format!("    {text}"), 8)));
    lines
}

fn speaks(view: &SessionView) -> &'static str {
    if view.resumable { "" } else { " (rpcx)" }
}

fn at_node(view: &SessionView) -> String {
    view.node.as_deref().map(|node| format!("@{}", nodes::short(node))).unwrap_or_default()
}

fn row(view: &SessionView) -> [String; 7] {
    [
        view.id.to_string(),
        short(&user(view)),
        view.connection.as_deref().map_or_else(|| "away".to_owned(), term::one_line) + &at_node(view) + speaks(view),
        view.generation.to_string(),
        view.waiting.to_string(),
        view.waiting_bytes.to_string(),
        view.dropped.to_string(),
    ]
}

pub(crate) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let whose = whose(args.user.as_ref(), args.session.as_ref())?;
    let admin = connect(&args.admin).await?;
    let told = match args.here {
        true => {
            let told = admin.explain(&whose).await.map_err(|error| failed(&error))?;
            (told.into_iter().map(|story| (String::new(), story)).collect(), 0, Vec::new())
        }
        false => {
            let told = admin.explain_everywhere(&whose).await.map_err(|error| failed(&error))?;
            (told.explained, told.left_out, told.silent)
        }
    };
    let (told, left_out, silent): (Vec<(String, Explanation)>, _, _) = told;

    let out = Out::new();
    if args.json {
        let stories: Vec<serde_json::Value> = told.iter().map(|(node, story)| story_as_json(node, story)).collect();
        out.line(&serde_json::Value::from(stories).to_string())?;
    } else {
        for (number, (node, explanation)) in told.iter().enumerate() {
            if number != 0 {
                out.line("")?;
            }
            if !node.is_empty() {
                out.line(&format!("At node {}:", nodes::short(node)))?;
            }
            for line in explanation.to_string().lines().flat_map(|line| term::wrap(&term::one_line(line), 24)) {
                out.line(&line)?;
            }
        }
        if left_out != 0 {
            out.line(&format!("{} more; name a session", term::count(left_out as u64, "session")))?;
        }
    }

    all_answered(&silent)?;
    match told.is_empty() {
        true => Err(nobody().hint("a server remembers sessions that ended only for a while")),
        false => Ok(()),
    }
}

/// A story, with the node that has told it.
fn story_as_json(node: &str, story: &Explanation) -> serde_json::Value {
    let mut value = serde_json::to_value(story).expect("a story can be written as JSON");
    if let (Some(object), false) = (value.as_object_mut(), node.is_empty()) {
        object.insert("node".to_owned(), node.into());
    }
    value
}

pub(crate) async fn kick(args: KickArgs) -> Result<(), Failure> {
    let kick = AdminKick { target: whose(args.user.as_ref(), args.session.as_ref())?, why: args.why.clone() };
    let admin = connect(&args.admin).await?;
    let (ended, silent) = match args.here {
        true => (admin.kick(&kick).await.map_err(|error| failed(&error))?, Vec::new()),
        false => {
            let kicked = admin.kick_everywhere(&kick).await.map_err(|error| failed(&error))?;
            (kicked.ended, kicked.silent)
        }
    };
    let text = match args.json {
        true => serde_json::json!({ "ended": ended, "silent": silent }).to_string(),
        false => format!("ended {}", term::count(ended as u64, "session")),
    };
    Out::new().line(&text)?;
    all_answered(&silent)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A long name makes no column wide: the whole of it is in a further line.
    #[test]
    fn a_long_name_makes_no_other_line_wide() {
        let view = |user: &str| SessionView {
            id: "7".parse().expect("a number"),
            node: None,
            user: Some(user.to_owned()),
            labels: Default::default(),
            connection: None,
            peer: None,
            generation: 1,
            resumable: true,
            waiting: 0,
            waiting_bytes: 0,
            held: None,
            dropped: 0,
            subscriptions: Vec::new(),
            methods: None,
        };
        let (ann, long) = (view("ann"), view(&"é".repeat(300)));
        let lines = table(&[row(&ann), row(&long)]);
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        assert_eq!(with_more(&lines[0], &ann).len(), 1);
        let more = with_more(&lines[1], &long);
        assert_eq!(more.last().map(|line| line.trim_start()), long.user.as_deref(), "{more:?}");
    }
}
