//! HTTP connections, which the application's front serves: counted as all others are, and over with the server.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Shared, accept::Place};
use crate::{
    calm::{Said, tell},
    guard::Guarded,
    transport::{HttpFront, HttpStream},
};

/// Those of one server.
#[derive(Debug)]
pub(super) struct Fronts {
    open: watch::Sender<usize>,
    /// The server has stopped: what is still served is dropped.
    over: watch::Sender<bool>,
}

impl Default for Fronts {
    fn default() -> Self {
        Self { open: watch::Sender::new(0), over: watch::Sender::new(false) }
    }
}

impl Fronts {
    /// How many are served.
    pub(super) fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Waits until none is.
    pub(super) async fn idle(&self) {
        // The sender is held here.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Drops what is served, and what comes.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }
}

/// One that is served, until it is not any more, also with its runtime.
struct Served(Arc<Shared>);

impl Served {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.fronts.open.send_modify(|open| *open += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fronts.open.send_modify(|open| *open -= 1);
    }
}

/// Has the front serve a connection, which keeps its place for so long.
pub(super) async fn serve(place: Place, front: Arc<dyn HttpFront>, mut stream: HttpStream) {
    let shared = Arc::clone(place.server());
    let served = Served::begin(&shared);
    stream.belong_to(Arc::clone(&shared) as _, shared.stopping.subscribe());
    let peer = stream.peer();

    let mut over = shared.fronts.over.subscribe();
    let outcome = match Guarded::begin(|| front.serve(stream)) {
        Ok(serving) => tokio::select! {
            outcome = serving => outcome,
            _ = over.wait_for(|over| *over) => Ok(()),
        },
        Err(panicked) => Err(panicked),
    };
    if let Err(panicked) = outcome {
        tell!(shared.calm.hooks, error, peer, panic = ?Said(panicked.text()), "the HTTP front panicked");
    }

    // Its place is free before anybody is told that it is over.
    drop(place);
    drop(served);
}
