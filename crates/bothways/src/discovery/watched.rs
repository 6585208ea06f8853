//! A source of lists that may fail: it is watched again, with back-off.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::ServerEntry;
use crate::{
    calm::{Calm, Said, tell},
    clock::{backoff, spread},
    guard::Guarded,
    reply::BoxFuture,
};

/// The pause after the first failure; it doubles with each further one. Half of each pause is random.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A source that was well for so long begins with the shortest pause again.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// Why a source of lists failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct DiscoveryError(Arc<str>);

impl DiscoveryError {
    /// An error with this text.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string().into())
    }
}

impl From<std::io::Error> for DiscoveryError {
    fn from(error: std::io::Error) -> Self {
        Self::new(error)
    }
}

impl From<&str> for DiscoveryError {
    fn from(why: &str) -> Self {
        Self::new(why)
    }
}

impl From<String> for DiscoveryError {
    fn from(why: String) -> Self {
        Self(why.into())
    }
}

/// Begins to watch the source.
pub(crate) type Watch = Arc<dyn Fn(ListSink) -> BoxFuture<Result<(), DiscoveryError>> + Send + Sync>;

/// The lists of a service, as a [`Discovery`](super::Discovery) has them.
#[must_use]
pub struct Lists {
    pub(crate) lists: watch::Receiver<Arc<[ServerEntry]>>,
    pub(crate) source: Option<Source>,
}

/// What must be watched for there to be lists.
pub(crate) struct Source {
    watch: Watch,
    sink: ListSink,
}

impl Lists {
    /// Lists that this process has already: the one of now and, through the receiver, each that follows. The next call
    /// goes by the newest one.
    pub fn known(lists: watch::Receiver<Arc<[ServerEntry]>>) -> Self {
        Self { lists, source: None }
    }

    /// Lists of a source that must be watched, and may fail. `watch` makes the future that watches it: it tells each
    /// list to the [`ListSink`], and runs for as long as there may be more.
    ///
    /// If it returns an error, or panics, it is made again after a pause: 100 ms, then twice as long each time, up to
    /// 30 s, half of it random. Meanwhile the last list counts.
    /// [`ConnectionEvent::DiscoveryFailed`](crate::ConnectionEvent::DiscoveryFailed) reports each failure, and the log
    /// at most one in 10 s. If it returns `Ok(())`, its last list is final.
    pub fn watched<F, Fut>(watch: F) -> Self
    where
        F: Fn(ListSink) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), DiscoveryError>> + Send + 'static,
    {
        let sink = ListSink { lists: watch::Sender::default() };
        let lists = sink.lists.subscribe();
        let watch: Watch = Arc::new(move |sink| Box::pin(watch(sink)));
        Self { lists, source: Some(Source { watch, sink }) }
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lists").field("now", &*self.lists.borrow()).field("watched", &self.source.is_some()).finish()
    }
}

/// Where a source reports its lists. A clone reports to the same place.
#[derive(Clone, Debug)]
pub struct ListSink {
    lists: watch::Sender<Arc<[ServerEntry]>>,
}

impl ListSink {
    /// From now on these servers and no others. An address that comes twice counts once, with the later metadata. A list
    /// that is the same as the one before changes nothing.
    pub fn set<E: Into<ServerEntry>>(&self, servers: impl IntoIterator<Item = E>) {
        let mut list: Vec<ServerEntry> = Vec::new();
        let mut places = HashMap::new();
        for server in servers {
            let server = server.into();
            let place = *places.entry(server.address().to_owned()).or_insert(list.len());
            match list.get_mut(place) {
                Some(earlier) => *earlier = server,
                None => list.push(server),
            }
        }
        // The first list is one, also if it is empty.
        let is_first = self.lists.borrow().is_empty();
        self.lists.send_if_modified(|before| {
            let is_new = is_first || **before != *list;
            *before = list.into();
            is_new
        });
    }
}

