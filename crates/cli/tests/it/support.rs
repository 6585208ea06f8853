//! Runs the program and looks at what it did.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

/// Longer than anything here takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The program with these arguments, and nothing of the environment that could change what it does.
pub(crate) fn bothways(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bothways"));
    command.args(args).env_remove("RUST_LOG").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It ended with this code; answers what it printed.
    #[track_caller]
    pub(crate) fn ended(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:#?}");
        &self.out
    }

    /// It ended with this code and said all of this on standard error.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in {self:#?}");
        }
    }
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Ran {
    finish(bothways(args), b"")
}

/// Runs a command to its end, with this on its standard input.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("the program starts");
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes the pipe; that is its right.
        let _ = stdin.write_all(input);
    }
    let out = read(child.stdout.take().expect("piped"));
    let err = read(child.stderr.take().expect("piped"));
    let code = wait(&mut child);
    let text = |bytes: Receiver<Vec<u8>>| {
        let bytes = bytes.recv().expect("the reader ends with the program");
        String::from_utf8(bytes).expect("it prints UTF-8")
    };
    Ran { code, out: text(out), err: text(err) }
}

fn read(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        let _ = sender.send(bytes);
    });
    receiver
}

fn wait(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code();
        }
        if LONG < began.elapsed() {
            child.kill().expect("a child can be killed");
            panic!("the program does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs beside the test, and ends with it.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let out = Lines::of(child.stdout.take().expect("piped"));
        let err = Lines::of(child.stderr.take().expect("piped"));
        Self { child, out, err }
    }

    /// Asks it to stop, as `kill` does, and waits for its end.
    #[cfg(unix)]
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().expect("there is a `kill`");
        assert!(killed.success());
        wait(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, as they come.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next line.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(LONG).expect("the program prints another line")
    }

    /// All lines from here to the end of the program.
    #[cfg(unix)]
    pub(crate) fn rest(&self) -> String {
        self.0.iter().map(|line| line + "\n").collect()
    }

    /// The first line from here that contains this.
    #[track_caller]
    pub(crate) fn until(&self, part: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.0.recv_timeout(LONG) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("`{part}` does not come; there was {seen:#?}"),
            }
        }
    }
}

/// `bothways serve` on a free port.
pub(crate) struct Serving {
    pub(crate) program: Running,
    pub(crate) address: String,
    /// Where operators ask; empty without `--admin`.
    pub(crate) admin: String,
}

impl Serving {
    pub(crate) fn start() -> Self {
        Self::with(&[], &[])
    }

    /// With more arguments, and these in its environment.
    pub(crate) fn with(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::at("tcp@127.0.0.1:0", args, env)
    }

    pub(crate) fn at(address: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = bothways(&["serve", address]);
        command.args(args).envs(env.iter().copied());
        let program = Running::start(command);
        let line = program.out.next();
        let address = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("`{line}` is no address")).to_owned();
        let admin = match args.contains(&"--admin") {
            true => program.out.until("operators").rsplit(' ').next().unwrap_or_default().to_owned(),
            false => String::new(),
        };
        Self { program, address, admin }
    }

    /// Where `--http` answers.
    pub(crate) fn http_address(&self) -> String {
        let line = self.program.out.until("HTTP at");
        line.split("http://").nth(1).and_then(|rest| rest.split(": ").next()).expect("an address").to_owned()
    }
}

/// What an HTTP server on a port says to one request; of a stream its beginning, up to what is waited for.
pub(crate) fn http(address: &str, request: &str, until: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("it is open");
    stream.write_all(request.as_bytes()).expect("it is open");
    let (mut said, mut piece) = (String::new(), [0; 4096]);
    while !said.contains(until) {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(len) => said += &String::from_utf8_lossy(&piece[..len]),
        }
    }
    said
}

/// A plain server that answers the first frame of one client, as an rpcx server echoes a heartbeat, and nothing after it.
pub(crate) fn silent_server() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut frame = vec![0; 16];
        client.read_exact(&mut frame).expect("a Hello");
        let length = u32::from_be_bytes(frame[12..].try_into().expect("four bytes")) as usize;
        frame.resize(16 + length, 0);
        client.read_exact(&mut frame[16..]).expect("all of it");
        frame[2] |= 0x80;
        client.write_all(&frame).expect("it listens");
        // Takes what comes until the client has gone.
        while client.read(&mut frame).is_ok_and(|n| n != 0) {}
    });
    address
}
