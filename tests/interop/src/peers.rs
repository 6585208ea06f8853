//! Servers in processes of their own, in Go and in Rust; the Go client.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use tokio::process::Command;

use crate::{LONG, go::Go, process::Process};

/// Go is quick to start; a machine under load is not.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A server that listens.
#[derive(Debug)]
pub struct ServerProcess {
    /// The program.
    pub process: Process,
    /// Where it listens, in rpcx's form.
    pub address: String,
}

/// How the Rust server is.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Stats {
    pub tasks: usize,
    pub connections: usize,
    pub calls_running: usize,
    pub accepted: u64,
    pub refused: u64,
    pub connected: u64,
    pub disconnected: u64,
    /// Connections of which `on_disconnect` told more than once, or that `on_connect` never saw.
    pub out_of_order: u64,
    /// How often connections ended for which reason, by its name.
    pub ended: std::collections::BTreeMap<String, u64>,
}

impl ServerProcess {
    /// Starts a program that prints `LISTENING ADDRESS`.
    pub async fn start(command: Command) -> Self {
        let mut process = Process::start(command);
        let line = process.line(START_LIMIT).await;
        let address = line.strip_prefix("LISTENING ");
        let address = address.unwrap_or_else(|| panic!("{line:?} in place of LISTENING")).to_owned();
        Self { process, address }
    }

    /// The Go server of the contract on a free port.
    pub async fn go(go: Go, arguments: &[&str]) -> Self {
        Self::go_at(go, "tcp@127.0.0.1:0", arguments).await
    }

    /// The Go server of the contract on this address.
    pub async fn go_at(go: Go, address: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(go.program("server"));
        command.args(["-addr", address]).args(arguments);
        Self::start(command).await
    }

    /// The Rust server of the contract on a free port.
    pub async fn rust(arguments: &[&str]) -> Self {
        Self::rust_at("tcp@127.0.0.1:0", arguments).await
    }

    /// The Rust server of the contract on this address.
    pub async fn rust_at(address: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(rust_program("interop-server"));
        command.args(["--addr", address]).args(arguments).env("RUST_BACKTRACE", "0");
        Self::start(command).await
    }

    /// `HOST:PORT`, for a socket without a library.
    pub fn socket_address(&self) -> &str {
        self.address.split_once('@').map_or(&self.address, |(_, address)| address)
    }

    /// Asks the Rust server how it is.
    pub async fn stats(&mut self) -> Stats {
        self.process.tell("stats").await;
        let line = self.process.line_where(LONG, |line| line.starts_with("{\"tasks\"")).await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

/// A program of this package, which Cargo builds before its tests.
pub fn rust_program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    let deps = exe.parent().expect("a file is in a folder");
    let folder = if deps.ends_with("deps") { deps.parent().expect("it is not the root") } else { deps };
    folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// Starts a case of the Go client.
pub fn go_client(go: Go, address: &str, case: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(go.program("client"));
    command.args(["-addr", address, "-case", case]).args(arguments);
    Process::start(command)
}

/// Waits for a case of the Go client to end, and gives its last line.
///
/// # Panics
/// If the case fails: with the client's own words.
pub async fn finish_case(mut client: Process, limit: Duration) -> serde_json::Value {
    let mut last = serde_json::Value::Null;
    let mut failed = Vec::new();
    while let Some(line) = client.next_line(limit).await {
        last = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        if last["ok"] == false {
            failed.push(line);
        }
    }
    let status = client.ended(limit).await;
    let errors = client.errors();
    assert!(status.success() && failed.is_empty(), "exit {:?}: {failed:#?}\nit complained: {errors}", status.code());
    assert_eq!(last["ok"], true, "it ended without a result; it complained: {errors}");
    last
}
