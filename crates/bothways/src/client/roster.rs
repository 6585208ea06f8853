//! Asks a server for the members of a topic.

use bothways_proto::{SerializeType, keys};

use crate::{
    caller::{CallOptions, Caller},
    codec::CodecError,
    error::CallError,
    session::{Presence, PresenceMember, ROSTER_MEMBERS_MAX, RosterArgs, RosterReply},
};

/// Calls that are made for one roster at most: a server that always has more to tell is no reason to ask for ever.
const CALLS_MAX: usize = 10_000;

/// Bytes of one roster at most, with what each member takes beside its name: 64 MiB, a million users.
const BYTES_MAX: usize = 64 << 20;

/// All who are in a topic, in as many calls as it takes.
pub(super) async fn of(caller: &impl Caller, topic: &str) -> Result<Presence, CallError> {
    let mut args = RosterArgs { topic: topic.to_owned(), ..RosterArgs::default() };
    let mut all = Presence::default();
    let mut bytes = 0;
    for call in 0..CALLS_MAX {
        let mut options = CallOptions::new();
        options.is_own = true;
        let reply = caller.call_typed::<_, RosterReply>(keys::CONTROL_PATH, keys::ROSTER, &args, options).await?.value;

        if ROSTER_MEMBERS_MAX < reply.members.len() {
            return Err(too_much(format!("{} members in one reply, of {ROSTER_MEMBERS_MAX}", reply.members.len())));
        }
        let names = reply.members.iter().map(|member| size_of::<PresenceMember>() + member.user.len());
        bytes += names.sum::<usize>();
        if BYTES_MAX < bytes {
            return Err(too_much(format!("a roster of more than {BYTES_MAX} bytes")));
        }

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

/// The server tells more than there can be.
fn too_much(text: String) -> CallError {
    CallError::Decode(CodecError::Codec { serialize: SerializeType::MSGPACK, text })
}
