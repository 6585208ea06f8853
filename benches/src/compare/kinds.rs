//! The kinds of servers and clients: how each is built and started.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::CompareArgs;
use crate::{
    contract::word,
    pair::{MEASURING, PairReport, Shape},
    process::Process,
};

/// A broker that does not listen after this long has failed.
const STARTING: Duration = Duration::from_secs(10);

/// Whose server, and, where both ends are of one kind, whose client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Kind {
    /// Bothways.
    Ours,
    /// Bothways with a runtime for each core.
    PerCore,
    /// Bothways, its client being an `XClient`.
    XClient,
    /// Bothways, its clients taking turns with each call.
    Turns,
    /// Another build of Bothways.
    Beside,
    /// The bare limit.
    Limit,
    /// Go rpcx.
    Go,
    Tonic,
    Tarpc,
    Jsonrpsee,
    /// Bothways, with `fan_out` in place of sessions and topics.
    Broadcast,
    /// Bothways, whose clients come over WebSocket.
    Ws,
    /// Bothways, several servers of one cluster.
    Nodes,
    /// The message brokers.
    Nats,
    Centrifugo,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "bothways",
            Self::PerCore => "bothways-per-core",
            Self::XClient => "bothways-xclient",
            Self::Turns => "bothways-turns",
            Self::Beside => "beside",
            Self::Limit => "limit",
            Self::Go => "go-rpcx",
            Self::Tonic => "tonic",
            Self::Tarpc => "tarpc",
            Self::Jsonrpsee => "jsonrpsee",
            Self::Broadcast => "bothways-broadcast",
            Self::Ws => "bothways-ws",
            Self::Nodes => "bothways-nodes",
            Self::Nats => "nats-server",
            Self::Centrifugo => "centrifugo",
        }
    }

    const PEERS: [Self; 3] = [Self::Tonic, Self::Tarpc, Self::Jsonrpsee];

    /// Go modules that are built with `go install`.
    const BROKERS: [(Self, &str); 2] = [
        (Self::Nats, "github.com/nats-io/nats-server/v2@v2.15.2"),
        (Self::Centrifugo, "github.com/centrifugal/centrifugo/v6@v6.9.1"),
    ];
}

/// The programs that are there.
pub(super) struct Tools {
    /// This program.
    ours: PathBuf,
    /// The others, or why they are not there.
    others: HashMap<Kind, Result<PathBuf, String>>,
    pub(super) beside: Option<PathBuf>,
    server_threads: Option<usize>,
    pub(super) load_threads: usize,
}

impl Tools {
    /// Builds Go's server, and the peers if `build_peers`.
    pub(super) fn find(args: &CompareArgs) -> anyhow::Result<Self> {
        let ours = env::current_exe().context("cannot tell which program this is")?;
        let directory = ours.parent().context("a program is in a directory")?;
        let package = env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let mut others = HashMap::from([(Kind::Go, build_go(&package, directory))]);

        // Beside `release`, so that cleaning the workspace cleans the peers.
        let peers_target = directory.parent().unwrap_or(directory).join("peers");
        let built = if args.peers { build_peers_into(&package, &peers_target) } else { Ok(()) };
        for kind in Kind::PEERS {
            let program = peers_target.join("release").join(format!("peer-{}{}", kind.name(), env::consts::EXE_SUFFIX));
            let found = match &built {
                Err(why) => Err(why.clone()),
                Ok(()) if program.exists() => Ok(program),
                Ok(()) => Err("not built: --peers builds it".to_owned()),
            };
            others.insert(kind, found);
        }

        for (kind, module) in Kind::BROKERS {
            let program = directory.join(format!("{}{}", kind.name(), env::consts::EXE_SUFFIX));
            let built = if args.peers { install_go(module, directory) } else { Ok(()) };
            let found = match built {
                Err(why) => Err(format!("skipped: no {}: {why}", kind.name())),
                Ok(()) if program.exists() => Ok(program),
                Ok(()) => Err(format!("skipped: no {}: --peers builds it", kind.name())),
            };
            others.insert(kind, found);
        }

        let CompareArgs { server_threads, load_threads, .. } = *args;
        Ok(Self { ours, others, beside: args.beside.clone(), server_threads, load_threads })
    }

