//! What every store must do: one suite, which runs over any [`Store`].
//!
//! A crate with a store of its own runs it in its tests:
//!
//! ```
//! # #[cfg(feature = "cluster-memory")]
//! bothways::testing::run(async {
//!     use bothways::{
//!         cluster::{Engine, memory::MemoryBroker},
//!         testing::store::{StoreBed, store_checks},
//!     };
//!
//!     for check in store_checks() {
//!         let broker = MemoryBroker::new();
//!         check.run(StoreBed::new(broker.engine().limits(), move || broker.engine())).await;
//!     }
//! });
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    session::SessionId,
    store::{AppendError, BoxFuture, EngineLimits, Log, NewEntry, PAGE_BYTES, Place, READER_BYTES_MAX, Store},
};

/// A store under test, which nobody else uses.
pub struct StoreBed {
    limits: EngineLimits,
    make: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
}

impl std::fmt::Debug for StoreBed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreBed").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl StoreBed {
    /// `make` gives one more way to the same store, which has these limits.
    pub fn new(limits: EngineLimits, make: impl Fn() -> Arc<dyn Store> + Send + Sync + 'static) -> Self {
        Self { limits, make: Box::new(make) }
    }

    fn node(&self) -> Arc<dyn Store> {
        (self.make)()
    }
}

/// One thing that every store must do.
pub struct StoreCheck {
    name: &'static str,
    run: fn(StoreBed) -> BoxFuture<()>,
}

impl std::fmt::Debug for StoreCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl StoreCheck {
    /// What it must do.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it over a store of its own. No check takes longer than a minute.
    ///
    /// # Panics
    /// The store does something else.
    pub async fn run(&self, bed: StoreBed) {
        let most = Duration::from_secs(60);
        assert!(timeout(most, (self.run)(bed)).await.is_ok(), "{}: not within {most:?}", self.name);
    }
}

/// All of them.
pub fn store_checks() -> Vec<StoreCheck> {
    macro_rules! checks {
        ($($name:ident),* $(,)?) => {
            vec![$(StoreCheck { name: stringify!($name), run: |bed| Box::pin($name(bed)) }),*]
        };
    }
    checks![
        a_log_is_read_from_any_place,
        a_page_has_a_bound_in_bytes,
        a_large_entry_is_refused,
        what_is_appended_together_keeps_its_order,
        a_key_is_stored_once_in_its_log,
        a_full_mailbox_refuses_and_forgets_no_key,
        a_full_history_forgets_the_oldest,
        an_entry_ends_with_its_time,
        a_log_is_trimmed_and_one_entry_removed,
        logs_are_listed_by_kind_and_name,
        a_cursor_goes_forward_only,
        a_cursor_ends_with_its_time,
    ]
}

const SOON: Duration = Duration::from_secs(5);

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn a_log_is_read_from_any_place(bed: StoreBed) {
    let (one, other, log) = (bed.node(), bed.node(), Log::History("news.sport".to_owned()));
    assert_eq!(other.read(log.clone(), 0, 10).await.expect("the engine works").last, None);
    let mut places = Vec::new();
    for number in 0..10_u8 {
        let stored = one.append(log.clone(), NewEntry::new(vec![number])).await.expect("there is room");
        assert!(!stored.repeated);
        assert_eq!(stored.level, bed.limits.level);
        places.push(stored.place);
    }
    assert!(places.is_sorted() && places.windows(2).all(|pair| pair[0] != pair[1]), "{places:?}");
    let all = other.read(log.clone(), 0, 100).await.expect("the engine works");
    assert_eq!(all.last, places.last().copied());
    let expected: Vec<(Place, Bytes)> = places.iter().copied().zip((0..10).map(|n| Bytes::from(vec![n]))).collect();
    assert_eq!(all.entries, expected);
    let some = other.read(log.clone(), places[3].sequence, 4).await.expect("the engine works");
    assert_eq!((some.entries, some.last), (expected[4..8].to_vec(), places.last().copied()));
    let nothing = other.read(log, places[9].sequence, 4).await.expect("the engine works");
    assert!(nothing.entries.is_empty());
    let another = Log::History("news.weather".to_owned());
    assert!(other.read(another, 0, 10).await.expect("the engine works").entries.is_empty(), "another topic's");
}

