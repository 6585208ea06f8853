//! How a server that is served belongs to a cluster: where its broker is, and what lets it in there.

use std::path::PathBuf;

use bothways::{Server, transport::Address};
use bothways_nats::{ConnectError, NatsEngine, NatsOptions};

use crate::{
    failure::{Exit, Failure},
    plan::Secret,
};

/// The broker between the nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Be a node of a cluster over these NATS servers, such as nats://127.0.0.1:4222,nats://127.0.0.1:4223; beyond this
    /// machine they speak TLS
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub(crate) cluster: Vec<String>,

    /// The name of the cluster: nodes of the same name at the same broker are one
    #[arg(long, value_name = "NAME", default_value = "bothways", requires = "cluster")]
    pub(crate) cluster_name: String,

    /// Where clients reach this node, as others may tell them [default: ADDR, where that is an address]
    #[arg(long, value_name = "ADDR", requires = "cluster")]
    pub(crate) advertise: Option<Address>,

    /// What lets this node in at the NATS servers: the environment variable that holds a token, or USER:PASSWORD
    #[arg(long, value_name = "VAR", requires = "cluster")]
    pub(crate) cluster_token_env: Option<String>,

    /// The same as a file of credentials (.creds: a JWT and its nkey)
    #[arg(long, value_name = "FILE", requires = "cluster", conflicts_with = "cluster_token_env")]
    pub(crate) cluster_credentials: Option<PathBuf>,

    /// Certificates (PEM) that those of the NATS servers may be signed by, in place of the system's
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub(crate) cluster_ca: Option<PathBuf>,

    /// The certificate of this node for the NATS servers (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["cluster", "cluster_key"])]
    pub(crate) cluster_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cluster_cert")]
    pub(crate) cluster_key: Option<PathBuf>,

    /// Speak to NATS servers on other machines without TLS
    #[arg(long, requires = "cluster")]
    pub(crate) cluster_plaintext: bool,

    /// What the NATS servers store is on their disks before they say so (`sync_interval: always`)
    #[arg(long, requires = "cluster")]
    pub(crate) cluster_synced: bool,
}

impl ClusterArgs {
    fn options(&self) -> Result<NatsOptions, Failure> {
        let mut options = NatsOptions::new(&self.cluster)
            .cluster(&self.cluster_name)
            .plaintext(self.cluster_plaintext)
            .synced(self.cluster_synced);
        if let Some(name) = &self.cluster_token_env {
            let secret = Secret::from_env(name)?;
            options = match secret.reveal().split_once(':') {
                Some((user, password)) => options.user_and_password(user, password),
                None => options.token(secret.reveal()),
            };
        }
        if let Some(path) = &self.cluster_credentials {
            options = options.credentials_file(path);
        }
        if let Some(path) = &self.cluster_ca {
            options = options.root_certificates(path);
        }
        if let (Some(certificate), Some(key)) = (&self.cluster_cert, &self.cluster_key) {
            options = options.client_certificate(certificate, key);
        }
        Ok(options)
    }
}

/// Makes a server a node of the cluster that the arguments name, and says what it is. `None`: they name none.
pub(crate) async fn join(args: &ClusterArgs, address: &Address, server: &Server) -> Result<Option<String>, Failure> {
    if args.cluster.is_empty() {
        return Ok(None);
    }
    let engine = NatsEngine::connect(args.options()?).await.map_err(|error| refused(&error))?;
    let cluster = bothways::cluster::Cluster::new(engine);
    let cluster = match advertised(args, address) {
        Some(address) => cluster.address(address),
        None => cluster,
    };
    let not_joined = |error| Failure::new(Exit::Connection, format!("cannot join the cluster: {error}"));
    let me = server.join(cluster).await.map_err(not_joined)?;
    let others = server.nodes().map_or(0, |(_, others)| others.len());
    Ok(Some(format!("node {me} of the cluster `{}`, beside {}", args.cluster_name, others_text(others))))
}

fn others_text(others: usize) -> String {
    match others {
        0 => "no other".to_owned(),
        1 => "1 other".to_owned(),
        _ => format!("{others} others"),
    }
}

/// An address that a client of elsewhere can use: port 0 and an address of every interface are none.
fn advertised(args: &ClusterArgs, address: &Address) -> Option<String> {
    if let Some(address) = &args.advertise {
        return Some(address.to_string());
    }
    let text = address.to_string();
    let host = address.host()?;
    let is_any = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    (!is_any && !host.is_empty() && !text.ends_with(":0")).then_some(text)
}

fn refused(error: &ConnectError) -> Failure {
    let text = format!("no engine for the cluster: {error}");
    match error {
        ConnectError::Unreachable { .. } => {
            Failure::new(Exit::Connection, text).hint("`nats-server -js` starts one to try with")
        }
        ConnectError::Silent { .. } => Failure::new(Exit::Timeout, text),
        ConnectError::Unauthorized => Failure::new(Exit::Peer, text)
            .hint("--cluster-token-env or --cluster-credentials says what lets this node in"),
        ConnectError::SecretInAddress => Failure::usage(text).hint("--cluster-token-env names a variable for it"),
        ConnectError::Tls { .. } => Failure::new(Exit::Connection, text)
            .hint("--cluster-ca names the certificates; --cluster-plaintext goes without"),
        ConnectError::NoAddress
        | ConnectError::Address { .. }
        | ConnectError::Name { .. }
        | ConnectError::Certificate { .. } => Failure::usage(text),
        _ => Failure::new(Exit::Peer, text),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    #[test]
    fn only_addresses_that_others_can_use_are_told() {
        let told = |typed: &[&str], address: &str| {
            let typed = Typed::parse_from(["x", "--cluster", "nats://h"].iter().chain(typed));
            advertised(&typed.cluster, &address.parse().expect("an address"))
        };
        assert_eq!(told(&[], "10.0.0.7:8972").as_deref(), Some("tcp@10.0.0.7:8972"));
        for nowhere in ["0.0.0.0:8972", "[::]:8972", ":8972", "127.0.0.1:0", "unix@/run/x.sock"] {
            assert_eq!(told(&[], nowhere), None, "{nowhere}");
        }
        let said = told(&["--advertise", "tcp@example.org:1"], "0.0.0.0:8972");
        assert_eq!(said.as_deref(), Some("tcp@example.org:1"));
    }

    #[test]
    fn servers_are_named_with_commas() {
        let typed = Typed::parse_from(["x", "--cluster", "nats://a:1,nats://b:2"]);
        assert_eq!(typed.cluster.cluster, ["nats://a:1", "nats://b:2"]);
        Typed::parse_from(["x", "--cluster", "h", "--cluster-token-env", "VAR", "--cluster-name", "prod"]);
        for wrong in [
            &["x", "--cluster-name", "prod"][..],
            &["x", "--cluster", "h", "--cluster-cert", "c"],
            &["x", "--cluster", "h", "--cluster-token-env", "VAR", "--cluster-credentials", "f"],
        ] {
            assert!(Typed::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