    /// The program of a Bothways kind.
    pub(super) fn program_of(&self, kind: Kind) -> &Path {
        match (kind, &self.beside) {
            (Kind::Beside, Some(beside)) => beside,
            _ => &self.ours,
        }
    }

    fn program(&self, kind: Kind, role: &str) -> anyhow::Result<Command> {
        let mut command = match kind {
            Kind::Ours
            | Kind::PerCore
            | Kind::XClient
            | Kind::Turns
            | Kind::Limit
            | Kind::Beside
            | Kind::Broadcast
            | Kind::Ws
            | Kind::Nodes => {
                let mut command = Command::new(self.program_of(kind));
                match (kind, role) {
                    (Kind::Limit, role) => command.args([role, "limit"]),
                    (Kind::Ws, "serve") => command.args([role, "bothways", "--one-port"]),
                    (Kind::PerCore, "serve") => command.args([role, "bothways", "--per-core"]),
                    (Kind::XClient, "call") => command.args([role, "xclient"]),
                    (Kind::Turns, "call") => command.args([role, "turns"]),
                    (_, role) => command.args([role, "bothways"]),
                };
                return Ok(command);
            }
            _ => match self.others.get(&kind) {
                Some(Ok(program)) => Command::new(program),
                Some(Err(why)) => bail!("{why}"),
                None => bail!("unknown"),
            },
        };

        if Kind::PEERS.contains(&kind) {
            command.arg(role);
        }
        Ok(command)
    }

    /// Starts a server on a free port.
    pub(super) fn serve(&self, kind: Kind) -> anyhow::Result<Running> {
        let mut command = self.program(kind, "serve")?;
        if let (Kind::Go | Kind::Nats | Kind::Centrifugo, Some(threads)) = (kind, self.server_threads) {
            command.env("GOMAXPROCS", threads.to_string());
        }
        if matches!(kind, Kind::Nats | Kind::Centrifugo) {
            return serve_broker(kind, command);
        }

        self.listen(kind, command)
    }

    /// Starts a server of ours as a node of the cluster with this broker, when it knows so many others.
    #[cfg(feature = "nodes")]
    pub(super) fn serve_node(&self, broker: &str, others: usize) -> anyhow::Result<Running> {
        let mut command = self.program(Kind::Nodes, "serve")?;
        command.args(["--cluster", broker, "--others", &others.to_string()]);
        self.listen(Kind::Nodes, command)
    }

    fn listen(&self, kind: Kind, mut command: Command) -> anyhow::Result<Running> {
        // All addresses of the loopback are this server's: to an `XClient` each is a server.
        let address = if kind == Kind::XClient { "tcp@0.0.0.0:0" } else { "tcp@127.0.0.1:0" };
        command.args(["--addr", address, "--attached"]);
        match (kind, self.server_threads) {
            (_, None) | (Kind::Go, _) => {}
            (_, Some(threads)) => {
                command.args(["--threads", &threads.to_string()]);
            }
        }

        let mut running = Running::start(command.stdin(Stdio::piped()))?;
        let line = running.line()?;
        let address = line.strip_prefix("LISTENING ").with_context(|| format!("the server says {line:?}"))?;
        running.address = address.to_owned();
        Ok(running)
    }

    /// Starts nats-server, which keeps what it has in this folder.
    #[cfg(feature = "nodes")]
    pub(super) fn serve_jetstream(&self, folder: &Path) -> anyhow::Result<Running> {
        let mut command = self.program(Kind::Nats, "serve")?;
        command.arg("--jetstream").arg("--store_dir").arg(folder);
        serve_broker(Kind::Nats, command)
    }

