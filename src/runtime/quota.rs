//! What one guest may use, and what it has used.
//!
//! Owns: the quotas of an instance and the limiter that the interpreter asks before memory or a table grows.
//! Never: ending anybody; exceeding a quota is a [`Trap`](crate::host::Trap) or an [`Ending`](super::Ending).

use crate::limits;
use smol::channel::{self, Receiver, Sender};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use wasmi::ResourceLimiter;
use wasmi_core::LimiterError;

/// The quotas of one instance. The defaults are generous: they end what runs away, not what works hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Linear memory, all memories together.
    pub memory_bytes: usize,
    /// Entries of all tables together.
    pub table_elements: usize,
    /// Interpreted instructions, roughly, over the whole life.
    pub fuel: u64,
    /// Launch to end, waiting included.
    pub wall_clock: Duration,
    /// Standard output and error over the whole life.
    pub log_bytes: usize,
}

impl Default for Quotas {
    fn default() -> Quotas {
        Quotas {
            memory_bytes: 256 << 20,
            table_elements: 1 << 20,
            // About an hour of one core.
            fuel: 4_000_000_000_000,
            wall_clock: Duration::from_secs(24 * 3600),
            log_bytes: 16 << 20,
        }
    }
}

/// A quota that was exceeded, with the value it has. `Display` is the text of event 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    MemoryBytes(usize),
    /// What all instances hold together beyond the share that each is sure of.
    PooledMemoryBytes(usize),
    TableElements(usize),
    Fuel(u64),
    WallClock(Duration),
    Handles(usize),
    /// Host memory behind handles.
    HeldBytes(usize),
    LogBytes(usize),
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = match *self {
            Quota::MemoryBytes(bytes) => ("memory bytes", bytes as u64),
            Quota::PooledMemoryBytes(bytes) => ("memory bytes of all instances together", bytes as u64),
            Quota::TableElements(elements) => ("table elements", elements as u64),
            Quota::Fuel(fuel) => ("fuel", fuel),
            Quota::WallClock(time) => ("wall clock seconds", time.as_secs()),
            Quota::HeldBytes(bytes) => ("bytes held by the host", bytes as u64),
            Quota::Handles(handles) => ("handles", handles as u64),
            Quota::LogBytes(bytes) => ("log bytes", bytes as u64),
        };
        write!(f, "Quota exceeded: {name}, limit {value}")
    }
}

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

    fn refuse(&mut self, quota: Quota) -> Result<bool, LimiterError> {
        self.exceeded = Some(quota);
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
        if total > self.quotas.memory_bytes {
            return self.refuse(Quota::MemoryBytes(self.quotas.memory_bytes));
        }
        if !self.pool.grow(self.memory_bytes, total) {
            return self.refuse(Quota::PooledMemoryBytes(limits::MEMORY_POOL_BYTES));
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
        if total > self.quotas.table_elements {
            return self.refuse(Quota::TableElements(self.quotas.table_elements));
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
        let quotas = Quotas { memory_bytes: limits::MEMORY_POOL_BYTES, ..Quotas::default() };
        let mut hog = Allowance::new(quotas, pool.clone());
        assert!(hog.memory_growing(0, limits::MEMORY_POOL_BYTES, None).is_ok());
        let mut second = Allowance::new(quotas, pool.clone());
        assert!(
            second.memory_growing(0, limits::MEMORY_FLOOR_BYTES, None).is_ok(),
            "each is sure of its share"
        );
        assert!(second.memory_growing(0, 2 * limits::MEMORY_FLOOR_BYTES, None).is_err());
        assert_eq!(second.exceeded(), Some(Quota::PooledMemoryBytes(limits::MEMORY_POOL_BYTES)));
        drop((hog, second));
        assert_eq!(pool.held.load(Ordering::Relaxed), 0, "all of it comes back");
        assert!(leaving.try_recv().is_ok() && leaving.try_recv().is_err(), "one word for both");
    }
}
