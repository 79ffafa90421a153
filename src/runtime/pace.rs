//! Fuel by the second: who has used up what a second gives waits for the next one's share.
//!
//! Owns: the count of the second that runs, of one instance or of a subject's together, and the wait. Never: an end; a
//! rate is no reason to end anybody, and a guest that waits holds no thread.
//!
//! What is used beyond a second's share (a host call may cost that much at once) is owed: later seconds pay for it first.

use super::account::Account;
use crate::clock;
use crate::quota::{NONE, Name, Quota, Quotas, Share};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Fuel (or bytes of the log) used and not paid for yet, and the second up to which it was paid, in one word: 40 and 24 bits.
#[derive(Debug, Default)]
pub struct Window(AtomicU64);

const FUEL_BITS: u32 = 40;
const FUEL: u64 = (1 << FUEL_BITS) - 1;
const SECONDS: u64 = (1 << (64 - FUEL_BITS)) - 1;
/// So many seconds may pass between a look at the clock and what it is for.
const LATE: u64 = 60;

impl Window {
    /// Adds fuel that was used in this second, and has each second since the last one pay `share`. Answers what is
    /// unpaid. Whoever has no bound neither pays, for others too, nor owes.
    pub(super) fn spend(&self, second: u64, fuel: u64, share: u64) -> u64 {
        if share == NONE {
            return 0;
        }
        let next = |word| Some(Window::next(word, second, fuel, share));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let (Ok(before) | Err(before)) = before;
        Window::next(before, second, fuel, share) & FUEL
    }

    /// The same if no more than `most` is unpaid then; otherwise nothing is added, and there is no answer.
    pub(super) fn spend_within(&self, most: u64, second: u64, fuel: u64, share: u64) -> Option<u64> {
        let next = |word| Some(Window::next(word, second, fuel, share)).filter(|next| next & FUEL <= most);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Window::next(before, second, fuel, share) & FUEL)
    }

    fn next(word: u64, second: u64, fuel: u64, share: u64) -> u64 {
        // The number of a second is cut off after half a year, and so is the difference. Nearly all of that is less
        // than nothing: somebody read the clock, and another came first.
        let since = second.wrapping_sub(word >> FUEL_BITS) & SECONDS;
        let since = if since > SECONDS - LATE { 0 } else { since };
        let unpaid = (word & FUEL).saturating_sub(share.saturating_mul(since));
        let paid = (word >> FUEL_BITS).wrapping_add(since) & SECONDS;
        paid << FUEL_BITS | unpaid.saturating_add(fuel).min(FUEL)
    }
}

/// What one instance counts of its fuel beside the total of its life.
pub struct Pace {
    own: Window,
    account: Arc<Account>,
    share: Share,
    /// Fuel a second, of the instance and of its subject.
    rates: [u64; 2],
    /// Used, and not counted with the subject yet.
    uncounted: u64,
    /// Counted with the subject.
    counted: u64,
    /// Count when so much is to be counted.
    portion: u64,
}

impl Pace {
    /// `slice`: the fuel of a slice.
    pub fn new(account: Arc<Account>, quotas: &Quotas, slice: u64) -> Pace {
        let share = account.fuel(quotas);
        let rates = [Name::FuelPerSecond, Name::SubjectFuelPerSecond].map(|name| quotas.get(name));
        // Where nothing depends on it, threads need not meet at the count after every host call.
        let bounded = rates.iter().any(|rate| *rate != NONE) || quotas.get(Name::SubjectFuel) != NONE;
        let portion = if bounded { 1 } else { slice };
        Pace { own: Window::default(), account, share, rates, uncounted: 0, counted: 0, portion }
    }

    /// Fuel that a slice should not exceed: one second's share.
    pub fn most(&self) -> u64 {
        self.rates[0].min(self.rates[1]).max(1)
    }

    pub fn used(&mut self, fuel: u64) {
        self.uncounted += fuel;
    }

