//! NATS servers for tests: each in a folder of its own, on free ports that its own process has bound, ended by its id.
//!
//! The program is found by the variable `BOTHWAYS_NATS_SERVER`, on the path, or in `target/`, where `.ci/run` puts it.
//! Where it is missing, a test says so and passes; with the variable `CI` it fails.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take until it listens.
const START_MAX: Duration = Duration::from_secs(30);

/// The program, if this machine has it.
pub fn nats_server() -> Option<PathBuf> {
    let name = format!("nats-server{}", env::consts::EXE_SUFFIX);
    let named = env::var_os("BOTHWAYS_NATS_SERVER").map(PathBuf::from);
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nats");
    let found = named.into_iter().chain(on_path.chain([target]).map(|folder| folder.join(&name)));
    let found = found.into_iter().find(|program| is_new_enough(program));
    if found.is_none() {
        println!("skipped: no nats-server");
        assert!(env::var_os("CI").is_none(), "there is no nats-server, and in CI no test is skipped");
    }
    found
}

/// Debian's may be older than what the engine needs.
fn is_new_enough(program: &Path) -> bool {
    let Ok(told) = Command::new(program).arg("--version").output() else { return false };
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let mut numbers =
        told.split_once(": v").map_or("", |(_, version)| version).split('.').map(|part| part.parse().ok());
    (Some(2), Some(11)) <= (numbers.next().flatten(), numbers.next().flatten())
}

/// Some servers of one broker. They end with it.
#[derive(Debug)]
pub struct Broker {
    servers: Vec<Server>,
    program: PathBuf,
    folder: TempDir,
    options: String,
    is_synced: bool,
}

#[derive(Debug)]
struct Server {
    child: Option<Child>,
    /// 0: none so far.
    port: u16,
    cluster_port: u16,
    is_stopped: bool,
}

impl Drop for Broker {
    fn drop(&mut self) {
        (0..self.servers.len()).for_each(|server| self.kill(server));
    }
}

impl Broker {
    /// One server with JetStream. `None`: skipped.
    pub fn one() -> Option<Self> {
        Self::with("")
    }

    /// One, with more in its configuration; a `jetstream` of its own is no other one's.
    pub fn with(options: &str) -> Option<Self> {
        Self::start_all(1, options, false)
    }

    /// Three that are one cluster.
    pub fn three() -> Option<Self> {
        Self::start_all(3, "", false)
    }

    /// Three, which write to their disks before they acknowledge: what they store outlives the end of all of them.
    pub fn three_synced() -> Option<Self> {
        Self::start_all(3, "", true)
    }

