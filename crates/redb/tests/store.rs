//! The store does what every store must do, keeps its bounds, and outlives its process.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bothways::{
    store::{AppendError, EngineDown, Level, Log, NewEntry, Place, Store},
    testing::store::{StoreBed, store_checks},
};
use bothways_redb::{OpenError, RedbStore, StoreOptions};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("the system gives a folder")
}

fn mailbox(user: &str) -> Log {
    Log::Mailbox(user.to_owned())
}

fn letter(text: impl Into<bytes::Bytes>) -> NewEntry {
    NewEntry::new(text).with_time_to_live(Duration::from_secs(3600))
}

/// The suite of all stores, by the clock of the system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_store_must() {
    let options = StoreOptions::new().log_entries_max(50).log_bytes_max(64 << 20);
    let folder = folder();
    let running: Vec<_> = store_checks()
        .into_iter()
        .map(|check| {
            let store = RedbStore::open_with(folder.path().join(check.name()), options).expect("it is a new file");
            let store: Arc<dyn Store> = Arc::new(store);
            tokio::spawn(async move { check.run(StoreBed::new(options.limits(), move || Arc::clone(&store))).await })
        })
        .collect();
    assert!(12 <= running.len());
    for check in running {
        check.await.expect("it does");
    }
}

/// What is stored is there when the file is opened again, with its epoch, its keys and its cursors; the next sequence
/// is a later one.
#[tokio::test]
async fn a_file_is_opened_again() {
    let (folder, keep) = (folder(), Duration::from_secs(3600));
    let path = folder.path().join("mail");
    let store = RedbStore::open(&path).expect("it is a new file");
    let first = store.append(mailbox("ann"), letter("one").with_key("key")).await.expect("there is room");
    assert_eq!(first.level, Level::Synced);
    store.advance(mailbox("ann"), "phone".to_owned(), first.place, keep).await.expect("there is room");
    assert!(matches!(RedbStore::open(&path), Err(OpenError::InUse(_))), "one at a time");
    drop(store);

    let store = RedbStore::open(&path).expect("nobody has it open");
    let again = store.append(mailbox("ann"), letter("one").with_key("key")).await.expect("it is there");
    assert_eq!((again.place, again.repeated), (first.place, true));
    assert_eq!(store.cursor(mailbox("ann"), "phone".to_owned()).await, Ok(Some(first.place)));
    let second = store.append(mailbox("ann"), letter("two")).await.expect("there is room");
    assert_eq!(second.place.epoch, first.place.epoch);
    assert!(first.place < second.place);
    let page = store.read(mailbox("ann"), 0, 10).await.expect("it works");
    assert_eq!(page.entries, [(first.place, "one".into()), (second.place, "two".into())]);

    let other = RedbStore::open(folder.path().join("other")).expect("it is a new file");
    let elsewhere = other.append(mailbox("ann"), letter("one")).await.expect("there is room");
    assert_ne!(elsewhere.place.epoch, first.place.epoch, "another file is another life");
}

/// What is no such file is refused, and left as it is; and so is one that cannot be made.
#[tokio::test]
async fn what_cannot_be_opened_is_said() {
    let folder = folder();
    let path = folder.path().join("text");
    std::fs::write(&path, "no database at all".repeat(500)).expect("the folder is writable");
    let error = RedbStore::open(&path).expect_err("it is none");
    assert!(matches!(error, OpenError::File { .. }) && error.to_string().contains("text"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "no database at all".repeat(500));
    let error = RedbStore::open(folder.path().join("no").join("such")).expect_err("there is no folder");
    assert!(matches!(error, OpenError::File { .. }), "{error}");
}

/// What a process leaves that ends while it makes the file is told from a file of somebody else.
#[tokio::test]
async fn a_file_that_was_not_finished_is_said() {
    let folder = folder();
    let path = folder.path().join("mail");
    drop(RedbStore::open(&path).expect("it is a new file"));
    let mut bytes = std::fs::read(&path).expect("it is there");
    assert_eq!(&bytes[..4], b"redb", "what is written last");
    bytes[..9].fill(0);
    std::fs::write(&path, bytes).expect("the folder is writable");
    let error = RedbStore::open(&path).expect_err("it is not whole");
    assert!(matches!(&error, OpenError::Unfinished(file) if *file == path), "{error}");
    std::fs::remove_file(&path).expect("it is there");
    RedbStore::open(&path).expect("it is a new file");
}

#[cfg(unix)]
#[test]
fn nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;

    let folder = folder();
    let path = folder.path().join("mail");
    drop(RedbStore::open(&path).expect("it is a new file"));
    assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
}

