//! Lists of nodes and sessions, and what an operator does, over all nodes.

use std::time::Duration;

use bothways::{
    Client, ClientOptions, Server, Target,
    cluster::{Cluster, NodeId, memory::MemoryBroker},
    server::{
        AdminClient, AdminKick, AdminOptions, AdminPush, PushClass, PushTarget, PushUntil, SessionPlace, SessionView,
        SessionsAsked,
    },
    testing::{self, Network},
};
use tokio::time::{Instant, sleep};

use crate::support::{Node, next, nodes, until};

fn asked(target: PushTarget, max: usize) -> SessionsAsked {
    SessionsAsked { target, user_prefix: String::new(), max, after: None, silent: Vec::new() }
}

fn users(sessions: &[SessionView]) -> Vec<&str> {
    sessions.iter().map(|view| view.user.as_deref().unwrap_or_default()).collect()
}

/// All sessions, page by page.
async fn pages(server: &Server, mut asked: SessionsAsked) -> Vec<SessionView> {
    let mut all: Vec<SessionView> = Vec::new();
    loop {
        asked.after = all.last().map(|last| SessionPlace { user: last.user.clone(), id: last.id });
        let page = server.sessions_everywhere(&asked).await.expect("a right target");
        assert!(page.silent.is_empty() && page.sessions.len() <= asked.max, "{page:?}");
        match page.sessions.is_empty() {
            true => return all,
            false => all.extend(page.sessions),
        }
    }
}

/// The sessions of all nodes are one list, in pages without a hole and without one session twice.
#[test]
fn the_sessions_of_all_nodes_are_one_list() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let all = nodes::<3>(&broker).await;
        let mut clients = Vec::new();
        for (place, user) in ["ann", "bob", "bob", "cyd", "dan", "eve", "fay", "gus"].into_iter().enumerate() {
            clients.push(all[place % 3].client(user).await);
        }
        for node in &all {
            for max in [1, 2, 3, 256] {
                let listed = pages(node.server(), asked(PushTarget::Everyone, max)).await;
                assert_eq!(users(&listed), ["ann", "bob", "bob", "cyd", "dan", "eve", "fay", "gus"], "{max}");
                for (place, view) in ["ann", "bob"].iter().zip(&listed) {
                    let at: NodeId = view.node.as_deref().expect("in a cluster").parse().expect("a number");
                    let node = all.iter().find(|node| node.id == at).expect("one of them");
                    assert_eq!(node.server().user(place).sessions()[0].id(), view.id);
                }
            }
            let bobs = pages(node.server(), asked(PushTarget::User("bob".to_owned()), 10)).await;
            assert_eq!(bobs.len(), 2);
            let prefixed = SessionsAsked { user_prefix: "b".to_owned(), ..asked(PushTarget::Everyone, 10) };
            assert_eq!(pages(node.server(), prefixed).await.len(), 2);
        }
        let wrong = all[0].server().sessions_everywhere(&asked(PushTarget::Session("x".to_owned()), 10)).await;
        assert!(wrong.is_err_and(|wrong| wrong.to_string().contains("`x` is no session")));

        broker.faults().pause(all[1].id, true);
        let listed = all[0].server().sessions_everywhere(&asked(PushTarget::Everyone, 10)).await.expect("right");
        assert_eq!(listed.silent.len(), 1);
        assert_eq!((&*listed.silent[0].node, listed.sessions.len()), (&*all[1].id.to_string(), 5));
    });
}

/// Each node tells of the others what they told of themselves, and what it sees itself.
#[test]
fn nodes_are_listed_with_their_state() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let _clients = [other.client("ann").await, other.client("bob").await];
        let there = |node: &Node| {
            let members = node.server().members();
            members.into_iter().find(|view| view.node == other.id).expect("it is a member")
        };
        until("it has told of its sessions", || there(&one).sessions == 2).await;
        let views = one.server().members();
        assert_eq!((views.len(), views[0].node, views[0].is_here, views[0].sessions), (2, one.id, true, 0));
        let view = there(&one);
        assert_eq!((view.connections, view.sessions_away, view.is_draining, view.silent), (2, 0, false, None));
        assert_eq!(view.version, env!("CARGO_PKG_VERSION"));
        assert!(!view.is_here && !view.is_missing && Duration::from_millis(900) <= view.up, "{view:?}");

        broker.faults().pause(other.id, true);
        one.push(&Target::user("ann"), "a letter");
        until("it is silent", || there(&one).silent.is_some()).await;
        broker.faults().pause(other.id, false);
        one.push(&Target::user("ann"), "a letter");
        until("it answers", || there(&one).silent.is_none()).await;
        let server = other.server().clone();
        let stopping = tokio::spawn(async move { server.drain(Duration::from_secs(20), 1).await });
        until("it drains", || {
            let members = one.server().members();
            members.iter().all(|view| view.node != other.id || view.is_draining)
        })
        .await;
        stopping.await.expect("no panic");
        until("it has left", || one.server().members().len() == 1).await;
    });
}

