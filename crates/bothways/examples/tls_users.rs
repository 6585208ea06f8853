//! TLS, and users who sign in with tokens that a store knows. A token that is taken back ends the user's sessions.
//!
//! `cargo run --example tls_users`

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use bothways::{
    Client, ClientOptions, Context, Server, Target, service,
    transport::{
        ConnectOptions, ListenOptions,
        tls::{TlsClient, TlsIdentity, TlsRoots, TlsServer},
    },
};

/// Tokens and their users. A real store asks a database, and may say "not now".
#[derive(Clone, Default)]
struct Users(Arc<RwLock<HashMap<String, String>>>);

impl Users {
    fn add(&self, token: &str, name: &str) {
        self.0.write().expect("no panic").insert(token.to_owned(), name.to_owned());
    }

    fn take_back(&self, token: &str) {
        self.0.write().expect("no panic").remove(token);
    }

    fn of(&self, token: &str) -> Option<String> {
        self.0.read().expect("no panic").get(token).cloned()
    }
}

struct Account;

#[service]
impl Account {
    async fn name(&self, cx: &mut Context, (): ()) -> Result<String, String> {
        let session = cx.session().ok_or("the client has left")?;
        Ok(session.user().ok_or("nobody")?.to_string())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A certificate of our own for the example. Real ones come from files: `TlsIdentity::from_pem_files`.
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (chain, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let tls = TlsServer::new(TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes())?)?;

    let users = Users::default();
    users.add("secret of ann", "ann");
    let store = users.clone();
    let server = Server::builder()
        .listen_options(ListenOptions::default().tls(tls))
        .auth(move |request| {
            let user = store.of(&request.token);
            async move {
                let user = user.ok_or("this token is nobody's")?;
                request.session().ok_or("the client has left")?.bind_user(&user);
                Ok::<_, &str>(())
            }
        })
        .service(Account)
        .build();
    let listening = server.listen("tls@localhost:0").await?;

    let trusted = TlsClient::new(&TlsRoots::from_pem(chain.as_bytes())?)?;
    let options =
        |token: &str| ClientOptions::new().auth(token).connect_options(ConnectOptions::default().tls(trusted.clone()));
    let ann = Client::connect(listening.address(), options("secret of ann")).await?;
    println!("the server knows {}", ann.call::<String>("Account", "Name", &()).await?);

    let refused = Client::connect(listening.address(), options("a guess")).await;
    println!("a guess: {}", refused.expect_err("nobody has this token"));

    users.take_back("secret of ann");
    let sent_away = server.kick(&Target::user("ann"), "the token was taken back")?;
    println!("{sent_away} session of ann was ended");
    Ok(())
}
