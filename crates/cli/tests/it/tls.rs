//! TLS between `bothways serve` and the commands that connect.

use crate::support::{Serving, run};

/// Files of a certificate that signed itself, and of its key.
struct Certificate {
    directory: tempfile::TempDir,
}

impl Certificate {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        std::fs::write(directory.path().join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("UTF-8").to_owned()
    }
}

#[test]
fn a_server_with_a_certificate_is_called_by_who_trusts_it() {
    let certificate = Certificate::new();
    let (cert, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
    let server = Serving::with(&["--tls-cert", &cert, "--tls-key", &key], &[]);
    let call = ["call", &server.address, "Arith.Mul", r#"{"A":6,"B":7}"#];
    assert_eq!(run(&[&call[..], &["--tls-ca", &cert]].concat()).ended(0), "{\"C\":42}\n");
    assert_eq!(run(&[&call[..], &["--tls-insecure"]].concat()).ended(0), "{\"C\":42}\n");

    let stranger = Certificate::new().path("cert.pem");
    run(&[&call[..], &["--tls-ca", &stranger]].concat()).failed(2, &["cannot read"]);
    let stranger = Certificate::new();
    let distrusting = run(&[&call[..], &["--tls-ca", &stranger.path("cert.pem")]].concat());
    distrusting.failed(3, &["cannot connect to", "ertificate"]);
}

#[test]
fn what_is_missing_for_tls_is_named() {
    run(&["call", "tls@127.0.0.1:1", "Arith.Mul"]).failed(2, &["nothing says whom to trust", "--tls-ca"]);
    run(&["serve", "--tls-cert", "x"]).failed(2, &["--tls-key"]);
    run(&["serve", "127.0.0.1:0", "--tls-cert", "/no", "--tls-key", "/no"])
        .failed(2, &["cannot serve with TLS", "/no"]);
}
