//! What handles and options show of themselves in a log: enough to know them by, and no secret.

use bothways::{
    CallPolicy, Client, ClientOptions, Limits, Metadata, Reconnect, Server, Target, raw::PushFrame,
    server::AdminOptions, session::TopicOptions,
};

use crate::support::{address, call, echoing, soon};

#[tokio::test(start_paused = true)]
async fn handles_show_what_they_are_known_by() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&client, "Nothing", "").await.expect_err("there is no such method");
    assert_eq!(format!("{client:?}"), format!("Client {{ address: {:?}, .. }}", listening.address()));

    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    session.bind_user("ann");
    let id = session.id();
    assert_eq!(format!("{session:?}"), format!("Session {{ id: {id}, user: Some(\"ann\"), .. }}"));
    assert_eq!((id.to_string().len(), format!("{id:?}")), (32, id.to_string()));
    assert_eq!(id.to_string().parse(), Ok(id));
    let user = server.user("ann").policy(CallPolicy::MostRecent);
    assert_eq!(format!("{user:?}"), "User { name: \"ann\", policy: MostRecent, .. }");

    let connection = session.connection().expect("it is up");
    let peer = connection.peer_address();
    assert!(peer.starts_with(listening.address()), "{peer}");
    let number = connection.id();
    assert_eq!(format!("{connection:?}"), format!("Connection {{ id: {number:?}, peer: {peer:?} }}"));
    assert_eq!(number.to_string(), format!("c{}", number.get()));
    assert_eq!((number.to_string().parse(), number.get().to_string().parse()), (Ok(number), Ok(number)));
    assert_eq!(format!("{server:?}"), format!("Server {{ stats: {:?}, .. }}", server.stats()));
    assert_eq!(format!("{:?}", server.downgrade()), "WeakServer");
    connection.close();
    soon(connection.closed()).await;
    assert_eq!(connection.peer_address(), peer, "also after the end");
}

#[test]
fn options_show_what_was_chosen_and_no_secret() {
    let options = ClientOptions::new().auth("secret").reconnect(Reconnect::Never);
    let shown = format!("{options:?}");
    assert!(shown.starts_with("ClientOptions { token: Some(\"***\"), serialize: "), "{shown}");
    assert!(shown.ends_with("reconnect: Never, .. }"), "{shown}");
    assert!(format!("{:?}", ClientOptions::new()).starts_with("ClientOptions { token: None, serialize: "));
    let shown = format!("{:?}", AdminOptions::token("secret").expect("it has characters"));
    assert_eq!(shown, "AdminOptions { token: \"***\", on_service_addresses: false }");
    let shown = format!("{:?}", TopicOptions::new().open().presence(true).subscribers_max(3));
    let expected = "subscribers_max: Some(3), presence: true, access: \"anyone\" }";
    assert!(shown.starts_with("TopicOptions { history: None, ") && shown.ends_with(expected), "{shown}");
    let shown = format!("{:?}", Server::builder().function("A", "b", |(): ()| async { Ok::<_, String>(()) }));
    assert!(
        shown.starts_with("ServerBuilder { routes: ") && shown.contains("\"b\"") && !shown.contains("\"c\""),
        "{shown}"
    );
    let frame = PushFrame::new("A", "b", &Metadata::new(), b"secret", &Limits::default()).expect("small");
    let shown = format!("{frame:?}");
    assert!(shown.starts_with("PushFrame { bytes: ") && shown.ends_with(" }") && !shown.contains("secret"), "{shown}");
}
