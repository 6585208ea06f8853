//! What a server tells the other nodes of its cluster of itself, and answers their servers.

use std::sync::Arc;

use bothways_proto::SerializeType;
use bytes::Bytes;

use super::{Server, Shared, admin};
use crate::{
    cluster::{Home, Load},
    codec::{Encode, Payload},
    reply::BoxFuture,
};

impl Home for Shared {
    fn load(&self) -> Load {
        let load = &self.settings.load;
        Load {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_draining: self.is_stopping(),
            sessions: self.sessions.len(),
            sessions_away: self.sessions.away(),
            connections: self.connections.lock().len(),
            calls_running: load.running(),
            outgoing_bytes: load.outgoing().bytes(),
        }
    }

    fn answer(self: Arc<Self>, question: Bytes, bytes_max: usize) -> BoxFuture<Option<Bytes>> {
        Box::pin(async move {
            let asked = admin::FarQuestion::decode(SerializeType::MSGPACK, question).ok()?;
            let answer = admin::answer_far(&Server { shared: self }, asked, bytes_max).await?;
            answer.encode(SerializeType::MSGPACK).ok()
        })
    }
}
