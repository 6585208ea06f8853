use std::future::pending;

use bothways_proto::SerializeType;

use super::{
    lists::{EXPLAINED_MAX, PAGE_BYTES_MAX, PAGE_MAX, bytes_of, first_of},
    *,
};
use tokio::time::Instant;

use crate::{
    CallError, CallOptions, Caller, Client, ClientOptions, Reconnect,
    codec::Encode,
    server::{AdminOptions, Listening},
    session::{Class, Push, Session, TopicOptions},
    store::{AppendError, BoxFuture, EngineDown, Log, NewEntry, Page as StorePage, Place, Store, Stored},
};

fn token() -> AdminOptions {
    AdminOptions::token("right").expect("it has characters").on_service_addresses()
}

fn everyone() -> SessionsAsked {
    SessionsAsked {
        target: PushTarget::Everyone,
        user_prefix: String::new(),
        max: PAGE_MAX,
        after: None,
        silent: Vec::new(),
    }
}

async fn ask<R: Payload>(
    client: &Client,
    token: &str,
    method: &str,
    args: &(impl Payload + Sync),
) -> Result<R, CallError> {
    AdminClient::new(client, token).ask(method, args, Duration::ZERO).await
}

#[tokio::test(start_paused = true)]
async fn a_push_to_everyone_leaves_out_who_asks() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-push").await.expect("the name is free");
    let options = || ClientOptions::new();
    let (client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    let (operator, mut unheard) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    // A client that is answered is known to the server.
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");

    let push = AdminPush {
        target: PushTarget::Everyone,
        service_path: "News".into(),
        service_method: "Flash".into(),
        metadata: vec![("k".into(), "v".into())],
        payload: b"\x00\xff".to_vec(),
        codec: 0,
        class: PushClass::Tracked,
        idempotency_key: Some("flash 1".into()),
        until: PushUntil::Received,
        wait_ms: 1000,
    };
    let outcome = AdminClient::new(&operator, "right").push(&push).await.expect("the token is right");
    assert_eq!(outcome, AdminPushOutcome { received: 1, ..AdminPushOutcome::default() });
    let message = messages.next().await.expect("it is connected");
    assert_eq!((message.service_path(), message.metadata().get("k")), ("News", Some("v")));
    assert_eq!(message.payload().expect("not compressed"), b"\x00\xff"[..]);
    assert!(unheard.try_next().is_none());
    drop(message);
    let push = AdminPush { until: PushUntil::Handled, ..push };
    let again: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
    assert_eq!(again, AdminPushOutcome { duplicate: 1, ..AdminPushOutcome::default() });
    assert_eq!((again.targets(), again.missed()), (1, 0));
    let push = AdminPush { idempotency_key: Some(String::new()), ..push };
    ask::<AdminPushOutcome>(&operator, "right", "Push", &push).await.expect_err("a key has a length");

    let views: Vec<ConnectionView> = ask(&operator, "right", "Connections", &()).await.expect("the token is right");
    let page = Some(Page { after: Some("nonsense".to_owned()), ..Page::default() });
    let wrong = ask::<Vec<ConnectionView>>(&operator, "right", "Connections", &page).await;
    let error = wrong.expect_err("it is no connection").to_string();
    assert!(error.contains("`nonsense` is no connection, such as `c12`"), "{error}");
    let asking: Vec<bool> = views.iter().map(|view| view.is_asking).collect();
    assert_eq!(asking, [false, true]);
    assert_eq!((views[0].pushes_sent, views[1].pushes_sent), (1, 0));
}

