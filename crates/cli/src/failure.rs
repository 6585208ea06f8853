//! Failures: a text for people and an exit code for scripts.

use std::{io, process::ExitCode};

use bothways::{CallError, CloseReason, ConnectError, ErrorCode, PushError, ServeError};

use crate::term::{self, Paint};

/// How the program ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// The peer answered with an error, or what was checked is not so.
    Peer = 1,
    /// Something typed, or a local file, is wrong.
    Usage = 2,
    /// Not connected, or the connection was lost.
    Connection = 3,
    /// No answer in time.
    Timeout = 4,
    /// A push has not come so far as was asked for, and may yet.
    NotReached = 5,
}

/// Why the program ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Option<Exit>,
    what: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit: Some(exit), what: what.into(), hint: None }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// The same with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Nothing went wrong: the reader of the output has enough, as `head` has.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { exit: None, what: String::new(), hint: None },
            _ => Self::usage(format!("cannot write the output: {error}")),
        }
    }

    /// What people are told, on one line.
    pub(crate) fn text(&self) -> &str {
        &self.what
    }

    /// How the program would end.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Says it on standard error.
    pub(crate) fn tell(&self) {
        if self.exit.is_none() {
            return;
        }
        let paint = Paint::stderr();
        term::complain(&format!("{} {}", paint.red("error:"), term::one_line(&self.what)));
        if let Some(hint) = &self.hint {
            term::complain(&format!("{} {hint}", paint.dim(" hint:")));
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        self.exit.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8))
    }

    /// A call failed.
    pub(crate) fn call(method: &str, error: &CallError) -> Self {
        match error {
            CallError::Remote { code: Some(ErrorCode::Timeout), .. } | CallError::TimedOut(_) => {
                Self::new(Exit::Timeout, format!("{method}: {error}"))
                    .hint("allow more time with --timeout; the call may have run, or may still be running")
            }
            CallError::Remote { code: Some(ErrorCode::Unauthenticated), .. } => {
                Self::new(Exit::Peer, format!("{method}: {error}")).hint(TOKEN_HINT)
            }
            CallError::Remote { text, .. } if text.starts_with("rpcx: can't find") => {
                Self::new(Exit::Peer, format!("{method}: {error}"))
                    .hint("names are case-sensitive: check both parts of Service.Method")
            }
            CallError::Remote { .. } => Self::new(Exit::Peer, format!("{method}: {error}")),
            CallError::Closed { reason: CloseReason::Unauthenticated(text), .. } => {
                Self::new(Exit::Peer, format!("{method}: the peer refused the token: {text}")).hint(TOKEN_HINT)
            }
            CallError::NotConnected(error) => Self::connect(error),
            CallError::Closed { .. } => Self::new(Exit::Connection, format!("{method}: {error}")),
            CallError::Decode(_) => Self::new(Exit::Peer, format!("{method}: {error}")),
            _ => Self::usage(format!("{method}: {error}")),
        }
    }

    /// A oneway message was not queued.
    pub(crate) fn push(method: &str, error: &PushError) -> Self {
        match error {
            PushError::NotConnected(error) => Self::connect(error),
            PushError::Closed(_) => Self::new(Exit::Connection, format!("{method}: {error}")),
            PushError::Full { .. } => Self::new(Exit::Timeout, format!("{method}: {error}")),
            _ => Self::usage(format!("{method}: {error}")),
        }
    }

    /// No connection could be made.
    pub(crate) fn connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::Address(_) => Self::usage(error.to_string()),
            ConnectError::Refused { .. } => Self::new(Exit::Peer, error.to_string()).hint(TOKEN_HINT),
            ConnectError::Io { address, error: io } if io.kind() == io::ErrorKind::ConnectionRefused => {
                Self::new(Exit::Connection, error.to_string())
                    .hint(format!("nothing listens there; `bothways serve {address}` would start a server to try with; operators have an address of their own, `--admin`"))
            }
            ConnectError::NoAnswer { .. } => {
                Self::new(Exit::Timeout, error.to_string()).hint("is it an rpcx server? Or raise --connect-timeout")
            }
            ConnectError::TimedOut { .. } => {
                Self::new(Exit::Connection, error.to_string()).hint("check host and port, or raise --connect-timeout")
            }
            _ => Self::new(Exit::Connection, error.to_string()),
        }
    }

    /// The server cannot serve.
    pub(crate) fn serve(error: &ServeError) -> Self {
        let failure = Self::usage(error.to_string());
        match error {
            ServeError::Listen { error, .. } if error.kind() == io::ErrorKind::AddrInUse => {
                failure.hint("another program listens there: choose another port, or port 0 for a free one")
            }
            ServeError::Listen { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                failure.hint("ports below 1024 need a privilege: choose another one")
            }
            _ => failure,
        }
    }
}

const TOKEN_HINT: &str = "put the token into an environment variable and name it with --auth-env";

/// For the help of every command.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  fine
  1  the peer answered with an error
  2  something typed is wrong
  3  not connected, or the connection was lost
  4  no answer in time
  5  a push has not come so far in time (push --until)";
