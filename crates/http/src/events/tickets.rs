//! Tickets: a browser's `EventSource` cannot send a token, and in a URL a token would be in the logs of every proxy.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::fault::Fault;

/// Each is good once, and not for long.
pub(crate) struct Tickets {
    time: Duration,
    tickets_max: usize,
    given: Mutex<HashMap<String, Ticket>>,
}

struct Ticket {
    token: String,
    until: Instant,
}

impl Tickets {
    pub(super) fn new(time: Duration, tickets_max: usize) -> Self {
        Self { time, tickets_max, given: Mutex::default() }
    }

    /// A ticket in place of this token, which the server has let in.
    pub(super) fn give(&self, token: String) -> Result<String, Fault> {
        let (ticket, now) = (format!("{:032x}", rand::random::<u128>()), Instant::now());
        let mut given = self.given.lock();
        if self.tickets_max <= given.len() {
            given.retain(|_, ticket| now < ticket.until);
        }
        if self.tickets_max <= given.len() {
            return Err(Fault::overloaded("too many tickets are not used yet"));
        }
        given.insert(ticket.clone(), Ticket { token, until: now + self.time });
        Ok(ticket)
    }

    /// The token for which a ticket was given. The ticket is used then.
    pub(super) fn take(&self, ticket: &str) -> Option<String> {
        let ticket = self.given.lock().remove(ticket)?;
        (Instant::now() < ticket.until).then_some(ticket.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_for_its_time() {
        let tickets = Tickets::new(Duration::from_secs(30), 2);
        let (first, second) = (tickets.give("a".into()).expect("room"), tickets.give("b".into()).expect("room"));
        assert_ne!(first, second);
        assert_eq!(tickets.give("c".into()).expect_err("no room").kind, "overloaded");
        assert_eq!(tickets.take(&first).as_deref(), Some("a"));
        assert_eq!(tickets.take(&first), None);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(tickets.take(&second), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tickets_that_nobody_used_make_room() {
        let tickets = Tickets::new(Duration::from_secs(30), 1);
        tickets.give("a".into()).expect("room");
        tokio::time::advance(Duration::from_secs(31)).await;
        tickets.give("b".into()).expect("the first one is too old");
    }
}
