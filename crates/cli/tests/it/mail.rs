//! `bothways serve --store`, `push --durable` and `bothways mail`: durable pushes over a restart, and what an operator does.

use crate::{
    pushing::{TOKEN, listener, operate},
    support::{Ran, Serving},
};

fn serving(store: &str) -> Serving {
    Serving::with(
        &["--admin-token-env", "BW_ADMIN", "--admin", "127.0.0.1:0", "--push-every", "1h", "--store", store],
        &[("BW_ADMIN", TOKEN)],
    )
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(ran.ended(0)).expect("JSON")
}

/// A letter waits in its file while the server is killed, is seen there, and reaches its user at the next server, once.
#[test]
fn a_letter_outlives_the_server() {
    let folder = tempfile::tempdir().expect("the system gives a folder");
    let path = folder.path().join("mail.redb");
    let store = path.to_str().expect("a text");
    let mut first = serving(store);
    let push = |server: &Serving, text: &str| {
        operate(&["push", &server.admin, "--user", "ann", "Mail.New", text, "--durable", "1h"], TOKEN)
    };
    assert_eq!(push(&first, "one").ended(0), "0 sessions; its mailbox keeps it\n");
    push(&first, "two").ended(0);
    // SIGKILL.
    first.program.child.kill().expect("it runs");
    first.program.child.wait().expect("it ran");

    let second = serving(store);
    let listed = operate(&["mail", &second.admin], TOKEN);
    let lines: Vec<&str> = listed.ended(0).lines().collect();
    assert!(lines[0].starts_with("USER") && lines[1].starts_with("ann") && lines[1].ends_with('2'), "{listed:?}");
    let letters = json(&operate(&["mail", &second.admin, "--user", "ann", "--json"], TOKEN));
    assert_eq!(letters["letters"].as_array().map(Vec::len), Some(2), "{letters}");
    assert_eq!(letters["letters"][0]["service_path"], "Mail");
    let place = letters["letters"][1]["place"].as_str().expect("a text").to_owned();
    let table = operate(&["mail", &second.admin, "--user", "ann"], TOKEN);
    assert!(table.ended(0).starts_with("no device has read it yet\n"), "{table:?}");
    assert!(table.ended(0).contains(&place) && table.out.contains("Mail.New"), "{table:?}");
    let delete = ["mail", &second.admin, "--user", "ann", "--delete", &place];
    assert_eq!(operate(&delete, TOKEN).ended(0), "deleted 1 letter\n");
    operate(&delete, TOKEN).failed(1, &["no such letter"]);

    let ann = listener(&second, &["--call", "Demo.Login", "{\"User\":\"ann\",\"Topics\":[]}"]);
    assert!(ann.out.until("Mail.New").ends_with("\"one\""));
    push(&second, "three").ended(0);
    assert!(ann.out.until("Mail.New").ends_with("\"three\""), "and not the one that was deleted");
    assert!(operate(&["mail", &second.admin, "--dead", "--json"], TOKEN).ended(0).starts_with("[]"));
    let none = "no device has failed to handle a letter\n";
    assert_eq!(operate(&["mail", &second.admin, "--dead"], TOKEN).ended(0), none);
    let none = "no device of this user has failed to handle a letter\n";
    assert_eq!(operate(&["mail", &second.admin, "--dead", "--user", "ann"], TOKEN).ended(0), none);
    let nobody = operate(&["mail", &second.admin, "--user", "bob"], TOKEN);
    assert_eq!(nobody.ended(0), "no device has read it yet\nthe mailbox is empty\n");
    operate(&["mail", &second.admin, "--user", "ann", "--send-again", &place], TOKEN).failed(1, &["no such letter"]);
}

/// A server without a store says so; a file that is no store is said at the start.
#[test]
fn without_a_store_it_is_said() {
    let server = crate::pushing::serving();
    operate(&["mail", &server.admin], TOKEN).failed(1, &["no store"]);
    let push = ["push", &server.admin, "--user", "ann", "Mail.New", "x", "--durable", "1h"];
    operate(&push, TOKEN).failed(2, &["the server has no store"]);
    let folder = tempfile::tempdir().expect("the system gives a folder");
    let path = folder.path().join("text");
    std::fs::write(&path, "no database".repeat(1000)).expect("the folder is writable");
    let path = path.to_str().expect("a text");
    crate::support::run(&["serve", "127.0.0.1:0", "--store", path]).failed(2, &["cannot open the store", path]);
}
