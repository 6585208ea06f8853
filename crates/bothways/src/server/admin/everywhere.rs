//! Nodes, and the sessions of all nodes of a cluster. A server alone answers for itself.

use super::{
    Asking, Refused, lists, target_of,
    views::{
        AdminExplained, AdminKick, AdminKicked, AdminNode, PushTarget, SessionPlace, SessionView, SessionsAsked,
        SessionsListed, SilentNode,
    },
};
#[cfg(feature = "cluster")]
use crate::{
    cluster::{Answers, NodeId, NodeView},
    codec::{Encode, Payload},
};
use crate::{
    server::Server,
    session::{SessionId, Target},
};

/// Sessions that one node gives in one answer.
const PAGE_MAX: usize = 256;

/// Nodes that one page names as silent already.
const SILENT_MAX: usize = 1024;

/// No session can be meant so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct WrongTarget(String);

/// What servers of one cluster ask each other.
#[cfg(feature = "cluster")]
#[derive(serde::Deserialize, serde::Serialize)]
pub(in crate::server) enum FarQuestion {
    /// A page of its sessions.
    Sessions(SessionsAsked),
}

/// What they answer.
#[cfg(feature = "cluster")]
#[derive(serde::Deserialize, serde::Serialize)]
pub(in crate::server) enum FarAnswer {
    /// The flag: there are more behind it.
    Sessions(SessionsListed, bool),
}

/// Answers the server of another node. `None`: the question is wrong here.
#[cfg(feature = "cluster")]
pub(in crate::server) async fn answer_far(server: &Server, asked: FarQuestion, bytes_max: usize) -> Option<FarAnswer> {
    let FarQuestion::Sessions(mut asked) = asked;
    asked.max = asked.max.min(PAGE_MAX);
    let target = target_of(server, &asked.target).ok()?;
    let (listed, has_more) = lists::list(server, &target, &asked, bytes_max).await.ok()?;
    Some(FarAnswer::Sessions(listed, has_more))
}

/// The page of one node.
struct Part {
    listed: SessionsListed,
    has_more: bool,
}

/// See [`Server::sessions_everywhere`]; without this session.
pub(in crate::server) async fn sessions_everywhere(
    server: &Server,
    asked: &SessionsAsked,
    except: Option<SessionId>,
) -> Result<SessionsListed, WrongTarget> {
    let mut asked = SessionsAsked { max: asked.max.clamp(1, PAGE_MAX), ..asked.clone() };
    // Not for the other nodes.
    let mut silent = std::mem::take(&mut asked.silent);
    silent.truncate(SILENT_MAX);
    let wrong = |refused: Refused| WrongTarget(refused.to_string());
    let target = target_of(server, &asked.target).map_err(wrong)?;
    let target = except.into_iter().fold(target, Target::except);
    let (listed, has_more) = lists::list(server, &target, &asked, lists::PAGE_BYTES_MAX).await.map_err(wrong)?;
    let mut parts = vec![named(here(server), Part { listed, has_more })];
    // A connection is one of this node.
    if !matches!(asked.target, PushTarget::Connection(_)) {
        ask_others(server, &asked, &mut parts, &mut silent).await;
    }
    Ok(SessionsListed { silent, ..merged(parts, asked.max) })
}

#[cfg(not(feature = "cluster"))]
async fn ask_others(_: &Server, _: &SessionsAsked, _: &mut Vec<Part>, _: &mut Vec<SilentNode>) {}

#[cfg(feature = "cluster")]
async fn ask_others(server: &Server, asked: &SessionsAsked, parts: &mut Vec<Part>, silent: &mut Vec<SilentNode>) {
    use bothways_proto::SerializeType;

    let Some(node) = server.shared.node.get() else { return };
    let Ok(question) = FarQuestion::Sessions(asked.clone()).encode(SerializeType::MSGPACK) else { return };
    let except: Vec<NodeId> = silent.iter().filter_map(|one| one.node.parse().ok()).collect();
    let Answers { answers, silent: others } = node.ask_homes(question, &except).await;
    silent.extend(silent_of(others));
    for (node, answer) in answers {
        match FarAnswer::decode(SerializeType::MSGPACK, answer) {
            Ok(FarAnswer::Sessions(listed, has_more)) => {
                parts.push(named(Some(node.to_string()), Part { listed, has_more }));
            }
            Err(_) => silent.push(SilentNode { node: node.to_string(), why: "its answer cannot be read".to_owned() }),
        }
    }
}

