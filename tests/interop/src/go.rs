//! Finds Go, and builds its programs once a run.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// The first build fetches rpcx and compiles it all.
const BUILD_LIMIT: Duration = Duration::from_secs(300);

/// The Go programs, built.
#[derive(Clone, Copy, Debug)]
pub struct Go {
    folder: &'static Path,
}

impl Go {
    /// The program of this name under `go/cmd`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The folder in which the Go programs are built already. Without it each test process builds them again, which
/// is a second or two if nothing has changed.
const BUILT_BEFORE: &str = "BOTHWAYS_GO_PROGRAMS";

/// Go's programs; `None` where there is no Go, and then the test that asks is to pass, and says so.
///
/// # Panics
/// If there is no Go and the variable `CI` is set: there, a test that did not run has not passed. If the
/// programs cannot be built.
pub fn go() -> Option<Go> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(build);
    if folder.is_none() {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{test}: CI is set and there is no `go`");
        println!("skipped: no go ({test})");
    }
    folder.as_deref().map(|folder| Go { folder })
}

/// Cargo's target folder.
pub fn target_folder() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a path");
    let marked = exe.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    marked.map_or_else(std::env::temp_dir, Path::to_path_buf)
}

fn build() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(BUILT_BEFORE) {
        return Some(folder.into());
    }
    let version = Command::new("go").arg("version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        return None;
    }
    let folder = target_folder().join("interop-go");
    std::fs::create_dir_all(&folder).expect("the target folder can be written to");
    // Other test programs may build at the same time.
    let lock = File::create(folder.join(".lock")).expect("the target folder can be written to");
    lock.lock().expect("files can be locked");

    let log = folder.join("build.log");
    let mut go = Command::new("go")
        .args(["build", "-o"])
        .arg(&folder)
        .arg("./cmd/...")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/go"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("the target folder can be written to"))
        .spawn()
        .expect("go started a moment ago");
    let deadline = Instant::now() + BUILD_LIMIT;
    let status = loop {
        if let Some(status) = go.try_wait().expect("it is our child") {
            break status;
        }
        if deadline < Instant::now() {
            let _ = go.kill();
            panic!("`go build` took more than {BUILD_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        let mut said = String::new();
        let _ = File::open(&log).and_then(|mut log| log.read_to_string(&mut said));
        panic!("`go build` failed: {said}");
    }
    Some(folder)
}
