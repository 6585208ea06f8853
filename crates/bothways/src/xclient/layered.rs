//! The end of a call that goes through layers: all tries that its fail mode makes.

use std::time::Duration;

use super::XClient;
use crate::{
    call::{BoxFuture, Call, CallService},
    caller::RawReply,
    clock::anywhere,
    connection::CallTime,
    error::{CallError, PushError},
};

/// A call of many servers, which has so much time.
pub(super) struct Layered {
    pub(super) client: XClient,
    pub(super) time: Option<CallTime>,
    pub(super) timeout: Option<Duration>,
}

impl CallService for Layered {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let (client, time, timeout) = (self.client.clone(), self.time, self.timeout);
        Box::pin(async move {
            let time = call.time_left(time, timeout);
            let raw = call.as_raw();
            anywhere!(client.shared.servers.runtime(), client.call_by_fail_mode(&raw, time))
        })
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        let client = self.client.clone();
        Box::pin(async move {
            let raw = push.as_raw();
            anywhere!(client.shared.servers.runtime(), client.push_by_fail_mode(&raw))
        })
    }
}
