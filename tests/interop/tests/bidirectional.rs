//! The documentation's example of rpcx: either server with either client, and the same lines come out.

use std::{path::PathBuf, process::Stdio, sync::OnceLock, time::Duration};

use bothways_interop::{
    go::{go, target_folder},
    peers::ServerProcess,
    process::Process,
};
use tokio::process::Command;

/// A push comes every second, and the build of the examples may be the first.
const LIMIT: Duration = Duration::from_secs(60);

const LINES: [&str; 4] = ["10 * 20 = 200", "received: abcde", "received: abcde", "received: abcde"];

/// The folder of the Rust examples, which Cargo builds.
fn examples() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let examples = ["bidirectional_server", "bidirectional_client"];
        let mut build = std::process::Command::new(cargo);
        // What the runner says of this package: build scripts that look at it would build dependencies anew, here and afterwards.
        let of_the_runner = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for name in
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| of_the_runner(name))
        {
            build.env_remove(name);
        }
        let built = build
            .args(["build", "--quiet", "--package", "bothways"])
            .args(examples.iter().flat_map(|name| ["--example", name]))
            .arg("--target-dir")
            .arg(target_folder())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .output()
            .expect("Cargo runs this test");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
    target_folder().join("debug/examples")
}

/// The first lines that a client prints.
async fn lines(client: Command) -> Vec<String> {
    let mut client = Process::start(client);
    let mut lines = Vec::new();
    while lines.len() < LINES.len() {
        lines.push(client.line(LIMIT).await);
    }
    lines
}

async fn pair(server: Command, client: impl Into<std::ffi::OsString>) {
    let server = ServerProcess::start(server).await;
    let mut command = Command::new(client.into());
    command.arg(server.socket_address());
    assert_eq!(lines(command).await, LINES);
}

fn rust_server() -> Command {
    let mut server = Command::new(examples().join("bidirectional_server"));
    server.arg("127.0.0.1:0");
    server
}

fn go_server(go: bothways_interop::go::Go) -> Command {
    let mut server = Command::new(go.program("bidirectional_server"));
    server.arg("127.0.0.1:0");
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_server_and_rust_client() {
    pair(rust_server(), examples().join("bidirectional_client")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_server_and_go_client() {
    let Some(go) = go() else { return };
    pair(rust_server(), go.program("bidirectional_client")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_server_and_rust_client() {
    let Some(go) = go() else { return };
    pair(go_server(go), examples().join("bidirectional_client")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_server_and_go_client() {
    let Some(go) = go() else { return };
    pair(go_server(go), go.program("bidirectional_client")).await;
}
