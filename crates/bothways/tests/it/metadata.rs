//! The pairs beside a payload.

use bothways::{
    CallOptions, Caller, Client, ClientOptions, Context, Metadata, Reply, Request, SerializeType, codec::Raw,
};

use crate::support::{address, call_with, echoing};

/// A request's pairs reach the handler; the handler's reach the caller, beside a value as beside an error.
#[tokio::test(start_paused = true)]
async fn metadata_goes_both_ways() {
    let mirrored = |fails: bool| {
        move |request: Request| {
            let mut context = Context::new(request);
            let asked = context.metadata().get("question").map(str::to_owned).unwrap_or_default();
            context.reply_metadata().insert("answer", format!("to {asked}"));
            let outcome = if fails { Err("boom") } else { Ok(Raw::from("fine")) };
            std::future::ready(context.into_reply(outcome))
        }
    };
    let server = echoing().handler("T", "Value", mirrored(false)).handler("T", "Error", mirrored(true)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let options = || CallOptions::new().metadata(Metadata::new().with("question", "why"));
    let reply = call_with(&client, "Value", "", options()).await.expect("answered");
    assert_eq!((&reply.payload[..], reply.metadata.get("answer")), (&b"fine"[..], Some("to why")));
    let error = call_with(&client, "Error", "", options()).await.expect_err("it fails");
    assert_eq!(error.remote_text(), Some("boom"));
}

/// W12. The caller's own pairs are its own: what the library adds to a call is not in them afterwards.
#[tokio::test(start_paused = true)]
async fn the_callers_pairs_stay_its_own() {
    // A token goes back to nobody: what the server saw comes under other keys.
    let mirror = |request: Request| {
        let pairs = request.metadata();
        let seen = pairs.iter().map(|(key, value)| (key.trim_start_matches('_').to_owned(), value.into_owned()));
        std::future::ready(Reply::ok("").with_metadata(seen.collect()))
    };
    let server = echoing().handler("T", "Mirror", mirror).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().auth("bearer t").timeout(std::time::Duration::from_secs(5));
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let mine = Metadata::new().with("k", "v");
    for _ in 0..2 {
        let options = CallOptions::new().metadata(mine.clone());
        let seen = call_with(&client, "Mirror", "", options).await.expect("answered").metadata;
        assert_eq!(seen.get("k"), Some("v"));
        assert_eq!((seen.get("AUTH"), seen.get("ServerTimeout")), (Some("bearer t"), Some("5000")));
        assert_eq!(mine, Metadata::new().with("k", "v"));
    }
    assert_eq!(client.serialize_type(), SerializeType::MSGPACK);
}