/// An operator finds a session by its user, sees what it was sent, sends it away, and is told of its end.
#[tokio::test(start_paused = true)]
async fn sessions_are_listed_explained_and_kicked() {
    let hook = |request: crate::server::AuthRequest| async move {
        if let Some(session) = request.session() {
            session.bind_user(&request.token);
            session.set_label("device", "phone");
        }
        Ok::<_, String>(())
    };
    let server = Server::builder().admin(token()).auth(hook).build();
    let listening = server.listen("memory@admin-sessions").await.expect("the name is free");
    let options = ClientOptions::new().auth("ann").reconnect(Reconnect::Never);
    let (_client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    let options = ClientOptions::new().negotiate(false);
    let operator = Client::connect(listening.address(), options).await.expect("it listens");
    let ann = PushTarget::User("ann".into());
    let push = AdminPush {
        target: ann.clone(),
        service_path: "Chat".into(),
        service_method: "say".into(),
        metadata: Vec::new(),
        payload: b"hi".to_vec(),
        codec: 0,
        class: PushClass::Latest("greeting".into()),
        idempotency_key: None,
        until: PushUntil::Handled,
        wait_ms: 100,
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    let outcome: AdminPushOutcome = ask(&operator, "right", "Push", &push).await.expect("the token is right");
    assert_eq!((outcome.received, outcome.targets()), (1, 1), "its application has it, and is not done");
    messages.next().await.expect("it came");

    let asked = SessionsAsked { target: ann.clone(), max: 10, ..everyone() };
    let listed: SessionsListed = ask(&operator, "right", "Sessions", &asked).await.expect("the token is right");
    assert_eq!((listed.total, listed.sessions.len()), (1, 1));
    let session = &listed.sessions[0];
    assert_eq!((session.user.as_deref(), session.resumable, session.generation), (Some("ann"), true, 1));
    assert_eq!(session.labels.get("device").map(String::as_str), Some("phone"));

    let kick = AdminKick { target: PushTarget::Session(session.id.to_string()), why: "lunch".into() };
    let by_token = AdminClient::new(&operator, "right");
    assert!(!format!("{by_token:?}").contains("right"), "the token is a secret");
    assert!(format!("{by_token:?}").contains("AdminClient"));
    assert_eq!(by_token.kick(&kick).await.expect("the token is right"), 1);
    assert_eq!(by_token.kick(&kick).await.expect("the token is right"), 0, "it is gone");
    let everyone = AdminKick { target: PushTarget::Everyone, why: "lunch".into() };
    assert_eq!(by_token.kick(&everyone).await.expect("the token is right"), 0, "except for the one that asks");
    let told: Vec<crate::Explanation> = ask(&operator, "right", "Explain", &ann).await.expect("the token is right");
    let story = told[0].to_string();
    assert!(story.contains("push Chat.say (latest, offset 1, ") && story.contains("ended: lunch"), "{story}");
    for wrong in [PushTarget::Topic("a.*".into()), PushTarget::Session("x".into())] {
        ask::<Vec<crate::Explanation>>(&operator, "right", "Explain", &wrong).await.expect_err("it names nobody");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_token_nothing_is_told() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-token").await.expect("the name is free");
    for token in ["", "wrong", "right "] {
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let error = ask::<Vec<ConnectionView>>(&client, token, "Connections", &()).await.expect_err("refused");
        assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{token:?}");
    }
}

/// One more client, and its session.
async fn client_of(server: &Server, listening: &Listening) -> (Client, Session) {
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let connection = server.connections().pop().expect("it is open");
    let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
    (client, session)
}

/// Lists come in pages, each in order and each session once, however many there are.
#[tokio::test(start_paused = true)]
async fn lists_come_in_pages() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-pages").await.expect("the name is free");
    let mut clients = Vec::new();
    for number in 0..7 {
        let (client, session) = client_of(&server, &listening).await;
        if number != 3 {
            session.bind_user(&format!("user {}", number / 2));
        }
        clients.push(client);
    }
    let admin = server.listen_admin("memory@admin-pages-door").await.expect("the name is free");
    let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let (mut after, mut users, mut ids) = (None, Vec::new(), std::collections::BTreeSet::new());
    loop {
        let asked = SessionsAsked { max: 2, after, ..everyone() };
        let listed = operator.sessions(&asked).await.expect("the token is right");
        assert!(listed.total == 7 && listed.sessions.len() <= 2);
        let Some(last) = listed.sessions.last() else { break };
        after = Some(SessionPlace { user: last.user.clone(), id: last.id });
        ids.extend(listed.sessions.iter().map(|session| session.id));
        users.extend(listed.sessions.into_iter().map(|session| session.user));
    }
    assert!(users.is_sorted() && users.len() == 7 && ids.len() == 7, "{users:?}");
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let views = operator.connections(Page { after, max: 3 }).await.expect("the token is right");
        let Some(last) = views.last() else { break };
        assert!(views.len() <= 3 && views.iter().all(|view| !view.is_asking));
        after = Some(last.id.clone());
        seen.extend(views.into_iter().map(|view| view.id));
    }
    let open: Vec<_> = server.connections().iter().map(|connection| connection.id().to_string()).collect();
    assert_eq!(seen, open, "an operator's own connection is none of them");
}

/// U14. However large the sessions are, a page of them fits into an answer, and none is left out.
#[tokio::test(start_paused = true)]
async fn pages_have_a_bound_in_bytes() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-bytes").await.expect("the name is free");
    let mut clients = Vec::new();
    for number in 0..20 {
        let (client, session) = client_of(&server, &listening).await;
        // As many as fit just fill a page.
        session.bind_user(&format!("{number:02}"));
        session.set_label("note", "x".repeat(PAGE_BYTES_MAX / 8 - 512 - (2 + 8) - ("note".len() + 8)));
        clients.push(client);
    }
    let admin = server.listen_admin("memory@admin-bytes-door").await.expect("the name is free");
    let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let asked = SessionsAsked { after, ..everyone() };
        let listed = operator.sessions(&asked).await.expect("it fits");
        let Some(last) = listed.sessions.last() else { break };
        assert_eq!(listed.sessions.len(), if seen.len() < 16 { 8 } else { 4 });
        after = Some(SessionPlace { user: last.user.clone(), id: last.id });
        seen.extend(listed.sessions.into_iter().map(|session| session.id));
    }
    assert_eq!(seen.len(), 20);
}

