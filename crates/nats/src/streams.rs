//! The streams at the broker: made where they are missing, held against what they should be, and known by their tokens.
//!
//! A token is random and part of the subjects of its stream. Whatever comes from a stream that was made anew shows it, and
//! what is written to one that is gone finds nobody.
//!
//! A server that acknowledges before it writes to its disk may come back, after its machine has failed, without the last
//! messages of a stream, and gives their sequences to others. With one copy nobody else has them. So each node knows how
//! far each stream of logs has been: one that ends before that, or gives a sequence again, is another epoch from then on,
//! which stands in its metadata for all nodes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_nats::{HeaderMap, Message};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bothways::{
    cluster::engine::{Level, PAGE_BYTES},
    store::TOGETHER_WITHIN,
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    names::{Kind, Names},
    options::ConnectError,
    rings::Rings,
    wire::{Failure, Outbox, Wire},
};

/// How long one request to the register or a log may take.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(2);
/// How long making a stream may take.
const MAKE_MAX: Duration = Duration::from_secs(5);
/// After this, a read that any replica may answer is asked of the leader too.
const HEDGE_AFTER: Duration = Duration::from_millis(50);
/// Most entries of one page.
const PAGE_ENTRIES_MAX: usize = 1024;
/// Most batches of this node in one stream: the broker takes 50 of all nodes.
const BATCHES_MAX: usize = 2;
/// The fewest replicas of which one can be lost.
pub(crate) const REPLICATED_MIN: usize = 3;
/// For how long a stream knows the keys of entries.
const KEYS_KEPT: Duration = Duration::from_secs(120);

/// In the metadata of a stream that has lost its end: its epoch is another one since.
const BEGUN: &str = "bothways_begun";
/// Further than any stream has been: it has lost its end, and is not used before it has begun another epoch.
const LOST: u64 = u64::MAX;

// What JetStream calls its errors.
const NO_MESSAGE: u32 = 10037;
const NO_STREAM: u32 = 10059;
/// There is no message of this sequence, any more.
const NOT_THERE: [u32; 3] = [10037, 10043, 10057];
const NAME_IN_USE: u32 = 10058;
const NOT_ENABLED: [u32; 3] = [10039, 10076, 10035];
const NO_LEADER: [u32; 2] = [10008, 10118];
const NO_PEERS: [u32; 2] = [10005, 10074];
const NO_ROOM: [u32; 6] = [10023, 10047, 10028, 10026, 10027, 10002];
const WRONG_LAST: u32 = 10071;
/// Another write of the same subject is on its way.
const WRONG_LAST_MEANWHILE: u32 = 10164;
/// An entry of the same key is on its way.
const DUPLICATE_MEANWHILE: u32 = 10158;
/// The message, and its headers alone: an operator may bound what one has.
const TOO_LARGE: [u32; 2] = [10054, 10097];
/// Limits of the stream, and a disk that fails.
const NOT_STORED: u32 = 10077;
/// Of batches: there are none here, and none with keys, as in 2.12.0.
const NO_BATCHES: [u32; 2] = [10174, 10177];
/// Some of it is missing or known, it is numbered or named wrongly, it is too large, there are too many.
const BATCH_REFUSED: [u32; 7] = [10175, 10176, 10179, 10199, 10200, 10201, 10210];
/// What it says then if there is no room: in the mailbox or the stream, or on the disk.
const FULL: [&str; 2] = ["maximum", "no space left"];

#[derive(Clone, Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Debug)]
enum ApiFailure {
    Wire(Failure),
    Refused(ApiError),
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

/// Something was stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Put {
    pub(crate) sequence: u64,
    pub(crate) repeated: bool,
}

/// Why something was not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PutFailure {
    /// Another one is the last, with this sequence if it is known.
    WrongLast(Option<u64>),
    Full,
    TooLarge,
    /// One of the same key is on its way; what becomes of that is not known yet.
    Meanwhile,
    /// Nothing was stored.
    Down,
    Unknown,
}

/// Why several were not written together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TogetherFailure {
    /// One of them, or that they come together: nothing was stored, and each alone may be.
    Refused,
    Failed(PutFailure),
}

impl From<PutFailure> for TogetherFailure {
    fn from(failure: PutFailure) -> Self {
        Self::Failed(failure)
    }
}

/// What a subject has.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) bytes: Bytes,
    /// When its time to live is over, by the clock of the broker.
    pub(crate) ends: Option<SystemTime>,
}

impl Got {
    /// Its time to live is over at this moment, or was: a broker that starts again may show such entries anew.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        self.ends.is_some_and(|ends| ends <= now)
    }
}

/// A stream as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    token: Arc<str>,
    epoch: u64,
    replicas: usize,
    takes_batches: bool,
}

impl Identity {
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Another one if the stream was made anew, also with the old token.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Several entries are stored together in one turn of its replicas. A server alone would write them to its disk and sync
    /// that first, which takes longer than one after the other.
    pub(crate) fn takes_batches(&self) -> bool {
        self.takes_batches && 1 < self.replicas
    }

    /// How well this stream stores, of an engine that stores so well: somebody may have taken replicas away since.
    pub(crate) fn level(&self, told: Level) -> Level {
        match told {
            Level::Replicated if self.replicas < REPLICATED_MIN => Level::Memory,
            told => told,
        }
    }
}

/// What the streams are to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) replicas: Option<usize>,
    pub(crate) history_entries_max: usize,
    pub(crate) mailbox_entries_max: usize,
    pub(crate) stream_bytes_max: Option<u64>,
    pub(crate) domain: Option<String>,
}

