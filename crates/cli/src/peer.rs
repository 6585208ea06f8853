//! How a command connects to its peer.

#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::time::Duration;

use bothways::{
    Client, ClientOptions, Reconnect,
    transport::{Address, ConnectOptions},
};

use crate::{
    failure::Failure,
    plan::{self, Secret},
};

/// The peer, as typed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PeerArgs {
    /// The address, as in rpcx: tcp@HOST:PORT, ws@HOST:PORT, unix@/run/chat.sock, or only HOST:PORT
    #[arg(value_name = "ADDR")]
    pub(crate) address: Address,

    /// Give up connecting after this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) connect_timeout: Duration,

    /// The environment variable that holds a client's token (__AUTH), which the auth hook checks
    #[arg(long, value_name = "VAR")]
    auth_env: Option<String>,

    /// That token itself; others on this machine can see it while the program runs, so prefer --auth-env
    #[arg(long, value_name = "TOKEN", conflicts_with = "auth_env")]
    auth: Option<Secret>,

    /// Do not offer anything beyond plain rpcx
    #[arg(long)]
    plain: bool,

    /// Speak TLS, and trust servers whose certificate one of these (PEM) has signed
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The name that the server's certificate must have [default: the host of ADDR]
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    tls_name: Option<String>,

    /// Speak TLS with any server, unverified: safe from passive listeners only
    #[cfg(feature = "tls")]
    #[arg(long, conflicts_with = "tls_ca")]
    tls_insecure: bool,
}

impl PeerArgs {
    /// What a client of this peer wants. It does not reconnect unless it is told to.
    pub(crate) fn options(&self) -> Result<ClientOptions, Failure> {
        let options = ClientOptions::new()
            .connect_options(self.connect_options()?)
            .negotiate(!self.plain)
            .reconnect(Reconnect::Never);
        let token = match (&self.auth, &self.auth_env) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(name)) => Some(Secret::from_env(name)?),
            (None, None) => None,
        };
        Ok(match token {
            Some(token) => options.auth(token.reveal()),
            None => options,
        })
    }

    #[cfg(not(feature = "tls"))]
    fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        Ok(ConnectOptions::default().connect_timeout(self.connect_timeout))
    }

    #[cfg(feature = "tls")]
    fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        use bothways::transport::tls::{TlsClient, TlsRoots};

        let options = ConnectOptions::default().connect_timeout(self.connect_timeout);
        let cannot = |error| Failure::usage(format!("cannot speak TLS: {error}"));

        let tls = match &self.tls_ca {
            Some(path) => TlsRoots::from_pem_file(path).and_then(|roots| TlsClient::new(&roots)).map_err(cannot)?,
            None if self.tls_insecure => TlsClient::dangerously_trusting_any_server().map_err(cannot)?,
            None if matches!(self.address.network(), "tls" | "wss") => {
                return Err(Failure::usage(format!("{}: nothing says whom to trust", self.address))
                    .hint("name the certificate of the server, or of who signed it, with --tls-ca FILE"));
            }
            None => return Ok(options),
        };

        let tls = match &self.tls_name {
            Some(name) => tls.server_name(name).map_err(cannot)?,
            None => tls,
        };
        Ok(options.tls(tls))
    }

    pub(crate) async fn connect(&self, options: ClientOptions) -> Result<Client, Failure> {
        Client::connect(&self.address.to_string(), options).await.map_err(|error| Failure::connect(&error))
    }
}
