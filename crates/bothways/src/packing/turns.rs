//! Turns for long work: a few run at once, and waiting connections take turns.
//!
//! A connection that asks for many has them one after another, each after one turn of every other that waits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns(Arc<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    free: usize,
    /// The connections that wait, by the number of the one of theirs that is next.
    order: BTreeMap<u64, u64>,
    waiting: HashMap<u64, Waiting>,
    next: u64,
}

/// Those of one connection, by number, and where in the order it is.
#[derive(Debug)]
struct Waiting {
    at: u64,
    all: BTreeMap<u64, oneshot::Sender<Turn>>,
}

/// A turn, over when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Mutex<Line>>);

impl Turns {
    /// So many at once.
    pub(super) fn new(at_once: usize) -> Self {
        let (order, waiting) = Default::default();
        Self(Arc::new(Mutex::new(Line { free: at_once, order, waiting, next: 0 })))
    }

    /// The next turn of a connection.
    pub(super) async fn take(&self, of: u64) -> Turn {
        let (number, told) = {
            let mut line = self.0.lock();
            if line.free != 0 {
                line.free -= 1;
                return Turn(Arc::clone(&self.0));
            }
            line.wait(of)
        };
        let _waits = Waits { line: &self.0, of, number };
        match told.await {
            Ok(turn) => turn,
            // Nobody else takes it out of the line.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Line {
    fn wait(&mut self, of: u64) -> (u64, oneshot::Receiver<Turn>) {
        let (teller, told) = oneshot::channel();
        let number = self.number();
        let order = &mut self.order;
        let waiting = self.waiting.entry(of).or_insert_with(|| {
            order.insert(number, of);
            Waiting { at: number, all: BTreeMap::new() }
        });
        waiting.all.insert(number, teller);
        (number, told)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The task that has the next turn; its connection goes to the end of the line.
    fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
        let (_, of) = self.order.pop_first()?;
        let end = self.number();
        let waiting = self.waiting.get_mut(&of)?;
        let (_, teller) = waiting.all.pop_first()?;
        if waiting.all.is_empty() {
            self.waiting.remove(&of);
        } else {
            waiting.at = end;
            self.order.insert(end, of);
        }
        Some(teller)
    }

    fn leave(&mut self, of: u64, number: u64) -> Option<oneshot::Sender<Turn>> {
        let waiting = self.waiting.get_mut(&of)?;
        let left = waiting.all.remove(&number);
        if waiting.all.is_empty() {
            self.order.remove(&waiting.at);
            self.waiting.remove(&of);
        }
        left
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut line = self.0.lock();
            let next = line.pop();
            line.free += usize::from(next.is_none());
            next
        };
        if let Some(next) = next {
            // A task that has given up meanwhile gives it to the next.
            drop(next.send(Turn(Arc::clone(&self.0))));
        }
    }
}

/// Takes one who waits out of the line when it has its turn, or gives up.
struct Waits<'a> {
    line: &'a Mutex<Line>,
    of: u64,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let left = self.line.lock().leave(self.of, self.number);
        // Its waker belongs to the task that waited: it is dropped when nothing is locked.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// One connection that asks for a thousand turns is passed by another that asks for one, and who gives up takes none.
    #[tokio::test(start_paused = true)]
    async fn who_asks_for_many_turns_holds_up_nobody_else() {
        let turns = Arc::new(Turns::new(2));
        let (done, mut had) = tokio::sync::mpsc::unbounded_channel();
        let ask = |of: u64| {
            let (turns, done) = (Arc::clone(&turns), done.clone());
            tokio::spawn(async move {
                let turn = turns.take(of).await;
                done.send(of).expect("it is received");
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(turn);
            })
        };
        let greedy: Vec<_> = (0..1000).map(|_| ask(1)).collect();
        tokio::task::yield_now().await;
        let given_up = ask(2);
        tokio::task::yield_now().await;
        let (_two, _three) = (ask(2), ask(3));
        tokio::task::yield_now().await;
        given_up.abort();
        let mut order = Vec::new();
        while let Ok(Some(of)) = tokio::time::timeout(Duration::from_secs(60), had.recv()).await {
            order.push(of);
        }
        assert_eq!(order.len(), 1002, "each had one");
        assert!(order[..6].contains(&2) && order[..6].contains(&3), "{:?}", &order[..10]);
        for asked in greedy {
            tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it is done").expect("no panic");
        }
        let line = turns.0.lock();
        assert!(line.free == 2 && line.order.is_empty() && line.waiting.is_empty(), "{line:?}");
    }
}
