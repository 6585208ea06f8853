//! Which server of the broker leads.

use std::time::Duration;

use async_nats::Client;
use bothways_brokers::Broker;
use serde_json::Value;

use crate::until;

/// Has one server lead every stream, so that its end stops all of the register and of the logs at once.
///
/// # Panics
/// It does not within [`LONG`](crate::LONG).
pub async fn lead_everything(broker: &Broker, server: usize) {
    let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    until("one server leads all streams", async || {
        let mut leads_all = true;
        for stream in streams(&client).await {
            if leader(&client, &stream).await != Some(format!("n{server}")) {
                leads_all = false;
                let preferred = format!(r#"{{"placement":{{"preferred":"n{server}"}}}}"#);
                let _ = client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), preferred.into()).await;
            }
        }
        leads_all || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            false
        }
    })
    .await;
}

async fn ask(client: &Client, subject: String) -> Value {
    let answer = client.request(subject, "".into()).await;
    answer.ok().and_then(|answer| serde_json::from_slice(&answer.payload).ok()).unwrap_or_default()
}

async fn streams(client: &Client) -> Vec<String> {
    let names = ask(client, "$JS.API.STREAM.NAMES".to_owned()).await;
    let names = names["streams"].as_array().cloned().unwrap_or_default();
    let names: Vec<String> = names.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    assert!(!names.is_empty(), "there are streams");
    names
}

async fn leader(client: &Client, stream: &str) -> Option<String> {
    let info = ask(client, format!("$JS.API.STREAM.INFO.{stream}")).await;
    Some(info["cluster"]["leader"].as_str()?.to_owned())
}
