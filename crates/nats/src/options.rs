//! Where the broker is, and what is asked of it.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::{
    ConnectErrorKind, ConnectOptions, ServerAddr,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::names::Names;

/// The oldest version that can do what is asked of it: it forgets single messages in their time.
pub(crate) const OLDEST: (u64, u64) = (2, 11);
/// The oldest version that stores several messages together.
pub(crate) const BATCHES: (u64, u64) = (2, 12);

/// What is longer is as long as this, thirty years: a clock can count it.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Where the broker is, how to be let in, and what is kept there. All nodes of a cluster have the same, except for their
/// credentials.
///
/// ```
/// use bothways_nats::NatsOptions;
///
/// let options = NatsOptions::new(["tls://nats-1:4222", "tls://nats-2:4222", "tls://nats-3:4222"])
///     .cluster("prod")
///     .credentials_file("/etc/bothways/nats.creds");
/// ```
#[derive(Clone)]
#[must_use]
pub struct NatsOptions {
    pub(crate) addresses: Vec<String>,
    pub(crate) cluster: String,
    auth: Auth,
    roots: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    plaintext: bool,
    pub(crate) replicas: Option<usize>,
    pub(crate) is_synced: bool,
    pub(crate) history_entries_max: usize,
    pub(crate) mailbox_entries_max: usize,
    pub(crate) stream_bytes_max: Option<u64>,
    pub(crate) domain: Option<String>,
    pub(crate) start_max: Duration,
}

#[derive(Clone)]
enum Auth {
    None,
    Token(String),
    User(String, String),
    Nkey(String),
    Credentials(String),
    CredentialsFile(PathBuf),
}

impl fmt::Debug for NatsOptions {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let auth = match &self.auth {
            Auth::None => "none",
            Auth::Token(_) => "token",
            Auth::User(..) => "user",
            Auth::Nkey(_) => "nkey",
            Auth::Credentials(_) | Auth::CredentialsFile(_) => "credentials",
        };
        let addresses: Vec<&str> = self.addresses.iter().map(|address| without_user(address)).collect();
        f.debug_struct("NatsOptions")
            .field("addresses", &addresses)
            .field("cluster", &self.cluster)
            .field("auth", &auth)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

/// An address without the user and password that do not belong into it.
fn without_user(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, host)| host)
}

