//! `bothways demo --web`: a page that is a client, and a server that pushes to it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bothways::{
    CallOptions, Caller, Push, Reply, Request, Response, Router, SerializeType, Server, Stage, Target,
    session::TopicOptions, transport::ListenOptions,
};
use bothways_http::FrontOptions;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    serve::Signals,
    service::{self, Remembered},
    term::Out,
    web::{HttpAddress, for_this_machine},
};

/// What the page is made of: its path, type and content.
const FILES: [(&str, &str, &[u8]); 4] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../web/index.html")),
    ("/demo.css", "text/css; charset=utf-8", include_bytes!("../web/demo.css")),
    ("/demo.js", "text/javascript; charset=utf-8", include_bytes!("../web/demo.js")),
    ("/bothways.js", "text/javascript; charset=utf-8", include_bytes!("../web/bothways.js")),
];

/// How long a user who asked for a cut is kept out.
const CUT_TIME: Duration = Duration::from_secs(5);

/// Users who may be kept out at once.
const CUTS_MAX: usize = 1000;

/// How long the page may take to answer the server's question.
const ANSWER_TIME: Duration = Duration::from_secs(50);

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Number {
    number: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Handled {
    number: u64,
    handled: usize,
    of: usize,
    millis: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    question: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Confirmed {
    yes: bool,
}

/// Users who asked to be cut off, and until when they are kept out.
#[derive(Clone, Debug, Default)]
struct Cuts(Arc<Mutex<HashMap<String, Instant>>>);

impl Cuts {
    fn keep_out(&self, user: &str) {
        let mut cuts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        cuts.retain(|_, until| now < *until);
        if cuts.len() < CUTS_MAX {
            cuts.insert(user.to_owned(), now + CUT_TIME);
        }
    }

    /// How long this user is still kept out.
    fn left(&self, user: &str) -> Option<Duration> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner).get(user)?;
        until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

pub(crate) async fn run(address: HttpAddress) -> Result<(), Failure> {
    let server = build(address);
    let mut signals = Signals::new()?;
    let listening = server.listen(&format!("tcp@{}", address.socket())).await;
    let listening =
        listening.map_err(|error| Failure::serve(&error).hint("`--web=PORT` chooses another port; 0 is a free one"))?;

    let out = Out::new();
    let place = listening.address().trim_start_matches("tcp@").to_owned();
    out.line(&format!("open http://{place}/ in a browser, best in two tabs"))?;
    out.line("Ctrl-C stops; start it again, and the page comes back by itself")?;

    let pushing = tokio::spawn(push_numbers(server.clone()));
    signals.next().await;
    pushing.abort();
    drop(listening);
    server.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

fn build(address: HttpAddress) -> Server {
    let mut front = for_this_machine(FrontOptions::new(), address);
    for (path, kind, content) in FILES {
        front = front.file(path, kind, content);
    }
    let cuts = Cuts::default();
    let kept_out = cuts.clone();
    let receipts = TopicOptions::new().history(20, Duration::from_secs(60)).open();

    Server::builder()
        .router(service::routes(&Remembered::default(), &Remembered::default()))
        .router(routes(cuts))
        .topic("demo.receipts", receipts)
        .expect("it is a pattern")
        .auth(move |request| {
            // The name is the token: this is a demonstration, where everybody is who they say they are.
            let outcome = match (request.token.is_empty(), kept_out.left(&request.token)) {
                (true, _) => Err("a name is needed".into()),
                (_, Some(left)) => Err(bothways::AuthError::not_now("you asked for a cut", left)),
                _ => {
                    if let Some(session) = request.session() {
                        session.bind_user(&request.token);
                    }
                    Ok(())
                }
            };
            std::future::ready(outcome)
        })
        .listen_options(ListenOptions::default().http(front.on_port()))
        .build()
}

fn routes(cuts: Cuts) -> Router {
    Router::new()
        .handler("Demo", "AskMe", |request: Request| async move {
            match ask(&request).await {
                Ok(text) => Reply::encode(&text, request.serialize_type()),
                Err(text) => Reply::error(text),
            }
        })
        .handler("Demo", "CutMe", move |request: Request| {
            if let Some(user) = request.session().and_then(|session| session.user()) {
                cuts.keep_out(&user);
            }
            request.connection().close();
            std::future::ready(Reply::error("cut"))
        })
}

/// Asks the page of the caller, and tells what it said.
async fn ask(request: &Request) -> Result<String, String> {
    let session = request.session().ok_or("the caller is gone")?;
    let question = Question { question: "Did the server really call this page?".to_owned() };
    let began = Instant::now();
    let options = CallOptions::new().timeout(ANSWER_TIME).serialize_type(SerializeType::MSGPACK);
    let asked = session.call_typed("Page", "Confirm", &question, options).await;
    let Response { value: Confirmed { yes }, .. } = asked.map_err(|error| error.to_string())?;
    let said = if yes { "yes" } else { "no" };
    Ok(format!("the server heard \"{said}\" after {} ms", began.elapsed().as_millis()))
}

/// Pushes a number to everyone each second, and publishes what became of it.
async fn push_numbers(server: Server) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 1_u64.. {
        ticks.tick().await;
        let Ok(push) = Push::of("Demo", "Number", &Number { number }) else { continue };
        let Ok(receipt) = server.push(&Target::everyone(), &push) else { continue };
        let (server, began) = (server.clone(), Instant::now());
        // It ends with the receipt, at the latest when a client that is away does not come back.
        tokio::spawn(async move {
            let outcome = receipt.handled().await;
            let (handled, of) = (outcome.at(Stage::Handled), outcome.targets());
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let told = Push::of("Demo", "Handled", &Handled { number, handled, of, millis });
            if let (Ok(told), true) = (told, 0 < of) {
                let _ = server.publish("demo.receipts", &told);
            }
        });
    }
}
