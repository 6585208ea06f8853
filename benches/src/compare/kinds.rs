//! The kinds of servers and clients: how each is built and started.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, bail, ensure};

use super::CompareArgs;
use crate::{
    pair::{MEASURING, PairReport, Shape},
    process::Process,
};

/// Whose server, and, where both ends are of one kind, whose client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Kind {
    /// Bothways.
    Ours,
    /// Bothways with a runtime for each core.
    PerCore,
    /// Bothways, its client being an `XClient`.
    XClient,
    /// Another build of Bothways.
    Beside,
    /// The bare limit.
    Limit,
    /// Go rpcx.
    Go,
    Tonic,
    Tarpc,
    Jsonrpsee,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "bothways",
            Self::PerCore => "bothways-per-core",
            Self::XClient => "bothways-xclient",
            Self::Beside => "beside",
            Self::Limit => "limit",
            Self::Go => "go-rpcx",
            Self::Tonic => "tonic",
            Self::Tarpc => "tarpc",
            Self::Jsonrpsee => "jsonrpsee",
        }
    }

    const PEERS: [Self; 3] = [Self::Tonic, Self::Tarpc, Self::Jsonrpsee];
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
        let CompareArgs { server_threads, load_threads, .. } = *args;
        Ok(Self { ours, others, beside: args.beside.clone(), server_threads, load_threads })
    }

    fn program(&self, kind: Kind, role: &str) -> anyhow::Result<Command> {
        let mut command = match kind {
            Kind::Ours | Kind::PerCore | Kind::XClient | Kind::Limit | Kind::Beside => {
                let program = match (kind, &self.beside) {
                    (Kind::Beside, Some(beside)) => beside,
                    _ => &self.ours,
                };
                let mut command = Command::new(program);
                match (kind, role) {
                    (Kind::Limit, role) => command.args([role, "limit"]),
                    (Kind::PerCore, "serve") => command.args([role, "bothways", "--per-core"]),
                    (Kind::XClient, "call") => command.args([role, "xclient"]),
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
        if kind != Kind::Go {
            command.arg(role);
        }
        Ok(command)
    }

    /// Starts a server on a free port.
    pub(super) fn serve(&self, kind: Kind) -> anyhow::Result<Running> {
        let mut command = self.program(kind, "serve")?;
        // All addresses of the loopback are this server's: to an `XClient` each is a server.
        let address = if kind == Kind::XClient { "tcp@0.0.0.0:0" } else { "tcp@127.0.0.1:0" };
        command.args(["--addr", address, "--attached"]);
        match (kind, self.server_threads) {
            (_, None) => {}
            (Kind::Go, Some(threads)) => {
                command.env("GOMAXPROCS", threads.to_string());
            }
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

    /// Runs a kind's own client against its own server.
    pub(super) fn call(&self, kind: Kind, server: &Running, pair: &PairWork) -> anyhow::Result<PairMeasured> {
        let mut command = self.program(kind, "call")?;
        let shape = match pair.shape {
            Shape::Raw => "raw",
            Shape::Record => "record",
        };
        command.args(["--addr", &server.address, "--shape", shape]);
        // An `XClient` has its connections itself.
        let (connections, in_flight) = match kind {
            Kind::XClient => (1, pair.connections * pair.in_flight),
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
        std::thread::sleep(std::time::Duration::from_millis(pair.measure_ms));
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
    pub(super) cpu: std::time::Duration,
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
