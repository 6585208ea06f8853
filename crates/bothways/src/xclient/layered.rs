//! The end of a call that goes through layers: all tries that its fail mode makes.

use super::XClient;
use crate::{
    call::{BoxFuture, Call, CallService},
    caller::RawReply,
    clock::anywhere,
    error::{CallError, PushError},
};

/// Calls of many servers.
pub(super) struct Layered(pub(super) XClient);

impl CallService for Layered {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let client = self.0.clone();
        Box::pin(async move {
            let raw = call.as_raw();
            anywhere!(client.shared.servers.runtime(), client.call_by_fail_mode(&raw))
        })
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        let client = self.0.clone();
        Box::pin(async move {
            let raw = push.as_raw();
            anywhere!(client.shared.servers.runtime(), client.push_by_fail_mode(&raw))
        })
    }
}
