//! Asks who is in a topic.

use bothways_proto::keys;

use crate::{
    caller::{CallOptions, Caller},
    error::CallError,
    session::{Presence, PresenceMember, RosterArgs, RosterReply},
};

/// Calls that are made for one roster at most: a server that always has more to tell is no reason to ask for ever.
const CALLS_MAX: usize = 10_000;

/// All who are in a topic, in as many calls as it takes.
pub(super) async fn of(caller: &impl Caller, topic: &str) -> Result<Presence, CallError> {
    let mut args = RosterArgs { topic: topic.to_owned(), ..RosterArgs::default() };
    let mut all = Presence::default();
    for call in 0..CALLS_MAX {
        let mut options = CallOptions::new();
        options.is_own = true;
        let reply = caller.call_typed::<_, RosterReply>(keys::CONTROL_PATH, keys::ROSTER, &args, options).await?.value;
        if call == 0 {
            // A change that comes while the rest is told is newer than this.
            all.generation = reply.generation;
        }
        let last = reply.members.last().map(|last| (last.user.clone(), last.session.clone()));
        all.members.extend(reply.members.into_iter().map(PresenceMember::from));
        match last {
            Some(last) if reply.more => (args.after_user, args.after_session) = last,
            _ => break,
        }
    }
    Ok(all)
}