    /// Runs a kind's own client against its own server.
    pub(super) fn call(&self, kind: Kind, server: &Running, pair: &PairWork) -> anyhow::Result<PairMeasured> {
        let mut command = self.program(kind, "call")?;
        command.args(["--addr", &server.address, "--shape", &word(&pair.shape)]);

        // These have their connections themselves.
        let (connections, in_flight) = match kind {
            Kind::XClient | Kind::Turns => (1, pair.connections * pair.in_flight),
            _ => (pair.connections, pair.in_flight),
        };
        for (option, value) in [
            ("--connections", connections as u64),
            ("--in-flight", in_flight as u64),
            ("--payload", pair.payload_bytes as u64),
            ("--warm-up-ms", pair.warm_up_ms),
            ("--measure-ms", pair.measure_ms),
        ] {
            command.args([option, &value.to_string()]);
        }

        let mut client = Running::start(&mut command)?;
        let line = client.line()?;
        ensure!(line == MEASURING, "the client says {line:?}");

        let cpu = || anyhow::Ok((server.process().cpu()?, client.process().cpu()?));
        let before = cpu()?;
        thread::sleep(Duration::from_millis(pair.measure_ms));
        let after = cpu()?;
        let report: PairReport = serde_json::from_str(&client.line()?)?;
        Ok(PairMeasured { report, cpu: (after.0 - before.0) + (after.1 - before.1) })
    }
}

/// What a kind's own client is asked to do.
pub(super) struct PairWork {
    pub(super) connections: usize,
    pub(super) in_flight: usize,
    pub(super) payload_bytes: usize,
    pub(super) shape: Shape,
    pub(super) warm_up_ms: u64,
    pub(super) measure_ms: u64,
}

pub(super) struct PairMeasured {
    pub(super) report: PairReport,
    /// Of both ends.
    pub(super) cpu: Duration,
}

/// A process that ends with this value.
pub(super) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(super) address: String,
}

impl Running {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        Ok(Self { child, stdout, address: String::new() })
    }

    pub(super) fn process(&self) -> Process {
        Process::new(self.child.id())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(0 < self.stdout.read_line(&mut line)?, "the process ended too early");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a broker without authentication on a free port, and waits until it listens.
fn serve_broker(kind: Kind, mut command: Command) -> anyhow::Result<Running> {
    // Chosen here, for those who connect must know it.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    match kind {
        Kind::Nats => {
            command.args(["--addr", "127.0.0.1", "--port", &port]);
        }
        _ => {
            command.current_dir(env::temp_dir()).envs([
                ("CENTRIFUGO_HTTP_SERVER_ADDRESS", "127.0.0.1"),
                ("CENTRIFUGO_HTTP_SERVER_PORT", &port),
                ("CENTRIFUGO_CLIENT_INSECURE", "true"),
                ("CENTRIFUGO_HTTP_API_INSECURE", "true"),
                ("CENTRIFUGO_LOG_LEVEL", "none"),
            ]);
        }
    }

    let mut running = Running::start(command.stdin(Stdio::null()))?;
    running.address = format!("tcp@127.0.0.1:{port}");

    let begin = Instant::now();
    while TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        ensure!(running.child.try_wait()?.is_none(), "it has ended by itself");
        ensure!(begin.elapsed() < STARTING, "it does not listen after {STARTING:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

/// Builds the program of a Go module into a directory.
fn install_go(module: &str, directory: &Path) -> Result<(), String> {
    let output = Command::new("go").args(["install", module]).env("GOBIN", directory).output();
    let output = output.map_err(|error| format!("no Go: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("go install failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn build_go(package: &Path, directory: &Path) -> Result<PathBuf, String> {
    let program = directory.join(format!("go-bench-server{}", env::consts::EXE_SUFFIX));
    let build = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg("./cmd/bench_server")
        .current_dir(package.join("../tests/interop/go"))
        .output();
    match build {
        Err(error) => Err(format!("no Go: {error}")),
        Ok(output) if !output.status.success() => {
            Err(format!("go build failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(_) => Ok(program),
    }
}

fn build_peers_into(package: &Path, target: &Path) -> Result<(), String> {
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    let build = Command::new(cargo)
        .args(["build", "--release", "--bins", "--manifest-path"])
        .arg(package.join("peers/Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status();
    match build {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the build failed ({status})")),
        Err(error) => Err(format!("no cargo: {error}")),
    }
}