impl NatsOptions {
    /// The servers of one broker, as `nats://host:port` or `tls://host:port`; the scheme `nats` and the port 4222 may be
    /// left out. Beyond this machine both mean TLS.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            cluster: "bothways".to_owned(),
            auth: Auth::None,
            roots: None,
            certificate: None,
            plaintext: false,
            replicas: None,
            is_synced: false,
            history_entries_max: 1000,
            mailbox_entries_max: 1000,
            stream_bytes_max: None,
            domain: None,
            start_max: Duration::from_secs(30),
        }
    }

    /// The name of the cluster: nodes with the same name, at the same broker and account, are one. At most 32 letters,
    /// digits, `-` and `_`. Default `bothways`.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// A token, as the server's `authorization { token: … }` has it.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.auth = Auth::Token(token.into());
        self
    }

    /// A user and a password.
    pub fn user_and_password(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.auth = Auth::User(user.into(), password.into());
        self
    }

    /// The seed of an nkey, which begins with `SU`.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.auth = Auth::Nkey(seed.into());
        self
    }

    /// The text of a file of credentials: a JWT and the seed of its nkey.
    pub fn credentials(mut self, text: impl Into<String>) -> Self {
        self.auth = Auth::Credentials(text.into());
        self
    }

    /// A file of credentials. It is read once, when the engine connects.
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.auth = Auth::CredentialsFile(path.into());
        self
    }

    /// Certificates in PEM that the servers' ones may be signed by, in place of those of the system. The file is read at
    /// each connection.
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = Some(path.into());
        self
    }

    /// The node's own certificate and key, in PEM. The files are read at each connection, so that they can be exchanged.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Also speaks to servers on other machines without TLS: for networks in which nobody else can listen. Default
    /// false.
    pub fn plaintext(mut self, allowed: bool) -> Self {
        self.plaintext = allowed;
        self
    }

    /// How many servers keep each entry. Default: three at a cluster of servers, else one; streams that are there already
    /// keep theirs. 0 is [refused](ConnectError::Bound).
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// The servers write to their disks before they acknowledge (`jetstream { sync_interval: always }`): what is stored
    /// is [`Synced`](bothways::cluster::engine::Level::Synced). The servers cannot be asked whether they do. Default
    /// false.
    pub fn synced(mut self, synced: bool) -> Self {
        self.is_synced = synced;
        self
    }

    /// Most entries of the history of one topic; 0 counts as 1, and more than `i64::MAX` is [refused](ConnectError::Bound).
    /// Default 1,000.
    pub fn history_entries_max(mut self, entries: usize) -> Self {
        self.history_entries_max = entries.max(1);
        self
    }

    /// Most entries of one mailbox; 0 counts as 1, and more than `i64::MAX` is [refused](ConnectError::Bound).
    /// Default 1,000.
    pub fn mailbox_entries_max(mut self, entries: usize) -> Self {
        self.mailbox_entries_max = entries.max(1);
        self
    }

    /// Most bytes of each stream with logs when it is made, ten of the thirteen; the broker reserves them. Leases, records
    /// and cursors end with their time, and have no bound but the broker's own. 0 and more than
    /// `i64::MAX` are [refused](ConnectError::Bound). Default: no bound but the broker's own.
    pub fn stream_bytes_max(mut self, bytes: u64) -> Self {
        self.stream_bytes_max = Some(bytes);
        self
    }

    /// The JetStream domain, where there are several.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// How long connecting may take, with the elections of a broker that begins. Default 30 s.
    pub fn start_max(mut self, most: Duration) -> Self {
        self.start_max = most.min(FOR_EVER);
        self
    }

    /// A number that the broker would take for no bound at all, or for its own default, is refused.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let bounds = [
            ("stream_bytes_max", self.stream_bytes_max),
            ("history_entries_max", Some(self.history_entries_max as u64)),
            ("mailbox_entries_max", Some(self.mailbox_entries_max as u64)),
            ("replicas", self.replicas.map(|replicas| replicas as u64)),
        ];
        let is_wrong = |value: u64| value == 0 || i64::try_from(value).is_err();
        let mut wrong =
            bounds.into_iter().filter_map(|(option, value)| Some((option, value.filter(|it| is_wrong(*it))?)));
        wrong.next().map_or(Ok(()), |(option, value)| Err(ConnectError::Bound { option, value }))
    }

    pub(crate) fn names(&self) -> Result<Names, ConnectError> {
        Names::new(&self.cluster).ok_or_else(|| ConnectError::Name { name: self.cluster.clone() })
    }

    pub(crate) fn server_addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
        if self.addresses.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let parse = |address: &String| {
            if address.contains('@') {
                return Err(ConnectError::SecretInAddress);
            }
            let wrong = || ConnectError::Address { address: address.clone() };
            let parsed: ServerAddr = address.trim().parse().map_err(|_| wrong())?;
            let is_read = matches!(parsed.scheme(), "nats" | "tls") && !address.trim().is_empty();
            if is_read { Ok(parsed) } else { Err(wrong()) }
        };
        self.addresses.iter().map(parse).collect()
    }

    /// What the client library is told, and whether all must be encrypted.
    pub(crate) async fn connection(&self, addresses: &[ServerAddr]) -> Result<(ConnectOptions, bool), ConnectError> {
        let options = ConnectOptions::new();
        let file = |text: String| ConnectError::Credentials { text };
        let options = match &self.auth {
            Auth::None => options,
            Auth::Token(token) => options.token(token.clone()),
            Auth::User(user, password) => options.user_and_password(user.clone(), password.clone()),
            Auth::Nkey(seed) => options.nkey(seed.clone()),
            Auth::Credentials(text) => {
                options.credentials(text).map_err(|_| file("the text is none of credentials".to_owned()))?
            }
            Auth::CredentialsFile(path) => {
                let read = tokio::fs::read_to_string(path).await;
                let text = read.map_err(|error| file(format!("{}: {error}", path.display())))?;
                let wrong = |_| file(format!("{}: it is no file of credentials", path.display()));
                options.credentials(&text).map_err(wrong)?
            }
        };

        let options = match &self.roots {
            Some(path) => {
                check_certificate(path).await?;
                options.add_root_certificates(path.clone())
            }
            None => options,
        };
        let options = match &self.certificate {
            Some((certificate, key)) => {
                check_certificate(certificate).await?;
                check_key(key).await?;
                options.add_client_certificate(certificate.clone(), key.clone())
            }
            None => options,
        };
        let stays_here = addresses.iter().all(|address| is_loopback(address.host()));
        let encrypted = !self.plaintext && !stays_here;
        let options = if encrypted { options.require_tls(true) } else { options };
        // Addresses that servers tell of may be anywhere.
        let options = if encrypted || self.plaintext { options } else { options.ignore_discovered_servers() };
        Ok((options, encrypted || addresses.iter().any(ServerAddr::tls_required)))
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// What the client library reads later, and would not name.
async fn check_certificate(path: &Path) -> Result<(), ConnectError> {
    match CertificateDer::pem_slice_iter(&read_pem(path).await?).next() {
        Some(Ok(_)) => Ok(()),
        _ => Err(not_in(path, "there is no certificate in it")),
    }
}

async fn check_key(path: &Path) -> Result<(), ConnectError> {
    let found = PrivateKeyDer::from_pem_slice(&read_pem(path).await?);
    found.map(drop).map_err(|_| not_in(path, "there is no private key in it"))
}

async fn read_pem(path: &Path) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path).await.map_err(|error| not_in(path, error))
}

