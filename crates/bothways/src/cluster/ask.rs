//! Questions that every node answers: what lately happened to sessions, their end (`kicking.rs`), and which nodes there are.
//!
//! A question may be asked twice without harm, so it goes beside the links: one ask to each member, all at once.

use std::{sync::Arc, time::Duration};

use bothways_proto::SerializeType;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};

use super::{
    engine::{AskError, Engine},
    node::Node,
    remote::PushNumber,
};
use crate::{
    codec::{Encode, Payload},
    session::{
        Carried, Destination, Explanation, FindAsked, FoundEverywhere, NodeId, Registry, Seen, Target, TopicError,
        UnreachedWhy,
    },
};

/// How long one ask may take, and how long a node is asked.
const ASK_MAX: Duration = Duration::from_secs(1);
/// See [`ASK_MAX`].
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What one session takes in the answer to a search for those that may be called.
const SEEN_BYTES: usize = 128;

/// What the nodes of a cluster have answered.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Answers<T> {
    /// Each node with its answer, that of this server first.
    pub answers: Vec<(NodeId, T)>,
    /// The nodes that have not answered, and why: what they would say is not known.
    pub silent: Vec<(NodeId, UnreachedWhy)>,
}

/// What one node explains.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Explained {
    /// As [`Server::explain`](crate::Server::explain).
    pub sessions: Vec<Explanation>,
    /// Further sessions, for which the answer had no room.
    pub left_out: usize,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Question {
    question: Asked,
    /// Of which sessions, if it is of a target.
    target: Option<Carried>,
}

