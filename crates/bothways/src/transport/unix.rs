//! Unix domain sockets: the socket, listening on a file, connecting to one.

use std::{
    fs::{self, TryLockError},
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};

use super::{Accepted, Address, AnySocket, ConnectOptions, Listen, ListenOptions, OsSocket, Transport, peer::Peer};
use crate::reply::BoxFuture;

/// A connection through a Unix domain socket. Its peer is `unix@` and the path; behind the peer of an accepted socket,
/// which has no name, stands a number of its own.
pub type UnixSocket = OsSocket<UnixStream, Peer>;

impl OsSocket<UnixStream, Peer> {
    /// Takes over a connection that was made elsewhere; `address` is the listener's, in rpcx's form.
    pub fn new(stream: UnixStream, address: impl Into<String>) -> Self {
        Self::of(stream, Peer::Listener(address.into().into()))
    }
}

/// The network `unix`.
pub(super) struct Unix;

impl Transport for Unix {
    fn networks(&self) -> &[&str] {
        &["unix"]
    }

    fn connect(&self, address: &Address, _: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        let address = address.clone();
        Box::pin(async move { Ok(connect(&address).await?.into()) })
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let (address, options) = (address.clone(), options.clone());
        Box::pin(async move { Ok(Box::new(Listening::bind(&address, &options).await?) as Box<dyn Listen>) })
    }
}

/// Listens on a file, and removes it when dropped.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    address: Arc<str>,
    /// What to remove at the end; nothing in the abstract namespace.
    _file: Option<OwnFile>,
}

impl Listening {
    /// A file that nobody listens on, left by a process that was killed, is replaced. A file that is no
    /// socket is not touched.
    pub(super) async fn bind(address: &Address, options: &ListenOptions) -> io::Result<Self> {
        let path = system_path(address.target());
        if is_abstract(address.target()) {
            let listener = listen(&path, options)?;
            return Ok(Self { listener, address: address.to_string().into(), _file: None });
        }
        // Looking, removing, binding and listening are one step for all who start here: no await before it is done.
        let _lock = lock_folder(&path).await?;
        let listener = match listen(&path, options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(&path)? => {
                fs::remove_file(&path)?;
                listen(&path, options)
            }
            result => result,
        }?;
        let file = Some(OwnFile::new(path)?);
        Ok(Self { listener, address: address.to_string().into(), _file: file })
    }

    /// Goes on with a socket that listens already. Its file is not ours to remove.
    pub(super) fn adopt(listener: StdListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let place = listener.local_addr()?;
        let address = match place.as_pathname() {
            Some(path) => format!("unix@{}", path.display()),
            None => "unix@".to_owned(),
        };
        Ok(Self { listener: UnixListener::from_std(listener)?, address: address.into(), _file: None })
    }

    fn poll_socket(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixSocket>> {
        let accepted = self.listener.poll_accept(cx);
        accepted.map_ok(|(stream, _)| UnixSocket::of(stream, Peer::next_client(Arc::clone(&self.address))))
    }
}

impl Listen for Listening {
    fn local_address(&self) -> String {
        self.address.to_string()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.poll_socket(cx).map_ok(Accepted::new)
    }
}

fn listen(path: &Path, options: &ListenOptions) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    UnixListener::from_std(socket.into())
}

/// True if the path is a socket that nobody listens on. Asks without waiting: a full queue has a listener.
fn is_stale(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let asked = socket.connect(&SockAddr::unix(path)?);
            Ok(asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
        }
        _ => Ok(false),
    }
}