async fn what_is_appended_together_keeps_its_order(bed: StoreBed) {
    let one = bed.node();
    for log in [Log::Mailbox, Log::History, Log::Dead].map(|log| log("ann".to_owned())) {
        let entry = |number: usize| NewEntry::new(number.to_string()).with_time_to_live(SOON * 12);
        let entries = (0..20).map(|number| entry(number % 19).with_key((number % 19).to_string()));
        let large = NewEntry::new(vec![0; bed.limits.message_bytes_max + 1]);
        let entries = entries.chain([large, entry(20)]).collect();
        let stored = one.append_all(log.clone(), entries).await;
        assert_eq!(stored.len(), 22);
        assert_eq!(stored[20], Err(AppendError::TooLarge), "one that fails does not keep the next from being appended");
        let again = stored[19].expect("it is there");
        assert_eq!((again.repeated, Ok(again.place)), (true, stored[0].map(|stored| stored.place)));
        let places: Vec<Place> =
            stored.iter().flatten().filter(|stored| !stored.repeated).map(|stored| stored.place).collect();
        assert!(places.len() == 20 && places.is_sorted(), "{places:?}");
        let page = one.read(log.clone(), 0, 100).await.expect("the store works");
        assert_eq!(page.entries.iter().map(|(place, _)| *place).collect::<Vec<_>>(), places);
        assert_eq!(page.entries[19].1, text("20"));

        // None of these is known, too large, or the same as another one.
        let entries = (30..50).map(|number| entry(number).with_key(number.to_string()));
        let stored = one.append_all(log.clone(), entries.clone().collect()).await;
        let places: Vec<Place> = stored.iter().flatten().map(|stored| stored.place).collect();
        assert!(places.len() == 20 && stored.iter().flatten().all(|stored| !stored.repeated), "{stored:?}");
        let page =
            one.read(log.clone(), page.last.map_or(0, |last| last.sequence), 100).await.expect("the store works");
        let expected: Vec<(Place, Bytes)> =
            places.iter().copied().zip((30..50).map(|number: usize| text(&number.to_string()))).collect();
        assert_eq!(page.entries, expected, "each stands where it is said to");
        let again = one.append_all(log.clone(), entries.collect()).await;
        assert_eq!(again.iter().flatten().map(|stored| stored.place).collect::<Vec<_>>(), places);
        assert!(again.iter().flatten().all(|stored| stored.repeated), "{again:?}");
        assert!(one.append_all(log, Vec::new()).await.is_empty());
    }
}

async fn a_key_is_stored_once_in_its_log(bed: StoreBed) {
    let one = bed.node();
    let (ann, bob) = (Log::Mailbox("ann".to_owned()), Log::Mailbox("bob".to_owned()));
    let entry = || NewEntry::new("letter").with_key("key");
    let first = one.append(ann.clone(), entry()).await.expect("there is room");
    let again = one.append(ann.clone(), entry()).await.expect("it is there");
    assert!(!first.repeated && again.repeated);
    let of_bob = one.append(bob.clone(), entry()).await.expect("there is room");
    assert!(!of_bob.repeated, "a key is that of its log");
    for log in [ann, bob] {
        assert_eq!(one.read(log, 0, 10).await.expect("the engine works").entries.len(), 1);
    }
}