/// See the module.
pub(crate) struct Streams {
    wire: Arc<Wire>,
    pub(crate) names: Names,
    wanted: Wanted,
    api: String,
    is_clustered: bool,
    /// The server of this connection is new enough for it.
    may_batch: bool,
    /// It turned out that a server takes none, or none with keys.
    takes_no_batches: AtomicBool,
    known: RwLock<HashMap<Kind, Identity>>,
    /// Turns to write several together: a stream takes so many batches at a time from all nodes.
    batches: HashMap<Kind, Semaphore>,
    /// How far each stream of logs has surely been, in which epoch.
    reached: Mutex<HashMap<Kind, (u64, u64)>>,
    /// Which letters have rung here, of those streams whose rings are followed.
    pub(crate) rings: Rings,
    /// Who leads each stream, and since when, as it said last.
    leaders: Mutex<HashMap<Kind, Value>>,
    /// A write has failed, and none has succeeded since.
    writes_fail: AtomicBool,
    /// Woken when something failed: the streams are to be looked at.
    pub(crate) doubt: Notify,
}

/// How often a stream has begun another epoch, as its metadata says.
fn begun(config: &Value) -> &str {
    config["metadata"][BEGUN].as_str().unwrap_or_default()
}

impl Streams {
    pub(crate) fn new(wire: Arc<Wire>, names: Names, wanted: Wanted, is_clustered: bool, may_batch: bool) -> Self {
        let api = wanted.domain.as_ref().map_or("$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"));
        Self {
            wire,
            names,
            wanted,
            api,
            is_clustered,
            may_batch,
            takes_no_batches: AtomicBool::new(false),
            known: RwLock::default(),
            batches: Kind::all().map(|kind| (kind, Semaphore::new(BATCHES_MAX))).collect(),
            reached: Mutex::default(),
            rings: Rings::default(),
            leaders: Mutex::default(),
            writes_fail: AtomicBool::new(false),
            doubt: Notify::new(),
        }
    }

    pub(crate) fn identity(&self, kind: Kind) -> Option<Identity> {
        self.known.read().get(&kind).cloned()
    }

    /// Which stream has this token now.
    pub(crate) fn of_token(&self, token: &str) -> Option<(Kind, Identity)> {
        let known = self.known.read();
        known.iter().find(|(_, identity)| identity.token() == token).map(|(kind, identity)| (*kind, identity.clone()))
    }

    /// A stream was looked at. What of it is published again, and did not come here, is a gap: all readers look.
    fn look_for_gaps(&self, kind: Kind, epoch: u64, info: &Value) {
        if !matches!(kind, Kind::History(_) | Kind::Mailbox(_)) {
            return;
        }
        let last = info["state"]["last_seq"].as_u64().unwrap_or_default();
        let is_whole =
            !matches!(kind, Kind::Mailbox(_)) || self.rings.ends_at(kind, epoch, last, Instant::now().into());
        if !is_whole || self.has_another_leader(kind, info) {
            self.wire.events.gap();
        }
    }

    /// True if another server leads a stream than before. One that is elected stores what the one before it had taken, and
    /// may not publish that again.
    fn has_another_leader(&self, kind: Kind, info: &Value) -> bool {
        let cluster = &info["cluster"];
        if !cluster["leader"].is_string() {
            return false;
        }
        // Servers before 2.12 do not say since when.
        let now = json!([cluster["leader"], cluster["leader_since"]]);
        let before = self.leaders.lock().insert(kind, now.clone());
        before.is_some_and(|before| before != now)
    }

    /// A stream of logs has been so far. False: it is in another epoch by now, or has lost its end.
    fn has_reached(&self, kind: Kind, epoch: u64, sequence: u64) -> bool {
        let mut reached = self.reached.lock();
        let Some((_, before)) = reached.get_mut(&kind).filter(|at| at.0 == epoch && at.1 != LOST) else { return false };
        *before = sequence.max(*before);
        true
    }

    /// A stream was looked at, and is in this epoch. False: an append has found out meanwhile that it has lost its end.
    fn is_at(&self, kind: Kind, epoch: u64, last: u64) -> bool {
        if !kind.is_log() {
            return true;
        }
        let mut reached = self.reached.lock();
        let (of, before) = reached.entry(kind).or_insert((epoch, last));
        (*of, *before) = (epoch, if *of == epoch { last.max(*before) } else { last });
        *before != LOST
    }

    /// A stream of logs is not used before it has begun another epoch, unless it has already.
    fn has_lost(&self, kind: Kind, epoch: u64) {
        let mut reached = self.reached.lock();
        if let Some((_, reached)) = reached.get_mut(&kind).filter(|(of, _)| *of == epoch) {
            *reached = LOST;
            self.known.write().remove(&kind);
        }
        drop(reached);
        self.doubt.notify_one();
    }

    /// The fewest replicas of any stream.
    pub(crate) fn replicas(&self) -> usize {
        self.known.read().values().map(|identity| identity.replicas).min().unwrap_or(1)
    }

    /// Of all streams together: another number if one was made anew.
    pub(crate) fn generation(&self) -> u64 {
        self.known.read().values().fold(0, |all, identity| all ^ identity.epoch.rotate_left(17).wrapping_mul(3))
    }

    pub(crate) fn do_writes_fail(&self) -> bool {
        self.writes_fail.load(Ordering::Relaxed)
    }

    /// Looks that all streams are there, and are what they should be; makes those that are missing.
    pub(crate) async fn ensure(self: &Arc<Self>, within: Duration) -> Result<(), ConnectError> {
        self.ensure_each(within).await.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// The same while the engine is at work. A stream of logs or cursors that somebody changed is not used, and what it has
    /// is down; all else goes on without it.
    pub(crate) async fn ensure_again(self: &Arc<Self>, within: Duration) -> Result<(), ConnectError> {
        let mut first = Ok(());
        for (kind, error) in self.ensure_each(within).await {
            let goes_without =
                matches!(error, ConnectError::Changed { .. }) && !matches!(kind, Kind::Nodes | Kind::Sessions);
            if goes_without {
                let known = self.known.write().remove(&kind);
                if known.is_some() {
                    tracing::warn!(%error, "this stream is not used until it is as it was");
                }
            } else if first.is_ok() {
                first = Err(error);
            }
        }
        first
    }

    /// Those that are not as they should be, and why. What the others are is known then.
    async fn ensure_each(self: &Arc<Self>, within: Duration) -> Vec<(Kind, ConnectError)> {
        let until = Instant::now() + within;
        let mut all = JoinSet::new();
        for kind in Kind::all() {
            let streams = Arc::clone(self);
            all.spawn(async move { (kind, streams.ensure_one(kind, until).await) });
        }
        let mut failed = Vec::new();
        while let Some(one) = all.join_next().await {
            match one {
                Ok((kind, Ok(identity))) => self.is_now(kind, identity),
                Ok((kind, Err(error))) => failed.push((kind, error)),
                Err(_) => failed.push((Kind::Nodes, ConnectError::Silent { complaint: None })),
            }
        }
        failed
    }

    fn is_now(&self, kind: Kind, identity: Identity) {
        let replicas = identity.replicas;
        let before = self.known.write().insert(kind, identity);
        if before.is_some_and(|before| replicas < before.replicas) {
            tracing::warn!(stream = %self.names.stream(kind), replicas, "somebody has taken replicas away");
        }
    }

    async fn ensure_one(&self, kind: Kind, until: Instant) -> Result<Identity, ConnectError> {
        let name = self.names.stream(kind);
        let mut last = None;
        while Instant::now() < until {
            // Before the stream says where it ends: what is stored meanwhile is no reason to doubt it.
            let reached = self.reached.lock().get(&kind).copied();
            let tried = match self.info(&name).await {
                Err(ApiFailure::Refused(error)) if error.err_code == NO_STREAM => self.make(kind, &name).await,
                Ok(info) if self.has_lost_its_end(kind, &name, &info, reached) => {
                    Ok(self.begin_epoch(&name, &info).await.map_err(|error| self.cannot_begin(&name, error))?)
                }
                other => other,
            };
            match tried {
                Ok(info) => {
                    let identity = self.judge(kind, &name, &info)?;
                    let last = info["state"]["last_seq"].as_u64().unwrap_or_default();
                    if self.is_at(kind, identity.epoch, last) {
                        self.look_for_gaps(kind, identity.epoch, &info);
                        return Ok(identity);
                    }
                    continue;
                }
                // Somebody else has made it just now.
                Err(ApiFailure::Refused(error)) if error.err_code == NAME_IN_USE => {}
                // An election: it ends by itself.
                Err(ApiFailure::Refused(error)) if NO_LEADER.contains(&error.err_code) => {
                    last = Some(error.description)
                }
                Err(ApiFailure::Refused(error)) => return Err(self.refused(&name, error)),
                Err(ApiFailure::Wire(_)) => {}
            }
            let _ = timeout_at(until, sleep(Duration::from_millis(250))).await;
        }
        Err(ConnectError::Silent { complaint: self.wire.events.complaint().or(last) })
    }

    fn refused(&self, stream: &str, error: ApiError) -> ConnectError {
        let ApiError { err_code, description } = error;
        if NOT_ENABLED.contains(&err_code) {
            ConnectError::NoJetStream { said: description }
        } else if NO_PEERS.contains(&err_code) {
            ConnectError::Replicas { wanted: self.replicas_wanted(), said: description }
        } else if NO_ROOM.contains(&err_code) {
            ConnectError::NoRoom { stream: stream.to_owned(), said: description }
        } else {
            ConnectError::Refused { stream: stream.to_owned(), said: description }
        }
    }

    fn replicas_wanted(&self) -> usize {
        self.wanted.replicas.unwrap_or(if self.is_clustered { 3 } else { 1 })
    }

    /// What a stream is to be, except for its token.
    fn config(&self, kind: Kind, name: &str, token: &str) -> Value {
        let subjects = self.names.subject(kind.letter(), token, ">");
        let (most, refuses) = match kind {
            Kind::Nodes | Kind::Sessions | Kind::Cursors => (1, false),
            Kind::Parked => (-1, false),
            Kind::History(_) | Kind::Dead => (self.wanted.history_entries_max as i64, false),
            Kind::Mailbox(_) => (self.wanted.mailbox_entries_max as i64, true),
        };
        let mut config = json!({
            "name": name,
            "subjects": [subjects.as_str()],
            "retention": "limits",
            "storage": "file",
            "max_msgs": -1,
            "max_age": 0,
            "max_msgs_per_subject": most,
            "discard": if refuses || kind == Kind::Parked { "new" } else { "old" },
            "discard_new_per_subject": refuses,
            "duplicate_window": KEYS_KEPT.as_nanos() as u64,
            "allow_direct": true,
            "allow_msg_ttl": true,
            "sealed": false,
            "no_ack": false,
        });
        if let Some((letter, headers_only)) = kind.published_again() {
            let dest = self.names.subject(letter, token, ">");
            config["republish"] = json!({"src": subjects, "dest": dest, "headers_only": headers_only});
        }
        config
    }

    async fn make(&self, kind: Kind, name: &str) -> Result<Value, ApiFailure> {
        let token = format!("{:016x}", rand::random::<u64>());
        let mut config = self.config(kind, name, &token);
        config["num_replicas"] = json!(self.replicas_wanted());
        // What lives for its time only has no other bound: the oldest is a living lease or record as well.
        let bytes_max = self.wanted.stream_bytes_max.filter(|_| kind.is_log());
        config["max_bytes"] = json!(bytes_max.map_or(-1, |bytes| bytes as i64));
        if self.may_batch && matches!(kind, Kind::History(_)) {
            config["allow_atomic"] = json!(true);
        }
        config["description"] = json!("Of Bothways: see docs/cluster.md before you change it");
        config["metadata"] = json!({"bothways_token": token});
        let create = format!("STREAM.CREATE.{name}");
        let made = self.api(Outbox::Register, &create, &config, MAKE_MAX).await;
        let fields = config.as_object_mut();
        match made {
            // The leader of the servers may be older than the one of this connection.
            Err(ApiFailure::Refused(_)) if fields.is_some_and(|fields| fields.remove("allow_atomic").is_some()) => {
                self.api(Outbox::Register, &create, &config, MAKE_MAX).await
            }
            made => made,
        }
    }

    /// True if a stream of which there is one copy ends before where it has been in this epoch, or an append has found that
    /// out. A leader of several may show the past for a moment, and loses nothing.
    fn has_lost_its_end(&self, kind: Kind, name: &str, info: &Value, reached: Option<(u64, u64)>) -> bool {
        let (Ok(identity), Some((epoch, reached))) = (self.judge(kind, name, info), reached) else { return false };
        let last = info["state"]["last_seq"].as_u64().unwrap_or(u64::MAX);
        (identity.replicas == 1 || reached == LOST) && identity.epoch == epoch && last < reached
    }

    /// The places of a stream from before mean nothing from here on, at any node.
    async fn begin_epoch(&self, name: &str, info: &Value) -> Result<Value, ApiFailure> {
        tracing::warn!(stream = name, "the broker has lost the end of this stream: its places begin anew");
        let mut config = info["config"].clone();
        // Nodes that see this at once write the same.
        let begun = begun(&config).parse().unwrap_or(0u64) + 1;
        config["metadata"][BEGUN] = json!(begun.to_string());
        self.api(Outbox::Register, &format!("STREAM.UPDATE.{name}"), &config, REQUEST_MAX).await
    }

    /// Without another epoch a stream is not used, and all else goes on: its places would be taken for those from before.
    fn cannot_begin(&self, name: &str, failure: ApiFailure) -> ConnectError {
        let said = match failure {
            ApiFailure::Refused(error) => error.description,
            ApiFailure::Wire(_) => self.wire.events.complaint().unwrap_or("no answer".to_owned()),
        };
        let what = format!("it has lost its end, and its metadata cannot be changed: {said}");
        ConnectError::Changed { stream: name.to_owned(), what }
    }

    /// The time by the clock of the server that leads this stream, by which its entries end.
    pub(crate) async fn time(&self, kind: Kind) -> Result<SystemTime, Failure> {
        let info = self.info(&self.names.stream(kind)).await.map_err(|failure| match failure {
            ApiFailure::Wire(failure) => failure,
            ApiFailure::Refused(_) => Failure::NotSent,
        })?;
        let time = info["ts"].as_str().and_then(|time| humantime::parse_rfc3339(time).ok());
        time.ok_or(Failure::Unknown)
    }

    async fn info(&self, name: &str) -> Result<Value, ApiFailure> {
        self.api(Outbox::Register, &format!("STREAM.INFO.{name}"), &Value::Null, REQUEST_MAX).await
    }

    /// Whether a stream is what it should be.
    fn judge(&self, kind: Kind, name: &str, info: &Value) -> Result<Identity, ConnectError> {
        let changed = |what: String| ConnectError::Changed { stream: name.to_owned(), what };
        let found = &info["config"];
        let token = found["metadata"]["bothways_token"].as_str();
        let token = token.ok_or_else(|| changed("its token is missing from its metadata".to_owned()))?;
        let wanted = self.config(kind, name, token);
        if let Some(what) = difference(&wanted, found) {
            return Err(changed(what));
        }
        let replicas = found["num_replicas"].as_u64().unwrap_or(1) as usize;
        if let Some(wanted) = self.wanted.replicas.filter(|wanted| *wanted != replicas) {
            return Err(changed(format!("`num_replicas` is {replicas}, and {wanted} are asked for")));
        }
        let created = info["created"].as_str().unwrap_or_default();
        let hash = Sha256::new().chain_update(token).chain_update([0]).chain_update(created);
        let hash = hash.chain_update(begun(found)).finalize();
        let epoch = hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let takes_batches = found["allow_atomic"].as_bool().unwrap_or(false);
        Ok(Identity { token: token.into(), epoch, replicas, takes_batches })
    }

    /// Whether JetStream is there, and how much of it.
    pub(crate) async fn check_account(&self, within: Duration) -> Result<(), ConnectError> {
        let until = Instant::now() + within;
        let account = loop {
            match self.api(Outbox::Register, "INFO", &Value::Null, REQUEST_MAX).await {
                Ok(account) => break account,
                Err(ApiFailure::Refused(error)) if NO_LEADER.contains(&error.err_code) && Instant::now() < until => {}
                Err(ApiFailure::Refused(error)) => {
                    return Err(ConnectError::NoJetStream { said: error.description });
                }
                // A cluster that begins has no responders either.
                Err(ApiFailure::Wire(Failure::Nobody)) if !self.is_clustered || until <= Instant::now() => {
                    return Err(ConnectError::NoJetStream { said: "no server answers for it".to_owned() });
                }
                Err(ApiFailure::Wire(_)) if until <= Instant::now() => {
                    return Err(ConnectError::Silent { complaint: self.wire.events.complaint() });
                }
                Err(ApiFailure::Wire(_)) => {}
            }
            sleep(Duration::from_millis(250)).await;
        };
        let needed = Kind::all().count() as i64;
        let most = account["limits"]["max_streams"].as_i64().unwrap_or(-1);
        if (0..needed).contains(&most) {
            let what = format!("the account may have {most} streams, and {needed} are needed");
            return Err(ConnectError::TooSmall { what });
        }
        Ok(())
    }

    async fn api(&self, of: Outbox, what: &str, body: &Value, within: Duration) -> Result<Value, ApiFailure> {
        let bytes = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let answer = self.wire.ask(of, format!("{}.{what}", self.api), None, bytes, within).await;
        let answer = answer.map_err(ApiFailure::Wire)?;
        let mut value: Value =
            serde_json::from_slice(&answer.payload).map_err(|_| ApiFailure::Wire(Failure::Unknown))?;
        match value.get_mut("error").map(Value::take).filter(|error| !error.is_null()) {
            Some(error) => {
                let unread = |_| ApiError { err_code: 0, description: "an error that cannot be read".to_owned() };
                Err(ApiFailure::Refused(serde_json::from_value(error).unwrap_or_else(unread)))
            }
            None => Ok(value),
        }
    }

    /// Writes to a subject of a stream, if its last sequence is this one.
    pub(crate) async fn put(
        &self,
        kind: Kind,
        identity: &Identity,
        rest: &str,
        write: Write<'_>,
        bytes: Bytes,
    ) -> Result<Put, PutFailure> {
        let subject = self.names.subject(kind.letter(), identity.token(), rest);
        let before = self.end_before(kind, identity)?;
        let answered = self.wire.ask(kind.outbox(), subject, Some(write.headers()), bytes, REQUEST_MAX).await;
        self.placed(kind, identity, before, 1, self.put_by(answered)?)
    }

    /// Writes several to a subject of a stream, without waiting for one before the next is sent. One that fails does not keep
    /// those behind it from being written.
    pub(crate) async fn put_each(
        &self,
        kind: Kind,
        identity: &Identity,
        rest: &str,
        writes: Vec<(HeaderMap, Bytes)>,
    ) -> Vec<Result<Put, PutFailure>> {
        let subject = self.names.subject(kind.letter(), identity.token(), rest);
        let before = match self.end_before(kind, identity) {
            Ok(before) => before,
            Err(failure) => return vec![Err(failure); writes.len()],
        };
        let answers = self.wire.ask_each(kind.outbox(), &subject, writes, REQUEST_MAX).await;
        let placed = |answered| self.placed(kind, identity, before, 1, self.put_by(answered)?);
        answers.into_iter().map(placed).collect()
    }

    /// Writes several to a subject of a stream, all or none, and returns the sequence of the first: they stand one behind the
    /// other.
    pub(crate) async fn put_together(
        &self,
        kind: Kind,
        identity: &Identity,
        rest: &str,
        mut writes: Vec<(HeaderMap, Bytes)>,
    ) -> Result<u64, TogetherFailure> {
        if self.takes_no_batches.load(Ordering::Relaxed) {
            return Err(TogetherFailure::Refused);
        }
        // Of one that waits for too long nothing was sent.
        let turn = timeout(TOGETHER_WITHIN, self.batches[&kind].acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(PutFailure::Down.into()) };
        let (batch, count) = (format!("{:016x}", rand::random::<u64>()), writes.len() as u64);
        for (number, (headers, _)) in (1..).zip(&mut writes) {
            headers.insert("Nats-Batch-Id", &*batch);
            headers.insert("Nats-Batch-Sequence", number.to_string());
            if number == count {
                headers.insert("Nats-Batch-Commit", "1");
            }
        }
        let subject = self.names.subject(kind.letter(), identity.token(), rest);
        let before = self.end_before(kind, identity)?;
        let answered = self.wire.ask_together(kind.outbox(), &subject, writes, REQUEST_MAX).await;
        if let Ok(answer) = &answered
            && let Ok(Ack { error: Some(error), .. }) = serde_json::from_slice(&answer.payload)
            && is_refused_whole(&error)
        {
            if NO_BATCHES.contains(&error.err_code) {
                self.takes_no_batches.store(true, Ordering::Relaxed);
            }
            return Err(TogetherFailure::Refused);
        }
        let put = self.placed(kind, identity, before, count, self.put_by(answered)?)?;
        (put.sequence + 1).checked_sub(count).ok_or(TogetherFailure::Failed(PutFailure::Unknown))
    }

    /// How far a stream has been before something is written to it. 0 for one without places.
    fn end_before(&self, kind: Kind, identity: &Identity) -> Result<u64, PutFailure> {
        if !kind.is_log() {
            return Ok(0);
        }
        match self.reached.lock().get(&kind) {
            Some((epoch, sequence)) if *epoch == identity.epoch && *sequence != LOST => Ok(*sequence),
            _ => {
                self.doubt.notify_one();
                Err(PutFailure::Down)
            }
        }
    }

    /// Takes an answer for so many that stand one behind the other, the last with this sequence, unless their places are
    /// those of others: then nobody knows where they are. Under their keys they are found again, in the next epoch.
    fn placed(&self, kind: Kind, identity: &Identity, before: u64, count: u64, put: Put) -> Result<Put, PutFailure> {
        if !kind.is_log() {
            return Ok(put);
        }
        let is_again = put.sequence < before.saturating_add(count) && !put.repeated && identity.replicas == 1;
        if is_again {
            self.has_lost(kind, identity.epoch);
            return Err(PutFailure::Unknown);
        }
        match self.has_reached(kind, identity.epoch, put.sequence) {
            true => Ok(put),
            false => Err(PutFailure::Unknown),
        }
    }

    /// What came of a write that was answered so.
    fn put_by(&self, answered: Result<Message, Failure>) -> Result<Put, PutFailure> {
        let answer = match answered {
            Ok(answer) => answer,
            // That says nothing of the broker.
            Err(Failure::NoRoom) => return Err(PutFailure::Down),
            Err(Failure::TooLarge) => return Err(PutFailure::TooLarge),
            Err(failure) => {
                self.writes_fail.store(true, Ordering::Relaxed);
                self.doubt.notify_one();
                return Err(if failure == Failure::Unknown { PutFailure::Unknown } else { PutFailure::Down });
            }
        };
        let ack: Ack = serde_json::from_slice(&answer.payload).map_err(|_| PutFailure::Unknown)?;
        let failure = ack.error.map(|error| put_failure(&error));
        if matches!(failure, Some(PutFailure::Down)) {
            self.writes_fail.store(true, Ordering::Relaxed);
            self.doubt.notify_one();
        } else {
            self.writes_fail.store(false, Ordering::Relaxed);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Put { sequence: ack.seq, repeated: ack.duplicate }),
        }
    }

    /// As the leader of the stream has it; even that may be old.
    async fn leader_get(&self, kind: Kind, which: &Value) -> Result<Option<Got>, Failure> {
        let name = self.names.stream(kind);
        let value = match self.api(kind.outbox(), &format!("STREAM.MSG.GET.{name}"), which, REQUEST_MAX).await {
            Ok(value) => value,
            Err(ApiFailure::Wire(Failure::NoRoom)) => return Err(Failure::NoRoom),
            Err(ApiFailure::Refused(error)) if error.err_code == NO_MESSAGE => return Ok(None),
            Err(ApiFailure::Refused(_)) => {
                self.doubt.notify_one();
                return Err(Failure::NotSent);
            }
            Err(ApiFailure::Wire(failure)) => {
                self.doubt.notify_one();
                return Err(failure);
            }
        };
        let message = &value["message"];
        let decoded = |field: &str| message[field].as_str().map_or(Ok(Vec::new()), |field| STANDARD.decode(field));
        let (data, headers) = (decoded("data"), decoded("hdrs").map_err(|_| Failure::Unknown)?);
        let headers = String::from_utf8_lossy(&headers);
        let mut lines = headers.lines().filter_map(|line| line.split_once(':'));
        let time_to_live = lines.find(|(name, _)| name.eq_ignore_ascii_case(TTL)).map(|(_, value)| value.trim());
        let ends = end_of(message["time"].as_str(), time_to_live);
        match (message["subject"].as_str(), message["seq"].as_u64(), data) {
            (Some(subject), Some(sequence), Ok(data)) => {
                Ok(Some(Got { subject: subject.to_owned(), sequence, bytes: data.into(), ends }))
            }
            _ => Err(Failure::Unknown),
        }
    }

    /// The last of a subject, as the leader has it.
    pub(crate) async fn last(&self, kind: Kind, token: &str, rest: &str) -> Result<Option<Got>, Failure> {
        let subject = self.names.subject(kind.letter(), token, rest);
        self.leader_get(kind, &json!({"last_by_subj": subject})).await
    }

    /// The first of a subject or pattern from this sequence on, as the leader has it.
    pub(crate) async fn first_from(
        &self,
        kind: Kind,
        token: &str,
        rest: &str,
        sequence: u64,
    ) -> Result<Option<Got>, Failure> {
        let subject = self.names.subject(kind.letter(), token, rest);
        self.leader_get(kind, &json!({"seq": sequence.max(1), "next_by_subj": subject})).await
    }

    /// What has this sequence, as the leader has it.
    pub(crate) async fn at(&self, kind: Kind, sequence: u64) -> Result<Option<Got>, Failure> {
        self.leader_get(kind, &json!({"seq": sequence})).await
    }

    /// The last of a subject, as any replica has it that answers first.
    pub(crate) async fn last_anywhere(&self, kind: Kind, token: &str, rest: &str) -> Result<Option<Got>, Failure> {
        let name = self.names.stream(kind);
        let which = json!({"last_by_subj": self.names.subject(kind.letter(), token, rest)});
        let direct = async {
            let subject = format!("{}.DIRECT.GET.{name}", self.api);
            let got = self.wire.ask(kind.outbox(), subject, None, Bytes::from(which.to_string()), REQUEST_MAX).await;
            // What a replica does not have, the leader may.
            got.ok().filter(|message| message.status.is_none()).and_then(|message| got_of(&message))
        };
        let leader = self.last(kind, token, rest);
        tokio::pin!(direct);
        tokio::select! {
            found = &mut direct => match found {
                Some(found) => Ok(Some(found)),
                None => leader.await,
            },
            () = sleep(HEDGE_AFTER) => {
                tokio::pin!(leader);
                tokio::select! {
                    Some(found) = &mut direct => Ok(Some(found)),
                    found = &mut leader => found,
                }
            }
        }
    }

    /// Up to `most` of a subject after this sequence, up to the last one, which the leader has named.
    pub(crate) async fn page(
        &self,
        kind: Kind,
        token: &str,
        rest: &str,
        after: u64,
        last: u64,
        most: usize,
    ) -> Result<Vec<Got>, Failure> {
        let most = most.min(PAGE_ENTRIES_MAX);
        let direct = async {
            let subject = self.names.subject(kind.letter(), token, rest);
            let which = json!({"seq": after + 1, "next_by_subj": subject, "batch": most, "max_bytes": PAGE_BYTES});
            let subject = format!("{}.DIRECT.GET.{}", self.api, self.names.stream(kind));
            let is_last = |message: &Message| message.status.is_some();
            let which = Bytes::from(which.to_string());
            let page = self.wire.ask_many(kind.outbox(), subject, which, most, is_last, REQUEST_MAX).await;
            page.map(|page| without_holes(&page))
        };
        let leader = self.page_of_leader(kind, token, rest, after, last, most);
        tokio::pin!(direct, leader);
        let mut page = tokio::select! {
            page = &mut direct => page.unwrap_or_default(),
            () = sleep(HEDGE_AFTER) => tokio::select! {
                Ok(page) = &mut direct => page,
                page = &mut leader => page?,
            },
        };
        let mut bytes = 0;
        let end = page.iter().position(|got| {
            bytes += got.bytes.len();
            PAGE_BYTES <= bytes
        });
        page.truncate(end.map_or(page.len(), |end| end + 1));
        let reached = page.last().map_or(after, |got| got.sequence);
        // The broker counts more than bytes of ours.
        if most <= page.len() || last <= reached || PAGE_BYTES / 2 <= bytes {
            return Ok(page);
        }
        // A replica that is behind, or a message that was lost: the leader has the rest.
        let rest = self.page_of_leader(kind, token, rest, reached, last, most - page.len()).await?;
        Ok(page.into_iter().chain(rest).collect())
    }

    /// The same from the leader, which gives one at a time.
    async fn page_of_leader(
        &self,
        kind: Kind,
        token: &str,
        rest: &str,
        mut after: u64,
        last: u64,
        most: usize,
    ) -> Result<Vec<Got>, Failure> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while after < last && page.len() < most && bytes < PAGE_BYTES {
            let Some(got) = self.first_from(kind, token, rest, after + 1).await? else { break };
            after = got.sequence;
            bytes += got.bytes.len();
            page.push(got);
        }
        Ok(page)
    }
}

