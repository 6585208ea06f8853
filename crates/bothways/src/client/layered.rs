//! The end of a call that goes through layers: the client itself.

use std::time::Duration;

use super::{Client, Patience};
use crate::{
    call::{BoxFuture, Call, CallService},
    caller::RawReply,
    clock::anywhere,
    connection::CallTime,
    error::{CallError, PushError},
};

/// A call of a client, which has so much time.
pub(super) struct Layered {
    pub(super) client: Client,
    pub(super) time: Option<CallTime>,
    pub(super) timeout: Option<Duration>,
}

impl CallService for Layered {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let (client, time, timeout) = (self.client.clone(), self.time, self.timeout);
        Box::pin(async move {
            let time = call.time_left(time, timeout);
            let raw = call.as_raw();
            anywhere!(client.runtime(), client.call_noting(&raw, time, Patience::Connection, |_| {}))
        })
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        let client = self.client.clone();
        Box::pin(async move {
            let raw = push.as_raw();
            anywhere!(client.runtime(), client.push_over(Patience::Connection, &raw))
        })
    }
}

/// One try of a call of several servers, which has so much time.
pub(super) struct LayeredTry {
    pub(super) client: Client,
    pub(super) time: Option<CallTime>,
    pub(super) timeout: Option<Duration>,
}

impl CallService for LayeredTry {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let (client, time, timeout) = (self.client.clone(), self.time, self.timeout);
        Box::pin(async move {
            let time = call.time_left(time, timeout);
            client.try_call_direct(&call.as_raw(), time, None).await
        })
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        let client = self.client.clone();
        Box::pin(async move { client.push_over(Patience::OneTry, &push.as_raw()).await })
    }
}