impl Question {
    /// As it is sent, of no target.
    pub(super) fn bytes(question: Asked) -> Option<Bytes> {
        Self { question, target: None }.encode(SerializeType::MSGPACK).ok()
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Asked {
    Explain,
    /// For this reason.
    Kick(String),
    /// Which sessions may be called.
    Find(FindAsked),
    /// Of the server to the servers of the others.
    Home(Bytes),
    /// Does the node that is asked count this one?
    Counts(u64),
    /// The node of this number leaves.
    Leaves(u64),
}

#[derive(Deserialize, Serialize)]
pub(super) enum Said {
    Explained(Vec<Explanation>, usize),
    Kicked(usize),
    /// Some are left out if this is true.
    Found(Vec<Seen>, bool),
    Home(Bytes),
    /// The number of the last push before it did. `None`: it does not.
    Counts(Option<PushNumber>),
    Heard,
    /// It cannot be answered: the node is of another version, or has stopped.
    No,
}

/// Answers a question; `None`: it is none.
pub(super) async fn answer(node: &Arc<Node>, bytes: Bytes) -> Option<Bytes> {
    let bytes_max = node.engine().limits().message_bytes_max / 2;
    let Question { question, target } = Question::decode(SerializeType::MSGPACK, bytes).ok()?;
    let said = match question {
        Asked::Home(question) => node.home.upgrade()?.answer(question, bytes_max).await.map_or(Said::No, Said::Home),
        Asked::Counts(asker) => Said::Counts(node.counts(NodeId(asker))),
        Asked::Leaves(leaver) => {
            node.hear_farewell(NodeId(leaver)).await;
            Said::Heard
        }
        Asked::Explain | Asked::Kick(_) | Asked::Find(_) => {
            let sessions = &node.registry()?;
            let target = match target {
                None => None,
                Some(target) => match target.open(Duration::ZERO, sessions.limits())?.0 {
                    Destination::Sessions(target) => Some(target),
                    Destination::Topic(_) => return None,
                },
            };
            node.note_kick(&question, target.as_ref());
            run(sessions, &question, target.as_ref(), bytes_max).unwrap_or(Said::No)
        }
    };
    said.encode(SerializeType::MSGPACK).ok()
}

fn run(
    sessions: &Arc<Registry>,
    question: &Asked,
    target: Option<&Target>,
    bytes_max: usize,
) -> Result<Said, TopicError> {
    Ok(match (question, target) {
        (Asked::Explain, Some(target)) => {
            let mut told = sessions.explain(target)?;
            let count = told.len();
            let mut bytes = 0;
            let fits = told.iter().take_while(|one| {
                bytes += one.encode(SerializeType::MSGPACK).map_or(bytes_max, |encoded| encoded.len());
                bytes <= bytes_max
            });
            let fits = fits.count();
            told.truncate(fits);
            Said::Explained(told, count - fits)
        }
        (Asked::Kick(why), Some(target)) => {
            let found = sessions.find_all(target)?;
            sessions.kick(&found, why);
            Said::Kicked(found.len())
        }
        (Asked::Find(asked), _) => {
            let (seen, is_cut) = sessions.seen(asked, bytes_max / SEEN_BYTES);
            Said::Found(seen, is_cut)
        }
        _ => Said::No,
    })
}

/// Where sessions are that may be called.
pub(super) async fn find(node: &Node, asked: FindAsked, within: Duration) -> FoundEverywhere {
    let mut everywhere = FoundEverywhere::default();
    if let Some(sessions) = node.registry() {
        let me = node.me().unwrap_or(NodeId(0));
        let (seen, _) = sessions.seen(&asked, usize::MAX);
        everywhere.found.extend(seen.into_iter().map(|seen| (me, seen)));
    }
    let answers = node.ask_others(&Question { question: Asked::Find(asked), target: None }, within).await;
    everywhere.silent = answers.silent;
    for (node, said) in answers.answers {
        match said {
            Said::Found(seen, is_cut) => {
                everywhere.found.extend(seen.into_iter().map(|seen| (node, seen)));
                everywhere.silent.extend(is_cut.then_some((node, UnreachedWhy::TooLarge)));
            }
            _ => everywhere.silent.push((node, UnreachedWhy::Refused)),
        }
    }
    everywhere
}

impl Node {
    /// What lately happened to these sessions, at every node.
    pub(crate) async fn explain(&self, target: &Target) -> Result<Answers<Explained>, TopicError> {
        let answers = self.ask_all(Asked::Explain, target).await?;
        Ok(answers.map(|said| match said {
            Said::Explained(sessions, left_out) => Some(Explained { sessions, left_out }),
            _ => None,
        }))
    }

    /// Sessions that come here from now on, and were there before, are kicked too.
    fn note_kick(&self, question: &Asked, target: Option<&Target>) {
        if let (Asked::Kick(why), Some(target)) = (question, target) {
            self.kicks.lock().note(target, why);
        }
    }

    /// Asks the servers of the other nodes, but not these: they are among those of which nobody knows already.
    pub(crate) async fn ask_homes(&self, question: Bytes, except: &[NodeId]) -> Answers<Bytes> {
        let question = Question { question: Asked::Home(question), target: None };
        let answers = self.ask_but(&question, ANSWER_MAX, except).await;
        answers.map(|said| match said {
            Said::Home(answer) => Some(answer),
            _ => None,
        })
    }

    /// Asks all other members whether they are there. Those that do not answer, and for how long they were asked.
    pub(super) async fn ask_whether_there(&self) -> (Vec<NodeId>, Duration) {
        let began = Instant::now();
        // One of any version answers this, and its answer is all that counts here.
        let question = Question { question: Asked::Counts(self.me().map_or(0, |me| me.0)), target: None };
        let answers = self.ask_others(&question, ANSWER_MAX).await;
        let is_silent = |(node, why)| (why != UnreachedWhy::Refused).then_some(node);
        (answers.silent.into_iter().filter_map(is_silent).collect(), began.elapsed())
    }

    pub(super) async fn ask_all(&self, question: Asked, target: &Target) -> Result<Answers<Said>, TopicError> {
        let mut answers = Answers { answers: Vec::new(), silent: Vec::new() };
        // Here first: a target that is none is nobody's.
        if let Some(sessions) = self.registry() {
            let said = run(&sessions, &question, Some(target), usize::MAX)?;
            self.note_kick(&question, Some(target));
            answers.answers.push((self.me().unwrap_or(NodeId(0)), said));
        }
        let Some(carried) = Carried::of_target(target) else { return Ok(answers) };
        let question = Question { question, target: Some(carried) };
        let others = self.ask_others(&question, ANSWER_MAX).await;
        answers.answers.extend(others.answers);
        answers.silent.extend(others.silent);
        Ok(answers)
    }

    /// Asks all other members at once, and waits this long for the slowest. Those that were members lately are named as
    /// silent: nobody knows what they would say.
    async fn ask_others(&self, question: &Question, within: Duration) -> Answers<Said> {
        self.ask_but(question, within, &[]).await
    }

    /// As [`Self::ask_others`], without these.
    async fn ask_but(&self, question: &Question, within: Duration, except: &[NodeId]) -> Answers<Said> {
        let mut answers = Answers { answers: Vec::new(), silent: Vec::new() };
        let Ok(bytes) = question.encode(SerializeType::MSGPACK) else { return answers };
        let mut asking = JoinSet::new();
        for node in self.members().into_iter().filter(|node| !self.leaves(*node) && !except.contains(node)) {
            asking.spawn(ask(Arc::clone(self.engine()), node, bytes.clone(), within));
        }
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok((node, Ok(said))) => answers.answers.push((node, said)),
                Ok((node, Err(why))) => answers.silent.push((node, why)),
                // Its runtime has ended, and with it this future.
                Err(_) => {}
            }
        }
        for (node, why) in self.absent() {
            // Its lease may have ended while it was asked, or after it has answered.
            if !except.contains(&node) && !answers.is_of(node) {
                answers.silent.push((node, why));
            }
        }
        answers
    }
}

