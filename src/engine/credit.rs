//! How much one instance may have queued: a guest that submits faster than the device runs waits, and only it.
//!
//! Owns: the count of queued operations and their weight, of an instance and of its subject, and the wait for room. Never: the queue
//! itself. Waiting (not refusing) is the answer to a full queue, because whether a stock program's `flush` loop
//! fits must not depend on how busy the box is.

use crate::limits::{QUEUED_WORDS_PER_INSTANCE, QUEUED_WORDS_PER_SUBJECT};
use crate::quota::{Name, Quotas};
use event_listener::{Event, IntoNotification};
use smol::future::or;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One instance's allowance. Made with the instance, kept by its host side; cheap to clone.
#[derive(Clone)]
pub struct Credits {
    own: Bounded,
    subject: Bounded,
}

/// What is queued, of an instance or of a subject: operations and their words, 32 bits each, so that nobody ever sees the
/// one counted without the other.
#[derive(Default)]
pub struct Gauge {
    held: AtomicU64,
    freed: Event,
}

const OPERATION: u64 = 1 << 32;

/// A gauge, and how far it may go for one of those that share it.
#[derive(Clone)]
struct Bounded {
    gauge: Arc<Gauge>,
    operations: u64,
    words: u64,
}

/// Room for one operation; travels with it and gives the room back when the operation is done or dropped.
pub struct Credit {
    _own: Room,
    _subject: Room,
}

/// Room that was taken of one gauge.
struct Room {
    of: Arc<Gauge>,
    weight: u64,
}

impl Credits {
    /// `subject`: what all instances of its subject share.
    pub fn new(quotas: &Quotas, subject: Arc<Gauge>) -> Credits {
        Credits {
            own: Bounded {
                gauge: Arc::default(),
                operations: quotas.get(Name::QueuedOperations),
                words: QUEUED_WORDS_PER_INSTANCE as u64,
            },
            subject: Bounded {
                gauge: subject,
                operations: quotas.get(Name::SubjectQueuedOperations),
                words: QUEUED_WORDS_PER_SUBJECT as u64,
            },
        }
    }

    /// Room for an operation of `words` (u32s of ids, positions and mask runs), if there is any now. One that is
    /// heavier than the whole allowance takes all of it, and so runs alone.
    pub fn try_take(&self, words: usize) -> Option<Credit> {
        let words = words.min(QUEUED_WORDS_PER_INSTANCE);
        let own = self.own.take(words)?;
        let Some(subject) = self.subject.take(words) else {
            // No word to who waits for the instance's own room: that can only be the caller.
            own.give_back();
            return None;
        };
        Some(Credit { _own: own, _subject: subject })
    }

    /// Like [`Credits::try_take`], but waits. It loses nothing when dropped.
    pub async fn take(&self, words: usize) -> Credit {
        loop {
            if let Some(credit) = self.try_take(words) {
                return credit;
            }
            let (own, subject) = (self.own.gauge.freed.listen(), self.subject.gauge.freed.listen());
            if let Some(credit) = self.try_take(words) {
                return credit; // Room came between the look and the listening.
            }
            or(own, subject).await;
        }
    }
}

#[cfg(test)]
impl Default for Credits {
    /// Of an instance that is alone.
    fn default() -> Credits {
        Credits::new(&Quotas::default(), Arc::default())
    }
}

impl Bounded {
    fn take(&self, words: usize) -> Option<Room> {
        let weight = OPERATION + words as u64;
        let fits = |held: u64| {
            let (operations, queued) = (held / OPERATION, held % OPERATION);
            let room = operations < self.operations && queued + words as u64 <= self.words;
            room.then(|| held + weight)
        };
        let taken = self.gauge.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        taken.is_ok().then(|| Room { of: self.gauge.clone(), weight })
    }
}

impl Room {
    fn give_back(mut self) {
        self.of.held.fetch_sub(std::mem::take(&mut self.weight), Ordering::AcqRel);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.weight > 0 {
            self.of.held.fetch_sub(self.weight, Ordering::AcqRel);
            self.of.freed.notify(usize::MAX.relaxed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::OPERATIONS_PER_INSTANCE;

    #[test]
    fn a_full_instance_waits_until_an_operation_is_done() {
        let credits = Credits::default();
        let mut taken: Vec<Credit> =
            (0..OPERATIONS_PER_INSTANCE).map(|_| credits.try_take(1).expect("within the bound")).collect();
        assert!(credits.try_take(1).is_none());
        let other = credits.clone();
        let waiter = std::thread::spawn(move || drop(smol::block_on(other.take(1))));
        taken.pop();
        assert!(waiter.join().is_ok());
    }

    #[test]
    fn an_operation_heavier_than_the_allowance_runs_alone() {
        let credits = Credits::default();
        let heavy = credits.try_take(usize::MAX).expect("alone it fits");
        assert!(credits.try_take(1).is_none());
        drop(heavy);
        assert!(credits.try_take(1).is_some());
    }

    #[test]
    fn instances_of_one_subject_wait_for_each_other_and_give_all_back() {
        let quotas = Quotas::default().with(Name::SubjectQueuedOperations, 3);
        let subject = Arc::<Gauge>::default();
        let [one, other] = [0, 1].map(|_| Credits::new(&quotas, subject.clone()));
        let mut taken: Vec<Credit> = (0..3).filter_map(|_| one.try_take(5)).collect();
        assert_eq!(taken.len(), 3);
        assert!(other.try_take(5).is_none(), "all three are taken");
        let waiter = std::thread::spawn(move || drop(smol::block_on(other.take(7))));
        taken.pop();
        assert!(waiter.join().is_ok());
        drop(taken);
        assert_eq!(subject.held.load(Ordering::Acquire), 0);
    }
}
