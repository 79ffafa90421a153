//! What the host keeps in its own memory for one guest behind handles: blobs, half-built passes, results.
//!
//! Owns: the count of those bytes and their bound. Never: the things themselves. The guest's linear memory has a
//! limit of its own; without this one a guest could park any amount on our side of the border.

use super::Trap;
use crate::limits;
use crate::quota::{Name, Quota, Quotas, Shares};
use std::sync::{Arc, Mutex, PoisonError};

/// One per instance; clones count together.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Held>);

#[derive(Debug)]
struct Held {
    /// Whoever changes it takes or gives portions before anybody else sees it: what a guest's charge takes and what the io
    /// thread lets go at the same time are two changes, one after the other.
    bytes: Mutex<usize>,
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
        Meter(Arc::new(Held { bytes: Mutex::new(0), full: quotas.over(Name::HeldBytes), shares }))
    }

    /// # Errors
    /// The instance would hold more than it may.
    pub fn charge(&self, bytes: usize) -> Result<Charge, Trap> {
        let mut charge = self.nothing();
        charge.set(bytes)?;
        Ok(charge)
    }

    /// A charge of no bytes yet.
    pub fn nothing(&self) -> Charge {
        Charge { meter: self.clone(), bytes: 0 }
    }

    pub fn held(&self) -> usize {
        *self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of all that is held, `less` is now `more`; after an error nothing has changed.
    fn change(&self, less: usize, more: usize) -> Result<(), Trap> {
        let Held { bytes, full, shares } = &*self.0;
        let mut held = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = held.saturating_sub(less).saturating_add(more);
        if more > less && now as u64 > full.limit {
            return Err(Trap::Quota(*full));
        }
        let (before, after) = (portions(*held), portions(now));
        if after > before {
            shares.take(after - before).map_err(Trap::Quota)?;
        } else if after < before {
            shares.give(before - after);
        }
        *held = now;
        Ok(())
    }
}

impl Charge {
    /// What is counted here is now `bytes`; after an error it stays what it was.
    pub fn set(&mut self, bytes: usize) -> Result<(), Trap> {
        self.meter.change(self.bytes, bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes that count with others' too: the passes of an ordinary program never come so far, and their host calls share no
/// counter with anybody.
fn portions(held: usize) -> u64 {
    (held - held % limits::HELD_PORTION_BYTES) as u64
}

impl Drop for Charge {
    fn drop(&mut self) {
        let _ = self.meter.change(self.bytes, 0); // less is never refused
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

    /// The story: a charge raised the count before it took its portions. What another thread let go in between gave back
    /// portions that nobody had; when the charge was then refused, the subject's count fell below zero and no instance
    /// of it was given anything any more.
    #[test]
    fn threads_that_charge_and_let_go_at_an_edge_leave_the_count_whole() {
        let portion = limits::HELD_PORTION_BYTES;
        let quotas = Quotas::default().with(Name::SubjectMemoryBytes, portion as u64);
        let account = Account::alone();
        let other = Meter::new(&quotas, account.memory(&quotas));
        let all = other.charge(portion).unwrap(); // so that every charge past the edge is refused
        let meter = Meter::new(&quotas, account.memory(&quotas));
        let near = meter.charge(portion - 20).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..100_000).for_each(|_| drop(meter.charge(10).unwrap())));
            scope.spawn(|| (0..100_000).for_each(|_| assert!(meter.charge(portion).is_err())));
        });
        drop((all, near));
        assert_eq!((meter.held(), account.memory(&quotas).take(portion as u64)), (0, Ok(())));
        assert!(account.memory(&quotas).take(1).is_err(), "and not a byte more");
    }
}
