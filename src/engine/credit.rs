//! How much one instance may have queued: a guest that submits faster than the device runs waits, and only it.
//!
//! Owns: the count of an instance's queued operations and their weight, and the wait for room. Never: the queue
//! itself. Waiting (not refusing) is the answer to a full queue, because whether a stock program's `flush` loop
//! fits must not depend on how busy the box is.

use crate::limits::{OPERATIONS_PER_INSTANCE, QUEUED_WORDS_PER_INSTANCE};
use event_listener::{Event, IntoNotification};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One instance's allowance. Made with the instance, kept by its host side; cheap to clone.
#[derive(Clone, Default)]
pub struct Credits(Arc<Shared>);

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    freed: Event,
}

#[derive(Default)]
struct Held {
    operations: usize,
    words: usize,
}

/// Room for one operation; travels with it and gives the room back when the operation is done or dropped.
pub struct Credit {
    of: Arc<Shared>,
    words: usize,
}

impl Credits {
    pub fn new() -> Credits {
        Credits::default()
    }

    /// Room for an operation of `words` (u32s of ids, positions and mask runs), if there is any now. One that is
    /// heavier than the whole allowance takes all of it, and so runs alone.
    pub fn try_take(&self, words: usize) -> Option<Credit> {
        let words = words.min(QUEUED_WORDS_PER_INSTANCE);
        let mut held = self.0.lock();
        let fits =
            held.operations < OPERATIONS_PER_INSTANCE && held.words + words <= QUEUED_WORDS_PER_INSTANCE;
        fits.then(|| {
            held.operations += 1;
            held.words += words;
            Credit { of: self.0.clone(), words }
        })
    }

    /// Like [`Credits::try_take`], but waits. It loses nothing when dropped.
    pub async fn take(&self, words: usize) -> Credit {
        loop {
            if let Some(credit) = self.try_take(words) {
                return credit;
            }
            let freed = self.0.freed.listen();
            if let Some(credit) = self.try_take(words) {
                return credit; // Room came between the look and the listening.
            }
            freed.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // The two counters are whole after any panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        held.operations -= 1;
        held.words -= self.words;
        drop(held);
        self.of.freed.notify(usize::MAX.relaxed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_instance_waits_until_an_operation_is_done() {
        let credits = Credits::new();
        let mut taken: Vec<Credit> =
            (0..OPERATIONS_PER_INSTANCE).map(|_| credits.try_take(1).expect("within the bound")).collect();
        assert!(credits.try_take(1).is_none());
        let other = credits.clone();
        let waiter = std::thread::spawn(move || smol::block_on(other.take(1)).words);
        taken.pop();
        assert_eq!(waiter.join().ok(), Some(1));
    }

    #[test]
    fn an_operation_heavier_than_the_allowance_runs_alone() {
        let credits = Credits::new();
        let heavy = credits.try_take(usize::MAX).expect("alone it fits");
        assert!(credits.try_take(1).is_none());
        drop(heavy);
        assert!(credits.try_take(1).is_some());
    }
}