/// What is explained at once has a bound.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_not_explained_at_once() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-crowd").await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..=EXPLAINED_MAX {
        clients.push(Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens"));
    }
    let admin = server.listen_admin("memory@admin-crowd-door").await.expect("the name is free");
    let operator = Client::connect(admin.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let error = operator.explain(&PushTarget::Everyone).await.expect_err("too many");
    assert!(error.to_string().contains("101 sessions are meant"), "{error}");
    clients.pop();
    until(|| server.connections().len() == EXPLAINED_MAX).await;
    operator.explain(&PushTarget::Everyone).await.expect("as many as may");
}

async fn until(mut is_true: impl FnMut() -> bool) {
    let waiting = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it comes true");
}

/// Each number counts once, and what is missed is what will never arrive or was not dealt with.
#[test]
fn an_outcome_adds_up() {
    let failed = PushFailures { no_handler: 1, bad_arguments: 2, error: 4, panicked: 8 };
    assert_eq!(failed.total(), 15);
    let outcome = AdminPushOutcome {
        queued: 16,
        written: 32,
        received: 64,
        handled: 128,
        expired: 256,
        superseded: 512,
        dropped: 1024,
        failed,
        unknown: 2048,
        duplicate: 4096,
        stored: true,
        routing: 0,
        unreached: 0,
    };
    assert_eq!(outcome.missed(), 256 + 512 + 1024 + 15);
    assert_eq!(outcome.targets(), 8191);
}

#[test]
fn the_first_are_kept_sorted() {
    for (max, expected) in [(0, &[][..]), (2, &[1, 2]), (4, &[1, 2, 3, 4]), (5, &[1, 2, 3, 4])] {
        let mut all = vec![3, 1, 4, 2];
        first_of(&mut all, max, |number| *number);
        assert_eq!(all, expected, "{max}");
    }
}