fn not_in(path: &Path, why: impl fmt::Display) -> ConnectError {
    ConnectError::Certificate { text: format!("{}: {why}", path.display()) }
}

/// Why there is no engine. Nothing in it is secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No server was named.
    #[error("no NATS server was named")]
    NoAddress,
    /// An address that cannot be read.
    #[error("`{address}` is no address of a NATS server, such as nats://host:4222 or tls://host:4222")]
    Address {
        /// Which.
        address: String,
    },
    /// An address has a user or a password in it, where logs and lists of processes would show them.
    #[error("an address has a user or a password in it: name them apart, where no log shows them")]
    SecretInAddress,
    /// A number of [`NatsOptions`] that the broker would take for no bound, or for another one.
    #[error("`NatsOptions::{option}` is {value}, and must be from 1 to {}", i64::MAX)]
    Bound {
        /// Which.
        option: &'static str,
        /// What it is.
        value: u64,
    },
    /// The cluster's name cannot be part of a subject.
    #[error("`{name}` cannot be the name of a cluster: at most 32 letters, digits, `-` and `_`")]
    Name {
        /// Which.
        name: String,
    },
    /// The credentials cannot be read.
    #[error("the credentials for NATS: {text}")]
    Credentials {
        /// What is wrong with them.
        text: String,
    },
    /// A file with a certificate or its key cannot be read.
    #[error("the certificates for NATS: {text}")]
    Certificate {
        /// Which, and what is wrong with it.
        text: String,
    },
    /// No server answers.
    #[error("no NATS server answers at {addresses}: {why}")]
    Unreachable {
        /// Where.
        addresses: String,
        /// Why.
        why: String,
    },
    /// TLS was not possible. Beyond this machine it is asked for.
    #[error(
        "no TLS with the NATS server at {addresses}: {why}. Beyond this machine it must speak TLS, unless plain text is \
         allowed (`NatsOptions::plaintext`)"
    )]
    Tls {
        /// Where.
        addresses: String,
        /// Why.
        why: String,
    },
    /// The server does not let this user in.
    #[error("the NATS server refuses these credentials")]
    Unauthorized,
    /// The server is too old.
    #[error("the NATS server is version {version}, and 2.11 or newer is needed")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// JetStream is off, for the server or for this account.
    #[error("the NATS server has no JetStream for this account ({said}): start it with `-js`")]
    NoJetStream {
        /// What the server says.
        said: String,
    },
    /// The servers cannot keep so many copies.
    #[error("the NATS servers cannot keep {wanted} copies of a stream: {said}")]
    Replicas {
        /// How many were asked for.
        wanted: usize,
        /// What the server says.
        said: String,
    },
    /// A limit of the server or the account is too small.
    #[error("a limit of the NATS server is too small: {what}")]
    TooSmall {
        /// Which.
        what: String,
    },
    /// There is no room for a stream: a full disk, or a limit of the account.
    #[error("there is no room for the stream `{stream}`: {said}")]
    NoRoom {
        /// Which.
        stream: String,
        /// What the server says.
        said: String,
    },
    /// A stream is there, and is not what it should be.
    #[error(
        "the stream `{stream}` was changed: {what}. Change it back (`nats stream edit`), or remove it and lose what it has"
    )]
    Changed {
        /// Which.
        stream: String,
        /// In what.
        what: String,
    },
    /// The server refuses to make a stream.
    #[error("the NATS server refuses the stream `{stream}`: {said}")]
    Refused {
        /// Which.
        stream: String,
        /// What the server says.
        said: String,
    },
    /// The server answers nothing. It does so too where a permission is missing: what it complained of last is here.
    #[error("the NATS server did not answer in time{}", complaint.as_ref().map(|said| format!("; it said: {said}")).unwrap_or_default())]
    Silent {
        /// What the server complained of last, such as a permission that is missing.
        complaint: Option<String>,
    },
}

