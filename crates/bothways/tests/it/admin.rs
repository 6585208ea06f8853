//! The admin service from outside: where it answers, whom it lets in, and what becomes of those who guess.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways::{
    CallError, Client, ClientOptions, ErrorCode, Reconnect, ServeError, Server, ServerBuilder, ServerLimits, Session,
    SessionOptions, Target, Timeouts,
    server::{ADMIN_PATH, AdminClient, AdminOptions, EmptyAdminToken, Page, PushTarget, SessionsAsked},
};
use bothways_proto::{Capabilities, Header, Message, Metadata, Seq, SerializeType, keys};
use tokio::time::Instant;

use crate::{
    scripted::Scripted,
    support::{address, gate, settle, soon, until},
};

fn admin(builder: ServerBuilder) -> Server {
    builder.admin(AdminOptions::token("right").expect("it has characters")).build()
}

async fn operator(address: &str, token: &str) -> AdminClient<Client> {
    let options = ClientOptions::new().reconnect(Reconnect::Never);
    let client = Client::connect(address, options).await.expect("it listens");
    AdminClient::new(client, token)
}

/// A question to the admin service, with this token.
fn ask(seq: u64, token: &str) -> Vec<u8> {
    let header = Header::request(Seq::new(seq), SerializeType::MSGPACK);
    let pairs = Metadata::new().with(keys::ADMIN_TOKEN, token);
    Message::new(header, ADMIN_PATH, "Connections", &pairs, b"\xc0").frame().to_vec()
}

/// What is logged by this thread while it is kept.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        use tracing_subscriber::util::SubscriberInitExt;
        let log = Self::default();
        let to = log.clone();
        let layer = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
        let guard = layer.with_max_level(tracing_subscriber::filter::LevelFilter::INFO).set_default();
        (log, guard)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("a text")
    }

    pub(crate) fn lines(&self, part: &str) -> usize {
        self.text().lines().filter(|line| line.contains(part)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// It answers at its own address and nowhere else, and nothing else answers there.
#[tokio::test(start_paused = true)]
async fn the_admin_service_answers_at_its_own_address_only() {
    let hook = |_| std::future::ready(Err::<(), _>("clients of the service only"));
    let server = admin(Server::builder().auth(hook));
    let (serving, operators) = (address(), address());
    let serving = server.listen(&serving).await.expect("a free name");
    let operators = server.listen_admin(&operators).await.expect("a free name");
    let asking = operator(operators.address(), "right").await;
    assert_eq!(asking.connections(Page::default()).await.expect("the token is right"), []);
    let mut stranger = Scripted::connect(serving.address()).await;
    stranger.say(ask(1, "right")).await;
    let refused = stranger.next().await;
    assert_eq!(refused.metadata().get(keys::ERROR), Some("clients of the service only"), "as for any request");

    let client = Client::connect(operators.address(), ClientOptions::new()).await.expect("it listens");
    let error = client.call::<()>("T", "Echo", &()).await.expect_err("there is no such service");
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    let subscribed = client.subscribe("news").await.expect_err("there are no topics either");
    assert_eq!(subscribed.code(), Some(ErrorCode::NotFound));
    drop(stranger);
    until(|| server.stats().connections == 0).await;
    assert_eq!(server.stats().sessions, 0, "who asks is no client");
}

/// Without a token there is no admin service, an empty one is none, and others' machines need TLS.
#[tokio::test]
async fn the_door_is_closed_by_default() {
    assert_eq!(AdminOptions::token("").unwrap_err(), EmptyAdminToken);
    let without = Server::builder().build();
    for refused in [without.listen_admin(&address()).await, admin(Server::builder()).listen_admin("0.0.0.0:0").await] {
        assert!(matches!(refused, Err(ServeError::Admin { .. })), "{refused:?}");
    }
    assert!(!format!("{:?}", AdminOptions::token("s3cret")).contains("s3cret"));
}

/// The first wrong token ends its connection: what was sent behind it is not looked at. It is counted and told.
#[tokio::test(start_paused = true)]
async fn a_wrong_token_ends_its_connection() {
    let (log, _guard) = Log::begin();
    let server = admin(Server::builder());
    let listening = server.listen_admin(&address()).await.expect("a free name");
    let mut guesser = Scripted::connect(listening.address()).await;
    let guesses: Vec<u8> = (0..2000).flat_map(|seq| ask(seq, "wr0ng")).chain(ask(2000, "right")).collect();
    guesser.try_say(guesses).await.ok();
    let answers = guesser.rest().await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].metadata().get(keys::ERROR), Some("the admin token is missing or wrong"));
    assert_eq!(server.stats().admin_requests_refused, 1);
    assert_eq!(log.lines("an admin request was refused"), 1, "{}", log.text());
    assert!(log.text().contains("WARN") && !log.text().contains("wr0ng"), "{}", log.text());
}