/// A page is as large as it is said to be: what a session counts for is what it takes, and little more.
#[test]
fn a_session_counts_for_what_it_takes() {
    let texts = |count: usize| (0..count).map(|number| format!("topic.of.some.length.{number}")).collect::<Vec<_>>();
    for (labels, subscriptions, methods, user) in
        [(0, 0, None, None), (100, 0, None, None), (0, 100, None, Some(5000)), (3, 7, Some(100), Some(3))]
    {
        let view = SessionView {
            id: "0123456789abcdef0123456789abcdef".parse().expect("a session"),
            node: None,
            user: user.map(|len| "u".repeat(len)),
            labels: texts(labels).into_iter().map(|key| (key, "value".repeat(20))).collect(),
            connection: Some("c12".into()),
            peer: Some("tcp@127.0.0.1:12345".into()),
            generation: u64::MAX,
            resumable: true,
            waiting: usize::MAX,
            waiting_bytes: usize::MAX,
            held: None,
            dropped: u64::MAX,
            subscriptions: texts(subscriptions),
            methods: methods.map(texts),
        };
        let pairs = labels + subscriptions + methods.unwrap_or(0);
        let takes = view.encode(SerializeType::MSGPACK).expect("plain data").len();
        let counted = bytes_of(&view);
        assert!(takes <= counted && counted <= takes + 512 + 8 * pairs, "{counted} for {takes}");
    }
}

/// A push to a topic goes past its history, and is told as kept; one to a connection that is gone is refused.
#[tokio::test(start_paused = true)]
async fn a_push_to_a_topic_is_kept_by_it() {
    let history = crate::session::TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = Server::builder().admin(token()).topic("news", history).expect("a pattern").build();
    let listening = server.listen("memory@admin-topic").await.expect("the name is free");
    let operator = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let push = |target| AdminPush {
        target,
        service_path: "News".into(),
        service_method: "say".into(),
        metadata: Vec::new(),
        payload: b"x".to_vec(),
        codec: 0,
        class: PushClass::Tracked,
        idempotency_key: None,
        until: PushUntil::Queued,
        wait_ms: 0,
    };
    let told = operator.push(&push(PushTarget::Topic("news".into()))).await.expect("the token is right");
    assert_eq!(told, AdminPushOutcome { stored: true, ..AdminPushOutcome::default() });
    let told = operator.push(&push(PushTarget::User("ann".into()))).await.expect("the token is right");
    assert!(!told.stored);
    let error = operator.push(&push(PushTarget::Connection("c999999".into()))).await.expect_err("it is not there");
    assert!(error.to_string().contains("there is no connection c999999"), "{error}");
}

fn push_to(target: PushTarget, name: &str) -> AdminPush {
    AdminPush {
        target,
        service_path: "News".into(),
        service_method: name.into(),
        metadata: Vec::new(),
        payload: b"x".to_vec(),
        codec: 0,
        class: PushClass::Tracked,
        idempotency_key: None,
        until: PushUntil::Queued,
        wait_ms: 0,
    }
}