impl Source {
    /// Watches the source, again and again, until it has ended or nobody follows its lists. `failed` is told of each
    /// failure.
    pub(crate) async fn keep_watching(self, failed: impl Fn(&DiscoveryError)) {
        let (mut failures, told) = (0, Calm::default());
        loop {
            let began = Instant::now();
            let error = match self.watch_once().await {
                Ok(()) => break,
                Err(error) => error,
            };
            if WELL_AFTER <= began.elapsed() {
                failures = 0;
            }
            tell!(told, warn, error = %Said(&error), "a discovery failed: its last list is kept, and it is tried again");
            failed(&error);
            sleep(backoff(PAUSE_MIN, PAUSE_MAX, failures, spread(0.5))).await;
            failures = failures.saturating_add(1);
        }
        // The last list stays for as long as anyone goes by it.
        self.sink.lists.closed().await;
    }

    async fn watch_once(&self) -> Result<(), DiscoveryError> {
        let watching = Guarded::begin(|| (self.watch)(self.sink.clone()));
        let outcome = match watching {
            Ok(watching) => watching.await,
            Err(panicked) => Err(panicked),
        };
        outcome.unwrap_or_else(|panicked| Err(DiscoveryError::new(format_args!("it panicked: {}", panicked.text()))))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn addresses(lists: &watch::Receiver<Arc<[ServerEntry]>>) -> Vec<String> {
        lists.borrow().iter().map(|entry| entry.address().to_owned()).collect()
    }

    /// An address that comes twice counts once, and a list that says nothing new wakes nobody.
    #[test]
    fn repeats_are_left_out() {
        let Lists { mut lists, source } = Lists::watched(|_| async { Ok(()) });
        let sink = source.expect("it is watched").sink;
        sink.set([("tcp@a:1", "weight=1"), ("tcp@b:1", ""), ("tcp@a:1", "weight=7")]);
        assert_eq!(addresses(&lists), ["tcp@a:1", "tcp@b:1"]);
        assert_eq!(lists.borrow_and_update()[0].metadata().get("weight"), Some("7"));
        sink.set([("tcp@a:1", "weight=7"), ("tcp@b:1", "")]);
        assert!(!lists.has_changed().expect("the sink lives"));
        sink.set(["tcp@b:1"]);
        assert!(lists.has_changed().expect("the sink lives"));
    }

    /// Pauses grow from failure to failure up to their bound; a source that was well for a while begins anew.
    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_is_watched_again_less_and_less_often() {
        let tries = Arc::new(Mutex::new(Vec::new()));
        let Lists { source, lists: _lists } = Lists::watched({
            let tries = Arc::clone(&tries);
            move |_| {
                let nth = {
                    let mut tries = tries.lock();
                    tries.push(Instant::now());
                    tries.len()
                };
                async move {
                    match nth {
                        12 => sleep(WELL_AFTER).await,
                        13 => return Ok(()),
                        nth if nth % 2 == 0 => panic!("on purpose"),
                        _ => {}
                    }
                    Err("no".into())
                }
            }
        });
        let failed = Mutex::new(0);
        let watching = source.expect("it is watched").keep_watching(|_| *failed.lock() += 1);
        // It has ended then, and only waits until nobody follows the lists any more.
        tokio::time::timeout(Duration::from_secs(3600), watching).await.expect_err("the list is followed");
        assert_eq!(*failed.lock(), 12);
        let tries = tries.lock();
        let pauses: Vec<_> = tries.windows(2).map(|two| two[1] - two[0]).collect();
        let moment = Duration::from_millis(2);
        for (failures, pause) in pauses[..11].iter().enumerate() {
            let longest = (PAUSE_MIN * (1 << failures)).min(PAUSE_MAX);
            assert!(longest / 2 <= *pause && *pause <= longest + moment, "{failures}: {pause:?}");
        }
        assert!(pauses[11] <= WELL_AFTER + PAUSE_MIN + moment, "{:?}", pauses[11]);
    }
}
