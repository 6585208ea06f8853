//! The dashboard for Grafana and the page of metrics name what the server tells, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use bothways::{Client, ClientOptions, Server};
use bothways_metrics::{Calls, Metrics};
use serde_json::Value;

/// Each metric that is told, as its samples are called, with the names of its labels.
type Told = BTreeMap<String, BTreeSet<String>>;

/// `name`: of an address for this test alone.
async fn told(name: &str) -> Told {
    let calls = Calls::new();
    let server = Server::builder()
        .function("Math", "Half", |number: i64| async move { Ok::<_, String>(number / 2) })
        .layer(calls.clone())
        .build();
    let metrics = Metrics::new(&server).with_calls(&calls);
    let listening = server.listen(&format!("memu@metrics-{name}")).await.expect("the name is free");
    let options = ClientOptions::new().layer(calls.clone());
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    client.call::<i64>("Math", "Half", &4).await.expect("it halves");

    let mut told = Told::new();
    for line in metrics.encode().lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).expect("a value");
        let labels = if line.contains('{') { labels.rsplit_once('}').expect("it ends").0 } else { "" };
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        told.entry(name.to_owned()).or_default().extend(labels);
    }
    server.shutdown(Duration::from_secs(1)).await;
    told
}

/// The words of a query, each with what follows it.
fn words(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = query.char_indices().filter(move |(at, c)| is_of_word(*c) && !query[..*at].ends_with(is_of_word));
    starts.map(move |(at, _)| {
        let end = query[at..].find(|c| !is_of_word(c)).map_or(query.len(), |len| at + len);
        (&query[at..end], &query[end..])
    })
}

/// Every text under this key, however deep.
fn texts<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == key => found.push(text),
                    value => texts(value, key, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| texts(value, key, found)),
        _ => {}
    }
}

fn of_repository(path: &str) -> Option<String> {
    // A package has only what is in its own folder.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("crates/metrics").exists().then(|| fs::read_to_string(root.join(path)).expect("it is there"))
}

/// Labels that Prometheus adds.
const OF_SCRAPE: [&str; 3] = ["job", "instance", "le"];

#[tokio::test]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    let Some(dashboard) = of_repository("packaging/grafana/bothways.json") else { return };
    let dashboard: Value = serde_json::from_str(&dashboard).expect("it is JSON");
    let told = told("dashboard").await;
    let mut queries = Vec::new();
    texts(&dashboard, "expr", &mut queries);
    assert!(20 < queries.len(), "it has panels");
    texts(&dashboard, "query", &mut queries);

    let mut asked = BTreeSet::new();
    for query in queries {
        let mut known = BTreeSet::new();
        for (word, rest) in words(query).filter(|(word, _)| word.starts_with("bothways_")) {
            let labels = told.get(word).unwrap_or_else(|| panic!("nobody tells of {word}: {query}"));
            asked.insert(word);
            known.extend(labels.iter().map(String::as_str));
            let Some(selector) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
            for (label, _) in words(selector.0).filter(|(_, rest)| rest.starts_with(['=', '!'])) {
                let is_known = labels.contains(label) || OF_SCRAPE.contains(&label);
                assert!(is_known, "{word} has no label {label}: {query}");
            }
        }
        for by in query.split(" by (").skip(1).filter_map(|rest| rest.split_once(')')) {
            for label in by.0.split(", ") {
                assert!(known.contains(label) || OF_SCRAPE.contains(&label), "no label {label}: {query}");
            }
        }
    }
    let all = told.keys().map(String::as_str).filter(|name| !name.ends_with("_sum") && !name.ends_with("_count"));
    let unasked: Vec<&str> = all.filter(|name| !asked.contains(name)).collect();
    assert!(unasked.is_empty(), "no panel shows {unasked:?}");
}

/// Each metric has its line in the page, and each line of the page its metric.
#[tokio::test]
async fn the_page_names_every_metric() {
    let Some(page) = of_repository("docs/metrics.md") else { return };
    let told = told("page").await;
    let family = |name: &str| {
        let suffixes = ["_bucket", "_sum", "_count"];
        suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name).to_owned()
    };
    let told: BTreeSet<String> = told.keys().map(|name| family(name)).collect();
    let lines = page.lines().filter_map(|line| line.strip_prefix("| `bothways_")?.split_once('`'));
    let named: BTreeSet<String> = lines.map(|(name, _)| format!("bothways_{name}")).collect();
    assert_eq!(told, named);
}