/// All together have a bound in bytes, and one mailbox too: what goes beyond is refused, and refused again until there
/// is room. A history forgets its oldest instead.
#[tokio::test]
async fn it_has_bounds_in_bytes() {
    let folder = folder();
    let options = StoreOptions::new().bytes_max(64 << 10).log_bytes_max(16 << 10);
    let store = RedbStore::open_with(folder.path().join("mail"), options).expect("it is a new file");
    let append = async |log: Log| store.append(log, letter(vec![7; 1000])).await;

    let mut places = Vec::new();
    let refused = loop {
        match append(mailbox("ann")).await {
            Ok(stored) => places.push(stored.place),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, places.len()), (AppendError::Full, (16 << 10) / 1128));
    for _ in 0..100 {
        append(Log::History("news".to_owned())).await.expect("the oldest makes way");
    }
    let kept = store.read(Log::History("news".to_owned()), 0, 1000).await.expect("it works");
    assert_eq!(kept.entries.len(), (16 << 10) / 1128);

    let mut others = 0;
    while append(mailbox(&format!("user {others}"))).await.is_ok() {
        others += 1;
    }
    assert_eq!(others, (64 << 10) / 1128 - 2 * ((16 << 10) / 1128), "all of it is counted");
    let cursor = store.advance(mailbox("bob"), "d".to_owned(), places[0], Duration::MAX).await;
    assert_eq!(cursor, Err(EngineDown), "what is left is less than a cursor counts");
    store.trim(mailbox("ann"), places[0]).await.expect("it works");
    append(mailbox("ann")).await.expect("there is room again");
}

/// What is over gives its room back, although nobody asks for it.
#[tokio::test]
async fn what_is_over_makes_room() {
    let folder = folder();
    let options = StoreOptions::new().bytes_max(8 << 10);
    let store = RedbStore::open_with(folder.path().join("mail"), options).expect("it is a new file");
    let short = |user: &str| {
        let entry = NewEntry::new(vec![7; 1000]).with_time_to_live(Duration::from_millis(200)).with_key("key");
        store.append(mailbox(user), entry)
    };
    let mut stored = 0;
    while short(&format!("user {stored}")).await.is_ok() {
        stored += 1;
    }
    // Each has an entry of 1,128 bytes and a key of 131.
    assert_eq!(stored, (8 << 10) / (1128 + 131));
    let began = std::time::Instant::now();
    while store.append(mailbox("late"), letter(vec![7; 4000])).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "there is no room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.list(mailbox(""), 100).await.expect("it works"), [("late".to_owned(), 1)]);
}

/// Appends that come together share a sync: a thousand take far less than a thousand times one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_come_together_are_written_together() {
    let folder = folder();
    let store = RedbStore::open(folder.path().join("mail")).expect("it is a new file");
    let began = std::time::Instant::now();
    for number in 0..20 {
        store.append(mailbox("ann"), letter(number.to_string())).await.expect("there is room");
    }
    let alone = began.elapsed() / 20;

    let began = std::time::Instant::now();
    let appends: Vec<_> =
        (0..1000).map(|number| tokio::spawn(store.append(mailbox("bob"), letter(number.to_string())))).collect();
    for append in appends {
        append.await.expect("no panic").expect("there is room");
    }
    let together = began.elapsed() / 1000;
    println!("one alone {alone:?}, one of a thousand {together:?}");
    assert!(together * 3 < alone, "one alone {alone:?}, one of a thousand {together:?}");
}