impl Streams {
    /// Forgets what a subject has before this sequence.
    pub(crate) async fn purge(&self, kind: Kind, token: &str, rest: &str, before: u64) -> Result<(), Failure> {
        let which = json!({"filter": self.names.subject(kind.letter(), token, rest), "seq": before});
        self.change(kind, &format!("STREAM.PURGE.{}", self.names.stream(kind)), &which).await.map(drop)
    }

    /// Forgets what has this sequence. False: it is gone.
    pub(crate) async fn delete(&self, kind: Kind, sequence: u64) -> Result<bool, Failure> {
        let which = json!({"seq": sequence, "no_erase": true});
        self.change(kind, &format!("STREAM.MSG.DELETE.{}", self.names.stream(kind)), &which).await
    }

    async fn change(&self, kind: Kind, what: &str, which: &Value) -> Result<bool, Failure> {
        match self.api(kind.outbox(), what, which, REQUEST_MAX).await {
            Ok(_) => Ok(true),
            Err(ApiFailure::Wire(Failure::NoRoom)) => Err(Failure::NoRoom),
            Err(ApiFailure::Refused(error)) if NOT_THERE.contains(&error.err_code) => Ok(false),
            Err(ApiFailure::Refused(_)) => {
                self.doubt.notify_one();
                Err(Failure::NotSent)
            }
            Err(ApiFailure::Wire(failure)) => {
                self.doubt.notify_one();
                Err(failure)
            }
        }
    }

