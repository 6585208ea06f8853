//! Replies to the server's calls, so that a call that is sent again after a lost connection runs once.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bothways_proto::keys;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{
    handler::{BoxHandler, Request},
    reply::{BoxFuture, Reply},
};

/// Most calls whose replies are remembered. A server sends a call again only while it waits for it.
const CALLS: usize = 256;

/// Calls that run or have run, by the id that their server gave them.
#[derive(Clone, Debug, Default)]
pub(super) struct Results {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    replies: HashMap<String, Arc<OnceCell<Reply>>>,
    order: VecDeque<String>,
}

impl Results {
    /// Runs a handler, or waits for the one that runs already, or gives its reply once more.
    pub(super) fn once(&self, request: Request, handler: &BoxHandler) -> BoxFuture<Reply> {
        let metadata = request.metadata();
        let Some(id) = metadata.get(keys::CALL_ID) else {
            return handler.handle(request);
        };
        let mut known = self.known.lock();
        let cell = match known.replies.get(id) {
            Some(cell) => Arc::clone(cell),
            None => {
                let cell = Arc::new(OnceCell::new());
                known.replies.insert(id.to_owned(), Arc::clone(&cell));
                known.order.push_back(id.to_owned());
                if CALLS < known.order.len()
                    && let Some(oldest) = known.order.pop_front()
                {
                    known.replies.remove(&oldest);
                }
                cell
            }
        };
        drop(known);
        let run = handler.handle(request);
        // If the first run is cancelled, by the server or its deadline, the next one runs in its place.
        Box::pin(async move { cell.get_or_init(|| run).await.clone() })
    }
}
