//! rpcx's gateway and JSON-RPC: the table `golden/http.json` against a real Go server and against a front of ours, by the
//! same client.
//!
//! A row has a request, `go`'s answer as it was recorded, and where ours differs `ours` (what differs) and `why`. A text
//! that ends with `…` is a beginning. `docs/go-differences.md` has the differences for readers.

use std::{collections::BTreeMap, net::SocketAddr};

use bothways_http::{Front, FrontOptions};
use bothways_interop::{LONG, contract, go::go, peers::ServerProcess, within};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The token of rows that need one.
const TOKEN: &str = "secret";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
    #[serde(default)]
    auth: Option<String>,
    go: Answer,
    #[serde(default)]
    ours: Option<Differs>,
    #[serde(default)]
    why: Option<String>,
}

/// An answer, without the headers that change.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Answer {
    /// The connection is closed without an answer.
    closed: bool,
    /// Bytes in front of the answer, in hex.
    before: String,
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What of an answer differs from Go's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Differs {
    status: Option<u16>,
    /// `null`: the header is not there.
    headers: BTreeMap<String, Option<String>>,
    body: Option<String>,
}

fn rows() -> Vec<Row> {
    let rows: Vec<Row> = serde_json::from_str(include_str!("../golden/http.json")).expect("the table is right");
    assert!(50 < rows.len());
    for row in &rows {
        assert_eq!(row.ours.is_some(), row.why.is_some(), "{}: a difference has a reason", row.name);
        assert!(row.go.before.is_empty() || row.ours.is_some(), "{}: ours sends nothing in front", row.name);
        assert!(row.auth.as_deref().is_none_or(|token| token == TOKEN), "{}", row.name);
    }
    rows
}

/// Sends the request of a row over a connection of its own.
async fn ask(address: SocketAddr, row: &Row) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let (method, path, body) = (&row.method, &row.path, &row.body);
    let headers: String = row.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("it is open");
    let mut answer = Vec::new();
    // A reset ends it too.
    let _ = within(LONG, &row.name, stream.read_to_end(&mut answer)).await;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Answer {
    let Some(at) = answer.windows(9).position(|bytes| bytes == b"HTTP/1.1 ") else {
        return Answer { closed: true, ..Answer::default() };
    };
    let before = answer[..at].iter().map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(&answer[at..]);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':').expect("a header");
        let name = name.to_ascii_lowercase();
        let changes = ["date", "connection", "content-length"].contains(&name.as_str());
        (!changes).then(|| (name, value.trim().to_owned()))
    });
    Answer { closed: false, before, status, headers: headers.collect(), body: body.to_owned() }
}

/// A text that ends with `…` is a beginning.
fn is_as(said: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('…') {
        Some(beginning) => said.starts_with(beginning),
        None => said == wanted,
    }
}

/// Go's answer is as it was recorded.
fn differs_from_record(said: &Answer, recorded: &Answer) -> Option<String> {
    let names = said.headers.keys().eq(recorded.headers.keys());
    let headers = || said.headers.iter().all(|(name, value)| is_as(value, &recorded.headers[name]));
    let rest = (said.closed, &said.before, said.status, &said.body)
        == (recorded.closed, &recorded.before, recorded.status, &recorded.body);
    (!(names && headers() && rest)).then(|| format!("{said:#?}\nwas recorded as\n{recorded:#?}"))
}

/// What our answer should be: Go's, except for what differs.
fn wanted(row: &Row) -> Answer {
    let mut wanted = Answer { before: String::new(), closed: false, ..row.go.clone() };
    // The type of Go's is a guess at what the body looks like. Ours has its own test.
    wanted.headers.remove("content-type");
    let Some(ours) = &row.ours else { return Answer { closed: row.go.closed, ..wanted } };
    wanted.status = ours.status.unwrap_or(wanted.status);
    wanted.body = ours.body.clone().unwrap_or(wanted.body);
    for (name, value) in &ours.headers {
        match value {
            Some(value) => _ = wanted.headers.insert(name.clone(), value.clone()),
            None => _ = wanted.headers.remove(name),
        }
    }
    wanted
}

fn differs_from_wanted(said: &Answer, row: &Row) -> Option<String> {
    let wanted = wanted(row);
    // Headers of rpcx are exactly Go's; others of ours come on top.
    let ours_only = |name: &str| !name.starts_with("x-rpcx-") && name != "context-type" && name != "allow";
    let is_wanted = |(name, value): (&String, &String)| match wanted.headers.get(name) {
        Some(wanted) => is_as(value, wanted),
        None => ours_only(name),
    };
    let has_all = wanted.headers.keys().all(|name| said.headers.contains_key(name));
    let headers = has_all && said.headers.iter().all(is_wanted);
    let rest = (said.closed, said.before.as_str(), said.status) == (wanted.closed, "", wanted.status);
    (!(headers && rest && is_as(&said.body, &wanted.body))).then(|| format!("{said:#?}\nshould be\n{wanted:#?}"))
}

fn report(differences: Vec<(String, String)>) {
    let told: Vec<String> = differences.iter().map(|(name, how)| format!("--- {name}: {how}")).collect();
    assert!(differences.is_empty(), "{} of the table differ:\n{}", differences.len(), told.join("\n"));
}

#[tokio::test]
async fn go_answers_as_it_was_recorded() {
    let Some(go) = go() else { return };
    let mut differences = Vec::new();
    for token in [None, Some(TOKEN)] {
        let arguments: Vec<&str> = token.iter().flat_map(|token| ["-auth", token]).collect();
        let server = ServerProcess::go(go, &arguments).await;
        let address = server.socket_address().parse().expect("an address");
        for row in rows().iter().filter(|row| row.auth.as_deref() == token) {
            let said = ask(address, row).await;
            differences.extend(differs_from_record(&said, &row.go).map(|how| (row.name.clone(), how)));
        }
    }
    report(differences);
}

#[tokio::test]
async fn ours_answers_as_go_except_where_the_table_says_why() {
    let mut differences = Vec::new();
    for token in [None, Some(TOKEN)] {
        let server = contract::server(token.map(str::to_owned)).build();
        let listening = Front::new(&server, FrontOptions::new()).listen("127.0.0.1:0").await.expect("a port is free");
        for row in rows().iter().filter(|row| row.auth.as_deref() == token) {
            let said = ask(listening.address(), row).await;
            differences.extend(differs_from_wanted(&said, row).map(|how| (row.name.clone(), how)));
        }
    }
    report(differences);
}

/// The content type is the codec's, where Go guesses from the first bytes.
#[tokio::test]
async fn ours_says_the_type_of_what_it_sends() {
    let server = contract::server(None).build();
    let listening = Front::new(&server, FrontOptions::new()).listen("127.0.0.1:0").await.expect("a port is free");
    for row in rows().iter().filter(|row| row.auth.is_none() && row.go.headers.contains_key("content-type")) {
        let said = ask(listening.address(), row).await;
        let (kind, is_call) = (said.headers.get("content-type").map(String::as_str), said.status == 200);
        let wanted = if is_call { "application/json" } else { "text/plain; charset=utf-8" };
        assert_eq!(kind, Some(wanted), "{}: {said:?}", row.name);
    }
}