    /// Tells of each subject of a stream, with how many entries it has.
    pub(crate) async fn subjects(
        &self,
        kind: Kind,
        token: &str,
        mut tell: impl FnMut(&str, usize),
    ) -> Result<(), Failure> {
        let (name, filter) = (self.names.stream(kind), self.names.subject(kind.letter(), token, ">"));
        let mut offset = 0;
        loop {
            let which = json!({"subjects_filter": filter, "offset": offset});
            let info = self.api(kind.outbox(), &format!("STREAM.INFO.{name}"), &which, REQUEST_MAX).await;
            let info = info.map_err(|_| {
                self.doubt.notify_one();
                Failure::Unknown
            })?;
            let subjects = info["state"]["subjects"].as_object();
            for (subject, count) in subjects.into_iter().flatten() {
                tell(subject, count.as_u64().unwrap_or(0) as usize);
            }
            let told = subjects.map_or(0, Map::len);
            offset += told;
            if told == 0 || info["total"].as_u64().is_none_or(|total| total <= offset as u64) {
                return Ok(());
            }
        }
    }
}

fn put_failure(error: &ApiError) -> PutFailure {
    match error.err_code {
        WRONG_LAST => {
            let sequence = error.description.rsplit(' ').next().and_then(|number| number.parse().ok());
            PutFailure::WrongLast(sequence)
        }
        WRONG_LAST_MEANWHILE => PutFailure::WrongLast(None),
        DUPLICATE_MEANWHILE => PutFailure::Meanwhile,
        NOT_STORED if FULL.iter().any(|words| error.description.contains(words)) => PutFailure::Full,
        code if NO_ROOM.contains(&code) => PutFailure::Full,
        code if TOO_LARGE.contains(&code) => PutFailure::TooLarge,
        _ => PutFailure::Down,
    }
}