/// What a token does not allow is refused, on a connection that stays, and noted; what it allows is done, and noted too.
#[tokio::test(start_paused = true)]
async fn a_role_allows_so_much() {
    let options = AdminOptions::operator("ann", AdminRole::Kick, "kicks")
        .and_then(|options| options.and_operator("bob", AdminRole::Push, "pushes"))
        .and_then(|options| options.and_operator("wall", AdminRole::Look, "looks"))
        .expect("tokens");
    let server = Server::builder().admin(options).build();
    let service = server.listen("memory@admin-roles").await.expect("the name is free");
    let door = server.listen_admin("memory@admin-roles-door").await.expect("the name is free");
    let (_client, mut messages) =
        Client::bidirectional(service.address(), ClientOptions::new()).await.expect("it listens");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let client = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let [ann, bob, wall] = ["kicks", "pushes", "looks"].map(|token| AdminClient::new(client.clone(), token));

    let kick = AdminKick { target: PushTarget::Everyone, why: "lunch".into() };
    let drain = AdminDrain { deadline_ms: 1000, reconnects_per_second: 1 };
    let push = push_to(PushTarget::Everyone, "Flash");
    let refusals = [
        wall.push(&push).await.expect_err("it only looks"),
        wall.begin_push(&push).await.expect_err("it only looks"),
        wall.kick(&kick).await.expect_err("it only looks"),
        bob.kick(&kick).await.expect_err("he only pushes"),
        bob.drain(&drain).await.expect_err("he only pushes"),
    ];
    assert!(refusals[0].to_string().ends_with("your token's role is look: Push needs push"), "{}", refusals[0]);
    assert!(refusals[4].to_string().ends_with("your token's role is push: Drain needs kick"), "{}", refusals[4]);
    assert!(messages.try_next().is_none());

    let me = wall.me().await.expect("it may look");
    assert_eq!((&*me.name, me.role), ("wall", AdminRole::Look));
    assert_eq!(wall.stats().await.expect("it may look").sessions, 1);
    bob.push(&push).await.expect("he may push");
    assert_eq!(ann.kick(&kick).await.expect("she may kick"), 1);

    let audit = wall.audit(&AuditAsked { before: None, max: 100 }).await.expect("it may look");
    let told: Vec<_> = audit.iter().map(|entry| (&*entry.operator, &*entry.act, &*entry.target)).collect();
    let refused = |name| (name, "refused", "");
    let refused = [refused("bob"), refused("bob"), refused("wall"), refused("wall"), refused("wall")];
    assert_eq!(told, [&[("ann", "kick", "everyone"), ("bob", "push", "everyone")][..], &refused[..]].concat());
    assert_eq!((&*audit[0].detail, &*audit[1].detail, audit[1].sessions), ("lunch", "News.Flash", 1));
}

/// A wrong token is in the audit, without the token.
#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_noted() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-noted").await.expect("the name is free");
    let stranger = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    AdminClient::new(&stranger, "wr0ng").stats().await.expect_err("it is wrong");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let asked = AuditAsked { before: None, max: 10 };
    let audit = AdminClient::new(&client, "right").audit(&asked).await.expect("it is right");
    assert_eq!((audit.len(), &*audit[0].act, &*audit[0].operator), (1, "refused", ""));
    assert_eq!(audit[0].detail, "the admin token is missing or wrong");
}

/// Of everyone, those of a prefix are found however they are spread over the table, in order and in pages.
#[tokio::test(start_paused = true)]
async fn sessions_are_found_by_the_beginning_of_their_users() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-prefix").await.expect("the name is free");
    let mut clients = Vec::new();
    for number in 0..30 {
        let (client, session) = client_of(&server, &listening).await;
        session.bind_user(&format!("{}{number:02}", ["ann", "anton", "bob"][number % 3]));
        clients.push(client);
    }
    let door = server.listen_admin("memory@admin-prefix-door").await.expect("the name is free");
    let operator =
        AdminClient::new(Client::connect(door.address(), ClientOptions::new()).await.expect("it listens"), "right");
    let of = async |prefix: &str, max: usize| {
        let (mut after, mut users, mut total) = (None, Vec::new(), 0);
        loop {
            let asked = SessionsAsked { user_prefix: prefix.to_owned(), max, after, ..everyone() };
            let listed = operator.sessions(&asked).await.expect("the token is right");
            total = listed.total.max(total);
            let Some(last) = listed.sessions.last() else { return (total, users) };
            assert!(last.peer.is_some(), "it is connected");
            after = Some(SessionPlace { user: last.user.clone(), id: last.id });
            users.extend(listed.sessions.into_iter().filter_map(|session| session.user));
        }
    };
    for max in [1, 7, 100] {
        let (total, users) = of("ann", max).await;
        assert_eq!((total, users.len(), users.is_sorted()), (10, 10, true), "{users:?}");
        assert_eq!(of("an", max).await.1.len(), 20);
        assert_eq!(of("", max).await.1.len(), 30);
        assert_eq!(of("bobby", max).await, (0, Vec::new()));
    }
}

