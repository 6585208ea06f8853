//! Applications that run beside a test and say what happens to them, as lines of JSON: `optin` in Go, with a helper or
//! without, and `session-client` in Rust.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::process::Command;

use crate::{LONG, go::Go, peers::rust_program, process::Process, within};

/// A running application.
#[derive(Debug)]
pub struct App {
    /// The program.
    pub process: Process,
    /// Events that came while another kind was waited for.
    kept: VecDeque<Value>,
}

impl App {
    /// Go's `cmd/optin`.
    pub fn go(go: Go, address: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(go.program("optin"));
        command.args(["-addr", address]).args(arguments);
        Self::start(command)
    }

    /// `session-client`.
    pub fn rust(address: &str, token: &str) -> Self {
        let mut command = Command::new(rust_program("session-client"));
        command.args([address, token]);
        Self::start(command)
    }

    fn start(command: Command) -> Self {
        Self { process: Process::start(command), kept: VecDeque::new() }
    }

    /// Gives it a command.
    pub async fn tell(&mut self, command: &str) {
        self.process.tell(command).await;
    }

    /// The next event, whatever it is.
    pub async fn any(&mut self) -> Value {
        match self.kept.pop_front() {
            Some(event) => event,
            None => self.read().await,
        }
    }

    /// The next event.
    ///
    /// # Panics
    /// If it is not of this kind.
    pub async fn next(&mut self, event: &str) -> Value {
        let value = self.any().await;
        assert_eq!(value["event"], event, "{value}");
        value
    }

    /// The next event of this kind. Others keep their order, and are there afterwards.
    pub async fn next_of(&mut self, event: &str) -> Value {
        if let Some(at) = self.kept.iter().position(|kept| kept["event"] == event) {
            return self.kept.remove(at).expect("it was just found");
        }
        within(LONG, event, async {
            loop {
                let value = self.read().await;
                if value["event"] == event {
                    return value;
                }
                self.kept.push_back(value);
            }
        })
        .await
    }

    async fn read(&mut self) -> Value {
        let line = self.process.line(LONG).await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Ends it.
    ///
    /// # Panics
    /// If it complains, or has said anything that nobody asked for.
    pub async fn end(mut self) {
        let status = self.process.stop(LONG).await;
        assert!(status.success(), "it complained: {}", self.process.errors());
        assert!(self.kept.is_empty(), "nobody asked for {:?}", self.kept);
        assert_eq!(self.process.lines_so_far(), [""; 0], "nothing is left unread");
    }
}
