//! What the host keeps in its own memory for one guest behind handles: blobs, half-built passes, results.
//!
//! Owns: the count of those bytes and their bound. Never: the things themselves. The guest's linear memory has a
//! limit of its own; without this one a guest could park any amount on our side of the border.

use super::Trap;
use crate::quota::{Name, Quota, Quotas};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One per instance; clones count together.
#[derive(Clone, Debug)]
pub struct Meter {
    held: Arc<AtomicUsize>,
    full: Quota,
}

/// Some counted bytes; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    meter: Meter,
    bytes: usize,
}

impl Meter {
    /// Nothing is held yet.
    pub fn new(quotas: &Quotas) -> Meter {
        Meter { held: Arc::default(), full: quotas.over(Name::HeldBytes) }
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
        self.meter.held.fetch_add(bytes, Ordering::Relaxed);
        self.meter.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_until_dropped_and_the_bound_holds() {
        let quotas = Quotas::default().with(Name::HeldBytes, 1000);
        let meter = Meter::new(&quotas);
        let mut first = meter.charge(990).unwrap();
        let second = meter.charge(10).unwrap();
        assert_eq!(meter.charge(1).err(), Some(Trap::Quota(quotas.over(Name::HeldBytes))));
        assert!(first.set(1000).is_err());
        first.set(5).unwrap();
        assert_eq!(meter.held(), 15);
        drop((first, second));
        assert_eq!(meter.held(), 0);
    }
}
