//! TLS to a broker: which certificates are trusted, which are shown, and that nothing secret goes without it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bothways::cluster::{
    Engine as _, Store as _,
    engine::{Log, NewEntry},
};
use bothways_brokers::Broker;
use bothways_nats::{ConnectError, NatsEngine, NatsOptions};
use nkeys::KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

/// Longer than a broker takes to begin again.
const LONG: Duration = Duration::from_secs(40);

/// An authority, and what it has signed, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, rcgen::KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority {:x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let authority = Self { issuer, folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(authority.certificate(), authority.issuer.pem()).expect("a file");
        authority
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// A certificate of this name, and its key.
    fn signed(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![usage];
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = ["pem", "key"].map(|ending| self.folder.path().join(name).with_extension(ending));
        std::fs::write(&files[0], certificate.pem()).expect("a file");
        std::fs::write(&files[1], key.serialize_pem()).expect("a file");
        files.into()
    }

    /// What a server of this name is told; with `verify`, that it asks for certificates too.
    fn server(&self, name: &str, verify: bool) -> String {
        let (certificate, key) = self.signed(name, ExtendedKeyUsagePurpose::ServerAuth);
        let mut told = format!("tls {{\n  cert_file: {}\n  key_file: {}\n", quoted(&certificate), quoted(&key));
        if verify {
            told += &format!("  ca_file: {}\n  verify: true\n", quoted(&self.certificate()));
        }
        told + "}\n"
    }
}

fn quoted(path: &Path) -> String {
    json!(path.to_str().expect("temporary folders have plain names")).to_string()
}

fn options(broker: &Broker) -> NatsOptions {
    let addresses = broker.addresses().into_iter().map(|address| address.replace("nats://", "tls://"));
    NatsOptions::new(addresses).start_max(Duration::from_secs(10))
}

async fn refused(options: NatsOptions) -> ConnectError {
    let error = NatsEngine::connect(options).await.expect_err("it has a reason not to");
    println!("{error}");
    error
}

/// An entry goes there and comes back.
async fn works(engine: &Arc<NatsEngine>) {
    let log = Log::Mailbox("ann".to_owned());
    let stored = engine.append(log.clone(), NewEntry::new("letter")).await.expect("there is room");
    let page = engine.read(log, 0, 100).await.expect("it works");
    assert_eq!(page.entries.last().map(|(place, bytes)| (*place, &bytes[..])), Some((stored.place, &b"letter"[..])));
}