async fn a_full_mailbox_refuses_and_forgets_no_key(bed: StoreBed) {
    let (one, log) = (bed.node(), Log::Mailbox("ann".to_owned()));
    let most = bed.limits.mailbox_entries_max;
    for number in 0..most {
        let entry = NewEntry::new(number.to_string()).with_time_to_live(SOON);
        one.append(log.clone(), entry).await.expect("there is room");
    }
    let entry = || NewEntry::new("one more").with_key("key");
    assert_eq!(one.append(log.clone(), entry()).await, Err(AppendError::Full));
    let page = one.read(log.clone(), 0, most + 1).await.expect("the engine works");
    assert_eq!((page.entries.len(), &page.entries[0].1[..]), (most, &b"0"[..]), "nothing was forgotten");
    let began = Instant::now();
    let stored = loop {
        match one.append(log.clone(), entry()).await {
            Ok(stored) => break stored,
            Err(error) => assert!(error == AppendError::Full && began.elapsed() < 3 * SOON, "{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert!(!stored.repeated, "what was refused has not taken its key");
}

async fn a_full_history_forgets_the_oldest(bed: StoreBed) {
    let (one, log) = (bed.node(), Log::History("news".to_owned()));
    let most = bed.limits.history_entries_max;
    for number in 0..most + 2 {
        one.append(log.clone(), NewEntry::new(number.to_string())).await.expect("the oldest makes way");
    }
    let page = one.read(log, 0, most + 2).await.expect("the engine works");
    assert_eq!((page.entries.len(), &page.entries[0].1[..]), (most, &b"2"[..]));
}

async fn an_entry_ends_with_its_time(bed: StoreBed) {
    let (one, log) = (bed.node(), Log::Parked(SessionId::next()));
    one.append(log.clone(), NewEntry::new("short").with_time_to_live(Duration::from_secs(1))).await.expect("room");
    let stays = one.append(log.clone(), NewEntry::new("long").with_time_to_live(SOON * 12)).await.expect("room");
    let began = Instant::now();
    loop {
        let page = one.read(log.clone(), 0, 10).await.expect("the engine works");
        if page.entries == [(stays.place, text("long"))] {
            break;
        }
        assert!(began.elapsed() < SOON, "{page:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn a_page_has_a_bound_in_bytes(bed: StoreBed) {
    let (one, log) = (bed.node(), Log::Mailbox("ann".to_owned()));
    let size = bed.limits.message_bytes_max;
    let count = PAGE_BYTES / size + 3;
    for number in 0..count {
        let bytes = vec![u8::try_from(number % 256).expect("a byte"); size];
        one.append(log.clone(), NewEntry::new(bytes).with_time_to_live(SOON * 12)).await.expect("there is room");
    }
    let (mut after, mut got) = (0, 0);
    while got < count {
        let page = one.read(log.clone(), after, count).await.expect("the store works");
        let bytes: usize = page.entries.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(!page.entries.is_empty() && bytes < PAGE_BYTES + size, "{} entries", page.entries.len());
        for (place, bytes) in page.entries {
            assert_eq!((bytes.len(), usize::from(bytes[0])), (size, got % 256));
            (after, got) = (place.sequence, got + 1);
        }
    }
}

async fn a_large_entry_is_refused(bed: StoreBed) {
    let large = NewEntry::new(vec![0; bed.limits.message_bytes_max + 1]);
    let refused = bed.node().append(Log::Mailbox("ann".to_owned()), large).await;
    assert_eq!(refused, Err(AppendError::TooLarge));
}

async fn a_log_is_trimmed_and_one_entry_removed(bed: StoreBed) {
    let (one, log, other) = (bed.node(), Log::Mailbox("ann".to_owned()), Log::Mailbox("bob".to_owned()));
    let entry = |number: usize| NewEntry::new(number.to_string()).with_key(format!("key {number}"));
    let mut places = Vec::new();
    for number in 0..6 {
        let stored = one.append(log.clone(), entry(number).with_time_to_live(SOON * 12)).await.expect("room");
        places.push(stored.place);
    }
    one.append(other.clone(), entry(0).with_time_to_live(SOON * 12)).await.expect("there is room");

    let left = async || {
        let page = one.read(log.clone(), 0, 10).await.expect("the store works");
        page.entries.into_iter().map(|(place, _)| place).collect::<Vec<Place>>()
    };
    let elsewhere = Place { epoch: places[5].epoch.wrapping_add(1), ..places[5] };
    assert_eq!(one.trim(log.clone(), elsewhere).await, Ok(()));
    assert_eq!(one.remove(log.clone(), elsewhere).await, Ok(false));
    assert_eq!(left().await, places, "that was another epoch");

    assert_eq!(one.trim(log.clone(), places[1]).await, Ok(()));
    assert_eq!(left().await, places[2..]);
    assert_eq!(one.remove(log.clone(), places[3]).await, Ok(true));
    assert_eq!(one.remove(log.clone(), places[3]).await, Ok(false));
    assert_eq!(left().await, [places[2], places[4], places[5]]);
    assert_eq!(one.remove(log.clone(), places[5]).await, Ok(true));
    let after_last = one.read(log.clone(), places[4].sequence, 10).await.expect("the store works");
    assert!(after_last.entries.is_empty(), "a page without entries is the end, wherever the last one was");
    let again = one.append(log.clone(), entry(1).with_time_to_live(SOON * 12)).await.expect("it is known");
    assert!(again.repeated, "what is forgotten leaves its key");
    assert_eq!(one.trim(log.clone(), places[5]).await, Ok(()));
    assert!(left().await.is_empty());
    let behind = one.read(log.clone(), places[3].sequence, 10).await.expect("the store works");
    assert!(behind.entries.is_empty(), "an empty page is the end, although a last place may be named");
    let last = one.append(log.clone(), entry(9).with_time_to_live(SOON * 12)).await.expect("there is room");
    assert!(places[5] < last.place, "sequences go on");
    let of_bob = one.read(other, 0, 10).await.expect("the store works");
    assert_eq!(of_bob.entries.len(), 1, "another log is as it was");
}

async fn logs_are_listed_by_kind_and_name(bed: StoreBed) {
    let one = bed.node();
    let append = async |log: Log| {
        one.append(log, NewEntry::new("x").with_time_to_live(SOON * 12)).await.expect("there is room").place
    };
    let names = ["ann", "ann b", "bob", "c.*>", "\u{e4}"];
    for name in names {
        append(Log::Mailbox(name.to_owned())).await;
    }
    append(Log::Mailbox("bob".to_owned())).await;
    append(Log::Dead("dan".to_owned())).await;
    append(Log::History("news".to_owned())).await;

    let list = async |after: Log, max| one.list(after, max).await.expect("the store works");
    let of = |name: &str, count| (name.to_owned(), count);
    let all = [of("ann", 1), of("ann b", 1), of("bob", 2), of("c.*>", 1), of("\u{e4}", 1)];
    assert_eq!(list(Log::Mailbox(String::new()), 10).await, all);
    assert_eq!(list(Log::Mailbox(String::new()), 2).await, all[..2]);
    assert_eq!(list(Log::Mailbox("ann b".to_owned()), 2).await, all[2..4]);
    assert_eq!(list(Log::Dead(String::new()), 10).await, [of("dan", 1)]);
}

async fn a_cursor_goes_forward_only(bed: StoreBed) {
    let (one, other, log) = (bed.node(), bed.node(), Log::Mailbox("ann".to_owned()));
    let (of_bob, keep) = (Log::Mailbox("bob".to_owned()), SOON * 12);
    let of_others = [Log::Dead("ann".to_owned()), Log::ParkedOf("ann".to_owned())];
    let at = |sequence| Place { epoch: 7, sequence };
    let name = || "phone".to_owned();
    assert_eq!(one.cursor(log.clone(), name()).await, Ok(None));
    assert_eq!(one.advance(log.clone(), name(), at(5), keep).await, Ok(at(5)));
    assert_eq!(other.advance(log.clone(), name(), at(3), keep).await, Ok(at(5)), "never back");
    assert_eq!(other.advance(log.clone(), name(), at(9), keep).await, Ok(at(9)));
    assert_eq!(one.cursor(log.clone(), name()).await, Ok(Some(at(9))));
    let anew = Place { epoch: 8, sequence: 1 };
    assert_eq!(one.advance(log.clone(), name(), anew, keep).await, Ok(anew), "another epoch begins anew");
    let none = Place { epoch: 0, sequence: 0 };
    assert_eq!(one.advance(log.clone(), name(), none, keep).await, Ok(anew), "epoch 0 only makes one");
    // A client names its device: any text.
    let laptop = "a laptop.*>\u{e4}".to_owned();
    assert_eq!(one.cursor(log.clone(), laptop.clone()).await, Ok(None));
    assert_eq!(one.cursor(of_bob.clone(), name()).await, Ok(None));
    assert_eq!(one.advance(log.clone(), laptop.clone(), none, keep).await, Ok(none), "it begins");
    assert_eq!(one.advance(log.clone(), laptop.clone(), at(2), keep).await, Ok(at(2)));
    assert_eq!(one.advance(of_bob.clone(), name(), at(1), keep).await, Ok(at(1)));
    for of in &of_others {
        assert_eq!(one.cursors(of.clone()).await, Ok(Vec::new()), "{of}: it has none of its own");
        assert_eq!(one.advance(of.clone(), name(), at(4), keep).await, Ok(at(4)));
    }
    let mut all = other.cursors(log.clone()).await.expect("the store works");
    all.sort();
    assert_eq!(all, [(laptop, at(2)), (name(), anew)]);
    for of in of_others {
        assert_eq!(other.cursors(of.clone()).await, Ok(vec![(name(), at(4))]), "{of}");
    }
    let long = "x".repeat(READER_BYTES_MAX);
    assert_eq!(one.advance(log.clone(), long.clone(), at(1), keep).await, Ok(at(1)));
    assert!(one.advance(log, long + "x", at(1), keep).await.is_err(), "such a name is too long");
}

async fn a_cursor_ends_with_its_time(bed: StoreBed) {
    let (one, log) = (bed.node(), Log::Mailbox("ann".to_owned()));
    let at = Place { epoch: 7, sequence: 5 };
    one.advance(log.clone(), "short".to_owned(), at, Duration::from_secs(1)).await.expect("the store works");
    one.advance(log.clone(), "long".to_owned(), at, SOON * 12).await.expect("the store works");
    let began = Instant::now();
    while one.cursor(log.clone(), "short".to_owned()).await.expect("the store works").is_some() {
        assert!(began.elapsed() < SOON, "it is still there");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(one.cursors(log).await.expect("the store works"), [("long".to_owned(), at)]);
}