/// A push is followed from stage to stage, each told when it comes.
#[tokio::test(start_paused = true)]
async fn a_push_is_followed_to_its_end() {
    let server = Server::builder().admin(token()).build();
    let listening = server.listen("memory@admin-follow").await.expect("the name is free");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    let door = server.listen_admin("memory@admin-follow-door").await.expect("the name is free");
    let client = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(client, "right");
    tokio::time::sleep(Duration::from_millis(1)).await;

    let mut standing = operator.begin_push(&push_to(PushTarget::Everyone, "Flash")).await.expect("the token is right");
    assert_eq!((standing.number, standing.outcome.targets(), standing.is_final), (1, 1, false));
    while standing.outcome.received == 0 {
        let asked = ReceiptAsked { number: 1, seen: Some(standing.outcome), wait_ms: 5000 };
        standing = operator.receipt(&asked).await.expect("it is kept");
    }
    // Nothing changes: so long it waits.
    let (asked, began) = (ReceiptAsked { number: 1, seen: Some(standing.outcome), wait_ms: 700 }, Instant::now());
    assert_eq!(operator.receipt(&asked).await.expect("it is kept"), standing);
    assert!(Duration::from_millis(700) <= began.elapsed());

    let asked = ReceiptAsked { wait_ms: 10_000, ..asked };
    let (told, began) = (operator.receipt(&asked), Instant::now());
    let handle = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(messages.next().await);
    };
    let (told, ()) = tokio::join!(told, handle);
    let told = told.expect("it is kept");
    assert_eq!((told.outcome.handled, told.is_final), (1, true));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let asked = ReceiptAsked { number: 1, seen: Some(told.outcome), wait_ms: 10_000 };
    assert_eq!(operator.receipt(&asked).await.expect("it is kept"), told, "at once: nothing can follow");

    let error = operator.receipt(&ReceiptAsked { number: 2, seen: None, wait_ms: 0 }).await.expect_err("there is none");
    assert!(error.to_string().ends_with("push 2 is not kept: the last 64 are"), "{error}");
    for _ in 0..64 {
        operator.begin_push(&push_to(PushTarget::User("nobody".into()), "Flash")).await.expect("the token is right");
    }
    operator.receipt(&ReceiptAsked { number: 1, seen: None, wait_ms: 0 }).await.expect_err("64 are later");
}