/// Ten wrong tokens of one peer are answered at once, and then one a second: a right one at once. While so many are
/// guessed that they would be answered still later, none is looked at, and who has shown the right one is answered.
#[tokio::test(start_paused = true)]
async fn guesses_have_a_pace() {
    let (log, _guard) = Log::begin();
    let server = admin(Server::builder());
    let listening = server.listen_admin(&address()).await.expect("a free name");
    let guess = async |token| operator(listening.address(), token).await.connections(Page::default()).await;
    let began = Instant::now();
    let stays = operator(listening.address(), "right").await;
    stays.connections(Page::default()).await.expect("the token is right");
    for number in 0..12_u64 {
        let error = guess("wr0ng").await.expect_err("wrong");
        assert_eq!(error.remote_text(), Some("the admin token is missing or wrong"));
        assert_eq!(began.elapsed().as_secs(), number.saturating_sub(9), "number {number}");
        guess("right").await.expect("the token is right");
        assert_eq!(began.elapsed().as_secs(), number.saturating_sub(9), "it is not held up");
    }

    let mut guessers = Vec::new();
    for _ in 0..8 {
        let mut guesser = Scripted::connect(listening.address()).await;
        guesser.say(ask(1, "wr0ng")).await;
        guessers.push(guesser);
        settle().await;
    }
    let error = guess("right").await.expect_err("so short a token could be guessed");
    assert!(error.remote_text().is_some_and(|text| text.contains("too many wrong admin tokens")), "{error}");
    stays.connections(Page::default()).await.expect("it has shown the token");
    for guesser in &mut guessers {
        soon(guesser.rest()).await;
    }
    tokio::time::advance(Duration::from_secs(4)).await;
    guess("right").await.expect("the token is right");
    assert!(log.lines("an admin request was refused") <= 2, "a flood is told once in ten seconds: {}", log.text());
}

/// However many connect and say nothing, or guess, from the operator's own address: a long right token is let in, and who
/// has shown it stays.
#[tokio::test(start_paused = true)]
async fn strangers_keep_no_operator_out() {
    let token = "0123456789abcdef0123456789abcdef";
    let options = AdminOptions::token(token).expect("it has characters");
    let server = Server::builder().admin(options).build();
    let listening = server.listen_admin(&address()).await.expect("a free name");
    let stays = operator(listening.address(), token).await;
    stays.connections(Page::default()).await.expect("the token is right");
    let mut strangers = Vec::new();
    for round in 0..5 {
        for number in 0..40 {
            let mut stranger = Scripted::connect(listening.address()).await;
            if number % 2 == 0 {
                stranger.try_say(ask(1, "wr0ng")).await.ok();
            }
            strangers.push(stranger);
        }
        settle().await;
        let comes = operator(listening.address(), token).await;
        for asking in [&comes, &stays] {
            soon(asking.connections(Page::default())).await.unwrap_or_else(|error| panic!("{round}: {error}"));
        }
    }
    assert!(server.stats().admin_requests_refused < 100, "the others are answered late, or were cut");
}

/// A connection that brings no token is cut, and 16 of one peer at once are all that there is room for: the newest has
/// a place.
#[tokio::test(start_paused = true)]
async fn who_brings_no_token_is_sent_away() {
    let server = admin(Server::builder().timeouts(Timeouts::new().first_frame(Duration::from_secs(10))));
    let listening = server.listen_admin(&address()).await.expect("a free name");
    let mut idle = Vec::new();
    for _ in 0..17 {
        let mut connection = Scripted::connect(listening.address()).await;
        // It says something, so that it is not closed for saying nothing.
        connection.say(crate::scripted::request(1, "Echo", b"")).await;
        connection.next().await;
        idle.push(connection);
    }
    let began = Instant::now();
    idle.remove(0).hears_the_end().await;
    assert_eq!(began.elapsed().as_secs(), 0, "it made way");
    let stays = operator(listening.address(), "right").await;
    stays.connections(Page::default()).await.expect("there is room for an operator");
    idle.remove(0).hears_the_end().await;
    assert_eq!(began.elapsed().as_secs(), 0, "it made way");
    for connection in &mut idle {
        connection.hears_the_end().await;
    }
    assert_eq!(began.elapsed().as_secs(), 10);
    tokio::time::sleep(Duration::from_secs(60)).await;
    stays.connections(Page::default()).await.expect("who has the token stays");
}

