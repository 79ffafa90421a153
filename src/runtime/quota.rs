//! The memory of guests: what each has, its subject, and all together.
//!
//! Owns: the limiter that the interpreter asks before memory or a table grows.
//! Never: ending anybody; exceeding a quota is a [`Trap`](crate::host::Trap) or an [`Ending`](super::Ending).

use crate::limits;
pub use crate::quota::{Name, Quota, Quotas};
use smol::channel::{self, Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmi::ResourceLimiter;
use wasmi_core::LimiterError;

/// The memory that instances may hold beyond what each is sure of ([`limits::MEMORY_FLOOR_BYTES`]), so that they
/// cannot together take the box down, nor some of them keep the others from starting. Clones are one pool.
#[derive(Clone, Debug)]
pub struct Pool {
    held: Arc<AtomicUsize>,
    /// Holds a word once somebody has left and nobody has heard of it.
    left: Sender<()>,
}

impl Pool {
    /// Nobody holds anything yet. The receiver hears when instances leave the pool, of several at least once.
    pub fn new() -> (Pool, Receiver<()>) {
        let (left, leaving) = channel::bounded(1);
        (Pool { held: Arc::default(), left }, leaving)
    }

    /// Takes from the pool what an instance that grows from `before` to `after` bytes holds beyond its sure share.
    fn grow(&self, before: usize, after: usize) -> bool {
        let more = beyond_floor(after) - beyond_floor(before);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|held| *held <= limits::MEMORY_POOL_BYTES)
        });
        taken.is_ok()
    }
}

fn beyond_floor(bytes: usize) -> usize {
    bytes.saturating_sub(limits::MEMORY_FLOOR_BYTES)
}

/// The growth of one guest's memories and tables against its quotas.
#[derive(Debug)]
pub struct Allowance {
    pub quotas: Quotas,
    memory_bytes: usize,
    table_elements: usize,
    exceeded: Option<Quota>,
    pool: Pool,
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.pool.held.fetch_sub(beyond_floor(self.memory_bytes), Ordering::Relaxed);
        let _ = self.pool.left.try_send(()); // full: it will be heard of anyway
    }
}

impl Allowance {
    pub fn new(quotas: Quotas, pool: Pool) -> Allowance {
        Allowance { quotas, memory_bytes: 0, table_elements: 0, exceeded: None, pool }
    }

    /// The quota that refused a growth, if one did: the guest's last act.
    pub fn exceeded(&self) -> Option<Quota> {
        self.exceeded
    }

    fn refuse(&mut self, name: Name) -> Result<bool, LimiterError> {
        self.exceeded = Some(self.quotas.over(name));
        Err(LimiterError::ResourceLimiterDeniedAllocation)
    }
}

impl ResourceLimiter for Allowance {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false); // the program's own limit: `memory.grow` answers -1
        }
        let total = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if total > self.quotas.size(Name::MemoryBytes) {
            return self.refuse(Name::MemoryBytes);
        }
        if !self.pool.grow(self.memory_bytes, total) {
            return self.refuse(Name::TotalMemoryBytes);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if total > self.quotas.size(Name::TableElements) {
            return self.refuse(Name::TableElements);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        limits::CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        limits::CORE_TABLES
    }

    /// The interpreter counts a memory again for each module that imports it.
    fn memories(&self) -> usize {
        limits::CORE_MEMORIES + limits::CORE_INSTANCES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hogs_cannot_keep_small_guests_from_starting() {
        let (pool, leaving) = Pool::new();
        let quotas = Quotas::default().with(Name::MemoryBytes, limits::MEMORY_POOL_BYTES as u64);
        let mut hog = Allowance::new(quotas, pool.clone());
        assert!(hog.memory_growing(0, limits::MEMORY_POOL_BYTES, None).is_ok());
        let mut second = Allowance::new(quotas, pool.clone());
        assert!(
            second.memory_growing(0, limits::MEMORY_FLOOR_BYTES, None).is_ok(),
            "each is sure of its share"
        );
        assert!(second.memory_growing(0, 2 * limits::MEMORY_FLOOR_BYTES, None).is_err());
        assert_eq!(second.exceeded(), Some(quotas.over(Name::TotalMemoryBytes)));
        drop((hog, second));
        assert_eq!(pool.held.load(Ordering::Relaxed), 0, "all of it comes back");
        assert!(leaving.try_recv().is_ok() && leaving.try_recv().is_err(), "one word for both");
    }
}