/// A node with an admin service, and an operator at it.
async fn operated(broker: &MemoryBroker, name: &str) -> (Network, AdminClient<Client>) {
    let server = Server::builder()
        .auth(|request| async move {
            request.session().ok_or("it has left")?.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .admin(AdminOptions::token("a long secret").expect("a token"))
        .build();
    server.join(Cluster::new(broker.engine()).address(format!("tcp@{name}:8972"))).await.expect("the engine works");
    let listening = server.listen_admin(&format!("memory@nodes-{name}")).await.expect("a free name");
    let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
    // It listens as long as the test.
    std::mem::forget(listening);
    (Network::new(server).await.expect("it runs"), AdminClient::new(client, "a long secret"))
}

/// A node that is asked and does not answer is silent, whether anything waits for it or not. Once its lease has ended it is
/// gone, and lists of sessions name it, for half a minute. So is the node that is asked, while it has no lease.
#[test]
fn a_dead_node_is_named_in_each_list() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, admin) = operated(&broker, "here").await;
        let (other, _) = operated(&broker, "dead").await;
        until("both know", || one.server().members().len() == 2 && other.server().members().len() == 2).await;
        let dead = other.server().nodes().expect("it is a member").0;
        let listed = async || {
            let began = Instant::now();
            let nodes = admin.nodes().await.expect("it answers");
            assert!(began.elapsed() <= Duration::from_secs(4), "{:?}", began.elapsed());
            nodes.into_iter().map(|node| (node.node, node.state, node.silent_ms.is_some())).collect::<Vec<_>>()
        };
        let silent = async || {
            let asked = asked(PushTarget::Everyone, 10);
            let listed = admin.sessions_everywhere(&asked).await.expect("it answers");
            listed.silent.into_iter().map(|one| (one.node, one.why)).collect::<Vec<_>>()
        };
        let here_up = (one.server().nodes().expect("it is a member").0.to_string(), "up".to_owned(), false);
        let dead_is = |state: &str, is_silent| (dead.to_string(), state.to_owned(), is_silent);
        assert_eq!(listed().await, [here_up.clone(), dead_is("up", false)]);
        assert_eq!(silent().await, []);

        broker.faults().pause(dead, true);
        assert_eq!(listed().await, [here_up.clone(), dead_is("silent", true)], "nothing waits for it");
        broker.faults().pause(dead, false);
        assert_eq!(listed().await, [here_up.clone(), dead_is("up", false)]);

        broker.faults().kill(dead);
        assert_eq!(listed().await, [here_up.clone(), dead_is("silent", true)]);
        until("it is no member", || one.server().members().len() == 1).await;
        assert_eq!(listed().await, [here_up.clone(), dead_is("gone", false)]);
        let nodes = admin.nodes().await.expect("it answers");
        assert_eq!(nodes[1].address.as_deref(), Some("tcp@dead:8972"));
        assert_eq!(silent().await, [(dead.to_string(), "the node is gone".to_owned())]);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(listed().await, [here_up], "it is forgotten");
        assert_eq!(silent().await, []);

        // Without mail it cannot begin another life.
        broker.faults().mail_up(false);
        broker.faults().end_all_leases();
        until("it is no member", || one.server().nodes().is_none()).await;
        assert_eq!(listed().await, [(String::new(), "gone".to_owned(), false)], "what is forgotten stays so");
    });
}

/// A list of many pages waits once for a node that does not answer, and each page names it.
#[test]
fn a_silent_node_is_waited_for_once_in_a_list() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let all = nodes::<3>(&broker).await;
        let mut clients = Vec::new();
        for (place, user) in ["ann", "bob", "cyd", "dan", "eve", "fay"].into_iter().enumerate() {
            clients.push(all[place % 2].client(user).await);
        }
        broker.faults().pause(all[2].id, true);

        let (mut asked, mut listed) = (asked(PushTarget::Everyone, 1), Vec::new());
        let began = Instant::now();
        loop {
            let page = all[0].server().sessions_everywhere(&asked).await.expect("a right target");
            let named: Vec<&str> = page.silent.iter().map(|one| &*one.node).collect();
            assert_eq!(named, [all[2].id.to_string()], "page {}", listed.len());
            let Some(last) = page.sessions.last() else { break };
            asked.after = Some(SessionPlace { user: last.user.clone(), id: last.id });
            asked.silent = page.silent;
            listed.extend(page.sessions);
        }
        assert_eq!(users(&listed), ["ann", "bob", "cyd", "dan", "eve", "fay"]);
        assert!(began.elapsed() <= Duration::from_millis(4100), "it took {:?}", began.elapsed());
    });
}