impl ConnectError {
    pub(crate) fn from_connecting(error: &async_nats::ConnectError, addresses: &[ServerAddr]) -> Self {
        let addresses: Vec<String> =
            addresses.iter().map(|address| format!("{}:{}", address.host(), address.port())).collect();
        let addresses = addresses.join(", ");
        let source = error.source().map(ToString::to_string);
        let why = source.unwrap_or_else(|| error.kind().to_string());
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Self::Unauthorized,
            ConnectErrorKind::Tls => Self::Tls { addresses, why },
            _ if is_of_tls(error) => Self::Tls { addresses, why },
            _ => Self::Unreachable { addresses, why },
        }
    }
}

/// True if TLS is what failed: the client library calls that an error of its socket.
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    let of_socket = |error: &(dyn Error + 'static)| {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        inner.is_some_and(|inner| inner.is::<rustls::Error>())
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if of_socket(error) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let path = "/etc/nats.creds";
        let all = [
            NatsOptions::new(["nats://ann:hunter2@host"]).token("hunter2"),
            NatsOptions::new(["host"]).user_and_password("ann", "hunter2"),
            NatsOptions::new(["host"]).nkey("hunter2"),
            NatsOptions::new(["host"]).credentials("hunter2"),
            NatsOptions::new(["host"]).credentials_file(path),
        ];
        for options in all {
            let shown = format!("{options:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let error = NatsOptions::new(["nats://ann:hunter2@host"]).server_addresses().expect_err("a secret");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn addresses_are_read_and_checked() {
        let read = |address: &str| NatsOptions::new([address]).server_addresses();
        assert_eq!(read("host").expect("a host")[0].port(), 4222);
        assert!(read("tls://host:1").expect("a host")[0].tls_required());
        for wrong in ["http://host", "", "nats://host:port"] {
            assert!(matches!(read(wrong), Err(ConnectError::Address { .. })), "{wrong:?}: {:?}", read(wrong));
        }
        assert_eq!(NatsOptions::new(<[&str; 0]>::default()).server_addresses(), Err(ConnectError::NoAddress));
    }

    /// What the broker would take for no bound is refused before it is asked for anything.
    #[tokio::test]
    async fn what_would_be_no_bound_is_refused() {
        let most = i64::MAX as u64;
        // Nobody listens there: whatever is right is refused by that.
        let options = || NatsOptions::new(["nats://127.0.0.1:1"]);
        for (wrong, option, value) in [
            (options().stream_bytes_max(0), "stream_bytes_max", 0),
            (options().stream_bytes_max(most + 1), "stream_bytes_max", most + 1),
            (options().stream_bytes_max(u64::MAX), "stream_bytes_max", u64::MAX),
            (options().history_entries_max(usize::MAX), "history_entries_max", usize::MAX as u64),
            (options().mailbox_entries_max(usize::MAX), "mailbox_entries_max", usize::MAX as u64),
            (options().replicas(0), "replicas", 0),
        ] {
            let error = crate::NatsEngine::connect(wrong).await.expect_err("it is no bound");
            assert_eq!(error, ConnectError::Bound { option, value });
            assert!(error.to_string().contains(&format!("{option}` is {value}, and must be from 1")), "{error}");
        }
        for right in [options(), options().stream_bytes_max(1), options().stream_bytes_max(most), options().replicas(5)]
        {
            assert_eq!(right.history_entries_max(0).mailbox_entries_max(0).check(), Ok(()));
        }
    }

    #[tokio::test]
    async fn beyond_this_machine_all_is_encrypted_unless_it_is_said() {
        for (address, plaintext, encrypted) in [
            ("nats://127.0.0.1", false, false),
            ("nats://localhost:4223", false, false),
            ("nats://[::1]:4222", false, false),
            ("tls://127.0.0.1", false, true),
            ("nats://10.0.0.7", false, true),
            ("nats://10.0.0.7", true, false),
            ("nats://broker", false, true),
        ] {
            let options = NatsOptions::new([address]).plaintext(plaintext);
            let addresses = options.server_addresses().expect("an address");
            let (_, is_encrypted) = options.connection(&addresses).await.expect("no file");
            assert_eq!(is_encrypted, encrypted, "{address}");
        }
    }
}