/// Before the right token a frame is as small as any stranger's, whatever Hello came first; behind it, as large as any.
#[tokio::test(start_paused = true)]
async fn operators_without_a_token_send_small_frames() {
    let server = admin(Server::builder().limits(ServerLimits::new().unauthenticated_body_bytes_max(100_000)));
    let listening = server.listen_admin(&address()).await.expect("a free name");
    let large = crate::scripted::request(7, "Echo", &[7; 500_000]);
    for hello in [None, Some(crate::scripted::hello(0, Capabilities::ALL, &Metadata::new()))] {
        let mut stranger = Scripted::connect(listening.address()).await;
        if let Some(hello) = hello {
            stranger.say(hello).await;
            stranger.next().await;
        }
        stranger.say(&large[..90_000]).await;
        let refused = stranger.next().await;
        let text = refused.error_text().expect("it failed");
        assert!(text.contains("`unauthenticated_body_bytes_max` is 100000"), "{text}");
        stranger.hears_the_end().await;
    }
    let mut operator = Scripted::connect(listening.address()).await;
    operator.say(ask(1, "right")).await;
    assert_eq!(operator.next().await.error_text(), None);
    operator.say(&large).await;
    let answered = operator.next().await.error_text().expect("there is no such service");
    assert!(answered.contains("can't find service"), "{answered}");
}

/// What strangers begin to send at the admin address takes no room of the service's clients, and is bounded itself.
#[tokio::test(start_paused = true)]
async fn strangers_at_the_admin_address_take_no_room_of_clients() {
    let server = admin(
        Server::builder()
            .handler("T", "Echo", crate::support::echo)
            .limits(ServerLimits::new().partial_bytes_max(300_000)),
    );
    let serving = server.listen(&address()).await.expect("a free name");
    let operators = server.listen_admin(&address()).await.expect("a free name");
    let begun = crate::scripted::request(1, "Echo", &[7; 1_000_000]);
    let mut strangers = Vec::new();
    for _ in 0..12 {
        let mut stranger = Scripted::connect(operators.address()).await;
        stranger.say(&begun[..900_000]).await;
        settle().await;
        strangers.push(stranger);
    }
    let mut client = Scripted::connect(serving.address()).await;
    for number in 2..4 {
        client.say(crate::scripted::request(number, "Echo", &[7; 1_000_000])).await;
        client.hears(crate::scripted::reply(number, "Echo", &[7; 1_000_000])).await;
    }
    let mut refused = 0;
    for stranger in &mut strangers {
        let answer = tokio::time::timeout(Duration::from_millis(1), stranger.next()).await;
        refused += usize::from(answer.is_ok_and(|answer| answer.error_text().is_some()));
    }
    assert!((1..12).contains(&refused), "8 MiB are for strangers: {refused} were refused");
}

/// Operators look in while a server stops, to the end.
#[tokio::test(start_paused = true)]
async fn operators_are_answered_while_a_server_stops() {
    let (log, _guard) = Log::begin();
    let (handler, mut asked) = gate();
    let server = admin(Server::builder().handler("T", "Wait", handler));
    let listening = server.listen(&address()).await.expect("a free name");
    let operators = server.listen_admin(&address()).await.expect("a free name");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let calling = tokio::spawn(async move { client.call::<()>("T", "Wait", &()).await });
    let asked = soon(asked.recv()).await.expect("it is asked");
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(Duration::from_secs(30)).await }
    });
    settle().await;
    let asking = operator(operators.address(), "right").await;
    let views = asking.connections(Page::default()).await.expect("it is answered");
    assert_eq!(views.iter().map(|view| view.calls_running).collect::<Vec<_>>(), [1]);
    asked.answer(bothways::Reply::ok(b"\xc0".to_vec()));
    soon(calling).await.expect("no panic").expect("it is answered");
    soon(stopping).await.expect("no panic");
    assert!(matches!(
        asking.connections(Page::default()).await,
        Err(CallError::NotConnected(_) | CallError::Closed { .. } | CallError::TimedOut(_))
    ));
    for part in ["listening for operators", "the server begins to stop", "the server has stopped"] {
        assert_eq!(log.lines(part), 1, "{part}: {}", log.text());
    }
}

/// Where it was asked for, the service's own addresses answer too; a wrong token closes there as well.
#[tokio::test(start_paused = true)]
async fn the_service_addresses_answer_if_that_was_asked_for() {
    let options = AdminOptions::token("right").expect("it has characters").on_service_addresses();
    let server = Server::builder().admin(options).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let asked = SessionsAsked {
        target: PushTarget::Everyone,
        user_prefix: String::new(),
        max: 10,
        after: None,
        silent: Vec::new(),
    };
    let listed = operator(listening.address(), "right").await.sessions(&asked).await.expect("the token is right");
    assert_eq!(listed.total, 0, "who asks is not listed");
    let mut guesser = Scripted::connect(listening.address()).await;
    guesser.say([ask(1, ""), ask(2, "right")].concat()).await;
    assert_eq!(guesser.rest().await.len(), 1);
    // A program of an earlier version asks for all, without a page.
    let mut earlier = Scripted::connect(listening.address()).await;
    earlier.say(ask(1, "right")).await;
    assert!(!earlier.next().await.header().status().is_error());
}

