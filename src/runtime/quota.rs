//! The growth of a guest's memory and tables, against what it, its subject and all together may have.
//!
//! Owns: the limiter that the interpreter asks. Of memory, its tables' included, each instance is sure of
//! [`limits::MEMORY_FLOOR_BYTES`]; what it has beyond counts with its subject's and everyone's, so that they cannot together take the box down, nor some of
//! them keep the others from starting.
//! Never: ending anybody; exceeding a quota is a [`Trap`](crate::host::Trap) or an [`Ending`](super::Ending).

use super::account::Account;
use crate::limits;
use crate::quota::Shares;
pub use crate::quota::{Name, Quota, Quotas};
use std::sync::Arc;
use wasmi::ResourceLimiter;
use wasmi_core::LimiterError;

/// What an entry of a table takes in the interpreter.
const ELEMENT_BYTES: usize = size_of::<wasmi_core::RawRef>();

fn beyond_floor(bytes: usize) -> u64 {
    bytes.saturating_sub(limits::MEMORY_FLOOR_BYTES) as u64
}

/// The growth of one guest's memories and tables against its quotas.
pub struct Allowance {
    pub quotas: Quotas,
    memory_bytes: usize,
    table_elements: usize,
    exceeded: Option<Quota>,
    account: Arc<Account>,
    memory: Shares,
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.memory.give(beyond_floor(self.bytes()));
        self.account.all.memory_is_back();
    }
}

impl Allowance {
    pub fn new(quotas: Quotas, account: Arc<Account>) -> Allowance {
        let memory = account.memory(&quotas);
        Allowance { quotas, memory_bytes: 0, table_elements: 0, exceeded: None, account, memory }
    }

    /// What its subject has.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The quota that refused a growth, if one did: the guest's last act.
    pub fn exceeded(&self) -> Option<Quota> {
        self.exceeded
    }

    /// Of memories and tables.
    fn bytes(&self) -> usize {
        self.memory_bytes.saturating_add(self.table_elements.saturating_mul(ELEMENT_BYTES))
    }

    /// Takes what `more` bytes are beyond the floor from what subject and box have.
    fn take(&mut self, more: usize) -> Result<(), Quota> {
        let bytes = self.bytes();
        self.memory.take(beyond_floor(bytes.saturating_add(more)) - beyond_floor(bytes))
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
        let more = desired.saturating_sub(current);
        let total = self.memory_bytes.saturating_add(more);
        if total > self.quotas.size(Name::MemoryBytes) {
            return self.refuse(self.quotas.over(Name::MemoryBytes));
        }
        if let Err(quota) = self.take(more) {
            return self.refuse(quota);
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
        let more = desired.saturating_sub(current);
        let total = self.table_elements.saturating_add(more);
        if total > self.quotas.size(Name::TableElements) {
            return self.refuse(self.quotas.over(Name::TableElements));
        }
        if let Err(quota) = self.take(more.saturating_mul(ELEMENT_BYTES)) {
            return self.refuse(quota);
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
    use crate::runtime::account::All;

    #[test]
    fn hogs_cannot_keep_small_guests_from_starting() {
        let (all, leaving) = All::new();
        let [one, other] = [0, 1].map(|_| Arc::new(Account::new(&all)));
        let (pool, own) = (limits::MEMORY_POOL_BYTES, limits::MEMORY_BYTES_PER_SUBJECT);
        let floor = limits::MEMORY_FLOOR_BYTES;
        let quotas = Quotas::default().with(Name::MemoryBytes, pool as u64);
        let most = quotas.with(Name::SubjectMemoryBytes, pool as u64);
        let mut hog = Allowance::new(quotas, one.clone());
        assert!(hog.memory_growing(0, own + floor, None).is_ok());
        let mut second = Allowance::new(quotas, one.clone());
        assert!(second.memory_growing(0, floor, None).is_ok(), "each is sure of its share");
        assert!(second.memory_growing(floor, 2 * floor, None).is_err());
        assert_eq!(second.exceeded(), Some(quotas.over(Name::SubjectMemoryBytes)));
        let mut third = Allowance::new(most, other.clone());
        assert!(
            third.memory_growing(0, pool - own + floor, None).is_ok(),
            "another subject has its own share"
        );
        assert!(third.memory_growing(pool - own + floor, pool, None).is_err());
        assert_eq!(third.exceeded(), Some(most.over(Name::TotalMemoryBytes)));
        drop((hog, second, third));
        assert_eq!(one.memory(&most).take(pool as u64), Ok(()), "all of it comes back");
        assert!(leaving.try_recv().is_ok() && leaving.try_recv().is_err(), "one word for all");
    }

    #[test]
    fn tables_count_as_memory() {
        let quotas = Quotas::default().with(Name::SubjectMemoryBytes, 400);
        let account = Account::alone();
        let mut guest = Allowance::new(quotas, account.clone());
        let elements = (limits::MEMORY_FLOOR_BYTES - 65_536) / ELEMENT_BYTES;
        assert!(guest.table_growing(0, elements, None).is_ok());
        assert!(guest.memory_growing(0, 65_536, None).is_ok(), "to the floor");
        assert!(guest.table_growing(elements, elements + 100, None).is_ok(), "100 entries beyond it");
        assert!(guest.table_growing(elements + 100, elements + 101, None).is_err());
        assert_eq!(guest.exceeded(), Some(quotas.over(Name::SubjectMemoryBytes)));
        drop(guest);
        assert_eq!(account.memory(&quotas).take(400), Ok(()), "all of it comes back");
    }
}
