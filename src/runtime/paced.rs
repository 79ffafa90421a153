//! Work that takes long, for threads of low priority: whose turn it is, and whose it is not yet.
//!
//! Owns: the queue, in which subjects take turns (`fair.rs`), and the rest that a subject takes after a turn. Never: a
//! thread, what the work is, whether the model is busy.
//!
//! Low priority alone does not keep such threads from those that are waited for: a system gives turns of some
//! milliseconds, and a batch has a barrier every tenth of one. So while the model is busy for several subjects, each has a
//! part of one such thread's time.

use super::fair::Fair;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// While the model is busy for others, a subject rests so many times as long as its turn took, ...
const RESTS: u32 = 3;
/// ... but not longer than this.
const REST_MOST: Duration = Duration::from_secs(1);
/// How long those who wait for the end of a rest go at most without asking whether it is needed any more.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Paced<T> {
    fair: Fair<T>,
    /// Of each subject, the end of its rest.
    rested: Vec<Option<Instant>>, // [subject]
}

/// What a thread is to do.
pub(super) enum Next<T> {
    /// The turn of this subject has begun; [`Paced::over`] ends it.
    Turn(usize, T),
    /// All who wait have to rest: ask again then.
    Rest(Duration),
    Nothing,
}

impl<T> Default for Paced<T> {
    fn default() -> Paced<T> {
        Paced { fair: Fair::default(), rested: Vec::new() }
    }
}

impl<T> Paced<T> {
    /// The number is a new subject's from now on.
    pub fn begin(&mut self, subject: usize) {
        self.fair.begin(subject);
        if let Some(rested) = self.rested.get_mut(subject) {
            *rested = None;
        }
    }

    /// How often somebody has come to wait where nobody of its subject was.
    #[cfg(test)]
    pub fn entered(&self) -> u64 {
        self.fair.entered()
    }

    pub fn push(&mut self, subject: usize, one: T) {
        self.fair.push(subject, one);
    }

    /// `busy`: the model computes for several.
    pub fn next(&mut self, busy: bool, now: Instant) -> Next<T> {
        let least = Cell::new(LOOK);
        let may = |subject: usize| {
            let left =
                self.rested.get(subject).copied().flatten().map(|until| until.saturating_duration_since(now));
            let left = left.filter(|left| busy && !left.is_zero());
            least.set(least.get().min(left.unwrap_or(LOOK)));
            left.is_none()
        };
        match self.fair.pop_of(may) {
            Some((subject, one)) => Next::Turn(subject, one),
            None if self.fair.is_empty() => Next::Nothing,
            None => Next::Rest(least.get()),
        }
    }

    /// A turn of the subject is over and took so long.
    pub fn over(&mut self, subject: usize, took: Duration, now: Instant) {
        self.fair.over(subject, took.as_nanos() as u64);
        if self.rested.len() <= subject {
            self.rested.resize(subject + 1, None);
        }
        let until = now + (took * RESTS).min(REST_MOST);
        self.rested[subject] = self.rested[subject].max(Some(until)); // another thread's turn of it may have been longer
    }

    /// Takes one out of the subject's queue before its turn.
    pub fn take(&mut self, subject: usize, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        self.fair.take(subject, is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_model_is_busy_a_subject_rests_and_keeps_nobody_waiting() {
        let mut paced = Paced::default();
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        (0..3).for_each(|one| paced.push(0, one));
        assert!(matches!(paced.next(true, start), Next::Turn(0, 0)));
        paced.over(0, Duration::from_millis(10), after(10));
        let left = Duration::from_millis(20);
        assert!(
            matches!(paced.next(true, after(11)), Next::Rest(least) if least == left),
            "it asks again soon"
        );
        assert!(matches!(paced.next(true, after(38)), Next::Rest(least) if least == left / 10));
        paced.push(1, 10);
        assert!(matches!(paced.next(true, after(11)), Next::Turn(1, 10)));
        paced.over(1, Duration::from_millis(1), after(12));
        assert!(matches!(paced.next(true, after(39)), Next::Rest(_)));
        assert!(matches!(paced.next(true, after(40)), Next::Turn(0, 1)));
        paced.over(0, Duration::from_secs(60), after(90));
        assert!(matches!(paced.next(false, after(90)), Next::Turn(0, 2)), "nobody else needs the core");
        assert!(matches!(paced.next(true, after(5000)), Next::Nothing));
        paced.push(0, 3);
        assert!(matches!(paced.next(true, after(1100)), Next::Turn(0, 3)), "however long it was");
        paced.over(0, Duration::from_secs(60), after(1200));
        paced.begin(0);
        paced.push(0, 4);
        assert!(matches!(paced.next(true, after(1200)), Next::Turn(0, 4)), "a newcomer has had no turn");
    }
}
