//! Lists the nodes of a cluster, through a server's admin service, and says which have not answered.

use std::time::Duration;

use bothways::server::{AdminNode, SilentNode};

use crate::{
    args::NodesArgs,
    failure::{Exit, Failure},
    push::{connect, failed, table},
    term::{self, Out, Paint},
};

/// Characters of a node's number in a table.
const NODE_CHARS: usize = 8;
/// Nodes that an error names.
const NAMED_MAX: usize = 8;

pub(crate) async fn list(args: NodesArgs) -> Result<(), Failure> {
    let admin = connect(&args.admin).await?;
    let nodes = admin.nodes().await.map_err(|error| failed(&error))?;

    let out = Out::new();
    if args.json {
        out.line(&serde_json::to_string(&nodes).expect("a list can be written as JSON"))?;
    } else {
        let header = ["NODE", "STATE", "ADDRESS", "UP", "SESS", "AWAY", "CALLS", "BYTES", "MAIL"].map(str::to_owned);
        let mut rows = vec![header];
        rows.extend(nodes.iter().map(row));
        let paint = Paint::stdout();
        for (number, line) in table(&rows).iter().enumerate() {
            out.line(&if number == 0 { paint.bold(line) } else { line.clone() })?;
        }
    }

    let missing = nodes.iter().filter(|node| matches!(&*node.state, "silent" | "gone")).count();
    match missing {
        0 => Ok(()),
        _ => Err(Failure::new(Exit::Peer, format!("{} not there", does_or_do(missing, "is", "are")))),
    }
}

fn row(node: &AdminNode) -> [String; 9] {
    let name = match (&*node.node, &*node.state) {
        // A member whose own lease has ended has no number.
        ("", "gone") => "-".to_owned(),
        ("", _) => "alone".to_owned(),
        (number, _) => short(number),
    };
    [
        name + if node.is_here { "*" } else { "" },
        term::one_line(&node.state),
        term::one_line(node.address.as_deref().unwrap_or("-")),
        term::time(Duration::from_secs(node.up_ms / 1000)),
        node.sessions.to_string(),
        node.sessions_away.to_string(),
        node.calls_running.to_string(),
        node.outgoing_bytes.to_string(),
        node.mail_bytes.to_string(),
    ]
}

/// What is enough of a node's number to find it in a list.
pub(crate) fn short(node: &str) -> String {
    term::one_line(node).chars().take(NODE_CHARS).collect()
}

pub(crate) fn does_or_do(count: usize, one: &str, more: &str) -> String {
    format!("{} {}", term::count(count as u64, "node"), if count == 1 { one } else { more })
}

/// An error if a node has not answered: what was shown, or done, is not all.
pub(crate) fn all_answered(silent: &[SilentNode]) -> Result<(), Failure> {
    if silent.is_empty() {
        return Ok(());
    }
    let have = does_or_do(silent.len(), "has", "have");
    let name = |one: &SilentNode| format!("{}, {}", short(&one.node), term::one_line(&one.why));
    let mut named: Vec<_> = silent.iter().take(NAMED_MAX).map(name).collect();
    if NAMED_MAX < silent.len() {
        named.push(format!("and {} more", silent.len() - NAMED_MAX));
    }
    let text = format!("{have} not answered: {}", named.join("; "));
    Err(Failure::new(Exit::Peer, text).hint("`bothways nodes` tells which are there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that has not answered is named, and the exit code says that something is missing.
    #[test]
    fn a_silent_node_is_an_error() {
        assert!(all_answered(&[]).is_ok());
        let silent = |node: &str| SilentNode { node: node.to_owned(), why: "the node is gone".to_owned() };
        let one = all_answered(&[silent("4f1d8a2e00000000")]).expect_err("it is silent");
        assert_eq!((one.text(), one.exit()), ("1 node has not answered: 4f1d8a2e, the node is gone", Some(Exit::Peer)));
        let two = all_answered(&[silent("1"), silent("2")]).expect_err("they are silent");
        assert_eq!(two.text(), "2 nodes have not answered: 1, the node is gone; 2, the node is gone");
        let many: Vec<_> = (0..NAMED_MAX + 2).map(|number| silent(&number.to_string())).collect();
        let many = all_answered(&many).expect_err("they are silent");
        assert!(many.text().ends_with("7, the node is gone; and 2 more"), "{}", many.text());
    }
}