/// True if nothing of a batch was stored, and its parts may be, each alone: one is known, has no room, or is too large; or there
/// are too many batches at the moment.
fn is_refused_whole(error: &ApiError) -> bool {
    let is_batches = NO_BATCHES.contains(&error.err_code) || BATCH_REFUSED.contains(&error.err_code);
    is_batches || matches!(put_failure(error), PutFailure::Full | PutFailure::TooLarge)
}

/// The messages of a batch up to the first that is missing: each names the one before it, and the first none.
fn without_holes(batch: &[Message]) -> Vec<Got> {
    let mut before = 0;
    let in_chain = batch.iter().map_while(|message| {
        let named: u64 = message.headers.as_ref()?.get_last("Nats-Last-Sequence")?.as_str().parse().ok()?;
        let got = got_of(message).filter(|_| named == before)?;
        before = got.sequence;
        Some(got)
    });
    in_chain.collect()
}

fn got_of(message: &Message) -> Option<Got> {
    let headers = message.headers.as_ref()?;
    let sequence = headers.get_last("Nats-Sequence")?.as_str().parse().ok()?;
    let subject = headers.get_last("Nats-Subject")?.as_str().to_owned();
    Some(Got { subject, sequence, bytes: message.payload.clone(), ends: ends(headers) })
}

