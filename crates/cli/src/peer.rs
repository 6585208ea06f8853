//! How a command connects to its peer.

use std::time::Duration;

use bothways::{
    Client, ClientOptions,
    transport::{Address, ConnectOptions},
};

use crate::{
    failure::Failure,
    plan::{self, Secret},
};

/// The peer, as typed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PeerArgs {
    /// Where the server listens, as in rpcx: tcp@127.0.0.1:8972, unix@/run/chat.sock, or only host:port
    #[arg(value_name = "ADDR")]
    pub(crate) address: Address,

    /// Give up connecting after this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) connect_timeout: Duration,

    /// The environment variable that holds the token for the server (__AUTH)
    #[arg(long, value_name = "VAR")]
    auth_env: Option<String>,

    /// The token itself; others on this machine can see it while the program runs, so prefer --auth-env
    #[arg(long, value_name = "TOKEN", conflicts_with = "auth_env")]
    auth: Option<Secret>,

    /// Do not offer anything beyond plain rpcx
    #[arg(long)]
    plain: bool,
}

impl PeerArgs {
    /// What a client of this peer wants. It does not reconnect unless it is told to.
    pub(crate) fn options(&self) -> Result<ClientOptions, Failure> {
        let options = ClientOptions::new()
            .connect_options(ConnectOptions::default().connect_timeout(self.connect_timeout))
            .negotiate(!self.plain)
            .reconnect(false);
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

    pub(crate) async fn connect(&self, options: ClientOptions) -> Result<Client, Failure> {
        Client::connect(&self.address.to_string(), options).await.map_err(|error| Failure::connect(&error))
    }
}