/// What an operator does at one node is for the sessions of all.
#[test]
fn an_operator_acts_at_all_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, admin) = operated(&broker, "one").await;
        let (other, _) = operated(&broker, "other").await;
        until("both know", || one.server().members().len() == 2 && other.server().members().len() == 2).await;
        let mut ann = other.client(ClientOptions::new().auth("ann")).await.expect("it listens");
        ann.welcomed().await;
        let nodes = admin.nodes().await.expect("it answers");
        let shown: Vec<_> = nodes.iter().map(|node| (node.is_here, &*node.state, node.address.as_deref())).collect();
        assert_eq!(shown, [(true, "up", Some("tcp@one:8972")), (false, "up", Some("tcp@other:8972"))]);

        let user = || PushTarget::User("ann".to_owned());
        let listed = admin.sessions_everywhere(&asked(user(), 10)).await.expect("it answers");
        assert_eq!((listed.total, listed.sessions[0].node.as_deref()), (1, Some(&*nodes[1].node)));
        assert!(admin.sessions(&asked(user(), 10)).await.expect("it answers").sessions.is_empty(), "that node's own");

        let push = AdminPush {
            target: user(),
            service_path: "Mail".to_owned(),
            service_method: "New".to_owned(),
            metadata: Vec::new(),
            payload: b"a letter".to_vec(),
            codec: 0,
            class: PushClass::Tracked,
            idempotency_key: None,
            until: PushUntil::Received,
            wait_ms: 5000,
        };
        let outcome = admin.push(&push).await.expect("it answers");
        assert_eq!((outcome.targets(), outcome.routing, outcome.unreached), (1, 0, 0), "{outcome:?}");
        assert_eq!(next(&mut ann).await, "a letter");

        let told = admin.explain_everywhere(&user()).await.expect("it answers");
        assert!(told.silent.is_empty() && told.left_out == 0, "{told:?}");
        let [(node, story)] = &told.explained[..] else { panic!("{told:?}") };
        assert_eq!((node, story.user.as_deref()), (&nodes[1].node, Some("ann")));

        let kick = AdminKick { target: user(), why: "lunch".to_owned() };
        let kicked = admin.kick_everywhere(&kick).await.expect("it answers");
        assert_eq!((kicked.ended, kicked.silent.len()), (1, 0));
        assert!(ann.messages.next().await.is_none(), "it is closed, and does not come back");
        let audit = admin.audit(&bothways::server::AuditAsked { before: None, max: 10 }).await.expect("it answers");
        assert_eq!((&*audit[0].act, audit[0].sessions), ("kick", 1));

        broker.faults().mail_up(false);
        let outcome = admin.push(&push).await.expect("it answers");
        assert_eq!((outcome.targets(), outcome.unreached), (0, 1), "{outcome:?}");
        let kicked = admin.kick_everywhere(&kick).await.expect("it answers");
        assert_eq!(kicked.silent.len(), 1, "{kicked:?}");
    });
}

/// A server alone is a cluster of one for its operator.
#[test]
fn a_server_alone_answers_its_operator() {
    testing::run(async {
        let server = Server::builder().admin(AdminOptions::token("a long secret").expect("a token")).build();
        let listening = server.listen_admin("memory@nodes-alone").await.expect("a free name");
        let options = ClientOptions::new().negotiate(false);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        let admin = AdminClient::new(client, "a long secret");
        let network = Network::new(server.clone()).await.expect("it runs");
        let ann = network.client(ClientOptions::new()).await.expect("it listens");
        ann.welcomed().await;
        let nodes = admin.nodes().await.expect("it answers");
        assert_eq!((nodes.len(), &*nodes[0].node, nodes[0].is_here, nodes[0].sessions), (1, "", true, 1));
        let listed = admin.sessions_everywhere(&asked(PushTarget::Everyone, 10)).await.expect("it answers");
        assert_eq!((listed.total, listed.sessions[0].node.as_deref()), (1, None));
        let told = admin.explain_everywhere(&PushTarget::Everyone).await.expect("it answers");
        assert_eq!(told.explained.len(), 1);
        let kick = AdminKick { target: PushTarget::Everyone, why: "lunch".to_owned() };
        assert_eq!(admin.kick_everywhere(&kick).await.expect("it answers").ended, 1);
        assert!(server.members().is_empty());
    });
}