/// Whether the server is in a cluster.
pub(super) fn is_node(server: &Server) -> bool {
    #[cfg(feature = "cluster")]
    return server.shared.node.get().is_some();
    #[cfg(not(feature = "cluster"))]
    {
        let _ = server;
        false
    }
}

#[cfg(not(feature = "cluster"))]
pub(super) fn here(_: &Server) -> Option<String> {
    None
}

/// The number of this node.
#[cfg(feature = "cluster")]
pub(super) fn here(server: &Server) -> Option<String> {
    Some(server.shared.node.get()?.me()?.to_string())
}

fn named(node: Option<String>, mut part: Part) -> Part {
    part.listed.sessions.iter_mut().for_each(|session| session.node.clone_from(&node));
    part
}

fn place(view: &SessionView) -> (Option<&str>, SessionId) {
    (view.user.as_deref(), view.id)
}

/// One page of those of the nodes. Behind the last session of a node that has more, nothing is certain: its next may be
/// before those of others.
fn merged(parts: Vec<Part>, max: usize) -> SessionsListed {
    let total = parts.iter().map(|part| part.listed.total).sum();
    let ends = parts.iter().filter(|part| part.has_more).filter_map(|part| part.listed.sessions.last());
    let end = ends.map(place).min().map(|(user, id)| SessionPlace { user: user.map(str::to_owned), id });
    let mut sessions: Vec<SessionView> = parts.into_iter().flat_map(|part| part.listed.sessions).collect();
    if let Some(end) = end {
        sessions.retain(|view| place(view) <= (end.user.as_deref(), end.id));
    }
    sessions.sort_by(|one, other| place(one).cmp(&place(other)));
    sessions.truncate(max);
    SessionsListed { total, sessions, silent: Vec::new() }
}

pub(super) async fn sessions(asking: Asking, asked: SessionsAsked) -> Result<SessionsListed, Refused> {
    sessions_everywhere(&asking.server, &asked, asking.own()).await.map_err(Refused::wrong)
}

/// All nodes, that of the server that was asked first.
pub(super) async fn nodes(asking: Asking) -> Vec<AdminNode> {
    #[cfg(feature = "cluster")]
    if let Some(node) = asking.server.shared.node.get() {
        let mut nodes: Vec<_> = node.views_asked().await.into_iter().map(AdminNode::from).collect();
        if !nodes.first().is_some_and(|first| first.is_here) {
            // Its own lease has ended, and it has no number until it gets another one.
            let mut own = itself(&asking);
            if !asking.server.is_stopping() {
                own.state = "gone".to_owned();
            }
            nodes.insert(0, own);
        }
        return nodes;
    }
    vec![itself(&asking)]
}