/// A refused client is counted and told once in a while, without its token, and no text of a hook forges a line.
#[tokio::test(start_paused = true)]
async fn refusals_are_told_and_do_not_flood() {
    let (log, _guard) = Log::begin();
    let hook = |_| std::future::ready(Err::<(), _>("no\n2026-01-01T00:00:00Z  INFO forged"));
    let server = Server::builder().auth(hook).build();
    let listening = server.listen(&address()).await.expect("a free name");
    for _ in 0..20 {
        let mut client = Scripted::connect(listening.address()).await;
        let token = Metadata::new().with(keys::AUTH, "wr0ng");
        client.say(crate::scripted::request_with(1, "Echo", &token, b"")).await;
        client.rest().await;
    }
    assert_eq!(server.stats().tokens_refused, 20);
    assert_eq!(log.lines("a client was not authenticated"), 1, "{}", log.text());
    assert!(!log.text().contains("wr0ng") && !log.text().contains("\n2026-01-01"), "{}", log.text());
    tokio::time::advance(Duration::from_secs(10)).await;
    let mut client = Scripted::connect(listening.address()).await;
    client.say(crate::scripted::request(1, "Echo", b"")).await;
    client.rest().await;
    assert_eq!(log.lines("left_out=19"), 1, "{}", log.text());
}

/// The life of sessions and of a client has its lines at level info, and a crowd has one.
#[tokio::test(start_paused = true)]
async fn the_life_of_sessions_and_clients_is_told() {
    let (log, _guard) = Log::begin();
    let server = Server::builder().sessions(SessionOptions::new().resume_window(Duration::from_secs(5))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let (client, _messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    crate::support::until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(Session::is_resumable))
        .await;
    server.connections()[0].close();
    crate::support::until(|| 0 < log.lines("a session was resumed")).await;
    for part in ["connected", "the connection was lost", "connected again", "a session was resumed"] {
        assert!(0 < log.lines(part), "{part}: {}", log.text());
    }
    client.close();
    let mut away = Vec::new();
    for _ in 0..3 {
        away.push(crate::scripted::arrive(listening.address(), &Metadata::new()).await);
    }
    drop(away);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!((1..3).contains(&log.lines("sessions expired")), "{}", log.text());
    let mut kicked = Vec::new();
    for _ in 0..5 {
        kicked.push(crate::scripted::arrive(listening.address(), &Metadata::new()).await);
    }
    assert_eq!(server.kick(&Target::everyone(), "lunch\nand more").expect("no topic"), 5);
    assert_eq!(log.lines("a session was ended"), 1, "{}", log.text());
    assert!(log.text().contains(r"why=lunch\nand more"), "{}", log.text());
}

/// What a handler logs at level info says which request it was for.
#[tokio::test(start_paused = true)]
async fn a_handlers_line_has_its_request() {
    let (log, _guard) = Log::begin();
    let handler = |_: bothways::Request| async move {
        tracing::info!("sold");
        bothways::Reply::ok("")
    };
    let server = Server::builder().handler("Shop", "Buy", handler).layer(bothways::layer::trace()).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let mut client = Scripted::connect(listening.address()).await;
    let header = Header::request(Seq::new(1), SerializeType::RAW);
    client.say(Message::new(header, "Shop", "Buy", &Metadata::new(), b"").frame()).await;
    client.next().await;
    let text = log.text();
    let line = text.lines().find(|line| line.contains("sold")).expect("it was logged");
    assert!(line.contains("request{") && line.contains("path=\"Shop\" method=\"Buy\""), "{line}");
}

/// Wherever operators are answered, the requests of clients are checked by the service's own hook.
#[tokio::test(start_paused = true)]
async fn operators_at_the_service_addresses_open_nothing_for_others() {
    for on_service in [false, true] {
        let admin = AdminOptions::token("right").expect("it has characters");
        let admin = if on_service { admin.on_service_addresses() } else { admin };
        let refuses = |_: bothways::server::AuthRequest| std::future::ready(Err::<(), _>("nobody".to_owned()));
        let server = crate::support::echoing().auth(refuses).admin(admin).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let client =
            Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
        let error = crate::support::call(&client, "Echo", "x").await.expect_err("it has shown no token");
        assert!(matches!(&error, CallError::Remote { text, .. } if text.contains("nobody")), "{error}");
        let asked = AdminClient::new(client, "right").connections(Page::default()).await;
        assert_eq!(asked.is_ok(), on_service, "{asked:?}");
    }
}