/// When the time to live is over of what has these headers, of a direct answer or of what is published again.
pub(crate) fn ends(headers: &HeaderMap) -> Option<SystemTime> {
    let text = |name: &str| headers.get_last(name).map(|value| value.as_str());
    end_of(text("Nats-Time-Stamp"), text(TTL))
}

/// `None`: it has no end. So has what somebody else has written in another way than [`Write::headers`].
fn end_of(stored: Option<&str>, time_to_live: Option<&str>) -> Option<SystemTime> {
    let stored = humantime::parse_rfc3339(stored?).ok()?;
    let seconds = time_to_live?.strip_suffix('s')?.parse().ok()?;
    stored.checked_add(Duration::from_secs(seconds))
}

/// How something is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Write<'a> {
    pub(crate) after: Option<u64>,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) key: Option<&'a str>,
}

impl Write<'_> {
    /// If the last of its subject has this sequence; 0: if there is none.
    pub(crate) fn after(sequence: u64, time_to_live: Duration) -> Self {
        Self { after: Some(sequence), time_to_live: Some(time_to_live), key: None }
    }

    pub(crate) fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(sequence) = self.after {
            headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
        }
        if let Some(ttl) = self.time_to_live {
            // Whole seconds, at least one, and never less than was asked for.
            let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() != 0));
            headers.insert(TTL, format!("{}s", seconds.clamp(1, SECONDS_MAX)));
        }
        if let Some(key) = self.key {
            headers.insert("Nats-Msg-Id", key);
        }
        headers
    }
}