/// The server that was asked, without a number.
fn itself(asking: &Asking) -> AdminNode {
    let stats = asking.server.stats();
    let is_stopping = asking.server.is_stopping();
    AdminNode {
        is_here: true,
        state: if is_stopping { "draining" } else { "up" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        up_ms: asking.door.up().as_millis() as u64,
        connections: stats.connections,
        sessions: stats.sessions,
        sessions_away: stats.sessions_away,
        calls_running: stats.calls_running,
        outgoing_bytes: stats.outgoing_bytes,
        ..AdminNode::default()
    }
}

#[cfg(feature = "cluster")]
impl From<NodeView> for AdminNode {
    fn from(view: NodeView) -> Self {
        let state = match () {
            () if view.is_missing => "gone",
            () if view.silent.is_some() => "silent",
            () if view.is_draining => "draining",
            () => "up",
        };
        Self {
            node: view.node.to_string(),
            is_here: view.is_here,
            state: state.to_owned(),
            silent_ms: view.silent.map(|silent| silent.as_millis() as u64),
            address: view.address,
            version: view.version,
            up_ms: view.up.as_millis() as u64,
            connections: view.connections,
            sessions: view.sessions,
            sessions_away: view.sessions_away,
            calls_running: view.calls_running,
            outgoing_bytes: view.outgoing_bytes,
            mail_bytes: view.mail_bytes,
        }
    }
}

#[cfg(feature = "cluster")]
pub(super) fn silent_of(silent: Vec<(NodeId, crate::session::UnreachedWhy)>) -> Vec<SilentNode> {
    silent.into_iter().map(|(node, why)| SilentNode { node: node.to_string(), why: why.to_string() }).collect()
}

#[cfg(not(feature = "cluster"))]
pub(super) async fn explain(asking: Asking, asked: PushTarget) -> Result<AdminExplained, Refused> {
    let explained = lists::explain(&asking, &asked)?.into_iter().map(|story| (String::new(), story)).collect();
    Ok(AdminExplained { explained, ..AdminExplained::default() })
}

#[cfg(feature = "cluster")]
pub(super) async fn explain(asking: Asking, asked: PushTarget) -> Result<AdminExplained, Refused> {
    let target = asking.target(&asked)?;
    let alone = asking.server.shared.node.get().is_none();
    if alone || matches!(asked, PushTarget::Connection(_)) {
        let node = here(&asking.server).unwrap_or_default();
        let explained = lists::explain(&asking, &asked)?.into_iter().map(|story| (node.clone(), story)).collect();
        return Ok(AdminExplained { explained, ..AdminExplained::default() });
    }

    let Answers { answers, silent } = asking.server.explain_everywhere(&target).await.map_err(Refused::wrong)?;
    let mut told = AdminExplained { silent: silent_of(silent), ..AdminExplained::default() };
    for (node, explained) in answers {
        told.left_out += explained.left_out;
        let room = lists::EXPLAINED_MAX - told.explained.len();
        told.left_out += explained.sessions.len().saturating_sub(room);
        told.explained.extend(explained.sessions.into_iter().take(room).map(|story| (node.to_string(), story)));
    }
    Ok(told)
}

pub(super) async fn kick(asking: Asking, AdminKick { target, why }: AdminKick) -> Result<AdminKicked, Refused> {
    let whom = asking.target(&target)?;
    let acting = asking.act("kick", target.to_string(), why.clone());
    let kicked = kick_all(&asking.server, &whom, &why).await;
    acting.ended(kicked.as_ref().map(|kicked| kicked.ended));
    kicked
}

#[cfg(feature = "cluster")]
async fn kick_all(server: &Server, whom: &Target, why: &str) -> Result<AdminKicked, Refused> {
    let Answers { answers, silent } = server.kick_everywhere(whom, why).await.map_err(Refused::wrong)?;
    let is_alone = server.shared.node.get().is_none();
    let by_node = answers.iter().filter(|_| !is_alone).map(|(node, ended)| (node.to_string(), *ended)).collect();
    let ended = answers.iter().map(|(_, ended)| ended).sum();
    Ok(AdminKicked { ended, by_node, silent: silent_of(silent) })
}

#[cfg(not(feature = "cluster"))]
async fn kick_all(server: &Server, whom: &Target, why: &str) -> Result<AdminKicked, Refused> {
    Ok(AdminKicked { ended: server.kick(whom, why).map_err(Refused::wrong)?, ..AdminKicked::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(sessions: &[(&str, u32)], has_more: bool) -> Part {
        let view = |(user, id): &(&str, u32)| SessionView {
            id: format!("{id:x}").parse().expect("a number"),
            node: None,
            user: Some((*user).to_owned()),
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
        let sessions: Vec<_> = sessions.iter().map(view).collect();
        Part { listed: SessionsListed { total: 10, sessions, silent: Vec::new() }, has_more }
    }

    fn users(listed: &SessionsListed) -> Vec<String> {
        listed.sessions.iter().filter_map(|view| view.user.clone()).collect()
    }

    /// A page has no holes: nothing behind the end of what a node gave, if that node has more.
    #[test]
    fn a_page_of_several_nodes_has_no_holes() {
        let parts =
            vec![part(&[("a", 1), ("c", 2)], true), part(&[("b", 3), ("d", 4)], true), part(&[("e", 5)], false)];
        let listed = merged(parts, 10);
        assert_eq!((listed.total, users(&listed)), (30, vec!["a".into(), "b".into(), "c".into()]));
        let parts = vec![part(&[("a", 1), ("c", 2)], false), part(&[("b", 3), ("d", 4)], false), part(&[], false)];
        assert_eq!(users(&merged(parts, 3)), ["a", "b", "c"]);
    }
}