/// The lock of a socket's folder, while its file is taken or removed. The system gives it back with a process that
/// ends. `None`: the folder cannot be locked, and a server that starts at the same moment may get in between.
fn try_lock_folder(path: &Path) -> Result<Option<fs::File>, TryLockError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(folder) = fs::File::open(parent) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// As [`try_lock_folder`], with patience: others have it for a moment only.
async fn lock_folder(path: &Path) -> io::Result<Option<fs::File>> {
    const PAUSE: Duration = Duration::from_millis(2);
    const TRIES: u32 = 2500;
    for _ in 0..TRIES {
        match try_lock_folder(path) {
            Ok(lock) => return Ok(lock),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    let text = format!("another program keeps the folder of {} locked", path.display());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// A socket's file. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    id: (u64, u64),
}

impl OwnFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let id = Self::id(&path)?;
        // The working directory may change until the end.
        Ok(Self { path: std::path::absolute(path)?, id })
    }

    fn id(path: &Path) -> io::Result<(u64, u64)> {
        let metadata = fs::symlink_metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // A server that starts now may be about to take its place. Held for a moment only, and never over an await.
        let lock = (0..50).find_map(|_| {
            let lock = try_lock_folder(&self.path);
            if lock.is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            lock.ok()
        });
        let _lock = lock;
        if Self::id(&self.path).is_ok_and(|id| id == self.id) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to a file. While the listener's queue is full the system says so at once and has no way to
/// wait, so this asks again, until the caller's time is over.
async fn connect(address: &Address) -> io::Result<UnixSocket> {
    const PAUSE: Duration = Duration::from_millis(10);
    let path = system_path(address.target());
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok(UnixSocket::new(stream, address.to_string())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// The path as the system takes it: a name in the abstract namespace starts with a zero byte.
fn system_path(target: &str) -> PathBuf {
    match target.strip_prefix('@') {
        Some(name) if is_abstract(target) => format!("\0{name}").into(),
        _ => target.into(),
    }
}

/// True for `@name`, on systems that have such names.
fn is_abstract(target: &str) -> bool {
    cfg!(any(target_os = "android", target_os = "linux")) && target.starts_with('@')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::transport::{Socket, check};

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn address(path: impl AsRef<Path>) -> Address {
        format!("unix@{}", path.as_ref().display()).parse().expect("an address")
    }

    async fn bind(path: impl AsRef<Path>) -> io::Result<Listening> {
        Listening::bind(&address(path), &ListenOptions::default()).await
    }

    async fn accept(listening: &Listening) -> io::Result<UnixSocket> {
        std::future::poll_fn(|cx| listening.poll_socket(cx)).await
    }

    async fn pair_at(path: impl AsRef<Path>) -> (UnixSocket, UnixSocket) {
        let listening = bind(&path).await.expect("listens");
        let client = connect(&address(&path)).await.expect("connects");
        (client, accept(&listening).await.expect("accepts"))
    }

    async fn pair() -> (UnixSocket, UnixSocket) {
        pair_at(folder().path().join("socket")).await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn bytes_arrive_in_order_both_ways(plans in check::plans()) {
            check::run(async {
                let (client, server) = pair().await;
                check::exchange(client, server, plans).await;
            });
        }
    }

    #[tokio::test]
    async fn a_full_socket_blocks_and_wakes_its_task_when_there_is_room() {
        let (client, server) = pair().await;
        check::fill_then_drain(client, server).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (client, server) = pair().await;
        check::half_close(client, server).await;
    }

    #[tokio::test]
    async fn peers_are_named_by_the_path() {
        let folder = folder();
        let address = address(folder.path().join("socket")).to_string();
        let (client, server) = pair_at(folder.path().join("socket")).await;
        assert_eq!(client.peer(), address);
        assert!(server.peer().starts_with(&format!("{address}#")), "{}", server.peer());
    }

    #[tokio::test]
    async fn the_file_goes_with_its_listener() {
        let folder = folder();
        let path = folder.path().join("socket");
        let listening = bind(&path).await.expect("listens");
        assert!(path.exists());
        drop(listening);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_took_its_place_stays() {
        let folder = folder();
        let path = folder.path().join("socket");
        let first = bind(&path).await.expect("listens");
        fs::rename(&path, folder.path().join("moved")).expect("renames");
        let _second = bind(&path).await.expect("listens");
        drop(first);
        assert!(path.exists());
    }

    /// The standard library's listener leaves its file, as a process does that is killed.
    #[tokio::test]
    async fn a_file_that_nobody_listens_on_is_replaced() {
        let folder = folder();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("listens"));
        assert!(path.exists());
        let (client, server) = pair_at(&path).await;
        check::half_close(client, server).await;
    }

    /// Of many that start at once over a file that was left behind, one listens, and all others are told so: nobody
    /// listens where nobody can reach it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_that_start_at_once_one_listens() {
        let folder = folder();
        for round in 0..100 {
            let path = folder.path().join(format!("socket {round}"));
            drop(std::os::unix::net::UnixListener::bind(&path).expect("listens"));
            let starting: Vec<_> = (0..4).map(|_| tokio::spawn(bind(path.clone()))).collect();
            let mut listening = Vec::new();
            for start in starting {
                match start.await.expect("no panic") {
                    Ok(one) => listening.push(one),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
                }
            }
            assert_eq!(listening.len(), 1, "in round {round}");
            let found = fs::symlink_metadata(&path).expect("it is there");
            assert_eq!(listening[0]._file.as_ref().map(|file| file.id), Some((found.dev(), found.ino())));
            connect(&address(&path)).await.expect("it is reached");
        }
    }

    #[tokio::test]
    async fn a_file_in_use_is_an_error_and_stays_in_use() {
        let folder = folder();
        let path = folder.path().join("socket");
        let first = bind(&path).await.expect("listens");
        assert_eq!(bind(&path).await.expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        let _probe = accept(&first).await.expect("the second one's question");
        connect(&address(&path)).await.expect("the first one listens");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_touched() {
        let folder = folder();
        let path = folder.path().join("data");
        fs::write(&path, "precious").expect("writes");
        assert_eq!(bind(&path).await.expect_err("is no socket").kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).expect("is there"), b"precious");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_abstract_name_leaves_no_file() {
        let name = format!("@bothways-test-{}", std::process::id());
        let (client, server) = pair_at(&name).await;
        assert!(!Path::new(&name).exists());
        check::half_close(client, server).await;
    }

    /// A full queue is waited for, and the wait has no end of its own.
    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_full_queue_is_waited_for() {
        let folder = folder();
        let address = address(folder.path().join("socket"));
        let listening = Listening::bind(&address, &ListenOptions::default().backlog(1)).await.expect("listens");
        let mut waiting = Vec::new();
        let second = Duration::from_secs(1);
        while let Ok(client) = tokio::time::timeout(second, connect(&address)).await {
            waiting.push(client.expect("connects"));
        }
        assert!(!waiting.is_empty());
        let (client, _) = tokio::join!(connect(&address), accept(&listening));
        client.expect("connects");
    }
}
