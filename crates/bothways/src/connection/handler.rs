//! The trait for the messages that a connection receives. Servers and clients implement it.

use std::{any::Any, sync::Arc, time::Duration};

use bothways_proto::{Message, Metadata, Seq, keys};
use tokio::{runtime::Handle, time::Instant};

use super::{Connection, behind::HeldReply, readers::Readers};
use crate::{
    error::{AuthError, CloseReason},
    reply::{BoxFuture, Reply},
};

/// What the layer above makes of what a connection receives.
pub(crate) trait ConnectionHandler: Send + Sync + 'static {
    /// A request: with `is_oneway` the reply is dropped.
    fn handle_request(&self, connection: &Connection, message: Message) -> Answer;

    /// What finishes something that is under way, see [`ends_something`]: it is done at once, in the order in which it
    /// came, and takes no place of what runs. `None`: it is a request like others.
    fn finish(&self, _: &Connection, _: &Message) -> Option<Reply> {
        None
    }

    /// A request that wants no reply was passed over: it is larger, or has more metadata, than the limits allow, and
    /// only its number is known.
    fn handle_passed_over(&self, connection: &Connection, _: Seq) {
        connection.count_refused_oneway();
    }

    /// True if requests of a client are checked by its token before they run.
    fn asks_for_token(&self) -> bool {
        false
    }

    /// True if a Hello that [`Self::handle_hello`] lets in has shown the client's token.
    fn hello_shows_token(&self) -> bool {
        true
    }

    /// The first frame of a client, whatever it is. `Err`: there are too many now, and it may try again after so long.
    fn admit(&self, _first: &Message) -> Result<(), Duration> {
        Ok(())
    }

    /// While it stops: where else its clients may go, as `_bw.alt` has it.
    fn others(&self) -> Option<String> {
        None
    }

    /// The first frame of a peer that can do more than rpcx. `Err` refuses it, and the connection ends.
    fn handle_hello(&self, connection: &Connection, metadata: Metadata) -> BoxFuture<Result<(), AuthError>>;

    /// The connection is over. Called exactly once.
    fn handle_closed(&self, connection: &Connection, reason: &CloseReason);

    /// True if oneway requests that had not left when their connection ended go to [`Self::handle_unsent`].
    fn sends_again(&self) -> bool {
        false
    }

    /// These oneway requests had not left when their connection ended. So many more had not left whole, and are lost; and
    /// so many had left, and the server has not taken them. The caller may hold locks of this layer.
    fn handle_unsent(&self, _: &Connection, _: Vec<Message>, _lost: usize, _untaken: usize) {}

    /// A Hello was let in, and both sides keep sessions: the pairs that go with the Welcome. `Err`: not now, and the
    /// client may try again after so long.
    fn welcome_pairs(&self, _: &Connection, _hello: &Metadata) -> Result<Metadata, Duration> {
        Ok(Metadata::new())
    }

    /// The Welcome is queued: what follows it may be.
    fn on_welcome_sent(&self, _: &Connection) {}

    /// The answer to our Hello came. `None`: the server speaks plain rpcx.
    fn on_welcome_received(&self, _: &Connection, _welcome: Option<&Metadata>) {}

    /// Who reads for a connection that is idle, if it may do without a task of its own.
    fn readers(&self) -> Option<&Arc<Readers>> {
        None
    }

    /// The timer for callers that wait on a thread without a runtime.
    fn clock(&self) -> Option<&Handle> {
        self.readers().map(|readers| readers.runtime())
    }

    /// What those find who hold only a connection.
    fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// The server that it belongs to.
    fn server(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// True at a client whose server is known to keep topics, negotiated or not.
    fn server_keeps_topics(&self) -> bool {
        false
    }

    /// Whose share of a room that is nearly taken a connection has a part of: its user's, or without one that of its
    /// address. `None`: nobody has a share here. Asked only where a room is more than half taken.
    fn shares_as(&self, _: &Connection) -> Option<Arc<str>> {
        None
    }

    /// Something else is about to be sent: the layer above hands over what it was given for this connection before, and
    /// puts off. Asked only of a connection for which something is kept, and by nobody who holds a lock.
    fn catch_up(&self, _: &Connection) {}

    /// Everything is written, as was asked to be told.
    fn on_writable(&self, _: &Connection) {}

    /// The layer above keeps pushes for want of room that the handler of this reply may have made. The reply goes when
    /// this is dropped.
    fn handle_held(&self, _: &Connection, _: HeldReply) {}
}

/// True for what a client says of what it was sent, or of itself: it acknowledges that, answers it, leaves, or has sent its
/// last request. No bound may lose that, for it makes room, and nothing may bring it out of order.
#[inline(always)]
pub(crate) fn ends_something(message: &Message) -> bool {
    message.has_service_path(keys::CONTROL_PATH) && is_an_end(message.service_method())
}

/// True for a method of the framework that finishes something; see [`ends_something`].
pub(crate) fn is_an_end(method: &str) -> bool {
    matches!(method, keys::ACK | keys::LEAVE | keys::LAST | keys::REPLY)
}

/// How a request is answered.
pub(crate) enum Answer {
    /// At once.
    Ready(Reply),
    /// By a handler; it gives up at the deadline, which is the caller's.
    Later(BoxFuture<Reply>, Option<Instant>),
    /// Not at all.
    Nothing,
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, SerializeType};

    use super::*;

    #[test]
    fn what_ends_something_is_told_by_its_name() {
        let of = |path: &str, method: &str| {
            let header = Header::oneway(Seq::new(1), SerializeType::RAW);
            ends_something(&Message::new(header, path, method, &Metadata::new(), b""))
        };
        for method in [keys::ACK, keys::LEAVE, keys::LAST, keys::REPLY] {
            assert!(of(keys::CONTROL_PATH, method) && !of("T", method), "{method}");
        }
        assert!(!of(keys::CONTROL_PATH, keys::ENABLE));
    }
}