    /// Counts what was used, and waits while this second's share is.
    ///
    /// # Errors
    /// The subject has used what it may in all.
    pub async fn keep(&mut self) -> Result<(), Quota> {
        if self.uncounted < self.portion {
            return Ok(());
        }
        self.share.take(self.uncounted)?;
        self.counted += self.uncounted;
        let mut fuel = std::mem::take(&mut self.uncounted);
        loop {
            let second = self.account.all.second();
            let [own, subject] = self.rates;
            let unpaid = [self.own.spend(second, fuel, own), self.account.spend(second, fuel, subject)];
            if unpaid[0] < own && unpaid[1] < subject {
                return Ok(());
            }
            fuel = 0;
            clock::at(self.account.all.epoch + Duration::from_secs(second + 1)).await;
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // The last slice is nobody's gift either.
        self.account.spend(self.account.all.second(), self.uncounted, self.rates[1]);
        self.share.give(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_pays_its_share_and_what_is_beyond_is_owed() {
        let window = Window::default();
        assert_eq!(window.spend(5, 30, 10), 30, "three seconds' worth at once");
        assert_eq!(window.spend(6, 0, 10), 20);
        assert_eq!(window.spend(6, 3, 10), 23, "the same second");
        assert_eq!(window.spend(8, 0, 10), 3);
        assert_eq!(window.spend(60, 7, 10), 7, "what is not used is not kept");
        assert_eq!((window.spend(900, 5, NONE), window.spend(60, 0, 10)), (0, 7), "no bound, no part in it");
        assert_eq!(window.spend(61, u64::MAX, 10), FUEL, "as much as can be told");
        // The number of a second begins again.
        let window = Window::default();
        assert_eq!(window.spend(SECONDS / 2, 7, 10), 7);
        assert_eq!(window.spend(SECONDS, 25, 10), 25, "a quarter of a year later");
        assert_eq!(window.spend(SECONDS + 1, 0, 10), 15);
    }

    /// The story: two threads read the clock, and the one that had read it first came last. The difference was minus one
    /// second, cut off to half a year, and half a year paid for everything.
    #[test]
    fn a_clock_that_was_read_late_pays_nothing_and_moves_nothing_back() {
        let window = Window::default();
        assert_eq!(window.spend(6, 1000, 10), 1000);
        assert_eq!(window.spend(5, 3, 10), 1003);
        assert_eq!(window.spend(6, 0, 10), 1003, "the sixth second does not pay twice");
        assert_eq!(window.spend(7, 0, 10), 993);
        let window = Window::default();
        assert_eq!(window.spend(SECONDS / 2, 0, 10), 0);
        assert_eq!(window.spend(SECONDS, 100, 10), 100);
        assert_eq!(window.spend(SECONDS + 1, 0, 10), 90);
        assert_eq!(window.spend(SECONDS, 0, 10), 90, "across the end of the numbers too");
    }

    #[test]
    fn what_was_not_counted_when_a_life_ends_is_owed_by_its_subject() {
        let account = Account::alone();
        let quotas = Quotas::default().with(Name::SubjectFuelPerSecond, 10);
        let mut pace = Pace::new(account.clone(), &quotas, 1_000);
        pace.used(1_000_000);
        assert!(!account.owes());
        drop(pace);
        assert!(account.owes());
    }

    #[test]
    fn a_subject_pays_for_all_of_its_instances_and_gets_back_what_ends() {
        let account = Account::alone();
        let quotas = Quotas::default().with(Name::SubjectFuel, 100);
        let mut paces = [0, 1].map(|_| Pace::new(account.clone(), &quotas, 1_000));
        let keep = |pace: &mut Pace, fuel| {
            pace.used(fuel);
            smol::block_on(pace.keep())
        };
        assert_eq!(keep(&mut paces[0], 60), Ok(()));
        assert_eq!(keep(&mut paces[1], 60), Err(quotas.over(Name::SubjectFuel)));
        let [first, mut second] = paces;
        drop(first);
        assert_eq!(keep(&mut second, 0), Ok(()), "what it has used is there to be counted still");
        drop(second);
        assert_eq!(account.fuel(&quotas).take(100), Ok(()), "all of it came back");
    }
}
