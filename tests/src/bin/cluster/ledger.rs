//! The books of a whole run: what was told of the events has to hold at the end as well.

use anyhow::{Context, Result, ensure};
use testkit::smtp::Sink;

use crate::load::{Arrivals, Balance, arrivals};
use crate::queue::{self, Account};
use crate::test::Test;

/// The events so far, with what was counted at the end of each.
#[derive(Default)]
pub(crate) struct Ledger(Vec<(&'static str, Balance, Arrivals)>);

impl Ledger {
    /// Writes an event down.
    pub(crate) fn enter(&mut self, event: &'static str, balance: Balance, arrived: Arrivals) {
        self.0.push((event, balance, arrived));
    }

    /// The sum of all events, with what has arrived counted once more; and the ids of which more or fewer copies have
    /// arrived than was told.
    fn recount(&self, store: &Sink) -> (Balance, Vec<String>) {
        let (mut sum, mut differing) = (Balance::default(), Vec::new());
        for (event, told, before) in &self.0 {
            let now = arrivals(store, event);
            sum.sent += told.sent;
            sum.refused += told.refused;
            sum.delivered += now.len();
            sum.doubled += now.values().map(|copies| copies - 1).sum::<usize>();
            differing.extend(differences(before, &now));
        }
        sum.lost = sum.sent.saturating_sub(sum.delivered);
        (sum, differing)
    }
}

fn differences(before: &Arrivals, now: &Arrivals) -> Vec<String> {
    let changed = now.iter().filter(|(id, copies)| before.get(*id) != Some(*copies));
    let gone = before.keys().filter(|id| !now.contains_key(*id));
    changed.map(|(id, _)| id).chain(gone).cloned().collect()
}

/// Counts once more, and has the queue look through itself: prints its line, and whether all agrees.
pub(crate) async fn close(test: &Test) -> Result<bool> {
    let namespace = test.release.namespace;
    let account = queue::account(namespace).await.context("asking the queue for its account")?;
    let audit = queue::audit(namespace).await;
    let (sum, differing) = test.ledger.recount(&test.world.store);
    sum.print("ledger");
    let outcome = agreed(&differing, &account).and(audit);
    if let Err(error) = &outcome {
        println!("cluster: ledger BROKEN: {error:#}; {account:?}");
    }
    Ok(outcome.is_ok())
}

fn agreed(differing: &[String], account: &Account) -> Result<()> {
    ensure!(differing.is_empty(), "copies came or went after they were counted: {differing:?}");
    let Account { delivered, bounced, expired, removed, queued, unaccounted } = *account;
    ensure!(unaccounted == 0, "the queue does not know what came of {unaccounted} entries");
    ensure!([bounced, expired, removed, queued] == [0; 4], "not all {delivered} were handed over");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(copies: &[(&str, usize)]) -> Arrivals {
        copies.iter().map(|(id, copies)| ((*id).to_owned(), *copies)).collect()
    }

    #[test]
    fn later_copies_are_seen() {
        let before = arrivals(&[("quiet:1", 1), ("quiet:2", 2)]);
        assert!(differences(&before, &before).is_empty());
        assert_eq!(differences(&before, &arrivals(&[("quiet:1", 2), ("quiet:2", 2)])), ["quiet:1"]);
        assert_eq!(differences(&before, &arrivals(&[("quiet:1", 1)])), ["quiet:2"]);
        assert_eq!(differences(&arrivals(&[]), &arrivals(&[("quiet:1", 1)])), ["quiet:1"]);
    }

    #[test]
    fn the_queue_accounts_for_everything() {
        let good = Account { delivered: 9, bounced: 0, expired: 0, removed: 0, queued: 0, unaccounted: 0 };
        assert!(agreed(&[], &good).is_ok());
        assert!(agreed(&["quiet:1".to_owned()], &good).is_err());
        for bad in [
            Account { unaccounted: 1, ..good },
            Account { unaccounted: -1, ..good },
            Account { bounced: 1, ..good },
            Account { queued: 1, ..good },
        ] {
            assert!(agreed(&[], &bad).is_err(), "{bad:?}");
        }
    }
}