impl<T> Answers<T> {
    /// It has answered, or is named.
    fn is_of(&self, node: NodeId) -> bool {
        self.is_silent(node) || self.answers.iter().any(|(answered, _)| *answered == node)
    }

    pub(super) fn is_silent(&self, node: NodeId) -> bool {
        self.silent.iter().any(|(silent, _)| *silent == node)
    }
}

impl Answers<Said> {
    pub(super) fn map<T>(self, of: impl Fn(Said) -> Option<T>) -> Answers<T> {
        let mut answers = Answers { answers: Vec::new(), silent: self.silent };
        for (node, said) in self.answers {
            match of(said) {
                Some(said) => answers.answers.push((node, said)),
                None => answers.silent.push((node, UnreachedWhy::Refused)),
            }
        }
        answers
    }
}

/// Asks a node once. `None`: it does not answer.
pub(super) async fn once(engine: Arc<dyn Engine>, node: NodeId, question: Bytes) -> (NodeId, Option<Bytes>) {
    (node, engine.ask(node, question, ASK_MAX).await.ok())
}

async fn ask(
    engine: Arc<dyn Engine>,
    node: NodeId,
    question: Bytes,
    within: Duration,
) -> (NodeId, Result<Said, UnreachedWhy>) {
    let deadline = Instant::now() + within;
    loop {
        let why = match engine.ask(node, question.clone(), ASK_MAX.min(within)).await {
            Ok(answer) => {
                return (node, Said::decode(SerializeType::MSGPACK, answer).map_err(|_| UnreachedWhy::Refused));
            }
            Err(AskError::TimedOut) => UnreachedWhy::TimedOut,
            Err(AskError::NoNode) => UnreachedWhy::NodeLost,
            Err(AskError::TooLarge) => return (node, Err(UnreachedWhy::TooLarge)),
            Err(AskError::Down) => return (node, Err(UnreachedWhy::EngineDown)),
        };
        if deadline <= Instant::now() {
            return (node, Err(why));
        }
        // One that was not there may be on its way back.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
