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

/// Fuel used and not paid for yet, and the second up to which it was paid, in one word: 40 and 24 bits.
#[derive(Debug, Default)]
pub struct Window(AtomicU64);

const FUEL_BITS: u32 = 40;
const FUEL: u64 = (1 << FUEL_BITS) - 1;
const SECONDS: u64 = (1 << (64 - FUEL_BITS)) - 1;

impl Window {
    /// Adds fuel that was used in this second, and has each second since the last one pay `share`. Answers what is
    /// unpaid.
    fn spend(&self, second: u64, fuel: u64, share: u64) -> u64 {
        let add = |word: u64| {
            // The number of a second is cut off after half a year, and so is the difference.
            let since = second.wrapping_sub(word >> FUEL_BITS) & SECONDS;
            let unpaid = (word & FUEL).saturating_sub(share.saturating_mul(since));
            unpaid.saturating_add(fuel).min(FUEL)
        };
        let next = |word| Some((second & SECONDS) << FUEL_BITS | add(word));
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(before) | Err(before) => add(before),
        }
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
        let mut fuel = std::mem::take(&mut self.uncounted);
        self.share.take(fuel)?;
        self.counted += fuel;
        let epoch = self.account.all.epoch;
        loop {
            let second = clock::now().saturating_duration_since(epoch).as_secs();
            let [own, subject] = self.rates;
            let unpaid =
                [self.own.spend(second, fuel, own), self.account.window.spend(second, fuel, subject)];
            if unpaid[0] < own && unpaid[1] < subject {
                return Ok(());
            }
            fuel = 0;
            clock::at(epoch + Duration::from_secs(second + 1)).await;
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
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
        assert_eq!(window.spend(61, 2, NONE), 2);
        assert_eq!(window.spend(61, u64::MAX, 10), FUEL, "as much as can be told");
        // The number of a second begins again.
        let window = Window::default();
        assert_eq!(window.spend(SECONDS, 25, 10), 25);
        assert_eq!(window.spend(SECONDS + 1, 0, 10), 15);
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
        assert_eq!(keep(&mut second, 60), Ok(()));
        drop(second);
        assert_eq!(account.fuel(&quotas).take(100), Ok(()), "all of it came back");
    }
}