    fn start_all(count: usize, options: &str, is_synced: bool) -> Option<Self> {
        let program = nats_server()?;
        // A port that was free may be taken a moment later.
        let mut said = String::new();
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a folder");
            let server = |_| Server { child: None, port: 0, cluster_port: free_port(), is_stopped: false };
            let servers: Vec<Server> = (0..count).map(server).collect();
            let (program, options) = (program.clone(), options.to_owned());
            let mut broker = Self { servers, program, folder, options, is_synced };
            if (0..count).all(|server| broker.start_once(server)) {
                return Some(broker);
            }
            said = (0..count).map(|server| broker.log(server)).collect();
        }
        panic!("nats-server does not start: {said}");
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.servers.len()
    }

    /// Where they listen, as `nats://127.0.0.1:port`.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("nats://127.0.0.1:{}", server.port)).collect()
    }

    /// What the servers are called: `n0` and so on, as JetStream names its leaders.
    pub fn number_of(&self, name: &str) -> usize {
        let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
        number.filter(|number| *number < self.servers.len()).expect("the name of a server")
    }

    /// What is in the configuration beside what all have, of a server that is started from here on.
    pub fn set_options(&mut self, options: &str) {
        self.options = options.to_owned();
    }

    /// `kill -9`.
    pub fn kill(&mut self, server: usize) {
        if let Some(mut child) = self.servers[server].child.take() {
            child.kill().expect("our own process");
            child.wait().expect("our own process");
        }
        self.servers[server].is_stopped = false;
    }

    /// Starts one again, where it listened before.
    pub fn start(&mut self, server: usize) {
        assert!(self.servers[server].child.is_none(), "it runs");
        let until = Instant::now() + START_MAX;
        while !self.start_once(server) {
            assert!(Instant::now() < until, "nats-server does not start again: {}", self.log(server));
            sleep(Duration::from_millis(100));
        }
    }

    /// `kill -STOP`: it answers nothing, and its connections stay open.
    pub fn stop(&mut self, server: usize) {
        self.signal(server, Signal::STOP);
        self.servers[server].is_stopped = true;
    }

    /// It goes on.
    pub fn go_on(&mut self, server: usize) {
        self.signal(server, Signal::CONT);
        self.servers[server].is_stopped = false;
    }

    /// Removes all that a server that was killed has stored.
    pub fn wipe(&mut self, server: usize) {
        assert!(self.servers[server].child.is_none(), "it runs");
        let _ = fs::remove_dir_all(self.store(server));
    }

    /// Keeps a copy of all that a server that was killed has stored, for [`Self::fall_back`].
    pub fn keep(&self, server: usize) {
        assert!(self.servers[server].child.is_none(), "it runs");
        let _ = fs::remove_dir_all(self.path(server, "kept"));
        copy(&self.store(server), &self.path(server, "kept"));
    }

    /// A server that was killed has what it had when [`Self::keep`] was called, as if its machine had lost the rest.
    pub fn fall_back(&mut self, server: usize) {
        self.wipe(server);
        copy(&self.path(server, "kept"), &self.store(server));
    }

    /// What it has logged.
    pub fn log(&self, server: usize) -> String {
        fs::read_to_string(self.path(server, "log")).unwrap_or_default()
    }

    fn signal(&self, server: usize, signal: Signal) {
        let child = self.servers[server].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our own process");
    }

    fn path(&self, server: usize, what: &str) -> PathBuf {
        self.folder.path().join(format!("n{server}.{what}"))
    }

    fn store(&self, server: usize) -> PathBuf {
        self.path(server, "store")
    }

    /// False: it has ended, perhaps because its port was taken.
    fn start_once(&mut self, server: usize) -> bool {
        let (config, log) = (self.path(server, "conf"), self.path(server, "log"));
        fs::write(&config, self.config(server)).expect("our own folder");
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(&config)
            .arg("--log")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is a program");
        // By this file its own process says which ports it has bound.
        let ports = self.folder.path().join(format!("nats-server_{}.ports", child.id()));
        let until = Instant::now() + START_MAX;
        let port = loop {
            if let Some(port) = bound_port(&ports) {
                break Some(port);
            }
            if child.try_wait().expect("our own process").is_some() {
                break None;
            }
            assert!(Instant::now() < until, "nats-server does not listen: {}", self.log(server));
            sleep(Duration::from_millis(10));
        };
        let Some(port) = port else { return false };
        let one = &mut self.servers[server];
        (one.child, one.port) = (Some(child), port);
        true
    }

    fn config(&self, server: usize) -> String {
        let Server { port, cluster_port, .. } = &self.servers[server];
        let port = if *port == 0 { "-1".to_owned() } else { port.to_string() };
        let folder = self.folder.path().display();
        let mut config =
            format!("server_name: n{server}\nhost: 127.0.0.1\nport: {port}\nports_file_dir: \"{folder}\"\n");
        if !self.options.contains("jetstream") {
            let store = self.store(server);
            let sync = if self.is_synced { ", sync_interval: always" } else { "" };
            config += &format!("jetstream {{ store_dir: \"{}\", max_file_store: 4GB{sync} }}\n", store.display());
        }
        if 1 < self.servers.len() {
            let all = self.servers.iter().map(|other| format!("nats-route://127.0.0.1:{}", other.cluster_port));
            let all: Vec<String> = all.collect();
            config += &format!(
                "cluster {{ name: tests, host: 127.0.0.1, port: {cluster_port}, routes: [{}] }}\n",
                all.join(", ")
            );
        }
        config + &self.options
    }
}

fn bound_port(file: &Path) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("our own folder");
    for entry in fs::read_dir(from).expect("our own folder") {
        let entry = entry.expect("our own folder");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("our own folder").is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = fs::copy(entry.path(), &to).expect("our own file"),
        }
    }
}
