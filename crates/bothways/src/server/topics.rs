//! The service by which clients subscribe: `_bothways` / `Subscribe` and `Unsubscribe`; and `Roster`, which lists the
//! members of a topic.
//!
//! Ordinary calls, so that a client of any rpcx library can make them; the server's auth hook is asked as for
//! any other, and then the topic's own. What one connection asks of one topic is done one after another, in the order in
//! which it came, hooks and all.

use std::sync::Arc;

use bothways_proto::{CompressType, keys};

use crate::{
    connection::ConnectionId,
    error::ErrorCode,
    handler::{Reply, Request},
    router::Router,
    session::{Answer, Position, Registry, RosterArgs, RosterReply, Session, SubscribeArgs, SubscribeReply, Wish},
};

/// One topic of one connection.
pub(super) type Line = (ConnectionId, Box<str>);

/// Arguments of more bytes than this are not looked at before they are handled: the longest name is far shorter.
const ARGUMENTS_MAX: usize = 4 << 10;

/// The line of a request that subscribes or unsubscribes. `None` for any other request, and for one that is packed or
/// very large, which no Bothways client sends.
pub(super) fn line_of(request: &Request) -> Option<Line> {
    let is_about_topic = matches!(request.service_method(), keys::SUBSCRIBE | keys::UNSUBSCRIBE);
    if !is_about_topic || request.message.header().compress() != CompressType::NONE {
        return None;
    }
    let is_small = request.payload().is_ok_and(|payload| payload.len() <= ARGUMENTS_MAX);
    if !is_small {
        return None;
    }
    let args: SubscribeArgs = request.decode().ok()?;
    Some((request.connection().id(), args.topic.into()))
}

pub(super) fn add_routes(router: Router) -> Router {
    router
        .own(keys::CONTROL_PATH, keys::SUBSCRIBE, |request: Request| async move {
            let args: SubscribeArgs = match request.decode() {
                Ok(args) => args,
                Err(error) => return Reply::refused(ErrorCode::BadArguments, error.to_string()),
            };
            match subscribe(&request, &args).await {
                Ok(answer) => Reply::encode(&SubscribeReply::from(answer), request.serialize_type()),
                Err(text) => Reply::error(text),
            }
        })
        .own(keys::CONTROL_PATH, keys::UNSUBSCRIBE, |request: Request| async move {
            match request.decode::<SubscribeArgs>() {
                Ok(args) => {
                    if let Some(session) = settled(&request).await {
                        session.unsubscribe(&args.topic);
                    }
                    Reply::encode(&SubscribeReply::default(), request.serialize_type())
                }
                Err(error) => Reply::refused(ErrorCode::BadArguments, error.to_string()),
            }
        })
        .own(keys::CONTROL_PATH, keys::ROSTER, |request: Request| async move {
            match request.decode::<RosterArgs>() {
                Ok(args) => match roster(&request, &args, settled(&request).await.as_ref()) {
                    Ok(reply) => Reply::encode(&reply, request.serialize_type()),
                    Err(text) => Reply::error(text),
                },
                Err(error) => Reply::refused(ErrorCode::BadArguments, error.to_string()),
            }
        })
}

fn roster(request: &Request, args: &RosterArgs, session: Option<&Session>) -> Result<RosterReply, String> {
    let over = || "the session is over".to_owned();
    let registry: Arc<Registry> = request.connection().owner().ok_or_else(over)?;
    registry.hub.roster_for(session.ok_or_else(over)?, args)
}

/// The session of who asks. One who has named a session that it had, and is being let in, is answered when it is known
/// which session it gets: what it asks for is for that one.
async fn settled(request: &Request) -> Option<Session> {
    request.session()?.settled().await;
    request.session()
}

async fn subscribe(request: &Request, args: &SubscribeArgs) -> Result<Answer, String> {
    let over = || "the session is over".to_owned();
    let registry: Arc<Registry> = request.connection().owner().ok_or_else(over)?;
    let session = settled(request).await.ok_or_else(over)?;
    // Nobody waits for the hook once the client is gone.
    tokio::select! {
        outcome = registry.hub.authorize(&session, &args.topic) => outcome?,
        _ = request.connection().closed() => return Err(over()),
    }
    let from = (args.epoch != 0).then_some(Position { epoch: args.epoch, offset: args.offset });
    #[cfg(feature = "cluster")]
    tokio::select! {
        outcome = registry.hub.prepare(&session, &args.topic, from) => outcome?,
        _ = request.connection().closed() => return Err(over()),
    }
    // It may be back in its former session by now.
    let session = settled(request).await.ok_or_else(over)?;
    let wish = Wish { pattern: &args.topic, from, part: args.part, ordered: args.ordered };
    registry.hub.subscribe_client(&session, wish).map_err(|error| error.to_string())
}
