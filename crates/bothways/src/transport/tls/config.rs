//! TLS configuration: our identity, and the certificates that we trust.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};

use super::{TlsSocket, socket};
use crate::transport::Socket;

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The text is no PEM.
    #[error("not valid PEM: {0}")]
    Pem(pem::Error),
    /// The PEM holds no certificate.
    #[error("the PEM holds no certificate")]
    NoCertificate,
    /// The PEM holds no private key.
    #[error("the PEM holds no private key")]
    NoKey,
    /// The name can be in no certificate.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// The certificates or the key cannot be used, or do not belong together.
    #[error("these certificates or this key cannot be used: {0}")]
    Unusable(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// A certificate with its chain, and its private key: the identity of this process.
#[derive(Debug)]
pub struct TlsIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsIdentity {
    /// From PEM: the chain starts with our own certificate; the key is in PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// [`TlsError::Pem`], [`TlsError::NoCertificate`], [`TlsError::NoKey`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let key = match PrivateKeyDer::from_pem_slice(key) {
            Err(pem::Error::NoItemsFound) => return Err(TlsError::NoKey),
            key => key.map_err(TlsError::Pem)?,
        };
        Ok(Self { chain: certificates(chain)?, key })
    }

    /// From two PEM files.
    ///
    /// # Errors
    /// [`TlsError::File`], and those of [`from_pem`](Self::from_pem).
    pub fn from_pem_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        Self::from_pem(&read(chain.as_ref())?, &read(key.as_ref())?)
    }
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// The certificates that we trust to vouch for others.
#[derive(Clone, Debug)]
pub struct TlsRoots(Arc<RootCertStore>);

impl TlsRoots {
    /// From PEM with one certificate or several. A server's own certificate may be its root, if it signed
    /// itself.
    ///
    /// # Errors
    /// [`TlsError::Pem`], [`TlsError::NoCertificate`]; [`TlsError::Unusable`] for a certificate that cannot
    /// be parsed.
    pub fn from_pem(certificates: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self::certificates(certificates)? {
            roots.add(certificate)?;
        }
        Ok(Self(Arc::new(roots)))
    }

    /// From a PEM file.
    ///
    /// # Errors
    /// [`TlsError::File`], and those of [`from_pem`](Self::from_pem).
    pub fn from_pem_file(certificates: impl AsRef<Path>) -> Result<Self, TlsError> {
        Self::from_pem(&read(certificates.as_ref())?)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::File { path: path.to_owned(), error })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(TlsError::Pem)?;
    if all.is_empty() { Err(TlsError::NoCertificate) } else { Ok(all) }
}

/// TLS at a server.
///
/// ```no_run
/// use bothways::transport::{ListenOptions, tls::{TlsIdentity, TlsServer}};
///
/// let identity = TlsIdentity::from_pem_files("server.pem", "server.key")?;
/// let options = ListenOptions::default().tls(TlsServer::new(identity)?);
/// # Ok::<(), bothways::transport::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct TlsServer(Arc<ServerConfig>);

impl TlsServer {
    /// A server that asks its clients for no certificate.
    ///
    /// # Errors
    /// [`TlsError::Unusable`]: the key is not that of the certificate, or of an unknown kind.
    pub fn new(identity: TlsIdentity) -> Result<Self, TlsError> {
        let config = server_versions()?.with_no_client_auth();
        Ok(Self(Arc::new(config.with_single_cert(identity.chain, identity.key)?)))
    }

    /// A server that takes only clients with a certificate that `roots` vouch for.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_required_client_certificates(identity: TlsIdentity, roots: &TlsRoots) -> Result<Self, TlsError> {
        Self::with_client_certificates(identity, roots, true)
    }

    /// A server that takes clients without a certificate too. One that is shown must be right.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_optional_client_certificates(identity: TlsIdentity, roots: &TlsRoots) -> Result<Self, TlsError> {
        Self::with_client_certificates(identity, roots, false)
    }

    fn with_client_certificates(identity: TlsIdentity, roots: &TlsRoots, required: bool) -> Result<Self, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots.0), provider());
        let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
        let verifier = verifier.build().map_err(|error| TlsError::Unusable(error.to_string()))?;
        let config = server_versions()?.with_client_cert_verifier(verifier);
        Ok(Self(Arc::new(config.with_single_cert(identity.chain, identity.key)?)))
    }

    /// Speaks TLS as a server on a socket. Wrap it in a timeout: a silent peer makes it wait for ever.
    ///
    /// # Errors
    /// The reason; a mistake of the peer's is `InvalidData` with a [`rustls::Error`] inside, or with a text if the
    /// peer speaks no TLS.
    pub async fn handshake<S: Socket>(&self, socket: S) -> io::Result<TlsSocket<S>> {
        let session = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        socket::handshake(socket, session.into()).await
    }
}