/// Appends in the order in which they were begun are read in that order.
#[tokio::test]
async fn a_mailbox_keeps_its_order() {
    let folder = folder();
    let store = RedbStore::open(folder.path().join("mail")).expect("it is a new file");
    for number in 0..50_u32 {
        store.append(mailbox("ann"), letter(number.to_string())).await.expect("there is room");
    }
    let page = store.read(mailbox("ann"), 0, 100).await.expect("it works");
    let texts: Vec<String> =
        page.entries.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
    assert_eq!(texts, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
}

/// Where the child that is killed finds its file.
const CHILD: &str = "BOTHWAYS_REDB_CHILD";

/// Appends for ever, 16 at a time, and tells each place when it is said to be stored. Not a test: see below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_appends_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = RedbStore::open(path).expect("its former process is gone");
    let process = std::process::id();
    let writers: Vec<_> = (0..16)
        .map(|writer: u32| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0_u64.. {
                    let (user, text) = (format!("user {}", writer % 4), format!("{process} {writer} {number}"));
                    let appended = store.append(mailbox(&user), letter(text.clone())).await;
                    let Ok(stored) = appended else { panic!("{appended:?}") };
                    let Place { epoch, sequence } = stored.place;
                    // One write for each line.
                    let line = format!("\nstored {user}|{epoch}|{sequence}|{text}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent reads");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("it is killed before");
    }
}

/// Runs the child, and kills it when it has told of so many. Returns all that it told.
fn killed_after(path: &Path, lines: usize, told: &mut HashMap<(String, u64), (u64, String)>) -> usize {
    let mut child = Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", "child_that_appends_until_it_is_killed", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it can be run again");
    let mut count = 0;
    let out = BufReader::new(child.stdout.take().expect("it is piped"));
    for line in out.lines() {
        let line = line.expect("it is a text");
        if let Some(stored) = line.strip_prefix("stored ") {
            let parts: Vec<&str> = stored.split('|').collect();
            let [user, epoch, sequence, text] = parts[..] else { continue };
            let number = |text: &str| text.parse::<u64>().expect("a number");
            let before = told.insert((user.to_owned(), number(sequence)), (number(epoch), text.to_owned()));
            assert_eq!(before, None, "a place was given twice");
            count += 1;
        }
        if count == lines {
            // SIGKILL. What it has told before is read to the end.
            child.kill().expect("it runs");
        }
    }
    child.wait().expect("it ran");
    count
}

/// A process is killed fifty times, at any point of its writing: each place that was said to be stored has its entry.
#[tokio::test]
async fn what_is_stored_outlives_kill_9() {
    let folder = folder();
    let path = folder.path().join("mail");
    // The child's bounds are the defaults: its mailboxes are emptied when they are half full.
    let (mut told, mut all) = (HashMap::new(), 0);
    for round in 0..50_usize {
        // Without a random number: a failure is seen again.
        let count = killed_after(&path, 1 + (round * 37) % 190, &mut told);
        all += count;
        let store = RedbStore::open(&path).expect("it is mended");
        for user in 0..4 {
            let log = mailbox(&format!("user {user}"));
            let page = store.read(log.clone(), 0, 100_000).await.expect("it works");
            let mut found: HashMap<u64, (u64, String)> = HashMap::new();
            for (place, bytes) in &page.entries {
                found.insert(place.sequence, (place.epoch, String::from_utf8_lossy(bytes).into_owned()));
            }
            told.retain(|(of, sequence), stored| {
                let is_here = *of == format!("user {user}");
                if is_here {
                    assert_eq!(found.get(sequence), Some(&*stored), "round {round}: {of} {sequence}");
                }
                !is_here
            });
            if let Some(last) = page.last.filter(|_| 500 < page.entries.len()) {
                store.trim(log, last).await.expect("it works");
            }
        }
        assert!(told.is_empty());
    }
    println!("{all} entries were said to be stored, and are there");
    assert!(50 * 20 < all, "{all}");
}