/// A server whose certificate a trusted authority has signed, in its own name, is spoken to, again after it was away; one
/// of another authority, or in another's name, is not. Also if the address does not say `tls`.
#[tokio::test]
async fn a_server_shows_who_it_is() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let Some(mut broker) = Broker::with(&trusted.server("127.0.0.1", false)) else { return };
    let engine = NatsEngine::connect(options(&broker).root_certificates(trusted.certificate())).await;
    let engine = engine.expect("it is trusted");
    works(&engine).await;
    let plain = NatsOptions::new(broker.addresses());
    works(&NatsEngine::connect(plain.clone().root_certificates(trusted.certificate())).await.expect("it asks for TLS"))
        .await;

    for wrong in [
        options(&broker).root_certificates(other.certificate()),
        options(&broker),
        plain.root_certificates(other.certificate()),
    ] {
        let error = refused(wrong).await;
        assert!(matches!(&error, ConnectError::Tls { why, .. } if why.contains("UnknownIssuer")), "{error:?}");
    }

    let mut mail = engine.mail_state();
    broker.kill(0);
    timeout(LONG, mail.wait_for(|state| !state.is_up())).await.expect("it is gone").expect("the engine is there");
    broker.start(0);
    timeout(LONG, mail.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");
    let mut register = engine.register_state();
    timeout(LONG, register.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");
    works(&engine).await;
}

#[tokio::test]
async fn a_certificate_in_another_name() {
    let authority = Authority::new();
    let Some(broker) = Broker::with(&authority.server("broker.example", false)) else { return };
    let error = refused(options(&broker).root_certificates(authority.certificate())).await;
    assert!(matches!(&error, ConnectError::Tls { why, .. } if why.contains("not valid for name")), "{error:?}");
}

/// Files that are missing, and files of something else, are told by their names.
#[tokio::test]
async fn files_that_are_no_certificates() {
    let authority = Authority::new();
    let (certificate, key) = authority.signed("node", ExtendedKeyUsagePurpose::ClientAuth);
    let (address, nowhere) = (["tls://127.0.0.1:1"], PathBuf::from("/nowhere/file.pem"));
    for (options, path) in [
        (NatsOptions::new(address).root_certificates(&nowhere), &nowhere),
        (NatsOptions::new(address).root_certificates(&key), &key),
        (NatsOptions::new(address).client_certificate(&nowhere, &key), &nowhere),
        (NatsOptions::new(address).client_certificate(&key, &key), &key),
        (NatsOptions::new(address).client_certificate(&certificate, &nowhere), &nowhere),
        (NatsOptions::new(address).client_certificate(&certificate, &certificate), &certificate),
    ] {
        let error = refused(options).await;
        let path = path.display().to_string();
        assert!(matches!(&error, ConnectError::Certificate { text } if text.contains(&path)), "{error:?}");
    }
}

/// A server that asks for certificates lets those in whose own one its authority has signed.
#[tokio::test]
async fn a_node_shows_who_it_is() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let Some(broker) = Broker::with(&trusted.server("127.0.0.1", true)) else { return };
    let options = || options(&broker).root_certificates(trusted.certificate());
    let (certificate, key) = trusted.signed("node", ExtendedKeyUsagePurpose::ClientAuth);
    works(&NatsEngine::connect(options().client_certificate(certificate, key)).await.expect("it is trusted")).await;

    let (certificate, key) = other.signed("node", ExtendedKeyUsagePurpose::ClientAuth);
    for wrong in [options(), options().client_certificate(certificate, key)] {
        let error = refused(wrong).await;
        // The server may have closed before it is read why.
        assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::Unreachable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_nkey_over_tls() {
    let (authority, ann, other) = (Authority::new(), KeyPair::new_user(), KeyPair::new_user());
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}\n", ann.public_key());
    let Some(broker) = Broker::with(&(authority.server("127.0.0.1", false) + &users)) else { return };
    let options =
        |of: &KeyPair| options(&broker).root_certificates(authority.certificate()).nkey(of.seed().expect("it has one"));
    works(&NatsEngine::connect(options(&ann)).await.expect("it is right")).await;
    assert_eq!(refused(options(&other)).await, ConnectError::Unauthorized);
    assert_eq!(refused(options(&ann).nkey("hunter2")).await, ConnectError::Unauthorized);
}

/// What a NATS operator signs: a JWT of `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let claims = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test",
        "nats": nats,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let said = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encode(&claims));
    let signature = issuer.sign(said.as_bytes()).expect("it has a seed");
    format!("{said}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A file of credentials, and its text, let a user of an account in that an operator has signed; those of another account
/// do not.
#[tokio::test]
async fn a_file_of_credentials_over_tls() {
    let authority = Authority::new();
    let (operator, account, of_servers) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = |stored: i64| {
        json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": stored, "disk_storage": stored, "streams": stored, "consumer": stored,
        })
    };
    let of_operator = jwt(&operator, &operator, json!({"type": "operator", "version": 2}));
    // The servers' own account may have no JetStream.
    let [first, second] = [(&account, -1), (&of_servers, 0)].map(|(account, stored)| {
        let signed = jwt(&operator, account, json!({"limits": limits(stored), "type": "account", "version": 2}));
        format!("{}: {signed}", account.public_key())
    });
    let of_servers = of_servers.public_key();
    let told = format!(
        "operator: {of_operator}\nsystem_account: {of_servers}\nresolver: MEMORY\n\
         resolver_preload {{\n  {first}\n  {second}\n}}\n",
    );
    let Some(broker) = Broker::with(&(authority.server("127.0.0.1", false) + &told)) else { return };

    let credentials = |account: &KeyPair| {
        let user = KeyPair::new_user();
        let claims = json!({"subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2});
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(account, &user, claims),
            user.seed().expect("it has one"),
        )
    };
    let options = || options(&broker).root_certificates(authority.certificate());
    let (file, text) = (authority.folder.path().join("nats.creds"), credentials(&account));
    std::fs::write(&file, &text).expect("a file");
    works(&NatsEngine::connect(options().credentials_file(&file)).await.expect("they are right")).await;
    works(&NatsEngine::connect(options().credentials(text)).await.expect("they are right")).await;
    let of_another = credentials(&KeyPair::new_account());
    assert_eq!(refused(options().credentials(of_another)).await, ConnectError::Unauthorized);
    assert_eq!(refused(options()).await, ConnectError::Unauthorized);
}

/// Beyond this machine nothing secret is said without TLS: not to a server that has none, and not to somebody between who
/// says that it has none.
#[tokio::test]
async fn nothing_secret_goes_without_tls_to_another_machine() {
    // By this address Linux comes to itself, and it is none that stays here.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it listens").port();
    let options = |address: String| {
        NatsOptions::new([address]).user_and_password("ann", "hunter2").start_max(Duration::from_secs(10))
    };
    let (heard, ()) = tokio::join!(
        async {
            let (mut node, _) = listener.accept().await.expect("a node comes");
            let info = json!({"server_id": "x", "server_name": "x", "version": "2.15.2", "go": "", "host": "", "port": port,
                "headers": true, "max_payload": 1 << 20, "proto": 1, "client_id": 1, "tls_required": false});
            node.write_all(format!("INFO {info}\r\n").as_bytes()).await.expect("it reads");
            let (mut heard, mut some) = (Vec::new(), [0; 4096]);
            // A greeting of TLS, which is longer than this; plain text would be too.
            while heard.len() < 16 {
                let read = node.read(&mut some).await.expect("it says something");
                assert_ne!(read, 0, "it says something");
                heard.extend_from_slice(&some[..read]);
            }
            node.write_all(b"-ERR 'Unknown Protocol Operation'\r\n").await.expect("it reads");
            drop(node);
            heard
        },
        async {
            let error = refused(options(format!("nats://0.0.0.0:{port}"))).await;
            assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
        },
    );
    assert_eq!(heard[0], 22, "it begins a handshake of TLS");
    assert!(!String::from_utf8_lossy(&heard).contains("CONNECT"));

    let users = "authorization { user: ann, password: hunter2 }\n";
    let Some(broker) = Broker::with(users) else { return };
    let beyond = broker.addresses()[0].replace("127.0.0.1", "0.0.0.0");
    let error = refused(options(beyond.clone())).await;
    assert!(matches!(&error, ConnectError::Tls { .. }), "{error:?}");
    assert!(!error.to_string().contains("hunter2"));
    works(&NatsEngine::connect(options(beyond).plaintext(true)).await.expect("it is allowed")).await;
}