/// For what the constructors here do not offer, such as certificates that change while the server runs.
impl From<Arc<ServerConfig>> for TlsServer {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self(config)
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsServer")
    }
}

/// TLS at a client.
///
/// ```no_run
/// use bothways::transport::{ConnectOptions, tls::{TlsClient, TlsRoots}};
///
/// let roots = TlsRoots::from_pem_file("ca.pem")?;
/// let options = ConnectOptions::default().tls(TlsClient::new(&roots)?);
/// # Ok::<(), bothways::transport::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl TlsClient {
    /// A client that trusts servers that `roots` vouch for, and shows no certificate of its own.
    ///
    /// # Errors
    /// None that is known; [`TlsError::Unusable`] if rustls refuses its own defaults.
    pub fn new(roots: &TlsRoots) -> Result<Self, TlsError> {
        let config = client_versions()?.with_root_certificates(Arc::clone(&roots.0));
        Ok(Arc::new(config.with_no_client_auth()).into())
    }

    /// A client that shows a certificate to servers that ask for one.
    ///
    /// # Errors
    /// [`TlsError::Unusable`]: the key is not that of the certificate, or of an unknown kind.
    pub fn with_identity(roots: &TlsRoots, identity: TlsIdentity) -> Result<Self, TlsError> {
        let config = client_versions()?.with_root_certificates(Arc::clone(&roots.0));
        Ok(Arc::new(config.with_client_auth_cert(identity.chain, identity.key)?).into())
    }

    /// A client that accepts **any** server, whatever certificate it shows. This hides the traffic from passive
    /// listeners, but not from an attacker in the middle. rpcx's examples do the same with `InsecureSkipVerify`. For
    /// tests; trust the server's certificate itself as [`TlsRoots`] instead.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn dangerously_trusting_any_server() -> Result<Self, TlsError> {
        let config = client_versions()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())));
        Ok(Arc::new(config.with_no_client_auth()).into())
    }

    /// The name that the server's certificate must have. Default: the host in the address.
    ///
    /// # Errors
    /// [`TlsError::ServerName`]: neither a DNS name nor an IP address.
    pub fn server_name(mut self, name: &str) -> Result<Self, TlsError> {
        self.server_name = Some(server_name(name)?);
        Ok(self)
    }

    /// Speaks TLS as a client on a socket to `host`. Wrap it in a timeout: a silent peer makes it wait for
    /// ever. With TLS 1.3 a server's refusal of our certificate comes after the handshake, as the error of
    /// the first read.
    ///
    /// # Errors
    /// The reason; a mistake of the peer's is `InvalidData` with a [`rustls::Error`] inside, or with a text if the
    /// peer speaks no TLS.
    pub async fn handshake<S: Socket>(&self, socket: S, host: &str) -> io::Result<TlsSocket<S>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        };
        let session = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        socket::handshake(socket, session.into()).await
    }
}

/// For what the constructors here do not offer.
impl From<Arc<ClientConfig>> for TlsClient {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self { config, server_name: None }
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
}

/// Always ring: another crate's choice of a provider for the process does not concern us.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_versions() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TlsError> {
    Ok(ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?)
}

fn client_versions() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?)
}

