//! Certificates that live as long as a test, as the files that Go's programs read.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// An authority, and certificates that it vouches for: one of a server named `localhost`, one of a client.
#[derive(Debug)]
pub struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    /// Makes them.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "interop authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let certificates = Self { folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(certificates.authority(), authority.pem()).expect("a file");
        for (name, usage) in
            [("localhost", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            std::fs::write(certificates.file(name, "pem"), certificate.pem()).expect("a file");
            std::fs::write(certificates.file(name, "key"), key.serialize_pem()).expect("a file");
        }
        certificates
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// The server's certificate and its key.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        (self.file("localhost", "pem"), self.file("localhost", "key"))
    }

    /// The client's certificate and its key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.file("client", "pem"), self.file("client", "key"))
    }

    /// What a server's program is told, Go's and ours: with `clients`, that it asks for their certificates.
    pub fn server_arguments(&self, clients: bool) -> Vec<String> {
        let (certificate, key) = self.server();
        let mut arguments = vec!["-tls-cert".to_owned(), text(&certificate), "-tls-key".to_owned(), text(&key)];
        if clients {
            arguments.extend(["-tls-client-ca".to_owned(), text(&self.authority())]);
        }
        arguments
    }

    /// What Go's client is told: with `identity`, to show a certificate.
    pub fn client_arguments(&self, identity: bool) -> Vec<String> {
        let mut arguments = vec!["-tls-ca".to_owned(), text(&self.authority())];
        if identity {
            let (certificate, key) = self.client();
            arguments.extend(["-tls-cert".to_owned(), text(&certificate), "-tls-key".to_owned(), text(&key)]);
        }
        arguments
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        self.folder.path().join(name).with_extension(ending)
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}