/// For how long it is kept.
const TTL: &str = "Nats-TTL";
/// A century: the broker counts in nanoseconds.
const SECONDS_MAX: u64 = 100 * 365 * 86400;

/// The first thing in which a stream is not what it should be.
fn difference(wanted: &Value, found: &Value) -> Option<String> {
    let none = Map::new();
    let found = found.as_object().unwrap_or(&none);
    for (name, wanted) in wanted.as_object()? {
        // The broker leaves out what is off.
        let off = match wanted {
            Value::Bool(_) => Value::Bool(false),
            Value::Number(_) => json!(0),
            _ => Value::Null,
        };
        let found = found.get(name).unwrap_or(&off);
        let same = match wanted {
            Value::Object(_) => difference(wanted, found).is_none(),
            _ => wanted == found,
        };
        if !same {
            return Some(format!("`{name}` is {found}, and should be {wanted}"));
        }
    }
    let foreign = ["mirror", "sources", "subject_transform"];
    let foreign = foreign.into_iter().find(|name| found.get(*name).is_some_and(|value| !value.is_null()));
    foreign.map(|name| format!("it has a `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_changed_is_named() {
        let wanted = json!({"max_msgs_per_subject": 1, "discard": "new", "sealed": false,
            "republish": {"src": "a.>", "dest": "b.>", "headers_only": false}});
        let mut found =
            json!({"max_msgs_per_subject": 1, "discard": "new", "republish": {"src": "a.>", "dest": "b.>"}});
        assert_eq!(difference(&wanted, &found), None);
        found["discard"] = json!("old");
        let what = difference(&wanted, &found).expect("it differs");
        assert_eq!(what, "`discard` is \"old\", and should be \"new\"");
        found["discard"] = json!("new");
        found["republish"]["dest"] = json!("c.>");
        assert!(difference(&wanted, &found).expect("it differs").contains("republish"));
        found["republish"]["dest"] = json!("b.>");
        found["mirror"] = json!({"name": "other"});
        assert_eq!(difference(&wanted, &found).as_deref(), Some("it has a `mirror`"));
    }

    /// A batch that a server does not take as one is written one by one, whatever it has against it.
    #[test]
    fn a_batch_that_is_refused_is_written_one_by_one() {
        let refused = |err_code| is_refused_whole(&ApiError { err_code, description: String::new() });
        assert!(NO_BATCHES.iter().chain(&BATCH_REFUSED).all(|code| refused(*code)));
        assert!(!refused(10008), "that no leader answers says nothing of a batch");
    }

    /// What is behind a message that was lost is not taken: it would be passed over.
    #[test]
    fn a_batch_ends_at_its_first_hole() {
        let message = |sequence: u64, before: u64| {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Sequence", sequence.to_string());
            headers.insert("Nats-Last-Sequence", before.to_string());
            headers.insert("Nats-Subject", "s");
            let (subject, payload) = ("inbox".into(), Bytes::new());
            let headers = Some(headers);
            Message { subject, reply: None, payload, headers, status: None, description: None, length: 0 }
        };
        let batch = [message(5, 0), message(6, 5), message(9, 6), message(10, 9)];
        let sequences = |batch: &[Message]| without_holes(batch).iter().map(|got| got.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(&batch), [5, 6, 9, 10]);
        assert_eq!(sequences(&[&batch[..2], &batch[3..]].concat()), [5, 6]);
        assert!(sequences(&batch[1..]).is_empty());
        let unnamed = Message { headers: None, ..message(7, 6) };
        assert_eq!(sequences(&[message(5, 0), unnamed, message(6, 5)]), [5]);
    }

    #[test]
    fn refusals_are_told_apart() {
        let failure =
            |err_code, description: &str| put_failure(&ApiError { err_code, description: description.to_owned() });
        assert_eq!(failure(10071, "wrong last sequence: 12"), PutFailure::WrongLast(Some(12)));
        assert_eq!(failure(10164, "wrong last sequence"), PutFailure::WrongLast(None));
        assert_eq!(failure(10077, "maximum messages per subject exceeded"), PutFailure::Full);
        assert_eq!(failure(10077, "write 1.blk: no space left on device"), PutFailure::Full);
        assert_eq!(failure(10077, "write: input/output error"), PutFailure::Down);
        assert_eq!(failure(10047, "insufficient storage resources available"), PutFailure::Full);
        assert_eq!(failure(10158, "duplicate"), PutFailure::Meanwhile);
        assert_eq!(failure(10054, "message size exceeds maximum allowed"), PutFailure::TooLarge);
        assert_eq!(failure(1, "?"), PutFailure::Down);
    }

    /// From when it was stored by the broker's clock; what has no such end never is over.
    #[test]
    fn when_a_time_to_live_is_over() {
        let time = |text: &str| humantime::parse_rfc3339(text).expect("a time");
        let ends = end_of(Some("2026-11-28T02:05:52.123456789Z"), Some("15s"));
        assert_eq!(ends, Some(time("2026-11-28T02:06:07.123456789Z")));
        let got = |ends| Got { subject: String::new(), sequence: 1, bytes: Bytes::new(), ends };
        assert!(!got(ends).is_over(time("2026-11-28T02:06:07.123456788Z")));
        assert!(got(ends).is_over(time("2026-11-28T02:06:07.123456789Z")));
        for (stored, time_to_live) in [
            (None, Some("15s")),
            (Some("2026-11-28T02:05:52Z"), None),
            (Some("2026-11-28T02:05:52Z"), Some("never")),
            (Some("yesterday"), Some("15s")),
        ] {
            assert_eq!(end_of(stored, time_to_live), None);
        }
        assert!(!got(None).is_over(time("2126-11-28T02:05:52Z")));
    }

    #[test]
    fn a_time_to_live_is_never_shorter_than_asked_for() {
        let ttl = |duration| {
            let headers = Write { time_to_live: Some(duration), ..Write::default() }.headers();
            headers.get("Nats-TTL").map(|value| value.as_str().to_owned())
        };
        assert_eq!(ttl(Duration::from_millis(1)).as_deref(), Some("1s"));
        assert_eq!(ttl(Duration::from_millis(1500)).as_deref(), Some("2s"));
        assert_eq!(ttl(Duration::from_secs(3)).as_deref(), Some("3s"));
        assert_eq!(ttl(Duration::MAX).as_deref(), Some("3153600000s"));
    }
}