/// Takes every certificate. The signatures are still checked, so that it is at least the certificate's
/// owner who answers.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(in crate::transport) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::SupportedProtocolVersion;

    use super::*;
    use crate::transport::memory::{self, MemorySocket};

    /// A certificate authority made for a test.
    pub(in crate::transport) struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        /// Each has a name of its own: certificates name those who vouch for them.
        pub(in crate::transport) fn new() -> Self {
            static NUMBER: AtomicU64 = AtomicU64::new(1);
            let mut params = CertificateParams::default();
            let name = format!("Authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
        }

        pub(in crate::transport) fn roots(&self) -> TlsRoots {
            TlsRoots::from_pem(self.0.pem().as_bytes()).expect("roots")
        }

        /// PEM of a certificate for that name, and of its key.
        fn issue(&self, name: &str) -> (String, String) {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new([name.to_owned()]).expect("a name");
            let certificate = params.signed_by(&key, &self.0).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        }

        pub(in crate::transport) fn identity(&self, name: &str) -> TlsIdentity {
            let (chain, key) = self.issue(name);
            TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("an identity")
        }

        pub(in crate::transport) fn server_that_requires_certificates(&self) -> TlsServer {
            let identity = self.identity("localhost");
            TlsServer::with_required_client_certificates(identity, &self.roots()).expect("a server")
        }

        /// A client that shows a certificate and speaks one version only.
        pub(in crate::transport) fn client_of_version(&self, version: &'static SupportedProtocolVersion) -> TlsClient {
            let TlsIdentity { chain, key } = self.identity("alice");
            let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]);
            let config = config.expect("a version").with_root_certificates(self.roots().0);
            Arc::new(config.with_client_auth_cert(chain, key).expect("a client")).into()
        }
    }

    type Ends = (io::Result<TlsSocket<MemorySocket>>, io::Result<TlsSocket<MemorySocket>>);

    /// Both ends of a handshake with `localhost`. An end that gives up is dropped, so that the other does
    /// not wait for it.
    pub(in crate::transport) async fn shake_hands(client: &TlsClient, server: &TlsServer) -> Ends {
        shake_hands_in(memory::BUFFER_BYTES, client, server).await
    }

    pub(in crate::transport) async fn shake_hands_in(bytes: usize, client: &TlsClient, server: &TlsServer) -> Ends {
        let (near, far) = memory::pair(bytes);
        tokio::join!(client.handshake(near, "localhost"), server.handshake(far))
    }

    fn assert_says<T>(result: io::Result<T>, part: &str) {
        let error = result.err().expect("must fail").to_string();
        assert!(error.contains(part), "{error}");
    }

    #[tokio::test]
    async fn a_server_is_trusted_if_the_roots_vouch_for_it() {
        let (ours, other) = (Authority::new(), Authority::new());
        let server = TlsServer::new(ours.identity("localhost")).expect("a server");
        let client = TlsClient::new(&ours.roots()).expect("a client");
        let (client, server_end) = shake_hands(&client, &server).await;
        client.expect("trusts");
        server_end.expect("is trusted");

        let client = TlsClient::new(&other.roots()).expect("a client");
        let (client, server_end) = shake_hands(&client, &server).await;
        assert_says(client, "UnknownIssuer");
        assert_says(server_end, "UnknownCA");
    }

    #[tokio::test]
    async fn the_name_in_the_certificate_is_that_of_the_address_or_the_given_one() {
        let authority = Authority::new();
        let server = TlsServer::new(authority.identity("chat.example")).expect("a server");
        let client = TlsClient::new(&authority.roots()).expect("a client");
        let (end, _) = shake_hands(&client, &server).await;
        assert_says(end, "not valid for name");
        let client = client.server_name("chat.example").expect("a name");
        let (end, _) = shake_hands(&client, &server).await;
        end.expect("the given name");
    }

    /// `openssl req -x509` makes such a certificate unless it is told otherwise: the error says how.
    #[tokio::test]
    async fn a_certificate_of_an_authority_is_named() {
        let authority = Authority::new();
        let (chain, key) = (authority.0.pem(), authority.0.key().serialize_pem());
        let its_own = || TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("an identity");
        let server = TlsServer::new(its_own()).expect("a server");
        let client = TlsClient::new(&authority.roots()).expect("a client");
        assert_says(shake_hands(&client, &server).await.0, "basicConstraints=critical,CA:FALSE");

        let server = authority.server_that_requires_certificates();
        let client = TlsClient::with_identity(&authority.roots(), its_own()).expect("a client");
        assert_says(shake_hands(&client, &server).await.1, "basicConstraints=critical,CA:FALSE");
    }

    #[tokio::test]
    async fn an_ip_address_can_be_the_name() {
        let authority = Authority::new();
        let server = TlsServer::new(authority.identity("::1")).expect("a server");
        let client = TlsClient::new(&authority.roots()).expect("a client");
        let (near, far) = memory::pair(memory::BUFFER_BYTES);
        let (client, _server) = tokio::join!(client.handshake(near, "::1"), server.handshake(far));
        client.expect("trusts");
    }

    #[tokio::test]
    async fn whoever_asks_for_danger_trusts_any_server() {
        let server = TlsServer::new(Authority::new().identity("elsewhere")).expect("a server");
        let client = TlsClient::dangerously_trusting_any_server().expect("a client");
        let (client, server) = shake_hands(&client, &server).await;
        client.expect("trusts");
        server.expect("is trusted");
    }

    #[tokio::test]
    async fn required_client_certificates_are_required_and_checked() {
        let (ours, other) = (Authority::new(), Authority::new());
        let server = ours.server_that_requires_certificates();

        let right = TlsClient::with_identity(&ours.roots(), ours.identity("alice")).expect("a client");
        let (_client, server_end) = shake_hands(&right, &server).await;
        assert!(server_end.expect("takes it").peer_certificates().is_some_and(|chain| chain.len() == 1));

        let missing = TlsClient::new(&ours.roots()).expect("a client");
        assert_says(shake_hands(&missing, &server).await.1, "no certificates");

        let wrong = TlsClient::with_identity(&ours.roots(), other.identity("alice")).expect("a client");
        assert_says(shake_hands(&wrong, &server).await.1, "UnknownIssuer");
    }

    /// In TLS 1.3 the client's part of the handshake is over before the server has seen its certificate.
    #[tokio::test]
    async fn a_client_without_the_required_certificate_learns_it_from_its_first_read() {
        let ours = Authority::new();
        let server = ours.server_that_requires_certificates();
        let client = TlsClient::new(&ours.roots()).expect("a client");
        let (client, _) = shake_hands(&client, &server).await;
        let error = crate::transport::check::read(&client.expect("no error yet"), 1).await.expect_err("refused");
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
    }

    #[tokio::test]
    async fn optional_client_certificates_may_be_missing_but_not_wrong() {
        let (ours, other) = (Authority::new(), Authority::new());
        let server = TlsServer::with_optional_client_certificates(ours.identity("localhost"), &ours.roots());
        let server = server.expect("a server");

        let missing = TlsClient::new(&ours.roots()).expect("a client");
        assert!(shake_hands(&missing, &server).await.1.expect("takes it").peer_certificates().is_none());

        let right = TlsClient::with_identity(&ours.roots(), ours.identity("alice")).expect("a client");
        assert!(shake_hands(&right, &server).await.1.expect("takes it").peer_certificates().is_some());

        let wrong = TlsClient::with_identity(&ours.roots(), other.identity("alice")).expect("a client");
        assert_says(shake_hands(&wrong, &server).await.1, "UnknownIssuer");
    }

    #[test]
    fn pem_files_are_read_and_what_is_wrong_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let (chain, key) = Authority::new().issue("localhost");
        std::fs::write(path("chain.pem"), &chain).expect("writes");
        std::fs::write(path("key.pem"), &key).expect("writes");
        let identity = TlsIdentity::from_pem_files(path("chain.pem"), path("key.pem")).expect("an identity");
        TlsServer::new(identity).expect("a server");
        TlsRoots::from_pem_file(path("chain.pem")).expect("roots");

        let error = |result: Result<TlsIdentity, TlsError>| result.expect_err("must fail");
        assert!(matches!(error(TlsIdentity::from_pem_files(path("none"), path("key.pem"))), TlsError::File { .. }));
        let (chain, key) = (chain.as_bytes(), key.as_bytes());
        assert!(matches!(error(TlsIdentity::from_pem(key, key)), TlsError::NoCertificate));
        assert!(matches!(error(TlsIdentity::from_pem(chain, chain)), TlsError::NoKey));
        assert!(matches!(TlsRoots::from_pem(b"").expect_err("empty"), TlsError::NoCertificate));
        let torn = &chain[..chain.len() / 2];
        assert!(matches!(TlsRoots::from_pem(torn).expect_err("torn"), TlsError::Pem(_)));
    }

    #[test]
    fn a_key_of_another_certificate_does_not_do() {
        let authority = Authority::new();
        let ((chain, _), (_, key)) = (authority.issue("localhost"), authority.issue("localhost"));
        let identity = TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("both can be read");
        assert!(matches!(TlsServer::new(identity).expect_err("not together"), TlsError::Unusable(_)));
    }

    #[test]
    fn a_name_is_a_dns_name_or_an_ip_address() {
        let client = TlsClient::dangerously_trusting_any_server().expect("a client");
        for name in ["example.org", "localhost", "127.0.0.1", "::1"] {
            client.clone().server_name(name).expect(name);
        }
        for name in ["", "a b", "fe80::1%eth0", "host:80"] {
            assert!(matches!(client.clone().server_name(name).expect_err(name), TlsError::ServerName(_)));
        }
    }
}