/// Topics by name with what there is of each, in pages, and who is in one.
#[tokio::test(start_paused = true)]
async fn topics_are_listed_with_their_members() {
    let kept = TopicOptions::new().open().presence(true).history(10, Duration::from_secs(60));
    let server = Server::builder()
        .admin(token())
        .topic("room.*", kept)
        .and_then(|builder| builder.topic("news.>", TopicOptions::new().open()))
        .expect("patterns")
        .build();
    let listening = server.listen("memory@admin-topics").await.expect("the name is free");
    let (client, _messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    for pattern in ["room.a", "room.b", "news.>", "news.sport"] {
        client.subscribe(pattern).await.expect("it is open");
    }
    for _ in 0..3 {
        server.publish("room.a", &Push::new("Room", "say", "x").class(Class::Tracked)).expect("small");
        server.publish("room.z", &Push::new("Room", "say", "x")).expect("small");
    }

    let door = server.listen_admin("memory@admin-topics-door").await.expect("the name is free");
    let operator = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let asked = TopicsAsked { prefix: String::new(), after: None, max: 100 };
    let listed = operator.topics(&asked).await.expect("the token is right");
    let told: Vec<_> = listed.topics.iter().map(|t| (&*t.name, t.subscribers, t.newest, t.members)).collect();
    let expected = [
        ("news.>", 1, None, None),
        ("news.sport", 1, None, None),
        ("room.a", 1, Some(3), Some(1)),
        ("room.b", 1, Some(0), Some(1)),
        ("room.z", 0, Some(3), Some(0)),
    ];
    assert_eq!((listed.total, told), (5, expected.to_vec()));

    let asked = TopicsAsked { prefix: "room.".into(), after: Some("room.a".into()), max: 1 };
    let page = operator.topics(&asked).await.expect("the token is right");
    assert_eq!((page.total, page.topics.len(), &*page.topics[0].name), (3, 1, "room.b"));
    let members = operator.members(&MembersAsked { topic: "room.a".into(), max: 10 }).await.expect("a topic");
    assert_eq!((members.members.len(), members.more), (1, false));
    operator.members(&MembersAsked { topic: "a.*".into(), max: 10 }).await.expect_err("it is no topic");
}

/// Who watches sees what happens to whom, in order, until the end.
#[tokio::test(start_paused = true)]
async fn the_feed_tells_whose_an_event_is() {
    let hook = |request: crate::server::AuthRequest| async move {
        if let Some(session) = request.session() {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    };
    let server = Server::builder().admin(token()).auth(hook).build();
    let listening = server.listen("memory@admin-feed").await.expect("the name is free");
    let door = server.listen_admin("memory@admin-feed-door").await.expect("the name is free");
    let operator = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(operator, "right");
    let begun = operator.events(&EventsAsked { from: None, max: 10 }).await.expect("the token is right");
    assert_eq!((begun.events.len(), begun.missed), (0, 0));

    let options = ClientOptions::new().auth("ann").reconnect(Reconnect::Never);
    let (_client, _messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(server.kick(&Target::user("ann"), "lunch").expect("no topic"), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = operator.events(&EventsAsked { from: Some(begun.next), max: 10 }).await.expect("the token is right");
    let texts: Vec<&str> = told.events.iter().map(|event| &*event.text).collect();
    assert!(texts.contains(&"user ann") && texts.contains(&"ended: lunch"), "{texts:?}");
    assert!(told.events.iter().all(|event| event.user.as_deref() == Some("ann")), "{told:?}");
    let none = operator.events(&EventsAsked { from: Some(told.next), max: 10 }).await.expect("the token is right");
    assert_eq!((none.events.len(), none.next), (0, told.next));
}

/// A drain that an operator begins goes on without the operator.
#[tokio::test(start_paused = true)]
async fn an_operator_drains_the_server() {
    let server = Server::builder().admin(token()).build();
    let service = server.listen("memory@admin-drain").await.expect("the name is free");
    let door = server.listen_admin("memory@admin-drain-door").await.expect("the name is free");
    let (client, _messages) = Client::bidirectional(service.address(), ClientOptions::new()).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let operator = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let drain = AdminDrain { deadline_ms: 60_000, reconnects_per_second: 1 };
    assert_eq!(AdminClient::new(&operator, "right").drain(&drain).await.expect("the token is right"), 1);
    drop(operator);
    service.stopped().await;
    // The report is that of the drain, whichever deadline is asked for now.
    let report = server.shutdown(Duration::ZERO).await;
    assert_eq!((report.clients_told, report.connections_cut), (1, 0), "{report:?}");
}

/// A client that has one place for a token, such as the admin page's, is let in by that one.
#[tokio::test(start_paused = true)]
async fn the_token_may_be_the_one_of_each_request() {
    let server = Server::builder().admin(token()).build();
    let door = server.listen_admin("memory@admin-auth-door").await.expect("the name is free");
    let me = async |token: &str| {
        let client = Client::connect(door.address(), ClientOptions::new().auth(token)).await.expect("it listens");
        let mut options = CallOptions::new();
        options.is_own = true;
        client.call_typed::<(), OperatorView>(SERVICE_PATH, "Me", &(), options).await.map(|reply| reply.value.name)
    };
    assert_eq!(me("right").await.expect("it is right"), "operator");
    assert_eq!(me("wrong").await.expect_err("it is wrong").code(), Some(ErrorCode::Unauthenticated));
}

/// A store that takes what it is asked, and never answers.
struct Mute;

impl Store for Mute {
    fn append(&self, _: Log, _: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        Box::pin(pending())
    }

    fn read(&self, _: Log, _: u64, _: usize) -> BoxFuture<Result<StorePage, EngineDown>> {
        Box::pin(pending())
    }

    fn cursor(&self, _: Log, _: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        Box::pin(pending())
    }

    fn cursors(&self, _: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        Box::pin(pending())
    }

    fn advance(&self, _: Log, _: String, _: Place, _: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        Box::pin(pending())
    }

    fn trim(&self, _: Log, _: Place) -> BoxFuture<Result<(), EngineDown>> {
        Box::pin(pending())
    }

    fn remove(&self, _: Log, _: Place) -> BoxFuture<Result<bool, EngineDown>> {
        Box::pin(pending())
    }

    fn list(&self, _: Log, _: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        Box::pin(pending())
    }
}

/// What an operator began is noted, whether the operator waits for its end, or the store says how it ended.
#[tokio::test(start_paused = true)]
async fn an_act_without_an_end_is_noted() {
    let server = Server::builder().admin(token()).store(Mute).build();
    let door = server.listen_admin("memory@admin-unfinished").await.expect("the name is free");
    let client = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(client, "right");
    let audit = async || {
        let page = operator.audit(&AuditAsked { before: None, max: 10 }).await.expect("the token is right");
        page.into_iter().map(|entry| (entry.act, entry.target, entry.detail)).collect::<Vec<_>>()
    };
    let noted = |act: &str, detail: &str| (act.to_owned(), "user ann".to_owned(), detail.to_owned());

    let place = Place { epoch: 3, sequence: 1 };
    let letter = |dead| LetterNamed { user: "ann".into(), place, dead };
    let (one, dead) = (letter(false), letter(true));
    for letter in [&one, &dead] {
        let act = operator.delete_letter(letter);
        tokio::time::timeout(Duration::from_secs(1), act).await.expect_err("nothing answers");
    }
    tokio::time::timeout(Duration::from_secs(1), operator.send_again(&dead)).await.expect_err("nothing answers");
    let unseen = format!("its end was not waited for: {place}");
    let begun = ["send again", "delete a dead letter", "delete a letter"].map(|act| noted(act, &unseen));
    assert_eq!(audit().await, begun);

    let error = operator.delete_letter(&one).await.expect_err("the store is mute");
    let last = audit().await.swap_remove(0);
    assert!(error.to_string().ends_with(last.2.trim_end_matches(&format!(": {place}"))), "{error}, {last:?}");
    assert_eq!((&*last.0, last.2.ends_with(&place.to_string())), ("delete a letter", true), "{last:?}");
}

/// However long the server waits for a store, its answer is waited for: a push that went out is no failure.
#[tokio::test(start_paused = true)]
async fn a_push_is_waited_for_as_long_as_its_store() {
    let server = Server::builder().admin(token()).store(Mute).build();
    let door = server.listen_admin("memory@admin-mute").await.expect("the name is free");
    let client = Client::connect(door.address(), ClientOptions::new()).await.expect("it listens");
    let operator = AdminClient::new(client, "right");
    let push = AdminPush { class: PushClass::Durable(60_000), ..push_to(PushTarget::User("ann".into()), "Flash") };

    let began = operator.begin_push(&push).await.map(drop);
    let pushed = operator.push(&push).await.map(drop);
    for outcome in [began, pushed] {
        assert!(!matches!(outcome, Err(CallError::TimedOut(_))), "{outcome:?}");
    }
}
