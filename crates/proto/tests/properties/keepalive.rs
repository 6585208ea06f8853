//! The keepalive, driven as the shell drives it: it sleeps until it is told, or until something comes.

use std::time::Duration;

use bothways_proto::{Keepalive, KeepaliveAction};
use proptest::{collection::vec, prelude::*};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

proptest! {
    /// In each silence of `gap`: one ping exactly if it reaches the interval, gone exactly if it
    /// reaches the timeout too, at exactly that moment.
    #[test]
    fn a_silence_is_met_with_one_ping_and_then_an_end(
        interval in 1..500_u64, timeout in 1..500_u64, start in 0..5000_u64, gaps in vec(0..1100_u64, 1..20),
    ) {
        let mut keepalive = Keepalive::new(ms(interval), ms(timeout), ms(start));
        let (mut now, mut heard) = (start, start);
        for gap in gaps {
            let next = heard + gap;
            let (mut pings, mut gone) = (0, None);
            loop {
                match keepalive.poll(ms(now)) {
                    KeepaliveAction::Ping => pings += 1,
                    KeepaliveAction::Gone => {
                        gone = Some(now);
                        break;
                    }
                    KeepaliveAction::WaitUntil(moment) => {
                        prop_assert!(ms(now) < moment, "told at {now} to wait until {moment:?}");
                        // What comes at the very moment comes too late.
                        if ms(next) < moment {
                            break;
                        }
                        now = moment.as_millis() as u64;
                    }
                }
            }
            prop_assert_eq!(pings, u32::from(interval <= gap));
            prop_assert_eq!(gone, (interval + timeout <= gap).then_some(heard + interval + timeout));
            if gone.is_some() {
                return Ok(());
            }
            (now, heard) = (next, next);
            keepalive.handle_received(ms(now));
        }
    }
}
