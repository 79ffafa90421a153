//! What the host keeps in its own memory for one guest behind handles: blobs, half-built passes, results.
//!
//! Owns: the count of those bytes and their bound. Never: the things themselves. The guest's linear memory has a
//! limit of its own; without this one a guest could park any amount on our side of the border.

use super::Trap;
use crate::limits;
use crate::quota::{Name, Quota, Quotas, Shares};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One per instance; clones count together.
#[derive(Clone, Debug)]
pub struct Meter {
    held: Arc<AtomicUsize>,
    full: Quota,
    /// Whole portions count with the subject's memory and everyone's.
    shares: Shares,
}

/// Some counted bytes; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    meter: Meter,
    bytes: usize,
}

impl Meter {
    /// Nothing is held yet.
    pub fn new(quotas: &Quotas, shares: Shares) -> Meter {
        Meter { held: Arc::default(), full: quotas.over(Name::HeldBytes), shares }
    }

    /// # Errors
    /// The instance would hold more than it may.
    pub fn charge(&self, bytes: usize) -> Result<Charge, Trap> {
        let mut charge = Charge { meter: self.clone(), bytes: 0 };
        charge.set(bytes)?;
        Ok(charge)
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Charge {
    /// What is counted here is now `bytes`; after an error it stays what it was.
    pub fn set(&mut self, bytes: usize) -> Result<(), Trap> {
        // Only the guest's own calls charge, one at a time; a late drop elsewhere only ever lowers the count.
        let others = self.meter.held().saturating_sub(self.bytes);
        if others.saturating_add(bytes) as u64 > self.meter.full.limit {
            return Err(Trap::Quota(self.meter.full));
        }
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.meter.more(more)?,
            None => self.meter.less(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Meter {
    fn more(&self, bytes: usize) -> Result<(), Trap> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let portions = portions(before + bytes) - portions(before);
        if portions > 0
            && let Err(quota) = self.shares.take(portions)
        {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Trap::Quota(quota));
        }
        Ok(())
    }

    fn less(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::Relaxed);
        let portions = portions(before) - portions(before - bytes);
        if portions > 0 {
            self.shares.give(portions);
        }
    }
}

/// Bytes that count with others' too: the passes of an ordinary program never come so far, and their host calls share no
/// counter with anybody.
fn portions(held: usize) -> u64 {
    (held - held % limits::HELD_PORTION_BYTES) as u64
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.less(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Account;

    #[test]
    fn bytes_count_until_dropped_and_the_bound_holds() {
        let quotas = Quotas::default().with(Name::HeldBytes, 1000);
        let account = Account::alone();
        let meter = Meter::new(&quotas, account.memory(&quotas));
        let mut first = meter.charge(990).unwrap();
        let second = meter.charge(10).unwrap();
        assert_eq!(meter.charge(1).err(), Some(Trap::Quota(quotas.over(Name::HeldBytes))));
        assert!(first.set(1000).is_err());
        first.set(5).unwrap();
        assert_eq!(meter.held(), 15);
        drop((first, second));
        assert_eq!(meter.held(), 0);
    }

    #[test]
    fn what_is_more_than_a_portion_counts_with_others_and_comes_back() {
        let portion = limits::HELD_PORTION_BYTES;
        let quotas = Quotas::default().with(Name::SubjectMemoryBytes, 2 * portion as u64);
        let account = Account::alone();
        let meters = [0, 1].map(|_| Meter::new(&quotas, account.memory(&quotas)));
        let mut first = meters[0].charge(2 * portion).unwrap();
        let second = meters[1].charge(portion - 1).unwrap();
        let full = Some(Trap::Quota(quotas.over(Name::SubjectMemoryBytes)));
        assert_eq!(meters[1].charge(1).err(), full);
        assert_eq!(meters[1].held(), portion - 1, "a refused charge changes nothing");
        first.set(portion + 1).unwrap();
        let third = meters[1].charge(1).unwrap();
        drop((first, second, third));
        assert_eq!(account.memory(&quotas).take(2 * portion as u64), Ok(()), "all of it comes back");
    }
}
