//! What the live instances of one subject have together, and what everyone has.
//!
//! Owns: the counters. Never: a value to hold them to, which each instance brings along ([`Quotas`]): two tokens of one
//! subject may let their bearers have different shares of the same count.
//!
//! An account lives as long as an instance of its subject, whose part in it is given back before it leaves the directory but
//! for results that the engine still makes; and until these are gone, and the seconds have paid for the fuel that its subject
//! has used and for what it has printed: a row of short lives has no more of a second, of the memory or of the log, than one
//! long one.

use super::pace::Window;
use crate::clock;
use crate::engine::credit::Gauge;
use crate::limits;
use crate::quota::{Count, Name, Quota, Quotas, Share, Shares};
use smol::channel::{self, Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One subject's.
pub struct Account {
    fuel: Count,
    memory: Count,
    unread: Count,
    /// Bytes of the log; what ends gives none back.
    log: Window,
    /// Fuel by the second.
    window: Window,
    /// The second by which that is paid for.
    paid: AtomicU64,
    /// Queued operations.
    pub(super) operations: Arc<Gauge>,
    pub(super) all: Arc<All>,
}

/// Everyone's.
pub struct All {
    memory: Count,
    unread: Count,
    /// Holds a word once an instance's memory was given back and nobody has heard of it.
    left: Sender<()>,
    /// Since when seconds are counted.
    pub(super) epoch: Instant,
}

impl All {
    /// Nobody has anything yet. The receiver hears when instances give their memory back, of several at least once.
    pub fn new() -> (Arc<All>, Receiver<()>) {
        let (left, leaving) = channel::bounded(1);
        let all = All { memory: Count::default(), unread: Count::default(), left, epoch: clock::now() };
        (Arc::new(all), leaving)
    }

    /// The second that runs.
    pub(super) fn second(&self) -> u64 {
        clock::now().saturating_duration_since(self.epoch).as_secs()
    }

    pub(super) fn memory_is_back(&self) {
        let _ = self.left.try_send(()); // full: it will be heard of anyway
    }
}

impl Account {
    pub fn new(all: &Arc<All>) -> Account {
        Account {
            fuel: Count::default(),
            memory: Count::default(),
            unread: Count::default(),
            log: Window::default(),
            window: Window::default(),
            paid: AtomicU64::new(0),
            operations: Arc::default(),
            all: all.clone(),
        }
    }

    /// One that shares nothing with anybody.
    #[cfg(test)]
    pub fn alone() -> Arc<Account> {
        Arc::new(Account::new(&All::new().0))
    }

    /// Counts fuel that was used in this second; answers what is unpaid at so much a second.
    pub(super) fn spend(&self, second: u64, fuel: u64, rate: u64) -> u64 {
        let unpaid = self.window.spend(second, fuel, rate);
        self.unpaid(second, unpaid, rate);
        unpaid
    }

    /// So much is left for the seconds to come.
    fn unpaid(&self, second: u64, unpaid: u64, rate: u64) {
        let seconds = if unpaid > 0 { unpaid.div_ceil(rate.max(1)) } else { 0 };
        self.paid.fetch_max(second.saturating_add(seconds), Ordering::Relaxed);
    }

    /// Counts bytes of the log, which seconds give back, by the quota `full` of the subject.
    ///
    /// # Errors
    /// With so many more the subject would have printed more than it may; nothing is counted.
    pub fn print(&self, bytes: u64, full: Quota) -> Result<(), Quota> {
        let (second, rate) = (self.all.second(), back(full));
        let unpaid = self.log.spend_within(full.limit, second, bytes, rate).ok_or(full)?;
        self.unpaid(second, unpaid, rate);
        Ok(())
    }

    /// The same of what is in the log whether there was room for it or not: others find less.
    pub fn printed(&self, bytes: u64, full: Quota) {
        let (second, rate) = (self.all.second(), back(full));
        self.unpaid(second, self.log.spend(second, bytes, rate), rate);
    }

    /// The second by which all is paid for.
    pub(super) fn paid(&self) -> u64 {
        self.paid.load(Ordering::Relaxed)
    }

    /// Whether seconds to come have to pay for what was used.
    pub fn owes(&self) -> bool {
        self.paid() > self.all.second()
    }

    /// Whether something counts that may have outlived its instance.
    pub(super) fn holds(&self) -> bool {
        self.memory.load(Ordering::Relaxed) > 0
    }

    pub fn fuel(&self, quotas: &Quotas) -> Share {
        Share::new(&self.fuel, quotas.over(Name::SubjectFuel))
    }

    /// Linear memory, and what the host holds.
    pub fn memory(&self, quotas: &Quotas) -> Shares {
        Shares([
            Share::new(&self.memory, quotas.over(Name::SubjectMemoryBytes)),
            Share::new(&self.all.memory, quotas.over(Name::TotalMemoryBytes)),
        ])
    }

    /// Messages and blobs in mailboxes.
    pub fn unread(&self, quotas: &Quotas) -> Shares {
        Shares([
            Share::new(&self.unread, quotas.over(Name::SubjectUnreadBytes)),
            Share::new(&self.all.unread, quotas.over(Name::TotalUnreadBytes)),
        ])
    }
}

/// Bytes of the log that a second gives back to a subject with this quota.
fn back(full: Quota) -> u64 {
    (full.limit / limits::LOG_BYTES_BACK_WITHIN.as_secs()).max(1)
}
