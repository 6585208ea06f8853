//! Tickets: a browser's `EventSource` cannot send a token, and in a URL a token would be in the logs of every proxy.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bothways::shares::{Share, Shares};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::fault::Fault;

/// Tickets of one address that are not used.
const PER_ADDRESS: usize = 256;

/// Tickets of one token that are not used: a user has some tabs. Those without a token are bounded by address alone.
const PER_TOKEN: usize = 32;

/// Each is good once, and not for long.
pub(crate) struct Tickets {
    time: Duration,
    places: Arc<Shares>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    given: HashMap<String, Ticket>,
    /// All that were given, in the order in which they become too old; some are used by now.
    order: VecDeque<(Instant, String)>,
    of_token: HashMap<Arc<str>, usize>,
}

struct Ticket {
    token: Arc<str>,
    until: Instant,
    _place: Share,
}

impl Tickets {
    pub(super) fn new(time: Duration, tickets_max: usize) -> Self {
        let places = Arc::new(Shares::new(tickets_max).of_peer_max(PER_ADDRESS));
        Self { time, places, table: Mutex::default() }
    }

    /// A ticket for this peer in place of this token, which the server has let in.
    pub(super) fn give(&self, peer: &str, token: String) -> Result<String, Fault> {
        let (ticket, now) = (format!("{:032x}", rand::random::<u128>()), Instant::now());
        let mut table = self.table.lock();
        table.forget_old(now);
        let place = self.places.take(peer, 1);
        let place = place.map_err(|_| Fault::overloaded("too many tickets are not used yet"))?;
        let token: Arc<str> = token.into();
        if !token.is_empty() {
            let of_token = table.of_token.entry(Arc::clone(&token)).or_default();
            if PER_TOKEN <= *of_token {
                return Err(Fault::overloaded("too many tickets of this token are not used yet"));
            }
            *of_token += 1;
        }

        let until = now + self.time;
        table.order.push_back((until, ticket.clone()));
        table.given.insert(ticket.clone(), Ticket { token, until, _place: place });
        Ok(ticket)
    }

    /// The token for which a ticket was given. The ticket is used then.
    pub(super) fn take(&self, ticket: &str) -> Option<String> {
        let ticket = self.table.lock().remove(ticket)?;
        (Instant::now() < ticket.until).then(|| ticket.token.as_ref().to_owned())
    }
}

impl Table {
    fn remove(&mut self, ticket: &str) -> Option<Ticket> {
        let ticket = self.given.remove(ticket)?;
        if let Some(of_token) = self.of_token.get_mut(&ticket.token) {
            *of_token -= 1;
            if *of_token == 0 {
                self.of_token.remove(&ticket.token);
            }
        }
        Some(ticket)
    }

    /// Gives back the room of those that nobody used in time. A used one leaves its line here until then, so that there
    /// are more lines than tickets only for as long as a ticket is good, and no more than twice as many and some.
    fn forget_old(&mut self, now: Instant) {
        while let Some((until, _)) = self.order.front()
            && *until <= now
            && let Some((_, ticket)) = self.order.pop_front()
        {
            drop(self.remove(&ticket));
        }
        if 2 * self.given.len() + 64 < self.order.len() {
            let given = &self.given;
            self.order.retain(|(_, ticket)| given.contains_key(ticket));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "http@192.0.2.1:1";

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_for_its_time() {
        let tickets = Tickets::new(Duration::from_secs(30), 4);
        let give = |token: &str| tickets.give(PEER, token.to_owned());
        let (first, second) = (give("a").expect("room"), give("b").expect("room"));
        assert_ne!(first, second);
        assert_eq!(give("c").expect_err("it has its share").kind, "overloaded");
        assert_eq!(tickets.take(&first).as_deref(), Some("a"));
        assert_eq!(tickets.take(&first), None);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(tickets.take(&second), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tickets_that_nobody_used_make_room() {
        let tickets = Tickets::new(Duration::from_secs(30), 1);
        tickets.give(PEER, "a".into()).expect("room");
        tokio::time::advance(Duration::from_secs(31)).await;
        tickets.give(PEER, "b".into()).expect("the first one is too old");
    }

    /// Neither an address nor a token takes the tickets of others.
    #[tokio::test(start_paused = true)]
    async fn nobody_takes_the_tickets_of_others() {
        let tickets = Tickets::new(Duration::from_secs(30), 4096);
        let given = (0..1000).filter(|port| tickets.give(&format!("http@192.0.2.1:{port}"), String::new()).is_ok());
        assert_eq!(given.count(), PER_ADDRESS);
        let given = (0..100).filter(|host| tickets.give(&format!("http@192.0.2.{}:1", host + 2), "a".into()).is_ok());
        assert_eq!(given.count(), PER_TOKEN);
        let other = tickets.give("http@198.51.100.1:1", "b".into()).expect("there is room");
        assert_eq!(tickets.take(&other).as_deref(), Some("b"));
    }

    /// However many are given and used within the time of one, what is kept of them has a bound.
    #[tokio::test(start_paused = true)]
    async fn a_used_ticket_is_forgotten() {
        let tickets = Tickets::new(Duration::from_secs(30), 4096);
        for _ in 0..10_000 {
            let ticket = tickets.give(PEER, "a".into()).expect("there is room");
            tickets.take(&ticket).expect("it is good");
        }
        let table = tickets.table.lock();
        assert!(
            table.order.len() <= 66 && table.given.is_empty() && table.of_token.is_empty(),
            "{}",
            table.order.len()
        );
        assert_eq!(tickets.places.taken(), 0);
    }
}
