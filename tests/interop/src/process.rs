//! A program that runs beside a test, and never outlives it.

use std::{
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use crate::{LONG, within};

/// What of a program's errors is kept for the message of a test that fails.
const ERRORS_KEPT: usize = 16 << 10;

/// A running program. Killed when dropped. Its output is read all the time, so that it never waits for us.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
    errors: Arc<std::sync::Mutex<String>>,
}

impl Process {
    /// Starts a program.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let name = format!("{:?}", command.as_std());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (sender, lines) = mpsc::unbounded_channel();
        let stdout = child.stdout.take().expect("it is a pipe");
        tokio::spawn(async move {
            let mut stdout = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = stdout.next_line().await {
                // Nobody listens any more: read on all the same, or the program would stop.
                let _ = sender.send(line);
            }
        });
        let errors = Arc::<std::sync::Mutex<String>>::default();
        let mut stderr = child.stderr.take().expect("it is a pipe");
        let kept = Arc::clone(&errors);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
                let mut kept = kept.lock().expect("nobody panics with it");
                if kept.len() < ERRORS_KEPT {
                    kept.push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
            }
        });
        let stdin = child.stdin.take();
        Self { name, child, stdin, lines, errors }
    }

    /// The next line that it prints; `None` when it prints no more.
    ///
    /// # Panics
    /// If none comes within this long.
    pub async fn next_line(&mut self, limit: Duration) -> Option<String> {
        match tokio::time::timeout(limit, self.lines.recv()).await {
            Ok(line) => line,
            Err(_) => panic!("{}: no line within {limit:?}; it complained: {}", self.name, self.errors()),
        }
    }

    /// The next line.
    ///
    /// # Panics
    /// If none comes within this long, or the program ends.
    pub async fn line(&mut self, limit: Duration) -> String {
        let line = self.next_line(limit).await;
        line.unwrap_or_else(|| panic!("{} ended; it complained: {}", self.name, self.errors()))
    }

    /// Reads lines until one is wanted.
    ///
    /// # Panics
    /// If none comes within this long in all, or the program ends.
    pub async fn line_where(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let name = self.name.clone();
        within(limit, &name, async {
            loop {
                let line = self.line(limit).await;
                if wanted(&line) {
                    return line;
                }
            }
        })
        .await
    }

    /// The lines that are there already.
    pub fn lines_so_far(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// If it does not take it.
    pub async fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        let wrote = within(LONG, &self.name, stdin.write_all(format!("{line}\n").as_bytes())).await;
        wrote.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// If it does not within this long.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => status.expect("it is our child"),
            Err(_) => panic!("{}: runs for more than {limit:?}; it complained: {}", self.name, self.errors()),
        }
    }

    /// Ends it without a chance to say so: SIGKILL.
    pub async fn kill(&mut self) {
        within(LONG, &self.name, self.child.kill()).await.expect("it is our child");
    }

    /// Ends it in the way it expects: no more input.
    pub async fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.stdin = None;
        self.ended(limit).await
    }

    /// Keeps it from running, until it is killed: SIGSTOP. Its sockets stay open.
    pub async fn freeze(&mut self) {
        let id = self.id().to_string();
        let status = Command::new("kill").args(["-STOP", &id]).status().await;
        assert!(status.is_ok_and(|status| status.success()), "{} cannot be stopped", self.name);
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it keeps in memory, in KiB: `VmRSS` of Linux.
    pub fn memory_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }

    /// What it complained about so far.
    pub fn errors(&self) -> String {
        self.errors.lock().expect("nobody panics with it").clone()
    }
}
