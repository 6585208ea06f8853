//! Stops in good order: answers what runs, says goodbye, closes.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout_at;

use super::Shared;
use crate::connection::{Connection, after};

/// What a shutdown left behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Requests whose handlers still ran at the deadline: their callers got no reply.
    pub calls_unfinished: usize,
    /// Connections that had to be cut at the deadline, with bytes for them unwritten.
    pub connections_cut: usize,
}

pub(super) async fn shutdown(shared: &Arc<Shared>, deadline: Duration) -> ShutdownReport {
    let deadline = after(deadline);
    shared.stopping.send_replace(true);
    let hooks = std::mem::take(&mut *shared.hooks.on_shutdown.lock());
    for hook in hooks {
        // In a task of its own, so that its panic ends no shutdown.
        match timeout_at(deadline, tokio::spawn(hook())).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => tracing::error!(%panic, "a shutdown hook panicked"),
            Err(_) => tracing::warn!("a shutdown hook was not done within the deadline"),
        }
    }
    let connections = || -> Vec<Connection> { shared.connections.lock().values().cloned().collect() };
    for connection in connections() {
        connection.say_goodbye("shutting_down", "the server is shutting down");
    }
    let _ = timeout_at(deadline, shared.settings.load.idle()).await;
    let calls_unfinished = shared.settings.load.running();
    for connection in connections() {
        connection.close();
    }
    let _ = timeout_at(deadline, emptied(shared)).await;
    let left = connections();
    for connection in &left {
        connection.cut();
    }
    ShutdownReport { calls_unfinished, connections_cut: left.len() }
}

async fn emptied(shared: &Shared) {
    loop {
        let emptied = shared.emptied.notified();
        if shared.connections.lock().is_empty() {
            return;
        }
        emptied.await;
    }
}
